//! Where a connection goes that arrives at a local workload's HBONE port.
//!
//! A peer may only ask for the workload it is connected to. The exception are waypoints that a node proxy captures:
//! they receive connections meant for the workloads and services whose waypoint they are.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use thiserror::Error;

use super::mesh::{Mesh, Owner};
use super::model::{ApplicationTunnel, ApplicationTunnelProtocol, GatewayAddress, Service, Workload};
use super::route::RouteConfig;

/// The `:authority` of a CONNECT request, as the peer sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority<'a> {
    /// An address and port.
    Address(SocketAddr),
    /// The hostname and port of a service.
    Hostname(&'a str, u16),
}

/// Where the application is, and what it expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The workload's address and the application's port: what authorization decides on, and where to connect to.
    pub address: SocketAddr,
    /// When set, a PROXY protocol header comes first and names this as the destination.
    pub proxy_destination: Option<SocketAddr>,
    /// The service that the authority names.
    pub service: Option<Arc<Service>>,
}

/// Why the peer cannot have what it asks for.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InboundError {
    /// It asks for another address than it is connected to. Its own fault: status 400.
    #[error("ip mismatch: {local} != {requested}")]
    IpMismatch {
        /// The address it is connected to.
        local: IpAddr,
        /// The address it asks for.
        requested: IpAddr,
    },
    /// No visible service has that name.
    #[error("no service or workload for hostname: {0}")]
    NoHostname(String),
    /// The service does not lead to any port of the local workload.
    #[error("no port for service: {0}:{1}")]
    NoPortForService(Arc<str>, u16),
    /// The application wants the destination's address, and the service has none.
    #[error("no address for service: {0}")]
    NoAddressForService(Arc<str>),
    /// The application's port would be one of our own.
    #[error("attempted recursive call to ourselves")]
    SelfCall,
}

/// Checks that a peer connected to `local` under the address `local_ip` may ask for `authority`.
///
/// Whether a hostname is known is left to [`next_hop`].
pub fn validate_authority(
    mesh: &Mesh,
    config: &RouteConfig,
    local: &Workload,
    local_ip: IpAddr,
    authority: Authority<'_>,
) -> Result<(), InboundError> {
    let Authority::Address(requested) = authority else {
        return Ok(());
    };
    let (local_ip, requested) = (local_ip.to_canonical(), requested.ip().to_canonical());
    if requested == local_ip || local.application_tunnel.is_some() {
        return Ok(());
    }
    let waypoint = match mesh.find_address(&config.network, requested, None) {
        Some(Owner::Workload(workload)) => workload.waypoint.as_ref(),
        Some(Owner::Service(service)) => service.waypoint.as_ref(),
        None => None,
    };
    if waypoint.is_some_and(|waypoint| is_gateway(mesh, waypoint, local, local_ip)) {
        return Ok(());
    }
    Err(InboundError::IpMismatch { local: local_ip, requested })
}

/// Finds the application's address for a validated `authority`.
pub fn next_hop(
    mesh: &Mesh,
    config: &RouteConfig,
    local: &Workload,
    local_ip: IpAddr,
    authority: Authority<'_>,
) -> Result<NextHop, InboundError> {
    let (port, service) = match authority {
        Authority::Address(address) => (address.port(), None),
        Authority::Hostname(hostname, service_port) => {
            let service = mesh
                .service_by_hostname(hostname, Some(&local.namespace), None)
                .ok_or_else(|| InboundError::NoHostname(hostname.to_owned()))?;
            (application_port(mesh, local, service, service_port)?, Some(service))
        }
    };
    if config.illegal_ports.contains(&port) {
        return Err(InboundError::SelfCall);
    }
    let tunnel = local.application_tunnel;
    let port = tunnel.and_then(|tunnel| tunnel.port).unwrap_or(port);
    let proxy_destination = match tunnel {
        Some(ApplicationTunnel { protocol: ApplicationTunnelProtocol::Proxy, .. }) => {
            Some(proxy_destination(config, authority, service)?)
        }
        Some(_) | None => None,
    };
    Ok(NextHop {
        address: SocketAddr::new(local_ip.to_canonical(), port),
        proxy_destination,
        service: service.cloned(),
    })
}

/// True when `local`, reached under `local_ip`, is the gateway that `reference` means.
fn is_gateway(mesh: &Mesh, reference: &GatewayAddress, local: &Workload, local_ip: IpAddr) -> bool {
    match mesh.find_gateway(reference) {
        Some(Owner::Workload(workload)) => workload.addresses.contains(&local_ip),
        Some(Owner::Service(service)) => mesh.endpoint_ports(service, local).is_some(),
        None => false,
    }
}

fn application_port(
    mesh: &Mesh,
    local: &Workload,
    service: &Arc<Service>,
    service_port: u16,
) -> Result<u16, InboundError> {
    mesh.endpoint_ports(service, local)
        .and_then(|ports| ports.get(service_port))
        .or_else(|| service.ports.get(service_port))
        .filter(|port| *port > 0)
        .ok_or_else(|| InboundError::NoPortForService(service.host.hostname.clone(), service_port))
}

/// What the peer wanted to reach, as an address: for a service, one on our network if it has one, IPv4 before IPv6.
fn proxy_destination(
    config: &RouteConfig,
    authority: Authority<'_>,
    service: Option<&Arc<Service>>,
) -> Result<SocketAddr, InboundError> {
    match (authority, service) {
        (Authority::Address(address), _) => Ok(address),
        (Authority::Hostname(_, port), Some(service)) => service
            .vips
            .iter()
            .min_by_key(|vip| (vip.network != config.network, vip.address.is_ipv6()))
            .map(|vip| SocketAddr::new(vip.address, port))
            .ok_or_else(|| InboundError::NoAddressForService(service.host.hostname.clone())),
        (Authority::Hostname(hostname, _), None) => Err(InboundError::NoHostname(hostname.to_owned())),
    }
}
