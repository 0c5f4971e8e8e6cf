//! Workloads.

use serde::{Serialize, Serializer};

use super::json::{Object, Text, list};
use super::service::{gateway, ports};
use crate::state::Mesh;
use crate::state::model::{
    ApplicationTunnel, ApplicationTunnelProtocol, Health, Locality, NetworkMode, TunnelProtocol, Workload,
};

/// All of them, by uid.
pub(super) fn all(mesh: &Mesh) -> impl Serialize {
    let mut workloads = Vec::with_capacity(mesh.workload_count());
    workloads.extend(mesh.workloads().map(|workload| &**workload));
    workloads.sort_unstable_by(|one, other| one.uid.cmp(&other.uid));
    list(workloads.into_iter().map(|workload| WorkloadView { workload, services: ServicesForm::Names }))
}

/// One workload.
pub(super) struct WorkloadView<'a> {
    pub(super) workload: &'a Workload,
    pub(super) services: ServicesForm,
}

/// How the services of a workload are shown.
#[derive(Clone, Copy)]
pub(super) enum ServicesForm {
    /// A list of their names, if there are any; the ports are with the services' endpoints.
    Names,
    /// An object of names and ports, always there, as the static file has it.
    Ports,
}

impl Serialize for WorkloadView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Exhaustive on purpose: a field added later must be considered here.
        let Workload {
            uid,
            name,
            namespace,
            service_account,
            trust_domain,
            network,
            node,
            cluster_id,
            locality,
            workload_name,
            workload_type,
            canonical_name,
            canonical_revision,
            hostname,
            addresses,
            network_mode,
            tunnel_protocol,
            native_tunnel,
            application_tunnel,
            waypoint,
            network_gateway,
            authorization_policies,
            health: status,
            capacity,
            services: _,
        } = self.workload;
        let mut object = Object::begin(serializer)?;
        object.put_some("applicationTunnel", application_tunnel.as_ref().map(TunnelView))?;
        object.put_list("authorizationPolicies", authorization_policies, |key| &**key)?;
        object.put_text("canonicalName", canonical_name)?;
        object.put_text("canonicalRevision", canonical_revision)?;
        object.put("capacity", capacity)?;
        object.put("clusterId", &**cluster_id)?;
        object.put_text("hostname", hostname)?;
        object.put_some("locality", locality_view(locality))?;
        object.put("name", &**name)?;
        object.put("namespace", &**namespace)?;
        object.put_some("nativeTunnel", native_tunnel.then_some(true))?;
        object.put_text("network", network)?;
        object.put_some("networkGateway", network_gateway.as_deref().map(gateway))?;
        object.put("networkMode", network_mode_word(*network_mode))?;
        object.put_text("node", node)?;
        object.put("protocol", protocol(*tunnel_protocol))?;
        object.put_text("serviceAccount", service_account)?;
        self.put_services(&mut object)?;
        object.put("status", health(*status))?;
        object.put_text("trustDomain", trust_domain)?;
        object.put_text("uid", uid)?;
        object.put_some("waypoint", waypoint.as_deref().map(gateway))?;
        object.put("workloadIps", &list(addresses.iter()))?;
        object.put_text("workloadName", workload_name)?;
        object.put_text("workloadType", workload_type)?;
        object.end()
    }
}

impl WorkloadView<'_> {
    fn put_services<S: Serializer>(&self, object: &mut Object<S>) -> Result<(), S::Error> {
        let services = &self.workload.services;
        match self.services {
            ServicesForm::Names => object.put_list("services", services, |(host, _)| Text(host)),
            ServicesForm::Ports => {
                let mut by_name: Vec<_> =
                    services.iter().map(|(host, map)| (host.to_string(), map)).collect();
                by_name.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
                object.put(
                    "services",
                    &super::json::object(by_name.into_iter().map(|(name, map)| (name, ports(map)))),
                )
            }
        }
    }
}

pub(super) fn health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "Healthy",
        Health::Unhealthy => "Unhealthy",
    }
}

fn protocol(protocol: TunnelProtocol) -> &'static str {
    match protocol {
        TunnelProtocol::Tcp => "TCP",
        TunnelProtocol::Hbone => "HBONE",
    }
}

fn network_mode_word(mode: NetworkMode) -> &'static str {
    match mode {
        NetworkMode::Standard => "Standard",
        NetworkMode::HostNetwork => "HostNetwork",
    }
}

struct TunnelView<'a>(&'a ApplicationTunnel);

impl Serialize for TunnelView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ApplicationTunnel { protocol, port } = self.0;
        let mut object = Object::begin(serializer)?;
        object.put("port", port)?;
        object.put(
            "protocol",
            match protocol {
                ApplicationTunnelProtocol::None => "NONE",
                ApplicationTunnelProtocol::Proxy => "PROXY",
            },
        )?;
        object.end()
    }
}

/// None when nothing is known of where it is.
fn locality_view(locality: &Locality) -> Option<impl Serialize> {
    let Locality { region, zone, subzone } = locality;
    let is_known = [region, zone, subzone].iter().any(|part| !part.is_empty());
    is_known.then(|| {
        super::json::object([("region", &**region), ("subzone", &**subzone), ("zone", &**zone)].into_iter())
    })
}
