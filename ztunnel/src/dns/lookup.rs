//! What the mesh says of a name: a pure function over one view of it.

use std::net::IpAddr;
use std::sync::Arc;

use super::names::{Alias, aliases, with_wildcards};
use crate::state::model::{Health, HealthPolicy, NamespacedHostname, Service, Workload};
use crate::state::route::Family;
use crate::state::{EndpointRef, Mesh, Owner};

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// The workload whose pod it is: its namespace decides what is visible, its network which addresses are of use.
    pub workload: &'a Workload,
    /// Domains that the client's resolver may have appended, in lower case.
    pub search: &'a [Arc<str>],
}

/// What does not depend on who asks.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// The cluster's domain, in lower case.
    pub(crate) domain: Arc<str>,
    /// Namespace preferred after the client's own and canonical services.
    pub(crate) preferred: Option<Arc<str>>,
    /// Whether IPv6 addresses are given out.
    pub(crate) ipv6: bool,
}

/// A name that the mesh knows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Found {
    /// How many labels of the name asked for make the name that owns the addresses, if that is not the whole name.
    pub(crate) canonical: Option<usize>,
    /// What there is of the family asked for.
    pub(crate) addresses: Addresses,
}

/// The addresses of one family behind a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Addresses {
    /// Never any: the service, or this proxy, does not have the family.
    Unsupported,
    /// These, at the moment.
    Some(Vec<IpAddr>),
}

impl Rules {
    /// Looks up `name`, in lower case and without the final dot. `None`: it is not of the mesh.
    pub(crate) fn find(&self, mesh: &Mesh, client: Client<'_>, name: &str, family: Family) -> Option<Found> {
        let aliases = aliases(name, &client.workload.namespace, &self.domain, client.search);
        let service = aliases.iter().find_map(|alias| {
            with_wildcards(&alias.name).find_map(|candidate| self.service(mesh, client, &candidate, alias))
        });
        if let Some((service, canonical)) = service {
            let addresses = self.addresses(mesh, client, service, family);
            return Some(Found { canonical, addresses });
        }
        let addresses = self.endpoint(mesh, client, &aliases, family)?;
        Some(Found { canonical: None, addresses })
    }

    /// The best service called `candidate` that the client may see, and under how many labels of the name it is answered.
    fn service<'a>(
        &self,
        mesh: &'a Mesh,
        client: Client<'_>,
        candidate: &str,
        alias: &Alias,
    ) -> Option<(&'a Arc<Service>, Option<usize>)> {
        let namespace = Some(&*client.workload.namespace);
        let resolvable = |service: &Service| !service.vips.is_empty() || self.is_of_the_cluster(service);
        let preferred = self.preferred.as_deref();
        let service = mesh.service_by_hostname_where(candidate, namespace, preferred, resolvable)?;
        let is_wildcard = service.host.hostname.starts_with("*.");
        Some((service, alias.stripped.filter(|_| !is_wildcard)))
    }

    /// True for the services of Kubernetes. Without virtual addresses, such a one is headless; any other has nothing that
    /// could be given out.
    fn is_of_the_cluster(&self, service: &Service) -> bool {
        let rest = service.host.hostname.strip_suffix(&*self.domain);
        rest.is_some_and(|rest| rest.ends_with(".svc."))
    }

    fn addresses(&self, mesh: &Mesh, client: Client<'_>, service: &Service, family: Family) -> Addresses {
        if !self.gives_out(family) || !service.ip_families.allows(unspecified(family)) {
            return Addresses::Unsupported;
        }
        if service.vips.is_empty() {
            let endpoints = usable(mesh, service);
            let first = |endpoint: EndpointRef<'_>| first_of(endpoint.workload, family);
            return Addresses::Some(endpoints.filter_map(first).collect());
        }
        let of_client = service.vips.iter().filter(|vip| vip.network == client.workload.network);
        Addresses::Some(of_client.map(|vip| vip.address).filter(|vip| is_of(*vip, family)).collect())
    }

    /// The addresses of a single workload: one endpoint of a headless service, by its own name in front of the service's,
    /// or a workload of the client's namespace that says its hostname and has addresses.
    fn endpoint(
        &self,
        mesh: &Mesh,
        client: Client<'_>,
        aliases: &[Alias],
        family: Family,
    ) -> Option<Addresses> {
        let namespace = &*client.workload.namespace;
        let of_headless = aliases.iter().find_map(|alias| {
            let (label, host) = alias.name.split_once('.')?;
            let headless = |service: &Service| service.vips.is_empty() && self.is_of_the_cluster(service);
            let service = mesh.service_by_hostname_where(host, Some(namespace), None, headless)?;
            usable(mesh, service).find(|endpoint| *endpoint.workload.name == *label)
        });
        let workload = match of_headless {
            Some(endpoint) => endpoint.workload,
            None => {
                let name = &aliases.first()?.name;
                let host = NamespacedHostname { namespace: namespace.into(), hostname: name.as_str().into() };
                match mesh.find_hostname(&host)? {
                    Owner::Workload(workload) if !workload.addresses.is_empty() => workload,
                    Owner::Workload(_) | Owner::Service(_) => return None,
                }
            }
        };
        if !self.gives_out(family) {
            return Some(Addresses::Unsupported);
        }
        Some(Addresses::Some(first_of(workload, family).into_iter().collect()))
    }

    fn gives_out(&self, family: Family) -> bool {
        self.ipv6 || family == Family::Ipv4
    }
}

/// The endpoints that connections may go to.
fn usable<'a>(mesh: &'a Mesh, service: &'a Service) -> impl Iterator<Item = EndpointRef<'a>> {
    let all = service.load_balancer.health_policy == HealthPolicy::AllowAll;
    mesh.endpoints(service).filter(move |endpoint| all || endpoint.health == Health::Healthy)
}

fn first_of(workload: &Workload, family: Family) -> Option<IpAddr> {
    workload.addresses.iter().copied().find(|address| is_of(*address, family))
}

fn is_of(address: IpAddr, family: Family) -> bool {
    address.is_ipv4() == (family == Family::Ipv4)
}

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => IpAddr::from([0; 4]),
        Family::Ipv6 => IpAddr::from([0; 16]),
    }
}
