//! What peers did that ended their tunnels.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hbone::TunnelFault;
use prometheus_client::registry::Registry;

use super::exposition::{Families, Numbers, read_at_scrape};
use super::{ISTIO, Reporter};

/// Tunnels that ended by a fault of the peer since the start. Counting is one atomic addition, on any thread.
#[derive(Debug, Default)]
pub struct TunnelFaults {
    source: ByFault,
    destination: ByFault,
}

/// In the order of [`TunnelFault::ALL`].
type ByFault = [AtomicU64; TunnelFault::ALL.len()];

impl TunnelFaults {
    /// Counts one.
    pub fn count(&self, reporter: Reporter, fault: TunnelFault) {
        self.by_fault(reporter)[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn by_fault(&self, reporter: Reporter) -> &ByFault {
        match reporter {
            Reporter::Source => &self.source,
            Reporter::Destination => &self.destination,
        }
    }
}

/// Adds the family `istio_tunnel_faults` to `registry`.
pub fn register(registry: &mut Registry, faults: Arc<TunnelFaults>) {
    read_at_scrape(registry.sub_registry_with_prefix(ISTIO), move || faults.clone());
}

impl Numbers for Arc<TunnelFaults> {
    fn expose(&self, families: &mut Families<'_>) -> fmt::Result {
        let series = Reporter::ALL.into_iter().flat_map(|reporter| {
            TunnelFault::ALL.into_iter().zip(self.by_fault(reporter)).map(move |(fault, count)| {
                let labels = [("reporter", reporter.label()), ("reason", fault.as_str())];
                (labels, count.load(Ordering::Relaxed))
            })
        });
        families.counters(
            "tunnel_faults",
            "Tunnels that ended because of what the peer sent, or did not send (unstable).",
            series,
        )
    }
}
