//! What runs on the threads that carry bytes and answer DNS.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::registry::Registry;
use tokio::runtime::RuntimeMetrics;

use super::ISTIO;
use super::exposition::{Families, Numbers, read_at_scrape};

/// The threads with a runtime of their own, each known from its start. A lock that is taken at starts and scrapes only.
#[derive(Debug, Default)]
pub struct Threads(Mutex<Vec<(String, RuntimeMetrics)>>);

impl Threads {
    /// Adds a thread.
    pub(crate) fn add(&self, name: String, metrics: RuntimeMetrics) {
        // A list of what was added is as good after a panic as before.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((name, metrics));
    }
}

/// Adds the family `istio_thread_tasks` to `registry`.
pub fn register(registry: &mut Registry, threads: Arc<Threads>) {
    read_at_scrape(registry.sub_registry_with_prefix(ISTIO), move || threads.clone());
}

impl Numbers for Arc<Threads> {
    fn expose(&self, families: &mut Families<'_>) -> fmt::Result {
        let threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let series = threads.iter().map(|(name, metrics)| {
            let tasks = i64::try_from(metrics.num_alive_tasks()).unwrap_or(i64::MAX);
            ([("thread", name.as_str())], tasks)
        });
        families.gauges(
            "thread_tasks",
            "Tasks of each thread that carries bytes or answers DNS: one for each connection, tunnel and listener, and some more (unstable).",
            series,
        )
    }
}
