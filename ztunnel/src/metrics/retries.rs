//! How often another endpoint of a service was tried.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::registry::Registry;

use super::ISTIO;
use super::exposition::{Families, Numbers, read_at_scrape};

/// Connections that were tried at another endpoint because the one before could not be connected to. Counting is one atomic
/// addition, on any thread.
#[derive(Debug, Default)]
pub struct Retries {
    connected: AtomicU64,
    failed: AtomicU64,
}

impl Retries {
    /// Another endpoint took the connection.
    pub fn connected(&self) {
        self.connected.fetch_add(1, Ordering::Relaxed);
    }

    /// The connection failed at another endpoint too.
    pub fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Adds the family `istio_connect_retries` to `registry`.
pub fn register(registry: &mut Registry, retries: Arc<Retries>) {
    read_at_scrape(registry.sub_registry_with_prefix(ISTIO), move || retries.clone());
}

impl Numbers for Arc<Retries> {
    fn expose(&self, families: &mut Families<'_>) -> fmt::Result {
        let series = [("connected", &self.connected), ("failed", &self.failed)]
            .map(|(outcome, count)| ([("outcome", outcome)], count.load(Ordering::Relaxed)));
        families.counters(
            "connect_retries",
            "Attempts to connect to another endpoint of a service after one could not be reached (unstable).",
            series,
        )
    }
}
