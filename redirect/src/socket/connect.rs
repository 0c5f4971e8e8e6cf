//! Connecting from inside a pod, as the pod or in somebody else's name.
//!
//! To reach the pod's application with the client's own source address, the socket is *transparent*: it may be bound
//! to an address that is not local, and the rules of the pod route the application's replies back to it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::{Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::{Keepalive, create, set_tcp_options};
use crate::netns::Netns;

/// What a connecting socket is set to. `TCP_NODELAY` is always on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectOptions {
    /// `SO_MARK`. Needs `CAP_NET_ADMIN`. None, or zero, leaves packets unmarked.
    pub mark: Option<u32>,
    /// None leaves keep-alive off.
    pub keepalive: Option<Keepalive>,
    /// `TCP_USER_TIMEOUT`: how long sent data may stay unacknowledged. None leaves it to the kernel.
    pub user_timeout: Option<Duration>,
    /// From the call to the established connection.
    pub timeout: Duration,
}

/// Istio's: no mark, keep-alive with its defaults, 10 seconds.
impl Default for ConnectOptions {
    fn default() -> ConnectOptions {
        ConnectOptions {
            mark: None,
            keepalive: Some(Keepalive::default()),
            user_timeout: None,
            timeout: Duration::from_secs(10),
        }
    }
}

/// A connection could not be established.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {destination}: {reason}")]
pub struct ConnectError {
    /// Where to.
    pub destination: SocketAddr,
    /// Whose fault it is.
    pub reason: ConnectFailure,
    /// What the kernel said, or `TimedOut` when it said nothing in time.
    pub source: io::Error,
}

/// Whose fault it is that there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ConnectFailure {
    /// The destination refused: nobody listens.
    #[error("connection refused")]
    Refused,
    /// Neither answer nor refusal within the time allowed.
    #[error("timed out")]
    TimedOut,
    /// No route, or a router or the destination said so.
    #[error("unreachable")]
    Unreachable,
    /// Accepted and dropped at once.
    #[error("connection reset")]
    Reset,
    /// This side has no descriptors, ports or memory left, or lacks a capability.
    #[error("out of local resources or not permitted")]
    Local,
    /// Anything else.
    #[error("failed")]
    Other,
}

/// Connects to `destination` from inside `namespace` (or the thread's own), as `source` if given.
///
/// An unusable `source` (of the other family, or refused by the kernel) is a warning, and the kernel chooses. A
/// source equal to the destination is the pod calling itself, and is not bound either. Its port is never kept, and is
/// one that the source will hardly choose for a connection of its own: connection tracking in the pod would take that one
/// for a part of ours.
///
/// System calls: two setns, socket, mark, nodelay, four of keep-alive, connect, the registration with epoll and the
/// fetching of the outcome: twelve, and three more to bind a source.
///
/// Dropping the future closes the socket. Needs a tokio runtime of any kind with I/O and time.
pub async fn connect(
    namespace: Option<&Netns>,
    source: Option<IpAddr>,
    destination: SocketAddr,
    options: &ConnectOptions,
) -> Result<TcpStream, ConnectError> {
    let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
    let source = source.map(|source| source.to_canonical()).filter(|source| *source != destination.ip());
    let established = tokio::time::timeout(options.timeout, async {
        for _ in 1..PORT_ATTEMPTS {
            let socket = prepare(namespace, source.map(Foreign::OutOfTheWay), destination, options)?;
            match TcpSocket::from_std_stream(socket.into()).connect(destination).await {
                // The source has a connection to the destination from that very port.
                Err(error) if source.is_some() && error.kind() == io::ErrorKind::AddrNotAvailable => {}
                outcome => return outcome,
            }
        }
        let socket = prepare(namespace, source.map(Foreign::Any), destination, options)?;
        TcpSocket::from_std_stream(socket.into()).connect(destination).await
    });
    let outcome = established.await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()));
    outcome.map_err(|source| ConnectError { destination, reason: ConnectFailure::of(&source), source })
}

/// Ports below those from which Linux chooses for a connection by itself (`net.ipv4.ip_local_port_range`), and above
/// those that take a privilege.
const OUT_OF_THE_WAY: RangeInclusive<u16> = 1024..=32767;

/// Ports to try at random before the kernel is left to look for a free one among all of its own.
const PORT_ATTEMPTS: usize = 8;

/// A source address that is not ours, and how its port is chosen.
#[derive(Clone, Copy)]
enum Foreign {
    /// At random, from those that the source itself will hardly use.
    OutOfTheWay(IpAddr),
    /// By the kernel, when it connects.
    Any(IpAddr),
}

fn prepare(
    namespace: Option<&Netns>,
    source: Option<Foreign>,
    destination: SocketAddr,
    options: &ConnectOptions,
) -> io::Result<Socket> {
    let socket = create(namespace, destination, Type::STREAM)?;
    if let Some(mark) = options.mark.filter(|mark| *mark != 0) {
        // Without the mark the pod's rules would redirect the connection to the proxy itself.
        socket.set_mark(mark)?;
    }
    if let Err(error) = set_tcp_options(&socket, options.keepalive, options.user_timeout) {
        tracing::debug!(%destination, %error, "a connection goes without its socket options");
    }
    if let Some(source) = source
        && let Err(error) = source.bind(&socket)
    {
        let address = source.address();
        tracing::warn!(source = %address, %destination, %error, "cannot keep the source address of a connection");
    }
    Ok(socket)
}

impl Foreign {
    fn address(self) -> IpAddr {
        match self {
            Foreign::OutOfTheWay(address) | Foreign::Any(address) => address,
        }
    }

    /// Binds the address. `IP_TRANSPARENT` alone suffices: it permits the bind, as `IP_FREEBIND` would, and also the route
    /// lookup of connect, which `IP_FREEBIND` does not.
    fn bind(self, socket: &Socket) -> io::Result<()> {
        let address = self.address();
        match address {
            IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
        match self {
            Foreign::OutOfTheWay(_) => bind_out_of_the_way(socket, address),
            Foreign::Any(_) => {
                // Else bind would reserve a port for this source alone, whatever the destination, and run out of them.
                setsockopt(socket, IpBindAddressNoPort, &true)?;
                socket.bind(&SocketAddr::new(address, 0).into())
            }
        }
    }
}

/// Binds a port at random. That other connections use it, to other destinations, is no obstacle; listeners are.
fn bind_out_of_the_way(socket: &Socket, address: IpAddr) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    let mut outcome = Ok(());
    for _ in 0..PORT_ATTEMPTS {
        outcome = socket.bind(&SocketAddr::new(address, fastrand::u16(OUT_OF_THE_WAY)).into());
        match &outcome {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            _ => break,
        }
    }
    outcome
}

impl ConnectFailure {
    fn of(error: &io::Error) -> ConnectFailure {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionRefused => ConnectFailure::Refused,
            Kind::TimedOut => ConnectFailure::TimedOut,
            Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown => {
                ConnectFailure::Unreachable
            }
            Kind::ConnectionReset | Kind::ConnectionAborted => ConnectFailure::Reset,
            Kind::AddrNotAvailable | Kind::AddrInUse | Kind::PermissionDenied | Kind::OutOfMemory => {
                ConnectFailure::Local
            }
            _ => match error.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS) => ConnectFailure::Local,
                _ => ConnectFailure::Other,
            },
        }
    }
}
