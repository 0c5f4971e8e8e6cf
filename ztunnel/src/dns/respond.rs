//! Answers that need nobody else: names of the mesh, and names that mean the same everywhere.

use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{CNAME, PTR, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::lookup::{Addresses, Client, Found, Rules};
use super::request::{Request, address_record};
use crate::config::{Config, Families};
use crate::state::Mesh;
use crate::state::route::Family;

/// Lifetime of the records of the mesh, in seconds.
const TTL: u32 = 30;

/// How long, in seconds, a client may remember that a name of the mesh has no address. Shorter than [`TTL`]: a headless
/// service that gets its first endpoint is waited for.
const NEGATIVE_TTL: u32 = 5;

/// Lifetime of what never changes, in seconds.
const FOREVER: u32 = 86_400;

/// Answers from the mesh. Pure: no sockets, no clock.
#[derive(Clone, Debug)]
pub struct Responder {
    rules: Rules,
}

/// An answer, and what is logged of it.
#[derive(Debug)]
pub struct Answer {
    /// The message.
    pub octets: Vec<u8>,
    /// In a word or two.
    pub(crate) result: &'static str,
    /// How many addresses it gives.
    pub(crate) addresses: usize,
}

impl Responder {
    /// Answers as `config` wants: the cluster's domain, the preferred namespace, the address families.
    pub fn new(config: &Config) -> Self {
        let lower = |text: &str| Arc::from(text.to_ascii_lowercase());
        Self {
            rules: Rules {
                domain: lower(config.cluster_domain.trim_end_matches('.')),
                preferred: config.dns.preferred_namespace.as_deref().map(Arc::from),
                ipv6: config.sockets.families == Families::Both,
            },
        }
    }

    /// The search domains of every pod of `namespace`.
    pub fn search_domains(&self, namespace: &str) -> Vec<Arc<str>> {
        let domain = &self.rules.domain;
        vec![
            format!("{namespace}.svc.{domain}").to_ascii_lowercase().into(),
            format!("svc.{domain}").into(),
            domain.clone(),
        ]
    }

    /// The answer of the mesh. `None`: others have to be asked.
    pub fn answer(&self, mesh: &Mesh, client: Client<'_>, request: &Request) -> Option<Answer> {
        let family = match request.kind() {
            RecordType::A => Family::Ipv4,
            RecordType::AAAA => Family::Ipv6,
            _ => return None,
        };
        let name = request.name().filter(|_| request.is_internet())?;
        let Found { canonical, addresses } = self.rules.find(mesh, client, name, family)?;
        Some(match addresses {
            Addresses::Unsupported => self.none(request, "service does not support this record type"),
            Addresses::Some(addresses) if addresses.is_empty() => self.none(request, "no records"),
            Addresses::Some(mut addresses) => {
                // So that clients, which take the first, spread over all of them.
                fastrand::shuffle(&mut addresses);
                let count = addresses.len();
                let mut response = request.response(ResponseCode::NoError);
                response.metadata.authoritative = true;
                if let Some(target) = canonical.and_then(|labels| first_labels(request.owner(), labels)) {
                    let data = RData::CNAME(CNAME(target));
                    response.add_answer(Record::from_rdata(request.owner().clone(), TTL, data));
                }
                let octets = request.encode_with(response, TTL, addresses);
                Answer { octets, result: "success", addresses: count }
            }
        })
    }

    /// That the name exists and has no such records; how long that holds is said by an SOA record (RFC 2308 section 3).
    fn none(&self, request: &Request, result: &'static str) -> Answer {
        let mut response = request.response(ResponseCode::NoError);
        response.metadata.authoritative = true;
        let zone = Name::from_ascii(format!("{}.", self.rules.domain)).unwrap_or_else(|_| Name::root());
        let contact = zone.prepend_label("hostmaster").unwrap_or_else(|_| Name::root());
        let server = zone.prepend_label("ns.dns").unwrap_or_else(|_| zone.clone());
        // The zone must hold the name; a name outside of the cluster's domain is taken for a zone of its own.
        let owner = if zone.zone_of(request.owner()) { zone } else { request.owner().clone() };
        let soa = SOA::new(server, contact, 1, 7200, 1800, 86_400, NEGATIVE_TTL);
        response.add_authority(Record::from_rdata(owner, NEGATIVE_TTL, RData::SOA(soa)));
        Answer { octets: request.encode(response), result, addresses: 0 }
    }
}

/// The answer for a name that means the same everywhere, and that nobody outside should be asked for (RFC 6761 sections
/// 6.3 and 6.4, RFC 7686 section 2). `None` for all others.
pub(crate) fn special(request: &Request) -> Option<Vec<u8>> {
    let name = request.name().filter(|_| request.is_internet())?;
    let top = name.rsplit('.').next()?;
    match top {
        "invalid" | "onion" => Some(request.error(ResponseCode::NXDomain)),
        "localhost" => {
            let mut response = request.response(ResponseCode::NoError);
            let address = match request.kind() {
                RecordType::A => Some([127, 0, 0, 1].into()),
                RecordType::AAAA => Some(std::net::Ipv6Addr::LOCALHOST.into()),
                _ => None,
            };
            response.add_answers(
                address.map(|address| address_record(request.owner().clone(), FOREVER, address)),
            );
            Some(request.encode(response))
        }
        "arpa" if is_loopback_pointer(name) && request.kind() == RecordType::PTR => {
            let mut response = request.response(ResponseCode::NoError);
            let localhost = Name::from_ascii("localhost.").ok()?;
            let data = RData::PTR(PTR(localhost));
            response.add_answer(Record::from_rdata(request.owner().clone(), FOREVER, data));
            Some(request.encode(response))
        }
        _ => None,
    }
}

fn is_loopback_pointer(name: &str) -> bool {
    let ipv6 = || {
        let rest = name.strip_prefix("1.").and_then(|rest| rest.strip_suffix("ip6.arpa"));
        rest.is_some_and(|rest| rest == "0.".repeat(31))
    };
    name == "1.0.0.127.in-addr.arpa" || ipv6()
}

/// The name of the first `labels` labels of `name`, in the client's spelling.
fn first_labels(name: &Name, labels: usize) -> Option<Name> {
    let mut first = Name::from_labels(name.iter().take(labels)).ok()?;
    first.set_fqdn(true);
    Some(first)
}

#[cfg(test)]
mod tests;
