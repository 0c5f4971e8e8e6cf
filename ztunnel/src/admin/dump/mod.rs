//! The configuration dump: everything the proxy knows, in the form that `istioctl`, Kiali and others read.
//!
//! Names and shapes are those of Istio's ztunnel; the tools fail as a whole on a value of another type. The keys of every
//! object are in the order of their bytes, lists are sorted by what identifies their items, and the text is indented by
//! two spaces. Values are written straight from the state, one resource after another, so that a dump needs memory for
//! the order of the resources and not for their text.

mod certificate;
mod json;
mod pod;
mod policy;
mod service;
mod static_config;
mod version;
mod workload;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;

use identity::{IdentityState, SpiffeId};
use serde::{Serialize, Serializer};

use super::Section;
use crate::state::{Mesh, StaticConfig};
use json::Object;
pub use pod::{
    ConnectionProtocol, InboundConnection, OutboundConnection, PodConnections, PodState, ProxyState,
};
pub use version::BuildInfo;

/// Where a dump takes its contents from. The functions are called on a thread of the dump's own, once per dump.
pub struct DumpSources {
    /// The current view of the mesh.
    pub mesh: Box<dyn Fn() -> Arc<Mesh> + Send + Sync>,
    /// All managed identities ([`CertificateStore::identities`](identity::CertificateStore::identities)).
    pub certificates: Box<dyn Fn() -> Vec<(SpiffeId, IdentityState)> + Send + Sync>,
    /// What the operator asked for, secrets left out.
    pub config: serde_json::Value,
    /// The local description of the mesh as it is now, which need not be what was read at start.
    pub static_config: Box<dyn Fn() -> StaticConfig + Send + Sync>,
    /// What runs.
    pub version: BuildInfo,
}

/// One dump to be written: everything that changes the mesh is seen in full or not at all.
pub struct Dump {
    sources: Arc<DumpSources>,
    mesh: Arc<Mesh>,
    pods: Option<Vec<PodState>>,
    sections: BTreeSet<Section>,
}

impl Dump {
    /// A dump of the mesh as it is now.
    pub fn new(sources: Arc<DumpSources>, pods: Option<Vec<PodState>>, sections: BTreeSet<Section>) -> Self {
        Self { mesh: (sources.mesh)(), sources, pods, sections }
    }

    /// Writes all of it. Blocks as `out` does, and reads the local description of the mesh.
    ///
    /// # Errors
    /// Only those of `out`.
    pub fn write(&self, out: impl io::Write) -> io::Result<()> {
        write_pretty(self, out)
    }
}

/// Writes what a mesh contributes to a dump: policies, services, staged services and workloads.
///
/// # Errors
/// Only those of `out`.
pub fn write_mesh(mesh: &Mesh, out: impl io::Write) -> io::Result<()> {
    write_pretty(&MeshAlone(mesh), out)
}

fn write_pretty(value: &impl Serialize, out: impl io::Write) -> io::Result<()> {
    Ok(value.serialize(&mut serde_json::Serializer::pretty(out))?)
}

impl Serialize for Dump {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut dump = Object::begin(serializer)?;
        for section in &self.sections {
            let key = section.key();
            match section {
                Section::Certificates => dump.put(key, &certificate::all(&(self.sources.certificates)()))?,
                Section::Config => dump.put(key, &self.sources.config)?,
                Section::Policies => dump.put(key, &policy::all(&self.mesh))?,
                Section::Services => dump.put(key, &service::all(&self.mesh))?,
                Section::StagedServices => dump.put(key, &service::staged(&self.mesh))?,
                Section::StaticConfig => {
                    dump.put(key, &static_config::view(&(self.sources.static_config)()))?;
                }
                Section::Version => dump.put(key, &self.sources.version)?,
                Section::WorkloadState => dump.put_some(key, self.pods.as_deref().map(pod::all))?,
                Section::Workloads => dump.put(key, &workload::all(&self.mesh))?,
            }
        }
        dump.end()
    }
}

struct MeshAlone<'a>(&'a Mesh);

impl Serialize for MeshAlone<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut dump = Object::begin(serializer)?;
        dump.put(Section::Policies.key(), &policy::all(self.0))?;
        dump.put(Section::Services.key(), &service::all(self.0))?;
        dump.put(Section::StagedServices.key(), &service::staged(self.0))?;
        dump.put(Section::Workloads.key(), &workload::all(self.0))?;
        dump.end()
    }
}

impl fmt::Debug for DumpSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DumpSources").field("version", &self.version).finish_non_exhaustive()
    }
}

impl fmt::Debug for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dump").field("sections", &self.sections).finish_non_exhaustive()
    }
}
