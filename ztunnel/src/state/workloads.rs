//! Workloads and everything they are found by.

use std::net::IpAddr;
use std::sync::Arc;

use super::cow_map::CowMap;
use super::model::{Health, NamespacedHostname, NetworkAddress, PortMap, TunnelProtocol, Workload};

/// All workloads. Removing one leaves no trace of it in any index.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workloads {
    /// The node whose workloads are local; without it all are.
    node: Option<Arc<str>>,
    by_uid: CowMap<Arc<str>, Arc<Workload>>,
    /// Best candidate first.
    by_address: CowMap<NetworkAddress, List>,
    /// First inserted first.
    by_hostname: CowMap<NamespacedHostname, List>,
    /// Workloads of this node by (namespace, service account); best candidate first.
    local: CowMap<(Arc<str>, Arc<str>), List>,
    /// The workloads that name a service, whether or not that service is known yet.
    endpoints: CowMap<NamespacedHostname, Arc<Vec<Endpoint>>>,
}

type List = Arc<Vec<Arc<Workload>>>;

/// A workload as an endpoint of the `service`-th of its services.
#[derive(Clone, Debug)]
struct Endpoint {
    workload: Arc<Workload>,
    service: u32,
}

/// What a service knows of one of its endpoints.
#[derive(Clone, Copy, Debug)]
pub struct EndpointRef<'a> {
    /// The workload behind it.
    pub workload: &'a Arc<Workload>,
    /// Its ports for this service.
    pub ports: &'a PortMap,
    /// Its health for this service.
    pub health: Health,
}

impl Workloads {
    pub(crate) fn new(node: Option<Arc<str>>) -> Self {
        Self { node, ..Self::default() }
    }

    pub(crate) fn is_local(&self, workload: &Workload) -> bool {
        self.node.as_ref().is_none_or(|node| *node == workload.node)
    }

    /// Adds a workload, replacing the one of the same uid.
    pub(crate) fn upsert(&mut self, workload: Arc<Workload>) {
        self.remove(&workload.uid);
        self.by_uid.insert(workload.uid.clone(), workload.clone());
        for address in workload.indexed_addresses() {
            insert_ranked(self.by_address.get_or_default(&address), &workload);
        }
        if let Some(key) = hostname_key(&workload) {
            Arc::make_mut(self.by_hostname.get_or_default(&key)).push(workload.clone());
        }
        if self.is_local(&workload) {
            insert_ranked(self.local.get_or_default(&account_key(&workload)), &workload);
        }
        for (service, (host, _)) in (0..).zip(workload.services.iter()) {
            let workload = workload.clone();
            Arc::make_mut(self.endpoints.get_or_default(host)).push(Endpoint { workload, service });
        }
    }

    /// Takes out the workload called `uid`.
    pub(crate) fn remove(&mut self, uid: &str) -> Option<Arc<Workload>> {
        let workload = self.by_uid.remove(uid)?;
        for address in workload.indexed_addresses() {
            remove_from(&mut self.by_address, &address, |other| Arc::ptr_eq(other, &workload));
        }
        if let Some(key) = hostname_key(&workload) {
            remove_from(&mut self.by_hostname, &key, |other| Arc::ptr_eq(other, &workload));
        }
        let account = account_key(&workload);
        remove_from(&mut self.local, &account, |other| Arc::ptr_eq(other, &workload));
        for (host, _) in &workload.services {
            remove_from(&mut self.endpoints, host, |endpoint| Arc::ptr_eq(&endpoint.workload, &workload));
        }
        Some(workload)
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
        self.by_address.get(&(network, address))?.first()
    }

    pub(crate) fn by_hostname(&self, host: &NamespacedHostname) -> Option<&Arc<Workload>> {
        self.by_hostname.get(host)?.first()
    }

    /// This node's workloads with the given namespace and service account.
    pub(crate) fn local(&self, namespace: &str, service_account: &str) -> &[Arc<Workload>] {
        self.local.get(&(namespace, service_account)).map_or(&[], |list| list.as_slice())
    }

    /// The workloads that name the service `host`.
    pub(crate) fn endpoints_of(&self, host: &NamespacedHostname) -> impl Iterator<Item = EndpointRef<'_>> {
        self.endpoints.get(host).into_iter().flat_map(|endpoints| endpoints.iter()).map(Endpoint::view)
    }

    /// Every service name that some workload names.
    pub(crate) fn named_services(&self) -> impl Iterator<Item = &NamespacedHostname> {
        self.endpoints.iter().map(|(host, _)| host)
    }
}

impl Endpoint {
    fn view(&self) -> EndpointRef<'_> {
        EndpointRef {
            workload: &self.workload,
            ports: &self.workload.services[self.service as usize].1,
            health: self.workload.health,
        }
    }
}

/// Pods before other workloads, HBONE before plain TCP, later ones before earlier ones.
fn insert_ranked(list: &mut List, workload: &Arc<Workload>) {
    let rank = |workload: &Workload| (workload.is_pod(), workload.tunnel_protocol == TunnelProtocol::Hbone);
    let list = Arc::make_mut(list);
    // A workload may list one address twice.
    list.retain(|other| !Arc::ptr_eq(other, workload));
    let at = list.partition_point(|other| rank(other) > rank(workload));
    list.insert(at, workload.clone());
}

/// Removes the matching items of the list under `key`, and the list itself once it is empty.
fn remove_from<K, T>(index: &mut CowMap<K, Arc<Vec<T>>>, key: &K, is_gone: impl Fn(&T) -> bool)
where
    K: Clone + Eq + std::hash::Hash,
    T: Clone,
{
    if !index.get(key).is_some_and(|list| list.iter().any(&is_gone)) {
        return;
    }
    let list = Arc::make_mut(index.get_or_default(key));
    list.retain(|item| !is_gone(item));
    if list.is_empty() {
        index.remove(key);
    }
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
