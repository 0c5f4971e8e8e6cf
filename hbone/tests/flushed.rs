//! What has left a stream's queue, and what a reset discards.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::rc::Rc;

use bytes::Bytes;
use hbone::{Ending, ErrorCode, StreamError};
use support::raw;
use support::*;
use tokio::sync::Notify;
use tokio::task::spawn_local;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

#[test]
fn a_reset_after_everything_has_left_the_queue_loses_nothing() {
    run(async {
        // More than a window, a transport and a send buffer hold; several lengths of frame at its end.
        for tail in [0, 1, 300, 20 * KIB] {
            let (mut near, mut far) = connected().await;
            let data = pattern(4 * MIB + tail, 15);
            let sent = data.clone();
            spawn_local(async move {
                near.send.send(sent).await.unwrap();
                near.send.flushed().await.unwrap();
                near.send.reset(ErrorCode::CONNECT_ERROR);
            });
            let mut received = Vec::new();
            let end = loop {
                match far.recv.chunk().await {
                    Ok(Some(chunk)) => received.extend_from_slice(&chunk),
                    end => break end,
                }
            };
            assert!(received == data, "{} of {}", received.len(), data.len());
            assert!(matches!(end, Err(StreamError::Reset(ErrorCode::CONNECT_ERROR))), "{end:?}");
        }
    });
}

#[test]
fn what_waits_for_the_peers_window_has_not_left_the_queue() {
    run(async {
        let (mut stream, mut peer) = scripted(&[(4, 4)]).await;
        stream.send.flushed().await.unwrap();
        let drop_it = Rc::new(Notify::new());
        let dropped = drop_it.clone();
        let waiting = spawn_local(async move {
            stream.send.send(Bytes::from_static(b"12345678")).await.unwrap();
            tokio::select! {
                outcome = stream.send.flushed() => panic!("{outcome:?}"),
                () = dropped.notified() => {}
            }
            // It goes on as if nobody had asked.
            stream.send.send(Bytes::from_static(b"9")).await.unwrap();
            stream.send.flushed().await.unwrap();
            stream.send.finish();
            stream.send.flushed().await.unwrap();
            stream
        });
        let mut received = peer.expect(raw::DATA).await.payload;
        assert_eq!(received, b"1234");
        settle().await;
        drop_it.notify_one();
        for _ in 0..5 {
            settle().await;
            assert!(!waiting.is_finished());
            peer.window_update(1, 1).await;
            received.extend(peer.expect(raw::DATA).await.payload);
        }
        assert_eq!(received, b"123456789");
        let end = peer.expect(raw::DATA).await;
        assert_eq!((end.payload.len(), end.is_end_stream()), (0, true), "the only empty frame");
        let _stream = waiting.await.unwrap();
    });
}

#[test]
fn who_waits_for_the_queue_learns_of_the_end_of_the_stream() {
    run(async {
        for tunnel_is_lost in [false, true] {
            let (mut stream, mut peer) = scripted(&[(4, 4)]).await;
            let waiting = spawn_local(async move {
                stream.send.send(Bytes::from_static(b"12345678")).await.unwrap();
                stream.send.flushed().await
            });
            peer.expect(raw::DATA).await;
            settle().await;
            assert!(!waiting.is_finished());
            if tunnel_is_lost {
                drop(peer);
                assert_eq!(waiting.await.unwrap().unwrap_err().ending(), Ending::Disconnected);
            } else {
                peer.reset(1, ErrorCode::INTERNAL_ERROR.into()).await;
                let error = waiting.await.unwrap().unwrap_err();
                assert!(matches!(error, StreamError::Reset(ErrorCode::INTERNAL_ERROR)), "{error:?}");
            }
        }
    });
}
