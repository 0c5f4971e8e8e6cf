//! What revocation lists lead to.

use std::fmt;

use prometheus_client::registry::Registry;

use super::exposition::{Families, Numbers, read_at_scrape};
use super::{ISTIO, Reporter};

/// A number for each end that a connection can have here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BySide {
    /// Connections that we opened.
    pub source: u64,
    /// Connections that we accepted.
    pub destination: u64,
}

/// What revocation has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CrlNumbers {
    /// Handshakes refused and live connections cut because a certificate of the peer is revoked; each connection once.
    pub policy_rejections: BySide,
    /// Connections whose later revocation could not be noticed.
    pub untracked_connections: BySide,
}

/// Adds the families `istio_crl_*` to `registry`.
pub fn register(registry: &mut Registry, read: impl Fn() -> CrlNumbers + Send + Sync + 'static) {
    read_at_scrape(registry.sub_registry_with_prefix(ISTIO), read);
}

impl Numbers for CrlNumbers {
    fn expose(&self, families: &mut Families<'_>) -> fmt::Result {
        families.counters(
            "crl_policy_rejections",
            "Connections refused or cut because the peer's certificate is revoked (unstable).",
            self.policy_rejections.series(),
        )?;
        families.counters(
            "crl_untracked_connections",
            "Connections that a later revocation would not cut (unstable).",
            self.untracked_connections.series(),
        )
    }
}

impl BySide {
    fn series(self) -> impl Iterator<Item = ([(&'static str, &'static str); 1], u64)> {
        Reporter::ALL.into_iter().map(move |reporter| {
            let value = match reporter {
                Reporter::Source => self.source,
                Reporter::Destination => self.destination,
            };
            ([("reporter", reporter.label())], value)
        })
    }
}
