//! When to request which certificate: a state machine without clock, randomness of its own or I/O.
//!
//! An identity that is managed is either waiting for its turn or being requested:
//!
//! ```text
//!            want                       next
//!   (none) ────────▶ queued(priority, due) ────────▶ running
//!                       ▲                              │
//!                       │  renewal at about half-life  │ answered: Ok
//!                       ├──────────────────────────────┤
//!                       │  back-off                    │ answered: Err
//!                       └──────────────────────────────┘
//! ```
//!
//! Of the identities whose time has come, the most urgent goes first, then the one that has been due the longest. A
//! request that is running is never interrupted; if its identity is forgotten meanwhile, its answer is dropped, and if
//! the identity is wanted again meanwhile, its answer is used.
//!
//! Waiting is measured on the monotonic clock and validity on the wall clock. Every call says what both show, so a wall
//! clock that was set, or stood still while the machine slept, is noticed and renewals are moved accordingly.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant, SystemTime};

use crate::{Retry, SpiffeId};

/// The longest wait after a failure, before randomisation.
const LONGEST_BACKOFF: Duration = Duration::from_secs(150);

/// Traffic may bring a retry forward to this long after the last failure.
const HASTENED_RETRY: Duration = Duration::from_secs(5);

/// No identity is asked for again sooner than this, whatever its certificate says.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// A disagreement of the two clocks that is more than their drift: the wall clock was set.
const CLOCK_STEP: Duration = Duration::from_secs(1);

/// What both clocks show.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) monotonic: Instant,
    pub(crate) wall: SystemTime,
}

/// Who is waiting for the certificate, least urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    /// Nobody yet: a renewal or a retry.
    Background,
    /// A workload that will soon have traffic.
    Warmup,
    /// A connection.
    RealTime,
}

/// The lifetime of an issued certificate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validity {
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

/// What [`Schedule::want`] leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A request is running or will run as soon as there is room: wait for the answer.
    Requested,
    /// The last request failed a moment ago, and the next is not due: its answer stands.
    BackingOff,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Request a certificate for this identity, and call [`Schedule::answered`] in any case.
    Request(SpiffeId),
    /// Nothing before this time.
    At(Instant),
    /// Nothing before an event: all requests allowed at once are running, or nothing is managed.
    Idle,
}

#[derive(Debug)]
pub(crate) struct Schedule {
    /// How many requests may run at once.
    concurrency: usize,
    entries: HashMap<SpiffeId, Entry>,
    /// The entries that are not running, by priority, in the order of their time.
    queues: [BTreeSet<(Instant, SpiffeId)>; 3],
    /// Includes identities that were forgotten since.
    running: HashSet<SpiffeId>,
    random: fastrand::Rng,
    last_seen: Option<Now>,
}

#[derive(Debug, Default)]
struct Entry {
    /// Its place in the queues; none while its request is running.
    queued: Option<(Priority, Instant)>,
    /// Answers without use in a row, failed or as good as expired.
    fruitless: u32,
    answered_at: Option<Instant>,
    /// Expiry of the last good certificate.
    not_after: Option<SystemTime>,
    /// When that certificate is to be renewed, if no answer since was fruitless.
    renew_at: Option<SystemTime>,
}

impl Schedule {
    pub(crate) fn new(concurrency: usize, random: fastrand::Rng) -> Self {
        Self {
            concurrency,
            entries: HashMap::new(),
            queues: Default::default(),
            running: HashSet::new(),
            random,
            last_seen: None,
        }
    }

    /// Takes `identity` under management, or makes its first request or retry more urgent.
    pub(crate) fn want(&mut self, identity: &SpiffeId, priority: Priority, now: Now) -> Wanted {
        let Some(entry) = self.entries.get(identity) else {
            self.entries.insert(identity.clone(), Entry::default());
            if !self.running.contains(identity) {
                self.enqueue(identity, priority, now.monotonic);
            }
            return Wanted::Requested;
        };
        let Some((queued, due)) = entry.queued else { return Wanted::Requested };
        let rested = entry.answered_at.is_none_or(|answered| now.monotonic >= answered + HASTENED_RETRY);
        if due <= now.monotonic {
            self.enqueue(identity, queued.max(priority), due);
        } else if priority == Priority::RealTime && rested {
            self.enqueue(identity, priority, now.monotonic);
        } else {
            return Wanted::BackingOff;
        }
        Wanted::Requested
    }

    /// Ends the management of `identity`. Returns whether it was managed.
    pub(crate) fn forget(&mut self, identity: &SpiffeId) -> bool {
        self.dequeue(identity);
        self.entries.remove(identity).is_some()
    }

    /// What is to be done at `now`. To be asked after every event and at the time it last gave.
    pub(crate) fn next(&mut self, now: Now) -> Next {
        self.follow_wall_clock(now);
        if self.running.len() >= self.concurrency {
            return Next::Idle;
        }
        let due =
            self.queues.iter().rev().filter_map(|queue| queue.first()).find(|(due, _)| *due <= now.monotonic);
        if let Some((_, identity)) = due.cloned() {
            self.dequeue(&identity);
            self.running.insert(identity.clone());
            return Next::Request(identity);
        }
        match self.queues.iter().filter_map(|queue| queue.first()).map(|(due, _)| *due).min() {
            Some(due) => Next::At(due),
            None => Next::Idle,
        }
    }

    /// Takes note of how the request for `identity` ended, and queues the next. Returns whether the answer is wanted:
    /// that of an identity forgotten meanwhile is not.
    pub(crate) fn answered(
        &mut self,
        identity: &SpiffeId,
        answer: Result<Validity, Retry>,
        now: Now,
    ) -> bool {
        self.running.remove(identity);
        let Some(entry) = self.entries.get_mut(identity) else { return false };
        entry.answered_at = Some(now.monotonic);
        let due = match answer {
            Ok(validity) => entry.succeeded(validity, now, &mut self.random),
            Err(retry) => entry.back_off(retry, now, &mut self.random),
        };
        self.enqueue(identity, Priority::Background, due);
        true
    }

    /// Moves renewals to where the wall clock now puts them, if it was set since the last look.
    fn follow_wall_clock(&mut self, now: Now) {
        let Some(last) = self.last_seen.replace(now) else { return };
        let expected = last.wall + now.monotonic.saturating_duration_since(last.monotonic);
        if distance(expected, now.wall) < CLOCK_STEP {
            return;
        }
        let renewals = self.entries.iter().filter(|(_, entry)| entry.queued.is_some());
        let renewals = renewals.filter_map(|(identity, entry)| Some((identity.clone(), entry.renew_at?)));
        for (identity, renew_at) in renewals.collect::<Vec<_>>() {
            self.enqueue(&identity, Priority::Background, now.when(renew_at));
        }
    }

    /// Gives `identity`, which is managed, its place in the queues instead of any it has.
    fn enqueue(&mut self, identity: &SpiffeId, priority: Priority, due: Instant) {
        self.dequeue(identity);
        if let Some(entry) = self.entries.get_mut(identity) {
            entry.queued = Some((priority, due));
            self.queues[priority as usize].insert((due, identity.clone()));
        }
    }

    fn dequeue(&mut self, identity: &SpiffeId) {
        let queued = self.entries.get_mut(identity).and_then(|entry| entry.queued.take());
        if let Some((priority, due)) = queued {
            self.queues[priority as usize].remove(&(due, identity.clone()));
        }
    }
}

impl Entry {
    /// The time of the renewal: at 45 to 55 % of the lifetime, so that certificates issued together part ways.
    fn succeeded(&mut self, validity: Validity, now: Now, random: &mut fastrand::Rng) -> Instant {
        let lifetime = validity.not_after.duration_since(validity.not_before).unwrap_or_default();
        let renew_at = validity.not_before + lifetime.mul_f64(0.45 + 0.1 * random.f64());
        self.not_after = Some(validity.not_after);
        let due = now.when(renew_at);
        if due < now.monotonic + SHORTEST_WAIT {
            // The authority hands out certificates that are past renewal already. Asking again at once would not help.
            return self.back_off(Retry::Soon, now, random);
        }
        self.renew_at = Some(renew_at);
        self.fruitless = 0;
        due
    }

    /// The time of the retry: after the back-off, but not later than the moment when the certificate in use expires.
    fn back_off(&mut self, retry: Retry, now: Now, random: &mut fastrand::Rng) -> Instant {
        let seconds = match retry {
            Retry::Soon => 1u64.checked_shl(self.fruitless).unwrap_or(u64::MAX),
            Retry::Rarely => u64::MAX,
        };
        self.fruitless = self.fruitless.saturating_add(1);
        self.renew_at = None;
        let delay = Duration::from_secs(seconds).min(LONGEST_BACKOFF).mul_f64(0.8 + 0.4 * random.f64());
        let due = now.monotonic + delay;
        match self.not_after {
            Some(not_after) if not_after > now.wall => {
                due.min(now.when(not_after)).max(now.monotonic + SHORTEST_WAIT)
            }
            _ => due,
        }
    }
}

impl Now {
    /// The monotonic time at which the wall clock will show `wall`; now, if it does already.
    fn when(self, wall: SystemTime) -> Instant {
        self.monotonic + wall.duration_since(self.wall).unwrap_or_default()
    }
}

fn distance(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other).unwrap_or_else(|error| error.duration())
}

#[cfg(test)]
mod tests;
