//! What has to hold for any bytes. Used by the fuzz targets and, on the corpora, by the ordinary tests.

use hbone::headers::{BAGGAGE, Baggage, FORWARDED, TRACEPARENT, TraceParent, forwarded, forwarded_host};
use hbone::{Authority, HostName};
use http::{HeaderMap, HeaderValue};

/// What parses prints as something that parses the same.
pub(crate) fn authority(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(authority) = text.parse::<Authority>() else { return };
    assert_ne!(authority.port(), 0);
    assert_eq!(authority.to_string().parse(), Ok(authority));
}

/// What is read and written again is read the same, however many lines it came in.
pub(crate) fn baggage(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Ok(value) = HeaderValue::from_bytes(line) else { return };
        headers.append(BAGGAGE, value);
    }
    let Some(first) = Baggage::from_headers(&headers) else { return };
    let encoded = HeaderMap::from_iter([(BAGGAGE, first.encode())]);
    let Some(second) = Baggage::from_headers(&encoded) else { panic!("our own header is not read") };
    assert_eq!(second.encode(), first.encode());
}

/// A host that is found can be sent on, if it is a host name, and is found again.
pub(crate) fn forwarded_header(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let headers = HeaderMap::from_iter([(FORWARDED, value)]);
    let Some(host) = forwarded_host(&headers) else { return };
    assert!(!host.is_empty() && !host.contains('"'));
    if let Ok(name) = HostName::new(host) {
        let sent = HeaderMap::from_iter([(FORWARDED, forwarded(([10, 0, 0, 1], 80).into(), Some(&name)))]);
        assert_eq!(forwarded_host(&sent), Some(host));
    }
}

/// What parses prints as it was.
pub(crate) fn traceparent(bytes: &[u8]) {
    if let Some(trace) = TraceParent::parse(bytes) {
        assert_eq!(trace.encode().as_bytes(), bytes);
    }
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        let headers = HeaderMap::from_iter([(TRACEPARENT, value)]);
        assert_eq!(TraceParent::from_headers(&headers), TraceParent::parse(bytes));
    }
}
