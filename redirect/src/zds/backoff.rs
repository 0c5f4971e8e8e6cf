//! How long to wait between attempts to reach the agent.

use std::time::Duration;

/// Doubling delays up to a limit. Holds no clock: the caller sleeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    limit: Duration,
    /// Each delay is spread by up to so many percent, both ways.
    jitter: u8,
}

/// How much [`Backoff::for_hello`] spreads its delays, in percent.
const HELLO_JITTER: u8 = 20;

impl Backoff {
    /// Delays of `first`, twice `first` and so on, at most `limit`.
    pub const fn new(first: Duration, limit: Duration) -> Backoff {
        Backoff { next: first, first, limit, jitter: 0 }
    }

    /// For an agent that can be reached and does not keep the connection: 5 ms up to 15 s, each spread by a fifth, since
    /// then the agent has trouble of its own and the proxies of many nodes may have it at once.
    pub const fn for_hello() -> Backoff {
        let plain = Backoff::new(Duration::from_millis(5), Duration::from_secs(15));
        Backoff { jitter: HELLO_JITTER, ..plain }
    }

    /// The delay before the next attempt; never more than the limit.
    pub fn delay(&mut self) -> Duration {
        let delay = self.next.min(self.limit);
        self.next = delay.saturating_mul(2);
        let jitter = u32::from(self.jitter);
        let percent = fastrand::u32(100_u32.saturating_sub(jitter)..=100 + jitter);
        (delay.saturating_mul(percent) / 100).min(self.limit)
    }

    /// After a success: the next delay is the first again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// For dialling the agent: 20 ms, which is little beside a pod's start, up to 15 s.
impl Default for Backoff {
    fn default() -> Backoff {
        Backoff::new(Duration::from_millis(20), Duration::from_secs(15))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit_and_start_over_after_a_reset() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..12).map(|_| backoff.delay().as_millis()).collect();
        assert_eq!(delays, [20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000]);
        backoff.reset();
        assert_eq!(backoff.delay().as_millis(), 20);
    }

    #[test]
    fn a_first_delay_beyond_the_limit_is_cut() {
        let mut backoff = Backoff::new(Duration::from_secs(60), Duration::from_secs(15));
        assert_eq!(backoff.delay(), Duration::from_secs(15));
    }

    #[test]
    fn delays_after_a_failed_hello_start_small_and_stay_within_a_fifth_of_their_doubling() {
        let mut backoff = Backoff::for_hello();
        for round in 0..20 {
            let plain = (5.0 * 2_f64.powi(round)).min(15_000.0);
            let delay = backoff.delay().as_secs_f64() * 1000.0;
            assert!(plain * 0.799 <= delay && delay <= (plain * 1.201).min(15_000.0), "{round}: {delay}");
        }
        backoff.reset();
        assert!(backoff.delay() <= Duration::from_millis(6));
    }

    #[test]
    fn two_proxies_do_not_come_back_at_the_same_time() {
        let delays = |mut backoff: Backoff| -> Vec<_> { (0..10).map(|_| backoff.delay()).collect() };
        assert_ne!(delays(Backoff::for_hello()), delays(Backoff::for_hello()));
    }
}
