//! What policies in dry run would have done.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::registry::Registry;

use super::ISTIO;
use super::exposition::{Families, Numbers, read_at_scrape};
use crate::policy::{Action, DryRun};

/// Verdicts of policies in dry run since the start. A connection can have several; which policy gave one is in the log.
/// Counting is one atomic addition, on any thread.
#[derive(Debug, Default)]
pub struct DryRunVerdicts {
    denied: AtomicU64,
    allowed: AtomicU64,
    none_allowed: AtomicU64,
}

impl DryRunVerdicts {
    /// Counts one.
    pub fn count(&self, verdict: &DryRun) {
        let counter = match verdict {
            DryRun::Matched(by) => match by.policy.action() {
                Action::Deny => &self.denied,
                Action::Allow => &self.allowed,
            },
            DryRun::NoneAllowed => &self.none_allowed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Adds the family `istio_authz_dry_run_verdicts` to `registry`.
pub fn register(registry: &mut Registry, verdicts: Arc<DryRunVerdicts>) {
    read_at_scrape(registry.sub_registry_with_prefix(ISTIO), move || verdicts.clone());
}

impl Numbers for Arc<DryRunVerdicts> {
    fn expose(&self, families: &mut Families<'_>) -> fmt::Result {
        let series = [("deny", &self.denied), ("allow", &self.allowed), ("none_allowed", &self.none_allowed)]
            .map(|(verdict, count)| ([("verdict", verdict)], count.load(Ordering::Relaxed)));
        families.counters(
            "authz_dry_run_verdicts",
            "What policies in dry run would have said of connections: deny, allow, or that none allows (unstable).",
            series,
        )
    }
}
