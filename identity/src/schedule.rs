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
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const SECOND: Duration = Duration::from_secs(1);

    /// A schedule and the clocks it is shown.
    struct Bench {
        schedule: Schedule,
        now: Now,
    }

    impl Bench {
        fn new(concurrency: usize) -> Self {
            let wall = SystemTime::UNIX_EPOCH + 500_000 * HOUR;
            let now = Now { monotonic: Instant::now(), wall };
            Self { schedule: Schedule::new(concurrency, fastrand::Rng::with_seed(7)), now }
        }

        fn pass(&mut self, time: Duration) {
            self.now.monotonic += time;
            self.now.wall += time;
        }

        fn want(&mut self, name: &str, priority: Priority) -> Wanted {
            self.schedule.want(&id(name), priority, self.now)
        }

        fn next(&mut self) -> Next {
            self.schedule.next(self.now)
        }

        /// Moves the clocks to the next due time, and says how far that was.
        fn skip(&mut self) -> Duration {
            let Next::At(due) = self.next() else { panic!("nothing planned: {:?}", self.next()) };
            let wait = due - self.now.monotonic;
            self.pass(wait);
            wait
        }

        fn issue(&mut self, name: &str, lifetime: Duration) -> bool {
            let validity = Validity { not_before: self.now.wall, not_after: self.now.wall + lifetime };
            self.schedule.answered(&id(name), Ok(validity), self.now)
        }

        fn fail(&mut self, name: &str) -> bool {
            self.schedule.answered(&id(name), Err(Retry::Soon), self.now)
        }

        fn start(&mut self, name: &str) {
            assert_eq!(self.next(), request(name));
        }
    }

    fn id(name: &str) -> SpiffeId {
        SpiffeId::new("td", "ns", name).unwrap()
    }

    fn request(name: &str) -> Next {
        Next::Request(id(name))
    }

    fn is_about(duration: Duration, expected: Duration, tolerance: f64) {
        let (low, high) = (expected.mul_f64(1.0 - tolerance), expected.mul_f64(1.0 + tolerance));
        assert!((low..=high).contains(&duration), "{duration:?} is not about {expected:?}");
    }

    #[test]
    fn parallel_wishes_for_one_identity_make_one_request() {
        let mut bench = Bench::new(8);
        for _ in 0..3 {
            assert_eq!(bench.want("a", Priority::RealTime), Wanted::Requested);
        }
        bench.start("a");
        assert_eq!(bench.want("a", Priority::RealTime), Wanted::Requested);
        assert_eq!(bench.next(), Next::Idle);
    }

    #[test]
    fn a_certificate_is_renewed_at_about_half_life_and_not_always_at_the_same_fraction() {
        let mut bench = Bench::new(8);
        bench.want("a", Priority::RealTime);
        let mut waits = Vec::new();
        for _ in 0..50 {
            bench.start("a");
            bench.issue("a", 24 * HOUR);
            waits.push(bench.skip());
        }
        waits.iter().for_each(|wait| is_about(*wait, 12 * HOUR, 0.1));
        let (first, last) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
        assert!(*last - *first > HOUR, "{first:?} to {last:?}");
    }

    #[test]
    fn traffic_overtakes_warm_up_which_overtakes_renewal() {
        let mut bench = Bench::new(1);
        bench.want("renewed", Priority::Warmup);
        bench.start("renewed");
        bench.issue("renewed", HOUR);
        bench.pass(HOUR);
        bench.want("warm", Priority::Warmup);
        bench.want("used", Priority::RealTime);
        for name in ["used", "warm", "renewed"] {
            bench.start(name);
            assert_eq!(bench.next(), Next::Idle, "one at a time");
            bench.issue(name, HOUR);
        }
    }

    #[test]
    fn among_equals_the_one_due_longest_goes_first() {
        let mut bench = Bench::new(8);
        for name in ["b", "a", "c"] {
            bench.want(name, Priority::Warmup);
            bench.pass(SECOND);
        }
        for name in ["b", "a", "c"] {
            bench.start(name);
        }
    }

    #[test]
    fn traffic_promotes_a_queued_warm_up_which_then_runs_once() {
        let mut bench = Bench::new(8);
        bench.want("a", Priority::Warmup);
        bench.pass(SECOND);
        bench.want("b", Priority::Warmup);
        assert_eq!(bench.want("b", Priority::RealTime), Wanted::Requested);
        bench.want("b", Priority::Warmup);
        bench.start("b");
        bench.start("a");
        assert_eq!(bench.next(), Next::Idle);
    }

    #[test]
    fn no_more_requests_run_than_allowed() {
        let mut bench = Bench::new(2);
        for name in ["a", "b", "c"] {
            bench.want(name, Priority::RealTime);
        }
        assert!(matches!(bench.next(), Next::Request(_)));
        assert!(matches!(bench.next(), Next::Request(_)));
        assert_eq!(bench.next(), Next::Idle);
        bench.fail("a");
        assert!(matches!(bench.next(), Next::Request(_)));
    }

    #[test]
    fn failures_are_retried_after_1_2_4_up_to_150_seconds() {
        let mut bench = Bench::new(8);
        bench.want("a", Priority::Warmup);
        for expected in [1, 2, 4, 8, 16, 32, 64, 128, 150, 150, 150] {
            bench.start("a");
            bench.fail("a");
            is_about(bench.skip(), expected * SECOND, 0.2);
        }
    }

    #[test]
    fn a_success_starts_the_back_off_anew() {
        let mut bench = Bench::new(8);
        bench.want("a", Priority::Warmup);
        for _ in 0..5 {
            bench.start("a");
            bench.fail("a");
            bench.skip();
        }
        bench.start("a");
        bench.issue("a", HOUR);
        bench.skip();
        bench.start("a");
        bench.fail("a");
        is_about(bench.skip(), SECOND, 0.2);
    }

    #[test]
    fn a_request_that_is_invalid_is_repeated_rarely() {
        let mut bench = Bench::new(8);
        bench.want("a", Priority::Warmup);
        bench.start("a");
        bench.schedule.answered(&id("a"), Err(Retry::Rarely), bench.now);
        is_about(bench.skip(), LONGEST_BACKOFF, 0.2);
    }

    #[test]
    fn a_failing_renewal_is_tried_again_when_the_certificate_expires() {
        let mut bench = Bench::new(8);
        bench.want("a", Priority::Warmup);
        bench.start("a");
        bench.issue("a", HOUR);
        let expiry = bench.now.monotonic + HOUR;
        bench.skip();
        let mut attempts = Vec::new();
        while bench.now.monotonic < expiry + HOUR {
            bench.start("a");
            attempts.push(bench.now.monotonic);
            bench.fail("a");
            bench.skip();
        }
        assert!(attempts.contains(&expiry));
        assert!(attempts.windows(2).all(|pair| pair[1] - pair[0] >= SECOND.mul_f64(0.8)));
    }

    #[test]
    fn an_authority_that_issues_nearly_expired_certificates_is_not_asked_in_a_loop() {
        let mut bench = Bench::new(8);
        bench.want("a", Priority::Warmup);
        let mut asked = 0;
        let end = bench.now.monotonic + HOUR;
        while bench.now.monotonic < end {
            bench.start("a");
            asked += 1;
            let not_before = bench.now.wall - 20 * HOUR;
            let validity = Validity { not_before, not_after: bench.now.wall + HOUR };
            bench.schedule.answered(&id("a"), Ok(validity), bench.now);
            bench.skip();
        }
        assert!(asked < 60, "{asked} requests in an hour");
    }

    #[test]
    fn a_certificate_that_ends_before_it_begins_does_no_harm() {
        let mut bench = Bench::new(8);
        bench.want("a", Priority::Warmup);
        bench.start("a");
        let validity = Validity { not_before: bench.now.wall, not_after: bench.now.wall - HOUR };
        bench.schedule.answered(&id("a"), Ok(validity), bench.now);
        is_about(bench.skip(), SECOND, 0.2);
    }

    #[test]
    fn traffic_hastens_a_retry_but_not_right_after_a_failure() {
        let mut bench = Bench::new(8);
        bench.want("a", Priority::RealTime);
        for _ in 0..7 {
            bench.start("a");
            bench.fail("a");
            bench.skip();
        }
        bench.start("a");
        bench.fail("a");
        assert_eq!(bench.want("a", Priority::RealTime), Wanted::BackingOff);
        bench.pass(HASTENED_RETRY - SECOND);
        assert_eq!(bench.want("a", Priority::RealTime), Wanted::BackingOff);
        bench.pass(SECOND);
        assert_eq!(bench.want("a", Priority::Warmup), Wanted::BackingOff);
        assert!(matches!(bench.next(), Next::At(_)));
        assert_eq!(bench.want("a", Priority::RealTime), Wanted::Requested);
        bench.start("a");
    }

    #[test]
    fn a_forgotten_identity_is_requested_no_more_and_its_late_answer_is_not_wanted() {
        let mut bench = Bench::new(8);
        bench.want("queued", Priority::Warmup);
        assert!(bench.schedule.forget(&id("queued")));
        assert_eq!(bench.next(), Next::Idle);

        bench.want("running", Priority::Warmup);
        bench.start("running");
        assert!(bench.schedule.forget(&id("running")));
        assert!(!bench.issue("running", HOUR));
        assert_eq!(bench.next(), Next::Idle);
        assert!(!bench.schedule.forget(&id("running")));
    }

    #[test]
    fn an_identity_wanted_again_while_its_request_runs_takes_that_answer() {
        let mut bench = Bench::new(8);
        bench.want("a", Priority::Warmup);
        bench.start("a");
        bench.schedule.forget(&id("a"));
        assert_eq!(bench.want("a", Priority::RealTime), Wanted::Requested);
        assert_eq!(bench.next(), Next::Idle);
        assert!(bench.issue("a", HOUR));
        is_about(bench.skip(), HOUR / 2, 0.1);
    }

    #[test]
    fn forgetting_resets_the_back_off() {
        let mut bench = Bench::new(8);
        bench.want("a", Priority::Warmup);
        for _ in 0..6 {
            bench.start("a");
            bench.fail("a");
            bench.skip();
        }
        bench.schedule.forget(&id("a"));
        assert_eq!(bench.want("a", Priority::RealTime), Wanted::Requested);
        bench.start("a");
        bench.fail("a");
        is_about(bench.skip(), SECOND, 0.2);
    }

    #[test]
    fn a_clock_set_forward_brings_renewals_forward_and_back_moves_them_back() {
        let mut bench = Bench::new(8);
        bench.want("a", Priority::Warmup);
        bench.start("a");
        bench.issue("a", 24 * HOUR);
        let Next::At(planned) = bench.next() else { panic!("a renewal") };
        bench.now.wall += 6 * HOUR;
        assert_eq!(bench.next(), Next::At(planned - 6 * HOUR));
        bench.now.wall -= 6 * HOUR;
        assert_eq!(bench.next(), Next::At(planned));
        bench.now.wall += 20 * HOUR;
        assert_eq!(bench.next(), request("a"));
    }

    #[test]
    fn a_clock_set_back_does_not_prolong_a_back_off() {
        let mut bench = Bench::new(8);
        bench.want("a", Priority::Warmup);
        bench.start("a");
        bench.fail("a");
        bench.next();
        bench.now.wall -= HOUR;
        is_about(bench.skip(), SECOND, 0.2);
    }
}
