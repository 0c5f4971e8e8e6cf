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
//! When the trust roots change, all certificates are renewed before their time ([`Schedule::renew_all`]), spread out so
//! that the authority and the peers' handshakes are not met all at once. One that is found revoked is renewed at once
//! ([`Schedule::renew`]), in its turn. What is in use stays in use meanwhile.
//!
//! Waiting is measured on the monotonic clock and validity on the wall clock. Every call says what both show, so a wall
//! clock that was set, or stood still while the machine slept, is noticed and renewals are moved accordingly.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant, SystemTime};

use crate::{Retry, SpiffeId};

/// The longest wait after a failure, before randomisation.
const LONGEST_BACKOFF: Duration = Duration::from_secs(150);

/// Traffic may bring a retry forward to this long after the last failure, unless that said that to ask again is no use.
const HASTENED_RETRY: Duration = Duration::from_secs(5);

/// Renewals before their time are not spread out further than this; by then most have come of themselves.
const LONGEST_SPREAD: Duration = Duration::from_secs(24 * 60 * 60);

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
    /// Those of the running whose answer may be out of date already, and within what time to ask again.
    outdated: HashMap<SpiffeId, Duration>,
    random: fastrand::Rng,
    last_seen: Option<Now>,
}

#[derive(Debug, Default)]
struct Entry {
    /// Its place in the queues; none while its request is running.
    queued: Option<(Priority, Instant)>,
    /// Answers without use in a row, failed or as good as expired.
    fruitless: u32,
    /// Whether the last answer was that the same request will not succeed, however much it is wanted.
    hopeless: bool,
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
            outdated: HashMap::new(),
            random,
            last_seen: None,
        }
    }

    /// Takes `identity` under management, or makes its first request or retry more urgent.
    pub(crate) fn want(&mut self, identity: &SpiffeId, priority: Priority, now: Now) -> Wanted {
        let Some(entry) = self.entries.get_mut(identity) else {
            self.entries.insert(identity.clone(), Entry::default());
            if !self.running.contains(identity) {
                self.enqueue(identity, priority, now.monotonic);
            }
            return Wanted::Requested;
        };
        let Some((queued, due)) = entry.queued else { return Wanted::Requested };
        let rested = !entry.hopeless
            && entry.answered_at.is_none_or(|answered| now.monotonic >= answered + HASTENED_RETRY);
        let due_now = due <= now.monotonic;
        if priority == Priority::RealTime && (due_now || rested) {
            // Somebody waits from now on: no change of the wall clock puts it off.
            entry.renew_at = None;
        }
        if due_now {
            self.enqueue(identity, queued.max(priority), due);
        } else if priority == Priority::RealTime && rested {
            self.enqueue(identity, priority, now.monotonic);
        } else {
            return Wanted::BackingOff;
        }
        Wanted::Requested
    }

    /// Has every certificate renewed within `spread` from now, each at a random time. What fails is being asked for
    /// anyway, at its own pace.
    pub(crate) fn renew_all(&mut self, spread: Duration, now: Now) {
        let identities: Vec<_> = self.entries.keys().chain(&self.running).cloned().collect();
        identities.iter().for_each(|identity| self.renew(identity, spread, now));
    }

    /// The same for one certificate.
    pub(crate) fn renew(&mut self, identity: &SpiffeId, spread: Duration, now: Now) {
        if self.running.contains(identity) {
            self.outdated.insert(identity.clone(), spread);
            return;
        }
        let Some(entry) = self.entries.get_mut(identity) else { return };
        let (Some((_, due)), Some(_)) = (entry.queued, entry.renew_at) else { return };
        let renewal = entry.renew_within(spread, now, &mut self.random);
        if renewal < due {
            entry.renew_at = None;
            self.enqueue(identity, Priority::Background, renewal);
        }
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
        let outdated = self.outdated.remove(identity);
        let Some(entry) = self.entries.get_mut(identity) else { return false };
        entry.answered_at = Some(now.monotonic);
        let due = match answer {
            Ok(validity) => {
                let due = entry.succeeded(validity, now, &mut self.random);
                let sooner = outdated.map(|spread| entry.renew_within(spread, now, &mut self.random));
                match sooner {
                    Some(sooner) if sooner < due => {
                        entry.renew_at = None;
                        sooner
                    }
                    _ => due,
                }
            }
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
        let moved = self.entries.iter().filter_map(|(identity, entry)| {
            let (priority, due) = entry.queued?;
            let due = match (entry.renew_at, entry.not_after) {
                (Some(renew_at), _) => entry.not_too_soon(now.when(renew_at)),
                // A retry was to come before the certificate expires, which is sooner or later now.
                (None, Some(not_after)) if not_after > expected => {
                    due.min(entry.not_too_soon(now.when(not_after)))
                }
                _ => return None,
            };
            Some((identity.clone(), priority, due))
        });
        for (identity, priority, due) in moved.collect::<Vec<_>>() {
            self.enqueue(&identity, priority, due);
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
        self.hopeless = false;
        self.fruitless = 0;
        due
    }

    /// A random time within `spread` from now.
    fn renew_within(&self, spread: Duration, now: Now, random: &mut fastrand::Rng) -> Instant {
        let wait = spread.min(LONGEST_SPREAD).mul_f64(random.f64());
        self.not_too_soon(now.monotonic + wait)
    }

    fn not_too_soon(&self, due: Instant) -> Instant {
        self.answered_at.map_or(due, |answered| due.max(answered + SHORTEST_WAIT))
    }

    /// The time of the retry: after the back-off, but not later than the moment when the certificate in use expires.
    fn back_off(&mut self, retry: Retry, now: Now, random: &mut fastrand::Rng) -> Instant {
        let seconds = match retry {
            Retry::Soon => 1u64.checked_shl(self.fruitless).unwrap_or(u64::MAX),
            Retry::Rarely => u64::MAX,
        };
        self.hopeless = retry == Retry::Rarely;
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
mod model;
#[cfg(test)]
mod tests;
