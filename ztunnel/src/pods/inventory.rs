//! Which pods the node agent wants served, apart from how that is done.
//!
//! The agent opens every conversation with a *snapshot*: the pods it knows, then an end mark. Only at the mark is it
//! known which of the pods we serve are gone. Pods that cannot be served yet are *waiting* and tried again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use redirect::zds::ZdsError;
use redirect::{Netns, NetnsId};
use tokio::time::Instant;

use crate::config::WorkloadName;

/// Pods that could not be served are tried again after this.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The node agent's name for a pod: its Kubernetes UID.
pub(crate) type PodUid = Arc<str>;

/// A pod as the agent describes it.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    pub(crate) workload: WorkloadName,
    pub(crate) netns: Netns,
}

/// The pods of this node. `R` is what runs for one of them.
#[derive(Debug)]
pub(crate) struct Inventory<R> {
    running: HashMap<PodUid, (NetnsId, R)>,
    waiting: HashMap<PodUid, Described>,
    /// Set when the first of the waiting pods began to wait; of no meaning while none does.
    retry_at: Option<Instant>,
    /// Pods named since the conversation began; `None` once the snapshot has ended.
    snapshot: Option<HashSet<PodUid>>,
}

/// What to do about a pod that the agent wants served.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Wanted<R> {
    /// It is served already, in that very namespace.
    Served,
    /// Start serving it.
    Start,
    /// It is served in another namespace: stop that, then start.
    Replace(R),
}

impl<R> Default for Inventory<R> {
    fn default() -> Self {
        Self {
            running: HashMap::new(),
            waiting: HashMap::new(),
            retry_at: None,
            snapshot: Some(HashSet::new()),
        }
    }
}

impl<R> Inventory<R> {
    /// A new conversation begins. What runs goes on; what waits is forgotten, since the agent names it again.
    pub(crate) fn begin_snapshot(&mut self) {
        self.waiting.clear();
        self.snapshot = Some(HashSet::new());
    }

    /// The agent wants the pod served.
    pub(crate) fn want(&mut self, uid: &PodUid, netns: NetnsId) -> Wanted<R> {
        self.keep(uid);
        self.waiting.remove(uid);
        match self.running.get(uid) {
            Some((served, _)) if *served == netns => Wanted::Served,
            Some(_) => self.running.remove(uid).map_or(Wanted::Start, |(_, old)| Wanted::Replace(old)),
            None => Wanted::Start,
        }
    }

    /// The agent knows the pod, and cannot or need not describe it again.
    pub(crate) fn keep(&mut self, uid: &PodUid) {
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.insert(uid.clone());
        }
    }

    /// A request could not be understood. One that adds a pod with a useless descriptor names that pod nevertheless.
    pub(crate) fn misunderstood(&mut self, error: &ZdsError) {
        if let ZdsError::WrongDescriptor { uid, .. } = error {
            self.keep(&uid.as_str().into());
        }
    }

    /// The pod is served now.
    pub(crate) fn started(&mut self, uid: PodUid, netns: NetnsId, run: R) {
        self.running.insert(uid, (netns, run));
    }

    /// The pod cannot be served now. It waits with the others for the next try, or for [`RETRY_INTERVAL`] if it is the
    /// first.
    pub(crate) fn failed(&mut self, uid: PodUid, pod: Described, now: Instant) {
        if self.waiting.is_empty() {
            self.retry_at = Some(now + RETRY_INTERVAL);
        }
        self.waiting.insert(uid, pod);
    }

    /// The agent does not want the pod served any more. Returns what to stop. Before the end of the snapshot that is
    /// left to the end: the agent may describe the pod once more.
    pub(crate) fn unwant(&mut self, uid: &str) -> Option<R> {
        self.waiting.remove(uid);
        match &mut self.snapshot {
            Some(snapshot) => {
                snapshot.remove(uid);
                None
            }
            None => self.running.remove(uid).map(|(_, run)| run),
        }
    }

    /// The snapshot is complete. Returns what to stop: everything that was not named in it.
    pub(crate) fn end_snapshot(&mut self) -> Vec<(PodUid, R)> {
        let Some(named) = self.snapshot.take() else { return Vec::new() };
        let gone = self.running.extract_if(|uid, _| !named.contains(uid));
        gone.map(|(uid, (_, run))| (uid, run)).collect()
    }

    /// Whether the snapshot has ended and every pod in it is served.
    pub(crate) fn is_settled(&self) -> bool {
        self.snapshot.is_none() && self.waiting.is_empty()
    }

    /// Takes the pods to try again.
    pub(crate) fn take_waiting(&mut self) -> Vec<(PodUid, Described)> {
        self.waiting.drain().collect()
    }

    /// When to try the waiting pods again; `None` when there are none.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.retry_at.filter(|_| !self.waiting.is_empty())
    }

    /// Everything that runs.
    pub(crate) fn running(&self) -> impl Iterator<Item = &R> {
        self.running.values().map(|(_, run)| run)
    }

    /// Takes everything that runs.
    pub(crate) fn take_running(&mut self) -> Vec<(PodUid, R)> {
        self.running.drain().map(|(uid, (_, run))| (uid, run)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: NetnsId = NetnsId { device: 4, inode: 1 };
    const THERE: NetnsId = NetnsId { device: 4, inode: 2 };

    fn uid(name: &str) -> PodUid {
        name.into()
    }

    fn serving(names: &[&str]) -> Inventory<&'static str> {
        let mut inventory = Inventory::default();
        for name in names {
            assert_eq!(inventory.want(&uid(name), HERE), Wanted::Start);
            inventory.started(uid(name), HERE, "first");
        }
        assert!(inventory.end_snapshot().is_empty());
        inventory
    }

    #[test]
    fn describing_a_pod_again_changes_nothing() {
        let mut inventory = serving(&["a"]);
        assert_eq!(inventory.want(&uid("a"), HERE), Wanted::Served);
        assert!(inventory.is_settled());
    }

    #[test]
    fn another_namespace_replaces_the_proxy() {
        let mut inventory = serving(&["a"]);
        assert_eq!(inventory.want(&uid("a"), THERE), Wanted::Replace("first"));
        inventory.started(uid("a"), THERE, "second");
        assert_eq!(inventory.unwant("a"), Some("second"));
        assert_eq!(inventory.unwant("a"), None);
    }

    #[test]
    fn a_new_snapshot_stops_what_it_does_not_name() {
        let mut inventory = serving(&["a", "b", "c"]);
        inventory.begin_snapshot();
        assert_eq!(inventory.want(&uid("a"), HERE), Wanted::Served);
        inventory.keep(&uid("b"));
        assert!(!inventory.is_settled());
        assert_eq!(inventory.end_snapshot(), [(uid("c"), "first")]);
        assert!(inventory.is_settled());
    }

    #[test]
    fn a_pod_added_again_with_a_useless_descriptor_stays_served() {
        let mut inventory = serving(&["a", "b"]);
        inventory.begin_snapshot();
        let source = redirect::NetnsError::NotANetworkNamespace;
        inventory.misunderstood(&ZdsError::WrongDescriptor { uid: "a".to_owned(), source });
        assert_eq!(inventory.end_snapshot(), [(uid("b"), "first")]);
    }

    #[test]
    fn a_pod_deleted_during_the_snapshot_is_stopped_at_its_end() {
        let mut inventory = serving(&["a"]);
        inventory.begin_snapshot();
        inventory.keep(&uid("a"));
        assert_eq!(inventory.unwant("a"), None);
        assert_eq!(inventory.end_snapshot(), [(uid("a"), "first")]);
    }

    fn pod() -> Described {
        Described { workload: WorkloadName::default(), netns: Netns::current().unwrap() }
    }

    #[test]
    fn time_during_which_nothing_waits_owes_no_retries() {
        let mut inventory = serving(&[]);
        let first = Instant::now();
        inventory.failed(uid("a"), pod(), first);
        inventory.failed(uid("b"), pod(), first + Duration::from_secs(4));
        assert_eq!(inventory.retry_at(), Some(first + RETRY_INTERVAL), "one try for all");
        assert_eq!(inventory.take_waiting().len(), 2);
        assert_eq!(inventory.retry_at(), None);
        let hour_later = first + Duration::from_secs(3_600);
        inventory.failed(uid("a"), pod(), hour_later);
        assert_eq!(inventory.retry_at(), Some(hour_later + RETRY_INTERVAL));
        inventory.unwant("a");
        assert_eq!(inventory.retry_at(), None);
    }

    #[test]
    fn a_waiting_pod_unsettles_until_it_is_deleted_or_served() {
        let pod = pod();
        let mut inventory = serving(&[]);
        inventory.failed(uid("a"), pod.clone(), Instant::now());
        assert!(inventory.retry_at().is_some() && !inventory.is_settled());
        assert_eq!(inventory.unwant("a"), None);
        assert!(inventory.is_settled());
        inventory.failed(uid("a"), pod.clone(), Instant::now());
        assert_eq!(inventory.want(&uid("a"), HERE), Wanted::Start);
        assert!(inventory.retry_at().is_none(), "a good description supersedes the one that failed");
        inventory.failed(uid("b"), pod, Instant::now());
        inventory.begin_snapshot();
        assert!(inventory.retry_at().is_none());
    }
}
