//! Services and their endpoints, known and staged.

use std::cmp::Ordering;

use serde::{Serialize, Serializer};

use super::json::{Object, Text, list, object};
use super::workload::health;
use crate::state::Mesh;
use crate::state::model::{
    BalanceMode, GatewayAddress, Health, HealthPolicy, IpFamilies, LoadBalancer, NamespacedHostname,
    NetworkCidr, PortMap, Scope, Service, Visibility, WeightedWaypoint,
};

/// All services, by hostname and then by namespace.
pub(super) fn all(mesh: &Mesh) -> impl Serialize {
    let mut services: Vec<&Service> = mesh.services().map(|service| &**service).collect();
    services.sort_unstable_by(|one, other| {
        let (one, other) = (&one.host, &other.host);
        one.hostname.cmp(&other.hostname).then_with(|| one.namespace.cmp(&other.namespace))
    });
    list(services.into_iter().map(|service| {
        let endpoints = mesh.endpoints(service).map(EndpointView::from);
        ServiceView { service, endpoints: sorted(endpoints) }
    }))
}

/// The endpoints of services that are not known, by service.
pub(super) fn staged(mesh: &Mesh) -> impl Serialize {
    let mut staged: Vec<_> = mesh.staged_services().collect();
    staged.sort_unstable_by(|(one, _), (other, _)| by_text(one, other));
    object(staged.into_iter().map(|(host, endpoints)| {
        let endpoints = sorted(endpoints.map(EndpointView::from));
        (Text(host), object(endpoints.into_iter().map(|endpoint| (endpoint.uid, endpoint))))
    }))
}

/// One service.
pub(super) struct ServiceView<'a> {
    pub(super) service: &'a Service,
    /// By uid.
    pub(super) endpoints: Vec<EndpointView<'a>>,
}

/// One endpoint of a service.
#[derive(Clone, Copy)]
pub(super) struct EndpointView<'a> {
    pub(super) uid: &'a str,
    pub(super) ports: &'a PortMap,
    pub(super) health: Health,
}

impl<'a> From<crate::state::EndpointRef<'a>> for EndpointView<'a> {
    fn from(endpoint: crate::state::EndpointRef<'a>) -> Self {
        Self { uid: &endpoint.workload.uid, ports: endpoint.ports, health: endpoint.health }
    }
}

/// The endpoints by uid.
pub(super) fn sorted<'a>(endpoints: impl Iterator<Item = EndpointView<'a>>) -> Vec<EndpointView<'a>> {
    let mut endpoints: Vec<_> = endpoints.collect();
    endpoints.sort_unstable_by(|one, other| one.uid.cmp(other.uid));
    endpoints
}

impl Serialize for ServiceView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Exhaustive on purpose: a field added later must be considered here.
        let Service {
            name,
            host: NamespacedHostname { namespace, hostname },
            vips,
            cidr_vips,
            ports: declared_ports,
            subject_alt_names,
            waypoint,
            weighted_waypoints,
            load_balancer,
            ip_families,
            canonical,
            visibility,
            endpoints: _,
        } = self.service;
        let endpoints = self.endpoints.iter().map(|endpoint| (endpoint.uid, endpoint));
        let is_balanced = *load_balancer != LoadBalancer::default();
        let mut service = Object::begin(serializer)?;
        service.put("canonical", canonical)?;
        service.put_list("cidrVips", cidr_vips, cidr)?;
        service.put("endpoints", &object(endpoints))?;
        service.put("hostname", &**hostname)?;
        service.put_some("ipFamilies", families(*ip_families))?;
        service.put_some("loadBalancer", is_balanced.then_some(BalancerView(load_balancer)))?;
        service.put("name", &**name)?;
        service.put("namespace", &**namespace)?;
        service.put("ports", &ports(declared_ports))?;
        service.put("subjectAltNames", &list(subject_alt_names.iter().map(Text)))?;
        service.put("vips", &list(vips.iter().map(Text)))?;
        service.put(
            "visibility",
            match visibility {
                Visibility::Public => "Public",
                Visibility::Namespace => "Namespace",
            },
        )?;
        service.put_some("waypoint", waypoint.as_deref().map(gateway))?;
        service.put_list("weightedWaypoints", weighted_waypoints, WeightedView)?;
        service.end()
    }
}

impl Serialize for EndpointView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut endpoint = Object::begin(serializer)?;
        endpoint.put("port", &ports(self.ports))?;
        endpoint.put("status", health(self.health))?;
        endpoint.put("workloadUid", self.uid)?;
        endpoint.end()
    }
}

/// A waypoint or network gateway.
pub(super) fn gateway(gateway: &GatewayAddress) -> impl Serialize {
    GatewayView(gateway)
}

/// Service ports and target ports; keys are text, so their order is that of the text.
pub(super) fn ports(map: &PortMap) -> impl Serialize {
    let mut ports: Vec<_> = map.iter().collect();
    if ports.len() > 1 {
        ports.sort_by_cached_key(|(service_port, _)| service_port.to_string());
    }
    object(ports.into_iter())
}

struct GatewayView<'a>(&'a GatewayAddress);

impl Serialize for GatewayView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let GatewayAddress { destination, hbone_mtls_port } = self.0;
        let mut gateway = Object::begin(serializer)?;
        gateway.put("destination", &Text(destination))?;
        gateway.put("hboneMtlsPort", hbone_mtls_port)?;
        gateway.end()
    }
}

struct WeightedView<'a>(&'a WeightedWaypoint);

impl Serialize for WeightedView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let WeightedWaypoint { destination, weight } = self.0;
        let mut waypoint = Object::begin(serializer)?;
        waypoint.put("destination", &gateway(destination))?;
        waypoint.put("weight", weight)?;
        waypoint.end()
    }
}

struct BalancerView<'a>(&'a LoadBalancer);

impl Serialize for BalancerView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let LoadBalancer { mode, preferences, health_policy } = self.0;
        let mut balancer = Object::begin(serializer)?;
        balancer.put(
            "healthPolicy",
            match health_policy {
                HealthPolicy::OnlyHealthy => "OnlyHealthy",
                HealthPolicy::AllowAll => "AllowAll",
            },
        )?;
        balancer.put(
            "mode",
            match mode {
                BalanceMode::Standard => "Standard",
                BalanceMode::Strict => "Strict",
                BalanceMode::Failover => "Failover",
                BalanceMode::Passthrough => "Passthrough",
            },
        )?;
        balancer.put("routingPreferences", &list(preferences.iter().copied().map(scope)))?;
        balancer.end()
    }
}

fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::Region => "Region",
        Scope::Zone => "Zone",
        Scope::Subzone => "Subzone",
        Scope::Node => "Node",
        Scope::Cluster => "Cluster",
        Scope::Network => "Network",
    }
}

fn families(families: IpFamilies) -> Option<&'static str> {
    match families {
        IpFamilies::Automatic => None,
        IpFamilies::Ipv4 => Some("IPv4"),
        IpFamilies::Ipv6 => Some("IPv6"),
        IpFamilies::Dual => Some("Dual"),
    }
}

fn cidr(range: &NetworkCidr) -> impl Serialize {
    let NetworkCidr { network, cidr } = range;
    CidrView { network, cidr: cidr.to_string() }
}

#[derive(Serialize)]
struct CidrView<'a> {
    cidr: String,
    network: &'a str,
}

/// The order of `namespace/hostname` as text, which is not that of the pair: `a-b/x` comes before `a/x`.
fn by_text(one: &NamespacedHostname, other: &NamespacedHostname) -> Ordering {
    fn bytes(host: &NamespacedHostname) -> impl Iterator<Item = u8> {
        host.namespace.bytes().chain([b'/']).chain(host.hostname.bytes())
    }
    bytes(one).cmp(bytes(other))
}
