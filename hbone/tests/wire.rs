//! What goes over the wire, frame by frame.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use hbone::headers::{Baggage, TraceParent, forwarded};
use hbone::{
    ClientSettings, ConnectError, ConnectRequest, Ending, ErrorCode, HandshakeError, HostName, Refusal,
    Server, ServerSettings, Tunnel, TunnelError,
};
use support::raw::{self, Raw};
use support::*;
use tokio::io::duplex;
use tokio::task::spawn_local;
use tokio::time::Instant;

const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST_SIZE: u16 = 6;

#[test]
fn the_client_announces_exactly_its_settings_and_the_connection_window() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let (_tunnel, _driver) = tunnel(near, &ClientSettings::default()).await;
        let mut peer = Raw::silent_server(far).await;
        let settings = peer.read().await.unwrap();
        assert_eq!((settings.kind, settings.flags, settings.stream), (raw::SETTINGS, 0, 0));
        let announced = vec![
            (ENABLE_PUSH, 0),
            (INITIAL_WINDOW_SIZE, 4_194_304),
            (MAX_FRAME_SIZE, 1_048_576),
            (MAX_HEADER_LIST_SIZE, 16_384),
        ];
        assert_eq!(settings.settings(), announced);
        let window = peer.read().await.unwrap();
        assert_eq!(
            (window.kind, window.stream, window.number()),
            (raw::WINDOW_UPDATE, 0, 16_777_216 - 65_535)
        );
    });
}

#[test]
fn the_server_announces_exactly_its_settings_and_the_connection_window() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let mut peer = Raw::client(near, &[]).await;
        let server = Server::handshake(far, &ServerSettings::default(), soon()).await.unwrap();
        serve(server, echo);
        let settings = peer.read().await.unwrap();
        let announced = vec![
            (MAX_CONCURRENT_STREAMS, 200),
            (INITIAL_WINDOW_SIZE, 4_194_304),
            (MAX_FRAME_SIZE, 1_048_576),
            (MAX_HEADER_LIST_SIZE, 65_536),
        ];
        assert_eq!(settings.settings(), announced);
        let acknowledgement = peer.read().await.unwrap();
        assert_eq!((acknowledgement.kind, acknowledgement.flags), (raw::SETTINGS, raw::ACK));
        let window = peer.read().await.unwrap();
        assert_eq!(
            (window.kind, window.stream, window.number()),
            (raw::WINDOW_UPDATE, 0, 16_777_216 - 65_535)
        );
    });
}

#[test]
fn a_request_has_method_and_authority_and_the_given_headers_and_stays_open() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let (tunnel, _driver) = tunnel(near, &ClientSettings::default()).await;
        let host = HostName::new("example.com").unwrap();
        let trace = TraceParent::generate();
        let request = ConnectRequest {
            baggage: Some(Baggage { namespace: Some("shop"), ..Baggage::default() }.encode()),
            forwarded: Some(forwarded("[::1]:80".parse().unwrap(), Some(&host))),
            traceparent: Some(trace.encode()),
            ..request("[ff06::c3]:8080")
        };
        spawn_local(async move { tunnel.connect(&request, soon()).await.map(drop) });

        let mut server = h2::server::handshake(far).await.unwrap();
        let (request, _respond) = server.accept().await.unwrap().unwrap();
        assert_eq!(request.method(), http::Method::CONNECT);
        assert_eq!(request.uri().authority().unwrap(), "[ff06::c3]:8080");
        assert_eq!((request.uri().scheme(), request.uri().path_and_query()), (None, None));
        let headers: Vec<_> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes().to_vec()))
            .collect();
        let expected = vec![
            ("baggage", b"k8s.namespace.name=shop".to_vec()),
            ("forwarded", b"for=\"[::1]:80\";host=example.com".to_vec()),
            ("traceparent", trace.encode().as_bytes().to_vec()),
        ];
        assert_eq!(headers, expected);
        assert!(!request.body().is_end_stream());
    });
}

#[test]
fn the_server_reads_what_the_client_sends_and_the_client_the_answer() {
    run(async {
        let (tunnel, mut server) = pair().await;
        let source = Baggage { service: Some("cart"), ..Baggage::default() };
        let host = HostName::new("db.shop.svc").unwrap();
        let trace = TraceParent::generate();
        let request = ConnectRequest {
            baggage: Some(source.encode()),
            forwarded: Some(forwarded("10.0.0.9:4711".parse().unwrap(), Some(&host))),
            traceparent: Some(trace.encode()),
            forwarded_network: Some("net-1".parse().unwrap()),
            ..request("db.shop.svc:5432")
        };
        let connect = spawn_local(async move { tunnel.connect(&request, soon()).await });
        let incoming = server.accept().await.unwrap().unwrap();
        assert!(incoming.is_connect());
        assert_eq!(incoming.authority().unwrap().to_string(), "db.shop.svc:5432");
        assert_eq!(incoming.baggage(), Some(source));
        assert_eq!(incoming.forwarded_host(), Some("db.shop.svc"));
        assert_eq!(incoming.forwarded_network(), Some("net-1"));
        assert_eq!(incoming.trace_parent(), Some(trace));
        let destination = Baggage { cluster: Some("Kubernetes"), ..Baggage::default() };
        let _stream = incoming.accept(Some(destination.encode())).unwrap();
        serve(server, echo);
        let connected = connect.await.unwrap().unwrap();
        assert_eq!(connected.response.baggage(), Some(destination));
    });
}

#[test]
fn a_refusal_is_the_status_with_end_stream_and_then_a_reset_without_error() {
    for refusal in [Refusal::BadRequest, Refusal::Unauthorized, Refusal::ServiceUnavailable] {
        run(async {
            let (near, far) = duplex(TRANSPORT);
            let mut peer = Raw::client(near, &[]).await;
            let server = Server::handshake(far, &ServerSettings::default(), soon()).await.unwrap();
            serve(server, move |incoming| async move { incoming.refuse(refusal) });
            peer.connect(1, "10.0.0.1:80").await;
            let headers = peer.expect(raw::HEADERS).await;
            assert!(headers.is_end_stream());
            if refusal == Refusal::BadRequest {
                assert_eq!(headers.payload, raw::STATUS_400);
            }
            let reset = peer.expect(raw::RST_STREAM).await;
            assert_eq!((reset.stream, ErrorCode::from(reset.number())), (1, ErrorCode::NO_ERROR));
        });
    }
}

#[test]
fn the_client_learns_the_status_of_a_refusal() {
    for (refusal, status) in
        [(Refusal::BadRequest, 400), (Refusal::Unauthorized, 401), (Refusal::ServiceUnavailable, 503)]
    {
        run(async {
            let (tunnel, server) = pair().await;
            serve(server, move |incoming| async move { incoming.refuse(refusal) });
            let error = tunnel.connect(&request("10.0.0.1:80"), soon()).await.unwrap_err();
            assert!(
                matches!(&error, ConnectError::Refused(refused) if refused.as_u16() == status),
                "{error:?}"
            );
            assert!(!error.is_safe_to_retry());
            assert_eq!(tunnel.leases(), 0);
        });
    }
}

#[test]
fn another_method_than_connect_reaches_the_handler_as_such() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let client = spawn_local(async move {
            let (mut sender, connection) = h2::client::handshake(near).await.unwrap();
            spawn_local(connection);
            let request = http::Request::get("http://10.0.0.1:80/").body(()).unwrap();
            sender.send_request(request, true).unwrap().0.await.unwrap().status()
        });
        let mut server = Server::handshake(far, &ServerSettings::default(), soon()).await.unwrap();
        let incoming = server.accept().await.unwrap().unwrap();
        assert!(!incoming.is_connect());
        incoming.refuse(Refusal::BadRequest);
        serve(server, echo);
        assert_eq!(client.await.unwrap(), 400);
    });
}

#[test]
fn the_client_pings_after_ten_seconds_and_ten_after_each_acknowledgement() {
    run_simulated(async {
        let (near, far) = duplex(TRANSPORT);
        let (_tunnel, _driver) = tunnel(near, &ClientSettings::default()).await;
        let mut peer = Raw::server(far, &[]).await;
        let mut last = Instant::now();
        for _ in 0..3 {
            let ping = loop {
                let frame = peer.read().await.unwrap();
                if frame.kind == raw::PING {
                    break frame;
                }
            };
            let waited = last.elapsed();
            assert!((Duration::from_secs(10)..Duration::from_millis(10_100)).contains(&waited), "{waited:?}");
            peer.write(raw::PING, raw::ACK, 0, &ping.payload).await;
            last = Instant::now();
        }
    });
}

#[test]
fn a_client_whose_ping_is_not_answered_drops_the_tunnel_without_goaway() {
    run_simulated(async {
        let (near, far) = duplex(TRANSPORT);
        let (tunnel, driver) = tunnel(near, &ClientSettings::default()).await;
        let mut peer = Raw::server(far, &[]).await;
        peer.answers_pings = false;
        let start = Instant::now();
        let connect = spawn_local({
            let tunnel = tunnel.clone();
            async move { tunnel.connect(&request("10.0.0.1:80"), soon()).await }
        });
        assert_eq!(peer.expect(raw::HEADERS).await.stream, 1);
        peer.accept(1).await;
        let mut stream = connect.await.unwrap().unwrap().stream;
        assert!(peer.next().await.is_none(), "nothing may follow, no GOAWAY in particular");
        assert!(start.elapsed() >= Duration::from_secs(30));
        assert!(matches!(driver.await.unwrap(), Err(TunnelError::Silent)));
        assert_eq!(stream.recv.chunk().await.unwrap_err().ending(), Ending::Disconnected);
        assert!(!tunnel.is_available());
    });
}

#[test]
fn a_server_whose_ping_is_not_answered_says_goaway_and_ends_its_streams_without_error() {
    run_simulated(async {
        let (near, far) = duplex(TRANSPORT);
        let mut peer = Raw::client(near, &[]).await;
        peer.answers_pings = false;
        let mut server = Server::handshake(far, &ServerSettings::default(), soon()).await.unwrap();
        peer.connect(1, "10.0.0.1:80").await;
        let mut stream = server.accept().await.unwrap().unwrap().accept(None).unwrap();
        let start = Instant::now();
        assert!(matches!(server.accept().await, Some(Err(TunnelError::Silent))));
        assert_eq!(start.elapsed().as_secs(), 30);
        assert!(server.accept().await.is_none());
        assert!(stream.recv.chunk().await.unwrap().is_none());
        assert_eq!(peer.expect(raw::HEADERS).await.stream, 1);
        let goaway = peer.expect(raw::GOAWAY).await;
        assert_eq!((goaway.last_stream(), goaway.number()), (1, 0));
    });
}

#[test]
fn an_unused_tunnel_that_nobody_holds_closes_with_goaway() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let (tunnel, driver) = tunnel(near, &ClientSettings::default()).await;
        let mut peer = Raw::server(far, &[]).await;
        settle().await;
        drop(tunnel);
        let goaway = peer.expect(raw::GOAWAY).await;
        assert_eq!((goaway.last_stream(), goaway.number()), (0, 0));
        assert!(peer.next().await.is_none());
        driver.await.unwrap().unwrap();
    });
}

#[test]
fn a_draining_server_answers_requests_of_the_round_trip_and_closes_after_the_last_stream() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let mut peer = Raw::client(near, &[]).await;
        peer.answers_pings = false;
        let mut server = Server::handshake(far, &ServerSettings::default(), soon()).await.unwrap();
        peer.connect(1, "10.0.0.1:80").await;
        spawn_local(echo(server.accept().await.unwrap().unwrap()));
        server.drain();
        let served = serve(server, echo);

        let first = peer.expect(raw::GOAWAY).await;
        assert_eq!((first.last_stream(), first.number()), ((1 << 31) - 1, 0));
        let ping = loop {
            let frame = peer.read().await.unwrap();
            if frame.kind == raw::PING {
                break frame;
            }
        };
        assert_eq!(peer.expect(raw::HEADERS).await.stream, 1);
        // On its way before the client saw the GOAWAY.
        peer.connect(3, "10.0.0.1:80").await;
        assert_eq!(peer.expect(raw::HEADERS).await.stream, 3);
        peer.write(raw::PING, raw::ACK, 0, &ping.payload).await;
        let second = peer.expect(raw::GOAWAY).await;
        assert_eq!((second.last_stream(), second.number()), (3, 0));
        // Too late: the client knows from the last stream that this one was not looked at.
        peer.connect(5, "10.0.0.1:80").await;

        peer.write(raw::DATA, 0, 1, b"still here").await;
        assert_eq!(peer.expect(raw::DATA).await.payload, b"still here");
        for stream in [1, 3] {
            assert!(!served.is_finished());
            peer.write(raw::DATA, raw::END_STREAM, stream, b"").await;
            let end = peer.expect(raw::DATA).await;
            assert_eq!((end.stream, end.is_end_stream()), (stream, true));
        }
        assert!(peer.next().await.is_none());
        served.await.unwrap();
    });
}

#[test]
fn an_aborted_server_says_goaway_and_its_streams_end_without_error() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let mut peer = Raw::client(near, &[]).await;
        let mut server = Server::handshake(far, &ServerSettings::default(), soon()).await.unwrap();
        peer.connect(1, "10.0.0.1:80").await;
        let mut stream = server.accept().await.unwrap().unwrap().accept(None).unwrap();
        server.abort();
        assert!(server.accept().await.is_none());
        assert!(stream.recv.chunk().await.unwrap().is_none());
        let goaway = loop {
            match peer.next().await.unwrap() {
                frame if frame.kind == raw::GOAWAY => break frame,
                frame => assert_eq!(frame.kind, raw::HEADERS),
            }
        };
        assert_eq!((goaway.last_stream(), goaway.number()), (1, 0));
        drop(server);
        assert!(peer.next().await.is_none());
    });
}

#[test]
fn a_peer_that_never_sends_its_preface_hits_the_deadline() {
    run_simulated(async {
        let (_silent, far) = duplex(TRANSPORT);
        let outcome = Server::handshake(far, &ServerSettings::default(), soon()).await;
        assert!(matches!(outcome, Err(HandshakeError::Deadline)));

        // A client whose preface nobody takes.
        let (near, _silent) = duplex(8);
        let outcome = Tunnel::handshake(near, &ClientSettings::default(), soon()).await;
        assert!(matches!(outcome, Err(HandshakeError::Deadline)));
    });
}

#[test]
fn a_peer_that_speaks_something_else_is_told_apart_from_one_that_hangs_up() {
    run(async {
        use tokio::io::AsyncWriteExt as _;
        let (mut near, far) = duplex(TRANSPORT);
        near.write_all(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n").await.unwrap();
        let outcome = Server::handshake(far, &ServerSettings::default(), soon()).await;
        assert!(matches!(outcome, Err(HandshakeError::Violation(ErrorCode::PROTOCOL_ERROR))));

        let (near, far) = duplex(TRANSPORT);
        drop(near);
        let outcome = Server::handshake(far, &ServerSettings::default(), soon()).await;
        assert!(matches!(outcome, Err(HandshakeError::Transport(_))));
    });
}

#[test]
fn a_handler_learns_that_the_client_gave_up_before_the_answer() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let mut peer = Raw::client(near, &[]).await;
        let mut server = Server::handshake(far, &ServerSettings::default(), soon()).await.unwrap();
        peer.connect(1, "10.0.0.1:80").await;
        let mut incoming = server.accept().await.unwrap().unwrap();
        serve(server, echo);
        peer.reset(1, ErrorCode::CANCEL.into()).await;
        assert_eq!(incoming.abandoned().await.ending(), Ending::EndOfData);
        incoming.accept(None).unwrap_err();
    });
}

#[test]
fn a_client_that_resets_faster_than_handlers_end_is_refused() {
    run(async {
        let (near, far) = duplex(TRANSPORT);
        let mut peer = Raw::client(near, &[]).await;
        let settings = ServerSettings { max_streams: 2, ..ServerSettings::default() };
        let server = Server::handshake(far, &settings, soon()).await.unwrap();
        let stuck = Rc::new(RefCell::new(Vec::new()));
        serve(server, {
            let stuck = stuck.clone();
            move |incoming| {
                stuck.borrow_mut().push(incoming);
                async {}
            }
        });
        for (count, stream) in [1, 3, 5, 7].into_iter().enumerate() {
            peer.connect(stream, "10.0.0.1:80").await;
            eventually("the request arrives", || stuck.borrow().len() == count + 1).await;
            peer.reset(stream, ErrorCode::CANCEL.into()).await;
        }
        peer.connect(9, "10.0.0.1:80").await;
        let reset = peer.expect(raw::RST_STREAM).await;
        assert_eq!((reset.stream, ErrorCode::from(reset.number())), (9, ErrorCode::REFUSED_STREAM));
        stuck.borrow_mut().clear();
        peer.connect(11, "10.0.0.1:80").await;
        eventually("there is room again", || stuck.borrow().len() == 1).await;
    });
}
