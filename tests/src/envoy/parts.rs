//! Pieces of Envoy's configuration that several roles have in common.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::Files;
use crate::Pod;

/// A message of one of Envoy's extensions, `envoy.extensions.` left out.
pub(super) fn extension(message: &str, mut fields: Value) -> Value {
    fields["@type"] = format!("type.googleapis.com/envoy.extensions.{message}").into();
    fields
}

/// A filter or the like: its name, and its configuration.
pub(super) fn named(name: &str, configuration: Value) -> Value {
    json!({"name": name, "typed_config": configuration})
}

pub(super) fn socket_address(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

pub(super) fn endpoint(target: SocketAddr) -> Value {
    json!({"endpoint": {"address": socket_address(&target.ip().to_string(), target.port())}})
}

/// A cluster of endpoints that do not change.
pub(super) fn cluster(name: &str, endpoints: Vec<Value>, transport: Option<Value>) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    });
    if let Some(transport) = transport {
        cluster["transport_socket"] = transport;
    }
    cluster
}

/// The connection to an internal listener, which is told the host's metadata named `pass` if any.
pub(super) fn internal_upstream(pass: Option<&str>) -> Value {
    let raw = named("envoy.transport_sockets.raw_buffer", raw_buffer());
    let metadata: Vec<_> = pass.iter().map(|name| json!({"kind": {"host": {}}, "name": name})).collect();
    let fields = json!({"transport_socket": raw, "passthrough_metadata": metadata});
    let message = "transport_sockets.internal_upstream.v3.InternalUpstreamTransport";
    named("envoy.transport_sockets.internal_upstream", extension(message, fields))
}

fn raw_buffer() -> Value {
    extension("transport_sockets.raw_buffer.v3.RawBuffer", json!({}))
}

/// Mutual TLS as between proxies of the mesh: version 1.3, HTTP/2, peers of the mesh's trust domain.
fn tls(files: &Files) -> Value {
    let peer = json!({"san_type": "URI", "matcher": {"prefix": format!("spiffe://{}/", Pod::TRUST_DOMAIN)}});
    let version = "TLSv1_3";
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": version, "tls_maximum_protocol_version": version},
        "tls_certificate_sds_secret_configs": [files.sds("default")],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": [peer]},
            "validation_context_sds_secret_config": files.sds("ROOTCA"),
        },
    })
}

pub(super) fn downstream_tls(files: &Files) -> Value {
    let fields = json!({"require_client_certificate": true, "common_tls_context": tls(files)});
    named("envoy.transport_sockets.tls", extension("transport_sockets.tls.v3.DownstreamTlsContext", fields))
}

pub(super) fn upstream_tls(files: &Files) -> Value {
    let fields = json!({"common_tls_context": tls(files)});
    named("envoy.transport_sockets.tls", extension("transport_sockets.tls.v3.UpstreamTlsContext", fields))
}

/// HTTP/2 as in a waypoint: 100 streams in a tunnel, a PING every ten seconds.
pub(super) fn http2() -> Value {
    json!({
        "allow_connect": true,
        "max_concurrent_streams": 100,
        "connection_keepalive": {"interval": "10s", "timeout": "20s"},
    })
}

/// The listener on port 15008 that terminates tunnels. `virtual_hosts` and `filters` say what becomes of a CONNECT.
pub(super) fn connect_terminate(files: &Files, virtual_hosts: &[Value], mut filters: Vec<Value>) -> Value {
    filters.push(router());
    let manager = json!({
        "stat_prefix": "connect_terminate",
        "codec_type": "HTTP2",
        "http2_protocol_options": http2(),
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "stream_idle_timeout": "0s",
        "route_config": {"name": "default", "virtual_hosts": virtual_hosts, "validate_clusters": false},
        "http_filters": filters,
    });
    json!({
        "name": "connect_terminate",
        "address": socket_address("0.0.0.0", 15008),
        "additional_addresses": [{"address": socket_address("::", 15008)}],
        "filter_chains": [
            {"transport_socket": downstream_tls(files), "filters": [connection_manager(manager)]},
        ],
    })
}

/// Terminates CONNECT requests for any of `domains` and passes their bytes on to `cluster`.
pub(super) fn terminated(name: &str, domains: &[String], cluster: &str) -> Value {
    let upgrade = json!({"upgrade_type": "CONNECT", "connect_config": {}});
    let route = json!({"cluster": cluster, "timeout": "0s", "upgrade_configs": [upgrade]});
    json!({
        "name": name,
        "domains": domains,
        "routes": [{"match": {"connect_matcher": {}}, "route": route}],
    })
}

pub(super) fn connection_manager(fields: Value) -> Value {
    let message = "filters.network.http_connection_manager.v3.HttpConnectionManager";
    named("envoy.filters.network.http_connection_manager", extension(message, fields))
}

pub(super) fn tcp_proxy(fields: Value) -> Value {
    named("envoy.filters.network.tcp_proxy", extension("filters.network.tcp_proxy.v3.TcpProxy", fields))
}

pub(super) fn router() -> Value {
    named("envoy.filters.http.router", extension("filters.http.router.v3.Router", json!({})))
}

/// Takes where a connection was going from what came with it.
pub(super) fn original_destination() -> Value {
    let message = "filters.listener.original_dst.v3.OriginalDst";
    named("envoy.filters.listener.original_dst", extension(message, json!({})))
}
