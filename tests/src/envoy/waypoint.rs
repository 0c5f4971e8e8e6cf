//! A waypoint, as istiod configures Envoy for it.
//!
//! ```text
//!   tunnel --> connect_terminate --> main_internal --> connect_originate --> tunnel
//!              TLS, CONNECT          HTTP or TCP       CONNECT, TLS
//! ```
//!
//! The listeners in the middle are internal: they take connections from clusters of the same process. What a connection
//! is told on the way, such as where it was going, is passed on beside its bytes.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{Files, parts};
use crate::Pod;

/// Under which name an internal connection is told where it goes.
const ORIGINAL_DESTINATION: &str = "envoy.filters.listener.original_dst";

/// Under which name it is told who the client is.
const PEER: &str = "io.istio.peer_principal";

/// Of the PROXY protocol's types for applications: the client's identity.
const TYPE_IDENTITY: u8 = 0xD0;

/// What a waypoint serves.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The service's or workload's address and port, as clients dial it.
    pub address: SocketAddr,
    /// How it is served.
    pub layer: Layer,
    /// Where it leads to.
    pub endpoints: Vec<SocketAddr>,
}

/// What a waypoint understands of the bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Layer {
    /// HTTP/1.1. The waypoint adds two headers to requests: `x-waypoint` with its own name, and `x-client-identity`.
    Http,
    /// Nothing.
    Tcp,
}

/// Listeners and clusters of a waypoint that makes its own tunnels.
pub(super) fn resources(pod: &Pod, files: &Files, attached: &[Attached]) -> (Vec<Value>, Vec<Value>) {
    let any = parts::terminated("default", &["*".to_owned()], "main_internal");
    let main = json!({
        "name": "main_internal",
        "internal_listener": {},
        "listener_filters": [parts::original_destination()],
        "filter_chains": filter_chains(pod, attached, &[]),
    });
    let listeners = vec![
        parts::connect_terminate(files, &[any], vec![remember_the_client()]),
        main,
        originate_listener(pod),
    ];
    let mut clusters = vec![
        parts::cluster(
            "main_internal",
            vec![internal_endpoint("main_internal")],
            Some(parts::internal_upstream(None)),
        ),
        originate_cluster(files),
    ];
    for entry in attached {
        let endpoints = entry.endpoints.iter().map(|target| {
            let mut endpoint = internal_endpoint("connect_originate");
            endpoint["endpoint"]["address"]["envoy_internal_address"]["endpoint_id"] =
                target.to_string().into();
            endpoint["metadata"] =
                json!({"filter_metadata": {ORIGINAL_DESTINATION: {"local": target.to_string()}}});
            endpoint
        });
        let transport = parts::internal_upstream(Some(ORIGINAL_DESTINATION));
        clusters.push(parts::cluster(&cluster_of(entry), endpoints.collect(), Some(transport)));
    }
    (listeners, clusters)
}

/// Listeners and clusters of a waypoint that leaves tunnels to the node's proxy.
pub(super) fn sandwiched_resources(pod: &Pod, port: u16, attached: &[Attached]) -> (Vec<Value>, Vec<Value>) {
    let rule = json!({"tlv_type": TYPE_IDENTITY, "on_tlv_present": {"key": "peer_principal"}});
    let message = "filters.listener.proxy_protocol.v3.ProxyProtocol";
    let header = parts::extension(message, json!({"rules": [rule]}));
    let format = "%DYNAMIC_METADATA(envoy.filters.listener.proxy_protocol:peer_principal)%";
    let told = json!({"on_new_connection": [state(PEER, "envoy.string", format)]});
    let told = parts::extension("filters.network.set_filter_state.v3.Config", told);
    let told = parts::named("envoy.filters.network.set_filter_state", told);
    let listener = json!({
        "name": "main",
        "address": parts::socket_address("127.0.0.1", port),
        "listener_filters": [parts::named("envoy.filters.listener.proxy_protocol", header)],
        "filter_chains": filter_chains(pod, attached, &[told]),
    });
    let clusters = attached.iter().map(|entry| {
        parts::cluster(
            &cluster_of(entry),
            entry.endpoints.iter().copied().map(parts::endpoint).collect(),
            None,
        )
    });
    (vec![listener], clusters.collect())
}

fn cluster_of(attached: &Attached) -> String {
    format!("inbound-vip|{}", attached.address)
}

/// One chain for each address, which begins with the filters `first`. A connection to any other is closed.
fn filter_chains(pod: &Pod, attached: &[Attached], first: &[Value]) -> Vec<Value> {
    let chain = |entry: &Attached| {
        let (address, cluster) = (entry.address.ip(), cluster_of(entry));
        let length = if address.is_ipv4() { 32 } else { 128 };
        let last = match entry.layer {
            Layer::Http => http_filter(pod, &cluster),
            Layer::Tcp => {
                parts::tcp_proxy(json!({"stat_prefix": cluster, "cluster": cluster, "idle_timeout": "0s"}))
            }
        };
        json!({
            "filter_chain_match": {
                "destination_port": entry.address.port(),
                "prefix_ranges": [{"address_prefix": address, "prefix_len": length}],
            },
            "filters": first.iter().chain([&last]).collect::<Vec<_>>(),
        })
    };
    attached.iter().map(chain).collect()
}

fn http_filter(pod: &Pod, cluster: &str) -> Value {
    let add = |key: &str, value: &str| json!({"header": {"key": key, "value": value}});
    let identity = format!("%FILTER_STATE({PEER}:PLAIN)%");
    parts::connection_manager(json!({
        "stat_prefix": cluster,
        "route_config": {
            "name": cluster,
            "request_headers_to_add": [add("x-waypoint", pod.name()), add("x-client-identity", &identity)],
            "virtual_hosts": [{
                "name": "default",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}],
            }],
        },
        "http_filters": [parts::router()],
    }))
}

/// Has the connections that come out of a tunnel know who is at its other end, and where the CONNECT wanted to go.
fn remember_the_client() -> Value {
    let local = format!("{ORIGINAL_DESTINATION}.local_ip");
    let remote = format!("{ORIGINAL_DESTINATION}.remote_ip");
    let fields = json!({"on_request_headers": [
        state(&local, &local, "%REQ(:AUTHORITY)%"),
        state(&remote, &remote, "%DOWNSTREAM_REMOTE_ADDRESS%"),
        state(PEER, "envoy.string", "%DOWNSTREAM_PEER_URI_SAN%"),
    ]});
    let filter = parts::extension("filters.http.set_filter_state.v3.Config", fields);
    parts::named("envoy.filters.http.set_filter_state", filter)
}

/// Something that a connection is told, and the connection after it.
fn state(key: &str, factory: &str, format: &str) -> Value {
    json!({
        "object_key": key,
        "factory_key": factory,
        "format_string": {"text_format_source": {"inline_string": format}},
        "shared_with_upstream": "ONCE",
    })
}

fn internal_endpoint(listener: &str) -> Value {
    json!({"endpoint": {"address": {"envoy_internal_address": {"server_listener_name": listener}}}})
}

/// Wraps each connection into a CONNECT for where it goes.
fn originate_listener(pod: &Pod) -> Value {
    let baggage = format!(
        "k8s.cluster.name={},k8s.namespace.name={},k8s.deployment.name={}",
        crate::istiod::CLUSTER,
        Pod::NAMESPACE,
        pod.name()
    );
    let tunnel = json!({
        "hostname": "%DOWNSTREAM_LOCAL_ADDRESS%",
        "headers_to_add": [{"header": {"key": "baggage", "value": baggage}}],
    });
    let proxy = json!({
        "stat_prefix": "connect_originate",
        "cluster": "connect_originate",
        "tunneling_config": tunnel,
        "idle_timeout": "0s",
    });
    json!({
        "name": "connect_originate",
        "internal_listener": {},
        "listener_filters": [parts::original_destination()],
        "filter_chains": [{"filters": [parts::tcp_proxy(proxy)]}],
    })
}

/// Carries CONNECTs to port 15008 of where they go.
fn originate_cluster(files: &Files) -> Value {
    let options = parts::extension(
        "upstreams.http.v3.HttpProtocolOptions",
        json!({"explicit_http_config": {"http2_protocol_options": parts::http2()}}),
    );
    json!({
        "name": "connect_originate",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
        "cleanup_interval": "60s",
        "original_dst_lb_config": {"upstream_port_override": 15008},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "transport_socket": parts::upstream_tls(files),
    })
}
