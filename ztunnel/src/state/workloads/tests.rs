use proptest::prelude::*;

use super::*;
use crate::state::model::{NetworkMode, PortMap};

fn host(hostname: &str) -> NamespacedHostname {
    NamespacedHostname { namespace: "ns".into(), hostname: hostname.into() }
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn workload(uid: &str, last: u8) -> Workload {
    Workload {
        uid: uid.into(),
        name: uid.into(),
        namespace: "ns".into(),
        service_account: "sa".into(),
        addresses: [ip(last)].into(),
        ..Workload::default()
    }
}

fn uid_at(workloads: &Workloads, last: u8) -> Option<&str> {
    workloads.by_address("", ip(last)).map(|workload| &*workload.uid)
}

fn endpoints(workloads: &Workloads, hostname: &str) -> Vec<String> {
    let mut found: Vec<_> = workloads
        .endpoints_of(&host(hostname))
        .map(|endpoint| format!("{} {:?}", endpoint.workload.uid, endpoint.ports.iter().collect::<Vec<_>>()))
        .collect();
    found.sort();
    found
}

fn assert_is_empty(workloads: &Workloads) {
    assert_eq!(workloads.len(), 0);
    assert_eq!(workloads.by_address.len(), 0);
    assert_eq!(workloads.by_hostname.len(), 0);
    assert_eq!(workloads.local.len(), 0);
    assert_eq!(workloads.endpoints.len(), 0);
}

#[test]
fn a_pod_comes_before_a_workload_entry_of_the_same_address() {
    let mut workloads = Workloads::default();
    let pod = || Arc::new(workload("c//Pod/ns/a", 1));
    workloads.upsert(pod());
    workloads.upsert(Arc::new(workload("c/networking.istio.io/WorkloadEntry/ns/a", 1)));
    assert_eq!(uid_at(&workloads, 1), Some("c//Pod/ns/a"));
    workloads.upsert(pod());
    assert_eq!(uid_at(&workloads, 1), Some("c//Pod/ns/a"));
    workloads.remove("c//Pod/ns/a");
    assert_eq!(uid_at(&workloads, 1), Some("c/networking.istio.io/WorkloadEntry/ns/a"));
    workloads.remove("c/networking.istio.io/WorkloadEntry/ns/a");
    assert_eq!(uid_at(&workloads, 1), None);
    assert_is_empty(&workloads);
}

#[test]
fn hbone_comes_before_plain_and_healthy_before_unhealthy() {
    let hbone = |uid| Workload { tunnel_protocol: TunnelProtocol::Hbone, ..workload(uid, 1) };
    let mut workloads = Workloads::default();
    workloads.upsert(Arc::new(hbone("x//Pod/a")));
    workloads.upsert(Arc::new(workload("x//Pod/plain", 1)));
    workloads.upsert(Arc::new(hbone("vm-hbone")));
    workloads.upsert(Arc::new(hbone("x//Pod/b")));
    assert_eq!(uid_at(&workloads, 1), Some("x//Pod/a"));
    // It is being deleted, and its address is another's already.
    workloads.upsert(Arc::new(Workload { health: Health::Unhealthy, ..hbone("x//Pod/a") }));
    assert_eq!(uid_at(&workloads, 1), Some("x//Pod/b"));
    workloads.remove("x//Pod/b");
    assert_eq!(uid_at(&workloads, 1), Some("x//Pod/a"));
    workloads.remove("x//Pod/a");
    assert_eq!(uid_at(&workloads, 1), Some("x//Pod/plain"));
}

#[test]
fn a_host_network_workload_has_no_address_but_everything_else() {
    let mut workloads = Workloads::default();
    let pod = Workload {
        network_mode: NetworkMode::HostNetwork,
        services: [(host("svc"), [(80, 80)].into_iter().collect())].into(),
        ..workload("a", 1)
    };
    workloads.upsert(Arc::new(pod));
    assert_eq!(uid_at(&workloads, 1), None);
    assert!(workloads.by_uid("a").is_some());
    assert_eq!(workloads.local("ns", "sa").count(), 1);
    assert_eq!(endpoints(&workloads, "svc"), ["a [(80, 80)]"]);
    workloads.remove("a");
    assert_is_empty(&workloads);
}

#[test]
fn an_update_replaces_addresses_hostname_network_and_endpoints() {
    let mut workloads = Workloads::default();
    let before = Workload {
        hostname: "a.example.com".into(),
        services: [(host("old"), [(80, 80)].into_iter().collect())].into(),
        ..workload("a", 1)
    };
    workloads.upsert(Arc::new(before));
    assert!(workloads.by_hostname(&host("a.example.com")).is_some());
    let after = Workload {
        network: "net".into(),
        services: [(host("new"), [(80, 81)].into_iter().collect())].into(),
        // One address twice.
        addresses: [ip(2), ip(2)].into(),
        ..workload("a", 2)
    };
    workloads.upsert(Arc::new(after));
    assert_eq!((uid_at(&workloads, 1), uid_at(&workloads, 2)), (None, None));
    assert_eq!(workloads.by_address("net", ip(2)).map(|workload| &*workload.uid), Some("a"));
    assert!(workloads.by_hostname(&host("a.example.com")).is_none());
    assert_eq!(endpoints(&workloads, "old"), [""; 0]);
    assert_eq!(endpoints(&workloads, "new"), ["a [(80, 81)]"]);
    assert_eq!(workloads.named_services().count(), 1);
    workloads.remove("a");
    assert_is_empty(&workloads);
}

#[test]
fn local_workloads_are_those_of_the_node() {
    let mut workloads = Workloads::new(Some("here".into()));
    workloads.upsert(Arc::new(Workload { node: "here".into(), ..workload("a", 1) }));
    workloads.upsert(Arc::new(Workload { node: "there".into(), ..workload("b", 2) }));
    assert_eq!(workloads.local("ns", "sa").count(), 1);
    assert_eq!(workloads.local("ns", "other").count(), 0);
    workloads.upsert(Arc::new(Workload { node: "there".into(), ..workload("a", 1) }));
    assert_eq!(workloads.local("ns", "sa").count(), 0);
}

#[derive(Clone, Debug)]
enum Change {
    Upsert { uid: u8, addresses: Vec<u8>, service: Option<u8>, is_hbone: bool, is_host_network: bool },
    Remove(u8),
}

fn change() -> impl Strategy<Value = Change> {
    let upsert = (
        0..12u8,
        prop::collection::vec(0..5u8, 0..3),
        prop::option::of(0..3u8),
        any::<bool>(),
        any::<bool>(),
    );
    prop_oneof![
        3 => upsert.prop_map(|(uid, addresses, service, is_hbone, is_host_network)| Change::Upsert {
            uid, addresses, service, is_hbone, is_host_network
        }),
        1 => (0..12u8).prop_map(Change::Remove),
    ]
}

fn uid(number: u8) -> String {
    // Every other one is a pod.
    if number.is_multiple_of(2) { format!("c//Pod/ns/{number}") } else { format!("vm/{number}") }
}

proptest! {
    /// Against a plain list, searched from end to end.
    #[test]
    fn every_index_agrees_with_a_search_of_all_workloads(changes in prop::collection::vec(change(), 0..120)) {
        let mut workloads = Workloads::default();
        let mut all: Vec<Arc<Workload>> = Vec::new();
        for change in changes {
            match change {
                Change::Upsert { uid: number, addresses, service, is_hbone, is_host_network } => {
                    let workload = Arc::new(Workload {
                        addresses: addresses.into_iter().map(ip).collect(),
                        tunnel_protocol: if is_hbone { TunnelProtocol::Hbone } else { TunnelProtocol::Tcp },
                        network_mode: if is_host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard },
                        services: service.iter().map(|name| (host(&name.to_string()), PortMap::default())).collect(),
                        ..workload(&uid(number), 0)
                    });
                    all.retain(|other| other.uid != workload.uid);
                    all.push(workload.clone());
                    workloads.upsert(workload);
                }
                Change::Remove(number) => {
                    let known = all.iter().any(|other| *other.uid == *uid(number));
                    all.retain(|other| *other.uid != *uid(number));
                    prop_assert_eq!(workloads.remove(&uid(number)).is_some(), known);
                }
            }
        }
        for last in 0..5 {
            let candidates = all.iter().filter(|workload| {
                workload.network_mode == NetworkMode::Standard && workload.addresses.contains(&ip(last))
            });
            let expected = candidates.min_by_key(|workload| {
                let pod = 2 * i32::from(workload.uid.contains("//Pod/"));
                (-pod - i32::from(workload.tunnel_protocol == TunnelProtocol::Hbone), &workload.uid)
            });
            prop_assert_eq!(uid_at(&workloads, last), expected.map(|workload| &*workload.uid));
        }
        for service in 0..3u8 {
            let name = host(&service.to_string());
            let mut expected: Vec<_> =
                all.iter().filter(|workload| workload.ports_for(&name).is_some()).map(|workload| &*workload.uid).collect();
            let mut found: Vec<_> = workloads.endpoints_of(&name).map(|endpoint| &*endpoint.workload.uid).collect();
            expected.sort_unstable();
            found.sort_unstable();
            prop_assert_eq!(found, expected);
        }
        for workload in &all {
            workloads.remove(&workload.uid);
        }
        assert_is_empty(&workloads);
    }
}
