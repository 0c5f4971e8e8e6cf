//! How long to wait before the next stream. No clock.

use std::time::Duration;

use crate::Termination;

const INITIAL: Duration = Duration::from_millis(10);
const MAX: Duration = Duration::from_secs(15);
/// The part of a wait that is random, so that the nodes of a cluster do not come back all at once. 0.2 is 20 % either way.
const JITTER: f64 = 0.2;

/// Doubles with each failure, and begins anew after an ordinary end.
#[derive(Debug)]
pub(crate) struct Backoff {
    current: Duration,
}

impl Backoff {
    pub(crate) const fn new() -> Self {
        Self { current: INITIAL }
    }

    /// The wait after a stream that ended so. `random` is in `0.0..1.0`.
    pub(crate) fn after(&mut self, end: Termination, answered: Answered, random: f64) -> Duration {
        self.current = match (end, answered) {
            // A server that ends all streams in order without a word is as bad as one that is not there.
            (Termination::Reconnect | Termination::Complete, Answered::Yes) => INITIAL,
            _ => (2 * self.current).min(MAX),
        };
        self.current.mul_f64(1.0 + JITTER * (2.0 * random - 1.0)).min(MAX)
    }
}

/// Whether a response came on the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    Yes,
    No,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_double_the_wait_up_to_15_seconds_and_an_ordinary_end_begins_anew() {
        let mut backoff = Backoff::new();
        let mut wait = |end, answered| backoff.after(end, answered, 0.5).as_millis();
        let failed = [20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000];
        for expected in failed {
            assert_eq!(wait(Termination::ConnectionError, Answered::No), expected);
        }
        assert_eq!(
            wait(Termination::Error, Answered::Yes),
            15000,
            "a stream that failed later resets nothing"
        );
        assert_eq!(wait(Termination::Reconnect, Answered::Yes), 10);
        assert_eq!(wait(Termination::Error, Answered::Yes), 20);
        assert_eq!(wait(Termination::Complete, Answered::Yes), 10);
        assert_eq!(wait(Termination::Complete, Answered::No), 20);
        assert_eq!(wait(Termination::Complete, Answered::No), 40);
    }

    #[test]
    fn waits_differ_by_a_fifth_and_stay_below_15_seconds() {
        let first = |random| Backoff::new().after(Termination::ConnectionError, Answered::No, random);
        assert_eq!(first(0.0), Duration::from_millis(16));
        assert!(first(0.999) > Duration::from_micros(23_900) && first(0.999) < Duration::from_millis(24));
        let mut backoff = Backoff { current: MAX };
        assert_eq!(backoff.after(Termination::ConnectionError, Answered::No, 0.9), MAX);
    }
}
