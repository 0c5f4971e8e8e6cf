//! A service: a hostname and virtual addresses in front of workloads.

use std::net::IpAddr;
use std::sync::Arc;

use identity::SpiffeId;

use super::{GatewayAddress, Health, NamespacedHostname, NetworkAddress, NetworkCidr, PortMap};

/// One service (message `istio.workload.Service`). Its endpoints are the workloads that name it; see
/// [`Mesh::endpoints`](crate::state::Mesh::endpoints).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The Kubernetes name, for display.
    pub name: Arc<str>,
    /// The primary key.
    pub host: NamespacedHostname,
    /// The virtual addresses; empty for headless services.
    pub vips: Box<[NetworkAddress]>,
    /// The virtual address ranges.
    pub cidr_vips: Box<[NetworkCidr]>,
    /// The declared ports; target port 0 is a named port.
    pub ports: PortMap,
    /// Identities accepted from its endpoints besides each endpoint's own.
    pub subject_alt_names: Box<[SpiffeId]>,
    /// The waypoint that traffic to this service must take.
    pub waypoint: Option<Arc<GatewayAddress>>,
    /// When some weight is above 0, one of these is drawn per connection instead of `waypoint`.
    pub weighted_waypoints: Box<[WeightedWaypoint]>,
    /// How an endpoint is chosen.
    pub load_balancer: LoadBalancer,
    /// Which of an endpoint's addresses may be used.
    pub ip_families: IpFamilies,
    /// Preferred to other services of the same hostname.
    pub canonical: bool,
    /// Who can see it.
    pub visibility: Visibility,
    /// Endpoints given on the service itself; only the static file has them.
    pub endpoints: Box<[ExplicitEndpoint]>,
}

impl Service {
    /// True when clients in `namespace` can see the service. `None` is a lookup on nobody's behalf, which sees all.
    pub fn is_visible_from(&self, namespace: Option<&str>) -> bool {
        match self.visibility {
            Visibility::Public => true,
            Visibility::Namespace => namespace.is_none_or(|namespace| namespace == &*self.host.namespace),
        }
    }
}

/// An endpoint that a service names, instead of the workload naming the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplicitEndpoint {
    /// The workload; the endpoint does not count while no such workload is known.
    pub workload_uid: Arc<str>,
    /// Its ports for this service.
    pub ports: PortMap,
    /// Its health for this service.
    pub health: Health,
}

/// A waypoint and its share of the connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub destination: Arc<GatewayAddress>,
    /// Its share, relative to the sum of all weights; 0 is never drawn.
    pub weight: u32,
}

/// Load balancing of a service (message `LoadBalancing`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadBalancer {
    /// How `preferences` restrict the choice.
    pub mode: BalanceMode,
    /// What an endpoint should have in common with the client, most important first.
    pub preferences: Box<[Scope]>,
    /// Whether unhealthy endpoints count.
    pub health_policy: HealthPolicy,
}

/// How preferences restrict the choice of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BalanceMode {
    /// Not at all: every endpoint is as good as another.
    #[default]
    Standard,
    /// Only endpoints that meet every preference are chosen.
    Strict,
    /// The endpoints that meet most of the leading preferences are chosen.
    Failover,
    /// No endpoint is chosen: traffic goes to the address that the client dialled.
    Passthrough,
}

/// One thing that an endpoint can have in common with a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The locality's region.
    Region,
    /// The locality's zone.
    Zone,
    /// The locality's subzone.
    Subzone,
    /// The node.
    Node,
    /// The cluster.
    Cluster,
    /// The Istio network.
    Network,
}

/// Whether unhealthy endpoints receive connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HealthPolicy {
    /// They do not.
    #[default]
    OnlyHealthy,
    /// They do.
    AllowAll,
}

/// The address families a service offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpFamilies {
    /// Whatever its endpoints have.
    #[default]
    Automatic,
    /// IPv4 alone.
    Ipv4,
    /// IPv6 alone.
    Ipv6,
    /// Both.
    Dual,
}

impl IpFamilies {
    /// True when an endpoint's `address` may be used.
    pub fn allows(self, address: IpAddr) -> bool {
        match self {
            Self::Automatic | Self::Dual => true,
            Self::Ipv4 => address.is_ipv4(),
            Self::Ipv6 => address.is_ipv6(),
        }
    }
}

/// Who can see a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    /// Every namespace.
    #[default]
    Public,
    /// Its own namespace.
    Namespace,
}
