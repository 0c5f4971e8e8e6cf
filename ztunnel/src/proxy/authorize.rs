//! Stage 3: whether an arriving connection may go on.
//!
//! A [`Permit`] can only come from an evaluation of the policies, and connecting to an application takes one.

use std::net::{IpAddr, SocketAddr};

use identity::SpiffeId;

use crate::policy::{Access, Action, DryRun, Evaluation};
pub(crate) use crate::policy::{Denied, Permit};
use crate::state::Mesh;
use crate::state::model::Workload;

macro_rules! log_match {
    ($message:literal, $by:expr) => {
        tracing::debug!(target: TARGET, policy = &**$by.policy.key(), rule = $by.rule, $message)
    };
}

/// Evaluates the policies that apply to `workload`.
pub(crate) fn authorize(
    mesh: &Mesh,
    workload: &Workload,
    source: IpAddr,
    identity: Option<&SpiffeId>,
    destination: SocketAddr,
) -> Result<Permit, Denied> {
    let evaluation = mesh.policies_for(workload).evaluate(&Access::new(source, identity, destination));
    log(&evaluation);
    evaluation.decision
}

/// Target of the lines about policies, by which operators select them.
const TARGET: &str = "ztunnel::state";

fn log(evaluation: &Evaluation) {
    for outcome in &evaluation.dry_run {
        match outcome {
            DryRun::Matched(by) => match by.policy.action() {
                Action::Deny => log_match!("dry-run: deny policy match", by),
                Action::Allow => log_match!("dry-run: allow policy match", by),
            },
            DryRun::NoneAllowed => tracing::debug!(target: TARGET, "dry-run: no allow policies match"),
        }
    }
    match &evaluation.decision {
        Ok(permit) => {
            if let Some(by) = permit.by() {
                log_match!("allow policy match", by);
            }
        }
        Err(Denied::Explicitly(by)) => log_match!("deny policy match", by),
        Err(reason) => tracing::debug!(target: TARGET, %reason, "denied"),
    }
}
