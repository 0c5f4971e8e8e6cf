//! Pods and their neighbours out of network namespaces.
//!
//! Needs root, or the root of a user namespace: `unshare --map-root-user --net cargo test -p redirect`. There, set
//! `XTABLES_LOCKFILE` to a file that can be written: the usual one of iptables-legacy cannot.
#![allow(dead_code, reason = "every test program uses its own part")]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::time::Duration;

use redirect::{Netns, NetnsError};
use socket2::{Domain, SockRef, Socket, Type};

/// For what should happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// For what should not.
pub(crate) const BRIEFLY: Duration = Duration::from_millis(300);
/// The proxy's mark.
pub(crate) const MARK: u32 = 0x539;

pub(crate) const CLIENT: [IpAddr; 2] = [ip4(10, 0, 0, 1), ip6(0xfd00, 1)];
pub(crate) const POD: [IpAddr; 2] = [ip4(10, 0, 0, 2), ip6(0xfd00, 2)];
pub(crate) const PROBE: [IpAddr; 2] = [
    ip4(169, 254, 7, 127),
    IpAddr::V6(Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff)),
];
/// Nobody is there.
pub(crate) const ELSEWHERE: [IpAddr; 2] = [ip4(192, 0, 2, 7), ip6(0x2001, 7)];
pub(crate) const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

const fn ip4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn ip6(first: u16, last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last))
}

/// A pod and a client with a cable between them, both families.
pub(crate) struct Lab {
    pub(crate) pod: Netns,
    pub(crate) client: Netns,
}

/// A new namespace with its loopback interface up. None where the machine allows none, for no user at all.
pub(crate) fn namespace() -> Option<Netns> {
    match Netns::create() {
        Ok(netns) => {
            ip(&netns, "link set lo up");
            Some(netns)
        }
        Err(NetnsError::Create(error)) if error.kind() == ErrorKind::PermissionDenied => {
            let possible = Command::new("unshare").args(["--map-root-user", "--net", "true"]).status();
            assert!(
                !possible.is_ok_and(|status| status.success()),
                "network namespaces need root: run the tests under `unshare --map-root-user --net`"
            );
            eprintln!("SKIPPED: this machine allows neither root nor user namespaces");
            None
        }
        Err(error) => panic!("{error}: {error:?}"),
    }
}

/// Returns from the test where there can be no namespaces.
#[macro_export]
macro_rules! lab {
    () => {
        match lab::Lab::new() {
            Some(lab) => lab,
            None => return,
        }
    };
}

impl Lab {
    pub(crate) fn new() -> Option<Lab> {
        let lab = Lab { pod: namespace()?, client: namespace()? };
        cable(&lab.client, "eth0", &lab.pod, "eth0");
        for (netns, addresses) in [(&lab.client, [CLIENT, PROBE]), (&lab.pod, [POD, POD])] {
            for [v4, v6] in addresses {
                ip(netns, &format!("address replace {v4}/24 dev eth0"));
                ip(netns, &format!("address replace {v6}/64 dev eth0 nodad"));
            }
        }
        ip(&lab.pod, &format!("route add default via {}", CLIENT[0]));
        ip(&lab.pod, &format!("route add default via {}", CLIENT[1]));
        Some(lab)
    }
}

/// Connects two namespaces by a pair of interfaces, both up.
pub(crate) fn cable(one: &Netns, one_name: &str, other: &Netns, other_name: &str) {
    let there = format!("/proc/{}/fd/{}", std::process::id(), other.as_fd().as_raw_fd());
    ip(one, &format!("link add {one_name} type veth peer name {other_name} netns {there}"));
    ip(one, &format!("link set {one_name} up"));
    ip(other, &format!("link set {other_name} up"));
}

pub(crate) fn ip(netns: &Netns, arguments: &str) {
    run(netns, "ip", &arguments.split(' ').collect::<Vec<_>>());
}

/// Runs a program in a namespace and returns what it prints.
pub(crate) fn run(netns: &Netns, program: &str, arguments: &[&str]) -> String {
    let output = netns.run(|| Command::new(program).args(arguments).output()).unwrap().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// A listener of an ordinary program, both families.
pub(crate) fn serve(netns: &Netns, port: u16) -> TcpListener {
    netns.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()).unwrap()
}

pub(crate) fn serve_udp(netns: &Netns, address: SocketAddr) -> UdpSocket {
    let socket = netns.run(|| UdpSocket::bind(address).unwrap()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// How an ordinary program connects.
#[derive(Default, Clone, Copy)]
pub(crate) struct Dial {
    pub(crate) source: Option<SocketAddr>,
    pub(crate) mark: Option<u32>,
    pub(crate) patience: Option<Duration>,
}

impl Dial {
    pub(crate) fn to(self, netns: &Netns, destination: SocketAddr) -> std::io::Result<TcpStream> {
        let domain = Domain::for_address(destination);
        let socket = netns.run(|| Socket::new(domain, Type::STREAM, None).unwrap()).unwrap();
        if let Some(mark) = self.mark {
            socket.set_mark(mark).unwrap();
        }
        if let Some(source) = self.source {
            socket.set_reuse_address(true).unwrap();
            socket.bind(&source.into()).unwrap();
        }
        socket.connect_timeout(&destination.into(), self.patience.unwrap_or(PATIENCE))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Ok(stream)
    }
}

pub(crate) fn dial(netns: &Netns, address: IpAddr, port: u16) -> TcpStream {
    Dial::default().to(netns, SocketAddr::new(address, port)).unwrap()
}

/// The next connection, within the patience given; addresses canonical.
pub(crate) fn accept(listener: &TcpListener, patience: Duration) -> Option<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true).unwrap();
    let mut wait = [nix::poll::PollFd::new(listener.as_fd(), nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut wait, u16::try_from(patience.as_millis()).unwrap()).unwrap();
    match listener.accept() {
        Ok((stream, peer)) => {
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            Some((stream, canonical(peer)))
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Asserts that bytes pass both ways.
pub(crate) fn assert_connected(mut one: &TcpStream, mut other: &TcpStream) {
    let mut buffer = [0; 4];
    one.write_all(b"ping").unwrap();
    other.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"ping");
    other.write_all(b"pong").unwrap();
    one.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"pong");
}

pub(crate) fn mark_of(socket: &impl AsFd) -> u32 {
    SockRef::from(socket).mark().unwrap()
}
