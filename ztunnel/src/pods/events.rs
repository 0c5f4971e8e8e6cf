//! What operators see of the pods: counters for metrics, and a table for dumps. Written by the control thread, read by
//! whoever likes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::inventory::PodUid;
use crate::config::WorkloadName;

/// Counters and table of one process. Shared by reference count.
#[derive(Debug, Default)]
pub struct PodEvents {
    active: AtomicU64,
    pending: AtomicU64,
    started: AtomicU64,
    stopped: AtomicU64,
    wrong_namespace: AtomicU64,
    pods: Mutex<BTreeMap<PodUid, Entry>>,
}

/// How a pod is doing, under the names that Istio's dump has for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PodState {
    /// It cannot be served, and is tried again.
    Pending,
    /// It is served, or its last connections are being ended.
    Up,
}

/// A pod in a dump.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodStatus {
    /// How it is doing.
    pub state: PodState,
    /// Which workload the node agent says it is.
    pub info: WorkloadName,
}

/// Proxies of one pod: the old and the new one overlap for a moment when it is replaced.
#[derive(Debug)]
struct Entry {
    status: PodStatus,
    running: usize,
    waiting: bool,
}

/// Reading.
impl PodEvents {
    /// Pods that are served (`workload_manager_active_proxy_count`, a gauge).
    pub fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    /// Pods that cannot be served and are tried again (`workload_manager_pending_proxy_count`, a gauge).
    pub fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Proxies started since the process began (`workload_manager_proxies_started_total`).
    pub fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// Proxies that have ended since the process began (`workload_manager_proxies_stopped_total`).
    pub fn stopped(&self) -> u64 {
        self.stopped.load(Ordering::Relaxed)
    }

    /// How often a pod's network namespace was found not to be that of the workload it is said to be: the pod was refused,
    /// evicted, or denied its identity. Each look counts, so it grows for as long as the contradiction lasts: anything but
    /// a standstill is worth an alarm.
    pub fn wrong_namespace(&self) -> u64 {
        self.wrong_namespace.load(Ordering::Relaxed)
    }

    /// Every pod that is served, waits, or is being ended, in the order of their uids.
    pub fn snapshot(&self) -> Vec<(PodUid, PodStatus)> {
        self.table().iter().map(|(uid, entry)| (uid.clone(), entry.status.clone())).collect()
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<PodUid, Entry>> {
        // No code panics while it holds the lock, so the table is whole.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writing.
impl PodEvents {
    pub(super) fn set_counts(&self, active: usize, pending: usize) {
        self.active.store(active as u64, Ordering::Relaxed);
        self.pending.store(pending as u64, Ordering::Relaxed);
    }

    pub(super) fn count_wrong_namespace(&self) {
        self.wrong_namespace.fetch_add(1, Ordering::Relaxed);
    }

    /// A proxy of the pod has started.
    pub(super) fn up(&self, uid: &PodUid, info: &WorkloadName) {
        self.started.fetch_add(1, Ordering::Relaxed);
        self.change(uid, info, |entry| {
            entry.running += 1;
            entry.waiting = false;
        });
    }

    /// The pod waits to be tried again.
    pub(super) fn waits(&self, uid: &PodUid, info: &WorkloadName) {
        self.change(uid, info, |entry| entry.waiting = true);
    }

    /// The pod waits no more, and was not started.
    pub(super) fn waits_no_more(&self, uid: &str) {
        self.leave(uid, |entry| entry.waiting = false);
    }

    /// A proxy of the pod has ended.
    pub(super) fn down(&self, uid: &str) {
        self.stopped.fetch_add(1, Ordering::Relaxed);
        self.leave(uid, |entry| entry.running = entry.running.saturating_sub(1));
    }

    fn change(&self, uid: &PodUid, info: &WorkloadName, change: impl FnOnce(&mut Entry)) {
        let mut table = self.table();
        let entry = table.entry(uid.clone()).or_insert_with(|| Entry {
            status: PodStatus { state: PodState::Pending, info: info.clone() },
            running: 0,
            waiting: false,
        });
        change(entry);
        if entry.status.info != *info {
            entry.status.info = info.clone();
        }
        entry.settle();
    }

    fn leave(&self, uid: &str, change: impl FnOnce(&mut Entry)) {
        let mut table = self.table();
        let Some(entry) = table.get_mut(uid) else { return };
        change(entry);
        entry.settle();
        if entry.running == 0 && !entry.waiting {
            table.remove(uid);
        }
    }
}

impl Entry {
    fn settle(&mut self) {
        self.status.state = if self.waiting { PodState::Pending } else { PodState::Up };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(events: &PodEvents) -> Vec<PodState> {
        events.snapshot().into_iter().map(|(_, status)| status.state).collect()
    }

    #[test]
    fn a_pod_is_pending_then_up_then_gone() {
        let (events, uid) = (PodEvents::default(), PodUid::from("u"));
        let info = WorkloadName { name: "p".into(), ..WorkloadName::default() };
        events.waits(&uid, &info);
        assert_eq!(
            events.snapshot(),
            [(uid.clone(), PodStatus { state: PodState::Pending, info: info.clone() })]
        );
        events.up(&uid, &info);
        assert_eq!(states(&events), [PodState::Up]);
        events.down(&uid);
        assert_eq!(states(&events), []);
        assert_eq!((events.started(), events.stopped()), (1, 1));
    }

    #[test]
    fn a_replaced_pod_stays_in_the_table_when_its_first_proxy_ends_after_the_second_began() {
        let (events, uid, info) = (PodEvents::default(), PodUid::from("u"), WorkloadName::default());
        events.up(&uid, &info);
        events.up(&uid, &info);
        events.down(&uid);
        assert_eq!(states(&events), [PodState::Up]);
        events.waits(&uid, &info);
        events.down(&uid);
        assert_eq!(states(&events), [PodState::Pending]);
        events.waits_no_more(&uid);
        assert_eq!(states(&events), []);
    }

    #[test]
    fn the_end_of_a_pod_nobody_knows_is_no_trouble() {
        let events = PodEvents::default();
        events.down("u");
        events.waits_no_more("u");
        assert_eq!(states(&events), []);
    }
}
