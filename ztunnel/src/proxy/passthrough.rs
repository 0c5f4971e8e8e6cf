//! A connection that arrived for the pod outside any tunnel.

use std::rc::Rc;
use std::sync::Arc;

use super::accept::Accepted;
use super::authorize::authorize;
use super::classify::{self, ClassifyError};
use super::copy::{self, Transfer};
use super::error::ConnectionError;
use super::pod::LocalPod;
use super::report::{Direction, Party, Record, deny_early};
use super::tunnel::connect_application;
use crate::state::Mesh;
use crate::state::model::Workload;

/// Serves one connection, from classification to its report.
pub(crate) async fn serve(pod: Rc<LocalPod>, accepted: Accepted) {
    let workload = match local(&pod, &accepted).await {
        Ok(workload) => workload,
        Err(error) => return deny_early(accepted.peer, accepted.destination, Direction::Inbound, &error),
    };
    let mesh = pod.worker.shared().mesh.load();
    let record = describe(&pod, &mesh, &workload, &accepted).open();
    let result = carry(&pod, &mesh, &workload, accepted, record.transfer()).await;
    record.finish(result);
}

async fn local(pod: &LocalPod, accepted: &Accepted) -> Result<Arc<Workload>, ClassifyError> {
    classify::plaintext(accepted.destination)?;
    classify::local_workload(pod).await
}

async fn carry(
    pod: &LocalPod,
    mesh: &Mesh,
    workload: &Workload,
    accepted: Accepted,
    transfer: &Transfer,
) -> Result<(), ConnectionError> {
    let permit = authorize(mesh, workload, accepted.peer.ip(), None, accepted.destination)?;
    let source = accepted.keep_source.then(accepted.peer.ip());
    let application = connect_application(pod, &permit, accepted.destination, source).await?;
    copy::tcp_to_tcp(accepted.stream, application, transfer).await?;
    Ok(())
}

fn describe(pod: &LocalPod, mesh: &Mesh, workload: &Arc<Workload>, accepted: &Accepted) -> Record {
    let network = &pod.config().network;
    Record {
        direction: Direction::Inbound,
        since: accepted.at,
        source: Party {
            address: accepted.peer,
            workload: classify::peer_workload(mesh, network, accepted.peer.ip(), None),
            identity: None,
        },
        destination: Party {
            address: accepted.destination,
            workload: Some(workload.clone()),
            identity: None,
        },
        hbone_authority: None,
        service: classify::guess_service(mesh, workload, None, accepted.destination.port()),
        transfer: Transfer::default(),
    }
}
