//! A connection that arrived for the pod outside any tunnel.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::accept::Accepted;
use super::authorize::authorize;
use super::classify::{self, ClassifyError};
use super::copy::{self, Transfer};
use super::error::ConnectionError;
use super::pod::LocalPod;
use super::report::{Direction, OpenRecord, Party, Record, deny_early};
use super::task_set::Place;
use super::tunnel::{Application, connect_application, unless_reset};
use crate::state::Mesh;
use crate::state::model::Workload;

/// Serves one connection, from classification to its report.
pub(crate) async fn serve(pod: Rc<LocalPod>, accepted: Box<Accepted>, _place: Place) {
    // What happens before the bytes flow is boxed, so that a long-lived connection does not keep room for it.
    let workload = match Box::pin(local(&pod, &accepted)).await {
        Ok(workload) => workload,
        Err(error) => {
            return deny_early(accepted.peer, accepted.destination, Direction::Inbound, &error);
        }
    };
    let mesh = pod.worker.shared().mesh.load();
    let record = describe(&pod, &mesh, &workload, &accepted).open(&pod.open);
    let connecting = unless_reset(&accepted.stream, connect(&pod, mesh, workload, &accepted, &record));
    let connected = Box::pin(record.cutter().unless_cut(connecting)).await;
    let result = match connected {
        Ok(application) => {
            let client = accepted.stream;
            copy::tcp_to_tcp(client, application, record.transfer(), record.limits())
                .await
                .map_err(Into::into)
        }
        Err(error) => Err(error),
    };
    record.finish(result);
}

async fn local(pod: &LocalPod, accepted: &Accepted) -> Result<Arc<Workload>, ClassifyError> {
    classify::plaintext(pod, accepted.destination)?;
    classify::local_workload(pod).await
}

/// Authorizes the connection and connects to the application.
async fn connect(
    pod: &LocalPod,
    mesh: Arc<Mesh>,
    workload: Arc<Workload>,
    accepted: &Accepted,
    record: &OpenRecord,
) -> Result<TcpStream, ConnectionError> {
    let shared = pod.worker.shared();
    let permit = authorize(&mesh, &workload, accepted.peer.ip(), None, accepted.destination, shared)?;
    record.permitted_by(permit.by());
    let source = accepted.keep_source.then(accepted.peer.ip());
    connect_application(pod, &permit, Application::AtPod, source).await
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
        target: accepted.destination,
        hbone_authority: None,
        service: classify::guess_service(mesh, workload, None, accepted.destination.port()),
        transfer: Transfer::default(),
        permitted_by: OnceCell::new(),
        reached: RefCell::default(),
    }
}
