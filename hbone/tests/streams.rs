//! Bytes through a stream, and every way in which one can end.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use hbone::{ClientSettings, Ending, ErrorCode, HboneStream, Server, ServerSettings, StreamError, Tunnel};
use proptest::prelude::*;
use support::raw::{self, Raw};
use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::task::spawn_local;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

#[test]
fn megabytes_arrive_intact_both_ways_at_once() {
    run(async {
        let (near, far) = connected().await;
        let (up, down) = (pattern(20 * MIB, 1), pattern(20 * MIB, 2));
        let copy = |stream: HboneStream, data: Bytes| {
            spawn_local(async move {
                let HboneStream { mut send, mut recv } = stream;
                let sending = spawn_local(async move {
                    // Sizes from one byte to several pieces.
                    let mut rest = data;
                    let mut size = 1;
                    while !rest.is_empty() {
                        send.send(rest.split_to(size.min(rest.len()))).await.unwrap();
                        size = size * 3 % 300_007;
                    }
                    send.finish();
                });
                let received = read_all(&mut recv).await.unwrap();
                sending.await.unwrap();
                received
            })
        };
        let (near, far) = (copy(near, up.clone()), copy(far, down.clone()));
        assert!(near.await.unwrap() == down);
        assert!(far.await.unwrap() == up);
    });
}

#[test]
fn each_direction_ends_on_its_own() {
    run(async {
        let (mut near, mut far) = connected().await;
        near.send.send(Bytes::from_static(b"request")).await.unwrap();
        near.send.finish();
        assert_eq!(read_all(&mut far.recv).await.unwrap(), b"request");
        assert!(far.recv.chunk().await.unwrap().is_none(), "the end stays the end");
        far.send.send(Bytes::from_static(b"answer")).await.unwrap();
        far.send.finish();
        assert_eq!(read_all(&mut near.recv).await.unwrap(), b"answer");

        let (mut near, mut far) = connected().await;
        far.send.finish();
        assert!(near.recv.chunk().await.unwrap().is_none());
        near.send.send(Bytes::from_static(b"more")).await.unwrap();
        assert_eq!(far.recv.chunk().await.unwrap().unwrap(), "more");
    });
}

#[test]
fn finishing_is_an_empty_frame_with_end_stream() {
    run(async {
        let (mut stream, mut peer) = scripted(&[]).await;
        stream.send.send(Bytes::from_static(b"last")).await.unwrap();
        stream.send.finish();
        stream.send.finish();
        let data = peer.expect(raw::DATA).await;
        assert_eq!((data.payload.as_slice(), data.is_end_stream()), (&b"last"[..], false));
        let end = peer.expect(raw::DATA).await;
        assert_eq!((end.payload.len(), end.is_end_stream()), (0, true));
        let error = stream.send.send(Bytes::from_static(b"too late")).await.unwrap_err();
        assert!(matches!(error, StreamError::Finished));
    });
}

#[test]
fn a_reset_by_the_peer_ends_reading_as_its_code_says() {
    for (code, ending) in [
        (ErrorCode::NO_ERROR, None),
        (ErrorCode::CANCEL, None),
        (ErrorCode::STREAM_CLOSED, Some(Ending::Disconnected)),
        (ErrorCode::INTERNAL_ERROR, Some(Ending::Failed)),
        (ErrorCode::ENHANCE_YOUR_CALM, Some(Ending::Failed)),
    ] {
        run(async {
            let (mut stream, mut peer) = scripted(&[]).await;
            peer.write(raw::DATA, 0, 1, b"before").await;
            peer.reset(1, code.into()).await;
            assert_eq!(stream.recv.chunk().await.unwrap().unwrap(), "before", "data comes before the end");
            let end = stream.recv.chunk().await;
            match ending {
                None => assert!(end.unwrap().is_none(), "{code}"),
                Some(ending) => assert_eq!(end.unwrap_err().ending(), ending, "{code}"),
            }
            assert!(stream.recv.chunk().await.unwrap().is_none(), "an error is reported once");
        });
    }
}

#[test]
fn a_blocked_upload_learns_of_the_reset_at_once() {
    for code in [ErrorCode::NO_ERROR, ErrorCode::CANCEL, ErrorCode::STREAM_CLOSED, ErrorCode::INTERNAL_ERROR]
    {
        run(async {
            let (mut stream, mut peer) = scripted(&[]).await;
            let upload = spawn_local(async move {
                loop {
                    if let Err(error) = stream.send.send(pattern(64 * KIB, 7)).await {
                        return (error, stream);
                    }
                }
            });
            // The default window of 65,535 bytes, and not a byte more.
            let mut received = 0;
            while received < 65_535 {
                received += peer.expect(raw::DATA).await.payload.len();
            }
            settle().await;
            assert!(!upload.is_finished());
            peer.reset(1, code.into()).await;
            let (error, mut stream) = upload.await.unwrap();
            assert!(matches!(error, StreamError::Reset(received) if received == code), "{error:?}");
            assert!(matches!(stream.send.closed().await, StreamError::Reset(received) if received == code));
        });
    }
}

#[test]
fn who_only_waits_for_the_end_learns_of_the_reset() {
    run(async {
        let (mut stream, mut peer) = scripted(&[]).await;
        let watch = spawn_local(async move { stream.send.closed().await });
        settle().await;
        assert!(!watch.is_finished());
        peer.reset(1, ErrorCode::CANCEL.into()).await;
        assert_eq!(watch.await.unwrap().ending(), Ending::EndOfData);
    });
}

#[test]
fn a_lost_tunnel_disconnects_reader_and_writer() {
    run(async {
        let (mut stream, peer) = scripted(&[]).await;
        drop(peer);
        assert_eq!(stream.recv.chunk().await.unwrap_err().ending(), Ending::Disconnected);
        let error = stream.send.send(Bytes::from_static(b"x")).await.unwrap_err();
        assert_eq!(error.ending(), Ending::Disconnected, "{error:?}");
        assert_eq!(stream.send.closed().await.ending(), Ending::Disconnected);
    });
}

#[test]
fn bytes_that_came_before_the_tunnel_was_lost_can_still_be_read() {
    run(async {
        let (mut stream, mut peer) = scripted(&[]).await;
        peer.write(raw::DATA, 0, 1, b"parting words").await;
        drop(peer);
        assert_eq!(stream.recv.chunk().await.unwrap().unwrap(), "parting words");
        assert_eq!(stream.recv.chunk().await.unwrap_err().ending(), Ending::Disconnected);
    });
}

#[test]
fn dropping_an_open_stream_cancels_it() {
    run(async {
        let (stream, mut peer) = scripted(&[]).await;
        drop(stream);
        let reset = peer.expect(raw::RST_STREAM).await;
        assert_eq!((reset.stream, ErrorCode::from(reset.number())), (1, ErrorCode::CANCEL));

        // The sending half alone is enough: there is no other way to say that nothing follows.
        let (stream, mut peer) = scripted(&[]).await;
        let HboneStream { send, mut recv } = stream;
        drop(send);
        assert_eq!(ErrorCode::from(peer.expect(raw::RST_STREAM).await.number()), ErrorCode::CANCEL);
        let error = recv.chunk().await;
        assert!(error.unwrap().is_none());

        // Finished, but the peer has not: nobody will read what it sends.
        let (mut stream, mut peer) = scripted(&[]).await;
        stream.send.finish();
        assert!(peer.expect(raw::DATA).await.is_end_stream());
        drop(stream);
        assert_eq!(ErrorCode::from(peer.expect(raw::RST_STREAM).await.number()), ErrorCode::CANCEL);
    });
}

#[test]
fn a_server_that_has_finished_and_goes_away_resets_without_error() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let mut peer = Raw::client(near, &[]).await;
        let mut server = Server::handshake(far, &ServerSettings::default(), soon()).await.unwrap();
        peer.connect(1, "10.0.0.1:80").await;
        let mut stream = server.accept().await.unwrap().unwrap().accept(None).unwrap();
        serve(server, echo);
        stream.send.finish();
        drop(stream);
        assert_eq!(peer.expect(raw::HEADERS).await.stream, 1);
        assert!(peer.expect(raw::DATA).await.is_end_stream());
        assert_eq!(ErrorCode::from(peer.expect(raw::RST_STREAM).await.number()), ErrorCode::NO_ERROR);
    });
}

#[test]
fn a_reset_of_ours_carries_its_code_and_discards_what_is_queued() {
    run(async {
        let (mut stream, mut peer) = scripted(&[(4, 0)]).await;
        stream.send.reset(ErrorCode::CONNECT_ERROR);
        drop(stream);
        let reset = peer.expect(raw::RST_STREAM).await;
        assert_eq!(ErrorCode::from(reset.number()), ErrorCode::CONNECT_ERROR);
    });
}

#[test]
fn a_slow_reader_holds_no_more_than_the_window_and_gives_it_back_as_it_reads() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let mut peer = Raw::client(near, &[]).await;
        let settings = ServerSettings { stream_window: 256 * KIB as u32, ..ServerSettings::default() };
        let mut server = Server::handshake(far, &settings, soon()).await.unwrap();
        peer.connect(1, "10.0.0.1:80").await;
        peer.connect(3, "10.0.0.1:80").await;
        let mut slow = server.accept().await.unwrap().unwrap().accept(None).unwrap();
        let mut hostile = server.accept().await.unwrap().unwrap().accept(None).unwrap();
        serve(server, echo);
        for stream in [1, 3] {
            assert_eq!(peer.expect(raw::HEADERS).await.stream, stream);
            for _ in 0..16 {
                peer.write(raw::DATA, 0, stream, &[0; 16 * KIB]).await;
            }
        }
        // Taking a chunk alone is not reading on: the credit comes back with the next one.
        for _ in 0..8 {
            assert_eq!(slow.recv.chunk().await.unwrap().unwrap().len(), 16 * KIB);
        }
        settle().await;
        peer.write(raw::PING, 0, 0, b"so far..").await;
        let mut credit = 0;
        while let Some(update) = next_before_acknowledgement(&mut peer).await {
            assert_eq!((update.kind, update.stream), (raw::WINDOW_UPDATE, 1));
            credit += update.number() as usize;
        }
        assert_eq!(credit, 7 * 16 * KIB);

        // One byte beyond the window of a stream that is not read is a violation.
        peer.write(raw::DATA, 0, 3, b"x").await;
        let reset = loop {
            let frame = peer.next().await.unwrap();
            if frame.kind == raw::RST_STREAM {
                break frame;
            }
            assert_eq!(frame.kind, raw::WINDOW_UPDATE);
        };
        assert_eq!((reset.stream, ErrorCode::from(reset.number())), (3, ErrorCode::FLOW_CONTROL_ERROR));
        let end = loop {
            match hostile.recv.chunk().await {
                Ok(Some(chunk)) => assert_eq!(chunk.len(), 16 * KIB),
                end => break end,
            }
        };
        assert!(matches!(end, Err(StreamError::Violation(ErrorCode::FLOW_CONTROL_ERROR))), "{end:?}");
    });
}

/// The next frame about streams before the acknowledgement of a PING, if there is one.
async fn next_before_acknowledgement(peer: &mut Raw) -> Option<raw::Frame> {
    loop {
        let frame = peer.read().await.unwrap();
        match frame.kind {
            raw::PING if frame.flags & raw::ACK != 0 => return None,
            raw::SETTINGS => {}
            _ if frame.stream == 0 => {}
            _ => return Some(frame),
        }
    }
}

#[test]
fn what_a_sender_queues_is_bounded_while_the_peer_does_not_read() {
    run(async {
        let (mut stream, mut peer) = scripted(&[(4, 16 * MIB as u32)]).await;
        peer.window_update(0, 16 * MIB as u32).await;
        let queued = Rc::new(Cell::new(0));
        let upload = spawn_local({
            let queued = queued.clone();
            async move {
                loop {
                    stream.send.send(Bytes::from_static(&[7; 16 * KIB])).await.unwrap();
                    queued.set(queued.get() + 16 * KIB);
                }
            }
        });
        settle().await;
        // The transport holds its part; the rest is ours.
        let most = TRANSPORT + ClientSettings::default().send_buffer + 64 * KIB;
        assert!((TRANSPORT..=most).contains(&queued.get()), "{}", queued.get());
        let before = queued.get();
        let mut received = 0;
        while received < MIB {
            received += peer.expect(raw::DATA).await.payload.len();
        }
        settle().await;
        assert!(queued.get() > before, "the upload goes on as the peer reads");
        upload.abort();
    });
}

#[test]
fn a_long_chunk_goes_out_in_frames_of_at_most_64_kib() {
    run(async {
        let (mut stream, mut peer) = scripted(&[(4, 16 * MIB as u32), (5, MIB as u32)]).await;
        peer.window_update(0, 16 * MIB as u32).await;
        let data = pattern(256 * KIB, 3);
        let sent = data.clone();
        spawn_local(async move {
            stream.send.send(sent).await.unwrap();
            std::future::pending::<()>().await;
        });
        let mut received = Vec::new();
        while received.len() < data.len() {
            let frame = peer.expect(raw::DATA).await;
            assert!(frame.payload.len() <= 64 * KIB);
            received.extend_from_slice(&frame.payload);
        }
        assert!(received == data);
    });
}

#[test]
fn a_peer_that_opens_its_window_byte_by_byte_still_gets_everything_in_order() {
    run(async {
        let (mut stream, mut peer) = scripted(&[(4, 0)]).await;
        let data = pattern(300, 5);
        let sent = data.clone();
        spawn_local(async move {
            stream.send.send(sent).await.unwrap();
            stream.send.finish();
            stream.recv.chunk().await
        });
        let mut received = Vec::new();
        while received.len() < data.len() {
            peer.window_update(1, 1).await;
            let frame = peer.expect(raw::DATA).await;
            assert_eq!(frame.payload.len(), 1);
            received.extend_from_slice(&frame.payload);
        }
        assert!(received == data);
        assert!(peer.expect(raw::DATA).await.is_end_stream());
    });
}

#[test]
fn a_dozen_unread_streams_do_not_stop_another_on_the_same_tunnel() {
    run(async {
        let (tunnel, server) = pair().await;
        // Every connection but that to port 80 is never read.
        serve(server, |incoming| async move {
            if incoming.authority().unwrap().port() == 80 {
                return echo(incoming).await;
            }
            let _unread = incoming.accept(None).unwrap();
            std::future::pending::<()>().await;
        });
        for port in 1..=12 {
            let target = request(&format!("10.0.0.1:{port}"));
            let HboneStream { mut send, recv } = tunnel.connect(&target, soon()).await.unwrap().stream;
            spawn_local(async move {
                while send.send(Bytes::from_static(&[0; 64 * KIB])).await.is_ok() {}
                drop(recv);
            });
        }
        for _ in 0..50 {
            settle().await;
        }
        let HboneStream { mut send, mut recv } =
            tunnel.connect(&request("10.0.0.1:80"), soon()).await.unwrap().stream;
        let data = pattern(8 * MIB, 9);
        let sent = data.clone();
        spawn_local(async move {
            send.send(sent).await.unwrap();
            send.finish();
        });
        assert!(read_all(&mut recv).await.unwrap() == data);
    });
}

#[test]
fn a_dozen_unread_downloads_do_not_stop_another_on_the_same_tunnel() {
    run(async {
        let (tunnel, server) = pair().await;
        serve(server, |incoming| async move {
            let port = incoming.authority().unwrap().port();
            let HboneStream { mut send, .. } = incoming.accept(None).unwrap();
            if port == 80 {
                send.send(pattern(8 * MIB, 80)).await.unwrap();
                return send.finish();
            }
            while send.send(Bytes::from_static(&[0; 64 * KIB])).await.is_ok() {}
        });
        let mut unread = Vec::new();
        for port in 1..=12 {
            let target = request(&format!("10.0.0.1:{port}"));
            unread.push(tunnel.connect(&target, soon()).await.unwrap().stream);
        }
        for _ in 0..50 {
            settle().await;
        }
        let mut stream = tunnel.connect(&request("10.0.0.1:80"), soon()).await.unwrap().stream;
        assert!(read_all(&mut stream.recv).await.unwrap() == pattern(8 * MIB, 80));
    });
}

#[test]
fn a_stream_carries_another_tunnel() {
    run(async {
        let (outer_near, outer_far) = connected().await;
        let accept = spawn_local(async move {
            let io = outer_far.into_io();
            let mut server = Server::handshake(io, &ServerSettings::default(), soon()).await.unwrap();
            while let Some(Ok(incoming)) = server.accept().await {
                spawn_local(echo(incoming));
            }
        });
        let (tunnel, driver) =
            Tunnel::handshake(outer_near.into_io(), &ClientSettings::default(), soon()).await.unwrap();
        spawn_local(driver);
        let HboneStream { mut send, mut recv } =
            tunnel.connect(&request("db.shop.svc:5432"), soon()).await.unwrap().stream;
        drop(tunnel);
        let data = pattern(10 * MIB, 11);
        let sent = data.clone();
        spawn_local(async move {
            send.send(sent).await.unwrap();
            send.finish();
        });
        assert!(read_all(&mut recv).await.unwrap() == data);
        drop(recv);
        accept.await.unwrap();
    });
}

#[test]
fn the_byte_stream_reads_in_any_portion_and_ends_after_shutdown() {
    run(async {
        let (near, far) = connected().await;
        let (mut near, mut far) = (near.into_io(), far.into_io());
        let data = pattern(200 * KIB, 13);
        let sent = data.clone();
        spawn_local(async move {
            near.write_all(&sent).await.unwrap();
            near.flush().await.unwrap();
            near.shutdown().await.unwrap();
            let mut answer = String::new();
            near.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "got it");
        });
        let mut received = Vec::new();
        let mut portion = vec![0; 777];
        loop {
            match far.read(&mut portion).await.unwrap() {
                0 => break,
                length => received.extend_from_slice(&portion[..length]),
            }
        }
        assert!(received == data);
        far.write_all(b"got it").await.unwrap();
        far.shutdown().await.unwrap();
        drop(far);
    });
}

#[test]
fn the_byte_stream_reports_a_reset_as_an_error_only_if_it_is_one() {
    run(async {
        let (stream, mut peer) = scripted(&[]).await;
        peer.reset(1, ErrorCode::CANCEL.into()).await;
        assert_eq!(stream.into_io().read(&mut [0; 8]).await.unwrap(), 0);

        let (stream, mut peer) = scripted(&[]).await;
        peer.reset(1, ErrorCode::INTERNAL_ERROR.into()).await;
        let error = stream.into_io().read(&mut [0; 8]).await.unwrap_err();
        assert!(error.get_ref().unwrap().is::<StreamError>(), "{error:?}");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_the_windows_and_chunks_the_bytes_arrive(
        stream_window in 1u32..200_000,
        sizes in proptest::collection::vec(0usize..150_000, 1..12),
    ) {
        run(async {
            let server = ServerSettings { stream_window, ..ServerSettings::default() };
            let (near, mut far) = connected_with(ClientSettings::default(), server).await;
            let data: Vec<Bytes> = (1..).zip(&sizes).map(|(seed, size)| pattern(*size, seed)).collect();
            let expected = data.concat();
            let HboneStream { mut send, recv } = near;
            spawn_local(async move {
                for chunk in data {
                    send.send(chunk).await.unwrap();
                }
                send.finish();
            });
            let received = read_all(&mut far.recv).await.unwrap();
            drop(recv);
            assert!(received == expected);
        });
    }
}
