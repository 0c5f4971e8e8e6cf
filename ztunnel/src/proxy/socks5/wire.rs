//! The client's messages of SOCKS5 and our replies (RFC 1928), without I/O.
//!
//! A message is read in exact steps: [`Step::Need`] never asks for a byte that the message does not have. So what follows it,
//! which is the connection's own already, stays in the socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

/// The longest message: a request for a name of 255 bytes.
pub const LONGEST: usize = 4 + 1 + 255 + 2;

/// What a message that has begun comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// At least this many more bytes belong to it. Not 0.
    Need(usize),
    /// It is whole.
    Done(T),
}

/// Where the client wants to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
}

/// The host of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address, as given.
    Address(IpAddr),
    /// A name, in whatever bytes the client calls one.
    Name(Box<[u8]>),
}

/// The client does not speak what we speak.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Violation {
    /// Not version 5.
    #[error("SOCKS version {0} is not supported")]
    Version(u8),
    /// The client offers no way to authenticate, not even none.
    #[error("no authentication methods")]
    NoMethods,
    /// The client insists on authentication.
    #[error("no acceptable authentication method")]
    NoAcceptableMethod,
    /// Not CONNECT.
    #[error("SOCKS command {0} is not supported")]
    Command(u8),
    /// Neither address nor name.
    #[error("SOCKS address type {0} is not supported")]
    AddressType(u8),
}

/// `REP` of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reply {
    /// The request is accepted; whether the connection comes about is another matter.
    Succeeded = 0,
    /// Reading or writing failed.
    Failure = 1,
    /// The name has no address.
    HostUnreachable = 4,
    /// The client broke the protocol, or asks for something that we do not do.
    NotSupported = 7,
}

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// What we answer to a greeting.
pub const ACCEPTED: [u8; 2] = [VERSION, NO_AUTHENTICATION];

impl Reply {
    /// The message. The address in it is of no use to a client, and unspecified.
    pub fn encode(self) -> [u8; 10] {
        [VERSION, self as u8, 0, IPV4, 0, 0, 0, 0, 0, 0]
    }
}

/// The first message: version and authentication methods (section 3).
pub fn greeting(bytes: &[u8]) -> Result<Step<()>, Violation> {
    version(bytes)?;
    let Some((&count, methods)) = bytes.get(1..).and_then(<[u8]>::split_first) else {
        return Ok(Step::Need(2 - bytes.len()));
    };
    let count = usize::from(count);
    if count == 0 {
        return Err(Violation::NoMethods);
    }
    match methods.get(..count) {
        None => Ok(Step::Need(count - methods.len())),
        Some(methods) if methods.contains(&NO_AUTHENTICATION) => Ok(Step::Done(())),
        Some(_) => Err(Violation::NoAcceptableMethod),
    }
}

/// The second message: command and destination (section 4). The reserved byte is ignored.
pub fn request(bytes: &[u8]) -> Result<Step<Destination>, Violation> {
    version(bytes)?;
    if let Some(command) = bytes.get(1).filter(|command| **command != CONNECT) {
        return Err(Violation::Command(*command));
    }
    let Some((&kind, rest)) = bytes.get(3..).and_then(<[u8]>::split_first) else {
        return Ok(Step::Need(4 - bytes.len()));
    };
    let (length, host) = match kind {
        IPV4 => (4, rest),
        IPV6 => (16, rest),
        NAME => match rest.split_first() {
            None => return Ok(Step::Need(1)),
            Some((length, name)) => (usize::from(*length), name),
        },
        other => return Err(Violation::AddressType(other)),
    };
    let whole = length + 2;
    let Some((host, &[high, low, ..])) = host.split_at_checked(length).filter(|(_, port)| port.len() >= 2)
    else {
        return Ok(Step::Need(whole - host.len()));
    };
    let address = |bytes: &[u8]| match *bytes {
        [a, b, c, d] => Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
        _ => <[u8; 16]>::try_from(bytes).ok().map(|octets| IpAddr::V6(Ipv6Addr::from(octets))),
    };
    let host = match kind {
        NAME => Host::Name(host.into()),
        _ => Host::Address(address(host).ok_or(Violation::AddressType(kind))?),
    };
    Ok(Step::Done(Destination { host, port: u16::from_be_bytes([high, low]) }))
}

fn version(bytes: &[u8]) -> Result<(), Violation> {
    match bytes.first() {
        Some(version) if *version != VERSION => Err(Violation::Version(*version)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_accepted_if_no_authentication_is_among_its_methods() {
        for (bytes, expected) in [
            (&[][..], Ok(Step::Need(2))),
            (&[5], Ok(Step::Need(1))),
            (&[5, 2], Ok(Step::Need(2))),
            (&[5, 2, 0], Ok(Step::Need(1))),
            (&[5, 1, 0], Ok(Step::Done(()))),
            (&[5, 3, 1, 2, 0], Ok(Step::Done(()))),
            (&[4], Err(Violation::Version(4))),
            (&[5, 0], Err(Violation::NoMethods)),
            (&[5, 2, 1, 2], Err(Violation::NoAcceptableMethod)),
        ] {
            assert_eq!(greeting(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_request_names_an_address_or_a_host_and_nothing_else_is_done() {
        let done = |host, port| Ok(Step::Done(Destination { host, port }));
        let v6 = [5, 1, 0, 4, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 80];
        for (bytes, expected) in [
            (&[][..], Ok(Step::Need(4))),
            (&[5, 1, 0], Ok(Step::Need(1))),
            (&[5, 1, 0, 1], Ok(Step::Need(6))),
            (&[5, 1, 0, 1, 10, 0, 0, 1, 31], Ok(Step::Need(1))),
            (&[5, 1, 9, 1, 10, 0, 0, 1, 31, 144], done(Host::Address([10, 0, 0, 1].into()), 8080)),
            (&v6[..], done(Host::Address("fd00::1".parse().unwrap()), 80)),
            (&[5, 1, 0, 3], Ok(Step::Need(1))),
            (&[5, 1, 0, 3, 3, b'w'], Ok(Step::Need(4))),
            (&[5, 1, 0, 3, 3, b'w', b'e', b'b', 0, 80], done(Host::Name((*b"web").into()), 80)),
            (&[5, 1, 0, 3, 0, 0, 80], done(Host::Name([].into()), 80)),
            (&[4], Err(Violation::Version(4))),
            (&[5, 2], Err(Violation::Command(2))),
            (&[5, 3, 0, 1], Err(Violation::Command(3))),
            (&[5, 1, 0, 2], Err(Violation::AddressType(2))),
        ] {
            assert_eq!(request(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_reply_has_an_unspecified_address() {
        assert_eq!(Reply::Succeeded.encode(), [5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Reply::HostUnreachable.encode()[1], 4);
    }
}
