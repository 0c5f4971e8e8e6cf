//! A mesh as a whole: resources in any order, lookups across kinds, removal by resource name.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;

use ztunnel::state::model::{
    Destination, GatewayAddress, NamespacedHostname, NetworkAddress, Service, Workload,
};
use ztunnel::state::{Mesh, Owner, Removed, StaticConfig};

fn host(hostname: &str) -> NamespacedHostname {
    NamespacedHostname { namespace: "ns".into(), hostname: hostname.into() }
}

fn workload(uid: &str, service: &str) -> Arc<Workload> {
    Arc::new(Workload {
        uid: uid.into(),
        name: uid.into(),
        namespace: "ns".into(),
        addresses: ["10.0.0.1".parse().unwrap()].into(),
        services: [(host(service), [(80, 8080)].into_iter().collect())].into(),
        ..Workload::default()
    })
}

fn service(hostname: &str) -> Arc<Service> {
    let address = "10.9.0.1".parse().unwrap();
    Arc::new(Service {
        host: host(hostname),
        vips: [NetworkAddress { network: "".into(), address }].into(),
        ..Service::default()
    })
}

fn endpoints(mesh: &Mesh, hostname: &str) -> usize {
    mesh.service("ns", hostname).map_or(0, |service| mesh.endpoints(service).count())
}

fn staged(mesh: &Mesh) -> Vec<(String, usize)> {
    mesh.staged_services().map(|(host, endpoints)| (host.to_string(), endpoints.count())).collect()
}

#[test]
fn endpoints_find_their_service_in_either_order() {
    let mut mesh = Mesh::new(None);
    for number in 0..25 {
        mesh.upsert_workload(workload(&format!("u{number}"), "svc"));
    }
    assert_eq!(staged(&mesh), [("ns/svc".to_owned(), 25)]);
    assert_eq!(endpoints(&mesh, "svc"), 0);
    mesh.upsert_service(service("svc"));
    for number in 25..50 {
        mesh.upsert_workload(workload(&format!("u{number}"), "svc"));
    }
    assert_eq!((endpoints(&mesh, "svc"), staged(&mesh)), (50, vec![]));
    mesh.upsert_service(service("svc"));
    assert_eq!(endpoints(&mesh, "svc"), 50);
    mesh.remove_address("u7");
    assert_eq!(endpoints(&mesh, "svc"), 49);
}

#[test]
fn staged_endpoints_leave_with_their_workload_or_its_interest() {
    let mut mesh = Mesh::new(None);
    mesh.upsert_workload(workload("u1", "svc"));
    mesh.upsert_workload(workload("u2", "svc"));
    mesh.remove_address("u1");
    assert_eq!(staged(&mesh), [("ns/svc".to_owned(), 1)]);
    mesh.upsert_workload(workload("u2", "other"));
    assert_eq!(staged(&mesh), [("ns/other".to_owned(), 1)]);
    mesh.remove_address("u2");
    assert_eq!(staged(&mesh), []);
}

#[test]
fn a_service_that_comes_back_finds_its_endpoints_again() {
    let mut mesh = Mesh::new(None);
    mesh.upsert_service(service("svc"));
    mesh.upsert_workload(workload("u", "svc"));
    assert!(matches!(mesh.remove_address("ns/svc"), Some(Removed::Service(_))));
    assert_eq!(endpoints(&mesh, "svc"), 0);
    mesh.upsert_service(service("svc"));
    assert_eq!(endpoints(&mesh, "svc"), 1);
}

#[test]
fn removing_a_name_that_means_nothing_changes_nothing() {
    let mut mesh = Mesh::new(None);
    mesh.upsert_service(service("svc"));
    mesh.upsert_workload(workload("cluster//Pod/ns/a", "svc"));
    for name in ["", "/invalid", "unknown", "ns/unknown", "cluster//Pod/ns/b", "other/svc", "svc"] {
        assert!(mesh.remove_address(name).is_none(), "{name}");
    }
    assert_eq!((mesh.workload_count(), mesh.services().count()), (1, 1));
    assert!(matches!(mesh.remove_address("cluster//Pod/ns/a"), Some(Removed::Workload(_))));
}

#[test]
fn an_address_is_a_workloads_before_it_is_a_services_and_a_hostname_the_other_way_round() {
    let mut mesh = Mesh::new(None);
    mesh.upsert_service(service("svc"));
    let address = "10.9.0.1".parse().unwrap();
    assert!(matches!(mesh.find_address("", address, None), Some(Owner::Service(_))));
    let both = Workload {
        hostname: "svc".into(),
        addresses: [address].into(),
        ..Workload::clone(&workload("u", "svc"))
    };
    mesh.upsert_workload(Arc::new(both));
    assert!(matches!(mesh.find_address("", address, None), Some(Owner::Workload(_))));
    assert!(mesh.find_address("other", address, None).is_none());
    assert!(matches!(mesh.find_hostname(&host("svc")), Some(Owner::Service(_))));
    mesh.remove_address("ns/svc");
    assert!(matches!(mesh.find_hostname(&host("svc")), Some(Owner::Workload(_))));
    assert!(mesh.find_hostname(&host("unknown")).is_none());
    let by_hostname =
        GatewayAddress { destination: Destination::Hostname(host("svc")), hbone_mtls_port: 15008 };
    assert!(matches!(mesh.find_gateway(&by_hostname), Some(Owner::Workload(_))));
}

#[test]
fn policies_follow_scope_and_selection() {
    let mut mesh = Mesh::new(None);
    let text = r#"
workloads:
- {uid: a, namespace: ns, workloadIps: [], services: {}, authorizationPolicies: [other/picked]}
- {uid: b, namespace: other, workloadIps: [], services: {}}
policies:
- {name: everywhere, namespace: root, scope: Global, action: Deny, dryRun: false, rules: []}
- {name: here, namespace: ns, scope: Namespace, action: Deny, dryRun: false, rules: []}
- {name: picked, namespace: other, scope: WorkloadSelector, action: Deny, dryRun: false, rules: []}
"#;
    StaticConfig::parse("test", text).unwrap().apply(&mut mesh);
    let keys = |mesh: &Mesh, uid: &str| {
        let set = mesh.policies_for(mesh.workload(uid).unwrap());
        set.iter().map(|policy| policy.key().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(keys(&mesh, "a"), ["root/everywhere", "ns/here", "other/picked"]);
    assert_eq!(keys(&mesh, "b"), ["root/everywhere"]);
    assert!(mesh.remove_policy("other/picked").is_some());
    assert!(mesh.remove_policy("other/picked").is_none());
    assert_eq!(keys(&mesh, "a"), ["root/everywhere", "ns/here"]);
    assert_eq!(mesh.policies_for(mesh.workload("a").unwrap()).missing().count(), 1);
}
