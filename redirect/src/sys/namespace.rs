//! Asking the kernel what kind of namespace a descriptor refers to: ioctl_ns(2).

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// `NS_GET_NSTYPE`, `_IO(0xb7, 3)` in `linux/nsfs.h`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// The `CLONE_NEW*` constant of the namespace behind `descriptor`; `ENOTTY` when it is not a namespace.
pub(crate) fn kind(descriptor: BorrowedFd<'_>) -> Result<libc::c_int, Errno> {
    // SAFETY: ioctl(2) requires that the request's argument, if it has one, is valid for what the request reads and
    // writes. NS_GET_NSTYPE has none, for nsfs; a file of another kind that gives 0xb703 a meaning could only take
    // the argument register as a plain number, as `_IO` encodes no size and none is passed. The descriptor is open
    // for the length of the call because it is borrowed.
    let kind = unsafe { libc::ioctl(descriptor.as_raw_fd(), NS_GET_NSTYPE) };
    Errno::result(kind)
}
