use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use fastrand::Rng;
use proptest::prelude::*;
use xds_client::prost::Message as _;

use super::*;
use crate::policy::Access;
use crate::state::avoided::Avoiding;
use crate::state::model::{Health, Service, TunnelProtocol, Workload};
use crate::state::route::{Route, RouteConfig, RouteError, route};

const HOST: &str = "ns/web.ns.svc.cluster.local";

fn address(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn workload(name: &str, last: u8) -> wire::Workload {
    wire::Workload {
        uid: format!("c//Pod/ns/{name}"),
        name: name.into(),
        namespace: "ns".into(),
        addresses: vec![address(&[10, 0, 0, last])],
        node: "here".into(),
        ..Default::default()
    }
}

fn service(hostname: &str, last: u8) -> wire::Service {
    wire::Service {
        name: "web".into(),
        namespace: "ns".into(),
        hostname: hostname.into(),
        addresses: vec![vip(last, None)],
        ports: vec![wire::Port { service_port: 80, target_port: 8080, app_protocol: 0 }],
        ..Default::default()
    }
}

fn vip(last: u8, length: Option<u32>) -> wire::NetworkAddress {
    wire::NetworkAddress { network: String::new(), address: address(&[10, 96, 0, last]), length }
}

fn waypoint() -> wire::GatewayAddress {
    let hostname = wire::NamespacedHostname { namespace: "ns".into(), hostname: "waypoint".into() };
    wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Hostname(hostname)),
        hbone_mtls_port: 15008,
    }
}

fn of_workload(workload: wire::Workload) -> (String, Bytes) {
    let name = workload.uid.clone();
    (name, wire::Address { r#type: Some(Type::Workload(workload)) }.encode_to_vec().into())
}

fn of_service(service: wire::Service) -> (String, Bytes) {
    let name = format!("{}/{}", service.namespace, service.hostname);
    (name, wire::Address { r#type: Some(Type::Service(service)) }.encode_to_vec().into())
}

/// A mesh and who writes it.
struct Scene {
    state: Arc<MeshState>,
    xds: XdsState,
}

impl Scene {
    fn new() -> Self {
        let state = Arc::new(MeshState::new(Mesh::new(Some("here".into()))));
        Self { xds: XdsState::new(state.clone(), |_| {}), state }
    }

    /// One response. Returns what was rejected and why.
    fn push(
        &mut self,
        kind: ResourceType,
        updates: impl IntoIterator<Item = (String, Bytes)>,
        removals: &[&str],
    ) -> Vec<String> {
        self.xds.begin(kind);
        let mut rejected = Vec::new();
        for (name, payload) in updates {
            if let Err(error) = self.xds.update(kind, &name.as_str().into(), payload) {
                rejected.push(format!("{name}: {error}"));
            }
        }
        for name in removals {
            self.xds.remove(kind, name);
        }
        self.xds.commit(kind);
        rejected
    }

    fn addresses(&mut self, updates: impl IntoIterator<Item = (String, Bytes)>) -> Vec<String> {
        self.push(ResourceType::Address, updates, &[])
    }

    /// Where a connection from a pod of the mesh goes.
    fn route(&self, destination: &str) -> Result<Route, RouteError> {
        let source = Workload { uid: "source".into(), namespace: "ns".into(), ..Workload::default() };
        let config = RouteConfig { network: "".into(), illegal_ports: [].into() };
        let destination: SocketAddr = destination.parse().unwrap();
        route(
            &self.state.load(),
            &config,
            &source,
            [10, 0, 0, 99].into(),
            destination,
            Avoiding::NOBODY,
            &mut Rng::with_seed(0),
        )
    }
}

#[test]
fn a_workload_is_taken_as_it_is_described() {
    let message = wire::Workload {
        tunnel_protocol: wire::TunnelProtocol::Hbone as i32,
        trust_domain: "td".into(),
        service_account: "sa".into(),
        workload_type: wire::WorkloadType::Job as i32,
        services: [(HOST.to_owned(), ports(&[(80, 8080), (65_536 + 443, 8443)]))].into(),
        capacity: Some(0),
        status: wire::WorkloadStatus::Unhealthy as i32,
        application_tunnel: Some(wire::ApplicationTunnel { protocol: 1, port: 0 }),
        ..workload("a", 1)
    };
    let mut scene = Scene::new();
    assert!(scene.addresses([of_workload(message)]).is_empty());
    let mesh = scene.state.load();
    let workload = mesh.workload_by_address("", [10, 0, 0, 1].into()).unwrap();
    assert_eq!(&*workload.uid, "c//Pod/ns/a");
    assert_eq!(workload.identity().unwrap().to_string(), "spiffe://td/ns/ns/sa/sa");
    assert_eq!((workload.tunnel_protocol, workload.health), (TunnelProtocol::Hbone, Health::Unhealthy));
    assert_eq!((&*workload.workload_type, workload.capacity), ("job", 0));
    assert_eq!(workload.application_tunnel.unwrap().port, None);
    // Ports are the lower 16 bits.
    assert_eq!(workload.services[0].1.iter().collect::<Vec<_>>(), [(80, 8080), (443, 8443)]);
    assert!(mesh.is_local(workload));
}

fn ports(pairs: &[(u32, u32)]) -> wire::PortList {
    let port = |(service_port, target_port): &(u32, u32)| wire::Port {
        service_port: *service_port,
        target_port: *target_port,
        app_protocol: 0,
    };
    wire::PortList { ports: pairs.iter().map(port).collect() }
}

#[test]
fn what_istiod_leaves_out_has_the_meshs_defaults() {
    let mut scene = Scene::new();
    scene.addresses([of_workload(wire::Workload { workload_type: 99, ..workload("a", 1) })]);
    let mesh = scene.state.load();
    let workload = mesh.workload("c//Pod/ns/a").unwrap();
    assert_eq!(workload.identity().unwrap().to_string(), "spiffe://cluster.local/ns/ns/sa/default");
    assert_eq!((&*workload.cluster_id, &*workload.workload_type), ("Kubernetes", "deployment"));
    assert_eq!(workload.capacity, 1);
}

#[test]
fn every_unusable_field_rejects_its_resource_by_name() {
    let of = |change: fn(&mut wire::Workload)| {
        let mut message = workload("a", 1);
        change(&mut message);
        of_workload(message)
    };
    let with = |change: fn(&mut wire::Service)| {
        let mut message = service("web", 1);
        change(&mut message);
        of_service(message)
    };
    let balance = |routing_preference, mode, health_policy| {
        Some(wire::LoadBalancing { routing_preference, mode, health_policy })
    };
    let nowhere = || wire::GatewayAddress { destination: None, hbone_mtls_port: 15008 };
    let cases = [
        (of(|w| w.addresses = vec![address(&[1; 9])]), "addresses: failed to parse address, had 9 bytes"),
        (of(|w| w.addresses = vec![Bytes::new()]), "addresses: failed to parse address, had 0 bytes"),
        (of(|w| w.tunnel_protocol = 2), "unknown enum: unsupported tunnel protocol: legacy istio mtls"),
        (of(|w| w.tunnel_protocol = 7), "tunnel_protocol: decode error: unknown enumeration value 7"),
        (of(|w| w.status = 9), "status: decode error: unknown enumeration value 9"),
        (of(|w| w.network_mode = 9), "network_mode: decode error: unknown enumeration value 9"),
        (
            of(|w| w.application_tunnel = Some(wire::ApplicationTunnel { protocol: 5, port: 1 })),
            "application_tunnel: decode error: unknown enumeration value 5",
        ),
        (
            of(|w| drop(w.services.insert("nohost".into(), wire::PortList::default()))),
            "services: failed to parse namespaced hostname: nohost",
        ),
        (
            (of(|_| {}).0, of_workload(wire::Workload { waypoint: Some(nowhere()), ..workload("a", 1) }).1),
            "waypoint: nonempty gateway address is missing address",
        ),
        (with(|s| s.addresses = vec![vip(1, Some(33))]), "addresses: invalid cidr: 10.96.0.1/33"),
        // The length is compared as a whole, not its lower 8 bits.
        (with(|s| s.addresses = vec![vip(1, Some(256 + 8))]), "addresses: invalid cidr: 10.96.0.1/264"),
        (with(|s| s.ip_families = 4), "ip_families: decode error: unknown enumeration value 4"),
        (
            of_service(wire::Service { load_balancing: balance(vec![0], 1, 0), ..service("web", 1) }),
            "unknown enum: invalid target",
        ),
        (
            of_service(wire::Service { load_balancing: balance(vec![], 8, 0), ..service("web", 1) }),
            "load_balancing.mode: decode error: unknown enumeration value 8",
        ),
        (
            of_service(wire::Service { load_balancing: balance(vec![], 0, 2), ..service("web", 1) }),
            "load_balancing.health_policy: decode error: unknown enumeration value 2",
        ),
        (
            with(|s| s.weighted_waypoints = vec![wire::WeightedWaypoint { destination: None, weight: 1 }]),
            "weighted_waypoints: nonempty gateway address is missing address",
        ),
        (("x".into(), Bytes::new()), "unknown address type"),
    ];
    for ((name, payload), reason) in cases {
        let mut scene = Scene::new();
        assert_eq!(scene.addresses([(name.clone(), payload)]), [format!("{name}: {reason}")]);
        assert_eq!(scene.state.load().workload_count(), 0);
        assert_eq!(scene.state.load().services().count(), 0);
    }
    let rejected = Scene::new().addresses([("x".into(), Bytes::from_static(b"\x0a\xff"))]);
    assert!(rejected[0].starts_with("x: decode: "), "{rejected:?}");
}

#[test]
fn a_visibility_that_is_not_known_is_public() {
    let mut scene = Scene::new();
    assert!(scene.addresses([of_service(wire::Service { visibility: 9, ..service("web", 1) })]).is_empty());
    assert!(scene.state.load().service_by_hostname("web", Some("other"), None).is_some());
}

#[test]
fn a_prefix_of_the_whole_address_is_no_range() {
    let mut scene = Scene::new();
    let addresses = vec![vip(1, Some(32)), vip(2, None), vip(0, Some(24)), vip(0, Some(0))];
    scene.addresses([of_service(wire::Service { addresses, ..service("web", 1) })]);
    let mesh = scene.state.load();
    let service = mesh.service("ns", "web").unwrap();
    assert_eq!((service.vips.len(), service.cidr_vips.len()), (2, 2));
}

#[test]
fn the_rest_of_a_response_is_applied_and_the_last_good_version_stays() {
    let mut scene = Scene::new();
    scene.addresses([of_workload(workload("a", 1))]);
    let bad = wire::Workload { tunnel_protocol: 7, ..workload("a", 5) };
    let rejected = scene.addresses([of_workload(bad), of_workload(workload("b", 2))]);
    assert_eq!(rejected.len(), 1);
    let mesh = scene.state.load();
    assert_eq!(mesh.workload("c//Pod/ns/a").unwrap().addresses[..], [IpAddr::from([10, 0, 0, 1])]);
    assert!(mesh.workload("c//Pod/ns/b").is_some());
}

#[test]
fn what_did_not_change_is_not_touched() {
    let mut scene = Scene::new();
    scene.addresses([of_workload(workload("a", 1)), of_service(service("web", 1))]);
    let before = scene.state.load();
    // Other bytes for the same thing: an extension, which means nothing to us.
    let extensions = vec![wire::Extension { name: "e".into(), config: None }];
    scene.addresses([
        of_workload(wire::Workload { extensions, ..workload("a", 1) }),
        of_service(service("web", 1)),
    ]);
    assert!(Arc::ptr_eq(&before, &scene.state.load()), "nothing was published");
}

#[test]
fn nothing_is_sent_to_a_service_whose_first_description_is_rejected() {
    let with_waypoint = || wire::Service { waypoint: Some(waypoint()), ..service("web", 1) };
    let bad = || of_service(wire::Service { ip_families: 9, ..with_waypoint() });
    let mut scene = Scene::new();
    assert!(matches!(scene.route("10.96.0.1:80"), Ok(Route::Plain(_))), "nobody claims the address yet");
    scene.addresses([bad()]);
    let refused = RouteError::Rejected("ns/web".into());
    assert_eq!(scene.route("10.96.0.1:80"), Err(refused.clone()));
    assert!(matches!(scene.route("10.96.0.2:80"), Ok(Route::Plain(_))));

    // Cut off in the middle: the addresses come before what is missing.
    let (name, payload) = of_service(with_waypoint());
    let mut cut = Scene::new();
    assert_eq!(cut.addresses([(name, payload.slice(..payload.len() - 3))]).len(), 1);
    assert_eq!(cut.route("10.96.0.1:80"), Err(refused));

    scene.addresses([of_service(with_waypoint())]);
    assert!(matches!(scene.route("10.96.0.1:80"), Err(RouteError::UnknownWaypoint(_))));
    // An update that is rejected leaves the last good one in force, and a new address of it to nobody.
    let moved =
        wire::Service { addresses: vec![vip(1, None), vip(7, None)], ip_families: 9, ..with_waypoint() };
    scene.addresses([of_service(moved)]);
    assert!(matches!(scene.route("10.96.0.1:80"), Err(RouteError::UnknownWaypoint(_))));
    assert!(matches!(scene.route("10.96.0.7:80"), Err(RouteError::Rejected(_))));
    // The version before the rejected one is in force again.
    scene.xds.begin(ResourceType::Address);
    scene.xds.restore(ResourceType::Address, "ns/web");
    scene.xds.commit(ResourceType::Address);
    assert!(matches!(scene.route("10.96.0.1:80"), Err(RouteError::UnknownWaypoint(_))));
    assert!(matches!(scene.route("10.96.0.7:80"), Ok(Route::Plain(_))));
    scene.push(ResourceType::Address, [], &["ns/web"]);
    for destination in ["10.96.0.1:80", "10.96.0.7:80"] {
        assert!(matches!(scene.route(destination), Ok(Route::Plain(_))), "{destination}");
    }
}

#[test]
fn a_range_does_not_speak_for_an_address_that_a_rejected_service_claims() {
    let mut scene = Scene::new();
    let passthrough = wire::LoadBalancing { mode: 3, ..Default::default() };
    scene.addresses([
        of_service(wire::Service {
            addresses: vec![vip(0, Some(8))],
            load_balancing: Some(passthrough),
            ..service("all", 0)
        }),
        of_service(wire::Service { ip_families: 9, ..service("web", 1) }),
    ]);
    assert!(matches!(scene.route("10.96.0.1:80"), Err(RouteError::Rejected(_))));
    assert!(matches!(scene.route("10.96.0.2:80"), Ok(Route::Plain(_))));
}

#[test]
fn a_rejected_workload_of_the_mesh_is_not_reached_in_clear_and_another_is() {
    let hbone = wire::Workload { tunnel_protocol: 1, status: 9, ..workload("hbone", 1) };
    let behind_waypoint = wire::Workload { waypoint: Some(waypoint()), status: 9, ..workload("captured", 2) };
    let legacy = wire::Workload { tunnel_protocol: 2, ..workload("legacy", 3) };
    let mut scene = Scene::new();
    assert_eq!(scene.addresses([hbone, behind_waypoint, legacy].map(of_workload)).len(), 3);
    assert!(matches!(scene.route("10.0.0.1:80"), Err(RouteError::Rejected(_))));
    assert!(matches!(scene.route("10.0.0.2:80"), Err(RouteError::Rejected(_))));
    assert!(matches!(scene.route("10.0.0.3:80"), Ok(Route::Plain(_))));
}

#[test]
fn what_was_not_read_of_a_rejected_workload_is_not_taken_for_absent() {
    let hbone = || wire::Workload { tunnel_protocol: 1, waypoint: Some(waypoint()), ..workload("a", 1) };
    let (name, payload) = of_workload(hbone());
    let unknown = of_workload(wire::Workload { tunnel_protocol: 7, ..workload("b", 2) });
    let refused = (0..payload.len()).filter(|cut| {
        let mut scene = Scene::new();
        // The length of the message in front of it is that of the whole.
        let rejected = !scene.addresses([(name.clone(), payload.slice(..*cut))]).is_empty();
        assert!(rejected, "cut at {cut}");
        matches!(scene.route("10.0.0.1:80"), Err(RouteError::Rejected(_)))
    });
    let after_addresses = payload.windows(4).position(|bytes| bytes == [10, 0, 0, 1]).unwrap() + 4;
    assert_eq!(refused.collect::<Vec<_>>(), (after_addresses..payload.len()).collect::<Vec<_>>());
    let mut scene = Scene::new();
    scene.addresses([unknown]);
    assert!(matches!(scene.route("10.0.0.2:80"), Err(RouteError::Rejected(_))));
}

#[test]
fn a_resource_is_removed_under_its_name_whatever_it_calls_itself() {
    let mut scene = Scene::new();
    let misnamed = |uid: &str, last| ("name".to_owned(), of_workload(workload(uid, last)).1);
    scene.addresses([misnamed("a", 1), ("service".to_owned(), of_service(service("web", 1)).1)]);
    assert_eq!((scene.state.load().workload_count(), scene.state.load().services().count()), (1, 1));
    scene.addresses([misnamed("b", 2)]);
    assert_eq!(scene.state.load().workload_count(), 1, "the name has another content now");
    scene.push(ResourceType::Address, [], &["name", "service"]);
    assert_eq!((scene.state.load().workload_count(), scene.state.load().services().count()), (0, 0));
    assert!(scene.xds.misnamed.is_empty());
}

#[test]
fn removals_tell_workloads_from_services_and_ignore_everything_else() {
    let mut scene = Scene::new();
    scene.addresses([of_workload(workload("a", 1)), of_service(service("web", 1))]);
    let before = scene.state.load();
    scene.push(ResourceType::Address, [], &["/invalid", "nothing", "c//Pod/ns/gone", "ns/other"]);
    scene.push(ResourceType::Authorization, [], &["ns/never-sent"]);
    assert!(Arc::ptr_eq(&before, &scene.state.load()), "nobody is woken for nothing");
    assert_eq!((scene.state.load().workload_count(), scene.state.load().services().count()), (1, 1));
    scene.push(ResourceType::Address, [], &["c//Pod/ns/a", "ns/web"]);
    assert_eq!((scene.state.load().workload_count(), scene.state.load().services().count()), (0, 0));
}

fn policy(name: &str, change: impl FnOnce(&mut security::Authorization)) -> (String, Bytes) {
    let mut policy = security::Authorization {
        name: name.into(),
        namespace: "ns".into(),
        scope: security::Scope::Namespace as i32,
        action: security::Action::Deny as i32,
        rules: vec![security::Rule { clauses: vec![] }],
        ..Default::default()
    };
    change(&mut policy);
    (format!("ns/{name}"), policy.encode_to_vec().into())
}

fn is_allowed(scene: &Scene) -> bool {
    let mesh = scene.state.load();
    let workload = Workload { namespace: "ns".into(), ..Workload::default() };
    let access = Access::new([10, 0, 0, 9].into(), None, "10.0.0.1:80".parse().unwrap());
    mesh.policies_for(&workload).evaluate(&access).decision.is_ok()
}

#[test]
fn policies_arrive_change_scope_and_leave_under_their_resources_name() {
    let mut scene = Scene::new();
    let push = |scene: &mut Scene, policy, removed: &[&str]| {
        scene.push(ResourceType::Authorization, policy, removed)
    };
    assert!(push(&mut scene, vec![policy("deny", |_| {})], &[]).is_empty());
    assert!(!is_allowed(&scene));
    let rejected = push(&mut scene, vec![policy("deny", |policy| policy.action = 9)], &[]);
    assert_eq!(rejected, ["ns/deny: action: decode error: unknown enumeration value 9"]);
    assert!(!is_allowed(&scene), "the last good version stays");
    let selector = |policy: &mut security::Authorization| policy.scope = 2;
    push(&mut scene, vec![policy("deny", selector)], &[]);
    assert!(is_allowed(&scene));
    push(&mut scene, vec![policy("deny", |policy| policy.name = "another".into())], &[]);
    assert!(!is_allowed(&scene));
    push(&mut scene, vec![], &["ns/deny"]);
    assert!(is_allowed(&scene));
}

#[test]
fn a_policy_that_denies_and_cannot_be_read_denies_everything_until_it_can() {
    let damaged = |change: fn(&mut security::Authorization)| {
        let (name, payload) = policy("deny", change);
        // An extension that is cut off, behind everything that matters.
        (name, Bytes::from([&payload[..], &[0x3a, 0x7f, 0x01]].concat()))
    };
    let nothing = |policy: &mut security::Authorization| policy.rules.clear();
    let mut scene = Scene::new();
    let rejected = scene.push(ResourceType::Authorization, [damaged(nothing)], &[]);
    assert!(rejected[0].starts_with("ns/deny: decode: "), "{rejected:?}");
    assert!(!is_allowed(&scene));
    assert!(scene.push(ResourceType::Authorization, [policy("deny", nothing)], &[]).is_empty());
    assert!(is_allowed(&scene), "it denies nothing after all");
    scene.push(ResourceType::Authorization, [damaged(|_| {})], &[]);
    assert!(is_allowed(&scene), "the last good version stays");

    // What may be anything is no reason to deny: a newer control plane may know actions that are not ours to take.
    let mut scene = Scene::new();
    let unknown = [policy("new", |policy| policy.action = 9), damaged(|policy| policy.action = 0)];
    assert_eq!(scene.push(ResourceType::Authorization, unknown, &[]).len(), 2);
    assert!(is_allowed(&scene));
}

#[test]
fn an_unreadable_range_denies_in_a_deny_policy_and_allows_nothing_in_an_allow_policy() {
    let nonsense = |policy: &mut security::Authorization| {
        let source_ips = vec![security::Address { address: address(&[1, 2, 3]), length: 8 }];
        let matches = vec![security::Match { source_ips, ..Default::default() }];
        policy.rules = vec![security::Rule { clauses: vec![security::Clause { matches }] }];
    };
    for action in [security::Action::Deny, security::Action::Allow] {
        let mut scene = Scene::new();
        let policy = policy("p", |policy| {
            nonsense(policy);
            policy.action = action as i32;
        });
        assert!(scene.push(ResourceType::Authorization, [policy], &[]).is_empty());
        assert!(!is_allowed(&scene), "{action:?}");
    }
}

/// What happens to one resource.
#[derive(Clone, Debug)]
enum Change {
    Workload {
        name: u8,
        address: u8,
        services: u8,
        health: i32,
    },
    Service {
        name: u8,
        address: u8,
        length: Option<u32>,
    },
    /// A version that cannot be used.
    Broken {
        name: u8,
    },
    Remove {
        name: u8,
        is_service: bool,
    },
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0..6u8, 0..4u8, 0..4u8, 0..2).prop_map(|(name, address, services, health)| Change::Workload { name, address, services, health }),
        3 => (0..4u8, 0..3u8, prop::option::of(24..33u32)).prop_map(|(name, address, length)| Change::Service { name, address, length }),
        1 => (0..6u8).prop_map(|name| Change::Broken { name }),
        2 => (0..6u8, any::<bool>()).prop_map(|(name, is_service)| Change::Remove { name, is_service }),
    ]
}

fn hostname(number: u8) -> String {
    format!("host-{number}")
}

impl Change {
    fn resource(&self) -> Option<(String, Bytes)> {
        Some(match self {
            Self::Workload { name, address, services, health } => {
                let named = (0..3).filter(|bit| services & (1 << bit) != 0);
                of_workload(wire::Workload {
                    services: named
                        .map(|bit| (format!("ns/{}", hostname(bit)), ports(&[(80, 8080)])))
                        .collect(),
                    status: *health,
                    ..workload(&name.to_string(), *address)
                })
            }
            Self::Service { name, address, length } => of_service(wire::Service {
                addresses: vec![vip(*address, *length)],
                ..service(&hostname(*name), 0)
            }),
            Self::Broken { name } => {
                of_workload(wire::Workload { network_mode: 9, ..workload(&name.to_string(), 1) })
            }
            Self::Remove { .. } => return None,
        })
    }

    fn removed(&self) -> Option<String> {
        match self {
            Self::Remove { name, is_service: true } => Some(format!("ns/{}", hostname(*name))),
            Self::Remove { name, is_service: false } => Some(format!("c//Pod/ns/{name}")),
            _ => None,
        }
    }
}

/// Everything that can be asked of a mesh, in words.
fn everything(mesh: &Mesh) -> Vec<String> {
    let mut answers: Vec<String> =
        mesh.workloads().map(|workload: &Arc<Workload>| format!("{workload:?}")).collect();
    answers.extend(mesh.services().map(|service: &Arc<Service>| {
        let endpoints = mesh
            .endpoints(service)
            .map(|endpoint| format!("{} {:?}", endpoint.workload.uid, endpoint.health));
        format!("{service:?} {:?}", endpoints.collect::<Vec<_>>())
    }));
    answers.extend(
        mesh.staged_services().map(|(host, endpoints)| format!("staged {host} {}", endpoints.count())),
    );
    answers.sort();
    for last in 0..4 {
        for address in [IpAddr::from([10, 0, 0, last]), IpAddr::from([10, 96, 0, last])] {
            answers.push(format!("{address} {:?}", mesh.find_address("", address, Some("ns"))));
        }
    }
    answers
}

proptest! {
    /// The naive way: keep the last good version of each resource, and apply those alone.
    #[test]
    fn any_history_leads_to_the_mesh_of_its_final_snapshot(
        history in prop::collection::vec(prop::collection::vec(change(), 0..6), 0..12),
        order in any::<u64>(),
    ) {
        let mut scene = Scene::new();
        let mut last_good: BTreeMap<String, Bytes> = BTreeMap::new();
        for response in &history {
            let updates: Vec<_> = response.iter().filter_map(Change::resource).collect();
            let removals: Vec<_> = response.iter().filter_map(Change::removed).collect();
            let removed: Vec<_> = removals.iter().map(String::as_str).collect();
            let rejected = scene.push(ResourceType::Address, updates, &removed);
            let broken = response.iter().filter(|change| matches!(change, Change::Broken { .. })).count();
            prop_assert_eq!(rejected.len(), broken);
            for change in response.iter().filter(|change| !matches!(change, Change::Broken { .. })) {
                last_good.extend(change.resource());
            }
            last_good.retain(|name, _| !removals.contains(name));
        }
        let mut snapshot: Vec<_> = last_good.into_iter().collect();
        Rng::with_seed(order).shuffle(&mut snapshot);
        let mut fresh = Scene::new();
        prop_assert!(fresh.addresses(snapshot).is_empty());
        prop_assert_eq!(everything(&scene.state.load()), everything(&fresh.state.load()));
    }
}
