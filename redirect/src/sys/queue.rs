//! Asking the kernel how much of what was written to a TCP socket has not arrived: tcp(7).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use socket2::{Protocol, SockRef};

/// `SIOCOUTQ`, which `linux/sockios.h` defines as this.
const SIOCOUTQ: libc::Ioctl = libc::TIOCOUTQ;

/// `SIOCOUTQNSD`, as `linux/sockios.h` defines it.
const SIOCOUTQNSD: libc::Ioctl = 0x894B;

/// Bytes in the socket's send queue; `InvalidInput` when it is not a TCP socket.
pub(crate) fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<usize> {
    length(socket, SIOCOUTQ)
}

/// Bytes in the socket's send queue that the kernel has not sent yet; `InvalidInput` when it is not a TCP socket.
pub(crate) fn not_sent(socket: BorrowedFd<'_>) -> io::Result<usize> {
    length(socket, SIOCOUTQNSD)
}

/// `request` is one of the two above.
fn length(socket: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<usize> {
    if SockRef::from(&socket).protocol()? != Some(Protocol::TCP) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes: libc::c_int = 0;
    // SAFETY: ioctl(2) requires that the request's argument is valid for what the request writes. That is decided by
    // the kind of file; this is a TCP socket, as checked above and for as long as the descriptor is borrowed, and for
    // those the kernel writes one int for either request: tcp(7) and `tcp_ioctl`. The pointer is to a live, exclusively
    // borrowed c_int.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut bytes) })?;
    usize::try_from(bytes).map_err(io::Error::other)
}
