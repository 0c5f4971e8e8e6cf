//! What can be seen between the nodes.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::collections::BTreeSet;

use lab::traffic::{self, Outcome, Server};
use lab::{BackendChoice, Capture, PATIENCE, Pod, TwoNodes, ZtunnelOptions};
use tokio::sync::watch;

#[test]
fn payload_between_pods_of_the_mesh_never_crosses_the_wire_in_clear() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let capture = Capture::start(scene.lab.wire()).unwrap();
    let targets = [echo.ipv4(), echo.ipv6()];
    let say = |pod: &Pod, text: &'static [u8]| {
        for target in targets {
            let outcome = pod.run(async move || traffic::outcome(target, text).await).unwrap();
            assert_eq!(outcome, Outcome::answered(text));
        }
    };
    say(&scene.client, b"a secret of the mesh");
    // Proof that the capture works: this one is seen.
    say(&scene.outsider, b"an open word of the outsider");
    capture.wait_for(b"an open word of the outsider").unwrap();
    let recording = capture.stop().unwrap();
    assert_eq!(recording.containing(b"a secret of the mesh"), 0);
    assert!(recording.tcp_packets(15008) > 0, "the tunnel crossed the wire");
}

/// The addresses that have a connection to the pod's HBONE port, once for each connection.
fn tunnels_into(pod: &Pod) -> Vec<String> {
    let mut command = pod.command("ss");
    command.args(["-H", "-t", "-n", "state", "established", "sport = :15008"]);
    let output = String::from_utf8(pod.output(command).unwrap().stdout).unwrap();
    let peer = |line: &str| {
        let address = line.split_whitespace().nth(3)?.rsplit_once(':')?.0.to_owned();
        Some(address.trim_matches(['[', ']']).trim_start_matches("::ffff:").to_owned())
    };
    output.lines().filter_map(peer).collect()
}

#[test]
fn connections_of_one_identity_share_a_tunnel_and_two_identities_never_do() {
    let options = ZtunnelOptions { threads: 1, ..ZtunnelOptions::default() };
    let scene = TwoNodes::with(BackendChoice::Nftables, &options, |_, _| Ok(())).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let target = echo.ipv4();
    let (finish, may_finish) = watch::channel(false);
    let (open, are_open) = std::sync::mpsc::channel();
    let clients: Vec<_> = [&scene.client, &scene.client, &scene.client, &scene.neighbour, &scene.neighbour]
        .into_iter()
        .map(|pod| {
            let (open, mut may_finish) = (open.clone(), may_finish.clone());
            let connection = pod.spawn(async move || {
                let mut stream = traffic::connect(target).await?;
                traffic::round_trip(&mut stream, b"hello").await?;
                open.send(())?;
                may_finish.wait_for(|may| *may).await?;
                Ok(())
            });
            // One after the other, so that each finds the tunnel of the one before.
            are_open.recv_timeout(PATIENCE).unwrap();
            connection
        })
        .collect();

    let mut tunnels = tunnels_into(&scene.server);
    tunnels.sort();
    let mut expected = [scene.client.ipv4(), scene.neighbour.ipv4()].map(|address| address.to_string());
    expected.sort();
    assert_eq!(tunnels, expected, "one tunnel for each of the two identities");

    let west = scene.west_ztunnel().unwrap();
    finish.send(true).unwrap();
    for client in clients {
        client.join().unwrap();
    }
    lab::wait_until(|| west.access_lines().len() == 5).unwrap();
    let identities: BTreeSet<_> =
        west.access_lines().iter().map(|line| line.text("src.identity").to_owned()).collect();
    assert_eq!(identities, BTreeSet::from([scene.client.identity(), scene.neighbour.identity()]));
}
