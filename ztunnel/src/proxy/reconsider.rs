//! Open connections are judged again when policies change, or the workload that they apply to.

use std::sync::Arc;

use super::authorize;
use super::cut::CutReason;
use super::open_connections::OpenConnection;
use super::pod::LocalPod;
use super::report::Direction;
use crate::state::Mesh;
use crate::state::model::Workload;

/// What decides about the connections to a pod.
#[derive(Clone, Debug)]
pub(crate) struct Basis {
    policies: u64,
    workload: Arc<Workload>,
}

impl PartialEq for Basis {
    fn eq(&self, other: &Self) -> bool {
        self.policies == other.policies && Arc::ptr_eq(&self.workload, &other.workload)
    }
}

/// Connections that are judged before others get their turn on the thread.
const AT_ONCE: usize = 256;

/// Ends the connections to the pod that the policies do not let in any more. Of a pod that the mesh does not know any
/// more nothing is ended: it is about to be removed, and nothing new is let in meanwhile.
///
/// Costs a lookup when nothing has changed that concerns the pod, and an evaluation for each of its connections when
/// something has. Without a pause between `mesh` being published and a later connection's being judged by it, none is missed:
/// a connection is among the open ones before it is judged.
pub(crate) async fn reconsider(pod: &LocalPod, mesh: &Mesh) {
    let name = &pod.pod.workload;
    let Some(workload) = mesh.local_workload(&name.name, &name.namespace, &name.service_account) else {
        return;
    };
    let basis = Basis { policies: mesh.policies_version(), workload: workload.clone() };
    if !pod.is_to_be_judged_by(&basis) {
        return;
    }
    for some in pod.open.all().chunks(AT_ONCE) {
        for connection in some {
            judge(connection, mesh, workload);
        }
        tokio::task::yield_now().await;
    }
}

fn judge(connection: &OpenConnection, mesh: &Mesh, workload: &Workload) {
    let record = &connection.record;
    if record.direction != Direction::Inbound {
        return;
    }
    let source = &record.source;
    let verdict =
        authorize::reconsider(mesh, workload, source.address.ip(), source.identity.as_ref(), record.target);
    if let Err(denied) = verdict {
        tracing::info!(
            src.addr = %source.address,
            dst.addr = %record.target,
            dst.uid = &*workload.uid,
            reason = %denied,
            "closing a connection: the policies do not allow it any more"
        );
        connection.cutter.cut(CutReason::Denied(denied));
    }
}
