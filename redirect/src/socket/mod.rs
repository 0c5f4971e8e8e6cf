//! Sockets inside a pod's network namespace.
//!
//! Only socket(2) runs inside: from then on the socket belongs to the namespace, so options, bind and connect are
//! done from wherever the thread lives. Options that accepted connections inherit (Linux clones the listening
//! socket's) are set once on the listener and cost nothing per connection.

mod connect;
mod destination;
mod listen;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

pub use connect::{ConnectError, ConnectFailure, ConnectOptions, connect};
pub use destination::{OriginalDestination, original_destination};
pub use listen::{
    DEFAULT_BACKLOG, ListenError, ListenErrorKind, ListenOptions, ListenStep, Listening, PortSharing,
    Transparency, bind_udp, listen,
};
use socket2::{Domain, Socket, TcpKeepalive, Type};

use crate::netns::Netns;
use crate::sys;

/// The mark that tells the proxy's packets from everybody else's in the pod's rules, as Istio's CNI agent installs
/// them: `0x539`, compared under the mask `0xfff`.
pub const DEFAULT_PACKET_MARK: u32 = 1337;

/// When a silent TCP peer counts as gone (tcp(7)). Whole seconds; fractions are cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe (`TCP_KEEPIDLE`).
    pub idle: Duration,
    /// Between probes (`TCP_KEEPINTVL`).
    pub interval: Duration,
    /// Unanswered probes until the connection is dropped (`TCP_KEEPCNT`).
    pub retries: u32,
}

/// Istio's defaults: 180 s, 180 s, 9.
impl Default for Keepalive {
    fn default() -> Keepalive {
        Keepalive { idle: Duration::from_secs(180), interval: Duration::from_secs(180), retries: 9 }
    }
}

impl Keepalive {
    /// Four system calls.
    fn apply(&self, socket: &Socket) -> io::Result<()> {
        let Keepalive { idle, interval, retries } = *self;
        socket.set_tcp_keepalive(
            &TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(retries),
        )
    }
}

/// Bytes written to the TCP socket that the peer's kernel has not acknowledged (`SIOCOUTQ`, tcp(7)); a FIN counts as
/// one. Zero says that the peer's kernel has everything, not that its process has read it.
///
/// Two system calls. `InvalidInput` for a listening socket and for one that is not TCP.
pub fn unsent_bytes(socket: &impl AsFd) -> io::Result<usize> {
    sys::queue::unacknowledged(socket.as_fd())
}

/// Bytes of the TCP socket that are under way: sent, and not acknowledged by the peer's kernel (`SIOCOUTQ` less
/// `SIOCOUTQNSD`). A reset that is sent when there are none is just what the peer's kernel expects next.
///
/// Four system calls. `InvalidInput` for a listening socket and for one that is not TCP.
pub fn bytes_in_flight(socket: &impl AsFd) -> io::Result<usize> {
    // In this order: what is sent in between counts as under way.
    let waiting = sys::queue::not_sent(socket.as_fd())?;
    Ok(sys::queue::unacknowledged(socket.as_fd())?.saturating_sub(waiting))
}

/// No delay, and when a silent peer counts as gone: the same for sockets that connect and that listen.
fn set_tcp_options(
    socket: &Socket,
    keepalive: Option<Keepalive>,
    user_timeout: Option<Duration>,
) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    if let Some(keepalive) = keepalive {
        keepalive.apply(socket)?;
    }
    if user_timeout.is_some() {
        socket.set_tcp_user_timeout(user_timeout)?;
    }
    Ok(())
}

/// A close-on-exec, non-blocking socket in `namespace`, or in the thread's own when there is none.
fn create(namespace: Option<&Netns>, address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let create = || Socket::new(Domain::for_address(address), kind.nonblocking(), None);
    match namespace {
        Some(namespace) => namespace.run(create).map_err(NamespaceEntry)?,
        None => create(),
    }
}

/// Marks an error as that of entering the namespace rather than of making the socket, for its words.
#[derive(Debug, thiserror::Error)]
#[error("cannot enter the network namespace")]
struct NamespaceEntry(#[source] io::Error);

impl From<NamespaceEntry> for io::Error {
    fn from(entry: NamespaceEntry) -> io::Error {
        io::Error::new(entry.0.kind(), entry)
    }
}
