//! Workloads.

use std::sync::Arc;

use xds_client::workload as wire;

use super::convert::{Converter, address, port, ports};
use super::rejection::{Rejection, known};
use crate::state::model::{
    ApplicationTunnel, ApplicationTunnelProtocol, Health, Locality, NamespacedHostname, NetworkMode, PortMap,
    TunnelProtocol, Workload,
};

/// What istiod leaves out when it is this.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
const DEFAULT_SERVICE_ACCOUNT: &str = "default";
const DEFAULT_CLUSTER: &str = "Kubernetes";

impl Converter {
    /// Converts a workload. `name` is that of its resource, of which its uid is a copy as a rule.
    pub(crate) fn workload(
        &mut self,
        name: &Arc<str>,
        workload: &wire::Workload,
    ) -> Result<Workload, Rejection> {
        let uid = match &*workload.uid {
            uid if uid.is_empty() || *uid == **name => name.clone(),
            uid => uid.into(),
        };
        let addresses = workload.addresses.iter().map(|bytes| address("addresses", bytes));
        let network_mode = match known("network_mode", workload.network_mode)? {
            wire::NetworkMode::Standard => NetworkMode::Standard,
            wire::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
        };
        let health = match known("status", workload.status)? {
            wire::WorkloadStatus::Healthy => Health::Healthy,
            wire::WorkloadStatus::Unhealthy => Health::Unhealthy,
        };
        Ok(Workload {
            uid,
            // Pods' names are their own: sharing them would only keep another copy.
            name: workload.name.as_str().into(),
            addresses: addresses.collect::<Result<_, _>>()?,
            network_mode,
            health,
            tunnel_protocol: tunnel_protocol(workload.tunnel_protocol)?,
            native_tunnel: workload.native_tunnel,
            application_tunnel: application_tunnel(workload.application_tunnel.as_ref())?,
            waypoint: self.gateway("waypoint", workload.waypoint.as_ref())?,
            network_gateway: self.gateway("network_gateway", workload.network_gateway.as_ref())?,
            services: self.services(workload)?,
            authorization_policies: self.keys(&workload.authorization_policies),
            capacity: workload.capacity.unwrap_or(1),
            namespace: self.shared.intern(&workload.namespace),
            service_account: self.text_or(&workload.service_account, DEFAULT_SERVICE_ACCOUNT),
            trust_domain: self.text_or(&workload.trust_domain, DEFAULT_TRUST_DOMAIN),
            cluster_id: self.text_or(&workload.cluster_id, DEFAULT_CLUSTER),
            network: self.shared.intern(&workload.network),
            node: self.shared.intern(&workload.node),
            hostname: self.shared.intern(&workload.hostname),
            locality: self.locality(workload.locality.as_ref()),
            workload_name: self.shared.intern(&workload.workload_name),
            workload_type: self.shared.intern(workload_type(workload.workload_type)),
            canonical_name: self.shared.intern(&workload.canonical_name),
            canonical_revision: self.shared.intern(&workload.canonical_revision),
        })
    }

    fn services(
        &mut self,
        workload: &wire::Workload,
    ) -> Result<Arc<[(NamespacedHostname, PortMap)]>, Rejection> {
        let services = workload.services.iter().map(|(key, list)| {
            let (namespace, hostname) =
                NamespacedHostname::split(key).map_err(|_| Rejection::NamespacedHostname(key.clone()))?;
            Ok((self.host(namespace, hostname), ports(&list.ports)))
        });
        let services = services.collect::<Result<Vec<_>, Rejection>>()?;
        Ok(self.shared.services(services))
    }

    fn keys(&mut self, keys: &[String]) -> Box<[Arc<str>]> {
        keys.iter().map(|key| self.shared.intern(key)).collect()
    }

    fn locality(&mut self, locality: Option<&wire::Locality>) -> Locality {
        match locality {
            None => Locality::default(),
            Some(locality) => Locality {
                region: self.shared.intern(&locality.region),
                zone: self.shared.intern(&locality.zone),
                subzone: self.shared.intern(&locality.subzone),
            },
        }
    }
}

fn tunnel_protocol(number: i32) -> Result<TunnelProtocol, Rejection> {
    match known("tunnel_protocol", number)? {
        wire::TunnelProtocol::None => Ok(TunnelProtocol::Tcp),
        wire::TunnelProtocol::Hbone => Ok(TunnelProtocol::Hbone),
        wire::TunnelProtocol::LegacyIstioMtls => {
            Err(Rejection::Unsupported("unsupported tunnel protocol: legacy istio mtls"))
        }
    }
}

fn application_tunnel(
    tunnel: Option<&wire::ApplicationTunnel>,
) -> Result<Option<ApplicationTunnel>, Rejection> {
    let Some(tunnel) = tunnel else { return Ok(None) };
    let protocol = match known("application_tunnel", tunnel.protocol)? {
        wire::application_tunnel::Protocol::None => ApplicationTunnelProtocol::None,
        wire::application_tunnel::Protocol::Proxy => ApplicationTunnelProtocol::Proxy,
    };
    Ok(Some(ApplicationTunnel { protocol, port: Some(port(tunnel.port)).filter(|port| *port > 0) }))
}

/// For telemetry only, so an unknown type is no reason to do without the workload.
fn workload_type(number: i32) -> &'static str {
    match wire::WorkloadType::try_from(number) {
        Ok(wire::WorkloadType::Cronjob) => "cronjob",
        Ok(wire::WorkloadType::Pod) => "pod",
        Ok(wire::WorkloadType::Job) => "job",
        Ok(wire::WorkloadType::Deployment) | Err(_) => "deployment",
    }
}
