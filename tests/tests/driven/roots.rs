//! The roots of the mesh are replaced while it runs.

use std::time::Duration;

use lab::istiod::ScriptedCa;
use lab::{Driven, DrivenOptions, Flow};

use crate::{answers, echo};

/// The pods' certificates, after a step: all are issued anew, one by one, so that old and new ones meet.
fn wait_for_renewal(scene: &Driven) {
    let ca = scene.istiod.ca();
    let issued = |identity: &str| ca.issued_to(identity);
    let counts = scene_identities(scene).map(|identity| (issued(&identity), identity));
    for (count, identity) in counts {
        // The first of the next two may have been under way when the step was taken.
        ca.wait_issued(&identity, count + 2).unwrap();
    }
}

fn scene_identities(scene: &Driven) -> [String; 3] {
    [&scene.client, &scene.neighbour, &scene.server].map(|pod| pod.identity())
}

#[test]
fn roots_are_replaced_in_three_steps_under_traffic_without_a_failed_connection() {
    let mut scene = Driven::prepare(&DrivenOptions::default()).unwrap();
    // So that there is much to renew.
    scene.istiod.ca().lifetime(Some(Duration::from_secs(5)));
    scene.istiod.listen().unwrap();
    scene.start().unwrap();
    let [east, west] = [&scene.client, &scene.server].map(echo);
    let flows = [
        Flow::start(&scene.neighbour, west.ipv4()).unwrap(),
        Flow::start(&scene.server, east.ipv4()).unwrap(),
    ];
    let steps: [fn(&ScriptedCa<'_>); 3] =
        [|ca| ca.add_root().unwrap(), |ca| ca.issue_from_newest_root(), |ca| ca.retire_older_roots()];
    let old = scene.istiod.ca().roots();
    for step in steps {
        step(&scene.istiod.ca());
        scene.write_roots().unwrap();
        wait_for_renewal(&scene);
        // New tunnels, whatever the flows have pooled.
        assert!(answers(&scene.client, west.ipv4()));
    }
    assert!(!scene.istiod.ca().roots().contains(&old));
    for flow in flows {
        flow.stop_whole().unwrap();
    }
}

#[test]
fn a_replaced_file_of_roots_renews_certificates_long_before_they_would_be() {
    let scene = Driven::new().unwrap();
    let ca = scene.istiod.ca();
    for identity in scene_identities(&scene) {
        ca.wait_issued(&identity, 1).unwrap();
    }
    ca.add_root().unwrap();
    scene.write_roots().unwrap();
    for identity in scene_identities(&scene) {
        ca.wait_issued(&identity, 2).unwrap();
    }
    let echo = echo(&scene.server);
    assert!(answers(&scene.client, echo.ipv4()));
}
