//! One HTTP/2 connection over TLS, and calls on it.
//!
//! Steps, in order: addresses of the host, TCP, TLS, HTTP/2. Each has a deadline and an error of its own.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::body::Body;
use tower_service::Service;

use super::verify::ALPN_H2;
use super::{Deadlines, Endpoint, RootError, TokenError};

/// How a dead peer is noticed by the kernel: idle time, time between probes, probes.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(300), Duration::from_secs(75), 9);
/// How it is noticed by HTTP/2 while a call is open: time between PINGs, and how long one may go unanswered.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// What the server may send on one stream before we have taken it: the first push of a large mesh is one message of tens of
/// MiB, and a window round trip for each 64 KiB of it would be most of the time it takes.
const STREAM_WINDOW: u32 = 8 << 20;
/// The same for the connection.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// A connection to make calls on; clones share it.
///
/// It fills in scheme and authority of requests, so callers give only the path. A task of its own drives the connection and
/// ends when the last clone is gone and the last call has ended, or when the connection breaks.
#[derive(Clone)]
pub struct H2Channel {
    calls: SendRequest<Body>,
    authority: Authority,
}

/// A step of an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Reading the token file.
    Token,
    /// Reading the roots.
    Roots,
    /// Looking up the host.
    Resolve,
    /// Opening the TCP connection.
    Tcp,
    /// The TLS handshake.
    Tls,
    /// The beginning of HTTP/2.
    Http2,
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Ours: there is no token to send.
    #[error("no token to authenticate with")]
    Token(#[source] TokenError),
    /// Ours: there is nothing to verify the server with.
    #[error("no roots to verify the server with")]
    Roots(#[source] RootError),
    /// The network's: the host has no address, or nobody can tell.
    #[error("cannot look up {host}")]
    Resolve {
        /// The host.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The network's: no address can be reached. The last one tried is told.
    #[error("cannot connect to {address}")]
    Tcp {
        /// Where to.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The peer's, as a rule: it is not who it should be, or speaks no TLS that we accept.
    #[error("TLS with {authority} failed")]
    Tls {
        /// Whom with.
        authority: Authority,
        /// What went wrong.
        source: io::Error,
    },
    /// The peer's: it does not choose HTTP/2 (ALPN `h2`).
    #[error("{authority} does not speak HTTP/2")]
    NotHttp2 {
        /// Whom with.
        authority: Authority,
    },
    /// The peer's: HTTP/2 did not begin.
    #[error("HTTP/2 with {authority} failed")]
    Http2 {
        /// Whom with.
        authority: Authority,
        /// What went wrong.
        source: hyper::Error,
    },
    /// A step took too long. For the first two that is ours, else the network's or the peer's.
    #[error("{step} took longer than {deadline:?}")]
    TimedOut {
        /// Which step.
        step: Step,
        /// How long it was given.
        deadline: Duration,
    },
}

impl ConnectError {
    /// Whether the fault is on this side: a file that is missing or wrong, which no other server would mend.
    pub fn is_ours(&self) -> bool {
        match self {
            Self::Token(_) | Self::Roots(_) => true,
            Self::TimedOut { step, .. } => matches!(step, Step::Token | Step::Roots),
            Self::Resolve { .. } | Self::Tcp { .. } | Self::Tls { .. } => false,
            Self::NotHttp2 { .. } | Self::Http2 { .. } => false,
        }
    }
}

impl H2Channel {
    /// Whether calls can no longer be made.
    pub fn is_closed(&self) -> bool {
        self.calls.is_closed()
    }
}

impl Service<Request<Body>> for H2Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.calls.poll_ready(context)
    }

    /// Dropping the future, or later the body of the response, ends the call (RST_STREAM) and not the connection.
    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = Uri::builder()
            .scheme(Scheme::HTTPS)
            .authority(self.authority.clone())
            .path_and_query(path.unwrap_or_else(|| PathAndQuery::from_static("/")))
            .build()
            .expect("scheme, authority and path are all there and valid");
        Box::pin(self.calls.send_request(request))
    }
}

impl fmt::Debug for H2Channel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_closed() { "closed" } else { "open" };
        write!(formatter, "H2Channel({}, {state})", self.authority)
    }
}

impl Step {
    /// Awaits `work`, but no longer than `deadline`.
    pub(super) async fn within<T>(
        self,
        deadline: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, ConnectError> {
        let done = tokio::time::timeout(deadline, work).await;
        done.map_err(|_| ConnectError::TimedOut { step: self, deadline })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Token => "reading the token",
            Self::Roots => "reading the root certificates",
            Self::Resolve => "looking up the host",
            Self::Tcp => "connecting",
            Self::Tls => "the TLS handshake",
            Self::Http2 => "the beginning of HTTP/2",
        })
    }
}

/// Goes through the steps. Dropping the future closes what was opened.
pub(super) async fn connect(
    endpoint: &Endpoint,
    tls: Arc<ClientConfig>,
    deadlines: Deadlines,
) -> Result<H2Channel, ConnectError> {
    let addresses = Step::Resolve.within(deadlines.resolve, resolve(endpoint)).await??;
    let socket = open(&addresses, deadlines.tcp).await?;
    let stream = Step::Tls.within(deadlines.tls, handshake(endpoint, tls, socket)).await??;
    let authority = endpoint.authority().clone();
    let begun = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .keep_alive_while_idle(false)
        .handshake(TokioIo::new(stream));
    let begun = Step::Http2.within(deadlines.http2, begun).await?;
    let (calls, connection) =
        begun.map_err(|source| ConnectError::Http2 { authority: authority.clone(), source })?;
    tokio::spawn({
        let authority = authority.clone();
        async move {
            match connection.await {
                Ok(()) => tracing::debug!(%authority, "connection to the control plane closed"),
                Err(error) => {
                    let error = crate::telemetry::with_causes(&error);
                    tracing::debug!(%authority, error, "connection to the control plane broke");
                }
            }
        }
    });
    Ok(H2Channel { calls, authority })
}

async fn resolve(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, ConnectError> {
    let failed = |source| ConnectError::Resolve { host: endpoint.host().to_owned(), source };
    let found = tokio::net::lookup_host((endpoint.host(), endpoint.port())).await.map_err(failed)?;
    let addresses: Vec<_> = found.collect();
    match addresses.is_empty() {
        true => Err(failed(io::Error::new(io::ErrorKind::NotFound, "it has no address"))),
        false => Ok(addresses),
    }
}

/// Tries the addresses one after another. Each gets an equal share of the time that is left, so that a first one that swallows
/// packets leaves time for the others.
async fn open(addresses: &[SocketAddr], deadline: Duration) -> Result<TcpStream, ConnectError> {
    let end = Instant::now() + deadline;
    let mut last = ConnectError::TimedOut { step: Step::Tcp, deadline };
    for (tried, address) in addresses.iter().enumerate() {
        let waiting = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = end.saturating_duration_since(Instant::now()) / waiting;
        let failed = |source| ConnectError::Tcp { address: *address, source };
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => {
                set_options(&socket).map_err(failed)?;
                return Ok(socket);
            }
            Ok(Err(source)) => last = failed(source),
            Err(_) => last = ConnectError::TimedOut { step: Step::Tcp, deadline: share },
        }
    }
    Err(last)
}

fn set_options(socket: &TcpStream) -> io::Result<()> {
    let (idle, interval, probes) = KEEPALIVE;
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(probes);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)?;
    socket.set_nodelay(true)
}

async fn handshake(
    endpoint: &Endpoint,
    tls: Arc<ClientConfig>,
    socket: TcpStream,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let authority = || endpoint.authority().clone();
    let stream = TlsConnector::from(tls).connect(endpoint.name().clone(), socket).await;
    let stream = stream.map_err(|source| ConnectError::Tls { authority: authority(), source })?;
    match stream.get_ref().1.alpn_protocol() {
        Some(ALPN_H2) => Ok(stream),
        _ => Err(ConnectError::NotHttp2 { authority: authority() }),
    }
}
