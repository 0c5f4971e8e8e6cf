//! SIGTERM: no new connections, time for the open ones, then the end.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lab::traffic::{self, Outcome, Server};
use lab::{BackendChoice, Lab, Mesh, MeshFile, PATIENCE, TwoNodes, ZtunnelOptions, hello};
use nix::sys::signal::Signal;
use tokio::sync::watch;

/// Opens a connection, makes a round trip whenever `step` changes, and says after each how many succeeded.
fn stepping_connection(
    from: &lab::Pod,
    target: std::net::SocketAddr,
    mut step: watch::Receiver<usize>,
) -> (lab::Task<()>, std::sync::mpsc::Receiver<()>) {
    let (done, is_done) = std::sync::mpsc::channel();
    let task = from.spawn(async move || {
        let mut stream = traffic::connect(target).await?;
        traffic::round_trip(&mut stream, b"first").await?;
        done.send(())?;
        while step.changed().await.is_ok() {
            traffic::round_trip(&mut stream, b"and another").await?;
            done.send(())?;
        }
        Ok(())
    });
    (task, is_done)
}

#[test]
fn open_connections_go_on_while_the_servers_proxy_drains_and_it_ends_when_they_do() {
    let options = ZtunnelOptions { drain: PATIENCE, ..ZtunnelOptions::default() };
    let scene = TwoNodes::with(BackendChoice::Nftables, &options, |_, _| Ok(())).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let (step, steps) = watch::channel(0);
    let connections = [&scene.client, &scene.outsider].map(|pod| {
        let connection = stepping_connection(pod, echo.ipv4(), steps.clone());
        connection.1.recv_timeout(PATIENCE).unwrap();
        connection
    });
    let process = scene.west_ztunnel().unwrap().process();
    process.signal(Signal::SIGTERM).unwrap();
    // Listeners are gone at once, so that nothing new begins.
    lab::wait_until(|| hello(&scene.outsider, echo.ipv4()).unwrap() == Outcome::Refused).unwrap();
    assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::Cut);
    for number in 1..=3 {
        step.send(number).unwrap();
        for (_, done) in &connections {
            done.recv_timeout(PATIENCE).unwrap();
        }
    }
    assert!(process.is_running());
    // Both clients finish.
    drop(step);
    for (connection, _) in connections {
        connection.join().unwrap();
    }
    // Well before its deadline, which is as far away as the test's own patience was at the signal.
    let status = process.wait(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(0), "{}", scene.west_ztunnel().unwrap().output());
}

#[test]
fn open_connections_go_on_while_the_clients_proxy_drains() {
    let options = ZtunnelOptions { drain: PATIENCE, ..ZtunnelOptions::default() };
    let scene = TwoNodes::with(BackendChoice::Nftables, &options, |_, _| Ok(())).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let (step, steps) = watch::channel(0);
    let (connection, done) = stepping_connection(&scene.client, echo.ipv4(), steps);
    done.recv_timeout(PATIENCE).unwrap();
    let process = scene.east_ztunnel().unwrap().process();
    process.signal(Signal::SIGTERM).unwrap();
    lab::wait_until(|| hello(&scene.client, echo.ipv4()).unwrap() == Outcome::Refused).unwrap();
    step.send(1).unwrap();
    done.recv_timeout(PATIENCE).unwrap();
    drop(step);
    connection.join().unwrap();
    assert_eq!(process.wait(PATIENCE).unwrap().code(), Some(0));
}

#[test]
fn connections_that_stay_open_are_cut_at_the_deadline_and_logged() {
    let options = ZtunnelOptions { drain: Duration::from_secs(1), ..ZtunnelOptions::default() };
    let scene = TwoNodes::with(BackendChoice::Nftables, &options, |_, _| Ok(())).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let target = echo.ipv4();
    let (open, is_open) = std::sync::mpsc::channel();
    let held = scene.client.spawn(async move || {
        let mut stream = traffic::connect(target).await?;
        traffic::round_trip(&mut stream, b"hello").await?;
        open.send(())?;
        traffic::ending(&mut stream).await
    });
    is_open.recv_timeout(PATIENCE).unwrap();
    let ztunnel = scene.west_ztunnel().unwrap();
    let status = ztunnel.terminate(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(0), "{}", ztunnel.output());
    held.join().unwrap();
    let lines = ztunnel.access_lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0].text("error"), "connection closed due to connection drain");
}

#[test]
fn connections_that_were_queued_before_the_signal_are_served() {
    const QUEUED: usize = 500;
    let options = ZtunnelOptions { drain: PATIENCE, ..ZtunnelOptions::default() };
    let scene = TwoNodes::with(BackendChoice::Nftables, &options, |_, _| Ok(())).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let target = echo.ipv4();
    let parties =
        [(&scene.client, scene.east_ztunnel().unwrap()), (&scene.outsider, scene.west_ztunnel().unwrap())];
    for (pod, ztunnel) in parties {
        let process = ztunnel.process();
        process.signal(Signal::SIGSTOP).unwrap();
        let (queued, all_queued) = std::sync::mpsc::channel();
        let clients = pod.spawn(async move || {
            let mut streams = Vec::new();
            for _ in 0..QUEUED {
                streams.push(traffic::connect(target).await?);
            }
            queued.send(())?;
            let mut served = 0;
            for stream in &mut streams {
                served += usize::from(traffic::round_trip(stream, b"hello").await.is_ok());
            }
            Ok(served)
        });
        all_queued.recv_timeout(PATIENCE).unwrap();
        process.signal(Signal::SIGTERM).unwrap();
        process.signal(Signal::SIGCONT).unwrap();
        assert_eq!(clients.join().unwrap(), QUEUED, "from {}", pod.name());
        assert_eq!(process.wait(PATIENCE).unwrap().code(), Some(0), "{}", ztunnel.output());
    }
}

#[test]
fn a_proxy_without_connections_ends_at_once() {
    let options = ZtunnelOptions { drain: Duration::from_secs(3600), ..ZtunnelOptions::default() };
    let scene = TwoNodes::with(BackendChoice::Nftables, &options, |_, _| Ok(())).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    // Its tunnel stays in the client side's pool, which must not keep the server side alive.
    assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
    for ztunnel in [scene.west_ztunnel().unwrap(), scene.east_ztunnel().unwrap()] {
        let status = ztunnel.terminate(PATIENCE).unwrap();
        assert_eq!(status.code(), Some(0), "{}", ztunnel.output());
    }
}

#[test]
fn a_pod_can_change_proxies_without_losing_a_connection() {
    let lab = Lab::new().unwrap();
    let (east, west) = (lab.node("east").unwrap(), lab.node("west").unwrap());
    let (client, server) = (east.pod("client").unwrap(), west.pod("server").unwrap());
    // A proxy's own ports are in the namespace of the proxy's pod, so two proxies of one node do not collide.
    let home = west.pod("ztunnel-new").unwrap();
    let mut file = MeshFile::default();
    file.enrol(&client);
    file.enrol(&server);
    let options = ZtunnelOptions { drain: PATIENCE, ..ZtunnelOptions::default() };
    let mesh = Mesh::start_with(&file, &[&client, &server], BackendChoice::Nftables, &options).unwrap();
    let echo = Server::start(&server, 8080, traffic::echo).unwrap();
    let (step, steps) = watch::channel(0);
    let (connection, done) = stepping_connection(&client, echo.ipv4(), steps);
    done.recv_timeout(PATIENCE).unwrap();

    let successor = lab::Ztunnel::shared_in(&home, &west, &file, &options).unwrap();
    successor.wait_ready().unwrap();
    let old = mesh.ztunnel(&west).unwrap().process();
    old.signal(Signal::SIGTERM).unwrap();
    lab::wait_until(|| mesh.agent(&west).unwrap().proxies() == 1).unwrap();
    step.send(1).unwrap();
    done.recv_timeout(PATIENCE).unwrap();
    for _ in 0..10 {
        assert_eq!(hello(&client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
    }
    drop(step);
    connection.join().unwrap();
    assert_eq!(old.wait(PATIENCE).unwrap().code(), Some(0));
    assert_eq!(hello(&client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
    successor.wait_for_access(|line| line.text("direction") == "inbound").unwrap();
}

/// What became of many short connections.
#[derive(Debug, Default)]
struct Tally {
    served: usize,
    failed: Vec<Outcome>,
}

/// Makes one short connection after another, `lanes` at a time, until told to stop.
fn hammer(
    from: &lab::Pod,
    target: std::net::SocketAddr,
    lanes: usize,
    enough: &Arc<AtomicBool>,
) -> lab::Task<Tally> {
    let enough = enough.clone();
    from.spawn(async move || {
        let lanes = (0..lanes).map(|_| lane(target, &enough));
        let tallies = futures_util::future::try_join_all(lanes).await?;
        Ok(tallies.into_iter().fold(Tally::default(), |mut sum, tally| {
            sum.served += tally.served;
            sum.failed.extend(tally.failed);
            sum
        }))
    })
}

async fn lane(target: std::net::SocketAddr, enough: &AtomicBool) -> lab::Result<Tally> {
    let mut tally = Tally::default();
    while !enough.load(Ordering::Relaxed) {
        match traffic::outcome(target, b"hello").await? {
            outcome if outcome == Outcome::answered("hello") => tally.served += 1,
            outcome => tally.failed.push(outcome),
        }
    }
    Ok(tally)
}

#[test]
fn proxies_are_swapped_under_load_without_a_refused_or_reset_connection() {
    const LANES: usize = 24;
    const SWAPS: usize = 6;
    let lab = Lab::new().unwrap();
    let (east, west) = (lab.node("east").unwrap(), lab.node("west").unwrap());
    let (client, server) = (east.pod("client").unwrap(), west.pod("server").unwrap());
    let outsider = east.pod("outsider").unwrap();
    let mut file = MeshFile::default();
    file.enrol(&client);
    file.enrol(&server);
    let options = ZtunnelOptions { drain: PATIENCE, log: "warn".to_owned(), ..ZtunnelOptions::default() };
    let mesh = Mesh::start_with(&file, &[&client, &server], BackendChoice::Nftables, &options).unwrap();
    let echo = Server::start(&server, 8080, traffic::echo).unwrap();

    let enough = Arc::new(AtomicBool::new(false));
    // Through the client's 15001 and the server's 15008, and in plaintext through its 15006.
    let clients = [&client, &outsider].map(|pod| hammer(pod, echo.ipv4(), LANES, &enough));
    let mut successors = Vec::new();
    for swap in 0..SWAPS {
        for node in [&west, &east] {
            let home = node.pod(&format!("ztunnel-{swap}")).unwrap();
            let successor = lab::Ztunnel::shared_in(&home, node, &file, &options).unwrap();
            successor.wait_ready().unwrap();
            let previous = successors.iter().rev().find(|(name, _)| name == node.name());
            let previous = previous.map_or_else(|| mesh.ztunnel(node).unwrap(), |(_, ztunnel)| ztunnel);
            assert_eq!(previous.terminate(PATIENCE).unwrap().code(), Some(0), "{}", previous.output());
            successors.push((node.name().to_owned(), successor));
        }
    }
    enough.store(true, Ordering::Relaxed);
    let tallies = clients.map(|client| client.join().unwrap());
    for Tally { served, failed } in &tallies {
        assert!(
            failed.is_empty(),
            "{} of {} failed: {:?}",
            failed.len(),
            served + failed.len(),
            &failed[..failed.len().min(5)]
        );
        assert!(*served > 1_000, "only {served} connections: not much of a load");
    }
}

#[test]
fn connections_whose_handshake_is_not_complete_move_to_the_next_proxy() {
    const HALF_OPEN: usize = 60;
    let options = ZtunnelOptions { drain: PATIENCE, ..ZtunnelOptions::default() };
    let scene = TwoNodes::with(BackendChoice::Nftables, &options, |_, _| Ok(())).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let mut file = MeshFile::default();
    file.enrol(&scene.server);
    let home = scene.west.pod("ztunnel-new").unwrap();
    let successor = lab::Ztunnel::shared_in(&home, &scene.west, &file, &options).unwrap();
    successor.wait_ready().unwrap();

    // The last packet of the handshake gets lost, so the connection waits on the listener that was chosen for it: for
    // about a half of them that of the old proxy.
    let rule = "type filter hook output priority 0; tcp dport 8080 tcp flags & (syn | ack) == ack drop;";
    let outsider = &scene.outsider;
    outsider
        .feed("nft", &["-f", "-"], &format!("table inet lossy {{ chain output {{ {rule} }}; }}"))
        .unwrap();
    let (opened, all_opened) = std::sync::mpsc::channel();
    let (go_on, goes_on) = tokio::sync::oneshot::channel::<()>();
    let target = echo.ipv4();
    let clients = outsider.spawn(async move || {
        let mut streams = Vec::new();
        for _ in 0..HALF_OPEN {
            streams.push(traffic::connect(target).await?);
        }
        opened.send(())?;
        goes_on.await?;
        let mut served = 0;
        for stream in &mut streams {
            served += usize::from(traffic::round_trip(stream, b"hello").await.is_ok());
        }
        Ok(served)
    });
    all_opened.recv_timeout(PATIENCE).unwrap();
    let old = scene.west_ztunnel().unwrap();
    assert_eq!(old.terminate(PATIENCE).unwrap().code(), Some(0), "{}", old.output());
    outsider.feed("nft", &["-f", "-"], "delete table inet lossy").unwrap();
    go_on.send(()).unwrap();
    assert_eq!(clients.join().unwrap(), HALF_OPEN);
}
