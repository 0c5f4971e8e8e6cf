//! Tunnels that other proxies open to the pod, and the connections in them.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use hbone::{Authority, AuthorityError, HandshakeError, HboneStream, IncomingConnect, Refusal, Server};
use identity::{PeerIdentityError, SpiffeId, peer_identity};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::accept::{Accepted, KeepSource};
use super::authorize::authorize;
use super::classify::{self, ClassifyError};
use super::copy::{self, Transfer};
use super::error::ConnectionError;
use super::pod::LocalPod;
use super::proxy_protocol;
use super::read_ahead::ReadAhead;
use super::report::{Direction, OpenRecord, Party, Record, deny_early};
use super::task_set::Place;
use super::tunnel::{
    Application, HANDSHAKE_DEADLINE, NoCertificate, TLS_BUFFER, certificate, connect_application,
};
use crate::state::Mesh;
use crate::state::inbound::{self, InboundError, NextHop};
use crate::state::model::Workload;

/// Why a tunnel was not accepted.
#[derive(Debug, thiserror::Error)]
enum TunnelRefused {
    #[error(transparent)]
    Classify(#[from] ClassifyError),
    #[error("identity error")]
    Identity(#[source] NoCertificate),
    #[error("tls handshake error")]
    Tls(#[source] std::io::Error),
    #[error("tls handshake error: timed out")]
    TlsDeadline,
    #[error("tls handshake error")]
    Peer(#[source] PeerIdentityError),
    #[error("http2 handshake failed")]
    Http2(#[source] HandshakeError),
}

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

/// What all connections in a tunnel have in common.
pub(crate) struct Tunnel {
    peer: SocketAddr,
    /// The pod's address that the peer connected to, with our port.
    local: SocketAddr,
    peer_identity: SpiffeId,
    local_identity: SpiffeId,
    keep_source: KeepSource,
}

/// Serves one tunnel: each connection in it gets a task of its own.
pub(crate) async fn serve(pod: Rc<LocalPod>, accepted: Accepted, _place: Place) {
    let (peer, local) = (accepted.peer, accepted.destination);
    let (tunnel, mut server) = match Box::pin(open(&pod, accepted)).await {
        Ok(opened) => opened,
        Err(error) => return deny_early(peer, local, Direction::Inbound, &error),
    };
    let tunnel = Rc::new(tunnel);
    let mut draining = std::pin::pin!(pod.draining());
    let mut drained = false;
    loop {
        let incoming = tokio::select! {
            incoming = server.accept() => incoming,
            () = &mut draining, if !drained => {
                drained = true;
                server.drain();
                continue;
            }
        };
        match incoming {
            Some(Ok(request)) => {
                pod.spawn(pod.worker.occupy(), |place| {
                    serve_request(pod.clone(), tunnel.clone(), request, place)
                });
            }
            Some(Err(error)) => {
                tracing::debug!(%peer, error = crate::telemetry::with_causes(&error), "tunnel failed");
            }
            None => break,
        }
    }
}

async fn open(
    pod: &LocalPod,
    accepted: Accepted,
) -> Result<(Tunnel, Server<TlsStream<ReadAhead>>), TunnelRefused> {
    let workload = classify::local_workload(pod).await?;
    let identity = pod.identity(&workload).map_err(ClassifyError::from)?;
    let certificate = certificate(pod, &identity).await.map_err(TunnelRefused::Identity)?;
    let deadline = tokio::time::Instant::now() + HANDSHAKE_DEADLINE;
    let acceptor = TlsAcceptor::from(certificate.server_config());
    let accepting = acceptor.accept_with(ReadAhead::new(accepted.stream), |session| {
        session.set_buffer_limit(Some(TLS_BUFFER));
    });
    let tls = timeout_at(deadline, accepting)
        .await
        .map_err(|_| TunnelRefused::TlsDeadline)?
        .map_err(TunnelRefused::Tls)?;
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let peer_identity = peer_identity(chain).map_err(TunnelRefused::Peer)?;
    let server =
        Server::handshake(tls, &pod.config().server, deadline).await.map_err(TunnelRefused::Http2)?;
    let tunnel = Tunnel {
        peer: accepted.peer,
        local: accepted.destination,
        peer_identity,
        local_identity: identity,
        keep_source: accepted.keep_source,
    };
    Ok((tunnel, server))
}

/// Serves one connection in a tunnel, from classification to its report.
pub(crate) async fn serve_request(
    pod: Rc<LocalPod>,
    tunnel: Rc<Tunnel>,
    request: IncomingConnect,
    _place: Place,
) {
    // What happens before the bytes flow is boxed, so that a long-lived connection does not keep room for it.
    let Some((record, connected)) = Box::pin(begin(&pod, &tunnel, request)).await else { return };
    let result = match connected {
        Ok((client, application)) => {
            copy::hbone_to_tcp(client, application, record.transfer()).await.map_err(Into::into)
        }
        Err(error) => Err(error),
    };
    record.finish(result);
}

type Connected = Result<(HboneStream, TcpStream), ConnectionError>;

/// Everything up to the first byte. Nothing: the request was refused before it was known where it goes.
async fn begin(pod: &LocalPod, tunnel: &Tunnel, request: IncomingConnect) -> Option<(OpenRecord, Connected)> {
    let since = Instant::now();
    match decide(pod, tunnel, &request).await {
        Ok(arrival) => {
            let record = arrival.record(pod, tunnel, &request, since).open();
            let connected = arrival.connect(pod, tunnel, request).await;
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
struct Arrival {
    mesh: Arc<Mesh>,
    workload: Arc<Workload>,
    authority: Authority,
    hop: NextHop,
}

async fn decide(
    pod: &LocalPod,
    tunnel: &Tunnel,
    request: &IncomingConnect,
) -> Result<Arrival, RequestRefused> {
    if !request.is_connect() {
        return Err(RequestRefused::Method(request.method().to_string()));
    }
    let authority = request.authority().map_err(RequestRefused::Authority)?;
    let workload = classify::local_workload(pod).await?;
    let shared = pod.worker.shared();
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
    Ok(Arrival { mesh, workload, authority, hop })
}

impl Arrival {
    fn record(&self, pod: &LocalPod, tunnel: &Tunnel, request: &IncomingConnect, since: Instant) -> Record {
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
            hbone_authority: Some(self.authority.clone()),
            service,
            transfer: Transfer::default(),
        }
    }

    /// Authorizes the connection, connects to the application and answers the client.
    async fn connect(self, pod: &LocalPod, tunnel: &Tunnel, mut request: IncomingConnect) -> Connected {
        let source = tunnel.peer.ip();
        let permit = match authorize(
            &self.mesh,
            &self.workload,
            source,
            Some(&tunnel.peer_identity),
            self.hop.address,
        ) {
            Ok(permit) => permit,
            Err(denied) => {
                request.refuse(Refusal::Unauthorized);
                return Err(denied.into());
            }
        };
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
    fn application(&self, pod: &LocalPod, tunnel: &Tunnel) -> (Application, Option<IpAddr>) {
        match self.hop.proxy_destination.is_some() && pod.config().localhost_app_tunnel {
            true => (Application::AtLoopback, None),
            false => (Application::AtPod, tunnel.keep_source.then(tunnel.peer.ip())),
        }
    }
}
