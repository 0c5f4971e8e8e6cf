//! Tokens and roots of trust, wrong, late and replaced.

use lab::istiod::{Caller, ScriptedCa};
use lab::{Dial, Driven, DrivenNode, DrivenOptions, Flow};
use tonic::Code;
use xds_client::ResourceType::Address;

use crate::{VIP, answers, echo};

/// Ends all connections to istiod and waits until both proxies are back.
fn reconnect(scene: &Driven) {
    let streams = scene.istiod.streams_so_far();
    scene.istiod.cut();
    scene.istiod.wait_for_streams(streams + 2).unwrap();
    scene.wait_synchronized().unwrap();
}

/// The token of the proxy's newest stream.
fn token_in_use(scene: &Driven, node: &DrivenNode) -> String {
    let first = scene.istiod.first_request(&node.control.pod, Address).unwrap();
    let header = first.headers.into_iter().find(|(key, _)| key == "authorization").unwrap().1;
    header.strip_prefix("Bearer ").unwrap().to_owned()
}

#[test]
fn a_proxy_with_a_wrong_token_is_refused_and_with_the_right_one_is_ready_without_a_restart() {
    let mut scene = Driven::prepare(&DrivenOptions::default()).unwrap();
    scene.istiod.listen().unwrap();
    for wrong in [&scene.east, &scene.west] {
        wrong.control.write_token("a-wrong-token").unwrap();
    }
    scene.east.start().unwrap();
    scene.west.start().unwrap();
    let refusal = scene.istiod.wait_refused(0, Code::Unauthenticated).unwrap();
    assert_eq!(refusal.message, "authentication failure");
    assert_eq!(scene.istiod.streams_so_far(), 0);
    let processes = [&scene.east, &scene.west].map(|node| node.ztunnel().unwrap().process().id());
    for node in [&scene.east, &scene.west] {
        // With a newline at the end, as an editor leaves it.
        node.control.write_token(&format!("token-of-{}\n", node.control.pod)).unwrap();
    }
    scene.wait_ready().unwrap();
    assert_eq!([&scene.east, &scene.west].map(|node| node.ztunnel().unwrap().process().id()), processes);
    let echo = echo(&scene.server);
    assert!(answers(&scene.client, echo.ipv4()));
    for node in [&scene.east, &scene.west] {
        let output = node.ztunnel().unwrap().output();
        assert!(!output.contains("a-wrong-token") && !output.contains("token-of-"), "a token in the log");
    }
}

#[test]
fn a_replaced_token_is_used_for_the_next_call() {
    let scene = Driven::new().unwrap();
    let echo = echo(&scene.server);
    let flow = Flow::start(&scene.client, echo.ipv4()).unwrap();
    for round in 0..3 {
        for node in [&scene.east, &scene.west] {
            let old = token_in_use(&scene, node);
            let new = format!("token-{round}-of-{}", node.control.pod);
            scene.istiod.accept_token(&new, Caller::node_proxy(Some(node.node.name())));
            node.control.write_token(&new).unwrap();
            scene.istiod.refuse_token(&old);
        }
        reconnect(&scene);
        for node in [&scene.east, &scene.west] {
            assert_eq!(token_in_use(&scene, node), format!("token-{round}-of-{}", node.control.pod));
        }
    }
    flow.stop_whole().unwrap();
}

#[test]
fn a_token_file_that_vanishes_or_is_empty_for_a_while_keeps_nobody_out_for_good() {
    let scene = Driven::new().unwrap();
    let (node, token) = (&scene.west, token_in_use(&scene, &scene.west));
    for empty in [false, true] {
        if empty {
            node.control.write_token("").unwrap();
        } else {
            std::fs::remove_file(node.control.token()).unwrap();
        }
        let streams = scene.istiod.streams_so_far();
        scene.istiod.cut();
        // The other proxy is back, this one has nothing to show.
        scene.istiod.wait_for_streams(streams + 1).unwrap();
        lab::wait_until(|| scene.istiod.streams().iter().all(|(_, proxy)| *proxy == "ztunnel-east")).unwrap();
        node.control.write_token(&token).unwrap();
        scene.istiod.wait_for_streams(streams + 2).unwrap();
        scene.wait_synchronized().unwrap();
    }
}

/// Replaces istiod's root in three steps; after each, the proxies get its roots and connect anew.
#[test]
fn a_replaced_file_of_roots_is_used_for_the_next_connection() {
    let scene = Driven::new().unwrap();
    let echo = echo(&scene.server);
    let flow = Flow::start(&scene.client, echo.ipv4()).unwrap();
    let steps: [fn(&ScriptedCa<'_>); 3] =
        [|ca| ca.add_root().unwrap(), |ca| ca.issue_from_newest_root(), |ca| ca.retire_older_roots()];
    for step in steps {
        step(&scene.istiod.ca());
        scene.write_roots().unwrap();
        reconnect(&scene);
    }
    flow.stop_whole().unwrap();
    scene.push(|world| world.service("web", &[VIP], (80, 8080), &[&scene.server])).unwrap().unwrap();
    assert!(answers(&scene.client, (VIP, 80).into()));
}

#[test]
fn a_proxy_that_does_not_trust_istiod_or_has_no_roots_yet_waits_for_them() {
    let mut scene = Driven::prepare(&DrivenOptions::default()).unwrap();
    let roots = scene.istiod.ca().roots();
    scene.istiod.ca().add_root().unwrap();
    scene.istiod.ca().issue_from_newest_root();
    scene.istiod.listen().unwrap();
    // East trusts only the old root, west has no file at all.
    scene.east.control.write_roots(&roots).unwrap();
    std::fs::remove_file(scene.west.control.roots()).unwrap();
    scene.east.start().unwrap();
    scene.west.start().unwrap();
    for node in [&scene.east, &scene.west] {
        let ztunnel = node.ztunnel().unwrap();
        lab::wait_until(|| ztunnel.readiness().is_ok_and(|(status, _)| status == 500)).unwrap();
        ztunnel.wait_for_log("no stream to the control plane").unwrap();
        assert_eq!(ztunnel.readiness().unwrap().0, 500);
    }
    assert_eq!(scene.istiod.streams_so_far(), 0);
    scene.write_roots().unwrap();
    scene.wait_ready().unwrap();
}

#[test]
fn istiod_can_be_dialled_by_its_address() {
    let mut scene = Driven::prepare(&DrivenOptions::default()).unwrap();
    scene.istiod.listen().unwrap();
    scene.east.control.dial = Dial::Address;
    scene.start().unwrap();
    let echo = echo(&scene.server);
    assert!(answers(&scene.client, echo.ipv4()));
}
