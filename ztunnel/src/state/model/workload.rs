//! A workload: a pod, a virtual machine, a gateway, or the far side of another network.

use std::net::IpAddr;
use std::sync::Arc;

use identity::SpiffeId;

use super::{GatewayAddress, NamespacedHostname, NetworkAddress, PortMap};

/// One workload (message `istio.workload.Workload`). Strings that the control plane left empty are empty here unless a
/// field says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The primary key, such as `cluster//Pod/namespace/name`.
    pub uid: Arc<str>,
    /// The pod's name.
    pub name: Arc<str>,
    /// The Kubernetes namespace.
    pub namespace: Arc<str>,
    /// The Kubernetes service account.
    pub service_account: Arc<str>,
    /// The SPIFFE trust domain.
    pub trust_domain: Arc<str>,
    /// The Istio network that its addresses belong to.
    pub network: Arc<str>,
    /// The node it runs on.
    pub node: Arc<str>,
    /// The cluster it runs in.
    pub cluster_id: Arc<str>,
    /// Region, zone and subzone.
    pub locality: Locality,
    /// The owning object's name, for telemetry.
    pub workload_name: Arc<str>,
    /// `deployment`, `cronjob`, `pod` or `job`, for telemetry.
    pub workload_type: Arc<str>,
    /// For telemetry: `service.name` in baggage.
    pub canonical_name: Arc<str>,
    /// For telemetry: `service.version` in baggage.
    pub canonical_revision: Arc<str>,
    /// A DNS name to resolve when the workload has no usable address.
    pub hostname: Arc<str>,
    /// Its addresses, canonical, in the order of preference. May be empty.
    pub addresses: Box<[IpAddr]>,
    /// Whether its addresses are its own or its node's.
    pub network_mode: NetworkMode,
    /// What it accepts.
    pub tunnel_protocol: TunnelProtocol,
    /// The workload terminates HBONE itself, without a node proxy.
    pub native_tunnel: bool,
    /// How the application behind the tunnel is reached, on waypoints that a node proxy captures.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// The waypoint that traffic to this workload's own addresses must take.
    pub waypoint: Option<Arc<GatewayAddress>>,
    /// The gateway through which other networks reach it.
    pub network_gateway: Option<Arc<GatewayAddress>>,
    /// Keys (`namespace/name`) of the selector-scoped policies that apply to it.
    pub authorization_policies: Box<[Arc<str>]>,
    /// Whether it may receive new connections through services.
    pub health: Health,
    /// Its weight in load balancing; 0 is never chosen.
    pub capacity: u32,
    /// The services it is an endpoint of, with its ports there; no service twice.
    pub services: Arc<[(NamespacedHostname, PortMap)]>,
}

impl Workload {
    /// The identity that this workload proves with its certificate.
    ///
    /// None when its parts make no SPIFFE name. Then no peer can be taken for this workload.
    pub fn identity(&self) -> Option<SpiffeId> {
        SpiffeId::new(&self.trust_domain, &self.namespace, &self.service_account).ok()
    }

    /// True when both workloads prove the same identity.
    pub fn has_identity_of(&self, other: &Workload) -> bool {
        self.service_account == other.service_account
            && self.namespace == other.namespace
            && self.trust_domain == other.trust_domain
    }

    /// The ports under which it serves `service`, when it is an endpoint of that service.
    pub fn ports_for(&self, service: &NamespacedHostname) -> Option<&PortMap> {
        self.services.iter().find_map(|(name, ports)| (name == service).then_some(ports))
    }

    /// The addresses under which it can be found. None for host-network pods: their address is the node's.
    pub fn indexed_addresses(&self) -> impl Iterator<Item = NetworkAddress> + '_ {
        let addresses = match self.network_mode {
            NetworkMode::Standard => &*self.addresses,
            NetworkMode::HostNetwork => &[],
        };
        addresses.iter().map(|address| NetworkAddress { network: self.network.clone(), address: *address })
    }

    /// False for a workload that stands for something behind a gateway.
    pub fn has_address_or_hostname(&self) -> bool {
        !self.addresses.is_empty() || !self.hostname.is_empty()
    }

    /// True when the workload is a Kubernetes pod, as its uid tells.
    pub fn is_pod(&self) -> bool {
        self.uid.contains("//Pod/")
    }
}

impl Default for Workload {
    /// A healthy workload without names or addresses, of weight 1, that accepts plain TCP.
    fn default() -> Self {
        Self {
            uid: Arc::default(),
            name: Arc::default(),
            namespace: Arc::default(),
            service_account: Arc::default(),
            trust_domain: Arc::default(),
            network: Arc::default(),
            node: Arc::default(),
            cluster_id: Arc::default(),
            locality: Locality::default(),
            workload_name: Arc::default(),
            workload_type: Arc::default(),
            canonical_name: Arc::default(),
            canonical_revision: Arc::default(),
            hostname: Arc::default(),
            addresses: Box::default(),
            network_mode: NetworkMode::default(),
            tunnel_protocol: TunnelProtocol::default(),
            native_tunnel: false,
            application_tunnel: None,
            waypoint: None,
            network_gateway: None,
            authorization_policies: Box::default(),
            health: Health::default(),
            capacity: 1,
            services: Arc::default(),
        }
    }
}

/// Where a workload runs. Load balancing compares these as plain strings; empty equals empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// Such as `eu-west-1`.
    pub region: Arc<str>,
    /// Such as `eu-west-1a`.
    pub zone: Arc<str>,
    /// Finer than a zone.
    pub subzone: Arc<str>,
}

/// What a workload accepts from the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TunnelProtocol {
    /// Plain TCP on the application's own ports.
    #[default]
    Tcp,
    /// HBONE on port 15008.
    Hbone,
}

/// Whose addresses a workload has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkMode {
    /// Its own.
    #[default]
    Standard,
    /// Its node's, shared with other workloads and with the node itself.
    HostNetwork,
}

/// Whether a workload may be chosen as an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// It may.
    #[default]
    Healthy,
    /// Only for services whose health policy is to send to everybody.
    Unhealthy,
}

/// How a captured waypoint wants connections delivered (message `ApplicationTunnel`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplicationTunnel {
    /// What precedes the bytes.
    pub protocol: ApplicationTunnelProtocol,
    /// The port to deliver to instead of the port that was asked for.
    pub port: Option<u16>,
}

/// What precedes the bytes of a connection delivered to an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplicationTunnelProtocol {
    /// Nothing.
    None,
    /// A PROXY protocol version 2 header.
    Proxy,
}
