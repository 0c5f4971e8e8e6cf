//! Meshes so large that naming all that is known would be more than istiod reads.

use lab::{Ack, BackendChoice, Driven, DrivenOptions, Flow};
use tonic::Code;
use xds_client::ResourceType::Address;
use xds_client::workload::Workload;

use crate::{answers, echo};

const WORKLOADS: u32 = 60_000;

/// More than this, and istiod refuses a request for ever.
const MAX_REQUEST: usize = 4 * 1024 * 1024;

/// A workload of another node, with a name of the usual length.
fn distant(index: u32) -> Workload {
    let name = format!("a-deployment-with-a-usual-name-{index:06}-5d8f7c9b6d-x2x4q");
    Workload {
        uid: format!("Kubernetes//Pod/a-namespace-with-a-usual-name/{name}"),
        name,
        namespace: "a-namespace-with-a-usual-name".to_owned(),
        addresses: vec![(0x0b00_0000 + index).to_be_bytes().to_vec().into()],
        node: "a-distant-node".to_owned(),
        ..Workload::default()
    }
}

#[test]
fn a_mesh_of_sixty_thousand_resources_survives_reconnects_and_removals_while_disconnected() {
    let scene = Driven::with(&DrivenOptions::default(), |world, _| {
        (0..WORKLOADS).for_each(|index| world.set_workload(distant(index)));
        Ok(())
    })
    .unwrap();
    let late = scene.west.node.pod("late").unwrap();
    assert_eq!(scene.west.agent.enrol(&late, BackendChoice::Nftables).unwrap(), Ack::Accepted);
    scene.push(|world| world.enrol(&late)).unwrap();
    let [server, of_late] = [&scene.server, &late].map(echo);
    assert!(answers(&scene.client, of_late.ipv4()));
    let flow = Flow::start(&scene.client, server.ipv4()).unwrap();

    let streams = scene.istiod.streams_so_far();
    scene.istiod.stop().unwrap();
    scene.istiod.edit(|world| {
        (0..WORKLOADS / 2).for_each(|index| world.remove(Address, &distant(index).uid));
        world.remove_pod(&late);
    });
    scene.istiod.listen().unwrap();
    scene.istiod.wait_for_streams(streams + 2).unwrap();
    scene.wait_synchronized().unwrap();
    for proxy in ["ztunnel-east", "ztunnel-west"] {
        let first = scene.istiod.first_request(proxy, Address).unwrap();
        assert!(first.stream > streams && first.bytes < MAX_REQUEST, "{} bytes", first.bytes);
    }
    let refused = scene.istiod.refusals();
    assert!(refused.iter().all(|refusal| refusal.code != Code::ResourceExhausted), "{refused:?}");
    lab::wait_until(|| !answers(&scene.client, of_late.ipv4())).unwrap();
    flow.stop_whole().unwrap();

    // Small enough again to be named.
    let streams = scene.istiod.streams_so_far();
    scene.istiod.cut();
    scene.istiod.wait_for_streams(streams + 2).unwrap();
    scene.wait_synchronized().unwrap();
    let first = scene.istiod.first_request("ztunnel-east", Address).unwrap();
    let named = first.request.initial_resource_versions.len();
    assert_eq!(named, scene.istiod.read(|world| world.count(Address)));
    assert!(answers(&scene.neighbour, server.ipv4()));
}
