//! The slots of a tunnel: how many there are, when they come back, and which failures allow a retry.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use hbone::{ClientSettings, ConnectError, ErrorCode};
use support::raw::{self, Raw};
use support::*;
use tokio::io::duplex;
use tokio::task::spawn_local;

#[test]
fn when_everything_is_dropped_nothing_is_counted_any_more() {
    run(async {
        let (tunnel, mut server) = pair().await;
        let mut near = Vec::new();
        let mut far = Vec::new();
        for _ in 0..20 {
            let connect = spawn_local({
                let tunnel = tunnel.clone();
                async move { tunnel.connect(&request("10.0.0.1:80"), soon()).await }
            });
            far.push(server.accept().await.unwrap().unwrap().accept(None).unwrap());
            let accept = async { server.accept().await.map(drop) };
            tokio::select! {
                connected = connect => near.push(connected.unwrap().unwrap().stream),
                _ = accept => panic!("no other request"),
            }
        }
        assert_eq!((tunnel.leases(), server.streams()), (20, 20));
        // One half keeps the stream alive.
        let halves: Vec<_> = near.into_iter().map(|stream| stream.recv).collect();
        assert_eq!(tunnel.leases(), 20);
        drop((halves, far));
        assert_eq!((tunnel.leases(), server.streams()), (0, 0));
    });
}

#[test]
fn a_request_that_is_not_answered_hits_the_deadline_and_is_cancelled() {
    run_simulated(async {
        let (near, far) = duplex(TRANSPORT);
        let (tunnel, _driver) = tunnel(near, &ClientSettings::default()).await;
        let mut peer = Raw::server(far, &[]).await;
        let start = tokio::time::Instant::now();
        let connect = {
            let tunnel = tunnel.clone();
            spawn_local(async move { tunnel.connect(&request("10.0.0.1:80"), soon()).await })
        };
        assert_eq!(peer.expect(raw::HEADERS).await.stream, 1);
        let reset = peer.expect(raw::RST_STREAM).await;
        assert_eq!(ErrorCode::from(reset.number()), ErrorCode::CANCEL);
        assert!(matches!(connect.await.unwrap(), Err(ConnectError::Deadline)));
        assert!(start.elapsed() >= Duration::from_secs(5));
        assert_eq!(tunnel.leases(), 0);
    });
}

#[test]
fn giving_up_a_request_cancels_it_and_frees_its_slot() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let (tunnel, _driver) = tunnel(near, &ClientSettings::default()).await;
        let mut peer = Raw::server(far, &[]).await;
        let connect = {
            let tunnel = tunnel.clone();
            spawn_local(async move { tunnel.connect(&request("10.0.0.1:80"), soon()).await })
        };
        assert_eq!(peer.expect(raw::HEADERS).await.stream, 1);
        assert_eq!(tunnel.leases(), 1);
        connect.abort();
        assert_eq!(ErrorCode::from(peer.expect(raw::RST_STREAM).await.number()), ErrorCode::CANCEL);
        assert_eq!(tunnel.leases(), 0);
    });
}

#[test]
fn one_slot_is_given_out_until_the_peer_has_said_how_many_it_allows() {
    run(async {
        for (settings, slots) in [(&[(3u16, 3u32)][..], 3), (&[], 100), (&[(3, 1000)], 100)] {
            let (near, far) = duplex(TRANSPORT);
            let (tunnel, _driver) = tunnel(near, &ClientSettings::default()).await;
            let mut peer = Raw::silent_server(far).await;
            let first = tunnel.lease().unwrap();
            assert!(tunnel.lease().is_none());
            assert!(matches!(tunnel.connect(&request("a:1"), soon()).await, Err(ConnectError::Full)));
            peer.settings(settings).await;
            let mut leases = vec![first];
            eventually("the peer's limit is known", || {
                leases.extend(tunnel.lease());
                leases.len() > 1 || slots == 1
            })
            .await;
            leases.extend(std::iter::from_fn(|| tunnel.lease()));
            assert_eq!(leases.len(), slots);
            leases.pop();
            assert!(tunnel.lease().is_some(), "a slot that came back is given out again");
        }
    });
}

#[test]
fn a_refused_stream_is_safe_to_retry_and_retires_the_tunnel() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let (tunnel, _driver) = tunnel(near, &ClientSettings::default()).await;
        let mut peer = Raw::server(far, &[]).await;
        let connect = {
            let tunnel = tunnel.clone();
            spawn_local(async move { tunnel.connect(&request("10.0.0.1:80"), soon()).await })
        };
        assert_eq!(peer.expect(raw::HEADERS).await.stream, 1);
        peer.reset(1, ErrorCode::REFUSED_STREAM.into()).await;
        let error = connect.await.unwrap().unwrap_err();
        assert!(matches!(error, ConnectError::Reset(ErrorCode::REFUSED_STREAM)));
        assert!(error.is_safe_to_retry());
        assert!(!tunnel.is_available());
    });
}

#[test]
fn goaway_spares_the_streams_that_the_peer_has_seen_and_frees_the_others_to_be_retried() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let (tunnel, _driver) = tunnel(near, &ClientSettings::default()).await;
        let mut peer = Raw::server(far, &[(3, 10)]).await;
        eventually("the peer's limit is known", || tunnel.lease().is_some() && tunnel.leases() == 0).await;
        let connect = || {
            let tunnel = tunnel.clone();
            spawn_local(async move { tunnel.connect(&request("10.0.0.1:80"), soon()).await })
        };
        let first = connect();
        assert_eq!(peer.expect(raw::HEADERS).await.stream, 1);
        let second = connect();
        assert_eq!(peer.expect(raw::HEADERS).await.stream, 3);
        peer.goaway(1, 0).await;
        let error = second.await.unwrap().unwrap_err();
        assert!(matches!(error, ConnectError::GoAway(ErrorCode::NO_ERROR)), "{error:?}");
        assert!(error.is_safe_to_retry());
        assert!(tunnel.lease().is_none());

        peer.accept(1).await;
        let mut stream = first.await.unwrap().unwrap().stream;
        peer.write(raw::DATA, raw::END_STREAM, 1, b"served").await;
        assert_eq!(read_all(&mut stream.recv).await.unwrap(), b"served");
    });
}

#[test]
fn a_lost_tunnel_is_not_safe_to_retry() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let (tunnel, driver) = tunnel(near, &ClientSettings::default()).await;
        let mut peer = Raw::server(far, &[]).await;
        let connect = {
            let tunnel = tunnel.clone();
            spawn_local(async move { tunnel.connect(&request("10.0.0.1:80"), soon()).await })
        };
        assert_eq!(peer.expect(raw::HEADERS).await.stream, 1);
        drop(peer);
        let error = connect.await.unwrap().unwrap_err();
        assert!(matches!(error, ConnectError::Transport(_)), "{error:?}");
        assert!(!error.is_safe_to_retry());
        driver.await.unwrap().unwrap();
        assert!(!tunnel.is_available());
        assert!(tunnel.lease().is_none());
    });
}
