//! The node proxy's own pod in the mesh: what it serves can be reached through a tunnel.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::net::SocketAddr;

use lab::traffic::{self, Outcome};
use lab::{BackendChoice, MeshFile, Pod, Protocol, TwoNodes, Workload, ZtunnelOptions};

/// A mesh that knows the pod of the server's node proxy, with more in its description.
fn scene(more: impl FnOnce(&mut MeshFile) -> lab::Result<()>) -> TwoNodes {
    let options = ZtunnelOptions::default()
        .variable("POD_NAME", "ztunnel-west")
        .variable("POD_NAMESPACE", "istio-system")
        .variable("SERVICE_ACCOUNT", "ztunnel");
    TwoNodes::with(BackendChoice::Nftables, &options, |file, server| {
        file.workloads.push(Workload {
            uid: "cluster1//Pod/istio-system/ztunnel-west".to_owned(),
            name: "ztunnel-west".to_owned(),
            namespace: "istio-system".to_owned(),
            service_account: "ztunnel".to_owned(),
            trust_domain: Pod::TRUST_DOMAIN.to_owned(),
            workload_ips: vec![server.node().ipv4().into()],
            protocol: Protocol::Hbone,
            node: server.node().name().to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            ..Workload::default()
        });
        more(file)
    })
    .unwrap()
}

#[test]
fn its_metrics_can_be_scraped_through_a_tunnel() {
    let scene = scene(|_| Ok(()));
    let metrics: SocketAddr = (scene.west.ipv4(), 15020).into();
    let answer = scene.client.run(async move || traffic::http_get(metrics, "/metrics").await);
    let (status, text) = answer.unwrap();
    assert_eq!(status, 200);
    assert!(text.contains("istio_build"), "{text}");
    let line = scene
        .west_ztunnel()
        .unwrap()
        .wait_for_access(|line| line.text("dst.hbone_addr") == metrics.to_string())
        .unwrap();
    assert_eq!(line.text("dst.addr"), SocketAddr::from((scene.west.ipv4(), 15008)).to_string(), "{line:?}");
    assert_eq!(line.text("src.identity"), scene.client.identity(), "{line:?}");
    assert!(line.text("dst.identity").ends_with("/ns/istio-system/sa/ztunnel"), "{line:?}");
}

#[test]
fn its_own_policies_apply() {
    let scene = scene(|file| {
        let deny = "action: Deny, rules: [[[{principals: [{Suffix: /sa/client}]}]]]";
        file.policy(&format!(
            "{{name: no-client, namespace: istio-system, scope: Namespace, dryRun: false, {deny}}}"
        ))
    });
    let metrics: SocketAddr = (scene.west.ipv4(), 15020).into();
    let refused = scene.client.run(async move || traffic::outcome(metrics, b"GET / HTTP/1.1\r\n\r\n").await);
    assert_eq!(refused.unwrap(), Outcome::Cut);
    let allowed = scene.neighbour.run(async move || traffic::http_get(metrics, "/metrics").await);
    assert_eq!(allowed.unwrap().0, 200);
    let line = scene.west_ztunnel().unwrap().wait_for_access(|line| !line.text("error").is_empty()).unwrap();
    assert!(line.text("error").contains("istio-system/no-client"), "{line:?}");
}
