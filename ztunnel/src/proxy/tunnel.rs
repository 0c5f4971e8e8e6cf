//! Stage 4: the byte stream that a connection goes on in.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hbone::{ConnectRequest, Connected, CutMark, HandshakeError, PoolError, Tunnel, TunnelFault};
use identity::{
    CertificateError, ExpectedPeers, HandshakeFailure, Side, SpiffeId, WorkloadCertificate, peer_identity,
    unnamed_server,
};
use redirect::socket::{ConnectError, ConnectFailure};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use super::accept::Listener;
use super::authorize::Permit;
use super::error::{ConnectionError, ResponseFlag, is_out_of_reach, os_error};
use super::pod::LocalPod;
use super::read_ahead::ReadAhead;
use super::tcp;
use crate::metrics::Reporter;
use crate::telemetry::with_causes;

/// How long TLS and HTTP/2 may take to come up, once TCP has.
pub(crate) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// What may be encrypted ahead of the kernel's taking it: a frame of the largest size we send, headers and all.
pub(crate) const TLS_BUFFER: usize = 256 * 1024;

/// How long an open tunnel's peer may take to answer a CONNECT: its own connect limit, and some.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(15);

/// What two connections of a pod must have in common to share a tunnel. Pools belong to one pod on one worker, so the
/// namespace and the source address are the same anyway. What came by SOCKS5 has tunnels of its own.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct TunnelKey {
    /// Where the connections came in.
    pub(crate) listener: Listener,
    /// Whom the tunnel speaks for.
    pub(crate) source: SpiffeId,
    /// Who may answer.
    pub(crate) expected: ExpectedPeers,
    /// Where it leads.
    pub(crate) peer: SocketAddr,
}

/// Why there is no tunnel.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// We have no certificate to show.
    #[error("identity error")]
    Identity(#[source] Rc<NoCertificate>),
    /// The peer's node did not answer at all.
    #[error("connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008")]
    TimedOut(#[source] Rc<ConnectError>),
    /// The peer could not be reached.
    #[error("io error")]
    Connect(#[source] Rc<io::Error>),
    /// The peer could not be authenticated, or did not accept us.
    #[error("io error")]
    Tls(#[source] Rc<io::Error>),
    /// The peer does not speak HTTP/2.
    #[error("http2 handshake failed")]
    Http2(#[source] Rc<HandshakeError>),
    /// The peer ended the tunnel before it could be used, as it does when it does not accept our certificate.
    #[error("http2 handshake failed: the peer closed the tunnel at once")]
    Lost,
    /// The pool is closing, or no tunnel had room in time.
    #[error("no tunnel became available")]
    Unavailable,
    /// Nothing leads through the gateway that the tunnel was to go through.
    #[error(transparent)]
    Gateway(Rc<ConnectionError>),
}

/// Why a pod has no certificate for a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoCertificate {
    /// The store has none, and could not get one.
    #[error(transparent)]
    Store(#[from] CertificateError),
    /// The authority has not answered in time.
    #[error("no certificate was issued in time")]
    Deadline,
}

impl DialError {
    pub(crate) fn flag(&self) -> ResponseFlag {
        match self {
            Self::Identity(_) => ResponseFlag::Identity,
            Self::TimedOut(_) => ResponseFlag::NetworkPolicy,
            Self::Connect(_) | Self::Unavailable => ResponseFlag::Connect,
            Self::Tls(_) => ResponseFlag::Tls,
            Self::Http2(_) | Self::Lost => ResponseFlag::Http2,
            Self::Gateway(error) => error.flag(),
        }
    }

    /// See [`ConnectionError::is_out_of_reach`].
    pub(super) fn is_out_of_reach(&self) -> bool {
        match self {
            Self::TimedOut(_) => true,
            Self::Connect(error) => is_out_of_reach(error),
            Self::Gateway(error) => error.is_out_of_reach(),
            Self::Identity(_) | Self::Tls(_) | Self::Http2(_) | Self::Lost | Self::Unavailable => false,
        }
    }

    /// The reason, if the two ends did not come to terms.
    fn handshake_failure(&self) -> Option<HandshakeFailure> {
        match self {
            Self::Identity(_)
            | Self::TimedOut(_)
            | Self::Connect(_)
            | Self::Lost
            | Self::Unavailable
            | Self::Gateway(_) => None,
            Self::Tls(error) => Some(error.as_ref().into()),
            Self::Http2(error) => Some(http2_failure(error)),
        }
    }
}

/// Why HTTP/2 did not come up. In TLS 1.3 the client is done before the server has judged it, so a refusal arrives here.
pub(super) fn http2_failure(error: &HandshakeError) -> HandshakeFailure {
    match error {
        HandshakeError::Deadline => HandshakeFailure::TimedOut,
        HandshakeError::Violation(_) => HandshakeFailure::Protocol,
        HandshakeError::Transport(error) => error.into(),
    }
}

/// Opens a stream for a client's connection, in a tunnel that the pod's connections share.
pub(crate) async fn open_stream(
    pod: &Rc<LocalPod>,
    key: TunnelKey,
    request: &ConnectRequest,
) -> Result<Connected, ConnectionError> {
    let deadline = Instant::now() + pod.pod.connect.timeout + HANDSHAKE_DEADLINE + ANSWER_DEADLINE;
    let dial = {
        let (pod, key) = (pod.clone(), key.clone());
        async move || {
            let dialled = dial(&pod, &key).await;
            count_failure(&pod, &dialled);
            dialled
        }
    };
    Ok(pod.pool.connect(&key, request, deadline, dial).await?)
}

/// Counts a tunnel that did not come up because its two ends did not come to terms.
pub(super) fn count_failure(pod: &LocalPod, dialled: &Result<Tunnel, DialError>) {
    if let Some(reason) = dialled.as_ref().err().and_then(DialError::handshake_failure) {
        pod.worker.shared().counters.handshake_failures.count(Reporter::Source, reason);
    }
}

impl From<PoolError<DialError>> for ConnectionError {
    fn from(error: PoolError<DialError>) -> Self {
        match error {
            PoolError::Dial(error) => error.into(),
            PoolError::Connect(hbone::ConnectError::Refused(status)) => Self::Refused(status),
            // Tunnels are cut for one reason only.
            PoolError::Connect(hbone::ConnectError::Cut) => Self::Revoked,
            PoolError::Connect(error) => Self::Stream(error),
            PoolError::Lost => DialError::Lost.into(),
            PoolError::Deadline | PoolError::Drained => DialError::Unavailable.into(),
        }
    }
}

/// The certificate of `identity`, which is the pod's.
pub(crate) async fn certificate(
    pod: &LocalPod,
    identity: &SpiffeId,
) -> Result<Arc<WorkloadCertificate>, NoCertificate> {
    let asking = pod.worker.shared().certificates.certificate(identity);
    match timeout(HANDSHAKE_DEADLINE, asking).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(NoCertificate::Deadline),
    }
}

/// TCP, TLS and HTTP/2 to the peer.
async fn dial(pod: &LocalPod, key: &TunnelKey) -> Result<Tunnel, DialError> {
    let certificate =
        certificate(pod, &key.source).await.map_err(|error| DialError::Identity(Rc::new(error)))?;
    let connected = tcp::connect(pod, None, key.peer).await;
    let tcp = connected.map_err(|error| match error.reason {
        ConnectFailure::TimedOut => DialError::TimedOut(Rc::new(error)),
        _ => DialError::Connect(Rc::new(os_error(error))),
    })?;
    secure(pod, ReadAhead::new(tcp), &certificate, &key.expected, Way::Direct(key.peer)).await
}

/// What a tunnel goes over.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// TCP to this address.
    Direct(SocketAddr),
    /// A stream through the gateway at this address, in a tunnel that this side may have cut.
    Through(SocketAddr, CutMark),
}

/// TLS and HTTP/2 over a byte stream to one of `expected`. The tunnel's work goes on in a task of the pod.
pub(super) async fn secure<IO>(
    pod: &LocalPod,
    io: IO,
    certificate: &WorkloadCertificate,
    expected: &ExpectedPeers,
    way: Way,
) -> Result<Tunnel, DialError>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let deadline = Instant::now() + HANDSHAKE_DEADLINE;
    let connector = TlsConnector::from(certificate.client_config(expected));
    let tls = connector.connect_with(unnamed_server(), io, |session| {
        session.set_buffer_limit(Some(TLS_BUFFER));
    });
    let tls = timeout_at(deadline, tls)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "TLS handshake timed out")))
        .map_err(|error| DialError::Tls(Rc::new(error)))?;
    let (mut watch, name) = {
        let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
        // Only of interest where it does not follow from the way; it was read once already, by the handshake.
        let name = matches!(way, Way::Through(..)).then(|| peer_identity(chain)).and_then(Result::ok);
        (certificate.watch_peer(Side::Source, chain), name)
    };
    let (tunnel, driver) = Tunnel::handshake(tls, &pod.config().client, deadline)
        .await
        .map_err(|error| DialError::Http2(Rc::new(error)))?;
    if let Some(name) = name {
        tunnel.name_peer(name.as_str().into());
    }
    let cut = tunnel.cut_mark();
    let (peer, outer_cut) = match way {
        Way::Direct(peer) => (peer, None),
        Way::Through(gateway, cut) => (gateway, Some(cut)),
    };
    let faults = pod.worker.shared().counters.tunnel_faults.clone();
    pod.spawn_driver(|place| async move {
        let _place = place;
        let ended = tokio::select! {
            ended = driver => ended,
            () = watch.revoked() => {
                tracing::warn!(%peer, "cutting a tunnel: the peer's certificate was revoked");
                // What is dropped with this task is the transport.
                return cut.set();
            }
        };
        // What this looks like from inside is of no interest then.
        if outer_cut.is_some_and(|outer| outer.is_set()) {
            return cut.set();
        }
        match ended {
            Ok(()) => tracing::debug!(%peer, "tunnel closed"),
            Err(error) => {
                let fault = error.fault();
                if let Some(fault) = fault {
                    faults.count(Reporter::Source, fault);
                }
                let (reason, error) = (fault.map(TunnelFault::as_str), with_causes(&error));
                match fault {
                    None | Some(TunnelFault::Silent) => {
                        tracing::debug!(%peer, reason, error, "tunnel failed")
                    }
                    Some(_) => {
                        tracing::warn!(%peer, reason, error, "ended a tunnel because of what its peer sent")
                    }
                }
            }
        }
    });
    Ok(tunnel)
}

/// Where the application of a permitted connection listens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Application {
    /// At the address that was permitted.
    AtPod,
    /// At the same port of the loopback address: it terminates tunnels itself.
    AtLoopback,
}

/// Connects to the application that the policies have permitted the client to reach, from `source` if given.
pub(crate) async fn connect_application(
    pod: &LocalPod,
    permit: &Permit,
    application: Application,
    source: Option<IpAddr>,
) -> Result<TcpStream, ConnectionError> {
    let permitted = permit.destination();
    let destination = match (application, permitted.ip()) {
        (Application::AtPod, _) => permitted,
        (Application::AtLoopback, IpAddr::V4(_)) => (Ipv4Addr::LOCALHOST, permitted.port()).into(),
        (Application::AtLoopback, IpAddr::V6(_)) => (Ipv6Addr::LOCALHOST, permitted.port()).into(),
    };
    tcp::connect(pod, source, destination)
        .await
        .map_err(|error| ConnectionError::Application(os_error(error)))
}

/// Waits for `connecting`, unless the client resets its connection before. That it has finished sending does not count.
pub(crate) async fn unless_reset<T>(
    client: &TcpStream,
    connecting: impl Future<Output = Result<T, ConnectionError>>,
) -> Result<T, ConnectionError> {
    tokio::select! {
        biased;
        connected = connecting => connected,
        _ = client.ready(Interest::ERROR) => Err(ConnectionError::ClientGone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_by_the_server_is_told_from_a_server_that_is_not_there() {
        let alert = rustls_alert(tokio_rustls::rustls::AlertDescription::CertificateRevoked);
        let refused = DialError::Http2(Rc::new(HandshakeError::Transport(alert)));
        assert_eq!(refused.handshake_failure(), Some(HandshakeFailure::OurRevoked));
        let late = DialError::Tls(Rc::new(io::ErrorKind::TimedOut.into()));
        assert_eq!(late.handshake_failure(), Some(HandshakeFailure::TimedOut));
        let absent = DialError::Connect(Rc::new(io::ErrorKind::ConnectionRefused.into()));
        assert_eq!(absent.handshake_failure(), None);
    }

    /// As a TLS stream reports it.
    fn rustls_alert(alert: tokio_rustls::rustls::AlertDescription) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, tokio_rustls::rustls::Error::AlertReceived(alert))
    }
}
