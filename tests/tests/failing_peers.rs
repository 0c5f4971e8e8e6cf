//! Peers that do not answer, and resources that run out: confined, and over when the cause is.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use lab::traffic::{self, Outcome, Server};
use lab::{BackendChoice, PATIENCE, TwoNodes, ZtunnelOptions, hello};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;
use tokio::time::timeout;

#[test]
fn ten_clients_of_a_pod_that_swallows_packets_fail_together_and_others_go_on() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let echo = Server::start(&scene.neighbour, 8080, traffic::echo).unwrap();
    scene.swallow_tunnels().unwrap();
    let target = scene.server.at(8080);
    let clients: Vec<_> =
        (0..10).map(|_| scene.client.spawn(async move || traffic::outcome(target, b"hello").await)).collect();
    for _ in 0..10 {
        assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
    }
    // One after the other they would outlast the laboratory's patience several times over.
    for client in clients {
        assert_eq!(client.join().unwrap(), Outcome::Cut);
    }
    let hint = "maybe a NetworkPolicy is blocking HBONE port 15008";
    scene.east_ztunnel().unwrap().wait_for_access(|line| line.text("error").contains(hint)).unwrap();
}

#[test]
fn clients_that_give_up_on_a_peer_that_swallows_packets_are_let_go_of_at_once() {
    const CLIENTS: usize = 20;
    let options = ZtunnelOptions { threads: 1, ..ZtunnelOptions::default() };
    let scene = TwoNodes::with(BackendChoice::Nftables, &options, |_, _| Ok(())).unwrap();
    scene.swallow_tunnels().unwrap();
    let ztunnel = scene.east_ztunnel().unwrap();
    // What a worker opens once and keeps is open from here on.
    let outside = Server::start(&scene.outsider, 8080, traffic::echo).unwrap();
    assert_eq!(hello(&scene.client, outside.ipv4()).unwrap(), Outcome::answered("hello"));
    ztunnel.wait_for_access(|_| true).unwrap();
    let before = ztunnel.process().descriptors().unwrap();
    let target = scene.server.at(8080);
    let (give_up, mut given_up) = watch::channel(());
    let clients = scene.client.spawn(async move || {
        let mut streams = Vec::new();
        for _ in 0..CLIENTS {
            let mut stream = traffic::connect(target).await?;
            stream.write_all(b"hello").await?;
            streams.push(stream);
        }
        // The sender is dropped.
        drop(given_up.changed().await);
        streams.into_iter().try_for_each(traffic::reset)
    });
    lab::wait_until(|| ztunnel.process().descriptors().unwrap() >= before + CLIENTS).unwrap();
    drop(give_up);
    clients.join().unwrap();
    let since = Instant::now();
    // The attempt to open the tunnel may go on, for the next client.
    lab::wait_until(|| ztunnel.process().descriptors().unwrap() <= before + 1).unwrap();
    lab::wait_until(|| ztunnel.access_lines().len() > CLIENTS).unwrap();
    // After ten seconds the attempt itself would have failed.
    assert!(since.elapsed() < Duration::from_secs(5), "after {:?}", since.elapsed());
    let reason = "the client reset the connection before it was established";
    let lines = ztunnel.access_lines().split_off(1);
    assert!(lines.iter().all(|line| line.text("error") == reason), "{lines:?}");
    assert_eq!(lines.len(), CLIENTS);
}

/// Connections that stay open until they are told to end.
struct Crowd {
    leave: watch::Sender<()>,
    task: lab::Task<()>,
}

impl Crowd {
    const SIZE: usize = 50;

    /// Leaves the server's proxy room for a few descriptors, and has many more outsiders connect.
    fn exhaust(scene: &TwoNodes, target: SocketAddr) -> Self {
        let process = scene.west_ztunnel().unwrap().process();
        let limit = process.descriptors().unwrap() + 8;
        let mut command = scene.west.command("prlimit");
        command.args(["--pid", &process.id().to_string(), &format!("--nofile={limit}:{limit}")]);
        assert!(scene.west.output(command).unwrap().status.success());

        let (served, how_many) = channel();
        let (leave, mut may_leave) = watch::channel(());
        let task = scene.outsider.spawn(async move || {
            let mut held = Vec::new();
            for _ in 0..Self::SIZE {
                held.push(traffic::connect(target).await?);
            }
            let mut count = 0;
            for stream in &mut held {
                let answer = timeout(Duration::from_millis(20), traffic::round_trip(stream, b"hello")).await;
                count += usize::from(matches!(answer, Ok(Ok(()))));
            }
            served.send(count)?;
            // The sender is dropped.
            drop(may_leave.changed().await);
            Ok(())
        });
        let served = how_many.recv_timeout(PATIENCE).unwrap();
        assert!(served < Self::SIZE, "the limit was reached");
        Self { leave, task }
    }

    fn disperse(self) {
        drop(self.leave);
        self.task.join().unwrap();
    }
}

#[test]
fn a_proxy_that_runs_out_of_descriptors_works_again_when_there_are_some() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
    let crowd = Crowd::exhaust(&scene, echo.ipv4());
    // What cannot be accepted stays in the queue, and does not keep the proxy busy.
    let process = scene.west_ztunnel().unwrap().process();
    let before = process.processor_time().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let spent = process.processor_time().unwrap() - before;
    assert!(spent < Duration::from_millis(500), "{spent:?} in a second of waiting");
    crowd.disperse();
    lab::wait_until(|| hello(&scene.client, echo.ipv4()).unwrap() == Outcome::answered("hello")).unwrap();
    lab::wait_until(|| hello(&scene.outsider, echo.ipv4()).unwrap() == Outcome::answered("hello")).unwrap();
    assert!(process.is_running());
}

#[test]
fn a_proxy_that_has_run_out_of_descriptors_still_ends_at_its_deadline() {
    let options = ZtunnelOptions { drain: Duration::from_secs(1), ..ZtunnelOptions::default() };
    let scene = TwoNodes::with(BackendChoice::Nftables, &options, |_, _| Ok(())).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let crowd = Crowd::exhaust(&scene, echo.ipv4());
    let ztunnel = scene.west_ztunnel().unwrap();
    let status = ztunnel.terminate(Duration::from_secs(10)).unwrap();
    assert_eq!(status.code(), Some(0), "{}", ztunnel.output());
    crowd.disperse();
}
