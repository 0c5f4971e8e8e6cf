//! Proxies that ask for what they need when they need it (`XDS_ON_DEMAND`).

use lab::{Driven, DrivenOptions, ZtunnelOptions};
use xds_client::ResourceType::Address;

use crate::{VIP, answers, echo};

fn options() -> DrivenOptions {
    let ztunnel = ZtunnelOptions::default().variable("XDS_ON_DEMAND", "true");
    DrivenOptions { ztunnel, ..DrivenOptions::default() }
}

#[test]
fn a_proxy_on_demand_asks_for_a_peer_by_its_address_when_it_is_dialled() {
    let scene = Driven::with(&options(), |_, _| Ok(())).unwrap();
    let first = scene.istiod.first_request("ztunnel-east", Address).unwrap().request;
    assert_eq!(
        (first.resource_names_subscribe, first.resource_names_unsubscribe),
        (vec!["*".to_owned()], vec!["*".to_owned()])
    );
    let asked = scene.istiod.demands();
    assert!(!asked.iter().any(|demand| demand.proxy == "ztunnel-east"), "{asked:?}");

    let echo = echo(&scene.server);
    assert!(answers(&scene.client, echo.ipv4()));
    scene.istiod.wait_demanded("ztunnel-east", &format!("/{}", scene.server.ipv4())).unwrap();
    // The server's proxy has to know who the outsider is not.
    assert!(answers(&scene.outsider, echo.ipv4()));
    let through_tunnel = |line: &lab::AccessLine| line.text("src.identity") == scene.client.identity();
    scene.west.ztunnel().unwrap().wait_for_access(through_tunnel).unwrap();
}

#[test]
fn a_proxy_on_demand_gets_a_service_with_its_replicas_and_is_told_of_their_changes() {
    let scene = Driven::with(&options(), |world, server| world.service("web", &[VIP], (80, 8080), &[server]))
        .unwrap();
    let [first, second] = [&scene.server, &scene.neighbour].map(echo);
    let target = (VIP, 80).into();
    assert!(answers(&scene.client, target));
    scene.istiod.wait_demanded("ztunnel-east", &format!("/{VIP}")).unwrap();
    assert_eq!(first.accepted(), 1);
    scene
        .push(|world| {
            world.change_workload(&scene.server, |workload| workload.services.clear())?;
            world.service("web", &[VIP], (80, 8080), &[&scene.neighbour])
        })
        .unwrap()
        .unwrap();
    assert!(answers(&scene.client, target));
    assert_eq!((first.accepted(), second.accepted()), (1, 1));
}

#[test]
fn an_address_that_istiod_does_not_know_is_asked_for_once_and_passed_through_each_time() {
    let scene = Driven::with(&options(), |_, _| Ok(())).unwrap();
    let stranger = scene.west.node.pod("stranger").unwrap();
    let echo = echo(&stranger);
    for _ in 0..5 {
        assert!(answers(&scene.client, echo.ipv4()));
    }
    let name = format!("/{}", stranger.ipv4());
    let demands = scene.istiod.demands();
    let asked = demands
        .iter()
        .filter(|demand| demand.proxy == "ztunnel-east" && demand.names.contains(&name))
        .count();
    assert_eq!(asked, 1, "{demands:?}");
}

#[test]
fn names_asked_for_are_asked_for_again_after_a_reconnect() {
    let scene = Driven::with(&options(), |_, _| Ok(())).unwrap();
    let server = echo(&scene.server);
    assert!(answers(&scene.client, server.ipv4()));
    let streams = scene.istiod.streams_so_far();
    scene.istiod.stop().unwrap();
    // Known is known, and what is not cannot be found out.
    assert!(answers(&scene.client, server.ipv4()));
    scene.istiod.edit(|world| world.remove_pod(&scene.server));
    scene.istiod.listen().unwrap();
    scene.istiod.wait_for_streams(streams + 2).unwrap();
    scene.wait_synchronized().unwrap();
    lab::wait_until(|| !answers(&scene.client, server.ipv4())).unwrap();
    scene.push(|world| world.enrol(&scene.server)).unwrap();
    lab::wait_until(|| answers(&scene.client, server.ipv4())).unwrap();
}
