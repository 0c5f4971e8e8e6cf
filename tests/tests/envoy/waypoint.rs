//! Envoy terminates tunnels of the client's proxy and opens its own to the server's.

use lab::istiod::{from_pod, policy, waypoint as waypoint_service};
use lab::traffic::Outcome;
use lab::{AccessLine, Envoy, Flow, OpenConnection};
use xds_client::security::{Action, Scope};
use xds_client::workload::gateway_address::Destination;
use xds_client::workload::{GatewayAddress, NetworkAddress};

use crate::{HTTP, RAW, Scene, WEB, field};

/// The line of the server's proxy about what came from the waypoint.
fn from_waypoint(scene: &Scene) -> AccessLine {
    let identity = scene.waypoint.identity();
    let select = |line: &AccessLine| line.text("src.identity") == identity;
    scene.driven.west.ztunnel().unwrap().wait_for_access(select).unwrap()
}

#[test]
fn requests_for_a_service_reach_the_server_by_way_of_its_waypoint() {
    let scene = Scene::new();
    let _envoy = scene.envoy();
    let server = scene.http_server();
    let head = scene.head_seen((WEB, HTTP.0).into());
    assert_eq!(field(&head, "x-waypoint").unwrap(), "waypoint");
    assert_eq!(field(&head, "x-client-identity").unwrap(), scene.driven.client.identity());
    assert_eq!(server.peers()[0].ip(), scene.waypoint.ipv4(), "the server sees the waypoint as its client");

    let inbound = from_waypoint(&scene);
    assert_eq!((inbound.message.as_str(), inbound.text("direction")), ("connection complete", "inbound"));
    assert_eq!(inbound.text("src.workload"), "waypoint", "{inbound:?}");
    assert_eq!(inbound.text("dst.hbone_addr"), scene.driven.server.at(HTTP.1).to_string(), "{inbound:?}");

    let outbound = |line: &AccessLine| line.text("direction") == "outbound";
    let outbound = scene.driven.east.ztunnel().unwrap().wait_for_access(outbound).unwrap();
    assert_eq!(outbound.text("dst.addr"), scene.waypoint.at(15008).to_string(), "{outbound:?}");
    assert_eq!(outbound.text("dst.hbone_addr"), format!("{WEB}:{}", HTTP.0), "{outbound:?}");
    assert_eq!(outbound.text("dst.identity"), scene.waypoint.identity(), "{outbound:?}");
    assert_eq!(outbound.text("dst.service"), "web.default.svc.cluster.local", "{outbound:?}");
}

#[test]
fn a_policy_for_the_waypoint_alone_holds_against_everybody_else() {
    let scene = Scene::new();
    let _envoy = scene.envoy();
    let server = scene.http_server();
    let direct = scene.driven.server.at(HTTP.1);
    assert!(matches!(scene.outcome(direct), Outcome::Answered(_)));

    let only =
        policy("only-waypoint", Scope::WorkloadSelector, Action::Allow, vec![from_pod(&scene.waypoint)]);
    scene
        .driven
        .push(|world| {
            world.set_policy(&only);
            world.change_workload(&scene.driven.server, |workload| {
                workload.authorization_policies.push("default/only-waypoint".to_owned());
            })
        })
        .unwrap()
        .unwrap();
    let before = server.accepted();
    assert_eq!(scene.outcome(direct), Outcome::Cut);
    let refused = |line: &AccessLine| line.text("error").contains("allow policies exist, but none allowed");
    let line = scene.driven.west.ztunnel().unwrap().wait_for_access(refused).unwrap();
    assert_eq!(line.text("src.identity"), scene.driven.client.identity());
    let answer =
        |line: &AccessLine| line.text("direction") == "outbound" && line.text("error").contains("401");
    scene.driven.east.ztunnel().unwrap().wait_for_access(answer).unwrap();
    assert_eq!(server.accepted(), before, "nothing got past the policy");

    let head = scene.head_seen((WEB, HTTP.0).into());
    assert_eq!(field(&head, "x-waypoint").unwrap(), "waypoint");
}

#[test]
fn the_waypoint_of_a_workload_may_be_named_by_address_or_by_hostname() {
    let scene = Scene::new();
    let envoy = scene.envoy();
    let server = scene.http_server();
    let (pod, direct) =
        (&scene.driven.server, [scene.driven.server.at(HTTP.1), scene.driven.server.at_ipv6(HTTP.1)]);
    let by_address = GatewayAddress {
        destination: Some(Destination::Address(NetworkAddress {
            address: scene.waypoint.ipv4().octets().to_vec().into(),
            ..NetworkAddress::default()
        })),
        hbone_mtls_port: 15008,
    };
    for waypoint in [by_address, waypoint_service("way")] {
        let change =
            |workload: &mut xds_client::workload::Workload| workload.waypoint = Some(waypoint.clone());
        scene.driven.push(|world| world.change_workload(pod, change)).unwrap().unwrap();
        for target in direct {
            let head = scene.head_seen(target);
            assert_eq!(field(&head, "x-waypoint").unwrap(), "waypoint", "{waypoint:?} {target}");
            assert_eq!(field(&head, "x-client-identity").unwrap(), scene.driven.client.identity());
        }
    }
    let own = scene.waypoint.addresses();
    assert!(server.peers().iter().all(|peer| own.contains(&peer.ip())), "{:?}", server.peers());
    assert_eq!(server.accepted(), 4);
    assert_eq!(envoy.faults().unwrap(), Vec::<String>::new());
}

#[test]
fn a_restarted_waypoint_is_used_again_and_what_it_carried_has_ended() {
    let scene = Scene::new();
    let mut envoy = scene.envoy();
    let _server = crate::transfers::echo(&scene);
    let target = (WEB, RAW.0).into();
    for graceful in [false, true] {
        let held = OpenConnection::open(&scene.driven.client, target).unwrap();
        let flow = Flow::start(&scene.driven.client, target).unwrap();
        if graceful {
            envoy.stop().unwrap();
        }
        envoy.restart().unwrap();
        held.wait_until_cut().unwrap();
        // New connections work, the first one of them too: the tunnel that died is not handed out.
        lab::wait_until(|| lab::hello(&scene.driven.client, target).unwrap() == Outcome::answered("hello"))
            .unwrap();
        for _ in 0..20 {
            assert_eq!(lab::hello(&scene.driven.client, target).unwrap(), Outcome::answered("hello"));
        }
        // Its clients have seen the interruption, and have gone on after it.
        let flowed = flow.stop().unwrap();
        assert!(!flowed.failures.is_empty(), "connections outlived their waypoint: {flowed:?}");
        OpenConnection::open(&scene.driven.client, target).unwrap();
    }
}

#[test]
fn without_its_waypoint_nothing_reaches_a_service() {
    let scene = Scene::new();
    let mut envoy = Envoy::prepare(&scene.waypoint, &scene.driven.istiod, &scene.role()).unwrap();
    let server = scene.http_server();
    let target = (WEB, HTTP.0).into();
    assert_eq!(scene.outcome(target), Outcome::Cut);
    let refused = |line: &AccessLine| line.text("direction") == "outbound" && line.get("error").is_some();
    let line = scene.driven.east.ztunnel().unwrap().wait_for_access(refused).unwrap();
    assert!(line.text("error").contains("refused"), "{line:?}");
    assert_eq!(server.accepted(), 0);

    envoy.restart().unwrap();
    scene.head_seen(target);
    envoy.kill();
    for _ in 0..3 {
        assert_eq!(scene.outcome(target), Outcome::Cut);
    }
    assert_eq!(server.peers().iter().map(|peer| peer.ip()).collect::<Vec<_>>(), [scene.waypoint.ipv4()]);
}

#[test]
fn what_a_waypoint_is_not_for_it_closes() {
    let scene = Scene::new();
    let _envoy = scene.envoy();
    let server = scene.http_server();
    // A port of the service that the waypoint has not been told of.
    let port =
        xds_client::workload::Port { service_port: 81, target_port: HTTP.1.into(), ..Default::default() };
    scene
        .driven
        .push(|world| world.change_service("web", |service| service.ports.push(port)))
        .unwrap()
        .unwrap();
    assert_eq!(scene.outcome((WEB, 81).into()), Outcome::Cut);
    assert_eq!(server.accepted(), 0);
    scene.head_seen((WEB, HTTP.0).into());
}
