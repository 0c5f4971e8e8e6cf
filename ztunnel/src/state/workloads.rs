//! Workloads and everything they are found by.

use std::cmp::{Ordering, Reverse};
use std::net::IpAddr;
use std::sync::Arc;

use super::cow_list::{CowList, Ranked};
use super::cow_map::CowMap;
use super::endpoints::{Endpoint, EndpointRef, Endpoints, Group};
use super::model::{Health, NamespacedHostname, NetworkAddress, TunnelProtocol, Workload};

/// All workloads. Removing one leaves no trace of it in any index, and what a lookup finds does not depend on the order
/// in which they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workloads {
    /// The node whose workloads are local; without it all are.
    node: Option<Arc<str>>,
    by_uid: CowMap<Arc<str>, Arc<Workload>>,
    by_address: CowMap<NetworkAddress, CowList<Candidate>>,
    by_hostname: CowMap<NamespacedHostname, CowList<Candidate>>,
    /// Workloads of this node by (namespace, service account).
    local: CowMap<(Arc<str>, Arc<str>), CowList<Candidate>>,
    /// The workloads that name a service, whether or not that service is known yet.
    endpoints: CowMap<NamespacedHostname, Endpoints>,
}

/// One of the workloads that could be meant by an address or a name; the best comes first.
///
/// Pods before other workloads, HBONE before plain TCP, healthy before unhealthy ones, then by uid. Where two pods claim
/// one address, the one that is being deleted is unhealthy.
#[derive(Clone, Debug)]
struct Candidate(Arc<Workload>);

impl Workloads {
    pub(crate) fn new(node: Option<Arc<str>>) -> Self {
        Self { node, ..Self::default() }
    }

    pub(crate) fn is_local(&self, workload: &Workload) -> bool {
        self.node.as_ref().is_none_or(|node| *node == workload.node)
    }

    /// Adds a workload, replacing the one of the same uid.
    pub(crate) fn upsert(&mut self, workload: Arc<Workload>) {
        if let Some(previous) = self.by_uid.insert(workload.uid.clone(), workload.clone()) {
            self.unindex(&previous, Some(&workload));
        }
        for address in workload.indexed_addresses() {
            self.by_address.get_or_default(&address).put(Candidate(workload.clone()));
        }
        if let Some(key) = hostname_key(&workload) {
            self.by_hostname.get_or_default(&key).put(Candidate(workload.clone()));
        }
        if self.is_local(&workload) {
            self.local.get_or_default(&account_key(&workload)).put(Candidate(workload.clone()));
        }
        for (service, (host, _)) in (0..).zip(workload.services.iter()) {
            self.endpoints.get_or_default(host).put(Endpoint::new(&workload, service));
        }
    }

    /// Takes out the workload called `uid`.
    pub(crate) fn remove(&mut self, uid: &str) -> Option<Arc<Workload>> {
        let workload = self.by_uid.remove(uid)?;
        self.unindex(&workload, None);
        Some(workload)
    }

    /// Takes `workload` out of the indices. Endpoints stay that `successor`, the next version of the same workload, is
    /// going to replace where they stand.
    fn unindex(&mut self, workload: &Arc<Workload>, successor: Option<&Arc<Workload>>) {
        let candidate = Candidate(workload.clone());
        for address in workload.indexed_addresses() {
            take_from(&mut self.by_address, &address, &candidate);
        }
        if let Some(key) = hostname_key(workload) {
            take_from(&mut self.by_hostname, &key, &candidate);
        }
        take_from(&mut self.local, &account_key(workload), &candidate);
        for (service, (host, _)) in (0..).zip(workload.services.iter()) {
            let endpoint = Endpoint::new(workload, service);
            let is_replaced = |successor| {
                let next = endpoint_of(successor, host);
                next.is_some_and(|next| next.shares_place_with(&endpoint))
            };
            if !successor.is_some_and(is_replaced) {
                self.take_endpoint(host, &endpoint);
            }
        }
    }

    fn take_endpoint(&mut self, host: &NamespacedHostname, endpoint: &Endpoint) {
        if self.endpoints.get(host).is_none() {
            return;
        }
        let endpoints = self.endpoints.get_or_default(host);
        endpoints.take(endpoint);
        if endpoints.is_empty() {
            self.endpoints.remove(host);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_uid.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_uid.iter().map(|(_, workload)| workload)
    }

    pub(crate) fn by_uid(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.by_uid.get(uid)
    }

    pub(crate) fn by_address(&self, network: &str, address: IpAddr) -> Option<&Arc<Workload>> {
        first(self.by_address.get(&(network, address))?)
    }

    pub(crate) fn by_hostname(&self, host: &NamespacedHostname) -> Option<&Arc<Workload>> {
        first(self.by_hostname.get(host)?)
    }

    /// This node's workloads with the given namespace and service account, best candidate first.
    pub(crate) fn local(
        &self,
        namespace: &str,
        service_account: &str,
    ) -> impl Iterator<Item = &Arc<Workload>> {
        let list = self.local.get(&(namespace, service_account)).into_iter();
        list.flat_map(CowList::iter).map(|candidate| &candidate.0)
    }

    /// All workloads of this node.
    pub(crate) fn all_local(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.local.iter().flat_map(|(_, list)| list.iter().map(|candidate| &candidate.0))
    }

    /// The workloads that name the service `host`.
    pub(crate) fn endpoints_of(&self, host: &NamespacedHostname) -> impl Iterator<Item = EndpointRef<'_>> {
        self.endpoints.get(host).into_iter().flat_map(Endpoints::iter)
    }

    /// The workloads that name the service `host`, by what load balancing asks of them.
    pub(crate) fn endpoint_groups<'a>(
        &'a self,
        host: &NamespacedHostname,
    ) -> impl Iterator<Item = &'a Group> + use<'a> {
        self.endpoints.get(host).into_iter().flat_map(Endpoints::groups)
    }

    /// Every service name that some workload names.
    pub(crate) fn named_services(&self) -> impl Iterator<Item = &NamespacedHostname> {
        self.endpoints.iter().map(|(host, _)| host)
    }
}

impl Ranked for Candidate {
    fn rank(&self, other: &Self) -> Ordering {
        fn key(Candidate(workload): &Candidate) -> impl Ord {
            let is_healthy = workload.health == Health::Healthy;
            Reverse((workload.is_pod(), workload.tunnel_protocol == TunnelProtocol::Hbone, is_healthy))
        }
        key(self).cmp(&key(other)).then_with(|| self.0.uid.cmp(&other.0.uid))
    }
}

fn first(list: &CowList<Candidate>) -> Option<&Arc<Workload>> {
    list.iter().next().map(|candidate| &candidate.0)
}

/// Takes `item` out of the list under `key`, and the list out of `index` once it is empty.
fn take_from<K, T>(index: &mut CowMap<K, CowList<T>>, key: &K, item: &T)
where
    K: Clone + Eq + std::hash::Hash,
    T: Clone + Ranked,
{
    // Looked up first: to get a list for writing copies the way to it.
    if index.get(key).is_none() {
        return;
    }
    let list = index.get_or_default(key);
    list.take(item);
    if list.is_empty() {
        index.remove(key);
    }
}

/// `workload` as an endpoint of `host`, when it is one.
fn endpoint_of(workload: &Arc<Workload>, host: &NamespacedHostname) -> Option<Endpoint> {
    let (service, _) = (0..).zip(workload.services.iter()).find(|(_, (name, _))| name == host)?;
    Some(Endpoint::new(workload, service))
}

fn hostname_key(workload: &Workload) -> Option<NamespacedHostname> {
    (!workload.hostname.is_empty()).then(|| NamespacedHostname {
        namespace: workload.namespace.clone(),
        hostname: workload.hostname.clone(),
    })
}

fn account_key(workload: &Workload) -> (Arc<str>, Arc<str>) {
    (workload.namespace.clone(), workload.service_account.clone())
}

#[cfg(test)]
mod tests;
