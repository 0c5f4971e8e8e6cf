//! One consistent view of the mesh.

use std::net::IpAddr;
use std::sync::Arc;

use super::endpoints::{EndpointRef, Group};
use super::model::{
    Destination, GatewayAddress, NamespacedHostname, NetworkAddress, NetworkCidr, PortMap, Service, Workload,
};
use super::services::{self, Services};
use super::workloads::Workloads;
use crate::policy::{Policies, Policy, PolicySet};

/// All workloads, services and policies at one moment.
///
/// A clone costs a few reference counts and shares everything until one of the two changes; changing one resource
/// copies the path to it and nothing else. To everybody but the one who is changing it, a mesh is immutable.
///
/// Resources may arrive in any order: an endpoint is found through its service as soon as both are known.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    workloads: Workloads,
    services: Services,
    policies: Policies,
    /// Addresses of resources that were rejected, as placeholders whose hostname is the resource's name.
    rejected: Services,
}

/// Who owns an address or a hostname.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    /// A workload has it.
    Workload(&'a Arc<Workload>),
    /// A service has it, as virtual address or hostname.
    Service(&'a Arc<Service>),
}

/// What a resource name stood for.
#[derive(Clone, Debug)]
pub enum Removed {
    /// A workload. If it was local and [`Mesh::has_local_account`] is false now, its certificate is no longer needed.
    Workload(Arc<Workload>),
    /// A service.
    Service(Arc<Service>),
}

/// Lookups. None of them allocates.
impl Mesh {
    /// The workload with this uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.by_uid(uid)
    }

    /// The workload that has this address. Of several: pods first, then those that speak HBONE, then healthy ones, then
    /// the lowest uid: whatever order they came in, every node finds the same one. Host-network workloads have no address of their own and are never found.
    pub fn workload_by_address(&self, network: &str, address: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads.by_address(network, address)
    }

    /// This node's workload with exactly these names; never looked up by address, which another pod could have taken.
    pub fn local_workload(
        &self,
        name: &str,
        namespace: &str,
        service_account: &str,
    ) -> Option<&Arc<Workload>> {
        self.workloads.local(namespace, service_account).find(|workload| &*workload.name == name)
    }

    /// True while some workload of this node has this namespace and service account.
    pub fn has_local_account(&self, namespace: &str, service_account: &str) -> bool {
        self.workloads.local(namespace, service_account).next().is_some()
    }

    /// All workloads of this node, in no particular order; costs as much as they are. Without a node that is everybody.
    pub fn local_workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.all_local()
    }

    /// True when `workload` runs on this node.
    pub fn is_local(&self, workload: &Workload) -> bool {
        self.workloads.is_local(workload)
    }

    /// The service with this primary key; visibility is not asked.
    pub fn service(&self, namespace: &str, hostname: &str) -> Option<&Arc<Service>> {
        self.services.exact(namespace, hostname)
    }

    /// The service that clients in the namespace `client` reach under `hostname`: their own namespace's, else a
    /// canonical one, else that of the namespace `preferred` (for DNS), else that of the lowest namespace. With no
    /// client, visibility is not enforced.
    pub fn service_by_hostname(
        &self,
        hostname: &str,
        client: Option<&str>,
        preferred: Option<&str>,
    ) -> Option<&Arc<Service>> {
        self.services.by_hostname(hostname, client, preferred)
    }

    /// As [`service_by_hostname`](Self::service_by_hostname), of the services for which `select` holds.
    pub fn service_by_hostname_where(
        &self,
        hostname: &str,
        client: Option<&str>,
        preferred: Option<&str>,
        select: impl Fn(&Service) -> bool,
    ) -> Option<&Arc<Service>> {
        self.services.by_hostname_where(hostname, client, preferred, select)
    }

    /// The service that clients in the namespace `client` reach under a virtual address.
    ///
    /// Exact addresses come before ranges, unless every service with the exact address is invisible. Among exact
    /// owners: the client's namespace, then a canonical one, then the lowest by namespace and hostname. Among ranges: the
    /// client's namespace, then the longest prefix, then a canonical one, then the lowest by namespace and hostname. With
    /// no client, visibility is not enforced.
    pub fn service_by_vip(
        &self,
        network: &str,
        address: IpAddr,
        client: Option<&str>,
    ) -> Option<&Arc<Service>> {
        self.services.by_vip(network, address, client)
    }

    /// Who has `address`: a workload, else a service visible to `client`.
    pub fn find_address(&self, network: &str, address: IpAddr, client: Option<&str>) -> Option<Owner<'_>> {
        self.workload_by_address(network, address)
            .map(Owner::Workload)
            .or_else(|| self.service_by_vip(network, address, client).map(Owner::Service))
    }

    /// Who is called `host`: that very service, else the first workload with this hostname and namespace.
    pub fn find_hostname(&self, host: &NamespacedHostname) -> Option<Owner<'_>> {
        self.service(&host.namespace, &host.hostname)
            .map(Owner::Service)
            .or_else(|| self.workloads.by_hostname(host).map(Owner::Workload))
    }

    /// Who a reference to a waypoint or network gateway means; visibility is not asked.
    pub fn find_gateway(&self, reference: &GatewayAddress) -> Option<Owner<'_>> {
        match &reference.destination {
            Destination::Address(at) => self.find_address(&at.network, at.address, None),
            Destination::Hostname(host) => self.find_hostname(host),
        }
    }

    /// The name of the rejected resource that claims `address`, where no accepted resource does. What it would have said
    /// of that address is not known, so nothing may be sent there as if nobody had said anything.
    pub fn rejected_at(&self, network: &str, address: IpAddr) -> Option<&Arc<str>> {
        if self.rejected.is_empty() {
            return None;
        }
        let claim = self.rejected.by_vip(network, address, None)?;
        let is_exact = |service: &Service| {
            service.vips.iter().any(|vip| vip.address == address && *vip.network == *network)
        };
        let owned = match self.find_address(network, address, None) {
            Some(Owner::Workload(_)) => true,
            // A range says little of an address that somebody claims for themselves.
            Some(Owner::Service(service)) => is_exact(service) || !is_exact(claim),
            None => false,
        };
        (!owned).then_some(&claim.host.hostname)
    }

    /// The ports under which `workload` is an endpoint of `service`, when it is one.
    pub fn endpoint_ports<'a>(&self, service: &'a Service, workload: &'a Workload) -> Option<&'a PortMap> {
        let explicit = || service.endpoints.iter().find(|endpoint| endpoint.workload_uid == workload.uid);
        workload.ports_for(&service.host).or_else(|| explicit().map(|endpoint| &endpoint.ports))
    }

    /// Every known workload behind `service`, healthy or not, each once.
    pub fn endpoints<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = EndpointRef<'a>> {
        self.workloads.endpoints_of(&service.host).chain(self.explicit_endpoints(service))
    }

    /// The workloads that name `service` themselves, by what load balancing asks of them.
    pub(crate) fn endpoint_groups<'a>(
        &'a self,
        service: &Service,
    ) -> impl Iterator<Item = &'a Group> + use<'a> {
        self.workloads.endpoint_groups(&service.host)
    }

    /// The workloads that `service` names, without those that name it.
    pub(crate) fn explicit_endpoints<'a>(
        &'a self,
        service: &'a Service,
    ) -> impl Iterator<Item = EndpointRef<'a>> {
        service.endpoints.iter().filter_map(|endpoint| {
            let workload = self.workload(&endpoint.workload_uid)?;
            // What the workload says of itself takes precedence.
            workload.ports_for(&service.host).is_none().then_some(EndpointRef {
                workload,
                ports: &endpoint.ports,
                health: endpoint.health,
            })
        })
    }

    /// The known services that `workload` names as its own.
    pub fn services_of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<Service>> {
        workload.services.iter().filter_map(|(host, _)| self.service(&host.namespace, &host.hostname))
    }

    /// The policy with this key.
    pub fn policy(&self, key: &str) -> Option<&Arc<Policy>> {
        self.policies.by_key(key)
    }

    /// Another number after every change of a policy.
    pub(crate) fn policies_version(&self) -> u64 {
        self.policies.version()
    }

    /// The policies that decide on connections to `workload`.
    pub fn policies_for<'a>(&'a self, workload: &'a Workload) -> PolicySet<'a> {
        self.policies.applying_to(&workload.namespace, &workload.authorization_policies)
    }
}

/// Everything, for dumps. No particular order.
impl Mesh {
    /// The number of workloads.
    pub fn workload_count(&self) -> usize {
        self.workloads.len()
    }

    /// All workloads.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter()
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    /// All policies.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter()
    }

    /// The services that workloads name but that are not known yet, with the endpoints waiting for them.
    pub fn staged_services(
        &self,
    ) -> impl Iterator<Item = (&NamespacedHostname, impl Iterator<Item = EndpointRef<'_>>)> {
        self.workloads
            .named_services()
            .filter(|host| self.service(&host.namespace, &host.hostname).is_none())
            .map(|host| (host, self.workloads.endpoints_of(host)))
    }
}

/// Changes. An upsert replaces the previous version of the same resource completely.
impl Mesh {
    /// An empty mesh as seen from `node`; without a node every workload is taken for local.
    pub fn new(node: Option<Arc<str>>) -> Self {
        Self { workloads: Workloads::new(node), ..Self::default() }
    }

    /// Adds or replaces a workload; the key is its uid.
    pub fn upsert_workload(&mut self, workload: Arc<Workload>) {
        self.workloads.upsert(workload);
    }

    /// Adds or replaces a service; the key is its namespace and hostname.
    pub fn upsert_service(&mut self, service: Arc<Service>) {
        self.services.upsert(service);
    }

    /// Adds or replaces a policy; the key is its namespace and name.
    pub fn upsert_policy(&mut self, policy: Arc<Policy>) {
        self.policies.upsert(policy);
    }

    /// Remembers which addresses the rejected resource `name` claims; see [`rejected_at`](Self::rejected_at). An earlier
    /// claim under the same name is replaced. No addresses: nothing is remembered.
    pub(crate) fn reject(
        &mut self,
        name: &Arc<str>,
        vips: Box<[NetworkAddress]>,
        cidr_vips: Box<[NetworkCidr]>,
    ) {
        if vips.is_empty() && cidr_vips.is_empty() {
            self.pardon(name);
            return;
        }
        let host = NamespacedHostname { namespace: Arc::default(), hostname: name.clone() };
        self.rejected.upsert(Arc::new(Service { host, vips, cidr_vips, ..Service::default() }));
    }

    /// The resource `name` has been accepted, or is gone.
    ///
    /// Returns whether addresses were remembered for it.
    pub(crate) fn pardon(&mut self, name: &str) -> bool {
        !self.rejected.is_empty() && self.rejected.remove("", name).is_some()
    }

    /// Removes the workload or service that an `Address` resource of this name described: a uid, else
    /// `namespace/hostname`. An unknown name changes nothing.
    pub fn remove_address(&mut self, resource_name: &str) -> Option<Removed> {
        if let Some(workload) = self.workloads.remove(resource_name) {
            return Some(Removed::Workload(workload));
        }
        let (namespace, hostname) = services::parse_key(resource_name)?;
        self.services.remove(namespace, hostname).map(Removed::Service)
    }

    /// Removes the policy `namespace/name`.
    pub fn remove_policy(&mut self, key: &str) -> Option<Arc<Policy>> {
        self.policies.remove(key)
    }
}
