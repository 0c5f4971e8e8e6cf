//! How many pods are served.

use std::fmt;

use prometheus_client::registry::Registry;

use super::exposition::{Families, Numbers, read_at_scrape};

/// What the pod manager has done so far. Only in shared mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodNumbers {
    /// Pods that are served.
    pub active: u64,
    /// Pods whose proxy could not start, and is tried again.
    pub pending: u64,
    /// Proxies started.
    pub started: u64,
    /// Proxies that have ended.
    pub stopped: u64,
    /// Pods refused because the network namespace that came with them is not theirs. Each is worth an alarm.
    pub foreign_namespaces: u64,
}

/// Adds the families `workload_manager_*` to `registry`.
pub fn register(registry: &mut Registry, read: impl Fn() -> PodNumbers + Send + Sync + 'static) {
    read_at_scrape(registry.sub_registry_with_prefix("workload_manager"), read);
}

impl Numbers for PodNumbers {
    fn expose(&self, families: &mut Families<'_>) -> fmt::Result {
        let Self { active, pending, started, stopped, foreign_namespaces } = *self;
        let gauge = |value| i64::try_from(value).unwrap_or(i64::MAX);
        families.gauge("active_proxy_count", "Pods that are served (unstable).", gauge(active))?;
        families.gauge(
            "pending_proxy_count",
            "Pods whose proxy could not start and is tried again (unstable).",
            gauge(pending),
        )?;
        families.counter("proxies_started", "Proxies of pods started (unstable).", started)?;
        families.counter("proxies_stopped", "Proxies of pods that have ended (unstable).", stopped)?;
        families.counter(
            "foreign_namespaces",
            "Pods refused because the network namespace that came with them is not theirs (unstable).",
            foreign_namespaces,
        )
    }
}
