//! `forwarded` (RFC 7239): `for="client"` and `;host=service`.

use std::fmt::Write as _;
use std::net::SocketAddr;

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue};

use super::FORWARDED;
use crate::authority::HostName;

/// `for="<ip:port>"`, followed by `;host=<service>` when the connection was dialled to a service.
///
/// The value is marked as one not to be indexed by header compression: it is new for every connection
/// and would push everything else out of the table.
pub fn forwarded(client: SocketAddr, service: Option<&HostName>) -> HeaderValue {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    let mut text = BytesMut::with_capacity(64 + service.map_or(0, |host| host.as_str().len()));
    write!(text, "for=\"{client}\"").expect("BytesMut grows on demand");
    if let Some(host) = service {
        write!(text, ";host={host}").expect("BytesMut grows on demand");
    }
    let mut value =
        HeaderValue::from_maybe_shared(text.freeze()).expect("an address and a host name are visible ASCII");
    value.set_sensitive(true);
    value
}

/// The `host=` parameter of the first `forwarded` header, without its quotes, wherever it stands among
/// the parameters. `None` if it is missing, empty or unterminated, or if the header is not ASCII.
pub fn forwarded_host(headers: &HeaderMap) -> Option<&str> {
    let mut rest = headers.get(FORWARDED)?.to_str().ok()?;
    while !rest.is_empty() {
        let (parameter, after) = split_parameter(rest);
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if name.trim().eq_ignore_ascii_case("host") {
            let value = value.trim();
            let value = match value.strip_prefix('"') {
                Some(quoted) => quoted.strip_suffix('"')?,
                None => value,
            };
            return Some(value).filter(|host| !host.is_empty() && !host.contains(['"', '\\']));
        }
        rest = after;
    }
    None
}

/// Cuts at the first semicolon or comma outside quotes.
fn split_parameter(text: &str) -> (&str, &str) {
    let mut quoted = false;
    let mut escaped = false;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b';' | b',' if !quoted => return (&text[..index], &text[index + 1..]),
            _ => {}
        }
    }
    (text, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host_of(value: &[u8]) -> Option<String> {
        let headers = HeaderMap::from_iter([(FORWARDED, HeaderValue::from_bytes(value).unwrap())]);
        forwarded_host(&headers).map(str::to_owned)
    }

    #[test]
    fn the_client_is_quoted_and_the_service_is_not() {
        let host = HostName::new("example.com").unwrap();
        for (client, service, text) in [
            ("127.0.0.1:80", None, "for=\"127.0.0.1:80\""),
            ("[::1]:80", None, "for=\"[::1]:80\""),
            ("[::ffff:10.0.0.1]:80", None, "for=\"10.0.0.1:80\""),
            ("127.0.0.1:80", Some(&host), "for=\"127.0.0.1:80\";host=example.com"),
        ] {
            assert_eq!(forwarded(client.parse().unwrap(), service), text);
        }
    }

    #[test]
    fn the_host_is_found_quoted_or_not_wherever_it_stands() {
        for (text, host) in [
            ("host=a.example", "a.example"),
            ("for=\"10.0.0.1:80\";host=a.example", "a.example"),
            ("host=\"a.example\";for=x", "a.example"),
            ("by=y; Host = \"a.example\" ;for=x", "a.example"),
            ("for=\"a;host=evil\";host=a.example", "a.example"),
            ("for=\"a\\\";host=evil\";host=a.example", "a.example"),
            ("host=a.example, for=second", "a.example"),
        ] {
            assert_eq!(host_of(text.as_bytes()).as_deref(), Some(host), "{text}");
        }
    }

    #[test]
    fn a_missing_empty_unterminated_or_non_ascii_host_is_none() {
        assert_eq!(forwarded_host(&HeaderMap::new()), None);
        for text in ["", "for=x", "host", "host=", "host=\"\"", "host=\"a", "host=\"a\\\"b\"", "host=ä"] {
            assert_eq!(host_of(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let _ = forwarded_host(&HeaderMap::from_iter([(FORWARDED, value)]));
            }
        }

        #[test]
        fn what_is_written_is_read_back(client: SocketAddr, host in "[a-z][a-z0-9-]{0,20}(\\.[a-z]{1,10}){0,3}") {
            let host = HostName::new(&host).unwrap();
            let headers = HeaderMap::from_iter([(FORWARDED, forwarded(client, Some(&host)))]);
            prop_assert_eq!(forwarded_host(&headers), Some(host.as_str()));
        }
    }
}
