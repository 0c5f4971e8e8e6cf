//! The schedule against a naive account of what it was told, on random events.

use proptest::prelude::*;

use super::*;

const CONCURRENCY: usize = 2;
const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
enum Event {
    Want(usize, Priority),
    Forget(usize),
    /// Milliseconds on both clocks.
    Pass(u64),
    /// Moves both clocks to the time the schedule asked to be called at.
    PassUntilDue,
    /// The nth of the running requests ends: with a certificate of so many seconds, of which so many are gone.
    Issue(usize, u64, u64),
    Fail(usize, Retry),
    RenewAll(u64),
    /// Seconds by which the wall clock is set.
    Step(i64),
}

fn event() -> impl Strategy<Value = Event> {
    let name = 0..4usize;
    let priority = prop_oneof![Just(Priority::Warmup), Just(Priority::RealTime)];
    let retry = prop_oneof![4 => Just(Retry::Soon), 1 => Just(Retry::Rarely)];
    prop_oneof![
        4 => (name.clone(), priority).prop_map(|(name, priority)| Event::Want(name, priority)),
        1 => name.prop_map(Event::Forget),
        3 => (0..200_000u64).prop_map(Event::Pass),
        4 => Just(Event::PassUntilDue),
        4 => (0..CONCURRENCY, 0..100_000u64, 0..100_000u64)
            .prop_map(|(which, lifetime, gone)| Event::Issue(which, lifetime, gone)),
        4 => (0..CONCURRENCY, retry).prop_map(|(which, retry)| Event::Fail(which, retry)),
        1 => (0..600u64).prop_map(Event::RenewAll),
        1 => (-100_000..100_000i64).prop_map(Event::Step),
    ]
}

/// What is known of an identity without any cleverness.
#[derive(Clone, Debug, Default)]
struct Known {
    answered: Option<Instant>,
    /// Failures since the last certificate.
    failures: u32,
    /// Nothing but the passing of time brings the next request forward.
    undisturbed: bool,
    certificate: Option<Validity>,
    /// The last answer was that to ask again is no use.
    hopeless: bool,
    /// A connection waits, and was told that the request will run.
    urgent: bool,
}

struct Model {
    schedule: Schedule,
    now: Now,
    managed: HashMap<usize, Known>,
    running: Vec<usize>,
    due: Option<Instant>,
}

impl Model {
    fn new(seed: u64) -> Self {
        let wall = SystemTime::UNIX_EPOCH + 1_000_000_000 * SECOND;
        Self {
            schedule: Schedule::new(CONCURRENCY, fastrand::Rng::with_seed(seed)),
            now: Now { monotonic: Instant::now(), wall },
            managed: HashMap::new(),
            running: Vec::new(),
            due: None,
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Want(name, priority) => self.want(name, priority),
            Event::Forget(name) => {
                let was_managed = self.managed.remove(&name).is_some();
                assert_eq!(self.schedule.forget(&id(name)), was_managed);
            }
            Event::Pass(milliseconds) => self.pass(Duration::from_millis(milliseconds)),
            Event::PassUntilDue => {
                if let Some(due) = self.due {
                    self.pass(due - self.now.monotonic);
                }
            }
            Event::Issue(which, lifetime, gone) => {
                let not_before = self.now.wall - secs(gone);
                let validity = Validity { not_before, not_after: not_before + secs(lifetime) };
                self.answer(which, Ok(validity));
            }
            Event::Fail(which, retry) => self.answer(which, Err(retry)),
            Event::RenewAll(seconds) => {
                self.schedule.renew_all(secs(seconds), self.now);
                self.managed.values_mut().for_each(|known| known.undisturbed &= known.failures > 0);
            }
            Event::Step(seconds) => {
                let distance = secs(seconds.unsigned_abs());
                let earlier = self.now.wall - distance;
                self.now.wall = if seconds < 0 { earlier } else { self.now.wall + distance };
                self.managed.values_mut().for_each(|known| known.undisturbed &= known.certificate.is_none());
            }
        }
        self.run();
    }

    fn want(&mut self, name: usize, priority: Priority) {
        let wanted = self.schedule.want(&id(name), priority, self.now);
        let running = self.running.contains(&name);
        let known = self.managed.entry(name).or_default();
        let rested = !known.hopeless
            && known.answered.is_none_or(|answered| self.now.monotonic >= answered + HASTENED_RETRY);
        if running || known.answered.is_none() || (rested && priority == Priority::RealTime) {
            assert_eq!(wanted, Wanted::Requested);
        }
        if wanted == Wanted::Requested && priority == Priority::RealTime && !running {
            known.urgent = true;
            known.undisturbed = false;
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now.monotonic += time;
        self.now.wall += time;
    }

    fn answer(&mut self, which: usize, answer: Result<Validity, Retry>) {
        if which >= self.running.len() {
            return;
        }
        let name = self.running.remove(which);
        let used = self.schedule.answered(&id(name), answer, self.now);
        assert_eq!(used, self.managed.contains_key(&name));
        let Some(known) = self.managed.get_mut(&name) else { return };
        known.answered = Some(self.now.monotonic);
        known.undisturbed = true;
        known.hopeless = answer.as_ref().is_err_and(|retry| *retry == Retry::Rarely);
        match answer {
            Ok(validity) => {
                known.certificate = Some(validity);
                known.failures = 0;
                // Whether this counts as a success depends on how much of it is left; the model leaves it open.
                known.undisturbed = false;
            }
            Err(_) => known.failures += 1,
        }
    }

    /// Lets the schedule say all it has to say, and checks each request.
    fn run(&mut self) {
        loop {
            match self.schedule.next(self.now) {
                Next::Request(identity) => {
                    let name = identity.service_account().parse().unwrap();
                    self.check_request(name);
                    self.running.push(name);
                }
                Next::At(due) => {
                    assert!(due > self.now.monotonic, "a time that has come");
                    assert!(self.running.len() < CONCURRENCY);
                    self.due = Some(due);
                    self.check_nobody_is_overlooked();
                    return;
                }
                Next::Idle => {
                    let waiting = self.managed.keys().any(|name| !self.running.contains(name));
                    assert!(
                        self.running.len() == CONCURRENCY || !waiting,
                        "somebody waits and there is room"
                    );
                    self.due = None;
                    return;
                }
            }
        }
    }

    fn check_request(&mut self, name: usize) {
        assert!(!self.running.contains(&name), "two requests for one identity");
        assert!(self.running.len() < CONCURRENCY);
        let urgent = self.managed.iter().any(|(other, known)| known.urgent && !self.running.contains(other));
        let known = self.managed.get_mut(&name).expect("only what is managed is requested");
        assert!(known.urgent || !urgent, "a connection was overtaken");
        known.urgent = false;
        let Some(answered) = known.answered else { return };
        let waited = self.now.monotonic - answered;
        assert!(waited >= SECOND.mul_f64(0.8), "asked again after {waited:?}");
        if known.undisturbed && known.certificate.is_none() {
            let backoff = (SECOND * 2u32.pow((known.failures - 1).min(20))).min(LONGEST_BACKOFF);
            assert!(waited >= backoff.mul_f64(0.8), "{waited:?} after {} failures", known.failures);
        }
    }

    /// There is room and nothing is due: so nothing has waited too long.
    fn check_nobody_is_overlooked(&self) {
        for (name, known) in &self.managed {
            if self.running.contains(name) {
                continue;
            }
            assert!(!known.urgent, "a connection waits although there is room");
            let answered = known.answered.expect("a first request runs as soon as there is room");
            if known.failures > 0 {
                let waited = self.now.monotonic - answered;
                assert!(waited <= LONGEST_BACKOFF.mul_f64(1.2), "no retry after {waited:?}");
            }
            // No certificate expires while there is room to renew it, unless its renewal failed a moment ago.
            if let Some(validity) = known.certificate
                && validity.not_after < self.now.wall
            {
                let waited = self.now.monotonic - answered;
                assert!(waited <= LONGEST_BACKOFF.mul_f64(1.2), "expired, and nothing done for {waited:?}");
            }
        }
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn id(name: usize) -> SpiffeId {
    SpiffeId::new("td", "ns", &name.to_string()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_sequence_of_events_makes_it_ask_twice_at_once_too_soon_or_not_at_all(
        seed: u64,
        events in prop::collection::vec(event(), 1..200),
    ) {
        let mut model = Model::new(seed);
        for event in events {
            model.happen(event);
        }
    }
}
