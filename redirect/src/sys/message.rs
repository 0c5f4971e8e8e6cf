//! recvmsg(2) with descriptors, such that every descriptor the kernel hands over has an owner: also those of a
//! packet that is refused afterwards, for instance because its control data did not fit.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// One received packet, except for its bytes, which are in the caller's buffer.
#[derive(Debug)]
pub(crate) struct Received {
    /// How many bytes of the buffer were written.
    pub(crate) length: usize,
    /// All descriptors that came along, close-on-exec. Dropping them closes them.
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Whether the kernel had to cut something off.
    pub(crate) truncated: Option<Truncated>,
}

/// What of a packet did not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Truncated {
    /// The payload (`MSG_TRUNC`).
    Payload,
    /// The control data (`MSG_CTRUNC`): more descriptors than there is room for, here or in the process.
    Control,
}

/// Room for control data: one descriptor is expected. Alignment padding lets a second one through on 64-bit
/// machines, which the caller refuses; the kernel itself closes any further ones and reports `MSG_CTRUNC`.
#[repr(C)]
union ControlBuffer {
    _alignment: libc::cmsghdr,
    bytes: [MaybeUninit<u8>; CONTROL_BYTES],
}

/// `CMSG_SPACE` of one descriptor.
const CONTROL_BYTES: usize = {
    // SAFETY: CMSG_SPACE only computes with its argument; libc marks all CMSG functions unsafe alike.
    unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) as usize }
};

/// Receives one packet without waiting; `WouldBlock` when there is none.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = ControlBuffer { bytes: [MaybeUninit::uninit(); CONTROL_BYTES] };
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is a C struct of integers and pointers, for which all zeroes (null pointers) is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = CONTROL_BYTES as _;

    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: recvmsg writes at most iov_len bytes to iov_base and at most msg_controllen bytes to msg_control. The
    // first are `buffer`'s own pointer and length, the second `control`'s address and size; both are borrowed or
    // owned here exclusively and outlive the call. msg_name is null, so no address is written.
    let length = Errno::result(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) })?;

    // SAFETY: `header` is as recvmsg left it, and `control`, which it points to, is still alive.
    let descriptors = unsafe { take_descriptors(&header) };
    let truncated = match header.msg_flags {
        flags if flags & libc::MSG_TRUNC != 0 => Some(Truncated::Payload),
        flags if flags & libc::MSG_CTRUNC != 0 => Some(Truncated::Control),
        _ => None,
    };
    Ok(Received { length: length.unsigned_abs(), descriptors, truncated })
}

/// Takes ownership of every descriptor in the control data of a received message.
///
/// # Safety
/// `header` must have been filled in by a successful recvmsg, its control buffer must be alive and aligned for
/// `cmsghdr`, and this must be the only call for that message: each call would make owners of the same descriptors.
unsafe fn take_descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR read `header` and the control messages in its buffer, and return null
    // rather than a header that would not lie within msg_controllen, which recvmsg has set to what it wrote.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: not null, so it is a complete, aligned cmsghdr written by the kernel.
        let (level, kind, length) =
            unsafe { ((*message).cmsg_level, (*message).cmsg_type, (*message).cmsg_len) };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN and CMSG_DATA only compute an offset from the (valid) header.
            let (overhead, data) = unsafe { (libc::CMSG_LEN(0), libc::CMSG_DATA(message).cast::<RawFd>()) };
            #[allow(clippy::unnecessary_cast, reason = "the type of cmsg_len differs between C libraries")]
            let count = (length as usize).saturating_sub(overhead as usize) / size_of::<RawFd>();
            for index in 0..count {
                // SAFETY: the kernel wrote cmsg_len - CMSG_LEN(0) bytes of descriptors at CMSG_DATA, so `index` is
                // within them; unaligned, because CMSG_DATA promises no alignment for its type. Each is a new
                // descriptor of this process that nothing else knows of, hence ours to own.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(data.add(index).read_unaligned()) });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR; `message` is a header of this very buffer.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    descriptors
}
