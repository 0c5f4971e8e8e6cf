//! Answers of others, kept until their lifetime is over.
//!
//! One store for the whole node, with one bound for its size, and a partition in it for each pod: a pod's questions are
//! asked from within its own network namespace, where whoever rules in the pod can also answer them. What one pod was
//! told is therefore told to no other.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use crate::proxy::PodInstance;

/// Answers of all pods.
#[derive(Debug)]
pub(crate) struct Cache {
    bounds: Bounds,
    partitions: HashMap<PodInstance, Partition>,
    /// Of all partitions.
    octets: usize,
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Answers for one pod.
    pub(crate) entries: usize,
    /// Octets for all pods, what it takes to keep them included.
    pub(crate) octets: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { entries: 8192, octets: 32 << 20 }
    }
}

/// Answers of one pod.
#[derive(Debug, Default)]
struct Partition {
    entries: HashMap<Rc<[u8]>, Entry>,
    /// Every key of `entries`, in the order in which they came.
    order: VecDeque<Rc<[u8]>>,
    octets: usize,
}

#[derive(Debug)]
struct Entry {
    answer: Rc<[u8]>,
    from: Instant,
    lifetime: Duration,
}

/// What an entry takes besides its octets, estimated.
const OVERHEAD: usize = 160;

/// The longest lifetime that is believed.
const LONGEST: Duration = Duration::from_secs(86_400);

impl Cache {
    /// An empty one.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, partitions: HashMap::new(), octets: 0 }
    }

    /// The answer that `pod` got to the question `key`, and how long ago, if it may still be used.
    pub(crate) fn get(&self, pod: PodInstance, key: &[u8], now: Instant) -> Option<(Rc<[u8]>, Duration)> {
        let entry = self.partitions.get(&pod)?.entries.get(key)?;
        let age = now.saturating_duration_since(entry.from);
        (age < entry.lifetime).then(|| (entry.answer.clone(), age))
    }

    /// Keeps an answer for `lifetime`. The oldest go when there is no room: those of the same pod when it has too many,
    /// otherwise those of the pod that takes most.
    pub(crate) fn put(
        &mut self,
        pod: PodInstance,
        key: Rc<[u8]>,
        answer: Rc<[u8]>,
        lifetime: Duration,
        now: Instant,
    ) {
        if lifetime.is_zero() {
            return;
        }
        let size = size_of_entry(&key, &answer);
        let partition = self.partitions.entry(pod).or_default();
        let entry = Entry { answer, from: now, lifetime: lifetime.min(LONGEST) };
        let mut freed = 0;
        match partition.entries.insert(key.clone(), entry) {
            Some(replaced) => freed += size_of_entry(&key, &replaced.answer),
            None => partition.order.push_back(key),
        }
        partition.octets = partition.octets + size - freed;
        if partition.order.len() > self.bounds.entries {
            freed += partition.evict();
        }
        self.octets = self.octets + size - freed;
        while self.octets > self.bounds.octets {
            let largest = self.partitions.values_mut().max_by_key(|partition| partition.octets);
            let Some(freed) = largest.map(Partition::evict).filter(|freed| *freed > 0) else { break };
            self.octets -= freed;
        }
    }

    /// Forgets what a pod was told.
    pub(crate) fn forget(&mut self, pod: PodInstance) {
        if let Some(partition) = self.partitions.remove(&pod) {
            self.octets -= partition.octets;
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.partitions.clear();
        self.octets = 0;
    }
}

impl Partition {
    /// Takes out the oldest entry. Returns the octets that it took.
    fn evict(&mut self) -> usize {
        let Some(key) = self.order.pop_front() else { return 0 };
        let freed = self.entries.remove(&key).map_or(0, |entry| size_of_entry(&key, &entry.answer));
        self.octets -= freed;
        freed
    }
}

fn size_of_entry(key: &[u8], answer: &[u8]) -> usize {
    key.len() + answer.len() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> Rc<[u8]> {
        number.to_be_bytes().to_vec().into()
    }

    fn put(cache: &mut Cache, pod: PodInstance, number: u32, now: Instant) {
        cache.put(pod, key(number), [0; 100].into(), Duration::from_secs(10), now);
    }

    #[test]
    fn an_answer_lives_as_long_as_it_says_and_only_for_the_pod_that_got_it() {
        let (pod, other, now) = (PodInstance::next(), PodInstance::next(), Instant::now());
        let mut cache = Cache::new(Bounds::default());
        put(&mut cache, pod, 1, now);
        let late = now + Duration::from_secs(9);
        assert_eq!(cache.get(pod, &key(1), late).unwrap().1, Duration::from_secs(9));
        assert!(cache.get(pod, &key(1), now + Duration::from_secs(10)).is_none());
        assert!(cache.get(other, &key(1), now).is_none());
        cache.put(other, key(2), [0; 4].into(), Duration::ZERO, now);
        assert!(cache.get(other, &key(2), now).is_none());
        cache.forget(pod);
        assert_eq!((cache.octets, cache.get(pod, &key(1), now).is_none()), (0, true));
    }

    #[test]
    fn a_pod_that_asks_for_much_pushes_out_its_own_answers() {
        let (greedy, modest, now) = (PodInstance::next(), PodInstance::next(), Instant::now());
        let mut cache = Cache::new(Bounds { entries: 1000, octets: 10_000 });
        put(&mut cache, modest, 0, now);
        (0..5000).for_each(|number| put(&mut cache, greedy, number, now));
        assert!(cache.get(modest, &key(0), now).is_some());
        assert!(cache.get(greedy, &key(0), now).is_none() && cache.get(greedy, &key(4999), now).is_some());
        assert!(cache.octets <= 10_000, "{}", cache.octets);
        let counted: usize = cache.partitions.values().map(|partition| partition.octets).sum();
        assert_eq!(counted, cache.octets);
    }

    #[test]
    fn a_pod_has_no_more_entries_than_allowed_and_replacing_one_takes_no_room() {
        let (pod, now) = (PodInstance::next(), Instant::now());
        let mut cache = Cache::new(Bounds { entries: 3, octets: 1 << 20 });
        for number in [1, 2, 3, 1, 1, 2, 4] {
            put(&mut cache, pod, number, now);
        }
        let kept: Vec<_> = (1..=4).filter(|number| cache.get(pod, &key(*number), now).is_some()).collect();
        assert_eq!(kept, [2, 3, 4]);
        assert_eq!(cache.octets, 3 * size_of_entry(&key(1), &[0; 100]));
    }
}
