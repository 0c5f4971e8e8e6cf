//! Stage 1: a connection arrives on one of a pod's listeners. [`listen`](super::listen) makes these values.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use tokio::net::TcpStream;

/// Which of a pod's listeners.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Listener {
    /// 15001: what the pod's applications opened.
    Outbound,
    /// 15008: tunnels from other proxies.
    Tunnel,
    /// 15006: what arrived for the pod outside a tunnel.
    Plaintext,
}

impl Listener {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Outbound, Self::Tunnel, Self::Plaintext];

    /// The port that the pod's rules redirect to, or that other proxies dial.
    pub(crate) const fn port(self) -> u16 {
        match self {
            Self::Outbound => 15001,
            Self::Tunnel => 15008,
            Self::Plaintext => 15006,
        }
    }

    /// What the port is for, for the log.
    pub(crate) fn component(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Tunnel => "inbound",
            Self::Plaintext => "inbound plaintext",
        }
    }

    /// Our ports: a connection to one of them through ourselves would never end.
    pub(crate) const OWN_PORTS: [u16; 3] =
        [Self::Outbound.port(), Self::Tunnel.port(), Self::Plaintext.port()];
}

/// A connection that was accepted, before anything is decided about it.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// The client's connection.
    pub(crate) stream: TcpStream,
    /// Who connected, as the kernel knows it.
    pub(crate) peer: SocketAddr,
    /// Where the client was going before redirection.
    pub(crate) destination: SocketAddr,
    /// Whether the client's address may be used towards the application.
    pub(crate) keep_source: KeepSource,
    /// When it was accepted.
    pub(crate) at: Instant,
}

/// Whether a client's address is used towards the application.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum KeepSource {
    /// It is.
    Yes,
    /// The kernel does not let us, or we were told not to.
    No,
}

impl KeepSource {
    /// The address to connect from, if the client's is kept.
    pub(crate) fn then(self, client: IpAddr) -> Option<IpAddr> {
        match self {
            Self::Yes => Some(client),
            Self::No => None,
        }
    }
}
