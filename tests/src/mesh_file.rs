//! The static mesh description that proxies read instead of asking a control plane (`LOCAL_XDS_PATH`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;
use serde_yaml_ng::Value;

use crate::{Pod, Result};

/// Workloads, services and policies. The fields are open: a test may bend whatever it needs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MeshFile {
    /// Pods and other endpoints.
    pub workloads: Vec<Workload>,
    /// Services.
    pub services: Vec<Service>,
    /// Authorization policies, as YAML values.
    pub policies: Vec<Value>,
}

/// A workload, in the words of the file.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the file format's own names")]
pub struct Workload {
    pub uid: String,
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    pub trust_domain: String,
    pub workload_ips: Vec<IpAddr>,
    pub protocol: Protocol,
    pub node: String,
    pub cluster_id: String,
    pub authorization_policies: Vec<String>,
    /// Looked up when there are no addresses.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// `namespace/hostname` of a service, to service port, to target port.
    pub services: BTreeMap<String, BTreeMap<u16, u16>>,
    /// Any other field, as YAML.
    #[serde(flatten)]
    pub more: BTreeMap<String, Value>,
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub enum Protocol {
    /// Plain TCP: it is not in the mesh.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// Through HBONE: it is in the mesh.
    #[serde(rename = "HBONE")]
    Hbone,
}

/// A service, in the words of the file.
#[derive(Clone, Debug, Default, Serialize)]
#[expect(missing_docs, reason = "the file format's own names")]
pub struct Service {
    pub name: String,
    pub namespace: String,
    pub hostname: String,
    /// `network/address`; the network of the laboratory is the empty one.
    pub vips: Vec<String>,
    /// Service port to target port.
    pub ports: BTreeMap<u16, u16>,
    /// Any other field, as YAML.
    #[serde(flatten)]
    pub more: BTreeMap<String, Value>,
}

impl MeshFile {
    /// Adds a pod that is in the mesh.
    pub fn enrol(&mut self, pod: &Pod) -> &mut Workload {
        self.add(pod, Protocol::Hbone)
    }

    /// Adds a pod that the mesh knows but that is not in it.
    pub fn outsider(&mut self, pod: &Pod) -> &mut Workload {
        self.add(pod, Protocol::Tcp)
    }

    fn add(&mut self, pod: &Pod, protocol: Protocol) -> &mut Workload {
        self.workloads.push(Workload {
            uid: format!("cluster1//Pod/{}/{}", Pod::NAMESPACE, pod.name()),
            name: pod.name().to_owned(),
            namespace: Pod::NAMESPACE.to_owned(),
            service_account: pod.service_account().to_owned(),
            trust_domain: Pod::TRUST_DOMAIN.to_owned(),
            workload_ips: pod.addresses().to_vec(),
            protocol,
            node: pod.node().name().to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            ..Workload::default()
        });
        self.last_workload()
    }

    fn last_workload(&mut self) -> &mut Workload {
        self.workloads.last_mut().expect("one was just added")
    }

    /// The workload of a pod that has been added.
    pub fn workload(&mut self, pod: &Pod) -> Result<&mut Workload> {
        let found = self.workloads.iter_mut().find(|workload| workload.name == pod.name());
        found.with_context(|| format!("{} is not in the file", pod.name()))
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
        let hostname = format!("{name}.{}.svc.cluster.local", Pod::NAMESPACE);
        let ports = BTreeMap::from([port]);
        for replica in replicas {
            let services = &mut self.workload(replica)?.services;
            services.insert(format!("{}/{hostname}", Pod::NAMESPACE), ports.clone());
        }
        self.services.push(Service {
            name: name.to_owned(),
            namespace: Pod::NAMESPACE.to_owned(),
            hostname,
            vips: vips.iter().map(|vip| format!("/{vip}")).collect(),
            ports,
            more: BTreeMap::new(),
        });
        Ok(())
    }

    /// The service that was added last, with further fields written as a YAML mapping.
    pub fn more_of_service(&mut self, yaml: &str) -> Result<()> {
        let service = self.services.last_mut().context("no service was added")?;
        service.more.extend(serde_yaml_ng::from_str::<BTreeMap<_, _>>(yaml).context("fields of the test")?);
        Ok(())
    }

    /// The workload that was added last, with further fields written as a YAML mapping.
    pub fn more_of_workload(&mut self, yaml: &str) -> Result<()> {
        let workload = self.workloads.last_mut().context("no workload was added")?;
        workload.more.extend(serde_yaml_ng::from_str::<BTreeMap<_, _>>(yaml).context("fields of the test")?);
        Ok(())
    }

    /// Adds a policy written as YAML.
    pub fn policy(&mut self, yaml: &str) -> Result<()> {
        self.policies.push(serde_yaml_ng::from_str(yaml).context("a policy of the test")?);
        Ok(())
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, serde_yaml_ng::to_string(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}
