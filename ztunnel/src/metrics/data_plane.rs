//! What the data plane counts.

use std::sync::Arc;

use prometheus_client::registry::Registry;

use super::{
    DryRunVerdicts, HandshakeFailures, LimitsReached, Retries, Threads, TunnelFaults, dry_run, handshakes,
    limits, retries, threads, tunnels,
};

/// The counters of the data plane; a clone counts in the same ones. Counting is one atomic addition, on any thread.
#[derive(Clone, Debug, Default)]
pub struct DataPlane {
    /// Why tunnels did not come up.
    pub handshake_failures: Arc<HandshakeFailures>,
    /// What peers did that ended their tunnels.
    pub tunnel_faults: Arc<TunnelFaults>,
    /// Which limits were met.
    pub limits: Arc<LimitsReached>,
    /// How often another endpoint was tried.
    pub retries: Arc<Retries>,
    /// What policies in dry run would have done.
    pub dry_run: Arc<DryRunVerdicts>,
    /// What runs on which thread.
    pub threads: Arc<Threads>,
}

impl DataPlane {
    /// Adds their families to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        handshakes::register(registry, self.handshake_failures.clone());
        tunnels::register(registry, self.tunnel_faults.clone());
        limits::register(registry, self.limits.clone());
        retries::register(registry, self.retries.clone());
        dry_run::register(registry, self.dry_run.clone());
        threads::register(registry, self.threads.clone());
    }
}
