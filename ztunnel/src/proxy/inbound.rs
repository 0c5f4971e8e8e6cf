//! A connection in a tunnel that another proxy opened to the pod.

use std::cell::{OnceCell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use hbone::{Authority, AuthorityError, HboneStream, IncomingConnect, Refusal};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::authorize::authorize;
use super::classify::{self, ClassifyError, learn};
use super::copy::{self, Transfer};
use super::cut::CutReason;
use super::error::ConnectionError;
use super::inbound_tunnel::InboundTunnel;
use super::pod::LocalPod;
use super::proxy_protocol;
use super::report::{Direction, OpenRecord, Party, Record, deny_early};
use super::task_set::Place;
use super::tunnel::{Application, connect_application};
use crate::state::Mesh;
use crate::state::inbound::{self, InboundError, NextHop};
use crate::state::model::Workload;

/// Why a request in a tunnel was refused before it was known where it goes.
#[derive(Debug, thiserror::Error)]
enum RequestRefused {
    #[error("expected method CONNECT, got {0}")]
    Method(String),
    #[error("no valid authority")]
    Authority(#[source] AuthorityError),
    #[error(transparent)]
    Classify(#[from] ClassifyError),
}

impl RequestRefused {
    fn refusal(&self) -> Refusal {
        match self {
            Self::Method(_) | Self::Authority(_) => Refusal::BadRequest,
            Self::Classify(ClassifyError::Inbound(InboundError::IpMismatch { .. })) => Refusal::BadRequest,
            Self::Classify(_) => Refusal::ServiceUnavailable,
        }
    }
}

/// Serves one connection in a tunnel, from classification to its report.
pub(crate) async fn serve(
    pod: Rc<LocalPod>,
    tunnel: Rc<InboundTunnel>,
    request: Box<IncomingConnect>,
    _place: Place,
) {
    // What happens before the bytes flow is boxed, so that a long-lived connection does not keep room for it.
    let Some((record, connected)) = Box::pin(begin(&pod, &tunnel, *request)).await else { return };
    let result = match connected {
        Ok((client, application)) => {
            copy::hbone_to_tcp(client, application, record.transfer(), record.limits())
                .await
                .map_err(Into::into)
        }
        Err(error) => Err(error),
    };
    record.finish(result);
}

type Connected = Result<(HboneStream, TcpStream), ConnectionError>;

/// Everything up to the first byte. Nothing: the request was refused before it was known where it goes.
async fn begin(
    pod: &LocalPod,
    tunnel: &InboundTunnel,
    request: IncomingConnect,
) -> Option<(OpenRecord, Connected)> {
    let since = Instant::now();
    match decide(pod, tunnel, &request).await {
        Ok(plan) => {
            // Nothing may come between: a connection is judged by this view of the mesh and by every later one.
            let record = plan.record(pod, tunnel, &request, since).open(&pod.open);
            if tunnel.revoked.get() {
                record.cutter().cut(CutReason::Revoked);
            }
            let connected = record.cutter().unless_cut(plan.connect(pod, tunnel, request, &record)).await;
            Some((record, connected))
        }
        Err(error) => {
            request.refuse(error.refusal());
            deny_early(tunnel.peer, tunnel.local, Direction::Inbound, &error);
            None
        }
    }
}

/// Everything that was decided about a connection.
struct Plan {
    mesh: Arc<Mesh>,
    workload: Arc<Workload>,
    authority: Authority,
    hop: NextHop,
}

async fn decide(
    pod: &LocalPod,
    tunnel: &InboundTunnel,
    request: &IncomingConnect,
) -> Result<Plan, RequestRefused> {
    if !request.is_connect() {
        return Err(RequestRefused::Method(request.method().to_string()));
    }
    let authority = request.authority().map_err(RequestRefused::Authority)?;
    let workload = classify::local_workload(pod).await?;
    let shared = pod.worker.shared();
    if let Some(demand) = shared.demand.as_ref().filter(|_| tunnel.may_ask()) {
        let local = tunnel.local.ip();
        let unknown = |mesh: &Mesh| unknown(mesh, &shared.routing.network, local, &authority);
        learn(pod, demand, unknown).await?;
    }
    let mesh = shared.mesh.load();
    let asked = match &authority {
        Authority::Address(address) => inbound::Authority::Address(*address),
        Authority::Name(name, port) => inbound::Authority::Hostname(name.as_str(), *port),
    };
    let local = tunnel.local.ip();
    inbound::validate_authority(&mesh, &shared.routing, &workload, local, asked)
        .map_err(ClassifyError::from)?;
    let hop =
        inbound::next_hop(&mesh, &shared.routing, &workload, local, asked).map_err(ClassifyError::from)?;
    Ok(Plan { mesh, workload, authority, hop })
}

/// What the authority names and the mesh does not know yet, as the control plane can be asked for it.
fn unknown(mesh: &Mesh, network: &str, local: IpAddr, authority: &Authority) -> Option<String> {
    let Authority::Address(address) = authority else { return None };
    let address = address.ip().to_canonical();
    // A hostname comes without its namespace, under which alone it could be asked for.
    (address != local && mesh.find_address(network, address, None).is_none())
        .then(|| format!("{network}/{address}"))
}

impl Plan {
    fn record(
        &self,
        pod: &LocalPod,
        tunnel: &InboundTunnel,
        request: &IncomingConnect,
        since: Instant,
    ) -> Record {
        let network = &pod.config().network;
        let source =
            classify::peer_workload(&self.mesh, network, tunnel.peer.ip(), Some(&tunnel.peer_identity));
        let named = request.forwarded_host();
        let service =
            self.hop.service.clone().or_else(|| {
                classify::guess_service(&self.mesh, &self.workload, named, self.hop.address.port())
            });
        Record {
            direction: Direction::Inbound,
            since,
            source: Party {
                address: tunnel.peer,
                workload: source,
                identity: Some(tunnel.peer_identity.clone()),
            },
            destination: Party {
                address: tunnel.local,
                workload: Some(self.workload.clone()),
                identity: Some(tunnel.local_identity.clone()),
            },
            target: self.hop.address,
            hbone_authority: Some(self.authority.clone()),
            service,
            transfer: Transfer::default(),
            permitted_by: OnceCell::new(),
            reached: RefCell::default(),
        }
    }

    /// Authorizes the connection, connects to the application and answers the client.
    async fn connect(
        self,
        pod: &LocalPod,
        tunnel: &InboundTunnel,
        mut request: IncomingConnect,
        record: &OpenRecord,
    ) -> Connected {
        let source = tunnel.peer.ip();
        let permit = match authorize(
            &self.mesh,
            &self.workload,
            source,
            Some(&tunnel.peer_identity),
            self.hop.address,
            pod.worker.shared(),
        ) {
            Ok(permit) => permit,
            Err(denied) => {
                request.refuse(Refusal::Unauthorized);
                return Err(denied.into());
            }
        };
        record.permitted_by(permit.by());
        let (application, source) = self.application(pod, tunnel);
        let connected = tokio::select! {
            connected = connect_application(pod, &permit, application, source) => connected,
            gone = request.abandoned() => return Err(ConnectionError::Answer(gone)),
        };
        let mut application = match connected {
            Ok(application) => application,
            Err(error) => {
                request.refuse(Refusal::ServiceUnavailable);
                return Err(error);
            }
        };
        let baggage = pod.config().response_baggage.then(|| pod.baggage(&self.workload));
        let client = request.accept(baggage).map_err(ConnectionError::Answer)?;
        if let Some(destination) = self.hop.proxy_destination {
            let header = proxy_protocol::header(tunnel.peer, destination, Some(&tunnel.peer_identity));
            application.write_all(&header).await.map_err(ConnectionError::Application)?;
        }
        Ok((client, application))
    }

    /// Where the application listens, and in whose name to connect to it.
    fn application(&self, pod: &LocalPod, tunnel: &InboundTunnel) -> (Application, Option<IpAddr>) {
        match self.hop.proxy_destination.is_some() && pod.config().localhost_app_tunnel {
            true => (Application::AtLoopback, None),
            false => (Application::AtPod, tunnel.keep_source.then(tunnel.peer.ip())),
        }
    }
}
