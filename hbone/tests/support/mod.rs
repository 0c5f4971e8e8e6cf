//! What the protocol tests share: a runtime, connected pairs, and a peer scripted frame by frame.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod farm;
pub(crate) mod raw;

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use hbone::{
    Authority, ClientSettings, ConnectRequest, Driver, HboneStream, IncomingConnect, RecvHalf, Server,
    ServerSettings, StreamError, Tunnel, TunnelError,
};
use raw::Raw;
use tokio::io::{DuplexStream, duplex};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{Instant, sleep, timeout};

/// Bytes that a transport between two peers holds.
pub(crate) const TRANSPORT: usize = 256 * 1024;

/// Runs a test on one thread, in real time, for at most 30 s.
pub(crate) fn run<F: Future>(test: F) -> F::Output {
    on_runtime(false, Duration::from_secs(30), test)
}

/// The same in simulated time, which passes while everybody waits.
pub(crate) fn run_simulated<F: Future>(test: F) -> F::Output {
    on_runtime(true, Duration::from_secs(24 * 3600), test)
}

fn on_runtime<F: Future>(simulated: bool, limit: Duration, test: F) -> F::Output {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(simulated).build().unwrap();
    LocalSet::new().block_on(&runtime, async { timeout(limit, test).await.expect("the test is stuck") })
}

/// Far enough away not to matter.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

pub(crate) fn request(authority: &str) -> ConnectRequest {
    ConnectRequest::new(authority.parse::<Authority>().unwrap())
}

/// Polls until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if condition() {
            return;
        }
        sleep(Duration::from_millis(1)).await;
    }
    panic!("never happened: {what}");
}

/// Lets every other task run until it waits.
pub(crate) async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

pub(crate) type DriverTask = JoinHandle<Result<(), TunnelError>>;

pub(crate) async fn tunnel(io: DuplexStream, settings: &ClientSettings) -> (Tunnel, DriverTask) {
    let (tunnel, driver): (Tunnel, Driver<DuplexStream>) =
        Tunnel::handshake(io, settings, soon()).await.unwrap();
    (tunnel, spawn_local(driver))
}

/// A tunnel and the server at its other end, with default settings.
pub(crate) async fn pair() -> (Tunnel, Server<DuplexStream>) {
    pair_with(ClientSettings::default(), ServerSettings::default()).await
}

pub(crate) async fn pair_with(
    client: ClientSettings,
    server: ServerSettings,
) -> (Tunnel, Server<DuplexStream>) {
    let (near, far) = duplex(TRANSPORT);
    let (tunnel, _driver) = tunnel(near, &client).await;
    (tunnel, Server::handshake(far, &server, soon()).await.unwrap())
}

/// Answers every request in a task of its own until the tunnel ends.
pub(crate) fn serve<F>(
    mut server: Server<DuplexStream>,
    handler: impl Fn(IncomingConnect) -> F + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = ()> + 'static,
{
    spawn_local(async move {
        while let Some(Ok(incoming)) = server.accept().await {
            spawn_local(handler(incoming));
        }
    })
}

/// Accepts a connection and sends back what comes.
pub(crate) async fn echo(incoming: IncomingConnect) {
    let Ok(HboneStream { mut send, mut recv }) = incoming.accept(None) else { return };
    while let Ok(Some(chunk)) = recv.chunk().await {
        if send.send(chunk).await.is_err() {
            return;
        }
    }
    send.finish();
}

/// Everything up to the end of the data.
pub(crate) async fn read_all(recv: &mut RecvHalf) -> Result<Vec<u8>, StreamError> {
    let mut all = Vec::new();
    while let Some(chunk) = recv.chunk().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

/// One accepted stream at either end of a new tunnel; the server goes on to be driven.
pub(crate) async fn connected() -> (HboneStream, HboneStream) {
    connected_with(ClientSettings::default(), ServerSettings::default()).await
}

pub(crate) async fn connected_with(
    client: ClientSettings,
    server: ServerSettings,
) -> (HboneStream, HboneStream) {
    let (tunnel, mut server) = pair_with(client, server).await;
    let connect = spawn_local(async move { tunnel.connect(&request("10.0.0.1:80"), soon()).await });
    let accepted = server.accept().await.unwrap().unwrap().accept(None).unwrap();
    serve(server, |_| async {});
    (connect.await.unwrap().unwrap().stream, accepted)
}

/// A dialled stream whose other end is scripted; the stream's number is 1.
pub(crate) async fn scripted(settings: &[(u16, u32)]) -> (HboneStream, Raw) {
    let (near, far) = duplex(TRANSPORT);
    let (tunnel, _driver) = tunnel(near, &ClientSettings::default()).await;
    let mut peer = Raw::server(far, settings).await;
    let connect = spawn_local(async move { tunnel.connect(&request("10.0.0.1:80"), soon()).await });
    assert_eq!(peer.expect(raw::HEADERS).await.stream, 1);
    peer.accept(1).await;
    (connect.await.unwrap().unwrap().stream, peer)
}

/// `length` bytes that differ from place to place.
pub(crate) fn pattern(length: usize, seed: u32) -> Bytes {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..length).map(|_| next()).collect::<Vec<u8>>().into()
}
