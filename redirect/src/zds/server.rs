//! The agent's end: a listening socket and one [`Peer`] per connected proxy.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::transport::{Packet, SeqPacket, SeqPacketListener};
use super::wire::{
    DecodeError, MAX_PACKET, RequestMessage, WorkloadInfo, decode_hello, decode_response, encode_request,
};
use crate::netns::Netns;

/// How long a proxy may take to accept a packet, and again to answer it. Istio's agent waits as long.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Proxies wait here until they are accepted. There are two at most, the old and the new one of a rollout.
const BACKLOG: i32 = 16;

/// The agent's socket.
#[derive(Debug)]
pub struct Listener {
    packets: SeqPacketListener,
}

/// A connected proxy.
///
/// Requests and answers belong together by order alone. So once an answer is missing, because its deadline passed or
/// a future was dropped, the next one could be taken for it; from then on every call fails with
/// [`PeerError::OutOfStep`] and the connection can only be dropped. The proxy then dials again and gets a snapshot.
#[derive(Debug)]
pub struct Peer {
    packets: SeqPacket,
    in_step: bool,
}

/// What came of a request to a proxy.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The proxy answered with an error. The connection is good.
    #[error("the proxy refused: {0}")]
    Refused(String),
    /// The message does not fit a packet; nothing was sent. The connection is good.
    #[error("a message of {0} bytes does not fit a packet")]
    TooLong(usize),
    /// The proxy closed the connection.
    #[error("the proxy closed the connection")]
    Closed,
    /// No answer, or no room for the request, within [`ANSWER_DEADLINE`].
    #[error("the proxy did not answer in time")]
    TimedOut,
    /// Not an answer, or one to nothing.
    #[error("the proxy broke the protocol")]
    Protocol(#[source] Option<DecodeError>),
    /// An earlier answer is missing.
    #[error("an earlier request was not answered, so no answer can be understood any more")]
    OutOfStep,
    /// The connection broke.
    #[error("the connection to the proxy broke")]
    Io(#[from] io::Error),
}

impl PeerError {
    /// Whether the connection can be used further.
    pub fn leaves_connection_usable(&self) -> bool {
        match self {
            PeerError::Refused(_) | PeerError::TooLong(_) => true,
            PeerError::Closed
            | PeerError::TimedOut
            | PeerError::Protocol(_)
            | PeerError::OutOfStep
            | PeerError::Io(_) => false,
        }
    }
}

impl Listener {
    /// Listens on `path`, in place of a socket that a former agent left there. Dropping the listener leaves the file,
    /// since it may be that of a successor by then. Needs a tokio runtime with I/O.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Listener> {
        let path = path.as_ref();
        if path.symlink_metadata().is_ok_and(|file| file.file_type().is_socket()) {
            std::fs::remove_file(path)?;
        }
        Ok(Listener { packets: SeqPacketListener::bind(path, BACKLOG)? })
    }

    /// Waits for a proxy. Cancel safe.
    pub async fn accept(&self) -> io::Result<Peer> {
        Ok(Peer { packets: self.packets.accept().await?, in_step: true })
    }
}

impl Peer {
    /// Reads the proxy's hello, which comes before anything else, and returns its version number. Versions are not
    /// negotiated: any is fine.
    pub async fn hello(&mut self) -> Result<i32, PeerError> {
        self.begin()?;
        let version =
            decode_hello(&self.packet().await?).map_err(|error| PeerError::Protocol(Some(error)))?;
        self.in_step = true;
        Ok(version)
    }

    /// Has the proxy serve a pod. Success means that its listeners are open.
    pub async fn add(&mut self, uid: &str, workload: &WorkloadInfo, netns: &Netns) -> Result<(), PeerError> {
        let message = RequestMessage::Add { uid: uid.to_owned(), workload: Some(workload.clone()) };
        self.request(&message, Some(netns.as_fd())).await
    }

    /// Has the proxy keep a pod whose namespace is not known here. Only before [`Peer::snapshot_sent`], else the
    /// proxy ends itself.
    pub async fn keep(&mut self, uid: &str) -> Result<(), PeerError> {
        self.request(&RequestMessage::Keep { uid: uid.to_owned() }, None).await
    }

    /// Has the proxy stop serving a pod.
    pub async fn delete(&mut self, uid: &str) -> Result<(), PeerError> {
        self.request(&RequestMessage::Delete { uid: uid.to_owned() }, None).await
    }

    /// Tells the proxy that all pods have been named. Exactly once per connection, also when there are none: the
    /// proxy is not ready before, and ends itself at a second one.
    pub async fn snapshot_sent(&mut self) -> Result<(), PeerError> {
        self.request(&RequestMessage::SnapshotSent, None).await
    }

    /// Sends a request as it is and waits for the answer.
    ///
    /// Dropping the future leaves the connection out of step.
    pub async fn request(
        &mut self,
        message: &RequestMessage,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), PeerError> {
        let bytes = encode_request(message);
        if bytes.len() > MAX_PACKET {
            return Err(PeerError::TooLong(bytes.len()));
        }
        self.begin()?;
        match timeout(ANSWER_DEADLINE, self.packets.send(&bytes, descriptor)).await {
            Ok(sent) => sent.map_err(broken)?,
            Err(_elapsed) => return Err(PeerError::TimedOut),
        }
        let answer = decode_response(&self.packet().await?);
        let answer = answer.map_err(|error| PeerError::Protocol(Some(error)))?;
        self.in_step = true;
        answer.map_err(PeerError::Refused)
    }

    /// Waits between requests until the connection is of no use any more: the proxy has left, or speaks unasked.
    /// Cancel safe.
    pub async fn lost(&mut self) -> PeerError {
        if !self.in_step {
            return PeerError::OutOfStep;
        }
        let error = match self.packets.receive().await {
            Ok(Packet { bytes, .. }) if bytes.is_empty() => PeerError::Closed,
            Ok(_) => PeerError::Protocol(None),
            Err(error) => broken(error),
        };
        self.in_step = false;
        error
    }

    /// From here on out of step, until an exchange is complete.
    fn begin(&mut self) -> Result<(), PeerError> {
        match std::mem::take(&mut self.in_step) {
            true => Ok(()),
            false => Err(PeerError::OutOfStep),
        }
    }

    /// A packet of the proxy, which never comes with descriptors: should it, they are closed.
    async fn packet(&self) -> Result<Vec<u8>, PeerError> {
        let packet = match timeout(ANSWER_DEADLINE, self.packets.receive()).await {
            Ok(received) => received.map_err(broken)?,
            Err(_elapsed) => return Err(PeerError::TimedOut),
        };
        match packet {
            Packet { truncated: Some(_), .. } => Err(PeerError::Protocol(None)),
            Packet { bytes, .. } if bytes.is_empty() => Err(PeerError::Closed),
            Packet { bytes, .. } => Ok(bytes),
        }
    }
}

/// A proxy that has gone is closed, in whichever call it shows.
fn broken(error: io::Error) -> PeerError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => PeerError::Closed,
        _ => PeerError::Io(error),
    }
}
