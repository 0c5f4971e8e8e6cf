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
    bench.pass(60 * SECOND);
    assert_eq!(bench.want("a", Priority::RealTime), Wanted::BackingOff, "traffic does not change that");
    is_about(bench.skip() + 60 * SECOND, LONGEST_BACKOFF, 0.2);
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
    bench.pass(SHORTEST_WAIT);
    bench.now.wall += 20 * HOUR;
    assert_eq!(bench.next(), request("a"));
}

#[test]
fn a_clock_set_beyond_the_expiry_ends_the_wait_for_a_retry() {
    let mut bench = Bench::new(8);
    bench.want("a", Priority::Warmup);
    bench.start("a");
    bench.issue("a", 24 * HOUR);
    for _ in 0..10 {
        bench.skip();
        bench.start("a");
        bench.fail("a");
    }
    bench.pass(SHORTEST_WAIT);
    assert!(matches!(bench.next(), Next::At(_)));
    bench.now.wall += 24 * HOUR;
    bench.start("a");
}

#[test]
fn a_connection_that_waits_is_not_put_off_by_a_change_of_the_wall_clock() {
    let mut bench = Bench::new(1);
    bench.want("a", Priority::Warmup);
    bench.start("a");
    bench.issue("a", HOUR);
    bench.want("other", Priority::Warmup);
    bench.start("other");
    // The certificate has expired, and its renewal waits for the only place.
    bench.pass(2 * HOUR);
    assert_eq!(bench.want("a", Priority::RealTime), Wanted::Requested);
    bench.now.wall -= 2 * HOUR;
    assert_eq!(bench.next(), Next::Idle);
    bench.fail("other");
    bench.start("a");
}

#[test]
fn when_the_roots_change_every_certificate_is_renewed_within_the_spread_and_not_all_at_once() {
    let mut bench = Bench::new(100);
    let names: Vec<_> = (0..100).map(|number| number.to_string()).collect();
    for name in &names {
        bench.want(name, Priority::Warmup);
    }
    for _ in &names {
        assert!(matches!(bench.next(), Next::Request(_)));
    }
    names.iter().for_each(|name| assert!(bench.issue(name, 24 * HOUR)));
    bench.pass(HOUR);
    bench.schedule.renew_all(60 * SECOND, bench.now);
    let (changed, mut renewed, mut waits) = (bench.now.monotonic, HashSet::new(), 0);
    while renewed.len() < names.len() {
        match bench.next() {
            Next::Request(identity) => assert!(renewed.insert(identity), "renewed twice"),
            Next::At(due) => {
                waits += 1;
                assert!(due <= changed + 60 * SECOND);
                bench.pass(due - bench.now.monotonic);
            }
            Next::Idle => panic!("{} renewed", renewed.len()),
        }
    }
    assert!(waits > 50, "{waits} moments for 100 renewals");
    names.iter().for_each(|name| assert!(bench.issue(name, 24 * HOUR)));
    assert!(bench.skip() > 10 * HOUR, "once is enough");
}

#[test]
fn an_answer_that_was_under_way_when_the_roots_changed_is_renewed_too() {
    for forget in [false, true] {
        let mut bench = Bench::new(8);
        bench.want("a", Priority::RealTime);
        bench.start("a");
        bench.schedule.renew_all(60 * SECOND, bench.now);
        if forget {
            bench.schedule.forget(&id("a"));
            bench.want("a", Priority::RealTime);
        }
        assert!(bench.issue("a", 24 * HOUR));
        assert!(bench.skip() <= 60 * SECOND);
        bench.start("a");
        bench.issue("a", 24 * HOUR);
        assert!(bench.skip() > 10 * HOUR);
    }
}

#[test]
fn a_change_of_the_roots_does_not_hasten_what_is_failing() {
    let mut bench = Bench::new(8);
    bench.want("a", Priority::Warmup);
    for _ in 0..8 {
        bench.start("a");
        bench.fail("a");
        bench.skip();
    }
    bench.start("a");
    bench.fail("a");
    let Next::At(due) = bench.next() else { panic!("a retry") };
    bench.schedule.renew_all(SECOND, bench.now);
    assert_eq!(bench.next(), Next::At(due));
}

/// An authority that is down for an hour while two hundred certificates of 40 minutes are in use.
#[test]
fn an_outage_costs_little_and_ends_for_everybody_soon_after_the_authority_is_back() {
    let mut bench = Bench::new(8);
    let names: Vec<_> = (0..200).map(|number| number.to_string()).collect();
    names.iter().for_each(|name| _ = bench.want(name, Priority::Warmup));
    let lifetime = 40 * 60 * SECOND;
    let (start, mut expires) = (bench.now.monotonic, HashMap::new());
    let (down, back, end) = (start + HOUR, start + 2 * HOUR, start + 3 * HOUR);
    let (mut failed, mut last_failure_by_name) = (0, HashMap::new());
    let mut unserved_before_outage = 0;
    let mut recovered = HashMap::new();
    while bench.now.monotonic < end {
        match bench.next() {
            Next::Request(identity) => {
                let (name, now) = (identity.service_account().to_owned(), bench.now.monotonic);
                if (down..back).contains(&now) {
                    failed += 1;
                    last_failure_by_name.insert(name.clone(), now);
                    bench.fail(&name);
                } else {
                    let held = expires.insert(name.clone(), now + lifetime);
                    unserved_before_outage += usize::from(now < down && held.is_some_and(|held| held < now));
                    if now >= back {
                        recovered.entry(name.clone()).or_insert(now);
                    }
                    bench.issue(&name, lifetime);
                }
            }
            Next::At(due) => {
                let wait = due - bench.now.monotonic;
                bench.pass(wait);
            }
            Next::Idle => panic!("nothing planned"),
        }
    }
    assert_eq!(unserved_before_outage, 0);
    assert_eq!(recovered.len(), names.len());
    for (name, recovered) in recovered {
        assert!(recovered - back <= LONGEST_BACKOFF.mul_f64(1.2), "{name} after {:?}", recovered - back);
    }
    assert_eq!(last_failure_by_name.len(), names.len(), "every certificate expired meanwhile");
    // Eight for the growing delays, then one in two minutes or more.
    assert!(failed <= names.len() * (8 + 30 + 1), "{failed} calls in vain");
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
