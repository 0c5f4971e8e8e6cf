//! Stage 3: whether an arriving connection may go on.
//!
//! A [`Permit`] can only come from an evaluation of the policies, and connecting to an application takes one.

use std::net::{IpAddr, SocketAddr};

use identity::SpiffeId;

use crate::config::PolicyLog;
use crate::policy::{Access, Action, DryRun, Evaluation};
pub(crate) use crate::policy::{Decider, Denied, Permit};
use crate::state::Mesh;
use crate::state::model::Workload;
use crate::worker::Shared;

/// A line about a policy, at the level that the operator chose (`AUTHZ_POLICY_INFO_LOGGING`).
macro_rules! log {
    ($level:expr, $($line:tt)+) => {
        match $level {
            PolicyLog::Debug => tracing::debug!(target: TARGET, $($line)+),
            PolicyLog::Info => tracing::info!(target: TARGET, $($line)+),
        }
    };
}

macro_rules! log_match {
    ($level:expr, $message:literal, $by:expr) => {
        log!($level, policy = &**$by.policy.key(), rule = $by.rule, $message)
    };
}

/// Evaluates the policies that apply to `workload`, for a connection that has just arrived.
pub(crate) fn authorize(
    mesh: &Mesh,
    workload: &Workload,
    source: IpAddr,
    identity: Option<&SpiffeId>,
    destination: SocketAddr,
    shared: &Shared,
) -> Result<Permit, Denied> {
    let evaluation = mesh.policies_for(workload).evaluate(&Access::new(source, identity, destination));
    report(&evaluation, shared);
    evaluation.decision
}

/// Evaluates the policies that apply to `workload` again, for a connection that was let in once.
pub(crate) fn reconsider(
    mesh: &Mesh,
    workload: &Workload,
    source: IpAddr,
    identity: Option<&SpiffeId>,
    destination: SocketAddr,
) -> Result<(), Denied> {
    mesh.policies_for(workload).evaluate(&Access::new(source, identity, destination)).decision.map(drop)
}

/// Target of the lines about policies, by which operators select them.
const TARGET: &str = "ztunnel::state";

fn report(evaluation: &Evaluation, shared: &Shared) {
    let level = shared.config.policy_log;
    for outcome in &evaluation.dry_run {
        shared.counters.dry_run.count(outcome);
        match outcome {
            DryRun::Matched(by) => match by.policy.action() {
                Action::Deny => log_match!(level, "dry-run: deny policy match", by),
                Action::Allow => log_match!(level, "dry-run: allow policy match", by),
            },
            DryRun::NoneAllowed => log!(level, "dry-run: no allow policies match"),
        }
    }
    match &evaluation.decision {
        Ok(permit) => {
            if let Some(by) = permit.by() {
                log_match!(level, "allow policy match", by);
            }
        }
        Err(Denied::Explicitly(by)) => log_match!(level, "deny policy match", by),
        Err(reason) => log!(level, %reason, "denied"),
    }
}
