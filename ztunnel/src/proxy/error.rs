//! Why a connection did not end well.

use std::io;

use super::authorize::Denied;
use super::copy::CopyError;
use super::tunnel::DialError;
use redirect::socket::{ConnectError, ConnectFailure};

/// A connection's failure, with the words that operators' tools look for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// A policy does not let it in.
    #[error("connection closed due to policy rejection")]
    Denied(#[from] Denied),
    /// The application, or a destination outside the mesh, could not be reached.
    #[error("connection failed")]
    Application(#[source] io::Error),
    /// A destination outside the mesh could not be reached.
    #[error("io error")]
    Destination(#[source] io::Error),
    /// No tunnel could be opened, or no stream in it.
    #[error(transparent)]
    Tunnel(#[from] DialError),
    /// The peer did not accept the stream.
    #[error("http status: {0}")]
    Refused(http::StatusCode),
    /// The peer broke off while the stream was being opened.
    #[error("h2 failed")]
    Stream(#[source] hbone::ConnectError),
    /// The client gave up while it was being connected.
    #[error("the client reset the connection before it was established")]
    ClientGone,
    /// The stream broke off before the answer was sent.
    #[error("h2 failed")]
    Answer(#[source] hbone::StreamError),
    /// Copying failed.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The peer's certificate was revoked while the connection was open.
    #[error("connection closed: peer certificate revoked by CRL")]
    Revoked,
    /// The process or the pod ended first.
    #[error("connection closed due to connection drain")]
    Drained,
}

/// `response_flags` of Istio's metrics.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum ResponseFlag {
    /// `-`
    None,
    /// `DENY`
    Denied,
    /// `CONNECT`
    Connect,
    /// `TLS_FAILURE`
    Tls,
    /// `H2_HANDSHAKE_FAILURE`
    Http2,
    /// `NETWORK_POLICY`
    NetworkPolicy,
    /// `IDENTITY_ERROR`
    Identity,
    /// `CERT_REVOKED`
    Revoked,
}

impl ConnectionError {
    /// Whether there was nobody to connect to, so that not a byte was sent and somebody else may be tried.
    pub(crate) fn is_out_of_reach(&self) -> bool {
        match self {
            Self::Destination(error) => is_out_of_reach(error),
            Self::Tunnel(error) => error.is_out_of_reach(),
            Self::Denied(_)
            | Self::Application(_)
            | Self::Refused(_)
            | Self::Stream(_)
            | Self::ClientGone
            | Self::Answer(_)
            | Self::Copy(_)
            | Self::Revoked
            | Self::Drained => false,
        }
    }

    /// The flag under which the failure is counted.
    pub(crate) fn flag(&self) -> ResponseFlag {
        match self {
            Self::Denied(_) => ResponseFlag::Denied,
            Self::Refused(status) if *status == http::StatusCode::UNAUTHORIZED => ResponseFlag::Denied,
            Self::Application(_)
            | Self::Destination(_)
            | Self::Refused(_)
            | Self::ClientGone
            | Self::Copy(_) => ResponseFlag::Connect,
            Self::Tunnel(error) => error.flag(),
            Self::Stream(_) | Self::Answer(_) => ResponseFlag::Http2,
            Self::Revoked => ResponseFlag::Revoked,
            Self::Drained => ResponseFlag::None,
        }
    }
}

/// Whether a connect failed because of the other end, or the way to it.
pub(super) fn is_out_of_reach(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | TimedOut)
}

/// The kernel's words for a failed connect, without ours around them.
pub(crate) fn os_error(error: ConnectError) -> io::Error {
    match error.reason {
        ConnectFailure::TimedOut => io::Error::new(io::ErrorKind::TimedOut, "connection timed out"),
        _ => error.source,
    }
}
