//! Peers and pods that ask for what they must not get.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use lab::traffic::{self, Outcome, Server};
use lab::{AccessLine, BackendChoice, HbonePeer, Lab, Mesh, MeshFile, Pod, TwoNodes, hello};

/// Opens a tunnel to the server from outside the mesh, as somebody with a certificate for `identity`, and uses it.
fn tunnel_as<T: Send + 'static>(
    scene: &TwoNodes,
    identity: String,
    work: impl AsyncFnOnce(HbonePeer) -> lab::Result<T> + Send + 'static,
) -> lab::Result<T> {
    let (target, server) = (scene.server.at(15008), scene.server.identity());
    let ca = scene.east.ca_directory().to_owned();
    scene.outsider.run(async move || work(HbonePeer::connect(target, &ca, &identity, &server).await?).await)
}

/// The status with which the server answers a CONNECT of the client's identity for `authority`.
fn status_for(scene: &TwoNodes, authority: String) -> StatusCode {
    tunnel_as(scene, scene.client.identity(), async move |mut peer| Ok(peer.tunnel(&authority).await?.status))
        .unwrap()
}

fn early_denial(scene: &TwoNodes, fragment: &str) -> AccessLine {
    let fragment = fragment.to_owned();
    let denial = scene.west_ztunnel().unwrap().wait_for_access(|line| line.text("error").contains(&fragment));
    let denial = denial.unwrap();
    assert_eq!((denial.level.as_str(), denial.message.as_str()), ("warn", "connection failed"), "{denial:?}");
    assert_eq!(denial.text("direction"), "inbound", "{denial:?}");
    denial
}

#[test]
fn a_peer_with_a_certificate_of_the_mesh_may_open_tunnels_by_hand() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let authority = echo.ipv4().to_string();
    tunnel_as(&scene, scene.client.identity(), async move |mut peer| {
        // Two streams at once in one tunnel.
        let (mut one, mut other) = (peer.tunnel(&authority).await?, peer.tunnel(&authority).await?);
        anyhow::ensure!(one.status == StatusCode::OK && other.status == StatusCode::OK);
        other.round_trip(b"hello").await?;
        one.round_trip(b"hello").await
    })
    .unwrap();
}

#[test]
fn a_tunnel_leads_only_to_the_pod_at_its_end() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let other = scene.west.pod("other").unwrap();
    let innocent = Server::start(&other, 8080, traffic::echo).unwrap();
    for target in
        [innocent.ipv4().to_string(), scene.client.at(8080).to_string(), "127.0.0.1:8080".to_owned()]
    {
        assert_eq!(status_for(&scene, target.clone()), StatusCode::BAD_REQUEST, "{target}");
        let ip = target.rsplit_once(':').unwrap().0;
        early_denial(&scene, &format!("ip mismatch: {} != {ip}", scene.server.ipv4()));
    }
    assert_eq!(innocent.accepted(), 0);
}

#[test]
fn a_tunnel_does_not_lead_back_into_the_proxy() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    for port in [15001, 15006, 15008] {
        let status = status_for(&scene, scene.server.at(port).to_string());
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{port}");
    }
    early_denial(&scene, "attempted recursive call to ourselves");
}

#[test]
fn only_connect_requests_are_served() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let uri = format!("http://{}/", scene.server.at(8080));
    let status = tunnel_as(&scene, scene.client.identity(), async move |mut peer| {
        let request = Request::builder().method(Method::GET).uri(uri).body(())?;
        Ok(peer.request(request).await?.status)
    });
    assert_eq!(status.unwrap(), StatusCode::BAD_REQUEST);
    early_denial(&scene, "expected method CONNECT, got GET");
}

#[test]
fn an_identity_of_another_trust_domain_gets_no_tunnel() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let authority = echo.ipv4().to_string();
    let foreign = "spiffe://elsewhere.example/ns/default/sa/client".to_owned();
    let refused = tunnel_as(&scene, foreign, async move |mut peer| Ok(peer.tunnel(&authority).await?.status));
    refused.unwrap_err();
    early_denial(&scene, "tls handshake error: ");
    let reason = r#"reporter="destination",reason="trust_domain""#;
    let counted = scene.west_ztunnel().unwrap().metric("istio_handshake_failures_total", reason);
    assert_eq!(counted.unwrap(), 1.0);
    assert_eq!(echo.accepted(), 0);
}

#[test]
fn a_server_that_proves_another_identity_than_expected_gets_no_data() {
    let lab = Lab::new().unwrap();
    let (east, west) = (lab.node("east").unwrap(), lab.node("west").unwrap());
    let (client, server) = (east.pod("client").unwrap(), west.pod("server").unwrap());
    let mut truth = MeshFile::default();
    truth.enrol(&client);
    truth.enrol(&server);
    let mut belief = truth.clone();
    belief.workload(&server).unwrap().service_account = "somebody-else".to_owned();
    let _of_server = Mesh::start(&truth, &[&server], BackendChoice::Nftables).unwrap();
    let of_client = Mesh::start(&belief, &[&client], BackendChoice::Nftables).unwrap();

    let echo = Server::start(&server, 8080, traffic::echo).unwrap();
    assert_eq!(hello(&client, echo.ipv4()).unwrap(), Outcome::Cut);
    let line = of_client.ztunnel(&east).unwrap().wait_for_access(|_| true).unwrap();
    assert!(line.text("error").starts_with("io error: "), "{line:?}");
    assert!(line.text("error").contains(&server.identity()), "the error names who answered: {line:?}");
    let reason = r#"reporter="source",reason="unexpected_identity""#;
    let counted = of_client.ztunnel(&east).unwrap().metric("istio_handshake_failures_total", reason);
    assert_eq!(counted.unwrap(), 1.0);
    assert_eq!(echo.accepted(), 0);
}

/// Connects to some of the proxy's own ports and talks to them.
fn knock(from: &Pod, to: impl Fn(u16) -> SocketAddr, ports: &[u16]) -> Vec<Outcome> {
    ports.iter().map(|port| hello(from, to(*port)).unwrap()).collect()
}

/// Accepted, and nothing came of it. A TLS alert, content type 21, is nothing.
fn came_to_nothing(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Cut => true,
        Outcome::Answered(bytes) => bytes[0] == 21,
        Outcome::Refused => false,
    }
}

#[test]
fn the_proxys_own_ports_give_a_pod_nothing_and_do_not_loop() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let (client, server) = (&scene.client, &scene.server);
    let in_pods = [15001, 15006, 15008];
    let at_home = [15000, 15020, 15021];

    // From a pod in the mesh to itself: the listeners of its own proxy, and nobody.
    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    for to in [&loopback as &dyn Fn(u16) -> _, &|port| client.at(port), &|port| client.at_ipv6(port)] {
        let found = knock(client, to, &in_pods);
        assert!(found.iter().all(came_to_nothing), "{found:?}");
        assert_eq!(knock(client, to, &at_home), [Outcome::Refused, Outcome::Refused, Outcome::Refused]);
    }
    // From there to another pod in the mesh, and from outside: whatever the port, its proxy takes the connection.
    for from in [client, &scene.outsider] {
        for ports in [in_pods, at_home] {
            let found = knock(from, |port| server.at(port), &ports);
            assert!(found.iter().all(came_to_nothing), "{ports:?} from {}: {found:?}", from.name());
        }
    }
    // A loop would make connections without end.
    let lines = scene.east_ztunnel().unwrap().access_lines().len()
        + scene.west_ztunnel().unwrap().access_lines().len();
    assert!(lines <= 2 * 24, "{lines} lines for 24 connections");
    let echo = Server::start(server, 8080, traffic::echo).unwrap();
    assert_eq!(hello(client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
}

#[test]
fn an_address_that_the_mesh_does_not_know_is_no_way_into_a_loop() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let ztunnel = scene.east_ztunnel().unwrap();
    scene.client.ip("addr add 10.77.0.1/32 dev lo\naddr add 10.77.0.2/32 dev eth0").unwrap();
    let before = ztunnel.process().descriptors().unwrap();
    for address in ["10.77.0.1:15001", "10.77.0.2:15001"] {
        assert_eq!(hello(&scene.client, address.parse().unwrap()).unwrap(), Outcome::Cut, "{address}");
        let line = ztunnel.wait_for_access(|line| line.text("dst.addr") == address).unwrap();
        assert_eq!((line.level.as_str(), line.message.as_str()), ("warn", "connection failed"), "{line:?}");
        assert_eq!(line.text("error"), "attempted recursive call to ourselves", "{line:?}");
    }
    // A loop would go on by itself.
    std::thread::sleep(Duration::from_secs(1));
    let after = ztunnel.process().descriptors().unwrap();
    assert!(after <= before + 4, "{after} descriptors, {before} before");
    assert_eq!(ztunnel.access_lines().len(), 2);
}

#[test]
fn only_readiness_is_served_to_others_on_the_node() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let node = (scene.east.ipv4(), 15021).into();
    for pod in [&scene.client, &scene.outsider] {
        let answer = pod.run(async move || traffic::http_get(node, "/healthz/ready").await).unwrap();
        assert_eq!(answer, (200, "ready\n".to_owned()));
        let elsewhere = pod.run(async move || traffic::http_get(node, "/config_dump").await).unwrap();
        assert_eq!(elsewhere.0, 404);
        for port in [15000, 15001, 15006] {
            let outcome = hello(pod, (scene.east.ipv4(), port).into()).unwrap();
            assert!(
                matches!(outcome, Outcome::Cut | Outcome::Refused),
                "{port} from {}: {outcome:?}",
                pod.name()
            );
        }
    }
}
