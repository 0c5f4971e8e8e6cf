//! What the metadata says of the DNS proxy.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::documents::Sourced;
use super::read::Reader;
use super::settings;

/// The DNS proxy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DnsConfig {
    /// Whether it runs: unless the metadata `DNS_CAPTURE` is something other than `true`.
    pub enabled: bool,
    /// Where it listens.
    pub address: DnsAddress,
    /// Namespace whose services it prefers after the client's own.
    pub preferred_namespace: Option<String>,
}

/// Where the DNS proxy listens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DnsAddress {
    /// Both loopback addresses, at this port.
    Localhost(u16),
    /// This address.
    Socket(SocketAddr),
}

const CAPTURE: &str = "DNS_CAPTURE";
const ADDRESS: &str = "DNS_PROXY_ADDR";

pub(super) fn dns(read: &mut Reader<'_>, metadata: &BTreeMap<String, Sourced<String>>) -> DnsConfig {
    let capture = metadata.get(CAPTURE);
    let enabled = capture.is_none_or(|capture| capture.value.eq_ignore_ascii_case("true"));
    let address = metadata.get(ADDRESS).and_then(|address| {
        let parsed = parse(&address.value);
        if parsed.is_none() {
            let problem =
                format!("cannot read {ADDRESS} {:?}; expected localhost:<port> or an address", address.value);
            read.fault(address.name.clone(), problem);
        }
        parsed
    });
    DnsConfig {
        enabled,
        address: address.unwrap_or(DnsAddress::Localhost(settings::DEFAULT_DNS_PORT)),
        preferred_namespace: read.optional(&settings::PREFERED_SERVICE_NAMESPACE),
    }
}

fn parse(text: &str) -> Option<DnsAddress> {
    match text.strip_prefix("localhost:") {
        Some(port) => port.parse().ok().map(DnsAddress::Localhost),
        None => text.parse().ok().map(DnsAddress::Socket),
    }
}
