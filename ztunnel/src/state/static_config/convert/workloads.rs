//! Workloads.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Converter, HEALTH, port_map};
use crate::state::model::{
    ApplicationTunnel, ApplicationTunnelProtocol, Locality, NamespacedHostname, NetworkMode, PortMap,
    TunnelProtocol, Workload,
};
use crate::state::static_config::fault::Path;
use crate::state::static_config::schema;

impl Converter<'_> {
    pub(super) fn workloads(&mut self, workloads: Vec<schema::Workload>) -> Vec<Arc<Workload>> {
        let list = Path::TOP.key("workloads");
        let mut seen = HashSet::new();
        let mut converted = Vec::with_capacity(workloads.len());
        for (index, workload) in workloads.into_iter().enumerate() {
            let at = list.index(index);
            let workload = self.workload(&at, index, workload);
            if !seen.insert(workload.uid.clone()) {
                self.fault(&at.key("uid"), format!("duplicate uid {:?}", workload.uid));
            }
            converted.push(Arc::new(workload));
        }
        converted
    }

    fn workload(&mut self, at: &Path<'_>, index: usize, workload: schema::Workload) -> Workload {
        // The uid is the key: workloads without one must not replace each other.
        let uid = match workload.uid.as_str() {
            "" => format!("static//{index}").into(),
            uid => uid.into(),
        };
        Workload {
            uid,
            name: workload.name.as_str().into(),
            namespace: self.strings.intern(&workload.namespace),
            service_account: self.strings.intern(&workload.service_account),
            trust_domain: self.strings.intern(&workload.trust_domain),
            network: self.strings.intern(&workload.network),
            node: self.strings.intern(&workload.node),
            cluster_id: self.strings.intern(&workload.cluster_id),
            locality: Locality {
                region: self.strings.intern(&workload.locality.region),
                zone: self.strings.intern(&workload.locality.zone),
                subzone: self.strings.intern(&workload.locality.subzone),
            },
            workload_name: self.strings.intern(&workload.workload_name),
            workload_type: self.strings.intern(&workload.workload_type),
            canonical_name: self.strings.intern(&workload.canonical_name),
            canonical_revision: self.strings.intern(&workload.canonical_revision),
            hostname: self.strings.intern(&workload.hostname),
            addresses: self.addresses(&at.key("workloadIps"), &workload.workload_ips),
            network_mode: self.choice(
                &at.key("networkMode"),
                workload.network_mode.as_deref(),
                &NETWORK_MODES,
            ),
            tunnel_protocol: self.choice(&at.key("protocol"), workload.protocol.as_deref(), &PROTOCOLS),
            native_tunnel: workload.native_tunnel,
            application_tunnel: workload.application_tunnel.map(|tunnel| ApplicationTunnel {
                protocol: self.choice_of(
                    &at.key("applicationTunnel").key("protocol"),
                    &tunnel.protocol,
                    &TUNNELS,
                ),
                port: tunnel.port.filter(|port| *port > 0),
            }),
            waypoint: self.optional_gateway(&at.key("waypoint"), workload.waypoint),
            network_gateway: self.optional_gateway(&at.key("networkGateway"), workload.network_gateway),
            authorization_policies: self
                .policy_keys(&at.key("authorizationPolicies"), &workload.authorization_policies),
            health: self.choice(&at.key("status"), workload.status.as_deref(), &HEALTH),
            capacity: workload.capacity.unwrap_or(1),
            services: self.service_ports(&at.key("services"), workload.services),
        }
    }

    fn addresses(&mut self, at: &Path<'_>, addresses: &[String]) -> Box<[IpAddr]> {
        let addresses = addresses.iter().enumerate();
        addresses.filter_map(|(index, text)| self.ip(&at.index(index), text)).collect()
    }

    fn policy_keys(&mut self, at: &Path<'_>, keys: &[String]) -> Box<[Arc<str>]> {
        for (index, key) in keys.iter().enumerate() {
            if !self.known.policies.contains(key) {
                let message = format!(
                    "no policy {key:?} in this file; until it is known, nothing may connect to the workload"
                );
                self.warning(&at.index(index), message);
            }
        }
        keys.iter().map(|key| self.strings.intern(key)).collect()
    }

    fn service_ports(
        &mut self,
        at: &Path<'_>,
        services: BTreeMap<String, schema::Ports>,
    ) -> Arc<[(NamespacedHostname, PortMap)]> {
        let mut converted = Vec::with_capacity(services.len());
        for (key, ports) in services {
            let at = at.key(&key);
            let Ok((namespace, hostname)) = NamespacedHostname::split(&key) else {
                self.fault(&at, format!("invalid service {key:?}, expected \"<namespace>/<hostname>\""));
                continue;
            };
            if !self.known.services.contains(&key) {
                self.warning(&at, format!("no service {key:?} in this file"));
            }
            converted.push((self.host(namespace, hostname), port_map(ports)));
        }
        self.strings.services(converted)
    }
}

// The words of the file. Where the file may leave the choice out, the first is meant.

const PROTOCOLS: [(&str, TunnelProtocol); 2] =
    [("TCP", TunnelProtocol::Tcp), ("HBONE", TunnelProtocol::Hbone)];
const NETWORK_MODES: [(&str, NetworkMode); 2] =
    [("Standard", NetworkMode::Standard), ("HostNetwork", NetworkMode::HostNetwork)];
const TUNNELS: [(&str, ApplicationTunnelProtocol); 2] =
    [("NONE", ApplicationTunnelProtocol::None), ("PROXY", ApplicationTunnelProtocol::Proxy)];
