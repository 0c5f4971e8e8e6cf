//! Where a connection goes that a local workload opens.
//!
//! One decision per connection, made from one view of the mesh and never revised:
//!
//! 1. The dialled address belongs to a service with a waypoint: to that waypoint.
//! 2. It belongs to a service: to one of its endpoints.
//! 3. It belongs to a workload: to that workload, through the workload's waypoint if it has one.
//! 4. It belongs to nobody we know, or to a service that wants no interference: in plain TCP to where it was dialled.
//!
//! What lies on another network is reached through that network's gateway, with one tunnel inside another. Whatever
//! names a waypoint or gateway that cannot be resolved is refused: nothing ever bypasses a waypoint. So is what only a
//! resource claims that was rejected: it may have named one.

mod upstream;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use fastrand::Rng;
use identity::ExpectedPeers;
use thiserror::Error;

use self::upstream::{Upstream, no_valid_destination};
use super::avoided::Avoiding;
use super::balance::{self, Resolution};
use super::endpoints::Group;
use super::mesh::{Mesh, Owner};
use super::model::{BalanceMode, Destination, GatewayAddress, Service, TunnelProtocol, Workload};

/// The port on which every HBONE endpoint listens.
pub const HBONE_PORT: u16 = 15008;

/// What routing knows of this proxy.
#[derive(Clone, Debug)]
pub struct RouteConfig {
    /// The Istio network that the proxy is configured to be on.
    pub network: Arc<str>,
    /// The proxy's own ports: a connection to one of them would come back to us.
    pub illegal_ports: Box<[u16]>,
}

/// Where a connection goes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// As it is.
    Plain(PlainRoute),
    /// Through a tunnel to the destination's node proxy, or to its waypoint.
    Hbone(HboneRoute),
    /// Through a tunnel to another network's gateway, and inside it through a tunnel to the destination.
    DoubleHbone(DoubleHboneRoute),
}

impl Route {
    /// The workload that the connection is made to, and the port for which it was chosen: what is to be avoided when it
    /// cannot be reached. None when no workload is known there.
    pub fn endpoint(&self) -> Option<(&Arc<Workload>, u16)> {
        match self {
            Self::Plain(route) => Some((route.workload.as_ref()?, route.target.port())),
            Self::Hbone(route) => match (route.hop, &route.authority) {
                (Hop::Destination, RouteAuthority::Address(address)) => {
                    Some((&route.workload, address.port()))
                }
                (Hop::Destination, RouteAuthority::Resolved(port)) => Some((&route.workload, *port)),
                _ => Some((&route.workload, route.target.port())),
            },
            Self::DoubleHbone(route) => Some((&route.gateway, route.target.port())),
        }
    }
}

/// A TCP connection without TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainRoute {
    /// Where to connect to.
    pub target: Target,
    /// The workload there; None when the mesh does not know the destination.
    pub workload: Option<Arc<Workload>>,
    /// The service that was dialled.
    pub service: Option<Arc<Service>>,
}

/// One HBONE tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HboneRoute {
    /// Where the tunnel connects to.
    pub target: Target,
    /// What the CONNECT request asks for.
    pub authority: RouteAuthority,
    /// Who may answer: one of these. Empty: nobody.
    pub identities: ExpectedPeers,
    /// The workload at the tunnel's end.
    pub workload: Arc<Workload>,
    /// The service that was dialled.
    pub service: Option<Arc<Service>>,
    /// What `workload` is to the connection.
    pub hop: Hop,
}

/// An HBONE tunnel inside an HBONE tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoubleHboneRoute {
    /// Where the outer tunnel connects to.
    pub target: Target,
    /// What the CONNECT requests of both tunnels ask for: hostname and port of the service that was dialled.
    pub authority: RouteAuthority,
    /// Who may answer at the gateway: one of these. Empty: nobody.
    pub gateway_identities: ExpectedPeers,
    /// Who may answer inside: one of these. Empty: nobody.
    pub inner_identities: ExpectedPeers,
    /// The gateway.
    pub gateway: Arc<Workload>,
    /// The service that was dialled.
    pub service: Arc<Service>,
}

/// Where to open a TCP connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Here.
    Address(SocketAddr),
    /// At one of the addresses that DNS gives for a workload without addresses.
    Resolve {
        /// The name to look up.
        hostname: Arc<str>,
        /// The port to connect to.
        port: u16,
        /// Prefer an answer of this family; any other will do.
        family: Family,
    },
}

impl Target {
    /// The port to connect to.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Resolve { port, .. } => *port,
        }
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// The `:authority` of a CONNECT request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteAuthority {
    /// This address and port.
    Address(SocketAddr),
    /// The address that the target's hostname resolves to, and this port.
    Resolved(u16),
    /// This name and port.
    Hostname(Arc<str>, u16),
}

/// What the far end of a tunnel is to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// The destination itself.
    Destination,
    /// The destination's waypoint.
    Waypoint,
}

/// Why a connection goes nowhere.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RouteError {
    /// The destination is one of our own ports on the loopback interface.
    #[error("attempted recursive call to ourselves")]
    SelfCall,
    /// The service has no endpoint that may be used, or does not declare the port.
    #[error("no healthy upstream: {0}")]
    NoHealthyUpstream(SocketAddr),
    /// The destination's waypoint is not known, or has no endpoint.
    #[error("unknown waypoint: {0}")]
    UnknownWaypoint(String),
    /// The gateway of the destination's network is not known, or has no endpoint.
    #[error("unknown network gateway: {0}")]
    UnknownNetworkGateway(String),
    /// The destination is on another network, where only services can be reached.
    #[error("no service for target address: {0}")]
    NoService(SocketAddr),
    /// The control plane's description of the destination could not be used.
    #[error("the description of the destination was rejected: {0}")]
    Rejected(Arc<str>),
    /// The workload has neither address nor hostname nor a gateway that leads to it.
    #[error("no valid routing destination for workload: {0}")]
    NoValidDestination(Arc<str>),
}

/// Decides where the connection goes that `source` opens from `source_ip` to `destination`.
///
/// Endpoints that are avoided are passed over where their service has others; in nothing else does the decision depend on
/// them. Pure: the same view, arguments and random numbers give the same route.
pub fn route(
    mesh: &Mesh,
    config: &RouteConfig,
    source: &Workload,
    source_ip: IpAddr,
    destination: SocketAddr,
    avoid: Avoiding<'_>,
    rng: &mut Rng,
) -> Result<Route, RouteError> {
    let router = Router {
        mesh,
        avoid,
        config,
        source,
        source_ip: source_ip.to_canonical(),
        destination: SocketAddr::new(destination.ip().to_canonical(), destination.port()),
    };
    router.decide(rng)
}

/// The first thing that has to be known before the connection can be routed, and is not: the name under which the control
/// plane can be asked for it. For meshes that are only known in part.
pub fn unknown(
    mesh: &Mesh,
    config: &RouteConfig,
    source: &Workload,
    destination: SocketAddr,
) -> Option<String> {
    let address = destination.ip().to_canonical();
    let is_unknown = |gateway: &&Arc<GatewayAddress>| mesh.find_gateway(gateway).is_none();
    let gateway = match mesh.find_address(&config.network, address, Some(&source.namespace)) {
        None => return Some(format!("{}/{address}", config.network)),
        Some(Owner::Workload(workload)) => {
            workload.waypoint.iter().chain(&workload.network_gateway).find(is_unknown)
        }
        Some(Owner::Service(service)) => {
            let weighted = service.weighted_waypoints.iter().map(|waypoint| &waypoint.destination);
            // The gateway of one's own network is named too, and never needed.
            // The endpoints of a group have their network's gateway in common.
            let groups = mesh.endpoint_groups(service).map(Group::representative);
            let remote = groups
                .chain(mesh.explicit_endpoints(service))
                .filter(|endpoint| endpoint.workload.network != source.network);
            let networks = remote.filter_map(|endpoint| endpoint.workload.network_gateway.as_ref());
            service.waypoint.iter().chain(weighted).chain(networks).find(is_unknown)
        }
    };
    gateway.map(|gateway| gateway.destination.to_string())
}

struct Router<'a> {
    mesh: &'a Mesh,
    avoid: Avoiding<'a>,
    config: &'a RouteConfig,
    source: &'a Workload,
    source_ip: IpAddr,
    destination: SocketAddr,
}

impl<'a> Router<'a> {
    fn decide(&self, rng: &mut Rng) -> Result<Route, RouteError> {
        let destination = self.destination;
        if destination.ip().is_loopback() && self.config.illegal_ports.contains(&destination.port()) {
            return Err(RouteError::SelfCall);
        }
        if let Some(name) = self.mesh.rejected_at(&self.config.network, destination.ip()) {
            return Err(RouteError::Rejected(name.clone()));
        }
        let client = Some(&*self.source.namespace);
        // A workload's address is its own even where a service claims it; below, for the endpoint, it is not.
        let service = match self.mesh.find_address(&self.config.network, destination.ip(), client) {
            Some(Owner::Service(service)) => Some(service),
            Some(Owner::Workload(_)) | None => None,
        };
        if let Some(service) = service
            && let Some(waypoint) = balance::choose_waypoint(service, rng)
        {
            return self.through_service_waypoint(service, waypoint, rng);
        }
        let Some(upstream) = self.upstream(&self.source.network, destination, Resolution::Standard, rng)?
        else {
            return self.without_upstream(service);
        };
        if self.is_remote(upstream.workload) {
            let service = service.ok_or(RouteError::NoService(destination))?;
            return self.through_network_gateway(service, &upstream, rng);
        }
        if service.is_none()
            && let Some(waypoint) = &upstream.workload.waypoint
            && !self.source_is(waypoint)
        {
            let waypoint = self.waypoint(waypoint, rng)?;
            return self.to_waypoint(&waypoint, upstream.service);
        }
        direct(upstream)
    }

    fn through_service_waypoint(
        &self,
        service: &Arc<Service>,
        reference: &GatewayAddress,
        rng: &mut Rng,
    ) -> Result<Route, RouteError> {
        let waypoint = self.waypoint(reference, rng)?;
        if self.is_remote(waypoint.workload) {
            return self.through_network_gateway(service, &waypoint, rng);
        }
        self.to_waypoint(&waypoint, Some(service))
    }

    fn to_waypoint(
        &self,
        waypoint: &Upstream<'_>,
        service: Option<&Arc<Service>>,
    ) -> Result<Route, RouteError> {
        Ok(Route::Hbone(HboneRoute {
            target: waypoint.target(waypoint.port)?,
            authority: RouteAuthority::Address(self.destination),
            identities: waypoint.identities(),
            workload: waypoint.workload.clone(),
            service: service.cloned(),
            hop: Hop::Waypoint,
        }))
    }

    /// To `upstream`, an endpoint or waypoint of another network. The gateway knows services only, by hostname and port.
    fn through_network_gateway(
        &self,
        service: &Arc<Service>,
        upstream: &Upstream<'_>,
        rng: &mut Rng,
    ) -> Result<Route, RouteError> {
        let reference = upstream.workload.network_gateway.as_ref();
        let reference = reference.ok_or_else(|| no_valid_destination(upstream.workload))?;
        let gateway = self
            .gateway(reference, Resolution::Standard, rng)?
            .ok_or_else(|| RouteError::UnknownNetworkGateway(reference.to_string()))?;
        Ok(Route::DoubleHbone(DoubleHboneRoute {
            target: gateway.target(gateway.port)?,
            authority: RouteAuthority::Hostname(service.host.hostname.clone(), self.destination.port()),
            gateway_identities: gateway.identities(),
            // The workload stands for a whole network here; who is behind the gateway is known per service only.
            inner_identities: upstream.service_identities().collect(),
            gateway: gateway.workload.clone(),
            service: service.clone(),
        }))
    }

    fn without_upstream(&self, service: Option<&Arc<Service>>) -> Result<Route, RouteError> {
        if service.is_some_and(|service| service.load_balancer.mode != BalanceMode::Passthrough) {
            return Err(RouteError::NoHealthyUpstream(self.destination));
        }
        Ok(Route::Plain(PlainRoute {
            target: Target::Address(self.destination),
            workload: None,
            service: None,
        }))
    }

    fn waypoint(&self, reference: &GatewayAddress, rng: &mut Rng) -> Result<Upstream<'a>, RouteError> {
        self.gateway(reference, Resolution::Waypoint, rng)?
            .ok_or_else(|| RouteError::UnknownWaypoint(reference.to_string()))
    }

    /// The workload behind a reference to a waypoint or network gateway.
    fn gateway(
        &self,
        reference: &GatewayAddress,
        resolution: Resolution,
        rng: &mut Rng,
    ) -> Result<Option<Upstream<'a>>, RouteError> {
        let port = reference.hbone_mtls_port;
        let host = match &reference.destination {
            Destination::Address(at) => {
                return self.upstream(&at.network, SocketAddr::new(at.address, port), resolution, rng);
            }
            Destination::Hostname(host) => host,
        };
        match self.mesh.find_hostname(host) {
            Some(Owner::Service(service)) => {
                self.endpoint(service, port, self.destination.ip(), resolution, rng)
            }
            Some(Owner::Workload(workload)) => {
                Upstream::new(workload, None, port, self.destination.ip()).map(Some)
            }
            None => Ok(None),
        }
    }

    /// Who takes a connection to `address`: an endpoint of the service there, else the workload there.
    fn upstream(
        &self,
        network: &str,
        address: SocketAddr,
        resolution: Resolution,
        rng: &mut Rng,
    ) -> Result<Option<Upstream<'a>>, RouteError> {
        let (ip, port) = (address.ip(), address.port());
        let client = Some(&*self.source.namespace);
        match self.mesh.service_by_vip(network, ip, client) {
            Some(service) if service.load_balancer.mode == BalanceMode::Passthrough => Ok(None),
            Some(service) => self.endpoint(service, port, ip, resolution, rng),
            None => match self.mesh.workload_by_address(network, ip) {
                Some(workload) => Upstream::new(workload, None, port, ip).map(Some),
                None => Ok(None),
            },
        }
    }

    fn endpoint(
        &self,
        service: &'a Arc<Service>,
        port: u16,
        hint: IpAddr,
        resolution: Resolution,
        rng: &mut Rng,
    ) -> Result<Option<Upstream<'a>>, RouteError> {
        match balance::choose(self.mesh, service, port, self.source, resolution, self.avoid, rng) {
            Some(choice) => Upstream::new(choice.workload, Some(service), choice.port, hint).map(Some),
            None => Ok(None),
        }
    }

    fn is_remote(&self, workload: &Workload) -> bool {
        workload.network != self.source.network
    }

    /// True when the source is itself the waypoint that `reference` means: what a captured waypoint sends on to its
    /// destination must not be sent back to it. An address proves little, so the identity must agree too.
    fn source_is(&self, reference: &GatewayAddress) -> bool {
        let is_source = |workload: &Workload| {
            workload.has_identity_of(self.source) && workload.addresses.contains(&self.source_ip)
        };
        match self.mesh.find_gateway(reference) {
            Some(Owner::Workload(workload)) => is_source(workload),
            Some(Owner::Service(service)) => {
                self.mesh.endpoints(service).any(|endpoint| is_source(endpoint.workload))
            }
            None => false,
        }
    }
}

/// To the workload itself.
fn direct(upstream: Upstream<'_>) -> Result<Route, RouteError> {
    let plain = upstream.target(upstream.port)?;
    if upstream.workload.tunnel_protocol == TunnelProtocol::Tcp {
        return Ok(Route::Plain(PlainRoute {
            target: plain,
            workload: Some(upstream.workload.clone()),
            service: upstream.service.cloned(),
        }));
    }
    Ok(Route::Hbone(HboneRoute {
        target: upstream.target(HBONE_PORT)?,
        authority: match plain {
            Target::Address(address) => RouteAuthority::Address(address),
            Target::Resolve { port, .. } => RouteAuthority::Resolved(port),
        },
        identities: upstream.identities(),
        workload: upstream.workload.clone(),
        service: upstream.service.cloned(),
        hop: Hop::Destination,
    }))
}

impl Family {
    /// The family of `address`.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }
}
