//! Stage 3: whether an arriving connection may go on.
//!
//! A [`Permit`] can only come from an evaluation of the policies, and connecting to an application takes one.

use std::net::{IpAddr, SocketAddr};

use identity::SpiffeId;

use crate::policy::{Access, DryRun};
pub(crate) use crate::policy::{Denied, Permit};
use crate::state::Mesh;
use crate::state::model::Workload;

/// Evaluates the policies that apply to `workload`.
pub(crate) fn authorize(
    mesh: &Mesh,
    workload: &Workload,
    source: IpAddr,
    identity: Option<&SpiffeId>,
    destination: SocketAddr,
) -> Result<Permit, Denied> {
    let evaluation = mesh.policies_for(workload).evaluate(&Access::new(source, identity, destination));
    for outcome in &evaluation.dry_run {
        match outcome {
            DryRun::Matched(by) => tracing::debug!(policy = %by, rule = by.rule, "dry-run: policy match"),
            DryRun::NoneAllowed => tracing::debug!("dry-run: no allow policies match"),
        }
    }
    match &evaluation.decision {
        Ok(permit) => {
            if let Some(by) = permit.by() {
                tracing::debug!(policy = %by, rule = by.rule, "allow policy match");
            }
        }
        Err(Denied::Explicitly(by)) => tracing::debug!(policy = %by, rule = by.rule, "deny policy match"),
        Err(reason) => tracing::debug!(%reason, "denied"),
    }
    evaluation.decision
}
