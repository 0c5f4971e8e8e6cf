//! The certificate authority fails, hangs and issues nonsense.

use std::time::{Duration, SystemTime};

use lab::istiod::{CaBehaviour, CaRequest};
use lab::{Driven, DrivenOptions, Flow};
use tonic::Code;

use crate::{answers, cut, echo};

/// Requests for the identity.
fn requests(scene: &Driven, identity: &str) -> Vec<CaRequest> {
    scene.istiod.ca().requests().into_iter().filter(|request| request.identity == identity).collect()
}

#[test]
fn certificates_of_a_few_seconds_are_renewed_under_traffic() {
    let mut scene = Driven::prepare(&DrivenOptions::default()).unwrap();
    scene.istiod.ca().lifetime(Some(Duration::from_secs(4)));
    scene.istiod.listen().unwrap();
    scene.start().unwrap();
    let echo = echo(&scene.server);
    let flow = Flow::start(&scene.client, echo.ipv4()).unwrap();
    for pod in [&scene.client, &scene.server] {
        scene.istiod.ca().wait_issued(&pod.identity(), 5).unwrap();
    }
    // Its first tunnel, with certificates of which none is from the beginning.
    assert!(answers(&scene.neighbour, echo.ipv4()));
    flow.stop_whole().unwrap();
}

#[test]
fn certificates_serve_until_they_expire_while_the_authority_is_down_and_not_after() {
    let mut scene = Driven::prepare(&DrivenOptions::default()).unwrap();
    let ca = scene.istiod.ca();
    ca.lifetime(Some(Duration::from_secs(12)));
    scene.istiod.listen().unwrap();
    for node in [&mut scene.east, &mut scene.west] {
        node.start().unwrap();
    }
    scene.wait_ready().unwrap();
    let ca = scene.istiod.ca();
    let pods = [&scene.client, &scene.neighbour, &scene.server];
    for pod in pods {
        ca.wait_issued(&pod.identity(), 1).unwrap();
    }
    ca.behave(CaBehaviour::Fail(Code::Unavailable, "down".to_owned()));
    let echo = echo(&scene.server);
    // A request is under way from half of the life on. The client has its first tunnel after it has failed.
    let failed = |requests: &[CaRequest]| {
        let refused = |request: &&CaRequest| request.outcome == Some(Code::Unavailable);
        let identities: std::collections::BTreeSet<_> =
            requests.iter().filter(refused).map(|request| &request.identity).collect();
        (identities.len() == pods.len()).then_some(())
    };
    ca.wait_requests("every renewal to fail", failed).unwrap();
    let usable = pods.iter().map(|pod| ca.expiry(&pod.identity()).unwrap()).min().unwrap();
    let served = answers(&scene.client, echo.ipv4());
    // On a machine so busy that they have expired by now, there is nothing to be learnt from that.
    assert!(served || SystemTime::now() >= usable, "certificates are refused before they expire");

    let expired = pods.iter().map(|pod| ca.expiry(&pod.identity()).unwrap()).max().unwrap();
    while SystemTime::now() <= expired + Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(cut(&scene.neighbour, echo.ipv4()), "it has no tunnel yet, and may not make one");
    assert!(requests(&scene, &scene.neighbour.identity()).len() < 30, "asked for without pause");

    ca.behave(CaBehaviour::Issue);
    ca.lifetime(None);
    lab::wait_until(|| answers(&scene.neighbour, echo.ipv4())).unwrap();
    lab::wait_until(|| answers(&scene.client, echo.ipv4())).unwrap();
}

#[test]
fn a_call_that_hangs_for_one_identity_keeps_no_other_waiting_and_is_given_up() {
    let mut scene = Driven::prepare(&DrivenOptions::default()).unwrap();
    let hung = scene.neighbour.identity();
    scene.istiod.ca().behave_for(&hung, CaBehaviour::Hang);
    scene.istiod.listen().unwrap();
    scene.start().unwrap();
    let ca = scene.istiod.ca();
    ca.wait_requests("the call that hangs", |requests| {
        requests.iter().any(|request| request.identity == hung).then_some(())
    })
    .unwrap();
    let echo = echo(&scene.server);
    let flow = Flow::start(&scene.client, echo.ipv4()).unwrap();
    assert_eq!(ca.issued_to(&hung), 0);
    ca.behave_as_usual_for(&hung);
    // The hung call itself is never answered.
    ca.wait_issued(&hung, 1).unwrap();
    assert!(requests(&scene, &hung).iter().any(|request| request.outcome == Some(Code::Cancelled)));
    lab::wait_until(|| answers(&scene.neighbour, echo.ipv4())).unwrap();
    flow.stop_whole().unwrap();
}

#[test]
fn an_authority_that_issues_nonsense_is_asked_again_with_pauses_and_its_nonsense_never_used() {
    let mut scene = Driven::prepare(&DrivenOptions::default()).unwrap();
    let [client, neighbour, server] =
        [&scene.client, &scene.neighbour, &scene.server].map(|pod| pod.identity());
    let ca = scene.istiod.ca();
    ca.behave_for(&client, CaBehaviour::WrongIdentity(server.clone()));
    ca.behave_for(&neighbour, CaBehaviour::WrongKey);
    ca.behave_for(&server, CaBehaviour::EmptyChain);
    scene.istiod.listen().unwrap();
    scene.start().unwrap();
    let ca = scene.istiod.ca();
    for identity in [&client, &neighbour, &server] {
        ca.wait_issued(identity, 3).unwrap();
    }
    for identity in [&client, &neighbour, &server] {
        // Three attempts take about three seconds, whichever of the three is waited for last.
        let count = requests(&scene, identity).len();
        assert!(count <= 8, "{identity}: {count} requests");
    }
    let echo = echo(&scene.server);
    ca.behave_as_usual_for(&server);
    let waiting = [&scene.client, &scene.neighbour].map(|pod| {
        let target = echo.ipv4();
        pod.spawn(async move || lab::traffic::outcome(target, b"hello").await)
    });
    for (pod, task) in [&scene.client, &scene.neighbour].into_iter().zip(waiting) {
        assert_eq!(task.join().unwrap(), lab::traffic::Outcome::Cut, "{}", pod.name());
    }
    assert_eq!(echo.accepted(), 0);
    for identity in [&client, &neighbour] {
        ca.behave_as_usual_for(identity);
    }
    for pod in [&scene.client, &scene.neighbour] {
        lab::wait_until(|| answers(pod, echo.ipv4())).unwrap();
    }
}

#[test]
fn certificates_past_half_of_their_life_are_used_and_not_asked_for_without_pause() {
    let mut scene = Driven::prepare(&DrivenOptions::default()).unwrap();
    let day = Duration::from_secs(24 * 3600);
    let old = CaBehaviour::BackDated { age: day, left: Some(Duration::from_secs(600)) };
    scene.istiod.ca().behave(old);
    scene.istiod.listen().unwrap();
    scene.start().unwrap();
    let echo = echo(&scene.server);
    assert!(answers(&scene.client, echo.ipv4()));
    scene.istiod.ca().wait_issued(&scene.client.identity(), 3).unwrap();
    let count = requests(&scene, &scene.server.identity()).len();
    assert!(count <= 8, "{count} requests");
}

#[test]
fn certificates_that_have_expired_already_are_not_used() {
    let mut scene = Driven::prepare(&DrivenOptions::default()).unwrap();
    let day = Duration::from_secs(24 * 3600);
    scene.istiod.ca().behave(CaBehaviour::BackDated { age: day, left: None });
    scene.istiod.listen().unwrap();
    scene.start().unwrap();
    let echo = echo(&scene.server);
    scene.istiod.ca().wait_issued(&scene.client.identity(), 2).unwrap();
    assert!(cut(&scene.client, echo.ipv4()));
    scene.istiod.ca().behave(CaBehaviour::Issue);
    lab::wait_until(|| answers(&scene.client, echo.ipv4())).unwrap();
}

#[test]
fn chains_with_intermediate_certificates_are_presented_whole() {
    let mut scene = Driven::prepare(&DrivenOptions::default()).unwrap();
    scene.istiod.ca().use_intermediates(true);
    scene.istiod.listen().unwrap();
    scene.start().unwrap();
    let echo = echo(&scene.server);
    assert!(answers(&scene.client, echo.ipv4()));
    let from_client = |line: &lab::AccessLine| line.text("src.identity") == scene.client.identity();
    scene.west.ztunnel().unwrap().wait_for_access(from_client).unwrap();
}
