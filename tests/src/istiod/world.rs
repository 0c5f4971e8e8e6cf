//! What the scripted istiod knows of the mesh: resources by name, with their versions and aliases.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;

use anyhow::Context as _;
use bytes::Bytes;
use xds_client::ResourceType;
use xds_client::discovery::Resource;
use xds_client::prost::Message as _;
use xds_client::prost_types::Any;
use xds_client::security::Authorization;
use xds_client::workload::{Address, Port, PortList, Service, TunnelProtocol, Workload, address};

use super::resources::{hostname, network_address, pod_uid, service_key, service_of, workload_of};
use crate::{Pod, Result};

/// Workloads, services and policies under their names on the wire.
///
/// Changes are noted, and go out together: see [`ScriptedIstiod::push`](super::ScriptedIstiod::push).
#[derive(Default)]
pub struct World {
    addresses: BTreeMap<String, Stored>,
    policies: BTreeMap<String, Stored>,
    touched: Touched,
}

/// Names that have changed since the last push, by type.
pub(super) type Touched = BTreeSet<(ResourceType, String)>;

struct Stored {
    content: Content,
    /// None: the resource has no payload at all, which no decent server sends.
    payload: Option<Bytes>,
    version: String,
}

enum Content {
    Workload(Box<Workload>),
    Service(Box<Service>),
    Policy,
    Raw,
}

impl World {
    /// Adds a pod that is in the mesh.
    pub fn enrol(&mut self, pod: &Pod) {
        self.set_workload(workload_of(pod));
    }

    /// Adds a pod that the mesh knows but that is not in it.
    pub fn outsider(&mut self, pod: &Pod) {
        let mut workload = workload_of(pod);
        workload.set_tunnel_protocol(TunnelProtocol::None);
        self.set_workload(workload);
    }

    /// Adds the service `name` at the given addresses, which takes connections to the first port of the pair to the
    /// second one of all `replicas`.
    pub fn service(
        &mut self,
        name: &str,
        vips: &[IpAddr],
        port: (u16, u16),
        replicas: &[&Pod],
    ) -> Result<()> {
        let ports = [Port { service_port: port.0.into(), target_port: port.1.into(), ..Port::default() }];
        for replica in replicas {
            self.change_workload(replica, |workload| {
                workload.services.insert(service_key(name), PortList { ports: ports.to_vec() });
            })?;
        }
        self.set_service(service_of(name, vips, &ports));
        Ok(())
    }

    /// Adds or replaces a workload under its uid.
    pub fn set_workload(&mut self, workload: Workload) {
        let message = Address { r#type: Some(address::Type::Workload(workload.clone())) };
        let name = workload.uid.clone();
        self.store(
            ResourceType::Address,
            name,
            Content::Workload(Box::new(workload)),
            Some(message.encode_to_vec()),
        );
    }

    /// Adds or replaces a service under `namespace/hostname`. As istiod does, its workloads are sent again with it.
    pub fn set_service(&mut self, service: Service) {
        let message = Address { r#type: Some(address::Type::Service(service.clone())) };
        let name = format!("{}/{}", service.namespace, service.hostname);
        self.touch_workloads_of(&name);
        self.store(
            ResourceType::Address,
            name,
            Content::Service(Box::new(service)),
            Some(message.encode_to_vec()),
        );
    }

    /// Adds or replaces a policy under `namespace/name`.
    pub fn set_policy(&mut self, policy: &Authorization) {
        let name = format!("{}/{}", policy.namespace, policy.name);
        self.store(ResourceType::Authorization, name, Content::Policy, Some(policy.encode_to_vec()));
    }

    /// Adds or replaces a resource by its bytes, which need not make sense. None: a resource without payload.
    pub fn set_raw(&mut self, kind: ResourceType, name: &str, payload: Option<Vec<u8>>) {
        self.store(kind, name.to_owned(), Content::Raw, payload);
    }

    /// Changes the workload of a pod that has been added.
    pub fn change_workload(&mut self, pod: &Pod, change: impl FnOnce(&mut Workload)) -> Result<()> {
        let stored = self.addresses.get(&pod_uid(pod));
        let Some(Content::Workload(workload)) = stored.map(|stored| &stored.content) else {
            anyhow::bail!("{} is not in the mesh of the scripted istiod", pod.name());
        };
        let mut workload = workload.clone();
        change(&mut workload);
        self.set_workload(*workload);
        Ok(())
    }

    /// Changes the service `name` of the laboratory's namespace.
    pub fn change_service(&mut self, name: &str, change: impl FnOnce(&mut Service)) -> Result<()> {
        let stored = self.addresses.get(&service_key(name));
        let Some(Content::Service(service)) = stored.map(|stored| &stored.content) else {
            anyhow::bail!("{} is no service of the scripted istiod", hostname(name));
        };
        let mut service = service.clone();
        change(&mut service);
        self.set_service(*service);
        Ok(())
    }

    /// Removes a pod's workload.
    pub fn remove_pod(&mut self, pod: &Pod) {
        self.remove(ResourceType::Address, &pod_uid(pod));
    }

    /// Removes the service `name` of the laboratory's namespace, from its workloads too.
    pub fn remove_service(&mut self, name: &str) {
        let key = service_key(name);
        for uid in self.workloads_of(&key) {
            if let Some(Content::Workload(workload)) = self.addresses.get(&uid).map(|stored| &stored.content)
            {
                let mut workload = workload.clone();
                workload.services.remove(&key);
                self.set_workload(*workload);
            }
        }
        self.remove(ResourceType::Address, &key);
    }

    /// Removes a policy of the laboratory's namespace.
    pub fn remove_policy(&mut self, name: &str) {
        self.remove(ResourceType::Authorization, &service_namespaced(name));
    }

    /// Removes the resource under this name, whatever it is. It is announced as removed even if there was none.
    pub fn remove(&mut self, kind: ResourceType, name: &str) {
        self.map_mut(kind).remove(name);
        self.touched.insert((kind, name.to_owned()));
    }

    /// Announces a resource with the next push although it has not changed.
    pub fn touch(&mut self, kind: ResourceType, name: &str) {
        self.touched.insert((kind, name.to_owned()));
    }

    /// How many resources of the type there are.
    pub fn count(&self, kind: ResourceType) -> usize {
        self.map(kind).len()
    }

    /// The version under which a resource goes out. Policies have none.
    pub fn version(&self, kind: ResourceType, name: &str) -> Result<&str> {
        let stored = self.map(kind).get(name);
        Ok(stored.with_context(|| format!("there is no {name}"))?.version.as_str())
    }

    fn store(&mut self, kind: ResourceType, name: String, content: Content, payload: Option<Vec<u8>>) {
        // istiod gives versions to addresses only.
        let version = match kind {
            ResourceType::Address => version_of(payload.as_deref().unwrap_or_default()),
            ResourceType::Authorization => String::new(),
        };
        self.touched.insert((kind, name.clone()));
        self.map_mut(kind).insert(name, Stored { content, payload: payload.map(Bytes::from), version });
    }

    fn touch_workloads_of(&mut self, service: &str) {
        for uid in self.workloads_of(service) {
            self.touched.insert((ResourceType::Address, uid));
        }
    }

    fn map(&self, kind: ResourceType) -> &BTreeMap<String, Stored> {
        match kind {
            ResourceType::Address => &self.addresses,
            ResourceType::Authorization => &self.policies,
        }
    }

    fn map_mut(&mut self, kind: ResourceType) -> &mut BTreeMap<String, Stored> {
        match kind {
            ResourceType::Address => &mut self.addresses,
            ResourceType::Authorization => &mut self.policies,
        }
    }
}

/// What the streams ask of it.
impl World {
    /// What has changed since this was last asked.
    pub(super) fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    pub(super) fn names(&self, kind: ResourceType) -> impl Iterator<Item = &String> {
        self.map(kind).keys()
    }

    pub(super) fn contains(&self, kind: ResourceType, name: &str) -> bool {
        self.map(kind).contains_key(name)
    }

    /// Whether the client's version is the current one. An empty version never is.
    pub(super) fn is_current(&self, kind: ResourceType, name: &str, version: &str) -> bool {
        !version.is_empty() && self.map(kind).get(name).is_some_and(|stored| stored.version == version)
    }

    /// The resource as it goes out.
    pub(super) fn resource(&self, kind: ResourceType, name: &str, aliases: Aliases) -> Option<Resource> {
        let stored = self.map(kind).get(name)?;
        let payload = stored
            .payload
            .as_ref()
            .map(|payload| Any { type_url: kind.url().to_owned(), value: payload.to_vec() });
        let aliases = match aliases {
            Aliases::Omitted => Vec::new(),
            Aliases::Listed => stored.aliases(),
        };
        Some(Resource {
            version: stored.version.clone(),
            resource: payload,
            name: name.to_owned(),
            aliases,
            ..Resource::default()
        })
    }

    /// The workloads on a node.
    pub(super) fn on_node(&self, node: &str) -> BTreeSet<String> {
        self.select(|stored| matches!(&stored.content, Content::Workload(workload) if workload.node == node))
    }

    /// The names under which what a client has demanded goes out: itself, or whatever has that address, and with a
    /// service all its workloads. Nothing if the name leads nowhere.
    pub(super) fn resolve(&self, demanded: &str) -> BTreeSet<String> {
        let mut found = self.select(|stored| stored.aliases().iter().any(|alias| alias == demanded));
        if self.addresses.contains_key(demanded) {
            found.insert(demanded.to_owned());
        }
        let services = found.iter().filter(|name| {
            self.addresses.get(*name).is_some_and(|stored| matches!(stored.content, Content::Service(_)))
        });
        let workloads: Vec<_> = services.flat_map(|service| self.workloads_of(service)).collect();
        found.extend(workloads);
        found
    }

    /// Whether a touched name concerns a client that has demanded `names` and lives on `node`.
    pub(super) fn concerns(&self, touched: &str, names: &BTreeSet<String>, node: &str) -> bool {
        if names.contains(touched) {
            return true;
        }
        let Some(stored) = self.addresses.get(touched) else { return false };
        let local = matches!(&stored.content, Content::Workload(workload) if workload.node == node);
        local || stored.aliases().iter().any(|alias| names.contains(alias))
    }

    /// Whether a pod of this namespace and account runs on the node, or anywhere if none is given.
    pub(super) fn runs(&self, namespace: &str, account: &str, node: Option<&str>) -> bool {
        self.addresses.values().any(|stored| {
            let Content::Workload(workload) = &stored.content else { return false };
            workload.namespace == namespace
                && workload.service_account == account
                && node.is_none_or(|node| workload.node == node)
        })
    }

    fn workloads_of(&self, service: &str) -> BTreeSet<String> {
        self.select(|stored| {
            matches!(&stored.content, Content::Workload(workload) if workload.services.contains_key(service))
        })
    }

    fn select(&self, wanted: impl Fn(&Stored) -> bool) -> BTreeSet<String> {
        let matching = self.addresses.iter().filter(|(_, stored)| wanted(stored));
        matching.map(|(name, _)| name.clone()).collect()
    }
}

/// Whether a resource tells under which other names it could have been demanded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Aliases {
    /// As in wildcard subscriptions.
    Omitted,
    /// As in on-demand subscriptions.
    Listed,
}

impl Stored {
    /// `network/address` for each address.
    fn aliases(&self) -> Vec<String> {
        match &self.content {
            Content::Workload(workload) => {
                let addresses = workload.addresses.iter();
                addresses.filter_map(|address| network_address(&workload.network, address)).collect()
            }
            Content::Service(service) => {
                let addresses = service.addresses.iter();
                addresses.filter_map(|address| network_address(&address.network, &address.address)).collect()
            }
            Content::Policy | Content::Raw => Vec::new(),
        }
    }
}

/// A 64-bit hash of the payload in lower-case hexadecimal, the same in every run.
fn version_of(payload: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    payload.hash(&mut hasher);
    format!("{:x}", hasher.finish())
}

fn service_namespaced(name: &str) -> String {
    format!("{}/{name}", Pod::NAMESPACE)
}
