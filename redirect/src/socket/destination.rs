//! Where a redirected connection was going before the packet filter changed it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use socket2::{SockAddr, SockRef};

/// Where an accepted connection was going. IPv4 addresses are never written as IPv6 ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginalDestination {
    /// What connection tracking remembers: the address before REDIRECT. For a connection that was not redirected
    /// this is the listener's own address.
    Tracked(SocketAddr),
    /// The socket's local address, which is the original one wherever redirection does not rewrite packets (TPROXY,
    /// sk_lookup) and where connections are not tracked.
    Local(SocketAddr),
}

impl OriginalDestination {
    /// The address, however it was found.
    pub fn address(&self) -> SocketAddr {
        match self {
            OriginalDestination::Tracked(address) | OriginalDestination::Local(address) => *address,
        }
    }
}

/// Where the accepted connection `socket` was going. `peer` is what accept said; its family tells which table to ask,
/// so one system call is the rule.
///
/// Asking the other family's table would not only be in vain: the kernel would look up a meaningless address.
pub fn original_destination(socket: &impl AsFd, peer: SocketAddr) -> io::Result<OriginalDestination> {
    let socket = SockRef::from(socket);
    let tracked = match peer.ip().to_canonical().is_ipv4() {
        true => socket.original_dst_v4(),
        false => socket.original_dst_v6(),
    };
    if let Some(address) = tracked.ok().as_ref().and_then(SockAddr::as_socket) {
        return Ok(OriginalDestination::Tracked(canonical(address)));
    }
    let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(OriginalDestination::Local(canonical(local)))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
