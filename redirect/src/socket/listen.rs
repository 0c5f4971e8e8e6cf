//! Listening sockets and datagram sockets.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use socket2::{Socket, Type};

use super::{Keepalive, create, set_tcp_options};
use crate::netns::Netns;

/// How long a listener's queue of completed connections may grow. Istio's ztunnel uses 128, which one burst of
/// clients fills while the accepting thread is busy; beyond it, Linux drops the handshake's last ACK and the client
/// waits a second for the retransmission. The kernel caps this at `net.core.somaxconn` (4096 since Linux 5.4).
pub const DEFAULT_BACKLOG: u32 = 4096;

/// What a listening socket, and by inheritance every connection it accepts, is set to. `TCP_NODELAY` is always on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenOptions {
    /// `SO_MARK`. Needs `CAP_NET_ADMIN`. None, or zero, leaves packets unmarked.
    pub mark: Option<u32>,
    /// Who else may listen on the port.
    pub port_sharing: PortSharing,
    /// Whether connections to addresses that are not the pod's own are accepted, and, since the listener's own
    /// ability to be transparent tells, whether connecting with foreign source addresses will work.
    pub transparent: Transparency,
    /// None leaves keep-alive off.
    pub keepalive: Option<Keepalive>,
    /// `TCP_USER_TIMEOUT`: how long sent data may stay unacknowledged. None leaves it to the kernel.
    pub user_timeout: Option<Duration>,
    /// Completed connections that may wait to be accepted.
    pub backlog: u32,
}

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions {
            mark: None,
            port_sharing: PortSharing::ReuseAddress,
            transparent: Transparency::Off,
            keepalive: None,
            user_timeout: None,
            backlog: DEFAULT_BACKLOG,
        }
    }
}

/// Who else may bind the same address and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortSharing {
    /// `SO_REUSEPORT`: a second proxy of the same user, which is how one version hands over to the next.
    ReusePort,
    /// `SO_REUSEADDR`: nobody who listens, but connections left over from a former listener are no obstacle.
    ReuseAddress,
}

/// Whether to set `IP_TRANSPARENT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transparency {
    /// Failing to is an error.
    Require,
    /// Failing to is reported in [`Listening::transparent`].
    BestEffort,
    /// Not tried.
    Off,
}

/// A socket that listens.
#[derive(Debug)]
pub struct Listening {
    /// Non-blocking, ready for `tokio::net::TcpListener::from_std`.
    pub listener: TcpListener,
    /// Whether `IP_TRANSPARENT` is on.
    pub transparent: bool,
}

/// A socket could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {kind}")]
pub struct ListenError {
    /// The address asked for.
    pub address: SocketAddr,
    /// Whose fault it is.
    pub kind: ListenErrorKind,
    /// What the kernel said.
    pub source: io::Error,
}

/// Whose fault it is that a socket could not be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ListenErrorKind {
    /// Somebody in the pod has the port, and does not share it.
    #[error("the port is already taken by another process in the pod")]
    PortTaken,
    /// The address does not exist in the namespace, or its family is switched off there.
    #[error("the pod has no such address")]
    NoSuchAddress,
    /// Not allowed to do the step.
    #[error("not permitted to {step}: the capability {capability} is missing")]
    MissingCapability {
        /// What was tried.
        step: ListenStep,
        /// As in capabilities(7).
        capability: &'static str,
    },
    /// Anything else, for instance no descriptors left.
    #[error("cannot {0}")]
    Failed(ListenStep),
}

/// The steps of binding a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ListenStep {
    /// Entering the namespace and socket(2).
    #[error("create a socket in the network namespace")]
    Create,
    /// `SO_MARK`.
    #[error("mark its packets (SO_MARK)")]
    Mark,
    /// `IP_TRANSPARENT`.
    #[error("accept foreign addresses (IP_TRANSPARENT)")]
    Transparent,
    /// `SO_REUSEPORT`, `SO_REUSEADDR`, `IPV6_V6ONLY`.
    #[error("set its options")]
    Options,
    /// bind(2).
    #[error("bind")]
    Bind,
    /// listen(2).
    #[error("listen")]
    Listen,
}

impl ListenStep {
    /// What a refusal of this step means is missing.
    fn capability(self) -> Option<&'static str> {
        match self {
            ListenStep::Create => Some("CAP_SYS_ADMIN"),
            ListenStep::Mark => Some("CAP_NET_ADMIN"),
            ListenStep::Transparent => Some("CAP_NET_RAW"),
            ListenStep::Bind => Some("CAP_NET_BIND_SERVICE"),
            ListenStep::Options | ListenStep::Listen => None,
        }
    }
}

/// Binds and listens on `address` in `namespace` (or the thread's own). `[::]` serves IPv4 too.
///
/// The namespace exists as long as its handle, so a pod that has ended meanwhile shows here as success, and as
/// silence afterwards.
pub fn listen(
    namespace: Option<&Netns>,
    address: SocketAddr,
    options: &ListenOptions,
) -> Result<Listening, ListenError> {
    let fail = |step| move |source| ListenError::new(address, step, source);
    let socket = open(namespace, address, Type::STREAM, options.mark, Some(options.port_sharing))?;
    let transparent = match (options.transparent, options.transparent.apply(&socket)) {
        (Transparency::Require, Err(error)) => return Err(fail(ListenStep::Transparent)(error)),
        (_, outcome) => outcome.unwrap_or(false),
    };
    // Every accepted connection takes these over.
    if let Err(error) = set_tcp_options(&socket, options.keepalive, options.user_timeout) {
        // Not worth losing the pod over.
        tracing::warn!(%address, %error, "a listener goes without keep-alive or time-out options");
    }
    socket.bind(&address.into()).map_err(fail(ListenStep::Bind))?;
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX)).map_err(fail(ListenStep::Listen))?;
    Ok(Listening { listener: socket.into(), transparent })
}

/// A non-blocking datagram socket bound to `address` in `namespace` (or the thread's own): the DNS listener, and,
/// with port 0, the sockets that ask upstream resolvers.
pub fn bind_udp(
    namespace: Option<&Netns>,
    address: SocketAddr,
    mark: Option<u32>,
    port_sharing: Option<PortSharing>,
) -> Result<UdpSocket, ListenError> {
    let socket = open(namespace, address, Type::DGRAM, mark, port_sharing)?;
    let bound = socket.bind(&address.into());
    bound.map_err(|source| ListenError::new(address, ListenStep::Bind, source))?;
    Ok(socket.into())
}

/// A socket ready to be bound, with what datagrams and streams have in common.
fn open(
    namespace: Option<&Netns>,
    address: SocketAddr,
    kind: Type,
    mark: Option<u32>,
    port_sharing: Option<PortSharing>,
) -> Result<Socket, ListenError> {
    let fail = |step| move |source| ListenError::new(address, step, source);
    let socket = create(namespace, address, kind).map_err(fail(ListenStep::Create))?;
    if let Some(mark) = mark.filter(|mark| *mark != 0) {
        socket.set_mark(mark).map_err(fail(ListenStep::Mark))?;
    }
    if address.is_ipv6() {
        // The pod's net.ipv6.bindv6only must not decide whether IPv4 is served.
        socket.set_only_v6(false).map_err(fail(ListenStep::Options))?;
    }
    let shared = match port_sharing {
        Some(PortSharing::ReusePort) => socket.set_reuse_port(true),
        Some(PortSharing::ReuseAddress) => socket.set_reuse_address(true),
        None => Ok(()),
    };
    shared.map_err(fail(ListenStep::Options))?;
    Ok(socket)
}

impl Transparency {
    /// Whether the socket is transparent now. It is the IPv4 option whatever the family: one flag of the socket,
    /// which IPv6 looks at too.
    fn apply(self, socket: &Socket) -> io::Result<bool> {
        match self {
            Transparency::Off => Ok(false),
            Transparency::Require | Transparency::BestEffort => {
                socket.set_ip_transparent_v4(true).map(|()| true)
            }
        }
    }
}

impl ListenError {
    fn new(address: SocketAddr, step: ListenStep, source: io::Error) -> ListenError {
        let kind = match (source.kind(), step.capability()) {
            (io::ErrorKind::AddrInUse, _) => ListenErrorKind::PortTaken,
            (io::ErrorKind::AddrNotAvailable, _) => ListenErrorKind::NoSuchAddress,
            _ if source.raw_os_error() == Some(libc::EAFNOSUPPORT) => ListenErrorKind::NoSuchAddress,
            (io::ErrorKind::PermissionDenied, Some(capability)) => {
                ListenErrorKind::MissingCapability { step, capability }
            }
            _ => ListenErrorKind::Failed(step),
        };
        ListenError { address, kind, source }
    }
}
