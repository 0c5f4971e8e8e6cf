//! The control plane's resources become the mesh.
//!
//! [`XdsState`] is what the xDS client hands its responses to. Each response is a transaction on a draft of the mesh,
//! published as a whole; a resource that cannot be used is rejected and changes nothing, except where that would open what
//! it may have closed: the addresses that only a rejected resource claims are remembered, and nothing is sent there; a
//! policy that certainly denies, and of which there is no good version, denies everything in its scope.
//! Everything else that has always been done with absent, empty or unknown values is in `convert` and its neighbours.

mod claim;
mod convert;
mod policy;
mod rejection;
mod service;
mod workload;

use std::collections::HashMap;
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
use crate::policy::{PolicySpec, compile_as};

/// Applies the resources of an xDS stream to a [`MeshState`], of which it is the only writer while the stream lives.
pub struct XdsState {
    state: Arc<MeshState>,
    converter: Converter,
    /// The successor of the published mesh, while a response is being applied.
    draft: Mesh,
    /// Whether the response has changed anything so far.
    is_changed: bool,
    /// Resources whose names are not what their contents say they are: what each is kept under.
    misnamed: HashMap<Arc<str>, String>,
    /// Changes since what nobody uses was last swept out.
    changes: usize,
    observe: Box<dyn FnMut(&Event<'_>)>,
}

/// Sweeping visits everything that is shared, so it waits for this many changes and for as many as there are workloads.
const SWEEP_AFTER: usize = 10_000;

impl XdsState {
    /// Will write to `state`, and pass on to `observe` what is worth a metric.
    pub fn new(state: Arc<MeshState>, observe: impl FnMut(&Event<'_>) + 'static) -> Self {
        Self {
            state,
            converter: Converter::default(),
            draft: Mesh::default(),
            is_changed: false,
            misnamed: HashMap::new(),
            changes: 0,
            observe: Box::new(observe),
        }
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
                self.named(name, &workload.uid);
                // Other bytes, but not in what matters here: who holds the workload goes on holding the same one.
                if self.draft.workload(&workload.uid).is_none_or(|known| **known != workload) {
                    self.draft.upsert_workload(Arc::new(workload));
                    self.changed();
                }
            }
            Some(Type::Service(message)) => {
                let service = self.converter.service(&message)?;
                let host = &service.host;
                self.named(name, &host.to_string());
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

    fn update_policy(&mut self, name: &Arc<str>, payload: &Bytes) -> Result<(), Rejection> {
        let decoded = security::Authorization::decode(payload.clone()).map_err(Rejection::from);
        match decoded.and_then(|message| self.converter.policy(message)) {
            Ok(spec) => self.upsert_policy(name, spec),
            Err(rejection) => {
                // The last good version stays; where there is none, what certainly denies something denies everything.
                if self.draft.policy(name).is_none()
                    && let Some(spec) = self.converter.unreadable_denial(payload)
                {
                    tracing::error!(policy = %name, %rejection, "a DENY policy cannot be read: it denies everything in its scope");
                    self.upsert_policy(name, spec);
                }
                return Err(rejection);
            }
        }
        Ok(())
    }

    fn upsert_policy(&mut self, name: &Arc<str>, spec: PolicySpec) {
        let (policy, warnings) = compile_as(name.clone(), spec);
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        self.draft.upsert_policy(Arc::new(policy));
        self.changed();
    }

    /// Resources are removed by name and kept under what they say of themselves, which is the same with istiod. With others
    /// it is noted, since nothing else would ever remove them.
    fn named(&mut self, name: &Arc<str>, key: &str) {
        if **name == *key {
            if !self.misnamed.is_empty() {
                self.misnamed.remove(name);
            }
        } else if let Some(before) = self.misnamed.insert(name.clone(), key.to_owned())
            && before != key
        {
            self.draft.remove_address(&before);
        }
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
                    Ok(()) => {
                        if self.draft.pardon(name) {
                            self.changed();
                        }
                    }
                    Err(_) => {
                        let Claim { vips, ranges } = Claim::read(&payload);
                        self.draft.reject(name, vips.into(), ranges.into());
                        self.changed();
                    }
                }
                outcome
            }
            ResourceType::Authorization => self.update_policy(name, &payload),
        };
        outcome.map_err(|rejection| Rejected(rejection.to_string()))
    }

    fn restore(&mut self, kind: ResourceType, name: &str) {
        if kind == ResourceType::Address && self.draft.pardon(name) {
            self.changed();
        }
    }

    fn remove(&mut self, kind: ResourceType, name: &str) {
        let was_known = match kind {
            ResourceType::Address => {
                let key = self.misnamed.remove(name);
                let was_claimed = self.draft.pardon(name);
                self.draft.remove_address(key.as_deref().unwrap_or(name)).is_some() || was_claimed
            }
            ResourceType::Authorization => self.draft.remove_policy(name).is_some(),
        };
        if was_known {
            self.changed();
        }
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
