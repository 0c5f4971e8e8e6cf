//! Peers that do not answer, and resources that run out: confined, and over when the cause is.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::sync::mpsc::channel;
use std::time::Duration;

use lab::traffic::{self, Outcome, Server};
use lab::{BackendChoice, PATIENCE, TwoNodes, hello};
use tokio::sync::watch;
use tokio::time::timeout;

#[test]
fn ten_clients_of_a_pod_that_swallows_packets_fail_together_and_others_go_on() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let echo = Server::start(&scene.neighbour, 8080, traffic::echo).unwrap();
    // Tunnels to the server are swallowed on its node, as a NetworkPolicy would.
    scene
        .west
        .feed(
            "nft",
            &["-f", "-"],
            "table inet hole { chain forward { type filter hook forward priority 0; tcp dport 15008 drop; }; }",
        )
        .unwrap();
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
fn a_proxy_that_runs_out_of_descriptors_works_again_when_there_are_some() {
    const CROWD: usize = 50;
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
    let process = scene.west_ztunnel().unwrap().process();
    let open = std::fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap().count();
    let mut command = scene.west.command("prlimit");
    command.args(["--pid", &process.id().to_string(), &format!("--nofile={0}:{0}", open + 8)]);
    assert!(scene.west.output(command).unwrap().status.success());

    let target = echo.ipv4();
    let (served, how_many) = channel();
    let (leave, mut may_leave) = watch::channel(());
    let crowd = scene.outsider.spawn(async move || {
        let mut held = Vec::new();
        for _ in 0..CROWD {
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
    assert!(served < CROWD, "the limit was reached");
    // What cannot be accepted stays in the queue, and does not keep the proxy busy. A hundred ticks are a second.
    let before = processor_ticks(process.id());
    std::thread::sleep(Duration::from_secs(1));
    let spent = processor_ticks(process.id()) - before;
    assert!(spent < 50, "{spent} ticks in a second of waiting");
    drop(leave);
    crowd.join().unwrap();
    // The crowd has left.
    lab::wait_until(|| hello(&scene.client, echo.ipv4()).unwrap() == Outcome::answered("hello")).unwrap();
    lab::wait_until(|| hello(&scene.outsider, echo.ipv4()).unwrap() == Outcome::answered("hello")).unwrap();
    assert!(process.is_running());
}

/// User and system time of a process so far, in hundredths of a second.
fn processor_ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The program's name, in parentheses, may contain anything.
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
