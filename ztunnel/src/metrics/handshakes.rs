//! Why handshakes failed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use identity::HandshakeFailure;
use prometheus_client::registry::Registry;

use super::exposition::{Families, Numbers, read_at_scrape};
use super::{ISTIO, Reporter};

/// Handshakes that failed since the start, by reason. Counting is one atomic addition, on any thread.
#[derive(Debug, Default)]
pub struct HandshakeFailures {
    source: ByReason,
    destination: ByReason,
}

/// In the order of [`HandshakeFailure::ALL`].
type ByReason = [AtomicU64; HandshakeFailure::ALL.len()];

impl HandshakeFailures {
    /// Counts one.
    pub fn count(&self, reporter: Reporter, reason: HandshakeFailure) {
        self.by_reason(reporter)[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn by_reason(&self, reporter: Reporter) -> &ByReason {
        match reporter {
            Reporter::Source => &self.source,
            Reporter::Destination => &self.destination,
        }
    }
}

/// Adds the family `istio_handshake_failures` to `registry`.
pub fn register(registry: &mut Registry, failures: Arc<HandshakeFailures>) {
    read_at_scrape(registry.sub_registry_with_prefix(ISTIO), move || failures.clone());
}

impl Numbers for Arc<HandshakeFailures> {
    fn expose(&self, families: &mut Families<'_>) -> fmt::Result {
        let series = Reporter::ALL.into_iter().flat_map(|reporter| {
            HandshakeFailure::ALL.into_iter().zip(self.by_reason(reporter)).map(move |(reason, count)| {
                let labels = [("reporter", reporter.label()), ("reason", reason.as_str())];
                (labels, count.load(Ordering::Relaxed))
            })
        });
        families.counters(
            "handshake_failures",
            "Tunnels that did not come up because one end refused the other or gave up (unstable).",
            series,
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

    use super::*;
    use crate::metrics::{Format, encode};

    #[test]
    fn every_reason_has_a_series_from_the_start_and_each_failure_counts_in_its_own() {
        let failures = Arc::new(HandshakeFailures::default());
        let mut registry = Registry::default();
        register(&mut registry, failures.clone());
        let series = |registry: &Registry| {
            let mut text = String::new();
            encode(Format::Text, registry, &mut text).unwrap();
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
        };
        let before = series(&registry);
        assert_eq!(before.len(), 2 * HandshakeFailure::ALL.len());
        assert!(before.iter().all(|line| line.ends_with(" 0")), "{before:?}");
        failures.count(Reporter::Source, HandshakeFailure::Internal);
        failures.count(Reporter::Destination, HandshakeFailure::Revoked);
        let counted: Vec<_> = series(&registry).into_iter().filter(|line| !line.ends_with(" 0")).collect();
        assert_eq!(
            counted,
            [
                r#"istio_handshake_failures_total{reporter="source",reason="internal"} 1"#,
                r#"istio_handshake_failures_total{reporter="destination",reason="revoked"} 1"#,
            ]
        );
    }
}
