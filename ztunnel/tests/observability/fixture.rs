//! A mesh in which every field occurs, and a dump of it.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};
use ztunnel::admin::Section;
use ztunnel::admin::dump::{
    BuildInfo, ConnectionProtocol, Dump, DumpSources, InboundConnection, OutboundConnection, PodConnections,
    PodState, ProxyState,
};
use ztunnel::config::WorkloadName;
use ztunnel::state::{Mesh, StaticConfig};

/// One resource with everything, and one with as little as there can be.
pub(crate) const MESH: &str = r#"
workloads:
- uid: west//Pod/shop/cart-0
  name: cart-0
  namespace: shop
  serviceAccount: cart
  trustDomain: corp.example
  clusterId: west
  network: net-a
  node: node-3
  hostname: cart-0.example.com
  protocol: HBONE
  networkMode: HostNetwork
  nativeTunnel: true
  workloadIps: ["10.8.3.4", "fd00::4"]
  workloadName: cart
  workloadType: deployment
  canonicalName: cart
  canonicalRevision: v2
  applicationTunnel: {protocol: PROXY, port: 15088}
  waypoint: {destination: "net-a/10.96.44.90", hboneMtlsPort: 15008}
  networkGateway: {destination: "gw/gw.example.com", hboneMtlsPort: 15009}
  authorizationPolicies: ["shop/callers"]
  locality: {region: eu, zone: eu-1a, subzone: ""}
  status: Unhealthy
  capacity: 3
  services:
    "shop/cart.shop.svc.cluster.local": {80: 9090, 443: 8443}
    "shop/late.example.com": {443: 8443}
    "shop-b/late.example.com": {1: 2}
- uid: b
  namespace: shop
  workloadIps: []
  services: {}
services:
- name: cart
  namespace: shop
  hostname: cart.shop.svc.cluster.local
  vips: ["net-a/10.96.44.7", "/fd00::7"]
  cidrVips: [{network: net-a, cidr: 240.7.0.0/16}]
  ports: {80: 9090, 443: 0, 9: 9}
  endpoints:
    x: {workloadUid: b, port: {80: 1}}
  subjectAltNames: ["spiffe://corp.example/ns/shop/sa/other"]
  waypoint: {destination: "shop/wp.shop.svc.cluster.local", hboneMtlsPort: 15008}
  weightedWaypoints:
  - {destination: {destination: "shop/next.shop.svc.cluster.local", hboneMtlsPort: 15008}, weight: 90}
  loadBalancer: {routingPreferences: [Network, Region, Zone], mode: Failover, healthPolicy: AllowAll}
  ipFamilies: IPv4
  canonical: true
  visibility: Namespace
- name: bare
  namespace: shop
  hostname: bare.example.com
  vips: []
  ports: {}
policies:
- name: callers
  namespace: shop
  scope: WorkloadSelector
  action: Allow
  dryRun: false
  rules:
  - - - principals: [{Exact: corp.example/ns/shop/sa/web}, {Presence: []}]
        notPrincipals: [{Suffix: /sa/bad}]
      - namespaces: [{Prefix: edge-}]
        notNamespaces: [{Exact: edge-x}]
    - - destinationPorts: [9090]
        notDestinationPorts: [1, 2]
        sourceIps: [10.0.0.0/8]
        notSourceIps: [10.9.0.0/16]
        destinationIps: [fd00::/8]
        notDestinationIps: [10.1.0.1/32]
        serviceAccounts: [{namespace: shop, serviceAccount: web}]
        notServiceAccounts: [{namespace: shop, serviceAccount: bad}]
- name: all
  namespace: istio-system
  scope: Global
  action: Deny
  dryRun: true
  rules: []
"#;

pub(crate) fn static_config() -> StaticConfig {
    StaticConfig::parse("mesh.yaml", MESH).unwrap()
}

pub(crate) fn mesh() -> Mesh {
    let mut mesh = Mesh::new(None);
    static_config().apply(&mut mesh);
    mesh
}

pub(crate) fn sources(mesh: impl Fn() -> Arc<Mesh> + Send + Sync + 'static) -> DumpSources {
    DumpSources {
        mesh: Box::new(mesh),
        certificates: Box::new(Vec::new),
        config: json!({"clusterId": "west", "adminAddr": {"Localhost": [true, 15000]}}),
        static_config: Box::new(static_config),
        version: BuildInfo::of_this_program(Some("1.30.1")),
    }
}

pub(crate) fn pods() -> Vec<PodState> {
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let workload = |name: &str| WorkloadName {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        service_account: "cart".to_owned(),
    };
    let inbound = |original_dst, protocol| InboundConnection {
        src: address("10.8.1.9:40112"),
        original_dst,
        actual_dst: address("[::ffff:10.8.3.4]:9090"),
        protocol,
    };
    let outbound = OutboundConnection {
        src: address("10.8.3.4:37770"),
        original_dst: address("10.96.71.2:443"),
        actual_dst: address("[fd00::6]:15008"),
        protocol: ConnectionProtocol::DoubleHbone,
    };
    let connections = PodConnections {
        inbound: vec![
            inbound(Some("cart.example.com".into()), ConnectionProtocol::Hbone),
            inbound(None, ConnectionProtocol::Tcp),
        ],
        outbound: vec![outbound],
    };
    vec![
        PodState {
            uid: "7777".into(),
            workload: workload("tax-0"),
            state: ProxyState::Pending,
            connections: None,
        },
        PodState {
            uid: "0f1a".into(),
            workload: workload("cart-0"),
            state: ProxyState::Up,
            connections: Some(connections),
        },
    ]
}

pub(crate) fn dump(sources: DumpSources, pods: Option<Vec<PodState>>) -> Vec<u8> {
    let mut text = Vec::new();
    Dump::new(Arc::new(sources), pods, Section::ALL.into()).write(&mut text).unwrap();
    text
}

pub(crate) fn full_dump() -> Vec<u8> {
    dump(sources(|| Arc::new(mesh())), Some(pods()))
}

pub(crate) fn parsed(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}
