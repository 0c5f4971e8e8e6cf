//! Limits that turned somebody away.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::registry::Registry;

use super::ISTIO;
use super::exposition::{Families, Numbers, read_at_scrape};

/// A limit of the data plane that an ordinary mesh does not meet.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Limit {
    /// Tunnels to one pod that are coming up.
    PodHandshakes,
    /// Tunnels to all pods that are coming up.
    ProcessHandshakes,
    /// No descriptor or memory for a connection that waits to be accepted. Each attempt counts.
    Accept,
    /// No descriptor, memory or port for a connection that was to be opened.
    Connect,
}

impl Limit {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::PodHandshakes, Self::ProcessHandshakes, Self::Accept, Self::Connect];

    /// A label, in the style of the other metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PodHandshakes => "pod_handshakes",
            Self::ProcessHandshakes => "process_handshakes",
            Self::Accept => "accept_resources",
            Self::Connect => "connect_resources",
        }
    }
}

/// How often each limit was met since the start. Counting is one atomic addition, on any thread.
#[derive(Debug, Default)]
pub struct LimitsReached([AtomicU64; Limit::ALL.len()]);

impl LimitsReached {
    /// Counts one.
    pub fn count(&self, limit: Limit) {
        self.0[limit as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Adds the family `istio_limits_reached` to `registry`.
pub fn register(registry: &mut Registry, reached: Arc<LimitsReached>) {
    read_at_scrape(registry.sub_registry_with_prefix(ISTIO), move || reached.clone());
}

impl Numbers for Arc<LimitsReached> {
    fn expose(&self, families: &mut Families<'_>) -> fmt::Result {
        let series = Limit::ALL
            .into_iter()
            .zip(&self.0)
            .map(|(limit, count)| ([("limit", limit.as_str())], count.load(Ordering::Relaxed)));
        families.counters("limits_reached", "Connections that met a limit of the proxy (unstable).", series)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

    use super::*;
    use crate::metrics::{Format, encode};

    #[test]
    fn each_limit_counts_in_a_series_of_its_own_which_is_there_from_the_start() {
        let reached = Arc::new(LimitsReached::default());
        let mut registry = Registry::default();
        register(&mut registry, reached.clone());
        for (count, limit) in Limit::ALL.into_iter().enumerate() {
            (0..count).for_each(|_| reached.count(limit));
        }
        let mut text = String::new();
        encode(Format::Text, &registry, &mut text).unwrap();
        for (count, limit) in Limit::ALL.into_iter().enumerate() {
            let line = format!("istio_limits_reached_total{{limit=\"{}\"}} {count}\n", limit.as_str());
            assert!(text.contains(&line), "{line}{text}");
        }
    }
}
