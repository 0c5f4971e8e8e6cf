use std::collections::BTreeSet;

use super::*;
use crate::state::StaticConfig;
use crate::state::model::WeightedWaypoint;

fn mesh(text: &str) -> Mesh {
    let mut mesh = Mesh::new(None);
    StaticConfig::parse("test", text).unwrap().apply(&mut mesh);
    mesh
}

/// The uids and ports that `client` gets for a port of the service `ns/svc`, over many draws.
fn drawn(mesh: &Mesh, client: &str, port: u16, resolution: Resolution) -> BTreeSet<String> {
    let service = mesh.service("ns", "svc").unwrap();
    let client = mesh.workload(client).unwrap();
    let mut rng = Rng::with_seed(3);
    (0..200)
        .filter_map(|_| choose(mesh, service, port, client, resolution, Avoiding::NOBODY, &mut rng))
        .map(|choice| format!("{}:{}", choice.workload.uid, choice.port))
        .collect()
}

fn uids(expected: &[&str]) -> BTreeSet<String> {
    expected.iter().map(|uid| format!("{uid}:80")).collect()
}

/// Endpoints near and far from clients in several places; two of them never usable.
fn localities(mode: &str) -> Mesh {
    let endpoint = |uid: &str, network: &str, locality: &str, ips: &str| {
        format!(
            "- {{uid: {uid}, namespace: ns, network: {network:?}, workloadIps: [{ips}], {locality} services: {{ns/svc: {{80: 80}}}}}}\n"
        )
    };
    let client = |uid: &str, network: &str, locality: &str| {
        format!(
            "- {{uid: {uid}, namespace: ns, network: {network:?}, workloadIps: [], {locality} services: {{}}}}\n"
        )
    };
    let at = |region: &str, zone: &str| format!("locality: {{region: {region}, zone: {zone}, subzone: ''}},");
    let workloads = [
        client("client", "net", &at("reg", "zone")),
        client("client-same-region", "net", &at("reg", "other")),
        client("client-same-network", "net", &at("other", "other")),
        client("client-nowhere", "nowhere", &at("other", "other")),
        client("client-other-network", "other-net", &at("reg", "zone")),
        endpoint("all", "net", &at("reg", "zone"), "10.0.0.1"),
        endpoint("region", "net", &at("reg", "third"), "10.0.0.2"),
        endpoint("network", "net", "", "10.0.0.3"),
        endpoint("apart", "apart", &at("reg", "zone"), "10.0.0.4"),
        endpoint("apart-region", "apart", &at("reg", "third"), "10.0.0.5"),
        endpoint("no-address", "net", &at("reg", "zone"), ""),
    ];
    mesh(&format!(
        r#"
workloads:
{}
services:
- name: svc
  namespace: ns
  hostname: svc
  vips: []
  ports: {{80: 80}}
  loadBalancer: {{routingPreferences: [Network, Region, Zone], mode: {mode}, healthPolicy: OnlyHealthy}}
  endpoints: {{unknown: {{workloadUid: unknown, port: {{80: 80}}}}}}
"#,
        workloads.concat()
    ))
}

#[test]
fn strict_draws_only_what_meets_every_preference() {
    let mesh = localities("Strict");
    assert_eq!(drawn(&mesh, "client", 80, Resolution::Standard), uids(&["all"]));
    for nobody in ["client-same-region", "client-same-network", "client-nowhere", "client-other-network"] {
        assert_eq!(drawn(&mesh, nobody, 80, Resolution::Standard), uids(&[]), "{nobody}");
    }
}

#[test]
fn failover_draws_what_meets_most_and_stays_on_the_network_first() {
    let mesh = localities("Failover");
    let everything = uids(&["all", "region", "network", "apart", "apart-region"]);
    for (client, expected) in [
        ("client", uids(&["all"])),
        ("client-same-region", uids(&["all", "region"])),
        ("client-same-network", uids(&["all", "region", "network"])),
        ("client-nowhere", everything),
        // Nothing on its network: the nearest elsewhere.
        ("client-other-network", uids(&["all", "apart"])),
    ] {
        assert_eq!(drawn(&mesh, client, 80, Resolution::Standard), expected, "{client}");
    }
}

#[test]
fn without_preferences_everything_reachable_is_drawn() {
    let expected = uids(&["all", "region", "network", "apart", "apart-region"]);
    assert_eq!(drawn(&localities("Standard"), "client", 80, Resolution::Standard), expected);
}

#[test]
fn preferences_other_than_a_first_network_end_the_count_where_they_fail() {
    let with = |preferences: &str| {
        mesh(&format!(
            r#"
workloads:
- {{uid: client, namespace: ns, node: n, clusterId: c, network: x, workloadIps: [], services: {{}}}}
- {{uid: node, namespace: ns, node: n, clusterId: d, network: x, workloadIps: [10.0.0.1], services: {{ns/svc: {{80: 80}}}}}}
- {{uid: cluster, namespace: ns, node: m, clusterId: c, network: y, workloadIps: [10.0.0.2], services: {{ns/svc: {{80: 80}}}}}}
services:
- {{name: svc, namespace: ns, hostname: svc, vips: [], ports: {{80: 80}}, loadBalancer: {{routingPreferences: [{preferences}], mode: Failover, healthPolicy: OnlyHealthy}}}}
"#
        ))
    };
    for (preferences, expected) in [
        ("Node", uids(&["node"])),
        ("Cluster", uids(&["cluster"])),
        ("Cluster, Node, Network", uids(&["cluster"])),
        // Locality is empty everywhere, and empty equals empty.
        ("Region, Zone, Subzone", uids(&["node", "cluster"])),
        ("Region, Network", uids(&["node"])),
        ("Network, Cluster", uids(&["node"])),
    ] {
        assert_eq!(drawn(&with(preferences), "client", 80, Resolution::Standard), expected, "{preferences}");
    }
}

#[test]
fn capacity_is_a_share_and_zero_is_none() {
    let with = |one: u32, two: u32| {
        mesh(&format!(
            r#"
workloads:
- {{uid: client, namespace: ns, workloadIps: [], services: {{}}}}
- {{uid: one, namespace: ns, workloadIps: [10.0.0.1], capacity: {one}, services: {{ns/svc: {{80: 80}}}}}}
- {{uid: two, namespace: ns, workloadIps: [10.0.0.2], capacity: {two}, services: {{ns/svc: {{80: 80}}}}}}
services: [{{name: svc, namespace: ns, hostname: svc, vips: [], ports: {{80: 80}}}}]
"#
        ))
    };
    let client = "client";
    assert_eq!(drawn(&with(0, 1), client, 80, Resolution::Standard), uids(&["two"]));
    assert_eq!(drawn(&with(1, 0), client, 80, Resolution::Standard), uids(&["one"]));
    assert_eq!(drawn(&with(0, 0), client, 80, Resolution::Standard), uids(&[]));

    for (one, two) in [(3, 1), (1, 3), (u32::MAX, u32::MAX)] {
        let mesh = with(one, two);
        let service = mesh.service("ns", "svc").unwrap();
        let client = mesh.workload("client").unwrap();
        let mut rng = Rng::with_seed(5);
        let draws = 8000;
        let ones = (0..draws)
            .filter_map(|_| {
                choose(&mesh, service, 80, client, Resolution::Standard, Avoiding::NOBODY, &mut rng)
            })
            .filter(|choice| &*choice.workload.uid == "one")
            .count();
        let share = f64::from(one) / (f64::from(one) + f64::from(two));
        let measured = ones as f64 / f64::from(draws);
        assert!((measured - share).abs() < 0.03, "{one}:{two}: {measured}");
    }
}

#[test]
fn a_preferred_endpoint_of_no_capacity_is_not_replaced_by_others() {
    let mesh = mesh(
        r#"
workloads:
- {uid: client, namespace: ns, node: n, workloadIps: [], services: {}}
- {uid: near, namespace: ns, node: n, capacity: 0, workloadIps: [10.0.0.1], services: {ns/svc: {80: 80}}}
- {uid: far, namespace: ns, node: m, workloadIps: [10.0.0.2], services: {ns/svc: {80: 80}}}
services:
- {name: svc, namespace: ns, hostname: svc, vips: [], ports: {80: 80}, loadBalancer: {routingPreferences: [Node], mode: Failover, healthPolicy: OnlyHealthy}}
"#,
    );
    assert_eq!(drawn(&mesh, "client", 80, Resolution::Standard), uids(&[]));
}

#[test]
fn unhealthy_endpoints_come_back_when_the_service_allows_them() {
    let text = |policy: &str| {
        format!(
            "services: [{{name: svc, namespace: ns, hostname: svc, vips: [], ports: {{80: 80}}, loadBalancer: {{routingPreferences: [], mode: Standard, healthPolicy: {policy}}}}}]"
        )
    };
    let mut mesh = mesh(
        r#"
workloads:
- {uid: client, namespace: ns, workloadIps: [], services: {}}
- {uid: well, namespace: ns, workloadIps: [10.0.0.1], services: {ns/svc: {80: 80}}}
- {uid: ill, namespace: ns, status: Unhealthy, workloadIps: [10.0.0.2], services: {ns/svc: {80: 80}}}
"#,
    );
    for (policy, expected) in [
        ("OnlyHealthy", uids(&["well"])),
        ("AllowAll", uids(&["well", "ill"])),
        ("OnlyHealthy", uids(&["well"])),
        ("AllowAll", uids(&["well", "ill"])),
    ] {
        StaticConfig::parse("test", &text(policy)).unwrap().apply(&mut mesh);
        assert_eq!(drawn(&mesh, "client", 80, Resolution::Standard), expected, "{policy}");
    }
}

#[test]
fn endpoints_given_on_the_service_count_once_their_workload_is_known() {
    let mut mesh = mesh(
        r#"
workloads:
- {uid: client, namespace: ns, workloadIps: [], services: {}}
- {uid: both, namespace: ns, workloadIps: [10.0.0.1], services: {ns/svc: {80: 81}}}
services:
- name: svc
  namespace: ns
  hostname: svc
  vips: []
  ports: {80: 80}
  endpoints:
    late: {workloadUid: late, port: {80: 8080}}
    both: {workloadUid: both, port: {80: 9090}}
    ill: {workloadUid: client, port: {80: 80}, status: Unhealthy}
"#,
    );
    let expect = |ports: &[&str]| ports.iter().map(|port| (*port).to_owned()).collect::<BTreeSet<_>>();
    // What the workload itself says wins.
    assert_eq!(drawn(&mesh, "client", 80, Resolution::Standard), expect(&["both:81"]));
    let late = "workloads: [{uid: late, namespace: ns, workloadIps: [10.0.0.2], services: {}}]";
    StaticConfig::parse("test", late).unwrap().apply(&mut mesh);
    assert_eq!(drawn(&mesh, "client", 80, Resolution::Standard), expect(&["both:81", "late:8080"]));
}

#[test]
fn the_target_port_is_the_endpoints_then_the_services_then_the_tunnels() {
    let mesh = mesh(
        r#"
workloads:
- {uid: client, namespace: ns, workloadIps: [], services: {}}
- {uid: pod, namespace: ns, workloadIps: [10.0.0.1], services: {ns/svc: {80: 9090}}, applicationTunnel: {protocol: PROXY, port: 15088}}
services: [{name: svc, namespace: ns, hostname: svc, vips: [], ports: {80: 0, 81: 8081, 82: 0}}]
"#,
    );
    let draw = |port, resolution| drawn(&mesh, "client", port, resolution).into_iter().next();
    assert_eq!(draw(80, Resolution::Standard).as_deref(), Some("pod:9090"));
    assert_eq!(draw(81, Resolution::Standard).as_deref(), Some("pod:8081"));
    // A named port that the pod lacks, and a port that the service lacks.
    assert_eq!(draw(82, Resolution::Standard), None);
    assert_eq!(draw(83, Resolution::Standard), None);
    assert_eq!(draw(82, Resolution::Waypoint).as_deref(), Some("pod:82"));
    assert_eq!(draw(83, Resolution::Waypoint).as_deref(), Some("pod:83"));
}

#[test]
fn a_port_that_a_waypoint_lacks_needs_an_application_tunnel_with_a_port() {
    let with = |tunnel: &str| {
        mesh(&format!(
            r#"
workloads:
- {{uid: client, namespace: ns, workloadIps: [], services: {{}}}}
- {{uid: pod, namespace: ns, workloadIps: [10.0.0.1], services: {{ns/svc: {{}}}}{tunnel}}}
services: [{{name: svc, namespace: ns, hostname: svc, vips: [], ports: {{}}}}]
"#
        ))
    };
    let draw = |tunnel| drawn(&with(tunnel), "client", 15008, Resolution::Waypoint).into_iter().next();
    assert_eq!(draw(""), None);
    assert_eq!(draw(", applicationTunnel: {protocol: PROXY}"), None);
    assert_eq!(draw(", applicationTunnel: {protocol: PROXY, port: 9}").as_deref(), Some("pod:15008"));
}

#[test]
fn a_workload_without_an_address_needs_a_gateway_on_another_network() {
    let gateway = r#"networkGateway: {destination: "far/10.0.0.9", hboneMtlsPort: 15008},"#;
    for (network, gateway, expected) in
        [("far", gateway, uids(&["pod"])), ("far", "", uids(&[])), ("near", gateway, uids(&[]))]
    {
        let mesh = mesh(&format!(
            r#"
workloads:
- {{uid: client, namespace: ns, network: near, workloadIps: [], services: {{}}}}
- {{uid: pod, namespace: ns, network: {network}, workloadIps: [], {gateway} services: {{ns/svc: {{80: 80}}}}}}
services: [{{name: svc, namespace: ns, hostname: svc, vips: [], ports: {{80: 80}}}}]
"#
        ));
        assert_eq!(drawn(&mesh, "client", 80, Resolution::Standard), expected);
    }
}

#[test]
fn weighted_waypoints_are_drawn_by_weight_and_fall_back_when_they_have_none() {
    let gateway = |port| GatewayAddress {
        destination: crate::state::model::Destination::Hostname(Default::default()),
        hbone_mtls_port: port,
    };
    let service = |weights: &[u32]| Service {
        waypoint: Some(gateway(9).into()),
        weighted_waypoints: (0..)
            .zip(weights)
            .map(|(port, weight)| WeightedWaypoint { destination: gateway(port).into(), weight: *weight })
            .collect(),
        ..Service::default()
    };
    let ports = |weights: &[u32]| {
        let service = service(weights);
        let mut rng = Rng::with_seed(1);
        let draws = (0..100)
            .filter_map(|_| choose_waypoint(&service, &mut rng).map(|waypoint| waypoint.hbone_mtls_port));
        draws.collect::<BTreeSet<u16>>()
    };
    assert_eq!(ports(&[]), [9].into());
    assert_eq!(ports(&[0, 0]), [9].into());
    assert_eq!(ports(&[100, 0]), [0].into());
    assert_eq!(ports(&[0, 100]), [1].into());
    assert_eq!(ports(&[u32::MAX, 0, u32::MAX]), [0, 2].into());
    assert!(choose_waypoint(&Service::default(), &mut Rng::with_seed(1)).is_none());
}
