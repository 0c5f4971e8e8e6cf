//! Much data, many connections, slow readers.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::sync::mpsc::channel;
use std::time::Duration;

use lab::traffic::{self, Outcome, Server};
use lab::{BackendChoice, PATIENCE, Pod, TwoNodes, hello};
use tokio::sync::watch;

/// For the transfers, which a busy machine may take long for.
const TRANSFER: Duration = Duration::from_secs(120);

/// Sends `bytes` bytes each way at once over one connection and compares what arrived.
fn exchange_intact(from: &Pod, to: &Pod, bytes: u64) {
    let (results, at_server) = channel();
    let server = Server::start(to, 8080, async move |stream, _| {
        results.send(traffic::exchange(stream, 2, bytes).await)?;
        Ok(())
    })
    .unwrap();
    let target = server.ipv4();
    let transfer =
        from.spawn(async move || traffic::exchange(traffic::connect(target).await?, 1, bytes).await);
    let (client_sent, client_received) = transfer.join_within(TRANSFER).unwrap();
    let (server_sent, server_received) = at_server.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(client_received, server_sent);
    assert_eq!(server_received, client_sent);
    assert_ne!(client_sent, server_sent, "the two directions carry different bytes");
}

#[test]
fn two_hundred_megabytes_each_way_at_once_arrive_intact() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    exchange_intact(&scene.client, &scene.server, 200_000_000);
    let line = scene.east_ztunnel().unwrap().wait_for_access(|_| true).unwrap();
    assert_eq!((line.text("bytes_sent"), line.text("bytes_recv")), ("200000000", "200000000"), "{line:?}");
}

#[test]
fn plaintext_into_and_out_of_the_mesh_arrives_intact() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    exchange_intact(&scene.outsider, &scene.server, 50_000_000);
    exchange_intact(&scene.client, &scene.outsider, 50_000_000);
}

#[test]
fn a_reader_that_pauses_blocks_its_own_sender_only_and_gets_everything_in_the_end() {
    // More than all buffers and windows on the way can hold.
    const BYTES: u64 = 128 << 20;
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let (resume, paused) = watch::channel(false);
    let (results, at_server) = channel();
    let slow = Server::start(&scene.server, 8080, async move |mut stream, _| {
        paused.clone().wait_for(|resumed| *resumed).await?;
        results.send(traffic::receive(&mut stream).await)?;
        Ok(())
    })
    .unwrap();
    let echo = Server::start(&scene.server, 8081, traffic::echo).unwrap();

    let target = slow.ipv4();
    let sending = scene.client.spawn(async move || {
        let (sent, _nothing) = traffic::exchange(traffic::connect(target).await?, 7, BYTES).await?;
        Ok(sent)
    });
    for _ in 0..50 {
        assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
    }
    assert!(!sending.is_finished(), "the sender waits for the reader");
    resume.send(true).unwrap();
    drop(resume);
    let sent = sending.join_within(TRANSFER).unwrap();
    let received = at_server.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(received, sent);
    assert_eq!(received.bytes, BYTES);
}

#[test]
fn a_dozen_stalled_readers_do_not_stop_other_connections_between_the_same_pods() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    // Accepts and never reads.
    let stalled = Server::start(&scene.server, 8080, async |stream, _| {
        std::future::pending::<()>().await;
        drop(stream);
        Ok(())
    })
    .unwrap();
    let echo = Server::start(&scene.server, 8081, traffic::echo).unwrap();
    let target = stalled.ipv4();
    let _uploads: Vec<_> = (0..12)
        .map(|seed| {
            scene.client.spawn(async move || {
                let mut stream = traffic::connect(target).await?;
                traffic::send(&mut stream, seed, 64 << 20).await
            })
        })
        .collect();
    lab::wait_until(|| stalled.open() == 12).unwrap();
    for _ in 0..50 {
        assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
    }
}

#[test]
fn a_thousand_connections_live_side_by_side() {
    const CONNECTIONS: usize = 1000;
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let target = echo.ipv4();
    let (open, are_open) = channel();
    let (finish, may_finish) = watch::channel(false);
    let clients = scene.client.spawn(async move || {
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..CONNECTIONS {
            let (open, mut may_finish) = (open.clone(), may_finish.clone());
            clients.spawn_local(async move {
                let mut stream = traffic::connect(target).await?;
                let question = format!("connection {number}");
                traffic::round_trip(&mut stream, question.as_bytes()).await?;
                open.send(())?;
                may_finish.wait_for(|may| *may).await?;
                traffic::round_trip(&mut stream, question.as_bytes()).await
            });
        }
        drop(open);
        while let Some(client) = clients.join_next().await {
            client??;
        }
        Ok(())
    });
    for number in 0..CONNECTIONS {
        if are_open.recv_timeout(PATIENCE).is_err() {
            panic!("only {number} connections opened: {:?}", clients.join().unwrap_err());
        }
    }
    assert_eq!(echo.open(), CONNECTIONS);
    finish.send(true).unwrap();
    clients.join_within(TRANSFER).unwrap();
    lab::wait_until(|| echo.open() == 0).unwrap();
    assert_eq!(echo.accepted(), CONNECTIONS);
}
