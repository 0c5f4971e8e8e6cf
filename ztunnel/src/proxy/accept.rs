//! Stage 1: a connection arrives on one of a pod's listeners. [`listen`](super::listen) makes these values.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use tokio::net::TcpStream;

use crate::config::SocketConfig;
use crate::config::settings;

/// Which of a pod's listeners.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Listener {
    /// 15001: what the pod's applications opened.
    Outbound,
    /// 15008: tunnels from other proxies.
    Tunnel,
    /// 15006: what arrived for the pod outside a tunnel.
    Plaintext,
    /// 15080, on loopback: what the pod's applications ask for by SOCKS5.
    Socks,
}

impl Listener {
    /// Those that every pod has.
    pub(crate) const ALWAYS: [Self; 3] = [Self::Outbound, Self::Tunnel, Self::Plaintext];

    /// The port that the pod's rules redirect to, or that other proxies dial.
    pub(crate) const fn port(self) -> u16 {
        match self {
            Self::Outbound => 15001,
            Self::Tunnel => 15008,
            Self::Plaintext => 15006,
            Self::Socks => settings::SOCKS5_PORT,
        }
    }

    /// What the port is for, for the log.
    pub(crate) fn component(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Tunnel => "inbound",
            Self::Plaintext => "inbound plaintext",
            Self::Socks => "socks5",
        }
    }

    /// The ports that are ours with these settings: a connection to one of them through ourselves would never end.
    pub(crate) fn own_ports(sockets: &SocketConfig) -> Vec<u16> {
        let socks = sockets.socks5.then_some(Self::Socks.port());
        Self::OWN_PORTS.into_iter().chain(socks).collect()
    }

    /// Our ports that every pod has: a connection to one of them through ourselves would never end.
    pub(crate) const OWN_PORTS: [u16; 3] =
        [Self::Outbound.port(), Self::Tunnel.port(), Self::Plaintext.port()];
}

/// A connection that was accepted, before anything is decided about it.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// Where it came in.
    pub(crate) listener: Listener,
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
