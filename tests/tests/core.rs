//! What the mesh is for: bytes between pods, through tunnels where both are in it, with every rule back-end.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::net::IpAddr;

use lab::traffic::{self, Outcome, Server};
use lab::{AccessLine, BackendChoice, Namespace, TwoNodes, hello};

macro_rules! on_every_backend {
    ($($scenario:ident),+ $(,)?) => {
        mod nftables {
            $(#[test] fn $scenario() { super::$scenario(lab::BackendChoice::Nftables) })+
        }
        mod iptables {
            $(#[test] fn $scenario() { super::$scenario(lab::BackendChoice::Iptables) })+
        }
    };
}

on_every_backend!(
    pods_on_two_nodes_are_joined_by_a_tunnel,
    pods_on_one_node_are_joined_by_a_tunnel,
    the_server_sees_the_address_of_the_client,
    an_outsider_reaches_a_pod_in_plaintext,
    a_pod_reaches_an_outsider_in_plaintext,
    an_application_that_speaks_first_is_heard,
    a_pod_that_calls_itself_is_left_alone,
);

fn pods_on_two_nodes_are_joined_by_a_tunnel(backend: BackendChoice) {
    let scene = TwoNodes::new(backend).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    for target in [echo.ipv4(), echo.ipv6()] {
        assert_eq!(hello(&scene.client, target).unwrap(), Outcome::answered("hello"));
        let tunnelled = |line: &AccessLine| line.text("dst.hbone_addr") == target.to_string();
        for ztunnel in [scene.east_ztunnel().unwrap(), scene.west_ztunnel().unwrap()] {
            let line = ztunnel.wait_for_access(tunnelled).unwrap();
            assert_eq!(line.text("dst.addr"), with_port(target, 15008), "{line:?}");
            assert_eq!(line.text("src.identity"), scene.client.identity(), "{line:?}");
            assert_eq!(line.text("dst.identity"), scene.server.identity(), "{line:?}");
        }
    }
}

fn pods_on_one_node_are_joined_by_a_tunnel(backend: BackendChoice) {
    let scene = TwoNodes::new(backend).unwrap();
    let echo = Server::start(&scene.neighbour, 8080, traffic::echo).unwrap();
    for target in [echo.ipv4(), echo.ipv6()] {
        assert_eq!(hello(&scene.client, target).unwrap(), Outcome::answered("hello"));
        for direction in ["outbound", "inbound"] {
            let line = scene
                .east_ztunnel()
                .unwrap()
                .wait_for_access(|line| {
                    line.text("direction") == direction && line.text("dst.hbone_addr") == target.to_string()
                })
                .unwrap();
            assert_eq!(line.text("dst.identity"), scene.neighbour.identity(), "{line:?}");
        }
    }
}

fn the_server_sees_the_address_of_the_client(backend: BackendChoice) {
    let scene = TwoNodes::new(backend).unwrap();
    let reporting = Server::start(&scene.server, 8080, traffic::report_peer).unwrap();
    let through_a_tunnel = (&scene.client, scene.client.addresses());
    let in_plaintext = (&scene.outsider, scene.outsider.addresses());
    for (pod, addresses) in [through_a_tunnel, in_plaintext] {
        for (target, own) in [reporting.ipv4(), reporting.ipv6()].into_iter().zip(addresses) {
            assert_eq!(address_seen_at(pod, target), own, "from {} to {target}", pod.name());
        }
    }
}

fn an_outsider_reaches_a_pod_in_plaintext(backend: BackendChoice) {
    let scene = TwoNodes::new(backend).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    for target in [echo.ipv4(), echo.ipv6()] {
        assert_eq!(hello(&scene.outsider, target).unwrap(), Outcome::answered("hello"));
        // Its original destination, not that of the port to which it was redirected.
        let passed_through = |line: &AccessLine| line.text("dst.addr") == target.to_string();
        let line = scene.west_ztunnel().unwrap().wait_for_access(passed_through).unwrap();
        assert_eq!(line.text("direction"), "inbound", "{line:?}");
        assert_eq!(line.get("dst.hbone_addr"), None, "{line:?}");
        assert_eq!(line.get("src.identity"), None, "{line:?}");
    }
}

fn a_pod_reaches_an_outsider_in_plaintext(backend: BackendChoice) {
    let scene = TwoNodes::new(backend).unwrap();
    // The mesh knows the outsider, and knows nothing of the stranger.
    let stranger = scene.west.pod("stranger").unwrap();
    for pod in [&scene.outsider, &stranger] {
        let echo = Server::start(pod, 8080, traffic::echo).unwrap();
        for (target, own) in [echo.ipv4(), echo.ipv6()].into_iter().zip(scene.client.addresses()) {
            assert_eq!(hello(&scene.client, target).unwrap(), Outcome::answered("hello"));
            assert_eq!(echo.peers().last().unwrap().ip(), own);
            let passed_through = |line: &AccessLine| line.text("dst.addr") == target.to_string();
            let line = scene.east_ztunnel().unwrap().wait_for_access(passed_through).unwrap();
            assert_eq!(line.text("direction"), "outbound", "{line:?}");
            assert_eq!(line.get("dst.hbone_addr"), None, "{line:?}");
        }
    }
}

fn an_application_that_speaks_first_is_heard(backend: BackendChoice) {
    let scene = TwoNodes::new(backend).unwrap();
    let greeting = Server::start(&scene.server, 8080, async |mut stream, _| {
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 at your service").await?;
        // Until the client has said goodbye.
        traffic::receive(&mut stream).await?;
        Ok(())
    })
    .unwrap();
    let target = greeting.ipv4();
    let heard = scene.client.run(async move || {
        let mut stream = traffic::connect(target).await?;
        let mut heard = vec![0; 19];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut heard).await?;
        Ok(heard)
    });
    assert_eq!(heard.unwrap(), b"220 at your service");
}

fn a_pod_that_calls_itself_is_left_alone(backend: BackendChoice) {
    let scene = TwoNodes::new(backend).unwrap();
    let echo = Server::start(&scene.client, 8080, traffic::echo).unwrap();
    for target in [echo.ipv4(), echo.ipv6(), ([127, 0, 0, 1], 8080).into()] {
        assert_eq!(hello(&scene.client, target).unwrap(), Outcome::answered("hello"));
    }
    assert_eq!(scene.east_ztunnel().unwrap().access_lines(), []);
}

fn address_seen_at(from: &Namespace, target: std::net::SocketAddr) -> IpAddr {
    let answer = from.run(async move || traffic::ask(target, b"").await).unwrap();
    let peer: std::net::SocketAddr = String::from_utf8(answer).unwrap().parse().unwrap();
    peer.ip()
}

fn with_port(address: std::net::SocketAddr, port: u16) -> String {
    std::net::SocketAddr::new(address.ip(), port).to_string()
}
