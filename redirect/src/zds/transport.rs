//! Packets with descriptors over a unix socket, without blocking the thread.
//!
//! Neither the standard library nor tokio has a type for `SOCK_SEQPACKET`. Theirs for unix streams take any socket
//! and serve here to own one and to wait for it; bytes are never read or written through them.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net;
use std::path::Path;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use super::wire::MAX_PACKET;
use crate::sys::message::{self, Truncated};

/// One end of a connection.
#[derive(Debug)]
pub(super) struct SeqPacket {
    socket: UnixStream,
}

/// One packet as it came. No bytes means the end of the connection: an empty packet looks the same.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) truncated: Option<Truncated>,
}

/// Where connections come in.
#[derive(Debug)]
pub(super) struct SeqPacketListener {
    socket: UnixListener,
}

impl SeqPacketListener {
    /// Binds `path`, which must not exist. Needs a tokio runtime with I/O.
    pub(super) fn bind(path: &Path, backlog: i32) -> io::Result<SeqPacketListener> {
        let socket = seqpacket_socket()?;
        socket.bind(&SockAddr::unix(path)?)?;
        socket.listen(backlog)?;
        let socket = net::UnixListener::from(OwnedFd::from(socket));
        Ok(SeqPacketListener { socket: UnixListener::from_std(socket)? })
    }

    /// Waits for a connection. Cancel safe.
    pub(super) async fn accept(&self) -> io::Result<SeqPacket> {
        let (socket, _unnamed) = self.socket.accept().await?;
        Ok(SeqPacket { socket })
    }
}

impl SeqPacket {
    /// Connects to `path`. A unix connection is made at once or not at all (`WouldBlock` when the listener's queue is
    /// full), so there is nothing to wait for. Needs a tokio runtime with I/O.
    pub(super) fn dial(path: &Path) -> io::Result<SeqPacket> {
        let socket = seqpacket_socket()?;
        socket.connect(&SockAddr::unix(path)?)?;
        let socket = net::UnixStream::from(OwnedFd::from(socket));
        Ok(SeqPacket { socket: UnixStream::from_std(socket)? })
    }

    /// Waits for a packet. Dropping the future loses none: a packet that has been taken is returned at once.
    pub(super) async fn receive(&self) -> io::Result<Packet> {
        let receive = || {
            let mut buffer = [0; MAX_PACKET];
            let received = message::receive(self.socket.as_fd(), &mut buffer)?;
            Ok(Packet {
                bytes: buffer[..received.length].to_vec(),
                descriptors: received.descriptors,
                truncated: received.truncated,
            })
        };
        self.socket.async_io(Interest::READABLE, receive).await
    }

    /// Sends a packet, with a descriptor if given. Dropping the future sends all of it or nothing.
    pub(super) async fn send(&self, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let raw = descriptor.map(|descriptor| [descriptor.as_raw_fd()]);
        let send = || {
            let control = raw.as_ref().map(|raw| ControlMessage::ScmRights(raw));
            let payload = [IoSlice::new(bytes)];
            sendmsg::<()>(
                self.socket.as_raw_fd(),
                &payload,
                control.as_slice(),
                MsgFlags::MSG_NOSIGNAL,
                None,
            )?;
            Ok(())
        };
        self.socket.async_io(Interest::WRITABLE, send).await
    }
}

fn seqpacket_socket() -> io::Result<Socket> {
    Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking(), None)
}
