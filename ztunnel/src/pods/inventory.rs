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
use crate::state::model::Workload;

/// Pods that could not be served are tried again after this.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The node agent's name for a pod: its Kubernetes UID.
pub type PodUid = Arc<str>;

/// A pod as the agent describes it.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    pub(crate) workload: WorkloadName,
    pub(crate) netns: Netns,
}

/// A pod that cannot be served yet.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) pod: Described,
    /// Why, as the agent was told.
    pub(crate) reason: String,
    /// The description of the pod that its namespace contradicts, if that is the reason.
    pub(crate) contradicted: Option<Arc<Workload>>,
    /// What became of it before.
    pub(crate) past: Past,
}

/// What became of a waiting pod before.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Past {
    /// It could not be started. An agent that comes back describes it again.
    #[default]
    NeverServed,
    /// It was served, and evicted. An agent that comes back may think that it still is, and only confirm it.
    Evicted,
}

/// The pods of this node. `R` is what runs for one of them.
#[derive(Debug)]
pub(crate) struct Inventory<R> {
    running: HashMap<PodUid, (NetnsId, R)>,
    waiting: HashMap<PodUid, Waiting>,
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
    /// A new conversation begins. What runs goes on, and what was evicted waits on. What never ran is forgotten, since
    /// the agent describes it again; returns that.
    pub(crate) fn begin_snapshot(&mut self) -> Vec<PodUid> {
        self.snapshot = Some(HashSet::new());
        let never_served = self.waiting.extract_if(|_, waiting| waiting.past == Past::NeverServed);
        never_served.map(|(uid, _)| uid).collect()
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

    /// Takes the namespace for a pod that is about to be served there. Returns who is to be stopped first: another pod that
    /// is served there, and that the agent has not named since the conversation began, so that its pod was made again.
    ///
    /// # Errors
    /// The namespace is that other pod's, which the agent wants served too. Both would listen on the same ports, and each
    /// would get connections of the other.
    pub(crate) fn claim(&mut self, uid: &str, netns: NetnsId) -> Result<Option<(PodUid, R)>, PodUid> {
        let is_other = |(other, (served, _)): &(&PodUid, &(NetnsId, R))| ***other != *uid && *served == netns;
        let Some(other) = self.running.iter().find(is_other).map(|(other, _)| other.clone()) else {
            return Ok(None);
        };
        if self.snapshot.as_ref().is_none_or(|named| named.contains(&other)) {
            return Err(other);
        }
        Ok(self.running.remove(&other).map(|(_, run)| (other, run)))
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
    pub(crate) fn failed(&mut self, uid: PodUid, waiting: Waiting, now: Instant) {
        if self.waiting.is_empty() {
            self.retry_at = Some(now + RETRY_INTERVAL);
        }
        self.waiting.insert(uid, waiting);
    }

    /// The pod may be served no more, whatever the agent wants. Returns what to stop.
    pub(crate) fn evict(&mut self, uid: &str) -> Option<R> {
        self.running.remove(uid).map(|(_, run)| run)
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

    /// The snapshot is complete. Returns what is gone, everything that was not named in it: `Some` is to be stopped,
    /// `None` only waited (since it was evicted).
    pub(crate) fn end_snapshot(&mut self) -> Vec<(PodUid, Option<R>)> {
        let Some(named) = self.snapshot.take() else { return Vec::new() };
        let waited = self.waiting.extract_if(|uid, _| !named.contains(uid)).map(|(uid, _)| (uid, None));
        let ran = self.running.extract_if(|uid, _| !named.contains(uid));
        waited.chain(ran.map(|(uid, (_, run))| (uid, Some(run)))).collect()
    }

    /// Whether the snapshot has ended and every pod in it is served.
    pub(crate) fn is_settled(&self) -> bool {
        self.snapshot.is_none() && self.waiting.is_empty()
    }

    /// Takes the waiting pods that are to be tried again now.
    pub(crate) fn take_waiting(&mut self, which: impl Fn(&Waiting) -> bool) -> Vec<(PodUid, Waiting)> {
        self.waiting.extract_if(|_, waiting| which(waiting)).collect()
    }

    /// When to try the waiting pods again; `None` when there are none.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.retry_at.filter(|_| !self.waiting.is_empty())
    }

    /// How many pods run, and how many wait.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// Everything that runs.
    pub(crate) fn running_mut(&mut self) -> impl Iterator<Item = (&PodUid, &mut R)> {
        self.running.iter_mut().map(|(uid, (_, run))| (uid, run))
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
        assert_eq!(inventory.end_snapshot(), [(uid("c"), Some("first"))]);
        assert!(inventory.is_settled());
    }

    #[test]
    fn a_pod_added_again_with_a_useless_descriptor_stays_served() {
        let mut inventory = serving(&["a", "b"]);
        inventory.begin_snapshot();
        let source = redirect::NetnsError::NotANetworkNamespace;
        inventory.misunderstood(&ZdsError::WrongDescriptor { uid: "a".to_owned(), source });
        assert_eq!(inventory.end_snapshot(), [(uid("b"), Some("first"))]);
    }

    #[test]
    fn a_pod_deleted_during_the_snapshot_is_stopped_at_its_end() {
        let mut inventory = serving(&["a"]);
        inventory.begin_snapshot();
        inventory.keep(&uid("a"));
        assert_eq!(inventory.unwant("a"), None);
        assert_eq!(inventory.end_snapshot(), [(uid("a"), Some("first"))]);
    }

    fn pod() -> Waiting {
        let pod = Described { workload: WorkloadName::default(), netns: Netns::current().unwrap() };
        Waiting { pod, reason: "test".to_owned(), contradicted: None, past: Past::NeverServed }
    }

    #[test]
    fn an_evicted_pod_waits_until_it_is_served_deleted_or_not_named_any_more() {
        let evicted = || Waiting { past: Past::Evicted, ..pod() };
        let mut inventory = serving(&["a", "b", "c"]);
        assert_eq!(inventory.evict("a"), Some("first"));
        assert_eq!(inventory.evict("a"), None);
        inventory.failed(uid("a"), evicted(), Instant::now());
        inventory.failed(uid("never served"), pod(), Instant::now());
        assert_eq!(inventory.counts(), (2, 2));
        assert_eq!(inventory.begin_snapshot(), [uid("never served")]);
        // The agent handed it over long ago, and only confirms it.
        inventory.keep(&uid("a"));
        inventory.keep(&uid("c"));
        // Evicted during the snapshot, and not named in it.
        assert_eq!(inventory.evict("b"), Some("first"));
        inventory.failed(uid("b"), evicted(), Instant::now());
        assert_eq!(inventory.end_snapshot(), [(uid("b"), None)]);
        assert_eq!(inventory.counts(), (1, 1));
        assert!(!inventory.is_settled(), "it is wanted, and not served");
        inventory.begin_snapshot();
        inventory.keep(&uid("c"));
        assert_eq!(inventory.end_snapshot(), [(uid("a"), None)]);
        assert!(inventory.is_settled());
    }

    #[test]
    fn a_namespace_in_use_is_given_to_another_pod_only_if_the_agent_has_not_named_the_first() {
        let mut inventory = serving(&["a"]);
        assert_eq!(inventory.claim("a", HERE), Ok(None), "its own");
        assert_eq!(inventory.claim("b", THERE), Ok(None), "nobody's");
        assert_eq!(inventory.claim("b", HERE), Err(uid("a")));
        inventory.begin_snapshot();
        inventory.keep(&uid("a"));
        assert_eq!(inventory.claim("b", HERE), Err(uid("a")));
        inventory.begin_snapshot();
        assert_eq!(inventory.claim("b", HERE), Ok(Some((uid("a"), "first"))));
        assert_eq!(inventory.claim("b", HERE), Ok(None));
    }

    #[test]
    fn a_kept_pod_that_nobody_serves_changes_nothing() {
        let mut inventory = serving(&["a"]);
        inventory.begin_snapshot();
        inventory.keep(&uid("a"));
        inventory.keep(&uid("stranger"));
        assert!(inventory.end_snapshot().is_empty());
        assert_eq!(inventory.counts(), (1, 0));
    }

    #[test]
    fn a_pod_deleted_during_the_snapshot_and_added_again_stays() {
        let mut inventory = serving(&["a"]);
        inventory.begin_snapshot();
        inventory.keep(&uid("a"));
        assert_eq!(inventory.unwant("a"), None);
        assert_eq!(inventory.want(&uid("a"), HERE), Wanted::Served);
        assert!(inventory.end_snapshot().is_empty());
    }

    #[test]
    fn deleting_an_unknown_pod_is_no_trouble_before_and_after_the_snapshot() {
        let mut inventory = serving(&["a"]);
        assert_eq!(inventory.unwant("stranger"), None);
        inventory.begin_snapshot();
        inventory.keep(&uid("a"));
        assert_eq!(inventory.unwant("stranger"), None);
        assert!(inventory.end_snapshot().is_empty());
    }

    #[test]
    fn a_deleted_pod_can_be_added_again() {
        let mut inventory = serving(&["a"]);
        assert_eq!(inventory.unwant("a"), Some("first"));
        assert_eq!(inventory.want(&uid("a"), HERE), Wanted::Start);
    }

    #[test]
    fn only_the_chosen_of_the_waiting_pods_are_tried() {
        let mut inventory = serving(&[]);
        inventory.failed(uid("a"), pod(), Instant::now());
        let contradicted = Some(Arc::default());
        inventory.failed(uid("b"), Waiting { contradicted, ..pod() }, Instant::now());
        let taken = inventory.take_waiting(|waiting| waiting.contradicted.is_some());
        assert_eq!(taken.into_iter().map(|(uid, _)| uid).collect::<Vec<_>>(), [uid("b")]);
        assert_eq!(inventory.counts(), (0, 1));
    }

    #[test]
    fn time_during_which_nothing_waits_owes_no_retries() {
        let mut inventory = serving(&[]);
        let first = Instant::now();
        inventory.failed(uid("a"), pod(), first);
        inventory.failed(uid("b"), pod(), first + Duration::from_secs(4));
        assert_eq!(inventory.retry_at(), Some(first + RETRY_INTERVAL), "one try for all");
        assert_eq!(inventory.take_waiting(|_| true).len(), 2);
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
