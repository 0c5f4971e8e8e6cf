//! Tunnels that other proxies open to the pod: TLS, HTTP/2, and the requests as they come.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hbone::{HandshakeError, Server};
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
use crate::metrics::Reporter;
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
    let (tunnel, mut server, mut watch) = match Box::pin(open(&pod, accepted)).await {
        Ok(opened) => opened,
        Err(error) => {
            if let Some(reason) = error.handshake_failure() {
                pod.worker.shared().handshake_failures.count(Reporter::Destination, reason);
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
                tracing::debug!(%peer, error = with_causes(&error), "tunnel failed");
            }
            None => break,
        }
    }
}

async fn open(
    pod: &LocalPod,
    accepted: Box<Accepted>,
) -> Result<(InboundTunnel, Server<TlsStream<ReadAhead>>, PeerWatch), TunnelRefused> {
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
}

impl TunnelRefused {
    /// The reason, if the two ends did not come to terms.
    fn handshake_failure(&self) -> Option<HandshakeFailure> {
        match self {
            Self::Classify(_) | Self::Identity(_) => None,
            Self::Tls(error) => Some(error.into()),
            Self::TlsDeadline => Some(HandshakeFailure::TimedOut),
            Self::Peer(_) => Some(HandshakeFailure::NoIdentity),
            Self::Http2(error) => Some(http2_failure(error)),
        }
    }
}
