//! How long to wait between attempts to reach the agent.

use std::time::Duration;

/// Doubling delays up to a limit. Holds no clock: the caller sleeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    limit: Duration,
}

impl Backoff {
    /// Delays of `first`, twice `first` and so on, at most `limit`.
    pub const fn new(first: Duration, limit: Duration) -> Backoff {
        Backoff { next: first, first, limit }
    }

    /// The delay before the next attempt.
    pub fn delay(&mut self) -> Duration {
        let delay = self.next.min(self.limit);
        self.next = delay.saturating_mul(2);
        delay
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
}
