//! What the process must be allowed to do, found out once at start instead of with the first pod.

use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::netns::{Netns, NetnsError};

/// Something that serving pods needs does not work.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// The kernel refused for lack of a capability.
    #[error(
        "cannot {action}: {capability} is missing; add it to securityContext.capabilities of the container, \
         or run the process as root"
    )]
    MissingCapability {
        /// As in capabilities(7), for instance `CAP_SYS_ADMIN`.
        capability: &'static str,
        /// What was tried.
        action: &'static str,
    },
    /// The process does not know its own namespace: `/proc` is not mounted.
    #[error("the network namespace of this process cannot be opened")]
    OwnNamespace(#[from] NetnsError),
    /// Failed for another reason.
    #[error("cannot {action}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Tries each privileged operation on scratch objects: entering a namespace (its own), marking a socket's packets,
/// and using foreign source addresses.
///
/// The operations are tried, rather than capability bits read, because which capability suffices differs between
/// kernels, and security modules may forbid what the bits allow.
pub fn preflight() -> Result<(), PreflightError> {
    let entered = Netns::current()?.run(|| ());
    attempt("enter a network namespace", "CAP_SYS_ADMIN", entered)?;
    let scratch = Socket::new(Domain::IPV4, Type::STREAM, None);
    let scratch = scratch.map_err(|source| PreflightError::Failed { action: "create a socket", source })?;
    attempt("mark packets (SO_MARK)", "CAP_NET_ADMIN", scratch.set_mark(1))?;
    let transparent = scratch.set_ip_transparent_v4(true);
    attempt("use the addresses of others (IP_TRANSPARENT)", "CAP_NET_RAW", transparent)
}

fn attempt(
    action: &'static str,
    capability: &'static str,
    outcome: io::Result<()>,
) -> Result<(), PreflightError> {
    outcome.map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM) => PreflightError::MissingCapability { capability, action },
        _ => PreflightError::Failed { action, source },
    })
}

/// Raises the soft limit of open descriptors to the hard limit and returns it: each pod costs several listeners and
/// each connection two descriptors, of which the usual soft limit of 1024 leaves no room.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let raise = || -> Result<u64, Errno> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(hard)
    };
    Ok(raise()?)
}
