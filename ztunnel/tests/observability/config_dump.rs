//! The configuration dump: shapes that tools parse, and consistency.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;
use serde_json::{Value, json};
use ztunnel::admin::Section;
use ztunnel::admin::dump::{Dump, write_mesh};
use ztunnel::policy::{Action, Enforcement, MatchSpec, PolicyScope, PolicySpec, Unreadable, compile};
use ztunnel::state::model::Workload;
use ztunnel::state::{Mesh, MeshState, StaticConfig};

use crate::fixture::{dump, full_dump, mesh, parsed, pods, sources, static_config};

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
    connections: Option<BTreeMap<String, Vec<GoConnection>>>,
}

/// A Go string takes null.
type GoConnection = BTreeMap<String, Option<String>>;

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
