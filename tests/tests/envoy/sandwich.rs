//! Envoy behind a proxy of the node: that one terminates and opens the tunnels, and says in a PROXY protocol header who
//! the client is.

use lab::istiod::{from_pod, policy};
use lab::traffic::Outcome;
use lab::{AccessLine, BackendChoice, Driven, DrivenOptions, Envoy, EnvoyRole};
use xds_client::security::{Action, Scope};
use xds_client::workload::{ApplicationTunnel, application_tunnel};

use crate::{APPLICATION_TUNNEL, HTTP, Scene, WEB, field};

/// A scene whose waypoint is in the mesh, on the clients' node.
fn scene() -> Scene {
    let driven = Driven::prepare(&DrivenOptions::default()).unwrap();
    let waypoint = driven.east.node.pod("waypoint").unwrap();
    lab::apply_rules(&waypoint, BackendChoice::Nftables).unwrap();
    driven.east.agent.remember(&waypoint);
    let scene = Scene { waypoint, driven }.started();
    let tunnel = ApplicationTunnel {
        protocol: application_tunnel::Protocol::Proxy.into(),
        port: APPLICATION_TUNNEL.into(),
    };
    let change = |workload: &mut xds_client::workload::Workload| workload.application_tunnel = Some(tunnel);
    scene.driven.push(|world| world.change_workload(&scene.waypoint, change)).unwrap().unwrap();
    scene
}

fn envoy(scene: &Scene) -> Envoy {
    let role = EnvoyRole::Sandwiched(APPLICATION_TUNNEL, scene.attached());
    Envoy::start(&scene.waypoint, &scene.driven.istiod, &role).unwrap()
}

#[test]
fn a_waypoint_behind_a_proxy_learns_who_the_client_is_and_where_it_was_going() {
    let scene = scene();
    let _envoy = envoy(&scene);
    let server = scene.http_server();
    let head = scene.head_seen((WEB, HTTP.0).into());
    assert_eq!(field(&head, "x-waypoint").unwrap(), "waypoint");
    assert_eq!(field(&head, "x-client-identity").unwrap(), scene.driven.client.identity());
    assert_eq!(server.peers()[0].ip(), scene.waypoint.ipv4());

    let own = scene.waypoint.identity();
    let from_waypoint = |line: &AccessLine| line.text("src.identity") == own;
    let inbound = scene.driven.west.ztunnel().unwrap().wait_for_access(from_waypoint).unwrap();
    assert_eq!(inbound.text("direction"), "inbound");
    let to_waypoint =
        |line: &AccessLine| line.text("direction") == "inbound" && line.text("dst.identity") == own;
    let inbound = scene.driven.east.ztunnel().unwrap().wait_for_access(to_waypoint).unwrap();
    assert_eq!(inbound.text("dst.hbone_addr"), format!("{WEB}:{}", HTTP.0), "{inbound:?}");
    assert_eq!(inbound.text("src.identity"), scene.driven.client.identity());
}

#[test]
fn a_waypoint_behind_a_proxy_does_not_go_through_itself_again() {
    let scene = scene();
    let _envoy = envoy(&scene);
    let server = scene.http_server();
    let change = |workload: &mut xds_client::workload::Workload| {
        workload.waypoint = Some(lab::istiod::waypoint("way"));
    };
    let only = policy("only-waypoint", Scope::Namespace, Action::Allow, vec![from_pod(&scene.waypoint)]);
    scene.driven.push(|world| world.change_workload(&scene.driven.server, change)).unwrap().unwrap();
    let head = scene.head_seen(scene.driven.server.at(HTTP.1));
    assert_eq!(head.matches("x-waypoint: ").count(), 1, "{head}");
    assert_eq!(server.accepted(), 1);

    // The policy is judged at the waypoint too, where the client is somebody else.
    scene.driven.push(|world| world.set_policy(&only)).unwrap();
    assert_eq!(scene.outcome(scene.driven.server.at(HTTP.1)), Outcome::Cut);
    assert_eq!(server.accepted(), 1);
}

#[test]
fn nothing_reaches_a_service_while_the_waypoint_behind_its_proxy_is_gone() {
    let scene = scene();
    let mut envoy = envoy(&scene);
    let server = scene.http_server();
    envoy.kill();
    assert_eq!(scene.outcome((WEB, HTTP.0).into()), Outcome::Cut);
    assert_eq!(server.accepted(), 0);
    envoy.restart().unwrap();
    scene.head_seen((WEB, HTTP.0).into());
}
