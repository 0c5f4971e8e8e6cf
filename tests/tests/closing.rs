//! The ways a connection ends.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::sync::mpsc::channel;
use std::time::Duration;

use lab::traffic::{self, Ending, Outcome, Server};
use lab::{BackendChoice, PATIENCE, Pod, TwoNodes, ZtunnelOptions, hello};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::timeout;

#[test]
fn a_client_that_has_finished_sending_still_gets_its_answer() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let counting = Server::start(&scene.server, 8080, traffic::count).unwrap();
    for pod in [&scene.client, &scene.outsider] {
        let target = counting.ipv4();
        let answer = pod.run(async move || {
            let mut stream = traffic::connect(target).await?;
            traffic::send(&mut stream, 1, 1 << 20).await?;
            stream.shutdown().await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        });
        assert_eq!(answer.unwrap(), "1048576", "{}", pod.name());
    }
}

#[test]
fn a_server_that_has_finished_sending_still_hears_the_client() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let (results, at_server) = channel();
    let server = Server::start(&scene.server, 8080, async move |mut stream, _| {
        stream.write_all(b"that is all").await?;
        stream.shutdown().await?;
        results.send(traffic::receive(&mut stream).await)?;
        Ok(())
    })
    .unwrap();
    for pod in [&scene.client, &scene.outsider] {
        let target = server.ipv4();
        let sent = pod.run(async move || {
            let mut stream = traffic::connect(target).await?;
            let mut all = String::new();
            stream.read_to_string(&mut all).await?;
            anyhow::ensure!(all == "that is all", "{all}");
            let sent = traffic::send(&mut stream, 1, 1 << 20).await?;
            stream.shutdown().await?;
            Ok(sent)
        });
        let received = at_server.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(received, sent.unwrap(), "{}", pod.name());
    }
}

/// Connects from `pod`, makes one round trip, resets, and says how the server saw the end.
fn reset_by_client(scene: &TwoNodes, pod: &Pod) -> Ending {
    let (endings, at_server) = channel();
    let server = Server::start(&scene.server, 0, async move |mut stream, _| {
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).await?;
        stream.write_all(&hello).await?;
        endings.send(traffic::ending(&mut stream).await)?;
        Ok(())
    })
    .unwrap();
    let target = server.ipv4();
    pod.run(async move || {
        let mut stream = traffic::connect(target).await?;
        traffic::round_trip(&mut stream, b"hello").await?;
        traffic::reset(stream)
    })
    .unwrap();
    at_server.recv_timeout(PATIENCE).unwrap().unwrap()
}

#[test]
fn the_server_learns_of_a_client_that_resets() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    // As a reset: a connection that was cut must not look like one that was finished.
    for pod in [&scene.client, &scene.outsider] {
        assert_eq!(reset_by_client(&scene, pod), Ending::Reset, "{}", pod.name());
    }
}

#[test]
fn the_client_learns_of_a_server_that_resets() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let server = Server::start(&scene.server, 8080, async |mut stream, _| {
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).await?;
        stream.write_all(&hello).await?;
        // Not before the answer has arrived: a reset may overtake it.
        stream.read_exact(&mut hello).await?;
        traffic::reset(stream)
    })
    .unwrap();
    for pod in [&scene.client, &scene.outsider] {
        let target = server.ipv4();
        let ending = pod.run(async move || {
            let mut stream = traffic::connect(target).await?;
            traffic::round_trip(&mut stream, b"hello").await?;
            stream.write_all(b"reset").await?;
            traffic::ending(&mut stream).await
        });
        assert_eq!(ending.unwrap(), Ending::Reset, "{}", pod.name());
    }
}

#[test]
fn a_client_that_resets_during_a_blocked_upload_is_let_go_of_at_both_ends() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let server = Server::start(&scene.server, 8080, async |stream, _| {
        // Neither reads nor closes.
        std::future::pending::<()>().await;
        drop(stream);
        Ok(())
    })
    .unwrap();
    let target = server.ipv4();
    scene
        .client
        .run(async move || {
            let mut stream = traffic::connect(target).await?;
            // Until nothing fits anywhere any more: no progress for a while.
            while let Ok(sent) = timeout(Duration::from_secs(1), stream.write(&[0; 64 * 1024])).await {
                sent?;
            }
            traffic::reset(stream)
        })
        .unwrap();
    scene.east_ztunnel().unwrap().wait_for_access(|line| line.text("direction") == "outbound").unwrap();
    scene.west_ztunnel().unwrap().wait_for_access(|line| line.text("direction") == "inbound").unwrap();
}

#[test]
fn clients_that_finish_sending_and_then_reset_are_let_go_of_at_both_ends() {
    const CLIENTS: usize = 10;
    // One worker has one tunnel, whoever uses it.
    let options = ZtunnelOptions { threads: 1, ..ZtunnelOptions::default() };
    let scene = TwoNodes::with(BackendChoice::Nftables, &options, |_, _| Ok(())).unwrap();
    let (heard, all_heard) = channel();
    let silent = Server::start(&scene.server, 8080, async move |mut stream, _| {
        heard.send(traffic::receive(&mut stream).await?.bytes)?;
        // Neither answers nor closes.
        std::future::pending::<()>().await;
        drop(stream);
        Ok(())
    })
    .unwrap();
    let echo = Server::start(&scene.server, 8081, traffic::echo).unwrap();
    assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
    let proxies = [scene.east_ztunnel().unwrap(), scene.west_ztunnel().unwrap()];
    for proxy in proxies {
        proxy.wait_for_access(|_| true).unwrap();
    }
    let before = proxies.map(|proxy| proxy.process().descriptors().unwrap());

    let (go, going) = watch::channel(());
    let clients = [&scene.client, &scene.outsider].map(|pod| {
        let (target, mut going) = (silent.ipv4(), going.clone());
        pod.spawn(async move || {
            let mut streams = Vec::new();
            for _ in 0..CLIENTS {
                let mut stream = traffic::connect(target).await?;
                stream.write_all(b"hello").await?;
                stream.shutdown().await?;
                streams.push(stream);
            }
            // The sender is dropped.
            drop(going.changed().await);
            streams.into_iter().try_for_each(traffic::reset)
        })
    });
    for _ in 0..2 * CLIENTS {
        assert_eq!(all_heard.recv_timeout(PATIENCE).unwrap(), 5);
    }
    drop(go);
    for crowd in clients {
        crowd.join().unwrap();
    }
    for (proxy, (before, connections)) in proxies.into_iter().zip(before.into_iter().zip([1, 2])) {
        let descriptors = || proxy.process().descriptors().unwrap();
        let freed = lab::wait_until(|| descriptors() <= before);
        assert!(freed.is_ok(), "{} descriptors, {before} before", descriptors());
        let lines = 1 + connections * CLIENTS;
        lab::wait_until(|| proxy.access_lines().len() >= lines).unwrap();
        assert_eq!(proxy.access_lines().len(), lines);
    }
}

#[test]
fn an_answer_is_delivered_whole_although_its_server_left_the_request_unread() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let server = Server::start(&scene.server, 8080, async |mut stream, _| {
        stream.read_u8().await?;
        traffic::send(&mut stream, 7, 100_000).await?;
        // The kernel forgets what it has not delivered when it resets for the unread request.
        while redirect::socket::unsent_bytes(&stream)? > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    })
    .unwrap();
    for pod in [&scene.client, &scene.outsider] {
        for repetition in 0..20 {
            let target = server.ipv4();
            let (answer, whole) = pod
                .run(async move || {
                    let mut stream = traffic::connect(target).await?;
                    stream.write_all(&[0; 20_000]).await?;
                    let whole = traffic::send(&mut tokio::io::sink(), 7, 100_000).await?;
                    let answer = traffic::receive(&mut (&mut stream).take(whole.bytes)).await?;
                    traffic::ending(&mut stream).await?;
                    Ok((answer, whole))
                })
                .unwrap();
            assert_eq!(answer, whole, "{}, repetition {repetition}", pod.name());
        }
    }
}

#[test]
fn a_port_nobody_listens_on_ends_the_connection_with_the_reason_in_both_logs() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    assert_eq!(hello(&scene.client, scene.server.at(9999)).unwrap(), Outcome::Cut);
    let east = scene.east_ztunnel().unwrap().wait_for_access(|_| true).unwrap();
    assert_eq!(east.text("error"), "http status: 503 Service Unavailable");
    let west = scene.west_ztunnel().unwrap().wait_for_access(|_| true).unwrap();
    assert!(west.text("error").starts_with("connection failed: Connection refused"), "{west:?}");

    assert_eq!(hello(&scene.outsider, scene.server.at(9998)).unwrap(), Outcome::Cut);
    let refused = |line: &lab::AccessLine| line.text("dst.addr").ends_with(":9998");
    let line = scene.west_ztunnel().unwrap().wait_for_access(refused).unwrap();
    assert!(line.text("error").starts_with("connection failed: Connection refused"), "{line:?}");
}

/// Connects, sends one byte and no more.
async fn half_close(target: std::net::SocketAddr, byte: u8) -> lab::Result<tokio::net::TcpStream> {
    let mut stream = traffic::connect(target).await?;
    stream.write_u8(byte).await?;
    stream.shutdown().await?;
    Ok(stream)
}

#[test]
fn a_half_closed_connection_that_falls_silent_is_reset_and_one_that_does_not_goes_on() {
    let options = ZtunnelOptions::default().variable("HALF_CLOSED_TIMEOUT", "1s");
    let scene = TwoNodes::with(BackendChoice::Nftables, &options, |_, _| Ok(())).unwrap();
    // Answers with bytes without end or not at all, as the client asks.
    let server = Server::start(&scene.server, 8080, async |mut stream, _| {
        if stream.read_u8().await? == b't' {
            loop {
                stream.write_u8(0).await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        // Holds its direction open until it is reset.
        stream.ready(tokio::io::Interest::ERROR).await?;
        Ok(())
    })
    .unwrap();
    for pod in [&scene.client, &scene.outsider] {
        let target = server.ipv4();
        let talking = pod.spawn(async move || {
            let mut stream = half_close(target, b't').await?;
            // Three times as long as a silent one may last.
            stream.read_exact(&mut [0; 30]).await?;
            Ok(())
        });
        let silent = pod.run(async move || traffic::ending(&mut half_close(target, b's').await?).await);
        assert_eq!(silent.unwrap(), Ending::Reset, "{}", pod.name());
        talking.join().unwrap();
    }
    let timed_out = |line: &lab::AccessLine| line.text("error") == "half-closed and silent for too long";
    scene.west_ztunnel().unwrap().wait_for_access(timed_out).unwrap();
}
