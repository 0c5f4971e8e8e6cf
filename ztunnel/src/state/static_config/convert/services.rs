//! Services.

use std::collections::{BTreeMap, HashSet};
use std::str::FromStr;
use std::sync::Arc;

use identity::SpiffeId;

use super::{Converter, HEALTH, port_map};
use crate::state::model::{
    BalanceMode, ExplicitEndpoint, HealthPolicy, IpFamilies, LoadBalancer, NetworkAddress, NetworkCidr,
    Scope, Service, Visibility, WeightedWaypoint,
};
use crate::state::static_config::fault::Path;
use crate::state::static_config::schema;

impl Converter<'_> {
    pub(super) fn services(&mut self, services: Vec<schema::Service>) -> Vec<Arc<Service>> {
        let list = Path::TOP.key("services");
        let mut seen = HashSet::new();
        let mut converted = Vec::with_capacity(services.len());
        for (index, service) in services.into_iter().enumerate() {
            let at = list.index(index);
            let service = self.service(&at, service);
            if !seen.insert(service.host.clone()) {
                self.fault(&at.key("hostname"), format!("duplicate service {:?}", service.host.to_string()));
            }
            converted.push(Arc::new(service));
        }
        converted
    }

    fn service(&mut self, at: &Path<'_>, service: schema::Service) -> Service {
        Service {
            name: self.strings.intern(&service.name),
            host: self.host(&service.namespace, &service.hostname),
            vips: self.vips(&at.key("vips"), &service.vips),
            cidr_vips: self.cidr_vips(&at.key("cidrVips"), &service.cidr_vips),
            ports: port_map(service.ports),
            subject_alt_names: self.identities(&at.key("subjectAltNames"), &service.subject_alt_names),
            waypoint: self.optional_gateway(&at.key("waypoint"), service.waypoint),
            weighted_waypoints: self
                .weighted_waypoints(&at.key("weightedWaypoints"), service.weighted_waypoints),
            load_balancer: match service.load_balancer {
                Some(balancer) => self.load_balancer(&at.key("loadBalancer"), &balancer),
                None => LoadBalancer::default(),
            },
            ip_families: self.choice(&at.key("ipFamilies"), service.ip_families.as_deref(), &FAMILIES),
            canonical: service.canonical,
            visibility: self.choice(&at.key("visibility"), service.visibility.as_deref(), &VISIBILITY),
            endpoints: self.endpoints(&at.key("endpoints"), service.endpoints),
        }
    }

    fn vips(&mut self, at: &Path<'_>, vips: &[String]) -> Box<[NetworkAddress]> {
        let mut converted = Vec::with_capacity(vips.len());
        for (index, vip) in vips.iter().enumerate() {
            let at = at.index(index);
            let Some((network, ip)) = vip.split_once('/') else {
                self.fault(&at, format!("invalid address {vip:?}, expected \"<network>/<ip>\""));
                continue;
            };
            if let Some(address) = self.ip(&at, ip) {
                let network = self.strings.intern(network);
                converted.push(NetworkAddress { network, address });
            }
        }
        converted.into()
    }

    fn cidr_vips(&mut self, at: &Path<'_>, vips: &[schema::CidrVip]) -> Box<[NetworkCidr]> {
        let mut converted = Vec::with_capacity(vips.len());
        for (index, vip) in vips.iter().enumerate() {
            if let Some(cidr) = self.cidr(&at.index(index).key("cidr"), &vip.cidr) {
                let network = self.strings.intern(&vip.network);
                converted.push(NetworkCidr { network, cidr });
            }
        }
        converted.into()
    }

    fn identities(&mut self, at: &Path<'_>, names: &[String]) -> Box<[SpiffeId]> {
        let mut converted = Vec::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            match SpiffeId::from_str(name) {
                Ok(identity) => converted.push(identity),
                // Not a fault: such a name is accepted from the control plane too, and admits nobody.
                Err(error) => self.warning(&at.index(index), format!("{name:?} is ignored: {error}")),
            }
        }
        converted.into()
    }

    fn weighted_waypoints(
        &mut self,
        at: &Path<'_>,
        waypoints: Vec<schema::WeightedWaypoint>,
    ) -> Box<[WeightedWaypoint]> {
        let mut converted = Vec::with_capacity(waypoints.len());
        for (index, waypoint) in waypoints.into_iter().enumerate() {
            if let Some(destination) = self.gateway(&at.index(index).key("destination"), waypoint.destination)
            {
                let weight = waypoint.weight;
                converted.push(WeightedWaypoint { destination, weight });
            }
        }
        converted.into()
    }

    fn load_balancer(&mut self, at: &Path<'_>, balancer: &schema::LoadBalancer) -> LoadBalancer {
        let preferences_at = at.key("routingPreferences");
        let preferences = balancer.routing_preferences.iter().enumerate();
        LoadBalancer {
            mode: self.choice_of(&at.key("mode"), &balancer.mode, &MODES),
            preferences: preferences
                .map(|(index, scope)| self.choice_of(&preferences_at.index(index), scope, &SCOPES))
                .collect(),
            health_policy: self.choice_of(&at.key("healthPolicy"), &balancer.health_policy, &HEALTH_POLICIES),
        }
    }

    fn endpoints(
        &mut self,
        at: &Path<'_>,
        endpoints: BTreeMap<String, schema::Endpoint>,
    ) -> Box<[ExplicitEndpoint]> {
        let mut converted = Vec::with_capacity(endpoints.len());
        for (key, endpoint) in endpoints {
            let at = at.key(&key);
            let uid = endpoint.workload_uid;
            if !self.known.uids.contains(&uid) {
                self.warning(&at.key("workloadUid"), format!("no workload {uid:?} in this file"));
            }
            converted.push(ExplicitEndpoint {
                workload_uid: uid.into(),
                ports: port_map(endpoint.port),
                health: self.choice(&at.key("status"), endpoint.status.as_deref(), &HEALTH),
            });
        }
        // One workload counts once, whatever the entries are called.
        converted.sort_by(|one, other| one.workload_uid.cmp(&other.workload_uid));
        converted.dedup_by(|one, other| one.workload_uid == other.workload_uid);
        converted.into()
    }
}

// The words of the file. Where the file may leave the choice out, the first is meant.

const FAMILIES: [(&str, IpFamilies); 4] = [
    ("Automatic", IpFamilies::Automatic),
    ("Dual", IpFamilies::Dual),
    ("IPv4", IpFamilies::Ipv4),
    ("IPv6", IpFamilies::Ipv6),
];
const VISIBILITY: [(&str, Visibility); 2] =
    [("Public", Visibility::Public), ("Namespace", Visibility::Namespace)];
const MODES: [(&str, BalanceMode); 4] = [
    ("Standard", BalanceMode::Standard),
    ("Strict", BalanceMode::Strict),
    ("Failover", BalanceMode::Failover),
    ("Passthrough", BalanceMode::Passthrough),
];
const SCOPES: [(&str, Scope); 6] = [
    ("Region", Scope::Region),
    ("Zone", Scope::Zone),
    ("Subzone", Scope::Subzone),
    ("Node", Scope::Node),
    ("Cluster", Scope::Cluster),
    ("Network", Scope::Network),
];
const HEALTH_POLICIES: [(&str, HealthPolicy); 2] =
    [("OnlyHealthy", HealthPolicy::OnlyHealthy), ("AllowAll", HealthPolicy::AllowAll)];
