//! Services and everything they are found by.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::cow_list::{CowList, Ranked};
use super::cow_map::CowMap;
use super::model::{NamespacedHostname, NetworkAddress, NetworkCidr, Service};

/// All services. Several may share a hostname (one per namespace) or a virtual address; all of them are kept, so that
/// removing one brings back the others. Each list is in the order of namespaces, then hostnames, so who wins where
/// nothing else decides does not depend on who came first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Services {
    /// At most one per namespace.
    by_hostname: CowMap<Arc<str>, List>,
    by_vip: CowMap<NetworkAddress, List>,
    /// Under ranges without host bits.
    by_cidr: CowMap<NetworkCidr, List>,
    /// How many ranges of each length `by_cidr` has, so that a lookup tries only lengths in use.
    ipv4_lengths: BTreeMap<u8, usize>,
    ipv6_lengths: BTreeMap<u8, usize>,
}

type List = CowList<Arc<Service>>;

impl Services {
    /// Adds a service, replacing the one of the same namespace and hostname.
    pub(crate) fn upsert(&mut self, service: Arc<Service>) {
        let previous = self.exact(&service.host.namespace, &service.host.hostname).cloned();
        self.by_hostname.get_or_default(&service.host.hostname).put(service.clone());
        for vip in &service.vips {
            self.by_vip.get_or_default(vip).put(service.clone());
        }
        for range in ranges(&service) {
            let list = self.by_cidr.get_or_default(&range);
            if list.is_empty() {
                let lengths = lengths_of(&mut self.ipv4_lengths, &mut self.ipv6_lengths, &range.cidr);
                *lengths.entry(range.cidr.prefix_len()).or_default() += 1;
            }
            list.put(service.clone());
        }
        if let Some(previous) = previous {
            self.unindex(&previous, Some(&service));
        }
    }

    /// Takes out a service.
    pub(crate) fn remove(&mut self, namespace: &str, hostname: &str) -> Option<Arc<Service>> {
        let service = self.exact(namespace, hostname)?.clone();
        take_out(&mut self.by_hostname, &service.host.hostname, &service);
        self.unindex(&service, None);
        Some(service)
    }

    /// Removes a service from the address indices, except where its `successor` has taken its place already.
    fn unindex(&mut self, service: &Arc<Service>, successor: Option<&Service>) {
        for vip in &service.vips {
            if successor.is_none_or(|successor| !successor.vips.contains(vip)) {
                take_out(&mut self.by_vip, vip, service);
            }
        }
        let kept = successor.map(ranges).unwrap_or_default();
        for range in ranges(service) {
            if !kept.contains(&range) && take_out(&mut self.by_cidr, &range, service) == Took::Last {
                let lengths = lengths_of(&mut self.ipv4_lengths, &mut self.ipv6_lengths, &range.cidr);
                let length = range.cidr.prefix_len();
                if let Some(count) = lengths.get_mut(&length) {
                    *count -= 1;
                    if *count == 0 {
                        lengths.remove(&length);
                    }
                }
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_hostname.len() == 0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.by_hostname.iter().flat_map(|(_, list)| list.iter())
    }

    /// The service with this primary key.
    pub(crate) fn exact(&self, namespace: &str, hostname: &str) -> Option<&Arc<Service>> {
        self.by_hostname.get(hostname)?.iter().find(|service| &*service.host.namespace == namespace)
    }

    /// The best of the visible services called `hostname`: the client's namespace first, then a canonical one, then the
    /// `preferred` namespace, then the first.
    pub(crate) fn by_hostname(
        &self,
        hostname: &str,
        client: Option<&str>,
        preferred: Option<&str>,
    ) -> Option<&Arc<Service>> {
        best(self.by_hostname.get(hostname)?.iter(), client, preferred)
    }

    /// As [`by_hostname`](Self::by_hostname), of the services for which `select` holds.
    pub(crate) fn by_hostname_where(
        &self,
        hostname: &str,
        client: Option<&str>,
        preferred: Option<&str>,
        select: impl Fn(&Service) -> bool,
    ) -> Option<&Arc<Service>> {
        let list = self.by_hostname.get(hostname)?;
        best(list.iter().filter(|service| select(service)), client, preferred)
    }

    /// The best of the visible services that own `address`. An exact address beats every range, a service of the
    /// client's namespace beats a longer prefix.
    pub(crate) fn by_vip(
        &self,
        network: &str,
        address: IpAddr,
        client: Option<&str>,
    ) -> Option<&Arc<Service>> {
        self.by_vip
            .get(&(network, address))
            .and_then(|list| best(list.iter(), client, None))
            .or_else(|| self.by_range(network, address, client))
    }

    fn by_range(&self, network: &str, address: IpAddr, client: Option<&str>) -> Option<&Arc<Service>> {
        let lengths = match address {
            IpAddr::V4(_) => &self.ipv4_lengths,
            IpAddr::V6(_) => &self.ipv6_lengths,
        };
        let mut longest = None;
        for length in lengths.keys().rev() {
            let cidr = IpNet::new(address, *length).ok()?.trunc();
            let Some(list) = self.by_cidr.get(&(network, cidr)) else {
                continue;
            };
            let visible = || list.iter().filter(|service| service.is_visible_from(client));
            let own = visible().filter(|service| client == Some(&*service.host.namespace));
            let mut own = own.peekable();
            if own.peek().is_some() {
                return first_canonical_or_first(own);
            }
            longest = longest.or_else(|| first_canonical_or_first(visible()));
        }
        longest
    }
}

impl Ranked for Arc<Service> {
    fn rank(&self, other: &Self) -> Ordering {
        self.host.cmp(&other.host)
    }
}

/// What was left of a list after one was taken out of it.
#[derive(PartialEq, Eq)]
enum Took {
    Nothing,
    OneOfMany,
    Last,
}

fn take_out<K: Clone + Eq + std::hash::Hash>(
    index: &mut CowMap<K, List>,
    key: &K,
    service: &Arc<Service>,
) -> Took {
    if index.get(key).is_none() {
        return Took::Nothing;
    }
    let list = index.get_or_default(key);
    list.take(service);
    if list.is_empty() {
        index.remove(key);
        return Took::Last;
    }
    Took::OneOfMany
}

/// The service's ranges without host bits, each once.
fn ranges(service: &Service) -> Vec<NetworkCidr> {
    let mut ranges: Vec<_> = service
        .cidr_vips
        .iter()
        .map(|vip| NetworkCidr { network: vip.network.clone(), cidr: vip.cidr.trunc() })
        .collect();
    ranges.sort();
    ranges.dedup();
    ranges
}

fn lengths_of<'a>(
    ipv4: &'a mut BTreeMap<u8, usize>,
    ipv6: &'a mut BTreeMap<u8, usize>,
    cidr: &IpNet,
) -> &'a mut BTreeMap<u8, usize> {
    match cidr {
        IpNet::V4(_) => ipv4,
        IpNet::V6(_) => ipv6,
    }
}

/// The client's own, else a canonical one, else the preferred namespace's, else the first.
fn best<'a>(
    services: impl Iterator<Item = &'a Arc<Service>>,
    client: Option<&str>,
    preferred: Option<&str>,
) -> Option<&'a Arc<Service>> {
    let mut first: Option<&Arc<Service>> = None;
    let mut canonical: Option<&Arc<Service>> = None;
    let mut of_preferred: Option<&Arc<Service>> = None;
    for service in services.filter(|service| service.is_visible_from(client)) {
        let namespace = &*service.host.namespace;
        if client == Some(namespace) {
            return Some(service);
        }
        if service.canonical {
            canonical = canonical.or(Some(service));
        }
        if preferred == Some(namespace) {
            of_preferred = of_preferred.or(Some(service));
        }
        first = first.or(Some(service));
    }
    canonical.or(of_preferred).or(first)
}

fn first_canonical_or_first<'a>(
    services: impl Iterator<Item = &'a Arc<Service>>,
) -> Option<&'a Arc<Service>> {
    let mut first = None;
    for service in services {
        if service.canonical {
            return Some(service);
        }
        first = first.or(Some(service));
    }
    first
}

/// The key of a service, as xDS names the resource: `namespace/hostname`.
pub(crate) fn parse_key(resource_name: &str) -> Option<(&str, &str)> {
    let (namespace, hostname) = NamespacedHostname::split(resource_name).ok()?;
    (!hostname.contains('/')).then_some((namespace, hostname))
}

#[cfg(test)]
mod tests;
