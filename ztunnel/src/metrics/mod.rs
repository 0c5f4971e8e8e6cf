//! What monitoring sees: metric families, and the server for scrapes on port 15020.
//!
//! Each area of the program gets its own small struct of counters ([`XdsMetrics`]), or keeps numbers of its own, which a
//! function reads at each scrape ([`pods`], [`certificates`], [`crl`], [`dns`], [`dry_run`], [`handshakes`], [`retries`], [`tunnels`], [`limits`], [`process`]). Names and labels are
//! those of Istio's ztunnel. A family whose labels have a fixed set of values shows all of them from the start, at zero, so that a rate sees
//! the first increment; no label takes its value from a peer.
//!
//! The help text of every family outside the stable set says `unstable`, as it does in Istio's ztunnel.

pub mod certificates;
pub mod crl;
mod data_plane;
pub mod dns;
pub mod dry_run;
mod exposition;
pub mod handshakes;
pub mod limits;
pub mod pods;
pub mod process;
pub mod retries;
mod server;
pub mod threads;
pub mod tunnels;
mod xds;

pub use data_plane::DataPlane;
pub use dns::DnsMetrics;
pub use dry_run::DryRunVerdicts;
pub use handshakes::HandshakeFailures;
pub use limits::{Limit, LimitsReached};
pub use prometheus_client::registry::Registry;
pub use retries::Retries;
pub use server::{Format, MetricsServer, PORT, encode};
pub use threads::Threads;
pub use tunnels::TunnelFaults;
pub use xds::XdsMetrics;

/// Prefix of most families.
const ISTIO: &str = "istio";

/// Which end of a connection reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The one that opened it.
    Source,
    /// The one that accepted it.
    Destination,
}

impl Reporter {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Source, Self::Destination];

    /// The value of the label `reporter`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}
