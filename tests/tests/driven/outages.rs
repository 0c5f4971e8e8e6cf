//! The control plane comes and goes, and traffic does not notice.

use std::time::Duration;

use lab::istiod::{from_pod, pod_uid, policy};
use lab::{Ack, BackendChoice, Driven, DrivenOptions, Flow};
use tonic::Code;
use xds_client::ResourceType::{Address, Authorization};
use xds_client::security::{Action, Scope};

use crate::{VIP, answers, cut, echo};

#[test]
fn fifty_restarts_of_istiod_under_traffic_harm_no_connection_and_lose_no_change() {
    const ROUNDS: u64 = 50;
    let scene = Driven::new().unwrap();
    let echo = echo(&scene.server);
    let flow = Flow::start(&scene.client, echo.ipv4()).unwrap();
    let deny = policy("no-neighbour", Scope::Namespace, Action::Deny, vec![from_pod(&scene.neighbour)]);
    let streams = scene.istiod.streams_so_far();
    for round in 1..=ROUNDS {
        scene.istiod.stop().unwrap();
        scene
            .istiod
            .edit(|world| {
                // The neighbour is let in again in every other round, and the service is there in the others.
                if round % 2 == 0 {
                    world.remove_policy("no-neighbour");
                    world.service("web", &[VIP], (80, 8080), &[&scene.server])
                } else {
                    world.set_policy(&deny);
                    world.remove_service("web");
                    Ok(())
                }
            })
            .unwrap();
        scene.istiod.listen().unwrap();
        scene.istiod.wait_for_streams(streams + 2 * round).unwrap();
    }
    scene.wait_synchronized().unwrap();
    let flowed = flow.stop_whole().unwrap();
    assert!(answers(&scene.neighbour, echo.ipv4()), "the policy is gone");
    assert!(answers(&scene.client, (VIP, 80).into()), "the service is there");
    assert_eq!(scene.istiod.nacks(), Vec::<String>::new());
    for node in [&scene.east, &scene.west] {
        let ended = node.ztunnel().unwrap().metric("istio_xds_connection_terminations_total", "").unwrap();
        assert!(ended >= ROUNDS as f64, "{ended} ends of streams are counted");
        let failed = |line: &lab::AccessLine| line.message == "connection failed";
        let lines = node.ztunnel().unwrap().access_lines();
        assert!(!lines.iter().any(failed), "{flowed:?}");
    }
}

#[test]
fn traffic_and_new_connections_go_on_while_istiod_is_down() {
    let scene = Driven::with(&DrivenOptions::default(), |world, _| {
        let deny =
            policy("no-outsider", Scope::Namespace, Action::Deny, vec![lab::istiod::without_identity()]);
        world.set_policy(&deny);
        Ok(())
    })
    .unwrap();
    let echo = echo(&scene.server);
    for pod in [&scene.client, &scene.neighbour, &scene.server] {
        scene.istiod.ca().wait_issued(&pod.identity(), 1).unwrap();
    }
    let flow = Flow::start(&scene.client, echo.ipv4()).unwrap();
    scene.istiod.stop().unwrap();
    // The neighbour has no tunnel yet.
    for _ in 0..20 {
        assert!(answers(&scene.neighbour, echo.ipv4()));
        assert!(cut(&scene.outsider, echo.ipv4()), "policies stay in force");
    }
    scene.istiod.edit(|world| world.remove_policy("no-outsider"));
    scene.istiod.listen().unwrap();
    lab::wait_until(|| answers(&scene.outsider, echo.ipv4())).unwrap();
    scene.wait_synchronized().unwrap();
    flow.stop_whole().unwrap();
}

#[test]
fn a_proxy_that_starts_while_istiod_is_down_becomes_ready_when_it_is_there() {
    let mut scene = Driven::prepare(&DrivenOptions::default()).unwrap();
    for node in [&mut scene.east, &mut scene.west] {
        node.start().unwrap();
    }
    let west = scene.west.ztunnel().unwrap();
    lab::wait_until(|| west.readiness().is_ok_and(|(status, _)| status == 500)).unwrap();
    // Until it has tried in vain at least once.
    west.wait_for_log("no stream to the control plane").unwrap();
    assert_eq!(west.readiness().unwrap().0, 500);
    let process = west.process().id();
    scene.istiod.listen().unwrap();
    scene.wait_ready().unwrap();
    assert_eq!(scene.west.ztunnel().unwrap().process().id(), process);
    let echo = echo(&scene.server);
    assert!(answers(&scene.client, echo.ipv4()));
}

#[test]
fn connections_that_istiod_sheds_are_made_again_without_harm() {
    let scene = Driven::new().unwrap();
    let echo = echo(&scene.server);
    let flow = Flow::start(&scene.client, echo.ipv4()).unwrap();
    for _ in 0..3 {
        let streams = scene.istiod.streams_so_far();
        // As at the age of half an hour.
        scene.istiod.go_away(Duration::from_millis(500));
        scene.istiod.wait_for_streams(streams + 2).unwrap();
        scene.wait_synchronized().unwrap();
    }
    flow.stop_whole().unwrap();
    scene.push(|world| world.service("web", &[VIP], (80, 8080), &[&scene.server])).unwrap().unwrap();
    assert!(answers(&scene.client, (VIP, 80).into()));
}

#[test]
fn however_a_stream_ends_the_next_one_tells_what_is_known_and_gets_only_what_is_new() {
    let scene = Driven::new().unwrap();
    let echo = echo(&scene.server);
    let deny = policy("no-neighbour", Scope::Namespace, Action::Deny, vec![from_pod(&scene.neighbour)]);
    scene.push(|world| world.set_policy(&deny)).unwrap();
    let known: Vec<_> = [&scene.client, &scene.neighbour, &scene.outsider, &scene.server]
        .iter()
        .map(|pod| pod_uid(pod))
        .map(|uid| (uid.clone(), scene.istiod.read(|world| world.version(Address, &uid).unwrap().to_owned())))
        .collect();
    for code in [Code::Ok, Code::Unavailable, Code::Unknown, Code::Aborted, Code::Internal, Code::Cancelled] {
        let streams = scene.istiod.streams_so_far();
        scene.istiod.close_streams(code, "as told");
        scene.istiod.wait_for_streams(streams + 2).unwrap();
        scene.wait_synchronized().unwrap();
        for proxy in ["ztunnel-east", "ztunnel-west"] {
            let first = scene.istiod.first_request(proxy, Address).unwrap();
            assert!(first.stream > streams, "{code:?}");
            let told: Vec<_> = first.request.initial_resource_versions.into_iter().collect();
            assert_eq!(told, known, "{code:?}");
            assert!(first.request.node.is_some() && first.request.response_nonce.is_empty());
            let first = scene.istiod.first_request(proxy, Authorization).unwrap();
            let told = first.request.initial_resource_versions.into_keys().collect::<Vec<_>>();
            assert_eq!(told, ["default/no-neighbour"], "{code:?}");
        }
        assert!(answers(&scene.client, echo.ipv4()) && cut(&scene.neighbour, echo.ipv4()), "{code:?}");
    }
}

#[test]
fn what_was_removed_while_the_stream_was_down_is_forgotten() {
    let scene = Driven::new().unwrap();
    let late = scene.west.node.pod("late").unwrap();
    assert_eq!(scene.west.agent.enrol(&late, BackendChoice::Nftables).unwrap(), Ack::Accepted);
    let echo = echo(&late);
    scene.push(|world| world.enrol(&late)).unwrap();
    assert!(answers(&scene.client, echo.ipv4()));
    let streams = scene.istiod.streams_so_far();
    scene.istiod.stop().unwrap();
    assert!(answers(&scene.client, echo.ipv4()), "nothing is forgotten when a stream ends");
    scene.istiod.edit(|world| world.remove_pod(&late));
    scene.istiod.listen().unwrap();
    scene.istiod.wait_for_streams(streams + 2).unwrap();
    scene.wait_synchronized().unwrap();
    lab::wait_until(|| !answers(&scene.client, echo.ipv4())).unwrap();
}

#[test]
fn an_istiod_that_accepts_streams_and_says_nothing_harms_nobody() {
    let scene = Driven::new().unwrap();
    let echo = echo(&scene.server);
    // Both have their certificates: the calls for them would be cut too.
    assert!(answers(&scene.client, echo.ipv4()) && answers(&scene.neighbour, echo.ipv4()));
    for kind in [Address, Authorization] {
        scene.istiod.hold(kind);
    }
    let streams = scene.istiod.streams_so_far();
    scene.istiod.cut();
    scene.istiod.wait_for_streams(streams + 2).unwrap();
    let flow = Flow::start(&scene.client, echo.ipv4()).unwrap();
    assert!(answers(&scene.neighbour, echo.ipv4()));
    for node in [&scene.east, &scene.west] {
        assert_eq!(node.ztunnel().unwrap().readiness().unwrap().0, 200);
    }
    for kind in [Address, Authorization] {
        scene.istiod.release(kind);
    }
    scene.wait_synchronized().unwrap();
    flow.stop_whole().unwrap();
}

#[test]
fn an_istiod_that_refuses_streams_for_a_while_is_asked_again() {
    let mut scene = Driven::prepare(&DrivenOptions::default()).unwrap();
    scene.istiod.refuse_streams(Code::Unknown, "server is not ready to serve discovery information");
    scene.istiod.listen().unwrap();
    scene.east.start().unwrap();
    scene.west.start().unwrap();
    let several = |refusals: usize| scene.istiod.refusals().len() >= refusals;
    lab::wait_until(|| several(6)).unwrap();
    assert_eq!(scene.west.ztunnel().unwrap().readiness().unwrap().0, 500);
    scene.istiod.accept_streams();
    scene.wait_ready().unwrap();
    // With growing pauses between: 20 ms, 40 ms, and so on, so that few fit into the time of a test.
    assert!(!several(40), "{} refusals", scene.istiod.refusals().len());
}
