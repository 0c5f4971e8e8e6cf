//! From the file as written to workloads, services and policies.

use std::collections::HashSet;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use identity::SpiffeId;
use ipnet::IpNet;

use super::StaticConfig;
use super::fault::{Fault, Path};
use super::schema;
use crate::policy::{
    self, Action, Enforcement, MatchSpec, PolicyScope, PolicySpec, Readable, ServiceAccountMatch,
    StringMatch, Unreadable,
};
use crate::state::Interner;
use crate::state::model::{
    ApplicationTunnel, ApplicationTunnelProtocol, BalanceMode, Destination, ExplicitEndpoint, GatewayAddress,
    Health, HealthPolicy, IpFamilies, LoadBalancer, Locality, NamespacedHostname, NetworkAddress,
    NetworkCidr, NetworkMode, PortMap, Scope, Service, TunnelProtocol, Visibility, WeightedWaypoint,
    Workload,
};

/// Finding the line of a fault reads the whole text again, so only the first few get one.
const LOCATED_FAULTS: usize = 32;

/// Converts the whole file, or reports everything that is wrong with it.
pub(super) fn convert(file: schema::File, text: &str) -> Result<StaticConfig, Vec<Fault>> {
    let mut converter = Converter {
        text,
        strings: Interner::default(),
        known: Known::of(&file),
        faults: Vec::new(),
        warnings: Vec::new(),
    };
    let config = StaticConfig {
        workloads: converter.workloads(file.workloads),
        services: converter.services(file.services),
        policies: converter.policies(file.policies),
        warnings: Vec::new(),
    };
    if !converter.faults.is_empty() {
        return Err(converter.faults);
    }
    Ok(StaticConfig { warnings: converter.warnings, ..config })
}

struct Converter<'a> {
    text: &'a str,
    strings: Interner,
    known: Known,
    faults: Vec<Fault>,
    warnings: Vec<Fault>,
}

/// What the file defines, for those who refer to it.
struct Known {
    uids: HashSet<String>,
    services: HashSet<String>,
    policies: HashSet<String>,
    /// `network/ip` of workloads and services, and `namespace/hostname` of workloads.
    gateways: HashSet<String>,
}

impl Known {
    fn of(file: &schema::File) -> Self {
        let workloads = || file.workloads.iter();
        let addresses = workloads().flat_map(|workload| {
            let ips = workload.workload_ips.iter();
            ips.map(|ip| format!("{}/{ip}", workload.network))
        });
        let hostnames = workloads().map(|workload| format!("{}/{}", workload.namespace, workload.hostname));
        let vips = file.services.iter().flat_map(|service| service.vips.iter().cloned());
        Self {
            uids: workloads().map(|workload| workload.uid.clone()).collect(),
            services: file
                .services
                .iter()
                .map(|service| format!("{}/{}", service.namespace, service.hostname))
                .collect(),
            policies: file
                .policies
                .iter()
                .map(|policy| format!("{}/{}", policy.namespace, policy.name))
                .collect(),
            gateways: addresses.chain(hostnames).chain(vips).collect(),
        }
    }
}

/// Workloads.
impl Converter<'_> {
    fn workloads(&mut self, workloads: Vec<schema::Workload>) -> Vec<Arc<Workload>> {
        let list = Path::TOP;
        let list = list.key("workloads");
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
        services: std::collections::BTreeMap<String, schema::Ports>,
    ) -> Box<[(NamespacedHostname, PortMap)]> {
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
        converted.into()
    }
}

/// Services.
impl Converter<'_> {
    fn services(&mut self, services: Vec<schema::Service>) -> Vec<Arc<Service>> {
        let list = Path::TOP;
        let list = list.key("services");
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
        endpoints: std::collections::BTreeMap<String, schema::Endpoint>,
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

/// Policies.
impl Converter<'_> {
    fn policies(&mut self, policies: Vec<schema::Policy>) -> Vec<Arc<policy::Policy>> {
        let list = Path::TOP;
        let list = list.key("policies");
        let mut seen = HashSet::new();
        let mut converted = Vec::with_capacity(policies.len());
        for (index, policy) in policies.into_iter().enumerate() {
            let at = list.index(index);
            let spec = self.policy(&at, policy);
            let (policy, warnings) = policy::compile(spec);
            for warning in warnings {
                self.warning(&at.key("rules"), warning.to_string());
            }
            if !seen.insert(policy.key().clone()) {
                self.fault(&at.key("name"), format!("duplicate policy {:?}", policy.key()));
            }
            converted.push(Arc::new(policy));
        }
        converted
    }

    fn policy(&mut self, at: &Path<'_>, policy: schema::Policy) -> PolicySpec {
        let rules_at = at.key("rules");
        let mut rules = Vec::with_capacity(policy.rules.len());
        for (rule, clauses) in policy.rules.into_iter().enumerate() {
            let rule_at = rules_at.index(rule);
            let mut converted = Vec::with_capacity(clauses.len());
            for (clause, matches) in clauses.into_iter().enumerate() {
                let clause_at = rule_at.index(clause);
                let matches = matches.into_iter().enumerate();
                converted.push(
                    matches.map(|(index, given)| self.match_spec(&clause_at.index(index), given)).collect(),
                );
            }
            rules.push(converted);
        }
        PolicySpec {
            namespace: self.strings.intern(&policy.namespace),
            name: policy.name.into(),
            scope: self.choice_of(&at.key("scope"), &policy.scope, &POLICY_SCOPES),
            action: self.choice_of(&at.key("action"), &policy.action, &ACTIONS),
            enforcement: match policy.dry_run {
                true => Enforcement::DryRun,
                false => Enforcement::Enforced,
            },
            rules,
        }
    }

    fn match_spec(&mut self, at: &Path<'_>, given: schema::Match) -> MatchSpec {
        let unknown = given.unknown.into_keys();
        MatchSpec {
            namespaces: self.string_matches(&at.key("namespaces"), given.namespaces),
            not_namespaces: self.string_matches(&at.key("notNamespaces"), given.not_namespaces),
            principals: self.string_matches(&at.key("principals"), given.principals),
            not_principals: self.string_matches(&at.key("notPrincipals"), given.not_principals),
            service_accounts: service_accounts(given.service_accounts),
            not_service_accounts: service_accounts(given.not_service_accounts),
            source_ips: self.ranges(&at.key("sourceIps"), &given.source_ips),
            not_source_ips: self.ranges(&at.key("notSourceIps"), &given.not_source_ips),
            destination_ips: self.ranges(&at.key("destinationIps"), &given.destination_ips),
            not_destination_ips: self.ranges(&at.key("notDestinationIps"), &given.not_destination_ips),
            destination_ports: given.destination_ports.into_iter().map(Ok).collect(),
            not_destination_ports: given.not_destination_ports.into_iter().map(Ok).collect(),
            unknown_fields: unknown.map(|key| Unreadable(format!("unknown field {key:?}"))).collect(),
        }
    }

    fn string_matches(
        &mut self,
        at: &Path<'_>,
        given: Vec<schema::StringMatch>,
    ) -> Vec<Readable<StringMatch>> {
        let mut converted = Vec::with_capacity(given.len());
        for (index, given) in given.into_iter().enumerate() {
            let conditions = [
                given.exact.map(|text| StringMatch::Exact(text.into())),
                given.prefix.map(|text| StringMatch::Prefix(text.into())),
                given.suffix.map(|text| StringMatch::Suffix(text.into())),
                given.presence.map(|_| StringMatch::Presence),
            ];
            let mut conditions = conditions.into_iter().flatten();
            match (conditions.next(), conditions.next()) {
                (Some(condition), None) => converted.push(Ok(condition)),
                _ => self
                    .fault(&at.index(index), "expected one of Exact, Prefix, Suffix and Presence".to_owned()),
            }
        }
        converted
    }

    fn ranges(&mut self, at: &Path<'_>, given: &[String]) -> Vec<Readable<IpNet>> {
        let given = given.iter().enumerate();
        given.filter_map(|(index, text)| self.cidr(&at.index(index), text)).map(Ok).collect()
    }
}

/// Values.
impl Converter<'_> {
    fn ip(&mut self, at: &Path<'_>, text: &str) -> Option<IpAddr> {
        match IpAddr::from_str(text) {
            Ok(ip) => Some(ip.to_canonical()),
            Err(_) => {
                self.fault(at, format!("invalid IP address {text:?}"));
                None
            }
        }
    }

    fn cidr(&mut self, at: &Path<'_>, text: &str) -> Option<IpNet> {
        let cidr = IpNet::from_str(text);
        if cidr.is_err() {
            self.fault(at, format!("invalid address range {text:?}, expected \"<ip>/<prefix length>\""));
        }
        cidr.ok()
    }

    fn host(&mut self, namespace: &str, hostname: &str) -> NamespacedHostname {
        NamespacedHostname {
            namespace: self.strings.intern(namespace),
            hostname: self.strings.intern(hostname),
        }
    }

    fn optional_gateway(
        &mut self,
        at: &Path<'_>,
        gateway: Option<schema::Gateway>,
    ) -> Option<GatewayAddress> {
        self.gateway(at, gateway?)
    }

    fn gateway(&mut self, at: &Path<'_>, gateway: schema::Gateway) -> Option<GatewayAddress> {
        let at = at.key("destination");
        let text = gateway.destination;
        let Some((first, second)) = text.split_once('/') else {
            self.fault(
                &at,
                format!(
                    "invalid gateway {text:?}, expected \"<network>/<ip>\" or \"<namespace>/<hostname>\""
                ),
            );
            return None;
        };
        if !self.known.gateways.contains(&text) && !self.known.services.contains(&text) {
            self.warning(&at, format!("no workload or service {text:?} in this file; until it is known, what needs it is refused"));
        }
        let destination = match IpAddr::from_str(second) {
            Ok(address) => Destination::Address(NetworkAddress {
                network: self.strings.intern(first),
                address: address.to_canonical(),
            }),
            Err(_) => Destination::Hostname(self.host(first, second)),
        };
        Some(GatewayAddress { destination, hbone_mtls_port: gateway.hbone_mtls_port })
    }

    /// One of `choices`, of which the first is the default.
    fn choice<T: Copy>(&mut self, at: &Path<'_>, given: Option<&str>, choices: &[(&str, T)]) -> T {
        match given {
            Some(given) => self.choice_of(at, given, choices),
            None => choices[0].1,
        }
    }

    fn choice_of<T: Copy>(&mut self, at: &Path<'_>, given: &str, choices: &[(&str, T)]) -> T {
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == given) {
            return *value;
        }
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        let expected = match names.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => String::new(),
        };
        self.fault(at, format!("unknown value {given:?}, expected {expected}"));
        choices[0].1
    }

    fn fault(&mut self, at: &Path<'_>, message: String) {
        let fault = self.report(at, message, self.faults.len());
        self.faults.push(fault);
    }

    fn warning(&mut self, at: &Path<'_>, message: String) {
        let fault = self.report(at, message, self.warnings.len());
        self.warnings.push(fault);
    }

    fn report(&self, at: &Path<'_>, message: String, reported: usize) -> Fault {
        Fault {
            location: if reported < LOCATED_FAULTS { at.locate(self.text) } else { None },
            field: at.to_string(),
            message,
        }
    }
}

fn port_map(ports: schema::Ports) -> PortMap {
    ports.into_iter().map(|(service_port, target)| (service_port.0, target)).collect()
}

fn service_accounts(given: Vec<schema::ServiceAccount>) -> Vec<Readable<ServiceAccountMatch>> {
    let convert = |given: schema::ServiceAccount| ServiceAccountMatch {
        namespace: given.namespace.into(),
        service_account: given.service_account.into(),
    };
    given.into_iter().map(convert).map(Ok).collect()
}

// The words of the file. Where the file may leave the choice out, the first is meant.

const PROTOCOLS: [(&str, TunnelProtocol); 2] =
    [("TCP", TunnelProtocol::Tcp), ("HBONE", TunnelProtocol::Hbone)];
const NETWORK_MODES: [(&str, NetworkMode); 2] =
    [("Standard", NetworkMode::Standard), ("HostNetwork", NetworkMode::HostNetwork)];
const TUNNELS: [(&str, ApplicationTunnelProtocol); 2] =
    [("NONE", ApplicationTunnelProtocol::None), ("PROXY", ApplicationTunnelProtocol::Proxy)];
const HEALTH: [(&str, Health); 2] = [("Healthy", Health::Healthy), ("Unhealthy", Health::Unhealthy)];
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
const POLICY_SCOPES: [(&str, PolicyScope); 3] = [
    ("Global", PolicyScope::Global),
    ("Namespace", PolicyScope::Namespace),
    ("WorkloadSelector", PolicyScope::WorkloadSelector),
];
const ACTIONS: [(&str, Action); 2] = [("Allow", Action::Allow), ("Deny", Action::Deny)];
