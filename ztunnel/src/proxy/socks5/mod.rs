//! A connection that the pod's application asks for by SOCKS5 instead of having it redirected.
//!
//! After the handshake it is an outbound connection like any other. The request is accepted before anything is connected:
//! what goes wrong later closes the connection.

mod resolve;
pub mod wire;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use self::resolve::ResolveError;
use self::wire::{Destination, Host, LONGEST, Reply, Step, Violation};
use super::accept::Accepted;
use super::outbound;
use super::pod::LocalPod;
use super::report::{Direction, deny_early};
use super::task_set::Place;

/// How long a client may take to say where it wants to go.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a client that is turned away may take to read why, and how much of what it still sends is read meanwhile: closing
/// a connection with unread bytes would reset it and take the reply away.
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_BYTES: u64 = 4096;

/// Why a client is turned away.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    /// The connection failed, or the client took too long.
    #[error("socks5 handshake failed")]
    Io(#[from] io::Error),
    /// The client broke the protocol.
    #[error("socks5 handshake failed")]
    Violation(#[from] Violation),
    /// The host has no address.
    #[error("socks5 handshake failed")]
    Resolve(#[from] ResolveError),
}

impl HandshakeError {
    fn reply(&self) -> Reply {
        match self {
            Self::Io(_) => Reply::Failure,
            Self::Violation(_) | Self::Resolve(ResolveError::Disabled) => Reply::NotSupported,
            Self::Resolve(ResolveError::Unknown(_)) => Reply::HostUnreachable,
        }
    }
}

/// Serves one connection, from its handshake to its report.
pub(crate) async fn serve(pod: Rc<LocalPod>, mut accepted: Box<Accepted>, place: Place) {
    match Box::pin(handshake(&pod, &mut accepted)).await {
        Ok(destination) => {
            accepted.destination = destination;
            // As large as a task may be by itself.
            Box::pin(outbound::serve(pod, accepted, place)).await;
        }
        Err(error) => deny_early(accepted.peer, accepted.destination, Direction::Outbound, &error),
    }
}

/// Where the client wants to go, which it has been told is accepted; or why not, which it has been told, too.
async fn handshake(pod: &LocalPod, accepted: &mut Accepted) -> Result<SocketAddr, HandshakeError> {
    let negotiating = timeout(HANDSHAKE_DEADLINE, negotiate(pod, accepted)).await;
    let outcome = negotiating
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the client took too long").into()));
    if let Err(error) = &outcome {
        turn_away(&mut accepted.stream, error.reply()).await;
    }
    outcome
}

async fn negotiate(pod: &LocalPod, accepted: &mut Accepted) -> Result<SocketAddr, HandshakeError> {
    let (stream, peer) = (&mut accepted.stream, accepted.peer);
    read(stream, wire::greeting).await?;
    stream.write_all(&wire::ACCEPTED).await?;
    let Destination { host, port } = read(stream, wire::request).await?;
    let ip = match host {
        Host::Address(ip) => ip.to_canonical(),
        Host::Name(name) => resolve::resolve(pod, &name, peer.ip()).await?,
    };
    stream.write_all(&Reply::Succeeded.encode()).await?;
    Ok(SocketAddr::new(ip, port))
}

/// Reads one message, and not a byte of what follows it.
async fn read<T>(
    stream: &mut TcpStream,
    parse: impl Fn(&[u8]) -> Result<Step<T>, Violation>,
) -> Result<T, HandshakeError> {
    let mut buffer = [0; LONGEST];
    let mut length = 0;
    loop {
        match parse(&buffer[..length])? {
            Step::Done(message) => return Ok(message),
            Step::Need(more) => {
                let next = buffer.get_mut(length..length + more);
                let next = next.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
                // Byte by byte as it comes: a message that is wrong already gets its answer without the rest.
                let read = stream.read(next).await?;
                if read == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                length += read;
            }
        }
    }
}

/// Tells the client why, as far as it listens.
async fn turn_away(stream: &mut TcpStream, reply: Reply) {
    let farewell = async {
        stream.write_all(&reply.encode()).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(FAREWELL_BYTES), &mut tokio::io::sink()).await
    };
    // It is turned away in any case.
    drop(timeout(FAREWELL, farewell).await);
}
