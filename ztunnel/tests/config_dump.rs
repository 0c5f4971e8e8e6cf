//! The configuration dump: shapes that tools parse, consistency, and a server for the loopback alone.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod http_client;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use http_client::{LONG, ask, get, run};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use ztunnel::admin::dump::{
    BuildInfo, ConnectionProtocol, Dump, DumpSources, InboundConnection, OutboundConnection, PodConnections,
    PodState, ProxyState, write_mesh,
};
use ztunnel::admin::{AdminServer, GatherPods, Section};
use ztunnel::config::{Families, WorkloadName};
use ztunnel::policy::{Action, Enforcement, MatchSpec, PolicyScope, PolicySpec, Unreadable, compile};
use ztunnel::state::model::{NamespacedHostname, Workload};
use ztunnel::state::{Mesh, MeshState, StaticConfig};

/// One resource with everything, and one with as little as there can be.
const MESH: &str = r#"
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

fn static_config() -> StaticConfig {
    StaticConfig::parse("mesh.yaml", MESH).unwrap()
}

fn mesh() -> Mesh {
    let mut mesh = Mesh::new(None);
    static_config().apply(&mut mesh);
    mesh
}

fn sources(mesh: impl Fn() -> Arc<Mesh> + Send + Sync + 'static) -> DumpSources {
    DumpSources {
        mesh: Box::new(mesh),
        certificates: Box::new(Vec::new),
        config: json!({"clusterId": "west", "adminAddr": {"Localhost": [true, 15000]}}),
        static_config: Box::new(static_config),
        version: BuildInfo::of_this_program(Some("1.30.1")),
    }
}

fn pods() -> Vec<PodState> {
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

fn dump(sources: DumpSources, pods: Option<Vec<PodState>>) -> Vec<u8> {
    let mut text = Vec::new();
    Dump::new(Arc::new(sources), pods, Section::ALL.into()).write(&mut text).unwrap();
    text
}

fn full_dump() -> Vec<u8> {
    dump(sources(|| Arc::new(mesh())), Some(pods()))
}

fn parsed(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

#[test]
fn keys_are_in_byte_order_and_the_indent_is_two_spaces() {
    let text = String::from_utf8(full_dump()).unwrap();
    // The parsed form keeps keys in the order of their bytes, so writing it again must change nothing.
    assert_eq!(text, serde_json::to_string_pretty(&parsed(text.as_bytes())).unwrap());
}

#[test]
fn workloads_have_the_golden_shape() {
    let workloads = &parsed(&full_dump())["workloads"];
    assert_eq!(
        workloads[0],
        json!({
            "capacity": 1, "clusterId": "", "name": "", "namespace": "shop", "networkMode": "Standard",
            "protocol": "TCP", "status": "Healthy", "uid": "b", "workloadIps": [],
        })
    );
    assert_eq!(
        workloads[1],
        json!({
            "applicationTunnel": {"port": 15088, "protocol": "PROXY"},
            "authorizationPolicies": ["shop/callers"],
            "canonicalName": "cart", "canonicalRevision": "v2", "capacity": 3, "clusterId": "west",
            "hostname": "cart-0.example.com",
            "locality": {"region": "eu", "subzone": "", "zone": "eu-1a"},
            "name": "cart-0", "namespace": "shop", "nativeTunnel": true, "network": "net-a",
            "networkGateway": {"destination": "gw/gw.example.com", "hboneMtlsPort": 15009},
            "networkMode": "HostNetwork", "node": "node-3", "protocol": "HBONE", "serviceAccount": "cart",
            "services": ["shop-b/late.example.com", "shop/cart.shop.svc.cluster.local", "shop/late.example.com"],
            "status": "Unhealthy", "trustDomain": "corp.example", "uid": "west//Pod/shop/cart-0",
            "waypoint": {"destination": "net-a/10.96.44.90", "hboneMtlsPort": 15008},
            "workloadIps": ["10.8.3.4", "fd00::4"], "workloadName": "cart", "workloadType": "deployment",
        })
    );
    assert_eq!(workloads.as_array().unwrap().len(), 2);
}

#[test]
fn services_have_the_golden_shape() {
    let dump = parsed(&full_dump());
    assert_eq!(
        dump["services"],
        json!([
            {
                "canonical": false, "endpoints": {}, "hostname": "bare.example.com", "name": "bare",
                "namespace": "shop", "ports": {}, "subjectAltNames": [], "vips": [], "visibility": "Public",
            },
            {
                "canonical": true,
                "cidrVips": [{"cidr": "240.7.0.0/16", "network": "net-a"}],
                "endpoints": {
                    "b": {"port": {"80": 1}, "status": "Healthy", "workloadUid": "b"},
                    "west//Pod/shop/cart-0": {
                        "port": {"443": 8443, "80": 9090}, "status": "Unhealthy", "workloadUid": "west//Pod/shop/cart-0",
                    },
                },
                "hostname": "cart.shop.svc.cluster.local", "ipFamilies": "IPv4",
                "loadBalancer": {
                    "healthPolicy": "AllowAll", "mode": "Failover", "routingPreferences": ["Network", "Region", "Zone"],
                },
                "name": "cart", "namespace": "shop", "ports": {"443": 0, "80": 9090, "9": 9},
                "subjectAltNames": ["spiffe://corp.example/ns/shop/sa/other"],
                "vips": ["net-a/10.96.44.7", "/fd00::7"], "visibility": "Namespace",
                "waypoint": {"destination": "shop/wp.shop.svc.cluster.local", "hboneMtlsPort": 15008},
                "weightedWaypoints": [{
                    "destination": {"destination": "shop/next.shop.svc.cluster.local", "hboneMtlsPort": 15008},
                    "weight": 90,
                }],
            },
        ])
    );
    let staged = |port: Value| {
        json!({"west//Pod/shop/cart-0": {
            "port": port, "status": "Unhealthy", "workloadUid": "west//Pod/shop/cart-0",
        }})
    };
    assert_eq!(
        dump["stagedServices"],
        json!({
            "shop-b/late.example.com": staged(json!({"1": 2})),
            "shop/late.example.com": staged(json!({"443": 8443})),
        })
    );
}

#[test]
fn policies_have_the_golden_shape() {
    assert_eq!(
        parsed(&full_dump())["policies"],
        json!([
            {"action": "Deny", "dryRun": true, "name": "all", "namespace": "istio-system", "rules": [], "scope": "Global"},
            {
                "action": "Allow", "dryRun": false, "name": "callers", "namespace": "shop",
                "rules": [[
                    [
                        {
                            "notPrincipals": [{"Suffix": "/sa/bad"}],
                            "principals": [{"Exact": "corp.example/ns/shop/sa/web"}, {"Presence": []}],
                        },
                        {"namespaces": [{"Prefix": "edge-"}], "notNamespaces": [{"Exact": "edge-x"}]},
                    ],
                    [{
                        "destinationIps": ["fd00::/8"], "destinationPorts": [9090],
                        "notDestinationIps": ["10.1.0.1/32"], "notDestinationPorts": [1, 2],
                        "notServiceAccounts": [{"namespace": "shop", "serviceAccount": "bad"}],
                        "notSourceIps": ["10.9.0.0/16"],
                        "serviceAccounts": [{"namespace": "shop", "serviceAccount": "web"}],
                        "sourceIps": ["10.0.0.0/8"],
                    }],
                ]],
                "scope": "WorkloadSelector",
            },
        ])
    );
}

#[test]
fn a_match_that_holds_always_does_not_look_like_one_that_never_does() {
    let unreadable = MatchSpec {
        namespaces: vec![Err(Unreadable("namespaces: no condition".to_owned()))],
        ..MatchSpec::default()
    };
    let mut mesh = Mesh::new(None);
    for action in [Action::Allow, Action::Deny] {
        let spec = PolicySpec {
            namespace: "ns".into(),
            name: format!("{action:?}").into(),
            scope: PolicyScope::Namespace,
            action,
            enforcement: Enforcement::Enforced,
            rules: vec![vec![vec![unreadable.clone()]]],
        };
        mesh.upsert_policy(Arc::new(compile(spec).0));
    }
    let mut text = Vec::new();
    write_mesh(&mesh, &mut text).unwrap();
    let policies = &parsed(&text)["policies"];
    assert_eq!(policies[0]["rules"], json!([[[{}]]]));
    assert_eq!(policies[1]["rules"], json!([[[{"matchesEverything": true}]]]));
}

#[test]
fn pods_appear_in_shared_mode_only_and_with_their_connections() {
    let info = |name: &str| json!({"name": name, "namespace": "shop", "serviceAccount": "cart"});
    let connection = |original_dst: Value, protocol: &str| json!({"actualDst": "10.8.3.4:9090", "originalDst": original_dst, "protocol": protocol, "src": "10.8.1.9:40112"});
    assert_eq!(
        parsed(&full_dump())["workloadState"],
        json!({
            "0f1a": {
                "connections": {
                    "inbound": [connection(json!("cart.example.com"), "HBONE"), connection(Value::Null, "TCP")],
                    "outbound": [{
                        "actualDst": "[fd00::6]:15008", "originalDst": "10.96.71.2:443", "protocol": "DOUBLEHBONE",
                        "src": "10.8.3.4:37770",
                    }],
                },
                "info": info("cart-0"), "state": "Up",
            },
            "7777": {"info": info("tax-0"), "state": "Pending"},
        })
    );
    let dedicated = parsed(&dump(sources(|| Arc::new(mesh())), None));
    let keys: Vec<_> = dedicated.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = Section::ALL.into_iter().filter(|section| *section != Section::WorkloadState);
    assert_eq!(keys, expected.map(Section::key).collect::<Vec<_>>());
    assert_eq!(dedicated["version"]["istioVersion"], "1.30.1");
    assert_eq!(dedicated["version"]["cryptoProvider"], "tls-aws-lc");
    assert_eq!(dedicated["config"]["adminAddr"], json!({"Localhost": [true, 15000]}));
}

#[test]
fn the_static_config_can_be_read_again() {
    let shown = parsed(&full_dump())["staticConfig"].clone();
    let again = StaticConfig::parse("dump.json", &shown.to_string()).unwrap();
    let original = static_config();
    assert_eq!(again.workloads, original.workloads);
    assert_eq!(again.services, original.services);
    let mut mesh = Mesh::new(None);
    again.apply(&mut mesh);
    let mut sources = sources(move || Arc::new(mesh.clone()));
    sources.static_config = Box::new(move || StaticConfig::parse("dump.json", &shown.to_string()).unwrap());
    assert_eq!(dump(sources, Some(pods())), full_dump());
}

/// What `istioctl` decodes, with the widths of its types. Kiali decodes less.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "that they decode is what counts")]
struct GoDump {
    workloads: Vec<GoWorkload>,
    services: Vec<GoService>,
    policies: Vec<GoPolicy>,
    certificates: Vec<GoCertificate>,
    workload_state: BTreeMap<String, GoPod>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "that they decode is what counts")]
struct GoWorkload {
    workload_ips: Vec<String>,
    uid: String,
    capacity: u32,
    #[serde(default)]
    authorization_policies: Vec<String>,
    waypoint: Option<GoGateway>,
    network_gateway: Option<GoGateway>,
    locality: Option<BTreeMap<String, String>>,
    application_tunnel: Option<GoTunnel>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "that they decode is what counts")]
struct GoGateway {
    destination: String,
    hbone_mtls_port: u16,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "that they decode is what counts")]
struct GoTunnel {
    protocol: String,
    port: Option<u16>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "that they decode is what counts")]
struct GoService {
    vips: Vec<String>,
    #[serde(default)]
    cidr_vips: Vec<BTreeMap<String, String>>,
    ports: BTreeMap<String, i64>,
    endpoints: BTreeMap<String, GoEndpoint>,
    subject_alt_names: Vec<String>,
    canonical: bool,
    visibility: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "that they decode is what counts")]
struct GoEndpoint {
    workload_uid: String,
    port: BTreeMap<u16, u16>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "that they decode is what counts")]
struct GoPolicy {
    name: String,
    rules: Vec<Vec<Vec<BTreeMap<String, Value>>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "that they decode is what counts")]
struct GoCertificate {
    identity: String,
    state: String,
    cert_chain: Vec<BTreeMap<String, String>>,
    root_certs: Vec<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "that they decode is what counts")]
struct GoPod {
    state: String,
    info: BTreeMap<String, String>,
    connections: Option<BTreeMap<String, Vec<BTreeMap<String, Option<String>>>>>,
}

#[test]
fn the_types_are_those_that_the_tools_decode() {
    let dump: GoDump = serde_json::from_slice(&full_dump()).unwrap();
    assert_eq!((dump.workloads.len(), dump.services.len(), dump.workload_state.len()), (2, 2, 2));
}

fn generation(number: u64) -> [Arc<Workload>; 2] {
    ["one", "other"].map(|uid| {
        Arc::new(Workload { uid: uid.into(), name: number.to_string().into(), ..Workload::default() })
    })
}

#[test]
fn a_dump_taken_while_the_mesh_changes_shows_one_moment() {
    let state = Arc::new(MeshState::new(Mesh::new(None)));
    state.update(|mesh| generation(0).map(|workload| mesh.upsert_workload(workload)));
    let changing = Arc::new(AtomicBool::new(true));
    let writer = std::thread::spawn({
        let (state, changing) = (state.clone(), changing.clone());
        move || {
            let mut number = 0;
            while changing.load(Ordering::Relaxed) {
                number += 1;
                state.update(|mesh| generation(number).map(|workload| mesh.upsert_workload(workload)));
            }
            number
        }
    });
    let mut seen = BTreeSet::new();
    while seen.len() < 20 {
        let state = state.clone();
        let dump = Dump::new(Arc::new(sources(move || state.load())), None, [Section::Workloads].into());
        let mut text = Vec::new();
        dump.write(&mut text).unwrap();
        let workloads = &parsed(&text)["workloads"];
        assert_eq!(workloads[0]["name"], workloads[1]["name"]);
        seen.insert(workloads[0]["name"].as_str().unwrap().to_owned());
    }
    changing.store(false, Ordering::Relaxed);
    writer.join().unwrap();
}

fn serve(sources: DumpSources, pods: Option<GatherPods>) -> SocketAddr {
    let server = AdminServer::bind(Families::Ipv4, 0).unwrap();
    let address = server.local_addresses().unwrap()[0];
    tokio::task::spawn_local(server.serve(sources, pods));
    address
}

fn gather() -> Option<GatherPods> {
    Some(Box::new(|| async { pods() }.boxed_local()))
}

#[test]
fn the_server_answers_as_tools_expect() {
    run(async {
        let server = serve(sources(|| Arc::new(mesh())), gather());
        let (content_type, text) = get(server, "/config_dump", None).await;
        assert_eq!((content_type.as_str(), text.as_bytes()), ("application/json", &*full_dump()));
        let post = ask(server, "POST", "/config_dump?format=x", None).await;
        assert_eq!((post.status().as_u16(), &**post.body()), (200, &*full_dump()));
        let head = ask(server, "HEAD", "/config_dump", None).await;
        assert!(head.status() == 200 && head.body().is_empty());

        let (_, text) = get(server, "/config_dump?section=version,services", None).await;
        let part = parsed(text.as_bytes());
        assert_eq!(part.as_object().unwrap().keys().collect::<Vec<_>>(), ["services", "version"]);
        assert_eq!(part["services"], parsed(&full_dump())["services"]);
        let unknown = ask(server, "GET", "/config_dump?section=secrets", None).await;
        assert_eq!(unknown.status(), 400);
        assert!(String::from_utf8_lossy(unknown.body()).contains("workloads"));

        let (content_type, page) = get(server, "/", None).await;
        assert_eq!(content_type, "text/html; charset=utf-8");
        assert!(page.contains("<title>Ztunnel Admin</title>") && page.contains("href=\"./config_dump\""));
        for path in ["/config_dump/", "//config_dump", "/metrics", "/certs", "/quitquitquit"] {
            let answer = ask(server, "GET", path, None).await;
            assert!(answer.status() == 404 && answer.body().is_empty(), "{path}");
        }
    });
}

#[test]
fn the_server_is_on_the_loopback_addresses_and_no_others() {
    run(async {
        let both = AdminServer::bind(Families::Both, 0).unwrap().local_addresses().unwrap();
        assert!(both.iter().all(|address| address.ip().is_loopback()), "{both:?}");
        let server = serve(sources(|| Arc::new(mesh())), None);
        assert!(TcpStream::connect(server).await.is_ok());
        // Another address of this machine, which a wildcard would cover.
        let elsewhere = SocketAddr::new(IpAddr::from([127, 0, 0, 2]), server.port());
        let refused = TcpStream::connect(elsewhere).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn pods_that_do_not_tell_their_state_do_not_hold_up_the_dump() {
    run(async {
        let silent: GatherPods = Box::new(|| std::future::pending().boxed_local());
        let server = serve(sources(|| Arc::new(mesh())), Some(silent));
        let (_, text) = get(server, "/config_dump", None).await;
        assert_eq!(parsed(text.as_bytes())["workloadState"], json!({}));
        assert_eq!(parsed(text.as_bytes())["workloads"], parsed(&full_dump())["workloads"]);
    });
}

/// So large that no socket buffer holds its dump.
fn large_mesh() -> Mesh {
    let mut mesh = Mesh::new(None);
    for number in 0..30_000 {
        let host =
            NamespacedHostname { namespace: "ns".into(), hostname: format!("svc-{}", number % 100).into() };
        mesh.upsert_workload(Arc::new(Workload {
            uid: format!("cluster//Pod/ns/pod-{number}").into(),
            name: format!("pod-{number}").into(),
            services: [(host, [(80, 8080)].into_iter().collect())].into(),
            ..Workload::default()
        }));
    }
    mesh
}

#[test]
fn a_slow_reader_holds_up_nobody_and_its_dump_ends_with_it() {
    run(async {
        let mesh = Arc::new(large_mesh());
        let held = Arc::downgrade(&mesh);
        let views = mesh.clone();
        let server = serve(sources(move || views.clone()), None);
        let idle = held.strong_count();
        let mut slow = TcpStream::connect(server).await.unwrap();
        slow.write_all(b"GET /config_dump HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut beginning = [0; 12];
        slow.read_exact(&mut beginning).await.unwrap();
        assert_eq!(&beginning, b"HTTP/1.1 200");

        let (_, text) = get(server, "/config_dump?section=workloads", None).await;
        assert_eq!(parsed(text.as_bytes())["workloads"].as_array().unwrap().len(), 30_000);
        assert!(held.strong_count() > idle, "the slow reader's dump is not finished");
        drop(slow);
        let ended = async {
            while held.strong_count() > idle {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, ended).await.expect("the dump of a reader that left goes on");
        drop(mesh);
    });
}

/// Fails after some bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_error_of_the_sink_is_the_error_of_the_dump() {
    let error = write_mesh(&mesh(), Full(1000)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}
