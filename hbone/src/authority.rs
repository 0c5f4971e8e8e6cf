//! The `:authority` of a CONNECT request: where the tunnelled connection goes (RFC 9110 §9.3.6).

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use bytes::BytesMut;

/// `ip:port`, `[v6]:port` or `hostname:port`.
///
/// Prints as it goes on the wire. Parsing accepts exactly these forms: no user information, no missing,
/// empty or zero port, no zone identifier. An IPv4-mapped IPv6 address becomes the IPv4 address it
/// means, so that one destination has one spelling.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// An address, canonical when it comes from parsing or from `From<SocketAddr>`.
    Address(SocketAddr),
    /// A host name, spelt as the peer spelt it, and a port.
    Name(HostName, u16),
}

impl Authority {
    /// The port, never zero when parsed.
    pub fn port(&self) -> u16 {
        match self {
            Authority::Address(address) => address.port(),
            Authority::Name(_, port) => *port,
        }
    }

    /// The form that the HTTP library wants.
    pub(crate) fn to_uri_authority(&self) -> http::uri::Authority {
        let mut text = BytesMut::with_capacity(64);
        write!(text, "{self}").expect("BytesMut grows on demand");
        http::uri::Authority::from_maybe_shared(text.freeze())
            .expect("an address or a validated host name, a colon and a port are a URI authority")
    }
}

impl From<SocketAddr> for Authority {
    /// Canonicalises IPv4-mapped addresses and drops zone identifier and flow label, which mean
    /// nothing to the peer.
    fn from(address: SocketAddr) -> Self {
        Authority::Address(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, AuthorityError> {
        let (host, port) = text.rsplit_once(':').ok_or(AuthorityError::NoPort)?;
        let port = parse_port(port)?;
        if let Some(host) = host.strip_prefix('[') {
            let host = host.strip_suffix(']').ok_or(AuthorityError::BadHost)?;
            let ip = host.parse::<Ipv6Addr>().map_err(|_| AuthorityError::BadHost)?;
            return Ok(Authority::from(SocketAddr::new(IpAddr::V6(ip), port)));
        }
        match host.parse::<Ipv4Addr>() {
            Ok(ip) => Ok(Authority::Address(SocketAddr::new(IpAddr::V4(ip), port))),
            Err(_) => Ok(Authority::Name(HostName::new(host)?, port)),
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Authority::Address(SocketAddr::V4(v4)) => write!(f, "{v4}"),
            Authority::Address(SocketAddr::V6(v6)) => write!(f, "[{}]:{}", v6.ip(), v6.port()),
            Authority::Name(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// A host name that can stand in an authority: 1 to 253 characters (a final dot apart), labels of 1 to
/// 63 letters, digits, hyphens or underscores. The last label has a non-digit, so that a misspelt IPv4
/// address is not taken for a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostName(Box<str>);

impl HostName {
    /// Checks `name` and keeps it as it is spelt.
    pub fn new(name: &str) -> Result<Self, AuthorityError> {
        let labels = name.strip_suffix('.').unwrap_or(name);
        let last = labels.rsplit('.').next().unwrap_or_default();
        let well_formed = labels.len() <= 253
            && labels.split('.').all(is_label)
            && !last.bytes().all(|byte| byte.is_ascii_digit());
        if well_formed { Ok(HostName(name.into())) } else { Err(AuthorityError::BadHost) }
    }

    /// The name as it was spelt.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not an authority that CONNECT can use. The peer is at fault; the answer is `400`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// The request carries no `:authority`.
    #[error("the authority is missing")]
    Missing,
    /// There is no colon.
    #[error("the authority has no port")]
    NoPort,
    /// The port is empty, zero, above 65535 or not decimal.
    #[error("the authority's port is not a number from 1 to 65535")]
    BadPort,
    /// The host is neither an IP address nor a host name.
    #[error("the authority's host is neither an IP address nor a host name")]
    BadHost,
}

/// `u16::from_str` alone would let a plus sign through.
fn parse_port(text: &str) -> Result<u16, AuthorityError> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(AuthorityError::BadPort),
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_form_parses_and_prints_as_it_was() {
        for text in ["10.0.0.2:8080", "[ff06::c3]:80", "[::1]:65535", "example.com:1", "a_b.c-d.svc.:443"] {
            assert_eq!(text.parse::<Authority>().unwrap().to_string(), text);
        }
        assert_eq!(
            "10.0.0.2:80".parse::<Authority>().unwrap(),
            Authority::from(SocketAddr::from(([10, 0, 0, 2], 80)))
        );
    }

    #[test]
    fn a_mapped_address_becomes_the_ipv4_address_it_means() {
        assert_eq!("[::ffff:10.0.0.2]:80".parse::<Authority>().unwrap().to_string(), "10.0.0.2:80");
        let mapped: SocketAddr = "[::ffff:10.0.0.2]:80".parse().unwrap();
        assert_eq!(Authority::from(mapped).to_string(), "10.0.0.2:80");
    }

    #[test]
    fn what_is_not_exactly_a_host_and_a_port_is_refused_with_its_reason() {
        use AuthorityError::*;
        for (text, error) in [
            ("", NoPort),
            ("example.com", NoPort),
            ("example.com:", BadPort),
            ("example.com:0", BadPort),
            ("example.com:65536", BadPort),
            ("example.com:+80", BadPort),
            ("example.com:000080", BadPort),
            ("example.com:http", BadPort),
            ("10.0.0.256:80", BadHost),
            ("10.0.0:80", BadHost),
            ("010.0.0.1:80", BadHost),
            (":80", BadHost),
            (".:80", BadHost),
            ("a..b:80", BadHost),
            ("user@example.com:80", BadHost),
            ("example.com/path:80", BadHost),
            ("exämple.com:80", BadHost),
            ("::1:80", BadHost),
            ("[::1:80", BadHost),
            ("[fe80::1%eth0]:80", BadHost),
            ("[10.0.0.1]:80", BadHost),
            ("[::1]x:80", BadHost),
        ] {
            assert_eq!(text.parse::<Authority>(), Err(error), "{text:?}");
        }
        assert_eq!(format!("{}:80", "a".repeat(64)).parse::<Authority>(), Err(BadHost));
        assert_eq!(format!("{}a:80", "abcdefg.".repeat(32)).parse::<Authority>(), Err(BadHost));
    }

    #[test]
    fn a_zone_identifier_does_not_reach_the_wire() {
        let address = std::net::SocketAddrV6::new(Ipv6Addr::LOCALHOST, 80, 7, 3);
        assert_eq!(Authority::from(SocketAddr::V6(address)).to_string(), "[::1]:80");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_and_what_is_parsed_round_trips(text in "\\PC{0,80}") {
            if let Ok(authority) = text.parse::<Authority>() {
                let printed = authority.to_string();
                prop_assert_eq!(printed.parse::<Authority>(), Ok(authority.clone()));
                prop_assert_eq!(authority.to_uri_authority().to_string(), printed);
            }
        }

        #[test]
        fn any_address_round_trips(ip: IpAddr, port in 1u16..) {
            let authority = Authority::from(SocketAddr::new(ip, port));
            prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
        }
    }
}
