//! Which pods the node agent wants served, apart from how that is done.
//!
//! The agent opens every conversation with a *snapshot*: the pods it knows, then an end mark. Only at the mark is it
//! known which of the pods we serve are gone. Pods that cannot be served yet are *waiting* and tried again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use redirect::{Netns, NetnsId};

use crate::config::WorkloadName;

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
        Self { running: HashMap::new(), waiting: HashMap::new(), snapshot: Some(HashSet::new()) }
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

    /// The pod is served now.
    pub(crate) fn started(&mut self, uid: PodUid, netns: NetnsId, run: R) {
        self.running.insert(uid, (netns, run));
    }

    /// The pod cannot be served now.
    pub(crate) fn failed(&mut self, uid: PodUid, pod: Described) {
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

    /// Whether some pod is to be tried again.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Everything that runs.
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
    fn a_pod_deleted_during_the_snapshot_is_stopped_at_its_end() {
        let mut inventory = serving(&["a"]);
        inventory.begin_snapshot();
        inventory.keep(&uid("a"));
        assert_eq!(inventory.unwant("a"), None);
        assert_eq!(inventory.end_snapshot(), [(uid("a"), "first")]);
    }

    #[test]
    fn a_waiting_pod_unsettles_until_it_is_deleted_or_served() {
        let netns = Netns::current().unwrap();
        let pod = Described { workload: WorkloadName::default(), netns };
        let mut inventory = serving(&[]);
        inventory.failed(uid("a"), pod.clone());
        assert!(inventory.has_waiting() && !inventory.is_settled());
        assert_eq!(inventory.unwant("a"), None);
        assert!(inventory.is_settled());
        inventory.failed(uid("a"), pod.clone());
        assert_eq!(inventory.want(&uid("a"), HERE), Wanted::Start);
        assert!(!inventory.has_waiting(), "a good description supersedes the one that failed");
        inventory.failed(uid("b"), pod);
        inventory.begin_snapshot();
        assert!(!inventory.has_waiting());
    }
}
