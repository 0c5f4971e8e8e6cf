//! Peers that send what costs them nothing, and much of it.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

mod support;

use hbone::{
    AcceptError, ClientSettings, ErrorCode, Flood, IncomingConnect, Server, ServerSettings, TunnelError,
    TunnelFault,
};
use support::raw::{self, Raw};
use support::{TRANSPORT, eventually, request, run, soon, tunnel};
use tokio::io::duplex;
use tokio::task::spawn_local;

const PRIORITY: u8 = 2;
const UNKNOWN: u8 = 0xfa;

/// Drives a server until its tunnel has ended, and keeps what it accepts.
async fn end_of(mut server: Server<tokio::io::DuplexStream>) -> (Option<AcceptError>, Vec<IncomingConnect>) {
    let mut requests = Vec::new();
    loop {
        match server.accept().await {
            Some(Ok(request)) => requests.push(request),
            Some(Err(error)) => return (Some(error), requests),
            None => return (None, requests),
        }
    }
}

/// What a server says to a client that opens one stream and then sends the same frame again and again.
async fn after_a_flood(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> (TunnelError, ErrorCode) {
    let (near, far) = duplex(TRANSPORT);
    let mut peer = Raw::client(near, &[]).await;
    let mut server = Server::handshake(far, &ServerSettings::default(), soon()).await.unwrap();
    peer.connect(1, "10.0.0.1:80").await;
    let _request = server.accept().await.unwrap().unwrap();
    let ended = spawn_local(end_of(server));
    peer.flood(kind, flags, stream, payload, 50_000).await;
    let (error, _) = ended.await.unwrap();
    loop {
        let frame = peer.read().await.expect("a goodbye");
        if frame.kind == raw::GOAWAY {
            return (error.unwrap(), frame.number().into());
        }
    }
}

#[test]
fn a_server_tells_a_peer_that_floods_it_to_calm_down() {
    run(async {
        for (kind, flags, stream, payload, flood) in [
            (raw::PING, 0, 0, &[0; 8][..], Flood::Ping),
            (raw::PING, raw::ACK, 0, &[0; 8], Flood::Ping),
            (raw::SETTINGS, 0, 0, &[], Flood::Settings),
            (PRIORITY, 0, 1, &[0, 0, 0, 3, 16], Flood::Priority),
            (raw::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1], Flood::WindowUpdate),
            (UNKNOWN, 0, 0, &[], Flood::Other),
        ] {
            let (error, code) = after_a_flood(kind, flags, stream, payload).await;
            assert!(matches!(error, TunnelError::Flood(found) if found == flood), "{error:?}");
            assert!(error.fault().is_some_and(|fault| fault.as_str().ends_with("_flood")), "{error:?}");
            assert_eq!(code, ErrorCode::ENHANCE_YOUR_CALM, "{flood:?}");
        }
    });
}

#[test]
fn data_frames_without_data_are_too_much_early_on() {
    run(async {
        for (flags, payload) in [(0, &[][..]), (0x8, &[3, 0, 0, 0])] {
            let (error, code) = after_a_flood(raw::DATA, flags, 1, payload).await;
            assert_eq!(error.fault(), Some(TunnelFault::TooMuch), "{error:?}");
            assert_eq!(code, ErrorCode::ENHANCE_YOUR_CALM);
        }
    });
}

#[test]
fn requests_and_resets_in_turn_come_to_an_end_and_never_occupy_many_handlers() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let mut peer = Raw::client(near, &[]).await;
        let server = Server::handshake(far, &ServerSettings::default(), soon()).await.unwrap();
        let ended = spawn_local(end_of(server));
        let attack = spawn_local(async move {
            let mut stream = 1;
            while !ended.is_finished() {
                peer.flood(raw::HEADERS, raw::END_HEADERS, stream, &connect_block(), 1).await;
                peer.flood(raw::RST_STREAM, 0, stream, &8_u32.to_be_bytes(), 1).await;
                stream += 2;
                tokio::task::yield_now().await;
            }
            (ended.await.unwrap(), stream)
        });
        let ((error, requests), streams) = attack.await.unwrap();
        let fault = error.unwrap().fault().unwrap();
        assert!([TunnelFault::ResetFlood, TunnelFault::HeadersFlood, TunnelFault::TooMuch].contains(&fault));
        assert!(requests.len() <= 400, "{}", requests.len());
        assert!(streams < 30_000, "{streams}");
    });
}

/// `CONNECT 10.0.0.1:80`, as [`Raw::connect`] writes it.
fn connect_block() -> Vec<u8> {
    [&[0x02, 7][..], b"CONNECT", &[0x01, 11], b"10.0.0.1:80"].concat()
}

#[test]
fn data_in_single_bytes_is_carried_however_long_it_takes() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let mut peer = Raw::client(near, &[]).await;
        let mut server = Server::handshake(far, &ServerSettings::default(), soon()).await.unwrap();
        peer.connect(1, "10.0.0.1:80").await;
        let mut stream = server.accept().await.unwrap().unwrap().accept(None).unwrap();
        let ended = spawn_local(end_of(server));
        let sending = spawn_local(async move {
            for _ in 0..100 {
                peer.flood(raw::DATA, 0, 1, b"x", 1000).await;
                tokio::task::yield_now().await;
            }
            peer
        });
        let mut received = 0;
        while received < 100_000 {
            received += stream.recv.chunk().await.unwrap().unwrap().len();
        }
        assert!(!ended.is_finished());
        drop(sending.await.unwrap());
    });
}

#[test]
fn a_client_drops_the_tunnel_of_a_server_that_floods_it() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let (tunnel, driver) = tunnel(near, &ClientSettings::default()).await;
        let mut peer = Raw::server(far, &[]).await;
        let connecting = {
            let tunnel = tunnel.clone();
            spawn_local(async move { tunnel.connect(&request("10.0.0.1:80"), soon()).await })
        };
        peer.expect(raw::HEADERS).await;
        peer.flood(raw::PING, 0, 0, &[0; 8], 10_000).await;
        let error = driver.await.unwrap().unwrap_err();
        assert_eq!(error.fault(), Some(TunnelFault::PingFlood), "{error:?}");
        connecting.await.unwrap().unwrap_err();
        eventually("the tunnel is not used any more", || !tunnel.is_available()).await;
    });
}
