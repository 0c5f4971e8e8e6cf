//! From the file as written to workloads, services and policies.

mod policies;
mod services;
mod workloads;

use std::collections::HashSet;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;

use super::StaticConfig;
use super::fault::{Fault, Path};
use super::schema;
use crate::state::Interner;
use crate::state::model::{Destination, GatewayAddress, Health, NamespacedHostname, NetworkAddress, PortMap};

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
    ) -> Option<Arc<GatewayAddress>> {
        self.gateway(at, gateway?)
    }

    fn gateway(&mut self, at: &Path<'_>, gateway: schema::Gateway) -> Option<Arc<GatewayAddress>> {
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
        Some(self.strings.gateway(GatewayAddress { destination, hbone_mtls_port: gateway.hbone_mtls_port }))
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

// The words of the file for the health of an endpoint; left out, the first is meant.

const HEALTH: [(&str, Health); 2] = [("Healthy", Health::Healthy), ("Unhealthy", Health::Unhealthy)];
