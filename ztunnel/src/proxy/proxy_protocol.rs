//! The PROXY protocol, version 2: tells an application that terminates tunnels itself who the client is.
//!
//! A binary header before the first byte of the connection (haproxy's `proxy-protocol.txt`, section 2.2).

use std::net::SocketAddr;

use identity::SpiffeId;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;

/// Of the types set aside for applications: the client's identity as text.
const TYPE_IDENTITY: u8 = 0xD0;

/// Lengths are of 16 bits. A longer name, which no authority issues, is left out: its beginning would be somebody else's.
const LONGEST_IDENTITY: usize = u16::MAX as usize / 2;

/// The header for a connection from `source` to `destination`, by a client that proved `identity`.
pub fn header(source: SocketAddr, destination: SocketAddr, identity: Option<&SpiffeId>) -> Vec<u8> {
    let (family_and_transport, addresses) = addresses(source, destination);
    let identity = identity.map(SpiffeId::as_str).filter(|name| name.len() <= LONGEST_IDENTITY);
    let identity = identity.unwrap_or_default().as_bytes();
    let value_length = if identity.is_empty() { 0 } else { 3 + identity.len() };
    let mut header = Vec::with_capacity(16 + addresses.len() + value_length);
    header.extend_from_slice(&SIGNATURE);
    header.extend_from_slice(&[VERSION_AND_COMMAND, family_and_transport]);
    header.extend_from_slice(&length(addresses.len() + value_length));
    header.extend_from_slice(&addresses);
    if !identity.is_empty() {
        header.push(TYPE_IDENTITY);
        header.extend_from_slice(&length(identity.len()));
        header.extend_from_slice(identity);
    }
    header
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).expect("bounded above").to_be_bytes()
}

/// Family and transport, and both addresses and ports. Addresses of two families cannot be said: none then.
fn addresses(source: SocketAddr, destination: SocketAddr) -> (u8, Vec<u8>) {
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    match (source, destination) {
        (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
            (0x11, [&source.ip().octets()[..], &destination.ip().octets(), &ports].concat())
        }
        (SocketAddr::V6(source), SocketAddr::V6(destination)) => {
            (0x21, [&source.ip().octets()[..], &destination.ip().octets(), &ports].concat())
        }
        _ => (0x00, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_addresses_and_the_identity_are_told() {
        let identity: SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let header =
            header("10.0.0.1:4000".parse().unwrap(), "10.0.0.2:80".parse().unwrap(), Some(&identity));
        assert_eq!(&header[..12], b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a");
        assert_eq!(header[12..16], [0x21, 0x11, 0, 12 + 3 + 21]);
        assert_eq!(header[16..28], [10, 0, 0, 1, 10, 0, 0, 2, 0x0f, 0xa0, 0, 80]);
        assert_eq!(header[28..31], [0xD0, 0, 21]);
        assert_eq!(&header[31..], b"spiffe://td/ns/a/sa/b");
    }

    #[test]
    fn addresses_of_two_families_are_not_told() {
        let header = header("10.0.0.1:4000".parse().unwrap(), "[fd00::2]:80".parse().unwrap(), None);
        assert_eq!(header[12..], [0x21, 0x00, 0, 0]);
    }

    #[test]
    fn ipv6_addresses_are_told() {
        let header = header("[fd00::1]:1".parse().unwrap(), "[fd00::2]:2".parse().unwrap(), None);
        assert_eq!(header[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(header.len(), 16 + 36);
    }
}
