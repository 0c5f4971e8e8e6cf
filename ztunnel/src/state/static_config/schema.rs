//! The file as written: names, lists and maps in place, values still text.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, Unexpected, Visitor};

use super::fault::Fault;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) workloads: Vec<Workload>,
    pub(super) services: Vec<Service>,
    pub(super) policies: Vec<Policy>,
}

impl File {
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        let file: Option<Self> = serde_yaml_ng::from_str(text).map_err(shape_fault)?;
        Ok(file.unwrap_or_default())
    }
}

/// The parser writes the field's path before its message and the location behind it.
fn shape_fault(error: serde_yaml_ng::Error) -> Fault {
    let text = error.to_string();
    let location = error.location().map(|at| (at.line(), at.column()));
    let suffix = location.map(|(line, column)| format!(" at line {line} column {column}"));
    let message = suffix.and_then(|suffix| text.strip_suffix(&suffix).map(str::to_owned));
    Fault { location, field: String::new(), message: message.unwrap_or(text) }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Workload {
    pub(super) workload_ips: Vec<String>,
    pub(super) namespace: String,
    pub(super) services: BTreeMap<String, Ports>,
    #[serde(default)]
    pub(super) uid: String,
    #[serde(default)]
    pub(super) name: String,
    pub(super) protocol: Option<String>,
    pub(super) network_mode: Option<String>,
    #[serde(default)]
    pub(super) trust_domain: String,
    #[serde(default)]
    pub(super) service_account: String,
    #[serde(default)]
    pub(super) network: String,
    #[serde(default)]
    pub(super) workload_name: String,
    #[serde(default)]
    pub(super) workload_type: String,
    #[serde(default)]
    pub(super) canonical_name: String,
    #[serde(default)]
    pub(super) canonical_revision: String,
    #[serde(default)]
    pub(super) hostname: String,
    #[serde(default)]
    pub(super) node: String,
    #[serde(default)]
    pub(super) native_tunnel: bool,
    pub(super) waypoint: Option<Gateway>,
    pub(super) network_gateway: Option<Gateway>,
    pub(super) application_tunnel: Option<ApplicationTunnel>,
    #[serde(default)]
    pub(super) authorization_policies: Vec<String>,
    pub(super) status: Option<String>,
    #[serde(default)]
    pub(super) cluster_id: String,
    #[serde(default)]
    pub(super) locality: Locality,
    pub(super) capacity: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Gateway {
    pub(super) destination: String,
    pub(super) hbone_mtls_port: u16,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ApplicationTunnel {
    pub(super) protocol: String,
    pub(super) port: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Locality {
    pub(super) region: String,
    pub(super) zone: String,
    pub(super) subzone: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) hostname: String,
    pub(super) vips: Vec<String>,
    #[serde(default)]
    pub(super) cidr_vips: Vec<CidrVip>,
    pub(super) ports: Ports,
    #[serde(default)]
    pub(super) endpoints: BTreeMap<String, Endpoint>,
    #[serde(default)]
    pub(super) subject_alt_names: Vec<String>,
    pub(super) waypoint: Option<Gateway>,
    #[serde(default)]
    pub(super) weighted_waypoints: Vec<WeightedWaypoint>,
    pub(super) load_balancer: Option<LoadBalancer>,
    pub(super) ip_families: Option<String>,
    #[serde(default)]
    pub(super) canonical: bool,
    pub(super) visibility: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct CidrVip {
    pub(super) network: String,
    pub(super) cidr: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Endpoint {
    pub(super) workload_uid: String,
    pub(super) port: Ports,
    pub(super) status: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WeightedWaypoint {
    pub(super) destination: Gateway,
    pub(super) weight: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct LoadBalancer {
    pub(super) routing_preferences: Vec<String>,
    pub(super) mode: String,
    pub(super) health_policy: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) scope: String,
    pub(super) action: String,
    pub(super) rules: Vec<Vec<Vec<Match>>>,
    pub(super) dry_run: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Match {
    pub(super) namespaces: Vec<StringMatch>,
    pub(super) not_namespaces: Vec<StringMatch>,
    pub(super) service_accounts: Vec<ServiceAccount>,
    pub(super) not_service_accounts: Vec<ServiceAccount>,
    pub(super) principals: Vec<StringMatch>,
    pub(super) not_principals: Vec<StringMatch>,
    pub(super) source_ips: Vec<String>,
    pub(super) not_source_ips: Vec<String>,
    pub(super) destination_ips: Vec<String>,
    pub(super) not_destination_ips: Vec<String>,
    pub(super) destination_ports: Vec<u16>,
    pub(super) not_destination_ports: Vec<u16>,
    /// Tolerated here, and only here reported: an unknown condition must not be taken for none.
    #[serde(flatten)]
    pub(super) unknown: BTreeMap<String, IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
pub(super) struct StringMatch {
    pub(super) exact: Option<String>,
    pub(super) prefix: Option<String>,
    pub(super) suffix: Option<String>,
    pub(super) presence: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceAccount {
    pub(super) namespace: String,
    pub(super) service_account: String,
}

/// Service port to target port.
pub(super) type Ports = BTreeMap<Port, u16>;

/// A port as a key: a number in YAML, a string in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port(pub(super) u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PortVisitor;

        impl Visitor<'_> for PortVisitor {
            type Value = Port;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port from 0 to 65535")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Port, E> {
                let port = u16::try_from(number);
                port.map(Port).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Port, E> {
                let port = text.parse();
                port.map(Port).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(PortVisitor)
    }
}
