//! Names and addresses by which workloads, services and gateways are found.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use thiserror::Error;

/// An IP address within one Istio network. The network with the empty name is the default one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// The Istio network, a name and not an address range.
    pub network: Arc<str>,
    /// A canonical address.
    pub address: IpAddr,
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.address)
    }
}

/// A range of addresses within one Istio network. Host bits may be set; they carry no meaning.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkCidr {
    /// The Istio network.
    pub network: Arc<str>,
    /// The range, as it was given.
    pub cidr: IpNet,
}

impl fmt::Display for NetworkCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.cidr)
    }
}

/// A hostname and the namespace that defines it: the primary key of a service. Written `namespace/hostname`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedHostname {
    /// The Kubernetes namespace.
    pub namespace: Arc<str>,
    /// The full hostname; may be a wildcard such as `*.example.com`.
    pub hostname: Arc<str>,
}

impl NamespacedHostname {
    /// Splits `namespace/hostname` at the first slash. Fails when there is none.
    pub fn split(text: &str) -> Result<(&str, &str), NotNamespacedHostname> {
        text.split_once('/').ok_or(NotNamespacedHostname)
    }
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// A name lacks the slash between namespace and hostname.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("expected <namespace>/<hostname>")]
pub struct NotNamespacedHostname;

/// Where a waypoint or a network gateway listens for HBONE.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GatewayAddress {
    /// The workload or service that is the gateway.
    pub destination: Destination,
    /// Its port for HBONE over mutual TLS, normally 15008. For a service this is the service port.
    pub hbone_mtls_port: u16,
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", self.destination, self.hbone_mtls_port)
    }
}

/// How a [`GatewayAddress`] names its gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// By the address of a workload or the virtual IP of a service.
    Address(NetworkAddress),
    /// By the hostname of a service, or of a workload that has one.
    Hostname(NamespacedHostname),
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Hostname(hostname) => hostname.fmt(f),
        }
    }
}

/// Service ports and the target ports they lead to.
///
/// On a service, target port 0 stands for a named port, which each endpoint resolves by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortMap(
    /// (service port, target port), ascending by service port, no service port twice.
    Box<[(u16, u16)]>,
);

impl PortMap {
    /// The target port of `service_port`.
    pub fn get(&self, service_port: u16) -> Option<u16> {
        let at = self.0.binary_search_by_key(&service_port, |(port, _)| *port).ok()?;
        Some(self.0[at].1)
    }

    /// All (service port, target port) pairs, ascending by service port.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u16, u16)> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<(u16, u16)> for PortMap {
    /// Of several pairs with the same service port, the last wins.
    fn from_iter<I: IntoIterator<Item = (u16, u16)>>(pairs: I) -> Self {
        let mut pairs: Vec<_> = pairs.into_iter().collect();
        pairs.reverse();
        pairs.sort_by_key(|(service_port, _)| *service_port);
        pairs.dedup_by_key(|(service_port, _)| *service_port);
        Self(pairs.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_several_equal_service_ports_wins() {
        let ports: PortMap = [(443, 8443), (80, 8080), (80, 9090)].into_iter().collect();
        assert_eq!(ports.get(80), Some(9090));
        assert_eq!(ports.get(443), Some(8443));
        assert_eq!(ports.get(8080), None);
        assert_eq!(ports.iter().collect::<Vec<_>>(), [(80, 9090), (443, 8443)]);
    }

    #[test]
    fn a_namespaced_hostname_splits_at_the_first_slash_only() {
        assert_eq!(NamespacedHostname::split("ns/a/b"), Ok(("ns", "a/b")));
        assert_eq!(NamespacedHostname::split("/invalid"), Ok(("", "invalid")));
        assert_eq!(NamespacedHostname::split("ns"), Err(NotNamespacedHostname));
    }
}
