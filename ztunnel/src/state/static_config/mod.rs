//! A mesh described by a file: for tests, for playgrounds, and to add workloads that the control plane does not know.
//!
//! The file is YAML (so JSON too) with the lists `workloads`, `services` and `policies`, in the form that Istio's ztunnel
//! reads from `LOCAL_XDS_PATH`. It is read in two steps: `schema` takes the text as given, `convert` finds out what it
//! means. The first step stops at the first fault, the second reports all of them.

mod convert;
mod fault;
mod schema;

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use super::mesh::Mesh;
use super::model::{Service, Workload};
use crate::policy::Policy;

pub use fault::Fault;

/// The contents of a valid file.
#[derive(Debug, Default)]
pub struct StaticConfig {
    /// Its workloads; each uid once.
    pub workloads: Vec<Arc<Workload>>,
    /// Its services; each namespace and hostname once.
    pub services: Vec<Arc<Service>>,
    /// Its policies; each namespace and name once.
    pub policies: Vec<Arc<Policy>>,
    /// What is valid but hardly meant, such as references to nothing in the file.
    pub warnings: Vec<Fault>,
}

impl StaticConfig {
    /// Reads `text`. `source` is the file's name, or what else errors should call it.
    pub fn parse(source: &str, text: &str) -> Result<Self, StaticConfigError> {
        let error = |faults| StaticConfigError { source_name: source.to_owned(), faults };
        let file = schema::File::parse(text).map_err(|fault| error(vec![fault]))?;
        convert::convert(file, text).map_err(error)
    }

    /// Adds everything to `mesh`, replacing what has the same keys there.
    pub fn apply(&self, mesh: &mut Mesh) {
        for workload in &self.workloads {
            mesh.upsert_workload(workload.clone());
        }
        for service in &self.services {
            mesh.upsert_service(service.clone());
        }
        for policy in &self.policies {
            mesh.upsert_policy(policy.clone());
        }
    }
}

/// A file cannot be used. Displays one line per fault: `mesh.yaml:7:15: workloads[2].protocol: unknown value …`.
#[derive(Debug, Error)]
pub struct StaticConfigError {
    /// What the file is called.
    pub source_name: String,
    /// Everything that is wrong with it; never empty.
    pub faults: Vec<Fault>,
}

impl fmt::Display for StaticConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, fault) in self.faults.iter().enumerate() {
            if position > 0 {
                writeln!(f)?;
            }
            write!(f, "{}{fault}", self.source_name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
