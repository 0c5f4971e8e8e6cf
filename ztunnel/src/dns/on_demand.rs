//! Workloads that the mesh knows by a hostname alone are looked up when a connection goes to them.
//!
//! From the process's own namespace, with the search list of its own resolv.conf, and with a cache apart from those of
//! pods: what no pod has had a hand in.

use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use super::asker::{Answered, Asker};
use super::upstream::AskError;

/// Why a hostname has no address.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ResolveError {
    /// The lookup failed, or there is no such name.
    #[error("no ip addresses were resolved")]
    Failed,
    /// There is such a name, without addresses.
    #[error("the name has no ip addresses")]
    Empty,
}

/// Answers that are kept.
pub(super) const MOST_CACHED: usize = 4096;

/// Looks up hostnames.
pub(super) struct HostResolver {
    asker: Rc<Asker>,
    /// Whether IPv6 addresses are asked for.
    ipv6: bool,
}

impl HostResolver {
    pub(super) fn new(asker: Rc<Asker>, ipv6: bool) -> Self {
        Self { asker, ipv6 }
    }

    /// All addresses of `hostname`, at least one. `search` and `ndots` are those of resolv.conf.
    pub(super) async fn resolve(
        &self,
        hostname: &str,
        search: &[Arc<str>],
        ndots: usize,
    ) -> Result<Vec<IpAddr>, ResolveError> {
        let mut error = ResolveError::Failed;
        for name in candidates(hostname, search, ndots) {
            match self.addresses(&name).await {
                Ok(addresses) => return Ok(addresses),
                Err(ResolveError::Empty) => error = ResolveError::Empty,
                Err(ResolveError::Failed) => {}
            }
        }
        Err(error)
    }

    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let Ok(name) = Name::from_ascii(name) else { return Err(ResolveError::Failed) };
        let ipv6 = async {
            match self.ipv6 {
                true => self.of_kind(&name, RecordType::AAAA).await,
                false => Err(ResolveError::Empty),
            }
        };
        let (ipv4, ipv6) = tokio::join!(self.of_kind(&name, RecordType::A), ipv6);
        match (ipv4, ipv6) {
            (Ok(mut ipv4), Ok(ipv6)) => {
                ipv4.extend(ipv6);
                Ok(ipv4)
            }
            (Ok(addresses), Err(_)) | (Err(_), Ok(addresses)) => Ok(addresses),
            (Err(ResolveError::Failed), Err(ResolveError::Failed)) => Err(ResolveError::Failed),
            // No IPv6 because none was asked for says nothing.
            (Err(error), Err(_)) if !self.ipv6 => Err(error),
            (Err(_), Err(_)) => Err(ResolveError::Empty),
        }
    }

    async fn of_kind(&self, name: &Name, kind: RecordType) -> Result<Vec<IpAddr>, ResolveError> {
        let answered = self.ask(name, kind).await.map_err(|error| {
            tracing::debug!(%name, %kind, %error, "a workload's hostname could not be looked up");
            ResolveError::Failed
        })?;
        let message = Message::from_vec(&answered.octets).map_err(|_| ResolveError::Failed)?;
        if message.metadata.response_code != ResponseCode::NoError {
            return Err(ResolveError::Failed);
        }
        let addresses = addresses_of(&message, name);
        if addresses.is_empty() { Err(ResolveError::Empty) } else { Ok(addresses) }
    }

    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Answered, AskError> {
        let mut query = Message::query();
        query.metadata.op_code = OpCode::Query;
        query.metadata.id = 0;
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(name.clone(), kind));
        let octets = query.to_vec().map_err(|_| AskError::Malformed)?;
        match self.asker.known(&octets) {
            Some(known) => Ok(known),
            None => self.asker.ask(&octets, true).await,
        }
    }
}

/// Passes over an answer to find the aliases of a name.
const MOST_ALIASES: usize = 16;

/// The addresses that an answer gives for `name`, following its CNAME records; others are none of ours.
pub(super) fn addresses_of(message: &Message, name: &Name) -> Vec<IpAddr> {
    let mut names = HashSet::from([name.to_lowercase()]);
    // Aliases come in order as a rule; where they do not, each pass finds at least one more.
    for _ in 0..MOST_ALIASES {
        let aliases = message.answers.iter().filter_map(|record| match &record.data {
            RData::CNAME(target) if names.contains(&record.name.to_lowercase()) => {
                Some(target.0.to_lowercase())
            }
            _ => None,
        });
        let more: Vec<_> = aliases.filter(|alias| !names.contains(alias)).collect();
        if more.is_empty() {
            break;
        }
        names.extend(more);
    }
    let addresses = message.answers.iter().filter(|record| names.contains(&record.name.to_lowercase()));
    addresses
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        })
        .collect()
}

/// The absolute names that `hostname` may mean, in the order of resolv.conf(5).
fn candidates(hostname: &str, search: &[Arc<str>], ndots: usize) -> Vec<String> {
    if hostname.ends_with('.') {
        return vec![hostname.to_owned()];
    }
    let absolute = format!("{hostname}.");
    let mut names: Vec<_> = search.iter().map(|domain| format!("{hostname}.{domain}.")).collect();
    let is_first = hostname.matches('.').count() >= ndots;
    names.insert(if is_first { 0 } else { names.len() }, absolute);
    names
}
