//! Workloads, services and how to reach them, as the control plane describes them (package `istio.workload`).
//!
//! The values are immutable once shared. They are built from xDS messages or from the static file, never from anything
//! that a peer sent. IP addresses are canonical: an IPv4-mapped IPv6 address never occurs.

mod address;
mod service;
mod workload;

pub use address::{
    Destination, GatewayAddress, NamespacedHostname, NetworkAddress, NetworkCidr, NotNamespacedHostname,
    PortMap,
};
pub use service::{
    BalanceMode, ExplicitEndpoint, HealthPolicy, IpFamilies, LoadBalancer, Scope, Service, Visibility,
    WeightedWaypoint,
};
pub use workload::{
    ApplicationTunnel, ApplicationTunnelProtocol, Health, Locality, NetworkMode, TunnelProtocol, Workload,
};
