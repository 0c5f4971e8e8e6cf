//! Tunnels that other proxies open to the pod: TLS, HTTP/2, and the requests as they come.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hbone::{HandshakeError, Server, TunnelError, TunnelFault};
use identity::{HandshakeFailure, PeerIdentityError, PeerWatch, Side, SpiffeId, peer_identity};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::accept::{Accepted, KeepSource};
use super::classify::{self, ClassifyError};
use super::cut::CutReason;
use super::inbound;
use super::pod::LocalPod;
use super::read_ahead::ReadAhead;
use super::report::{Direction, deny_early};
use super::task_set::Place;
use super::tunnel::{HANDSHAKE_DEADLINE, NoCertificate, TLS_BUFFER, certificate, http2_failure};
use crate::metrics::{Limit, Reporter};
use crate::telemetry::with_causes;

/// What all connections in a tunnel have in common.
pub(crate) struct InboundTunnel {
    pub(super) peer: SocketAddr,
    /// The pod's address that the peer connected to, with our port.
    pub(super) local: SocketAddr,
    pub(super) peer_identity: SpiffeId,
    pub(super) local_identity: SpiffeId,
    pub(super) keep_source: KeepSource,
    /// The tunnel has been ended because its peer was revoked.
    pub(super) revoked: Cell<bool>,
    /// Addresses after which the control plane may still be asked on the peer's account.
    questions: Cell<u8>,
}

/// Addresses that one tunnel may have the control plane asked for. Only what is sent to a waypoint names others than ours.
const MOST_QUESTIONS: u8 = 64;

impl InboundTunnel {
    /// Whether the control plane may be asked once more for something that the peer names. What is not known then is refused.
    pub(super) fn may_ask(&self) -> bool {
        let left = self.questions.get();
        self.questions.set(left.saturating_sub(1));
        left > 0
    }
}

/// How long the end of a revoked peer's tunnel may take to be sent.
const GOODBYE: Duration = Duration::from_millis(100);

/// Serves one tunnel: each connection in it gets a task of its own.
pub(crate) async fn serve(pod: Rc<LocalPod>, accepted: Box<Accepted>, _place: Place) {
    let (peer, local) = (accepted.peer, accepted.destination);
    let (tunnel, mut server, mut watch) = match Box::pin(open_in_turn(&pod, accepted)).await {
        Ok(opened) => opened,
        Err(error) => {
            if let TunnelRefused::Displaced(limit) = error {
                // Nobody could read a line for each, and nobody is known whom it would be about.
                pod.worker.shared().counters.limits.count(limit);
                return tracing::debug!(%peer, %local, limit = limit.as_str(), "a tunnel made way for others");
            }
            if let Some(reason) = error.handshake_failure() {
                pod.worker.shared().counters.handshake_failures.count(Reporter::Destination, reason);
            }
            return deny_early(peer, local, Direction::Inbound, &error);
        }
    };
    let tunnel = Rc::new(tunnel);
    let mut draining = std::pin::pin!(pod.draining());
    let mut drained = false;
    loop {
        let incoming = tokio::select! {
            incoming = server.accept() => incoming,
            () = watch.revoked() => {
                tracing::warn!(%peer, identity = %tunnel.peer_identity, "ending a tunnel: the peer's certificate was revoked");
                tunnel.revoked.set(true);
                pod.open.cut_tunnel(peer, local, &CutReason::Revoked);
                server.drain();
                // The resets are sent if the peer takes them; the tunnel ends in any case.
                let goodbye = async { while server.accept().await.is_some() {} };
                drop(timeout(GOODBYE, goodbye).await);
                return;
            }
            () = &mut draining, if !drained => {
                drained = true;
                server.drain();
                continue;
            }
        };
        match incoming {
            Some(Ok(request)) => {
                pod.spawn(pod.worker.occupy(), |place| {
                    inbound::serve(pod.clone(), tunnel.clone(), Box::new(request), place)
                });
            }
            Some(Err(error)) => {
                failed(&pod, &tunnel, &error);
            }
            None => break,
        }
    }
}

/// Tells of a tunnel that failed: as a warning, if the peer did something that no proxy of a mesh does.
fn failed(pod: &LocalPod, tunnel: &InboundTunnel, error: &TunnelError) {
    let (peer, identity) = (tunnel.peer, &tunnel.peer_identity);
    let Some(fault) = error.fault() else {
        return tracing::debug!(%peer, error = with_causes(error), "tunnel failed");
    };
    pod.worker.shared().counters.tunnel_faults.count(Reporter::Destination, fault);
    let (reason, error) = (fault.as_str(), with_causes(error));
    match fault {
        // So does every peer whose node is gone.
        TunnelFault::Silent => tracing::debug!(%peer, reason, error, "tunnel failed"),
        _ => tracing::warn!(%peer, %identity, reason, error, "ended a tunnel because of what its peer sent"),
    }
}

type Opened = (InboundTunnel, Server<TlsStream<ReadAhead>>, PeerWatch);

/// Opens the tunnel, unless too many are being opened.
async fn open_in_turn(pod: &LocalPod, accepted: Box<Accepted>) -> Result<Opened, TunnelRefused> {
    let mut place = pod.worker.shared().handshakes.begin(pod.pod.instance);
    tokio::select! {
        opened = open(pod, accepted) => opened,
        limit = place.displaced() => Err(TunnelRefused::Displaced(limit)),
    }
}

async fn open(pod: &LocalPod, accepted: Box<Accepted>) -> Result<Opened, TunnelRefused> {
    let workload = classify::local_workload(pod).await?;
    let identity = pod.identity(&workload).map_err(ClassifyError::from)?;
    let certificate = certificate(pod, &identity).await.map_err(TunnelRefused::Identity)?;
    let deadline = Instant::now() + HANDSHAKE_DEADLINE;
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
    let watch = certificate.watch_peer(Side::Destination, chain);
    let server =
        Server::handshake(tls, &pod.config().server, deadline).await.map_err(TunnelRefused::Http2)?;
    let tunnel = InboundTunnel {
        peer: accepted.peer,
        local: accepted.destination,
        peer_identity,
        local_identity: identity,
        keep_source: accepted.keep_source,
        revoked: Cell::new(false),
        questions: Cell::new(MOST_QUESTIONS),
    };
    Ok((tunnel, server, watch))
}

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
    #[error("too many tunnels are being opened: {}", .0.as_str())]
    Displaced(Limit),
}

impl TunnelRefused {
    /// The reason, if the two ends did not come to terms.
    fn handshake_failure(&self) -> Option<HandshakeFailure> {
        match self {
            Self::Classify(_) | Self::Identity(_) | Self::Displaced(_) => None,
            Self::Tls(error) => Some(error.into()),
            Self::TlsDeadline => Some(HandshakeFailure::TimedOut),
            Self::Peer(_) => Some(HandshakeFailure::NoIdentity),
            Self::Http2(error) => Some(http2_failure(error)),
        }
    }
}
