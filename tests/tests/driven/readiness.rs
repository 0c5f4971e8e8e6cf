//! When a proxy says that it is ready.

use lab::istiod::pod_uid;
use lab::{Driven, DrivenOptions};
use xds_client::ResourceType::{Address, Authorization};

use crate::{answers, echo};

const UNREADY: &str = "not ready, pending: state manager, workload proxy manager\n";

#[test]
fn a_proxy_is_ready_when_both_types_have_come_and_the_agent_has_sent_its_snapshot() {
    let mut scene = Driven::prepare(&DrivenOptions::default()).unwrap();
    scene.istiod.hold(Authorization);
    scene.istiod.listen().unwrap();
    for node in [&mut scene.east, &mut scene.west] {
        node.start().unwrap();
    }
    let nodes = [&scene.east, &scene.west];
    for node in nodes {
        scene.istiod.wait_acked(&node.control.pod, Address).unwrap();
        assert_eq!(node.ztunnel().unwrap().readiness().unwrap(), (500, UNREADY.to_owned()));
        // The agent is dialled when the mesh is known, and not before.
        assert_eq!((node.agent.proxies(), node.agent.snapshots()), (0, 0));
    }
    scene.istiod.release(Authorization);
    scene.wait_ready().unwrap();
    for node in nodes {
        assert_eq!(node.agent.snapshots(), 1);
    }
    let echo = echo(&scene.server);
    assert!(answers(&scene.client, echo.ipv4()));
}

#[test]
fn a_proxy_that_lost_istiod_stays_ready_and_one_that_lost_its_agent_does_not() {
    let scene = Driven::new().unwrap();
    let west = scene.west.ztunnel().unwrap();
    scene.istiod.stop().unwrap();
    assert_eq!(west.readiness().unwrap().0, 200);
    scene.west.agent.stop();
    lab::wait_until(|| west.readiness().unwrap().0 == 500).unwrap();
    assert_eq!(west.readiness().unwrap().1, "not ready, pending: workload proxy manager\n");
    scene.west.agent.listen().unwrap();
    west.wait_ready().unwrap();
}

#[test]
fn a_rejected_resource_in_the_first_push_does_not_keep_a_proxy_from_becoming_ready() {
    let scene = Driven::with(&DrivenOptions::default(), |world, _| {
        world.set_raw(Address, "broken", Some(vec![0xff; 8]));
        world.set_raw(Authorization, "default/broken", Some(vec![0xff; 8]));
        Ok(())
    })
    .unwrap();
    for kind in [Address, Authorization] {
        let message = scene.istiod.wait_nacked("ztunnel-west", kind).unwrap();
        assert!(message.contains("broken: "), "{message}");
    }
    let echo = echo(&scene.server);
    assert!(answers(&scene.client, echo.ipv4()), "{} is known", pod_uid(&scene.server));
}
