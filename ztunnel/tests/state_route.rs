//! Where connections go: every case as a small mesh in a static file, an address that is dialled, and the outcome.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use fastrand::Rng;
use ztunnel::state::avoided::Avoiding;
use ztunnel::state::model::{NamespacedHostname, NetworkAddress, Service, Workload};
use ztunnel::state::route::{Hop, Route, RouteAuthority, RouteConfig, RouteError, Target, route};
use ztunnel::state::{Mesh, StaticConfig};

/// Workloads that most cases need. The source is 127.0.0.1 and ::1 in the namespace `ns`.
const BASE: &str = r#"
workloads:
- {uid: source, name: source, namespace: ns, serviceAccount: sa, trustDomain: td, node: here, workloadIps: ["127.0.0.1", "::1"], services: {}}
- {uid: waypoint, name: waypoint, namespace: ns, serviceAccount: wp, trustDomain: td, workloadIps: ["127.0.0.10"], services: {}}
- {uid: dual-waypoint, name: dual-waypoint, namespace: ns, serviceAccount: wp2, trustDomain: td, workloadIps: ["127.0.0.11", "ff06::c5"], services: {}}
"#;

fn mesh(more: &str) -> Mesh {
    let mut mesh = Mesh::new(None);
    for text in [BASE, more] {
        StaticConfig::parse("test", text).unwrap().apply(&mut mesh);
    }
    mesh
}

fn config() -> RouteConfig {
    RouteConfig { network: "".into(), illegal_ports: [15001, 15006, 15008].into() }
}

fn decide_seeded(mesh: &Mesh, to: &str, seed: u64) -> Result<Route, RouteError> {
    let to: SocketAddr = to.parse().unwrap();
    let source = mesh.workload("source").unwrap();
    let from = if to.is_ipv4() { "127.0.0.1" } else { "::1" };
    route(mesh, &config(), source, from.parse().unwrap(), to, Avoiding::NOBODY, &mut Rng::with_seed(seed))
}

fn decide(mesh: &Mesh, to: &str) -> Result<Route, RouteError> {
    decide_seeded(mesh, to, 7)
}

/// `tcp <target>`, `hbone <target> <authority>`, `double <target> <authority>` or the error.
fn outcome(mesh: &Mesh, to: &str) -> String {
    match decide(mesh, to) {
        Ok(route) => summary(&route),
        Err(error) => error.to_string(),
    }
}

fn summary(route: &Route) -> String {
    match route {
        Route::Plain(route) => format!("tcp {}", target(&route.target)),
        Route::Hbone(route) => format!("hbone {} {}", target(&route.target), authority(&route.authority)),
        Route::DoubleHbone(route) => {
            format!("double {} {}", target(&route.target), authority(&route.authority))
        }
    }
}

fn target(target: &Target) -> String {
    match target {
        Target::Address(address) => address.to_string(),
        Target::Resolve { hostname, port, family } => format!("{hostname}:{port} ({family:?})"),
    }
}

fn authority(authority: &RouteAuthority) -> String {
    match authority {
        RouteAuthority::Address(address) => address.to_string(),
        RouteAuthority::Resolved(port) => format!("*:{port}"),
        RouteAuthority::Hostname(hostname, port) => format!("{hostname}:{port}"),
    }
}

fn names(identities: &identity::ExpectedPeers) -> Vec<String> {
    identities.as_slice().iter().map(|identity| identity.principal().to_owned()).collect()
}

#[test]
fn an_unknown_destination_is_passed_through() {
    let mesh = mesh("{}");
    assert_eq!(outcome(&mesh, "1.2.3.4:80"), "tcp 1.2.3.4:80");
    let Ok(Route::Plain(route)) = decide(&mesh, "1.2.3.4:80") else { panic!() };
    assert_eq!((route.workload, route.service), (None, None));
}

#[test]
fn our_own_ports_on_the_loopback_interface_are_refused() {
    let mesh = mesh("{}");
    assert_eq!(decide(&mesh, "127.0.0.7:15001"), Err(RouteError::SelfCall));
    assert_eq!(decide(&mesh, "[::1]:15008"), Err(RouteError::SelfCall));
    assert_eq!(outcome(&mesh, "[::ffff:127.0.0.1]:15006"), "attempted recursive call to ourselves");
    assert_eq!(outcome(&mesh, "1.2.3.4:15008"), "tcp 1.2.3.4:15008");
}

#[test]
fn a_mapped_address_is_its_ipv4_address() {
    assert_eq!(outcome(&mesh("{}"), "[::ffff:1.2.3.4]:80"), "tcp 1.2.3.4:80");
}

// Other networks.

fn remote(gateway: &str, more: &str) -> Mesh {
    mesh(&format!(
        r#"
services:
- {{name: svc, namespace: ns, hostname: example.com, vips: ["/127.0.0.3"], ports: {{80: 8080}}, subjectAltNames: ["spiffe://td/ns/ns/sa/remote"]}}
{more}
workloads:
- {{uid: far, namespace: ns, serviceAccount: far, trustDomain: td, network: remote, protocol: HBONE, workloadIps: [], {gateway} services: {{"ns/example.com": {{80: 8080}}}}}}
- {{uid: gw-by-ip, namespace: gw, serviceAccount: gw, trustDomain: td, network: remote, workloadIps: ["10.22.1.1"], services: {{}}}}
- {{uid: gw-pod, namespace: gw, serviceAccount: gw, trustDomain: td, workloadIps: ["127.0.0.5"], services: {{"gw/gateway.example.com": {{15009: 15008}}}}}}
"#
    ))
}

const BY_IP: &str = r#"networkGateway: {destination: "remote/10.22.1.1", hboneMtlsPort: 15009},"#;

#[test]
fn an_endpoint_on_another_network_without_a_gateway_cannot_be_reached() {
    assert_eq!(outcome(&remote("", ""), "127.0.0.3:80"), "no healthy upstream: 127.0.0.3:80");
    let with_address = mesh(
        r#"
services: [{name: svc, namespace: ns, hostname: example.com, vips: ["/127.0.0.3"], ports: {80: 8080}}]
workloads: [{uid: far, namespace: ns, network: remote, workloadIps: ["10.0.0.1"], services: {"ns/example.com": {80: 8080}}}]
"#,
    );
    assert_eq!(outcome(&with_address, "127.0.0.3:80"), "no valid routing destination for workload: far");
}

#[test]
fn an_endpoint_on_another_network_is_reached_through_its_gateway_by_address() {
    let mesh = remote(BY_IP, "");
    assert_eq!(outcome(&mesh, "127.0.0.3:80"), "double 10.22.1.1:15009 example.com:80");
    let Ok(Route::DoubleHbone(route)) = decide(&mesh, "127.0.0.3:80") else { panic!() };
    assert_eq!(names(&route.gateway_identities), ["td/ns/gw/sa/gw"]);
    assert_eq!(names(&route.inner_identities), ["td/ns/ns/sa/remote"]);
    assert_eq!(&*route.gateway.uid, "gw-by-ip");
    assert_eq!(&*route.service.host.hostname, "example.com");
}

#[test]
fn an_endpoint_on_another_network_is_reached_through_its_gateway_by_hostname() {
    let by_name = r#"networkGateway: {destination: "gw/gateway.example.com", hboneMtlsPort: 15009},"#;
    let service =
        r#"- {name: gw, namespace: gw, hostname: gateway.example.com, vips: [], ports: {15009: 15008}}"#;
    assert_eq!(outcome(&remote(by_name, service), "127.0.0.3:80"), "double 127.0.0.5:15008 example.com:80");
    assert_eq!(
        outcome(&remote(by_name, ""), "127.0.0.3:80"),
        "unknown network gateway: gw/gateway.example.com port 15009"
    );
}

#[test]
fn an_endpoint_on_another_network_that_was_not_dialled_as_a_service_is_refused() {
    // A service on the source's network, which is not the one the proxy is configured for.
    let mut mesh = mesh("{}");
    let host = NamespacedHostname { namespace: "ns".into(), hostname: "odd.example.com".into() };
    mesh.upsert_workload(Arc::new(Workload {
        uid: "endpoint".into(),
        addresses: ["10.0.0.9".parse::<IpAddr>().unwrap()].into(),
        services: [(host.clone(), [(80, 80)].into_iter().collect())].into(),
        ..Workload::default()
    }));
    mesh.upsert_service(Arc::new(Service {
        host,
        vips: [NetworkAddress { network: "other".into(), address: "10.9.9.9".parse().unwrap() }].into(),
        ports: [(80, 80)].into_iter().collect(),
        ..Service::default()
    }));
    let source = Workload { network: "other".into(), ..Workload::clone(mesh.workload("source").unwrap()) };
    let to = "10.9.9.9:80".parse().unwrap();
    let result = route(
        &mesh,
        &config(),
        &source,
        "127.0.0.1".parse().unwrap(),
        to,
        Avoiding::NOBODY,
        &mut Rng::with_seed(1),
    );
    assert_eq!(result, Err(RouteError::NoService(to)));
}

#[test]
fn a_pod_address_of_another_network_is_nobodys_here() {
    let mesh = mesh(
        "workloads: [{uid: far, namespace: ns, network: remote, workloadIps: [10.0.0.1], services: {}}]",
    );
    assert_eq!(outcome(&mesh, "10.0.0.1:80"), "tcp 10.0.0.1:80");
}

#[test]
fn a_service_waypoint_on_another_network_is_reached_through_its_gateway() {
    let mesh = mesh(
        r#"
services:
- {name: svc, namespace: ns, hostname: example.com, vips: ["/127.0.0.3"], ports: {80: 8080}, waypoint: {destination: "ns/wp.example.com", hboneMtlsPort: 15008}}
- {name: wp, namespace: ns, hostname: wp.example.com, vips: ["/127.0.0.9"], ports: {15008: 15008}, subjectAltNames: ["spiffe://td/ns/ns/sa/wp-remote"]}
workloads:
- {uid: local, namespace: ns, protocol: HBONE, workloadIps: ["127.0.0.2"], services: {"ns/example.com": {80: 8080}}}
- {uid: far-wp, namespace: ns, network: remote, workloadIps: [], networkGateway: {destination: "remote/10.22.1.1", hboneMtlsPort: 15009}, services: {"ns/wp.example.com": {15008: 15008}}}
- {uid: gw, namespace: gw, serviceAccount: gw, trustDomain: td, network: remote, workloadIps: ["10.22.1.1"], services: {}}
"#,
    );
    assert_eq!(outcome(&mesh, "127.0.0.3:80"), "double 10.22.1.1:15009 example.com:80");
    let Ok(Route::DoubleHbone(route)) = decide(&mesh, "127.0.0.3:80") else { panic!() };
    assert_eq!(names(&route.inner_identities), ["td/ns/ns/sa/wp-remote"]);
}

fn failover(status: &str) -> Mesh {
    mesh(&format!(
        r#"
services:
- {{name: svc, namespace: ns, hostname: example.com, vips: ["/127.0.0.3"], ports: {{80: 8080}}, loadBalancer: {{routingPreferences: [Network], mode: Failover, healthPolicy: OnlyHealthy}}}}
workloads:
- {{uid: near, namespace: ns, protocol: HBONE, status: {status}, workloadIps: ["127.0.0.2"], services: {{"ns/example.com": {{80: 8080}}}}}}
- {{uid: far, namespace: ns, protocol: HBONE, network: remote, workloadIps: [], networkGateway: {{destination: "remote/10.22.1.1", hboneMtlsPort: 15009}}, services: {{"ns/example.com": {{80: 8080}}}}}}
- {{uid: gw, namespace: gw, network: remote, workloadIps: ["10.22.1.1"], services: {{}}}}
"#
    ))
}

#[test]
fn failover_stays_on_the_network_while_it_can() {
    for seed in 0..20 {
        let near = decide_seeded(&failover("Healthy"), "127.0.0.3:80", seed).unwrap();
        assert_eq!(summary(&near), "hbone 127.0.0.2:15008 127.0.0.2:8080");
        let far = decide_seeded(&failover("Unhealthy"), "127.0.0.3:80", seed).unwrap();
        assert_eq!(summary(&far), "double 10.22.1.1:15009 example.com:80");
    }
}

// Workloads by address.

#[test]
fn a_pod_is_reached_as_it_wants_on_any_node() {
    for node in ["here", "elsewhere"] {
        let mesh = mesh(&format!(
            r#"
workloads:
- {{uid: plain, namespace: ns, node: {node}, workloadIps: ["127.0.0.2"], services: {{}}}}
- {{uid: hbone, namespace: ns, serviceAccount: dst, trustDomain: td, node: {node}, protocol: HBONE, workloadIps: ["127.0.0.4"], services: {{}}}}
"#
        ));
        assert_eq!(outcome(&mesh, "127.0.0.2:80"), "tcp 127.0.0.2:80");
        assert_eq!(outcome(&mesh, "127.0.0.4:80"), "hbone 127.0.0.4:15008 127.0.0.4:80");
        let Ok(Route::Hbone(route)) = decide(&mesh, "127.0.0.4:80") else { panic!() };
        assert_eq!(names(&route.identities), ["td/ns/ns/sa/dst"]);
        assert_eq!((&*route.workload.uid, route.hop), ("hbone", Hop::Destination));
        let Ok(Route::Plain(route)) = decide(&mesh, "127.0.0.2:80") else { panic!() };
        assert_eq!(&*route.workload.unwrap().uid, "plain");
    }
}

#[test]
fn the_waypoint_of_the_source_is_not_used() {
    let mesh = mesh(
        r#"
workloads:
- {uid: source, name: source, namespace: ns, workloadIps: ["127.0.0.1"], waypoint: {destination: "/127.0.0.10", hboneMtlsPort: 15008}, services: {}}
"#,
    );
    assert_eq!(outcome(&mesh, "127.0.0.99:80"), "tcp 127.0.0.99:80");
}

const POD_WITH_WAYPOINT: &str = r#"
workloads:
- {uid: dst, namespace: ns, protocol: HBONE, workloadIps: ["127.0.0.2", "ff06::c3"], waypoint: {destination: "/WAYPOINT", hboneMtlsPort: 15008}, services: {}}
"#;

#[test]
fn a_pod_with_a_waypoint_is_reached_through_it() {
    let by_address = mesh(&POD_WITH_WAYPOINT.replace("WAYPOINT", "127.0.0.10"));
    assert_eq!(outcome(&by_address, "127.0.0.2:80"), "hbone 127.0.0.10:15008 127.0.0.2:80");
    let Ok(Route::Hbone(route)) = decide(&by_address, "127.0.0.2:80") else { panic!() };
    assert_eq!(names(&route.identities), ["td/ns/ns/sa/wp"]);
    assert_eq!(route.hop, Hop::Waypoint);

    // The waypoint's address decides the family, not the dialled one.
    let dual = mesh(&POD_WITH_WAYPOINT.replace("WAYPOINT", "127.0.0.11"));
    assert_eq!(outcome(&dual, "[ff06::c3]:80"), "hbone 127.0.0.11:15008 [ff06::c3]:80");
}

#[test]
fn an_unknown_waypoint_is_never_bypassed() {
    let workload = mesh(&POD_WITH_WAYPOINT.replace("WAYPOINT", "127.0.0.77"));
    assert_eq!(outcome(&workload, "127.0.0.2:80"), "unknown waypoint: /127.0.0.77 port 15008");
    for endpoints in
        ["", r#", endpoints: {dst: {workloadUid: nobody, port: {15008: 15008}, status: Healthy}}"#]
    {
        let service = mesh(&format!(
            r#"
services:
- {{name: svc, namespace: ns, hostname: example.com, vips: ["/127.0.0.3"], ports: {{80: 8080}}, waypoint: {{destination: "ns/wp.example.com", hboneMtlsPort: 15008}}}}
- {{name: wp, namespace: ns, hostname: wp.example.com, vips: [], ports: {{15008: 15008}}{endpoints}}}
workloads:
- {{uid: dst, namespace: ns, protocol: HBONE, workloadIps: ["127.0.0.2"], services: {{"ns/example.com": {{80: 8080}}}}}}
"#
        ));
        assert_eq!(outcome(&service, "127.0.0.3:80"), "unknown waypoint: ns/wp.example.com port 15008");
    }
}

#[test]
fn a_waypoint_service_whose_traffic_bypasses_the_mesh_is_no_waypoint() {
    let mesh = mesh(
        r#"
services:
- {name: svc, namespace: ns, hostname: example.com, vips: ["/127.0.0.3"], ports: {80: 8080}, waypoint: {destination: "/127.0.0.9", hboneMtlsPort: 15008}}
- {name: wp, namespace: ns, hostname: wp.example.com, vips: ["/127.0.0.9"], ports: {15008: 15008}, loadBalancer: {routingPreferences: [], mode: Passthrough, healthPolicy: AllowAll}}
workloads: [{uid: dst, namespace: ns, workloadIps: ["127.0.0.9"], services: {"ns/wp.example.com": {15008: 15008}}}]
"#,
    );
    assert_eq!(outcome(&mesh, "127.0.0.3:80"), "unknown waypoint: /127.0.0.9 port 15008");
}

#[test]
fn what_a_captured_waypoint_sends_on_does_not_return_to_it() {
    let config_of = |waypoint: &str| {
        mesh(&format!(
            r#"
services:
- {{name: wp, namespace: ns, hostname: wp.example.com, vips: ["/127.0.0.9"], ports: {{15008: 15008}}}}
workloads:
- {{uid: source, name: source, namespace: ns, serviceAccount: sa, trustDomain: td, workloadIps: ["127.0.0.1"], services: {{"ns/wp.example.com": {{15008: 15008}}}}}}
- {{uid: twin, namespace: ns, serviceAccount: sa, trustDomain: td, workloadIps: ["127.0.0.6"], services: {{}}}}
- {{uid: stranger, namespace: ns, serviceAccount: other, trustDomain: td, hostname: stranger.example.com, workloadIps: ["127.0.0.1"], networkMode: HostNetwork, services: {{}}}}
- {{uid: dst, namespace: ns, protocol: HBONE, workloadIps: ["127.0.0.2"], waypoint: {{destination: "{waypoint}", hboneMtlsPort: 15008}}, services: {{}}}}
"#
        ))
    };
    let direct = "hbone 127.0.0.2:15008 127.0.0.2:80";
    assert_eq!(outcome(&config_of("/127.0.0.1"), "127.0.0.2:80"), direct);
    assert_eq!(outcome(&config_of("/127.0.0.9"), "127.0.0.2:80"), direct);
    assert_eq!(outcome(&config_of("ns/wp.example.com"), "127.0.0.2:80"), direct);
    // The same identity at another address, and the same address with another identity, are not the source.
    assert_eq!(outcome(&config_of("/127.0.0.6"), "127.0.0.2:80"), "hbone 127.0.0.6:15008 127.0.0.2:80");
    assert_eq!(
        outcome(&config_of("ns/stranger.example.com"), "127.0.0.2:80"),
        "hbone 127.0.0.1:15008 127.0.0.2:80"
    );
}

// Services.

#[test]
fn a_service_with_a_waypoint_is_reached_through_it_as_dialled() {
    let mesh = mesh(
        r#"
services:
- {name: svc, namespace: ns, hostname: example.com, vips: ["/127.0.0.3"], ports: {80: 8080}, waypoint: {destination: "/127.0.0.10", hboneMtlsPort: 15008}}
workloads: [{uid: dst, namespace: ns, protocol: HBONE, workloadIps: ["127.0.0.2"], services: {"ns/example.com": {80: 8080}}}]
"#,
    );
    assert_eq!(outcome(&mesh, "127.0.0.3:80"), "hbone 127.0.0.10:15008 127.0.0.3:80");
    let Ok(Route::Hbone(route)) = decide(&mesh, "127.0.0.3:80") else { panic!() };
    assert_eq!(&*route.service.unwrap().host.hostname, "example.com");
}

#[test]
fn weighted_waypoints_share_the_connections() {
    let mesh = mesh(
        r#"
services:
- name: svc
  namespace: ns
  hostname: example.com
  vips: ["/127.0.0.3"]
  ports: {80: 8080}
  waypoint: {destination: "/127.0.0.99", hboneMtlsPort: 15008}
  weightedWaypoints:
  - {destination: {destination: "/127.0.0.10", hboneMtlsPort: 15008}, weight: 75}
  - {destination: {destination: "/127.0.0.11", hboneMtlsPort: 15008}, weight: 25}
"#,
    );
    let mut rng = Rng::with_seed(11);
    let source = mesh.workload("source").unwrap();
    let first = (0..4000)
        .filter(|_| {
            let to = "127.0.0.3:80".parse().unwrap();
            let route =
                route(&mesh, &config(), source, "127.0.0.1".parse().unwrap(), to, Avoiding::NOBODY, &mut rng)
                    .unwrap();
            summary(&route) == "hbone 127.0.0.10:15008 127.0.0.3:80"
        })
        .count();
    assert!((2800..3200).contains(&first), "{first} of 4000");
}

#[test]
fn a_service_without_endpoints_or_without_the_port_is_refused() {
    let mesh = mesh(
        r#"
services:
- {name: empty, namespace: ns, hostname: empty.example.com, vips: ["/127.0.0.3"], ports: {80: 8080}}
- {name: svc, namespace: ns, hostname: example.com, vips: ["/127.0.0.4"], ports: {80: 8080}}
workloads: [{uid: dst, namespace: ns, workloadIps: ["127.0.0.2"], services: {"ns/example.com": {80: 8080}}}]
"#,
    );
    assert_eq!(outcome(&mesh, "127.0.0.3:80"), "no healthy upstream: 127.0.0.3:80");
    assert_eq!(outcome(&mesh, "127.0.0.4:81"), "no healthy upstream: 127.0.0.4:81");
    assert_eq!(outcome(&mesh, "127.0.0.4:80"), "tcp 127.0.0.2:8080");
}

#[test]
fn a_named_port_leads_to_the_pods_that_have_it() {
    let mesh = mesh(
        r#"
services: [{name: svc, namespace: ns, hostname: example.com, vips: ["/127.0.0.3"], ports: {80: 0}}]
workloads:
- {uid: without, namespace: ns, workloadIps: ["127.0.0.2"], services: {"ns/example.com": {}}}
- {uid: with, namespace: ns, workloadIps: ["127.0.0.4"], services: {"ns/example.com": {80: 1234}}}
"#,
    );
    for seed in 0..20 {
        assert_eq!(summary(&decide_seeded(&mesh, "127.0.0.3:80", seed).unwrap()), "tcp 127.0.0.4:1234");
    }
}

#[test]
fn a_host_network_pod_is_an_endpoint_but_not_its_address() {
    let mesh = mesh(
        r#"
services: [{name: svc, namespace: ns, hostname: example.com, vips: ["/127.0.0.3"], ports: {80: 80}}]
workloads: [{uid: pod1, namespace: ns, networkMode: HostNetwork, workloadIps: ["127.0.0.2"], services: {"ns/example.com": {80: 80}}}]
"#,
    );
    let Ok(Route::Plain(service)) = decide(&mesh, "127.0.0.3:80") else { panic!() };
    assert_eq!(target(&service.target), "127.0.0.2:80");
    assert_eq!(&*service.workload.unwrap().uid, "pod1");
    let Ok(Route::Plain(direct)) = decide(&mesh, "127.0.0.2:80") else { panic!() };
    assert_eq!(target(&direct.target), "127.0.0.2:80");
    assert_eq!(direct.workload, None);
}

#[test]
fn the_dialled_family_is_kept_where_the_service_allows_it() {
    let with = |families: &str| {
        mesh(&format!(
            r#"
services: [{{name: svc, namespace: ns, hostname: example.com, vips: ["/127.0.0.3", "/ff06::c1"], ports: {{80: 80}}{families}}}]
workloads: [{{uid: dst, namespace: ns, workloadIps: ["127.0.0.2", "ff06::c3"], services: {{"ns/example.com": {{80: 80}}}}}}]
"#
        ))
    };
    let (ipv4, ipv6) = ("tcp 127.0.0.2:80", "tcp [ff06::c3]:80");
    for (families, dialled_ipv4, dialled_ipv6) in [
        ("", ipv4, ipv6),
        (", ipFamilies: Dual", ipv4, ipv6),
        (", ipFamilies: IPv4", ipv4, ipv4),
        (", ipFamilies: IPv6", ipv6, ipv6),
    ] {
        assert_eq!(outcome(&with(families), "127.0.0.3:80"), dialled_ipv4, "{families}");
        assert_eq!(outcome(&with(families), "[ff06::c1]:80"), dialled_ipv6, "{families}");
    }
    assert_eq!(outcome(&with(""), "127.0.0.2:80"), ipv4);
    assert_eq!(outcome(&with(""), "[ff06::c3]:80"), ipv6);
}

#[test]
fn a_passthrough_service_keeps_its_address_and_its_waypoint() {
    let with = |waypoint: &str| {
        mesh(&format!(
            r#"
services: [{{name: svc, namespace: ns, hostname: example.com, vips: ["/127.0.0.3"], ports: {{80: 80}}, loadBalancer: {{routingPreferences: [], mode: Passthrough, healthPolicy: AllowAll}}{waypoint}}}]
workloads: [{{uid: dst, namespace: ns, workloadIps: ["127.0.0.2"], services: {{"ns/example.com": {{80: 80}}}}}}]
"#
        ))
    };
    assert_eq!(outcome(&with(""), "127.0.0.3:80"), "tcp 127.0.0.3:80");
    let waypoint = r#", waypoint: {destination: "/127.0.0.10", hboneMtlsPort: 15008}"#;
    assert_eq!(outcome(&with(waypoint), "127.0.0.3:80"), "hbone 127.0.0.10:15008 127.0.0.3:80");
}

#[test]
fn a_private_service_of_another_namespace_is_passed_through() {
    let mesh = mesh(
        r#"
services: [{name: svc, namespace: other, hostname: example.com, vips: ["/127.0.0.3"], ports: {80: 80}, visibility: Namespace}]
workloads: [{uid: dst, namespace: other, workloadIps: ["127.0.0.2"], services: {"other/example.com": {80: 80}}}]
"#,
    );
    assert_eq!(outcome(&mesh, "127.0.0.3:80"), "tcp 127.0.0.3:80");
}

#[test]
fn a_workload_without_addresses_is_resolved_when_it_is_dialled() {
    let with = |protocol: &str| {
        mesh(&format!(
            r#"
services: [{{name: svc, namespace: ns, hostname: example.com, vips: ["/127.0.0.3", "/ff06::c1"], ports: {{80: 8080}}}}]
workloads: [{{uid: dst, namespace: ns, protocol: {protocol}, hostname: real.example.com, workloadIps: [], services: {{"ns/example.com": {{80: 8080}}}}}}]
"#
        ))
    };
    assert_eq!(outcome(&with("TCP"), "127.0.0.3:80"), "tcp real.example.com:8080 (Ipv4)");
    assert_eq!(outcome(&with("TCP"), "[ff06::c1]:80"), "tcp real.example.com:8080 (Ipv6)");
    assert_eq!(outcome(&with("HBONE"), "127.0.0.3:80"), "hbone real.example.com:15008 (Ipv4) *:8080");
}

#[test]
fn an_address_that_is_both_a_pods_and_a_services_leads_to_the_services_endpoint() {
    let mesh = mesh(
        r#"
services: [{name: svc, namespace: ns, hostname: example.com, vips: ["/127.0.0.3"], ports: {80: 8080}, waypoint: {destination: "/127.0.0.99", hboneMtlsPort: 15008}}]
workloads:
- {uid: dst, namespace: ns, protocol: HBONE, workloadIps: ["127.0.0.2"], services: {"ns/example.com": {80: 8080}}}
- {uid: squatter, namespace: ns, workloadIps: ["127.0.0.3"], services: {}}
"#,
    );
    assert_eq!(outcome(&mesh, "127.0.0.3:80"), "hbone 127.0.0.2:15008 127.0.0.2:8080");
    // Not a service, then, whose missing port would be an error.
    assert_eq!(outcome(&mesh, "127.0.0.3:81"), "tcp 127.0.0.3:81");
}

#[test]
fn a_service_vouches_for_its_endpoints_besides_their_own_names() {
    let mesh = mesh(
        r#"
services: [{name: svc, namespace: ns, hostname: example.com, vips: ["/127.0.0.3"], ports: {80: 8080}, subjectAltNames: ["spiffe://td/ns/ns/sa/z", "spiffe://td/ns/ns/sa/a", "not a name"]}]
workloads: [{uid: dst, namespace: ns, serviceAccount: m, trustDomain: td, protocol: HBONE, workloadIps: ["127.0.0.2"], services: {"ns/example.com": {80: 8080}}}]
"#,
    );
    let Ok(Route::Hbone(route)) = decide(&mesh, "127.0.0.3:80") else { panic!() };
    assert_eq!(names(&route.identities), ["td/ns/ns/sa/a", "td/ns/ns/sa/m", "td/ns/ns/sa/z"]);
}

#[test]
fn an_endpoint_whose_port_only_its_own_network_knows_is_not_dialled() {
    let mesh = mesh(
        r#"
services: [{name: svc, namespace: ns, hostname: example.com, vips: ["/127.0.0.3"], ports: {80: 0}}]
workloads: [{uid: dst, namespace: ns, protocol: HBONE, workloadIps: ["127.0.0.2"], services: {"ns/example.com": {80: 0}}}]
"#,
    );
    assert_eq!(outcome(&mesh, "127.0.0.3:80"), "no valid routing destination for workload: dst");
}
