//! Revoked certificates (`CRL_PATH`).

use lab::{Driven, DrivenNode, DrivenOptions, OpenConnection};

use crate::{answers, cut, echo};

const REJECTIONS: &str = "istio_crl_policy_rejections_total";

fn options() -> DrivenOptions {
    DrivenOptions { revocations: true, ..DrivenOptions::default() }
}

/// Ready, without files of revocation lists.
fn scene() -> Driven {
    Driven::with(&options(), |_, _| Ok(())).unwrap()
}

/// Writes the lists for the peers of whoever is revoked only: a proxy that finds its own certificate revoked has another issued.
fn tell(scene: &Driven, node: &DrivenNode) {
    scene.istiod.ca().write_revocations(&node.control.revocations()).unwrap();
}

#[test]
fn a_revoked_client_loses_its_open_connections_and_gets_no_new_ones_and_nobody_else_does() {
    let scene = scene();
    let echo = echo(&scene.server);
    // A list without entries, written while the proxies run.
    scene.write_revocations().unwrap();
    let revoked = OpenConnection::open(&scene.client, echo.ipv4()).unwrap();
    let others =
        [&scene.neighbour, &scene.outsider].map(|pod| OpenConnection::open(pod, echo.ipv4()).unwrap());
    scene.istiod.ca().revoke(&scene.client.identity()).unwrap();
    assert!(revoked.works(), "until the proxies are told");
    tell(&scene, &scene.west);
    revoked.wait_until_cut().unwrap();
    assert!(cut(&scene.client, echo.ipv4()));
    for (pod, open) in [&scene.neighbour, &scene.outsider].into_iter().zip(&others) {
        assert!(open.works() && answers(pod, echo.ipv4()), "{}", pod.name());
    }
    let west = scene.west.ztunnel().unwrap();
    let counted = west.metric(REJECTIONS, "reporter=\"destination\"").unwrap();
    assert!(counted >= 2.0, "one cut and one refused, but {counted} are counted");
    let of_client = |line: &lab::AccessLine| {
        line.text("src.identity") == scene.client.identity() && !line.text("error").is_empty()
    };
    west.wait_for_access(of_client).unwrap();
}

#[test]
fn connections_to_a_revoked_server_are_cut_and_not_made_again() {
    let scene = scene();
    let [server, near] = [&scene.server, &scene.neighbour].map(echo);
    let [to_revoked, to_other] =
        [&server, &near].map(|echo| OpenConnection::open(&scene.client, echo.ipv4()).unwrap());
    scene.istiod.ca().revoke(&scene.server.identity()).unwrap();
    tell(&scene, &scene.east);
    to_revoked.wait_until_cut().unwrap();
    assert!(cut(&scene.client, server.ipv4()));
    assert!(to_other.works() && answers(&scene.client, near.ipv4()));
    let counted = scene.east.ztunnel().unwrap().metric(REJECTIONS, "reporter=\"source\"").unwrap();
    assert!(counted >= 1.0, "{counted}");
}

#[test]
fn a_damaged_or_deleted_list_changes_nothing() {
    let mut scene = Driven::prepare(&options()).unwrap();
    scene.write_revocations().unwrap();
    scene.istiod.listen().unwrap();
    scene.start().unwrap();
    let echo = echo(&scene.server);
    assert!(answers(&scene.client, echo.ipv4()));
    scene.istiod.ca().revoke(&scene.client.identity()).unwrap();
    tell(&scene, &scene.west);
    lab::wait_until(|| cut(&scene.client, echo.ipv4())).unwrap();
    let path = scene.west.control.revocations();
    std::fs::write(&path, "-----BEGIN X509 CRL-----\nnot at all\n-----END X509 CRL-----\n").unwrap();
    let west = scene.west.ztunnel().unwrap();
    west.wait_for_log("the file of revocation lists is bad").unwrap();
    assert!(cut(&scene.client, echo.ipv4()));
    std::fs::remove_file(&path).unwrap();
    west.wait_for_log("no file of revocation lists").unwrap();
    assert!(cut(&scene.client, echo.ipv4()));
    assert!(answers(&scene.neighbour, echo.ipv4()));

    // Reinstated, it is let in again.
    scene.istiod.ca().reinstate();
    scene.write_revocations().unwrap();
    lab::wait_until(|| answers(&scene.client, echo.ipv4())).unwrap();
}
