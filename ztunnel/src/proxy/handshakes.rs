//! Tunnels to our pods that are coming up: how many there may be, and who has to go when there are more.
//!
//! Until TLS and HTTP/2 are up nothing is known of a peer, and it may take its time, ten seconds. So whoever can reach a pod
//! could fill our memory and descriptors with connections that never become anything. When one too many arrives, the
//! *oldest* goes: an honest peer is done within milliseconds, and one that has waited for longer than
//! hundreds of others took to arrive most likely never will be. Were the newest turned away, a few hundred silent
//! connections would keep everybody out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::pod::PodInstance;
use crate::metrics::Limit;

/// Tunnels to one pod that may be coming up at once. When a pod's node proxy is replaced, all its clients come at once; a
/// thousand nodes' handshakes take a second of one core.
const MOST_FOR_A_POD: usize = 512;

/// Tunnels to all pods that may be coming up at once: with about 30 KiB each, 60 MiB.
const MOST_IN_ALL: usize = 2048;

/// The tunnels that are coming up, of all pods and on all threads. Clones refer to the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Handshakes(Arc<Mutex<Pending>>);

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    /// In order of arrival.
    all: BTreeMap<u64, (PodInstance, oneshot::Sender<Limit>)>,
    by_pod: HashMap<PodInstance, BTreeSet<u64>>,
}

/// A place among them, given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Handshake {
    handshakes: Handshakes,
    id: u64,
    told: oneshot::Receiver<Limit>,
}

impl Handshakes {
    /// Takes a place for a tunnel to `pod`, and another's if there are too many.
    pub(crate) fn begin(&self, pod: PodInstance) -> Handshake {
        let (sender, told) = oneshot::channel();
        let mut pending = self.pending();
        let pending = &mut *pending;
        let id = pending.next;
        pending.next += 1;
        pending.all.insert(id, (pod, sender));
        let of_pod = pending.by_pod.entry(pod).or_default();
        of_pod.insert(id);
        let surplus = match of_pod.first() {
            Some(oldest) if of_pod.len() > MOST_FOR_A_POD => Some((*oldest, Limit::PodHandshakes)),
            _ if pending.all.len() > MOST_IN_ALL => {
                pending.all.keys().next().map(|oldest| (*oldest, Limit::ProcessHandshakes))
            }
            _ => None,
        };
        if let Some((oldest, limit)) = surplus
            && let Some(sender) = pending.remove(oldest)
        {
            // It may just have come up.
            let _ = sender.send(limit);
        }
        Handshake { handshakes: self.clone(), id, told }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    fn remove(&mut self, id: u64) -> Option<oneshot::Sender<Limit>> {
        let (pod, sender) = self.all.remove(&id)?;
        if let Some(of_pod) = self.by_pod.get_mut(&pod) {
            of_pod.remove(&id);
            if of_pod.is_empty() {
                self.by_pod.remove(&pod);
            }
        }
        Some(sender)
    }
}

impl Handshake {
    /// Waits until the place is needed for another. To be awaited once.
    pub(crate) async fn displaced(&mut self) -> Limit {
        match (&mut self.told).await {
            Ok(limit) => limit,
            // The other end lives in the list as long as this place does, or has been used.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        drop(self.handshakes.pending().remove(self.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn displaced(handshake: &mut Handshake) -> Option<Limit> {
        handshake.told.try_recv().ok()
    }

    #[test]
    fn the_oldest_of_a_pod_makes_way_and_other_pods_are_spared() {
        let (handshakes, pod, other) = (Handshakes::default(), PodInstance::next(), PodInstance::next());
        let mut elsewhere = handshakes.begin(other);
        let mut held: Vec<_> = (0..MOST_FOR_A_POD).map(|_| handshakes.begin(pod)).collect();
        assert!(held.iter_mut().all(|handshake| displaced(handshake).is_none()));
        let mut newest = handshakes.begin(pod);
        assert_eq!(displaced(&mut held[0]), Some(Limit::PodHandshakes));
        assert_eq!(displaced(&mut held[1]), None);
        assert_eq!((displaced(&mut newest), displaced(&mut elsewhere)), (None, None));
    }

    #[test]
    fn the_oldest_of_all_makes_way_when_many_pods_are_busy() {
        let handshakes = Handshakes::default();
        let pods: Vec<_> = (0..16).map(|_| PodInstance::next()).collect();
        let mut held: Vec<_> = (0..MOST_IN_ALL).map(|at| handshakes.begin(pods[at % pods.len()])).collect();
        assert!(held.iter_mut().all(|handshake| displaced(handshake).is_none()));
        let mut newest = handshakes.begin(PodInstance::next());
        assert_eq!(displaced(&mut held[0]), Some(Limit::ProcessHandshakes));
        assert_eq!(displaced(&mut newest), None);
    }

    #[test]
    fn places_that_were_given_up_are_free_and_leave_nothing_behind() {
        let (handshakes, pod) = (Handshakes::default(), PodInstance::next());
        let mut first = handshakes.begin(pod);
        for _ in 0..2 * MOST_IN_ALL {
            drop(handshakes.begin(pod));
        }
        assert_eq!(displaced(&mut first), None);
        drop(first);
        let pending = handshakes.pending();
        assert!(pending.all.is_empty() && pending.by_pod.is_empty());
    }
}
