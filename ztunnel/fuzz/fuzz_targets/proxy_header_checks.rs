//! What holds for every PROXY protocol header that we write: a reader who knows only the specification (haproxy's
//! `proxy-protocol.txt`, section 2.2) finds in it what was put in, and after it the payload. Included by the fuzz target and
//! by the corpus test.

use std::net::{IpAddr, SocketAddr};

use identity::SpiffeId;
use ztunnel::proxy::proxy_protocol::header;

/// Makes a header of the bytes: which families (one byte, two bits), two addresses of 16 bytes and two ports, and a name
/// for the rest. Too few bytes, or a rest that is no name after `spiffe://`, make one without.
pub(crate) fn round_trip(bytes: &[u8]) {
    let Some((families, rest)) = bytes.split_first() else { return };
    let Some((source, rest)) = address(rest, families & 1 == 0) else { return };
    let Some((destination, rest)) = address(rest, families & 2 == 0) else { return };
    let name = std::str::from_utf8(rest).ok();
    let identity = name.and_then(|name| format!("spiffe://{name}").parse::<SpiffeId>().ok());

    const PAYLOAD: &[u8] = b"\r\n\r\n\0 not part of it";
    let mut sent = header(source, destination, identity.as_ref());
    sent.extend_from_slice(PAYLOAD);
    let read = read(&sent).expect("what we write follows the specification");

    let expected = (source.is_ipv4() == destination.is_ipv4()).then_some((source, destination));
    assert_eq!(read.addresses, expected);
    // The name does not fit a length of 16 bits beside the rest: then there is none rather than half of one.
    let values: Vec<_> = read.values.iter().map(|(kind, value)| (*kind, value.as_slice())).collect();
    let told = identity.as_ref().map(|identity| (0xD0, identity.as_str().as_bytes()));
    let told: Vec<_> = told.filter(|(_, name)| name.len() <= usize::from(u16::MAX) / 2).into_iter().collect();
    assert_eq!(values, told);
    assert_eq!(read.payload, PAYLOAD);
}

fn address(bytes: &[u8], is_ipv4: bool) -> Option<(SocketAddr, &[u8])> {
    let (octets, rest) = bytes.split_first_chunk::<16>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let ip: IpAddr = match is_ipv4 {
        true => [octets[0], octets[1], octets[2], octets[3]].into(),
        false => (*octets).into(),
    };
    Some((SocketAddr::new(ip, u16::from_be_bytes(*port)), rest))
}

/// A header taken apart.
struct Header<'a> {
    addresses: Option<(SocketAddr, SocketAddr)>,
    /// Type and value, in order.
    values: Vec<(u8, Vec<u8>)>,
    payload: &'a [u8],
}

/// None: not a header of version 2 for a stream that somebody else opened.
fn read(bytes: &[u8]) -> Option<Header<'_>> {
    let rest = bytes.strip_prefix(b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A")?;
    let ([version_and_command, family_and_protocol, high, low], rest) = rest.split_first_chunk::<4>()?;
    if (version_and_command >> 4, version_and_command & 0xF) != (2, 1) {
        return None;
    }
    let (content, payload) = rest.split_at_checked(usize::from(*high) << 8 | usize::from(*low))?;
    let (addresses, mut values) = match (family_and_protocol >> 4, family_and_protocol & 0xF) {
        (0, 0) => (None, content),
        (1, 1) => pair::<4>(content).map(|(addresses, rest)| (Some(addresses), rest))?,
        (2, 1) => pair::<16>(content).map(|(addresses, rest)| (Some(addresses), rest))?,
        _ => return None,
    };
    let mut read = Vec::new();
    while let Some(([kind, high, low], rest)) = values.split_first_chunk::<3>() {
        let (value, rest) = rest.split_at_checked(usize::from(*high) << 8 | usize::from(*low))?;
        read.push((*kind, value.to_vec()));
        values = rest;
    }
    values.is_empty().then_some(Header { addresses, values: read, payload })
}

/// Two addresses of `N` bytes, then two ports.
fn pair<const N: usize>(bytes: &[u8]) -> Option<((SocketAddr, SocketAddr), &[u8])>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = bytes.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let ([s0, s1, d0, d1], rest) = rest.split_first_chunk::<4>()?;
    let source = SocketAddr::new((*source).into(), u16::from_be_bytes([*s0, *s1]));
    let destination = SocketAddr::new((*destination).into(), u16::from_be_bytes([*d0, *d1]));
    Some(((source, destination), rest))
}
