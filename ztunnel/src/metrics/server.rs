//! Scrapes: `/metrics` and `/stats/prometheus` on port 15020, open to the network.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Request};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

use crate::http_server::{Answer, Body, HttpServer, not_found};

/// Port of the metrics server.
pub const PORT: u16 = 15020;

/// Scrapes served at once.
const MAX_CONNECTIONS: usize = 32;

/// The server that monitoring asks.
#[derive(Debug)]
pub struct MetricsServer(HttpServer);

impl MetricsServer {
    /// Takes the port. Needs a tokio runtime.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        HttpServer::bind("metrics", MAX_CONNECTIONS, [address]).map(Self)
    }

    /// What it listens on.
    pub fn local_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.0.local_addresses()
    }

    /// Answers until dropped, which cuts the open connections. Needs a `LocalRuntime` or `LocalSet`.
    ///
    /// Each scrape is encoded on a thread of its own while it is sent, so even a large one delays nothing.
    pub async fn serve(self, registry: Registry) {
        let registry = Arc::new(registry);
        self.0.serve(async move |request: &Request<Incoming>| answer(&registry, request)).await;
    }
}

fn answer(registry: &Arc<Registry>, request: &Request<Incoming>) -> Answer {
    if !matches!(request.uri().path(), "/metrics" | "/stats/prometheus") {
        return not_found();
    }
    let format = Format::accepted(request.headers());
    let registry = registry.clone();
    let body = Body::produced(move |sink| {
        // The sink is the only thing that fails.
        encode(format, &registry, sink).map_err(|_| io::ErrorKind::BrokenPipe.into())
    });
    let mut response = Answer::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    response
}

/// Writes all families of `registry`.
///
/// # Errors
/// Only those of `out`.
pub fn encode(format: Format, registry: &Registry, out: &mut impl fmt::Write) -> fmt::Result {
    match format {
        Format::OpenMetrics => text::encode(out, registry),
        Format::Text => prometheus_text::encode(out, registry),
    }
}

/// How metrics are written. The names of samples are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus text 0.0.4.
    Text,
}

impl Format {
    /// The format for a client: OpenMetrics if any item of its `Accept` headers (RFC 9110, section 12.5.1) names that,
    /// whatever its weight, since whoever knows it has asked for more than the default.
    fn accepted(headers: &HeaderMap) -> Self {
        let mut items = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let names_open_metrics = |item: &str| {
            let media_type = item.split(';').next().unwrap_or_default().trim();
            media_type.eq_ignore_ascii_case("application/openmetrics-text")
        };
        match items.any(|list| list.split(',').any(names_open_metrics)) {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }

    const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text;charset=utf-8;version=1.0.0",
            Self::Text => prometheus_text::CONTENT_TYPE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_for_those_who_name_it_anywhere() {
        let format = |accepts: &[&'static str]| {
            let headers = accepts.iter().map(|text| (ACCEPT, HeaderValue::from_static(text)));
            Format::accepted(&headers.collect())
        };
        assert_eq!(format(&[]), Format::Text);
        assert_eq!(format(&["application/json"]), Format::Text);
        assert_eq!(format(&["text/plain, application/openmetrics-text"]), Format::OpenMetrics);
        assert_eq!(
            format(&["text/plain", "Application/OpenMetrics-Text; version=1.0.0"]),
            Format::OpenMetrics
        );
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;q=0.3,*/*;q=0.1";
        assert_eq!(format(&[prometheus]), Format::OpenMetrics);
        assert_eq!(format(&["application/openmetrics-textual"]), Format::Text);
    }
}
