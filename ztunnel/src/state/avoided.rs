//! Endpoints that a node proxy could not connect to a moment ago.
//!
//! The control plane learns with delay that an endpoint is gone. Until it has, connections that would be sent there are
//! better sent to another endpoint of the same service. What is remembered is short-lived, bounded and only a preference:
//! where nothing else is left, an avoided endpoint is used.
//!
//! A pod can make its own connections fail, so each pod has its own experience: nobody learns from another.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The node's memory of failed connects. Read and written by every thread without locks; a race loses an entry at most.
#[derive(Debug)]
pub struct Avoided {
    /// `SETS` sets of `WAYS` slots. A slot: 40 bits of the key's hash, then the tick at which it ends. 0: unused.
    slots: Box<[AtomicU64]>,
    /// The latest end of any entry.
    latest: AtomicU32,
    hasher: RandomState,
    since: Instant,
}

/// The endpoints that one pod avoids at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Avoiding<'a>(Option<View<'a>>);

#[derive(Clone, Copy, Debug)]
struct View<'a> {
    avoided: &'a Avoided,
    whose: u64,
    now: u32,
}

/// How long an endpoint is avoided: about as long as a control plane takes to say that it is gone.
pub const AVOIDED_FOR: Duration = Duration::from_secs(5);

/// Entries in all. Beyond that, and when many fall into one set, those that end first make room.
pub const CAPACITY: usize = SETS * WAYS;

const SETS: usize = 256;
/// One cache line holds two sets.
const WAYS: usize = 4;
const TICK: Duration = Duration::from_millis(100);
const AVOIDED_TICKS: u32 = (AVOIDED_FOR.as_millis() / TICK.as_millis()) as u32;
const TICK_BITS: u32 = 24;
/// Ticks wrap after 19 days, so only their differences count.
const TICK_MASK: u32 = (1 << TICK_BITS) - 1;

impl Avoided {
    /// Nothing is avoided yet.
    pub fn new(now: Instant) -> Self {
        Self {
            slots: (0..CAPACITY).map(|_| AtomicU64::new(0)).collect(),
            latest: AtomicU32::new(0),
            hasher: RandomState::new(),
            since: now,
        }
    }

    /// The pod `whose` could not connect to the workload `uid` for its `port`, and avoids that for [`AVOIDED_FOR`].
    pub fn avoid(&self, whose: u64, uid: &str, port: u16, now: Instant) {
        let now = self.tick(now);
        let hash = self.hash(whose, uid, port);
        let end = now.wrapping_add(AVOIDED_TICKS) & TICK_MASK;
        let victim = self.set(hash).iter().min_by_key(|slot| {
            let slot = slot.load(Ordering::Relaxed);
            if tag(slot) == tag(hash) { 0 } else { 1 + left(slot, now) }
        });
        if let Some(slot) = victim {
            slot.store((hash & !u64::from(TICK_MASK)) | u64::from(end), Ordering::Relaxed);
        }
        self.latest.store(end, Ordering::Relaxed);
    }

    /// What the pod `whose` avoids now.
    pub fn at(&self, whose: u64, now: Instant) -> Avoiding<'_> {
        let now = self.tick(now);
        let any = left(u64::from(self.latest.load(Ordering::Relaxed)), now) > 0;
        Avoiding(any.then_some(View { avoided: self, whose, now }))
    }

    fn tick(&self, now: Instant) -> u32 {
        let ticks = now.saturating_duration_since(self.since).as_millis() / TICK.as_millis();
        // The mask keeps what fits. One more than passed, so that no end is the value of an unused slot at the start.
        (ticks as u32).wrapping_add(1) & TICK_MASK
    }

    fn hash(&self, whose: u64, uid: &str, port: u16) -> u64 {
        self.hasher.hash_one((whose, uid, port))
    }

    fn set(&self, hash: u64) -> &[AtomicU64] {
        // Bits that the tag does not have.
        let start = (hash as usize % SETS) * WAYS;
        &self.slots[start..start + WAYS]
    }
}

impl Avoiding<'_> {
    /// Nobody is avoided.
    pub const NOBODY: Avoiding<'static> = Avoiding(None);

    /// Whether somebody may be avoided at all.
    pub fn is_nobody(&self) -> bool {
        self.0.is_none()
    }

    /// Whether the workload `uid` is avoided for its `port`.
    pub fn contains(&self, uid: &str, port: u16) -> bool {
        let Some(View { avoided, whose, now }) = self.0 else { return false };
        let hash = avoided.hash(whose, uid, port);
        avoided.set(hash).iter().any(|slot| {
            let slot = slot.load(Ordering::Relaxed);
            tag(slot) == tag(hash) && left(slot, now) > 0
        })
    }
}

fn tag(slot: u64) -> u64 {
    slot >> TICK_BITS
}

/// Ticks until the entry ends; 0 when it has ended.
fn left(slot: u64, now: u32) -> u32 {
    let left = (slot as u32 & TICK_MASK).wrapping_sub(now) & TICK_MASK;
    if left <= AVOIDED_TICKS { left } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_avoided_for_a_while_by_the_pod_that_failed_and_for_that_port() {
        let start = Instant::now();
        let avoided = Avoided::new(start);
        assert!(avoided.at(1, start).is_nobody());
        avoided.avoid(1, "a", 80, start);
        let soon = start + AVOIDED_FOR - TICK;
        assert!(avoided.at(1, soon).contains("a", 80));
        assert!(!avoided.at(1, soon).contains("a", 81));
        assert!(!avoided.at(1, soon).contains("b", 80));
        assert!(!avoided.at(2, soon).contains("a", 80), "somebody else's failure");
        for later in [AVOIDED_FOR + TICK, Duration::from_secs(3600)] {
            assert!(!avoided.at(1, start + later).contains("a", 80));
            assert!(avoided.at(1, start + later).is_nobody());
        }
    }

    #[test]
    fn failing_again_avoids_for_longer_and_takes_no_second_place() {
        let start = Instant::now();
        let avoided = Avoided::new(start);
        for tenths in 0..100 {
            avoided.avoid(1, "a", 80, start + TICK * tenths);
        }
        assert!(avoided.at(1, start + TICK * 120).contains("a", 80));
        let used = avoided.slots.iter().filter(|slot| slot.load(Ordering::Relaxed) != 0).count();
        assert_eq!(used, 1);
    }

    #[test]
    fn the_memory_is_bounded_and_keeps_what_failed_last() {
        let start = Instant::now();
        let avoided = Avoided::new(start);
        for number in 0..10 * CAPACITY {
            avoided.avoid(1, &number.to_string(), 80, start);
        }
        let later = start + TICK;
        avoided.avoid(1, "last", 80, later);
        let view = avoided.at(1, later);
        assert!(view.contains("last", 80));
        let remembered = (0..10 * CAPACITY).filter(|number| view.contains(&number.to_string(), 80)).count();
        assert!((CAPACITY / 2..=CAPACITY).contains(&remembered), "{remembered}");
    }

    #[test]
    fn the_end_of_the_clock_is_an_ordinary_moment() {
        let start = Instant::now();
        let avoided = Avoided::new(start);
        let wrapping = start + TICK * (TICK_MASK - 10);
        avoided.avoid(1, "a", 80, wrapping);
        assert!(avoided.at(1, wrapping + TICK * 20).contains("a", 80));
        assert!(!avoided.at(1, wrapping + AVOIDED_FOR + TICK).contains("a", 80));
    }
}
