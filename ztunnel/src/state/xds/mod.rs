//! The control plane's resources become the mesh.
//!
//! [`XdsState`] is what the xDS client hands its responses to. Each response is a transaction on a draft of the mesh,
//! published as a whole; a resource that cannot be used is rejected and changes nothing, except that the addresses it
//! claims are remembered: until the control plane describes them in a way that can be understood, nothing is sent there.
//! Everything else that has always been done with absent, empty or unknown values is in `convert` and its neighbours.

mod claim;
mod convert;
mod policy;
mod rejection;
mod service;
mod workload;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use xds_client::prost::Message as _;
use xds_client::workload::address::Type;
use xds_client::{Event, Handler, Rejected, ResourceType, security, workload as wire};

use self::claim::Claim;
use self::convert::Converter;
pub use self::rejection::Rejection;
use super::{Mesh, MeshState};
use crate::policy::compile_as;

/// Applies the resources of an xDS stream to a [`MeshState`], of which it is the only writer while the stream lives.
pub struct XdsState {
    state: Arc<MeshState>,
    converter: Converter,
    /// The successor of the published mesh, while a response is being applied.
    draft: Mesh,
    /// Whether the response has changed anything so far.
    is_changed: bool,
    /// Changes since what nobody uses was last swept out.
    changes: usize,
    observe: Box<dyn FnMut(&Event<'_>)>,
}

/// Sweeping visits everything that is shared, so it waits for this many changes and for as many as there are workloads.
const SWEEP_AFTER: usize = 10_000;

impl XdsState {
    /// Will write to `state`, and pass on to `observe` what is worth a metric.
    pub fn new(state: Arc<MeshState>, observe: impl FnMut(&Event<'_>) + 'static) -> Self {
        let (converter, draft) = Default::default();
        Self { state, converter, draft, is_changed: false, changes: 0, observe: Box::new(observe) }
    }

    fn changed(&mut self) {
        self.is_changed = true;
        self.changes += 1;
    }

    fn update_address(&mut self, name: &Arc<str>, payload: &Bytes) -> Result<(), Rejection> {
        // Decoding takes slices of the payload, so the handle to it is copied, not the bytes.
        match wire::Address::decode(payload.clone())?.r#type {
            Some(Type::Workload(message)) => {
                let workload = self.converter.workload(name, &message)?;
                // Other bytes, but not in what matters here: who holds the workload goes on holding the same one.
                if self.draft.workload(&workload.uid).is_none_or(|known| **known != workload) {
                    self.draft.upsert_workload(Arc::new(workload));
                    self.changed();
                }
            }
            Some(Type::Service(message)) => {
                let service = self.converter.service(&message)?;
                let host = &service.host;
                if self.draft.service(&host.namespace, &host.hostname).is_none_or(|known| **known != service)
                {
                    self.draft.upsert_service(Arc::new(service));
                    self.changed();
                }
            }
            None => return Err(Rejection::AddressType),
        }
        Ok(())
    }

    fn update_policy(&mut self, name: &Arc<str>, payload: Bytes) -> Result<(), Rejection> {
        let spec = self.converter.policy(security::Authorization::decode(payload)?)?;
        let (policy, warnings) = compile_as(name.clone(), spec);
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        self.draft.upsert_policy(Arc::new(policy));
        self.changed();
        Ok(())
    }
}

impl Handler for XdsState {
    fn begin(&mut self, _: ResourceType) {
        self.draft = self.state.draft();
        self.is_changed = false;
    }

    fn update(&mut self, kind: ResourceType, name: &Arc<str>, payload: Bytes) -> Result<(), Rejected> {
        let outcome = match kind {
            ResourceType::Address => {
                let outcome = self.update_address(name, &payload);
                match &outcome {
                    Ok(()) => self.draft.pardon(name),
                    Err(_) => {
                        let Claim { vips, ranges } = Claim::read(&payload);
                        self.draft.reject(name, vips.into(), ranges.into());
                        self.changed();
                    }
                }
                outcome
            }
            ResourceType::Authorization => self.update_policy(name, payload),
        };
        outcome.map_err(|rejection| Rejected(rejection.to_string()))
    }

    fn remove(&mut self, kind: ResourceType, name: &str) {
        match kind {
            ResourceType::Address => {
                self.draft.pardon(name);
                self.draft.remove_address(name);
            }
            ResourceType::Authorization => drop(self.draft.remove_policy(name)),
        }
        self.changed();
    }

    fn commit(&mut self, _: ResourceType) {
        let next = std::mem::take(&mut self.draft);
        if !std::mem::take(&mut self.is_changed) {
            return;
        }
        if self.changes >= SWEEP_AFTER.max(next.workload_count()) {
            self.changes = 0;
            // What the published mesh alone still uses is kept until the next time.
            self.converter.sweep();
        }
        self.state.publish(next);
    }

    fn observe(&mut self, event: &Event<'_>) {
        (self.observe)(event);
    }
}

impl fmt::Debug for XdsState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XdsState").field("changes", &self.changes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
