use super::*;
use crate::state::model::*;

fn parse(text: &str) -> StaticConfig {
    StaticConfig::parse("mesh.yaml", text).unwrap_or_else(|error| panic!("{error}"))
}

fn error(text: &str) -> String {
    StaticConfig::parse("mesh.yaml", text).unwrap_err().to_string()
}

/// Each fault with the word that its location points at: `workloads[0].uid: message @ word`.
fn pointing(text: &str, faults: &[Fault]) -> Vec<String> {
    let describe = |fault: &Fault| {
        let (line, column) = fault.location.unwrap();
        let rest = &text.lines().nth(line - 1).unwrap()[column - 1..];
        let word = rest.split([' ', ',', '}', ']']).next().unwrap();
        format!("{}: {} @ {word}", fault.field, fault.message)
    };
    faults.iter().map(describe).collect()
}

/// The example of the file's documentation.
const EXAMPLE: &str = r#"workloads:
- uid: cluster1//Pod/default/a
  name: a
  namespace: default
  serviceAccount: default
  trustDomain: cluster.local
  workloadIps: ["10.1.0.1"]
  protocol: HBONE
  node: n1
  waypoint: {destination: "default/wp.default.svc.cluster.local", hboneMtlsPort: 15008}
  services:
    "default/web.default.svc.cluster.local": {80: 8080}
services:
- name: web
  namespace: default
  hostname: web.default.svc.cluster.local
  vips: ["/10.96.0.10"]
  ports: {80: 8080}
policies:
- name: only-web
  namespace: default
  scope: Namespace
  action: Allow
  dryRun: false
  rules: [[[{destinationPorts: [8080]}]]]
"#;

#[test]
fn the_documented_example_is_understood() {
    let config = parse(EXAMPLE);
    let mut mesh = Mesh::new(Some("n1".into()));
    config.apply(&mut mesh);
    let workload = mesh.workload_by_address("", "10.1.0.1".parse().unwrap()).unwrap();
    assert_eq!(workload.identity().unwrap().principal(), "cluster.local/ns/default/sa/default");
    assert_eq!(workload.tunnel_protocol, TunnelProtocol::Hbone);
    let service = mesh.service_by_vip("", "10.96.0.10".parse().unwrap(), None).unwrap();
    assert_eq!(service.ports.get(80), Some(8080));
    assert_eq!(mesh.endpoints(service).count(), 1);
    assert_eq!(mesh.services_of(workload).count(), 1);
    assert_eq!(mesh.policies_for(workload).iter().count(), 1);
    assert_eq!(
        config.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [concat!(
            ":10:27: workloads[0].waypoint.destination: no workload or service ",
            "\"default/wp.default.svc.cluster.local\" in this file; until it is known, what needs it is refused"
        )]
    );
}

#[test]
fn every_key_reaches_the_model() {
    let config = parse(
        r#"
workloads:
- uid: u
  name: n
  namespace: ns
  serviceAccount: sa
  trustDomain: td
  network: net
  node: node
  clusterId: c
  locality: {region: r, zone: z, subzone: s}
  workloadName: wn
  workloadType: deployment
  canonicalName: cn
  canonicalRevision: cr
  hostname: h.example.com
  workloadIps: ["10.0.0.1", "::ffff:10.0.0.2", "fd00::1"]
  networkMode: HostNetwork
  protocol: HBONE
  nativeTunnel: true
  applicationTunnel: {protocol: PROXY, port: 15088}
  waypoint: {destination: "net/10.0.0.1", hboneMtlsPort: 15008}
  networkGateway: {destination: "ns/svc.example.com", hboneMtlsPort: 15009}
  authorizationPolicies: [ns/p]
  status: Unhealthy
  capacity: 7
  services: {"ns/svc.example.com": {80: 8080, 443: 8443}}
services:
- name: svc
  namespace: ns
  hostname: svc.example.com
  vips: ["net/10.9.0.1", "/fd00::9"]
  cidrVips: [{network: net, cidr: 10.8.0.0/16}]
  ports: {80: 0}
  endpoints: {e: {workloadUid: u, port: {80: 81}, status: Unhealthy}}
  subjectAltNames: ["spiffe://td/ns/ns/sa/x"]
  waypoint: {destination: "net/10.0.0.1", hboneMtlsPort: 15008}
  weightedWaypoints: [{destination: {destination: "net/10.0.0.1", hboneMtlsPort: 1}, weight: 9}]
  loadBalancer: {routingPreferences: [Region, Zone, Subzone, Node, Cluster, Network], mode: Strict, healthPolicy: AllowAll}
  ipFamilies: IPv6
  canonical: true
  visibility: Namespace
policies:
- {name: p, namespace: ns, scope: WorkloadSelector, action: Deny, dryRun: true, rules: []}
"#,
    );
    let host = NamespacedHostname { namespace: "ns".into(), hostname: "svc.example.com".into() };
    let waypoint = GatewayAddress {
        destination: Destination::Address(NetworkAddress {
            network: "net".into(),
            address: "10.0.0.1".parse().unwrap(),
        }),
        hbone_mtls_port: 15008,
    };
    let workload = Workload {
        uid: "u".into(),
        name: "n".into(),
        namespace: "ns".into(),
        service_account: "sa".into(),
        trust_domain: "td".into(),
        network: "net".into(),
        node: "node".into(),
        cluster_id: "c".into(),
        locality: Locality { region: "r".into(), zone: "z".into(), subzone: "s".into() },
        workload_name: "wn".into(),
        workload_type: "deployment".into(),
        canonical_name: "cn".into(),
        canonical_revision: "cr".into(),
        hostname: "h.example.com".into(),
        addresses: ["10.0.0.1", "10.0.0.2", "fd00::1"].map(|ip| ip.parse().unwrap()).into(),
        network_mode: NetworkMode::HostNetwork,
        tunnel_protocol: TunnelProtocol::Hbone,
        native_tunnel: true,
        application_tunnel: Some(ApplicationTunnel {
            protocol: ApplicationTunnelProtocol::Proxy,
            port: Some(15088),
        }),
        waypoint: Some(waypoint.clone().into()),
        network_gateway: Some(
            GatewayAddress { destination: Destination::Hostname(host.clone()), hbone_mtls_port: 15009 }
                .into(),
        ),
        authorization_policies: ["ns/p".into()].into(),
        health: Health::Unhealthy,
        capacity: 7,
        services: [(host.clone(), [(80, 8080), (443, 8443)].into_iter().collect())].into(),
    };
    assert_eq!(*config.workloads[0], workload);
    let service = Service {
        name: "svc".into(),
        host,
        vips: [("net", "10.9.0.1"), ("", "fd00::9")]
            .map(|(network, ip)| NetworkAddress { network: network.into(), address: ip.parse().unwrap() })
            .into(),
        cidr_vips: [NetworkCidr { network: "net".into(), cidr: "10.8.0.0/16".parse().unwrap() }].into(),
        ports: [(80, 0)].into_iter().collect(),
        subject_alt_names: ["spiffe://td/ns/ns/sa/x".parse().unwrap()].into(),
        waypoint: Some(waypoint.clone().into()),
        weighted_waypoints: [WeightedWaypoint {
            destination: GatewayAddress { hbone_mtls_port: 1, ..waypoint }.into(),
            weight: 9,
        }]
        .into(),
        load_balancer: LoadBalancer {
            mode: BalanceMode::Strict,
            preferences: [
                Scope::Region,
                Scope::Zone,
                Scope::Subzone,
                Scope::Node,
                Scope::Cluster,
                Scope::Network,
            ]
            .into(),
            health_policy: HealthPolicy::AllowAll,
        },
        ip_families: IpFamilies::Ipv6,
        canonical: true,
        visibility: Visibility::Namespace,
        endpoints: [ExplicitEndpoint {
            workload_uid: "u".into(),
            ports: [(80, 81)].into_iter().collect(),
            health: Health::Unhealthy,
        }]
        .into(),
    };
    assert_eq!(*config.services[0], service);
    let policy = &config.policies[0];
    assert_eq!(&**policy.key(), "ns/p");
    assert_eq!(policy.scope(), crate::policy::PolicyScope::WorkloadSelector);
    assert_eq!(policy.action(), crate::policy::Action::Deny);
    assert_eq!(policy.enforcement(), crate::policy::Enforcement::DryRun);
    assert_eq!(config.warnings, []);
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = parse("{workloads: [{workloadIps: [], namespace: ns, services: {}}]}");
    let expected = Workload { uid: "static//0".into(), namespace: "ns".into(), ..Workload::default() };
    assert_eq!(*config.workloads[0], expected);
    assert_eq!(expected.capacity, 1);
}

#[test]
fn json_is_yaml() {
    let text = r#"{"workloads": [{"workloadIps": ["10.0.0.1"], "namespace": "ns", "uid": "u", "services": {"ns/s": {"80": 8080}}}],
        "services": [{"name": "s", "namespace": "ns", "hostname": "s", "vips": [], "ports": {"80": 8080}}]}"#;
    let config = parse(text);
    assert_eq!(config.workloads[0].services[0].1.get(80), Some(8080));
    assert_eq!(config.services[0].ports.get(80), Some(8080));
}

#[test]
fn an_empty_file_is_an_empty_mesh() {
    for text in ["", "{}", "---\n", "# nothing\n", "workloads: []\n"] {
        let config = parse(text);
        assert!(
            config.workloads.is_empty() && config.services.is_empty() && config.policies.is_empty(),
            "{text:?}"
        );
    }
}

#[test]
fn workloads_without_a_uid_do_not_replace_each_other() {
    let one = "{workloadIps: [], namespace: ns, services: {}}";
    let mut mesh = Mesh::new(None);
    parse(&format!("workloads: [{one}, {one}]")).apply(&mut mesh);
    assert_eq!(mesh.workload_count(), 2);
}

#[test]
fn an_unknown_word_names_the_place_and_the_words_that_are_known() {
    let text = "workloads:
- uid: u
  namespace: ns
  workloadIps: []
  services: {}
  protocol: HBNE
";
    assert_eq!(
        error(text),
        r#"mesh.yaml:6:13: workloads[0].protocol: unknown value "HBNE", expected "TCP" or "HBONE""#
    );
}

#[test]
fn all_faults_are_reported_at_once() {
    let text = r#"workloads:
- {uid: u, namespace: ns, workloadIps: [10.0.0.300, 10.0.0.1], services: {web: {80: 80}}}
- {uid: u, namespace: ns, workloadIps: [], services: {}, waypoint: {destination: wp, hboneMtlsPort: 1}}
services:
- {name: s, namespace: ns, hostname: h, vips: [10.0.0.1], ports: {}, cidrVips: [{network: n, cidr: 10.0.0.0/33}]}
- name: s
  namespace: ns
  hostname: h
  vips: []
  ports: {}
  loadBalancer: {routingPreferences: [Planet], mode: Strict, healthPolicy: AllowAll}
policies:
- {name: p, namespace: ns, scope: Namespace, action: Audit, dryRun: false, rules: [[[{sourceIps: [10.0.0.0], namespaces: [{}]}]]]}
- {name: p, namespace: ns, scope: Namespace, action: Deny, dryRun: false, rules: []}
"#;
    let expected = [
        r#"workloads[0].workloadIps[0]: invalid IP address "10.0.0.300" @ 10.0.0.300"#,
        r#"workloads[0].services.web: invalid service "web", expected "<namespace>/<hostname>" @ {80:"#,
        r#"workloads[1].waypoint.destination: invalid gateway "wp", expected "<network>/<ip>" or "<namespace>/<hostname>" @ wp"#,
        r#"workloads[1].uid: duplicate uid "u" @ u"#,
        r#"services[0].vips[0]: invalid address "10.0.0.1", expected "<network>/<ip>" @ 10.0.0.1"#,
        r#"services[0].cidrVips[0].cidr: invalid address range "10.0.0.0/33", expected "<ip>/<prefix length>" @ 10.0.0.0/33"#,
        r#"services[1].loadBalancer.routingPreferences[0]: unknown value "Planet", expected "Region", "Zone", "Subzone", "Node", "Cluster" or "Network" @ Planet"#,
        r#"services[1].hostname: duplicate service "ns/h" @ h"#,
        r#"policies[0].rules[0][0][0].namespaces[0]: expected one of Exact, Prefix, Suffix and Presence @ {"#,
        r#"policies[0].rules[0][0][0].sourceIps[0]: invalid address range "10.0.0.0", expected "<ip>/<prefix length>" @ 10.0.0.0"#,
        r#"policies[0].action: unknown value "Audit", expected "Allow" or "Deny" @ Audit"#,
        r#"policies[1].name: duplicate policy "ns/p" @ p"#,
    ];
    let error = StaticConfig::parse("mesh.yaml", text).unwrap_err();
    assert_eq!(pointing(text, &error.faults), expected);
    assert_eq!(error.to_string().lines().count(), expected.len());
}

#[test]
fn faults_of_shape_name_the_place_too() {
    for (text, expected) in [
        (
            "workloads:\n- {namespace: ns, workloadIps: [], services: {}, protocal: TCP}\n",
            "mesh.yaml:2:50: workloads[0]: unknown field `protocal`, expected one of ",
        ),
        (
            "workloads:\n- {namespace: ns, services: {}}\n",
            "mesh.yaml:2:3: workloads[0]: missing field `workloadIps`",
        ),
        (
            "services:\n- {name: s, namespace: n, hostname: h, vips: [], ports: {80: 70000}}\n",
            "mesh.yaml:2:62: services[0].ports.80: invalid value: integer `70000`, expected u16",
        ),
        (
            "services:\n- {name: s, namespace: n, hostname: h, vips: [], ports: {http: 80}}\n",
            "mesh.yaml:2:58: services[0].ports: invalid value: string \"http\", expected a port from 0 to 65535",
        ),
        ("workloads: 3\n", "mesh.yaml:1:12: workloads: invalid type: integer `3`, expected a sequence"),
        ("workloads: [\n", "mesh.yaml:2:1: "),
    ] {
        let found = error(text);
        assert!(found.starts_with(expected), "{found}");
        assert_eq!(found.matches(" at line ").count(), usize::from(text.ends_with("[\n")), "{found}");
    }
}

#[test]
fn unknown_keys_are_tolerated_where_they_always_were() {
    let config = parse(
        r#"
workloads: [{uid: u, namespace: ns, workloadIps: [], services: {}, locality: {region: r, zone: z, subzone: s, rack: 7}}]
services: [{name: s, namespace: ns, hostname: h, vips: [], ports: {}, cidrVips: [{network: n, cidr: 10.0.0.0/8, x: 1}]}]
"#,
    );
    assert_eq!(config.warnings, []);
    assert!(
        error("workloads: [{uid: u, namespace: ns, workloadIps: [], services: {}, locality: {region: r}}]")
            .contains("zone")
    );
}

#[test]
fn an_unknown_condition_of_a_policy_is_not_taken_for_none() {
    let policy = |action: &str| {
        format!(
            "policies:\n- {{name: p, namespace: ns, scope: Namespace, action: {action}, dryRun: false, rules: [[[{{destinationPorts: [80], methods: [GET]}}]]]}}\n"
        )
    };
    let access = crate::policy::Access::new([10, 0, 0, 1].into(), None, "10.0.0.2:80".parse().unwrap());
    for (action, expected, consequence) in [
        ("Allow", false, "what needs it is not allowed"),
        ("Deny", true, "it is taken to match every connection"),
    ] {
        let config = parse(&policy(action));
        assert_eq!(config.policies[0].first_match(&access).is_some(), expected);
        assert_eq!(
            pointing(&policy(action), &config.warnings),
            [format!(
                "policies[0].rules: policy ns/p: unknown field \"methods\"; {consequence} @ [[[{{destinationPorts:"
            )]
        );
    }
}

#[test]
fn references_to_nothing_are_warnings() {
    let text = r#"workloads:
- {uid: u, namespace: ns, workloadIps: [], services: {ns/absent: {}}, authorizationPolicies: [ns/absent]}
services:
- name: s
  namespace: ns
  hostname: h
  vips: []
  ports: {}
  endpoints: {e: {workloadUid: absent, port: {80: 80}}}
  subjectAltNames: [nobody]
"#;
    assert_eq!(
        pointing(text, &parse(text).warnings),
        [
            r#"workloads[0].authorizationPolicies[0]: no policy "ns/absent" in this file; until it is known, nothing may connect to the workload @ ns/absent"#,
            r#"workloads[0].services["ns/absent"]: no service "ns/absent" in this file @ {"#,
            r#"services[0].subjectAltNames[0]: "nobody" is ignored: a SPIFFE identity begins with spiffe:// @ nobody"#,
            r#"services[0].endpoints.e.workloadUid: no workload "absent" in this file @ absent"#,
        ]
    );
}

#[test]
fn only_the_first_faults_are_looked_up_but_all_are_reported() {
    let bad = "{namespace: ns, workloadIps: [x], services: {}}";
    let text = format!("workloads: [{}]", vec![bad; 50].join(", "));
    let error = StaticConfig::parse("mesh.yaml", &text).unwrap_err();
    assert_eq!(error.faults.len(), 50);
    assert!(error.faults[0].location.is_some());
    assert_eq!(error.faults[49].to_string(), r#": workloads[49].workloadIps[0]: invalid IP address "x""#);
}

#[test]
fn every_kind_of_policy_match_is_read() {
    let config = parse(
        r#"
policies:
- name: p
  namespace: ns
  scope: Global
  action: Allow
  dryRun: false
  rules:
  - - - namespaces: [{Exact: a}]
        notNamespaces: [{Prefix: b}]
        principals: [{Suffix: c}]
        notPrincipals: [{Presence: []}]
        serviceAccounts: [{namespace: n, serviceAccount: s}]
        notServiceAccounts: [{namespace: n, serviceAccount: s}]
        sourceIps: [10.0.0.0/8]
        notSourceIps: [10.0.0.0/9]
        destinationIps: ["fd00::/8"]
        notDestinationIps: ["fd00::/9"]
        destinationPorts: [80]
        notDestinationPorts: [81]
"#,
    );
    let crate::policy::Match::When(conditions) = &config.policies[0].rules()[0].0[0].0[0] else { panic!() };
    use crate::policy::StringMatch::*;
    assert_eq!(*conditions.namespaces.any_of, [Exact("a".into())]);
    assert_eq!(*conditions.namespaces.none_of, [Prefix("b".into())]);
    assert_eq!(*conditions.principals.any_of, [Suffix("c".into())]);
    assert_eq!(*conditions.principals.none_of, [Presence]);
    assert_eq!(conditions.service_accounts.any_of, conditions.service_accounts.none_of);
    assert_eq!(&*conditions.service_accounts.any_of[0].service_account, "s");
    let ranges = |ranges: &[ipnet::IpNet]| ranges.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(ranges(&conditions.source_ips.any_of), ["10.0.0.0/8"]);
    assert_eq!(ranges(&conditions.source_ips.none_of), ["10.0.0.0/9"]);
    assert_eq!(ranges(&conditions.destination_ips.any_of), ["fd00::/8"]);
    assert_eq!(ranges(&conditions.destination_ips.none_of), ["fd00::/9"]);
    assert_eq!(*conditions.destination_ports.any_of, [80]);
    assert_eq!(*conditions.destination_ports.none_of, [81]);
}
