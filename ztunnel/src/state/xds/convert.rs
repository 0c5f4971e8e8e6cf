//! From messages to the model: the parts that workloads and services have in common.
//!
//! What every proxy of this mesh has always done with values that are absent, empty or unknown is done here too; where
//! a value makes a resource unusable, the rejection names the field.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use xds_client::workload as wire;

use super::rejection::Rejection;
use crate::state::Interner;
use crate::state::model::{
    Destination, GatewayAddress, NamespacedHostname, NetworkAddress, NetworkCidr, PortMap,
};

/// Converts resources, sharing the strings and lists that repeat.
#[derive(Debug, Default)]
pub(crate) struct Converter {
    pub(super) shared: Interner,
}

impl Converter {
    /// Forgets what no resource uses any more. Costs a pass over everything that was ever shared.
    pub(super) fn sweep(&mut self) {
        self.shared.sweep();
    }

    pub(super) fn text_or(&mut self, text: &str, default: &str) -> Arc<str> {
        self.shared.intern(if text.is_empty() { default } else { text })
    }

    pub(super) fn host(&mut self, namespace: &str, hostname: &str) -> NamespacedHostname {
        NamespacedHostname {
            namespace: self.shared.intern(namespace),
            hostname: self.shared.intern(hostname),
        }
    }

    pub(super) fn gateway(
        &mut self,
        field: &'static str,
        gateway: Option<&wire::GatewayAddress>,
    ) -> Result<Option<Arc<GatewayAddress>>, Rejection> {
        let Some(gateway) = gateway else { return Ok(None) };
        let destination = match &gateway.destination {
            Some(wire::gateway_address::Destination::Hostname(host)) => {
                Destination::Hostname(self.host(&host.namespace, &host.hostname))
            }
            Some(wire::gateway_address::Destination::Address(at)) => {
                let address = address(field, &at.address)?;
                Destination::Address(NetworkAddress { network: self.shared.intern(&at.network), address })
            }
            None => return Err(Rejection::GatewayWithoutAddress { field }),
        };
        let gateway = GatewayAddress { destination, hbone_mtls_port: port(gateway.hbone_mtls_port) };
        Ok(Some(self.shared.gateway(gateway)))
    }
}

/// An address of 4 or 16 bytes, in network byte order. An IPv4 address within IPv6 is the IPv4 address.
pub(super) fn address(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Rejection> {
    if let Ok(ipv4) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(ipv4).into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(ipv6) => Ok(Ipv6Addr::from(ipv6).to_canonical()),
        Err(_) => Err(Rejection::AddressLength { field, length: bytes.len() }),
    }
}

/// An address of a service: a range if it has a prefix length that is not the whole address.
pub(super) enum ServiceAddress {
    Exact(NetworkAddress),
    Range(NetworkCidr),
}

pub(super) fn service_address(
    converter: &mut Converter,
    given: &wire::NetworkAddress,
) -> Result<ServiceAddress, Rejection> {
    let network = converter.shared.intern(&given.network);
    let address = address("addresses", &given.address)?;
    // Lengths count the bits as sent: an IPv4 address within IPv6 was sent with 128 of them.
    let bits = 8 * given.address.len() as u32;
    match given.length {
        None => Ok(ServiceAddress::Exact(NetworkAddress { network, address })),
        Some(length) if length == bits => Ok(ServiceAddress::Exact(NetworkAddress { network, address })),
        Some(length) => {
            let invalid = || Rejection::Cidr(format!("{address}/{length}"));
            let own_bits = if address.is_ipv4() { 32 } else { 128 };
            let length = length.checked_sub(bits - own_bits).ok_or_else(invalid)?;
            let length = u8::try_from(length).map_err(|_| invalid())?;
            let cidr = IpNet::new(address, length).map_err(|_| invalid())?;
            Ok(ServiceAddress::Range(NetworkCidr { network, cidr }))
        }
    }
}

pub(super) fn ports(ports: &[wire::Port]) -> PortMap {
    ports.iter().map(|given| (port(given.service_port), port(given.target_port))).collect()
}

/// Ports are 16 bits of a wider field; the others have always been ignored.
pub(super) fn port(number: u32) -> u16 {
    number as u16
}
