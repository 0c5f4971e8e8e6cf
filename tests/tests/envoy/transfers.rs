//! Many connections and many bytes by way of a waypoint.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use lab::traffic::{self, Ending, Received, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::{HTTP, RAW, Scene, WEB, field, read_head};

/// More than fits any window or buffer on the way.
const LARGE: u64 = 24 << 20;

/// An echo server behind the service's raw port.
pub(crate) fn echo(scene: &Scene) -> Server {
    Server::start(&scene.driven.server, RAW.1, traffic::echo).unwrap()
}

#[test]
fn more_connections_than_a_tunnel_to_envoy_takes_get_further_tunnels() {
    const CONNECTIONS: usize = 200;
    let scene = Scene::new();
    let envoy = scene.envoy();
    let server = echo(&scene);
    let target: SocketAddr = (WEB, RAW.0).into();
    scene
        .driven
        .client
        .run(async move || {
            let mut connecting = JoinSet::new();
            for _ in 0..CONNECTIONS {
                connecting.spawn_local(async move {
                    let mut stream = traffic::connect(target).await?;
                    traffic::round_trip(&mut stream, b"hello").await?;
                    Ok::<_, anyhow::Error>(stream)
                });
            }
            // All are open at once, and all still work then.
            let mut open = Vec::new();
            while let Some(connected) = connecting.join_next().await {
                open.push(connected??);
            }
            ensure!(open.len() == CONNECTIONS);
            for stream in &mut open {
                traffic::round_trip(stream, b"still there?").await?;
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(server.accepted(), CONNECTIONS);
    let tunnels = envoy.stat("http.connect_terminate.downstream_cx_total").unwrap();
    assert!((2..=20).contains(&tunnels), "{tunnels} tunnels");
    assert_eq!(envoy.stat("http.connect_terminate.downstream_rq_completed").unwrap(), CONNECTIONS as u64);
    assert_eq!(envoy.faults().unwrap(), Vec::<String>::new());
}

#[test]
fn bytes_arrive_whole_both_ways_and_each_direction_ends_by_itself() {
    let scene = Scene::new();
    let envoy = scene.envoy();
    let target: SocketAddr = (WEB, RAW.0).into();
    let _server = Server::start(&scene.driven.server, RAW.1, count_then_send).unwrap();
    let (there, back) = scene
        .driven
        .client
        .run(async move || traffic::exchange(traffic::connect(target).await?, 7, LARGE).await)
        .unwrap();
    assert_eq!(there.bytes, LARGE);
    assert_eq!(back, expected(there.sha256[0].into()));
    assert_eq!(envoy.faults().unwrap(), Vec::<String>::new());
}

/// Handler: reads to the end of the client's direction, and only then sends, seeded by what it got.
async fn count_then_send(mut stream: TcpStream, _peer: SocketAddr) -> lab::Result<()> {
    let received = traffic::receive(&mut stream).await?;
    traffic::send(&mut stream, received.sha256[0].into(), LARGE).await?;
    stream.shutdown().await?;
    Ok(())
}

/// What [`traffic::send`] sends for a seed.
fn expected(seed: u64) -> Received {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(traffic::send(&mut tokio::io::sink(), seed, LARGE)).unwrap()
}

/// Envoy then ends both directions, with RST_STREAM(NO_ERROR). It has nothing more of the server's then: with more under
/// way than fits its buffers it would drop the rest and say so by an error.
#[test]
fn a_server_that_finishes_first_is_heard_to_its_end() {
    let scene = Scene::new();
    let _envoy = scene.envoy();
    let target: SocketAddr = (WEB, RAW.0).into();
    let handler = async |mut stream: TcpStream, _peer: SocketAddr| {
        stream.write_all(b"goodbye").await?;
        Ok(stream.shutdown().await?)
    };
    let _server = Server::start(&scene.driven.server, RAW.1, handler).unwrap();
    let received = scene
        .driven
        .client
        .run(async move || {
            let mut stream = traffic::connect(target).await?;
            traffic::bounded("the server's direction", traffic::receive(&mut stream)).await
        })
        .unwrap();
    assert_eq!(received.bytes, 7);
}

/// Envoy closes the connection inside right after the response, and says so by RST_STREAM(CONNECT_ERROR). Here that is
/// long before the client has read it.
#[test]
fn a_slow_reader_gets_all_of_a_response_after_which_the_waypoint_has_closed() {
    // Fits the windows on the way, so that the waypoint can be done with it.
    const RESPONSE: u64 = 3 << 20;
    let scene = Scene::new();
    let envoy = scene.envoy();
    let target: SocketAddr = (WEB, HTTP.0).into();
    let handler = async |mut stream: TcpStream, _peer: SocketAddr| {
        read_head(&mut stream).await?;
        stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {RESPONSE}\r\n\r\n").as_bytes()).await?;
        traffic::send(&mut stream, 13, RESPONSE).await?;
        Ok(stream.shutdown().await?)
    };
    let _server = Server::start(&scene.driven.server, HTTP.1, handler).unwrap();
    let (go_on, gone_on) = tokio::sync::oneshot::channel();
    let reading = scene.driven.client.spawn(async move || {
        let mut stream = traffic::connect(target).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await?;
        gone_on.await?;
        // Longer than anything is allowed that came before a reset.
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        let (_, rest) = read_head(&mut stream).await?;
        traffic::receive(&mut (&rest[..]).chain(stream)).await
    });
    let resets = || envoy.stat("http2.tx_reset").unwrap();
    lab::wait_until(|| resets() == 1).unwrap();
    go_on.send(()).unwrap();
    let received = reading.join().unwrap();
    assert_eq!(received.bytes, RESPONSE);
}

#[test]
fn a_connection_that_one_end_cuts_ends_at_the_other() {
    let scene = Scene::new();
    let _envoy = scene.envoy();
    let target: SocketAddr = (WEB, RAW.0).into();
    let (seen, ended) = std::sync::mpsc::channel();
    let handler = async move |mut stream: TcpStream, _peer: SocketAddr| {
        let mut first = [0];
        stream.read_exact(&mut first).await?;
        stream.write_all(&first).await?;
        match first {
            [b'c'] => {
                stream.read_exact(&mut first).await?;
                traffic::reset(stream)
            }
            _ => Ok(seen.send(traffic::ending(&mut stream).await?)?),
        }
    };
    let server = Server::start(&scene.driven.server, RAW.1, handler).unwrap();
    scene
        .driven
        .client
        .run(async move || {
            let mut stream = traffic::connect(target).await?;
            traffic::round_trip(&mut stream, b"c").await?;
            stream.write_all(b"!").await?;
            traffic::ending(&mut stream).await?;

            let mut stream = traffic::connect(target).await?;
            traffic::round_trip(&mut stream, b"I").await?;
            traffic::reset(stream)
        })
        .unwrap();
    // Whether by a reset depends on Envoy, which does not always say.
    ended.recv_timeout(lab::PATIENCE).unwrap();
    lab::wait_until(|| server.open() == 0).unwrap();
}

/// The client must not take what it has for the whole.
#[test]
fn a_transfer_during_which_the_waypoint_dies_is_reset_at_the_client() {
    let scene = Scene::new();
    let mut envoy = scene.envoy();
    let target: SocketAddr = (WEB, RAW.0).into();
    let handler = async |mut stream: TcpStream, _peer: SocketAddr| {
        traffic::send(&mut stream, 17, u64::MAX).await.map(drop)
    };
    let server = Server::start(&scene.driven.server, RAW.1, handler).unwrap();
    for graceful in [false, true] {
        let (started, under_way) = std::sync::mpsc::channel();
        let reading = scene.driven.client.spawn(async move || {
            let mut stream = traffic::connect(target).await?;
            traffic::bounded("the first byte", async { Ok(stream.read_u8().await?) }).await?;
            started.send(())?;
            traffic::ending(&mut stream).await
        });
        under_way.recv_timeout(lab::PATIENCE).unwrap();
        if graceful {
            envoy.stop().unwrap();
        }
        envoy.kill();
        assert_eq!(reading.join().unwrap(), Ending::Reset, "graceful: {graceful}");
        lab::wait_until(|| server.open() == 0).unwrap();
        envoy.restart().unwrap();
    }
}

#[test]
fn large_http_bodies_arrive_whole_both_ways() {
    let scene = Scene::new();
    let _envoy = scene.envoy();
    let target: SocketAddr = (WEB, HTTP.0).into();
    let _server = Server::start(&scene.driven.server, HTTP.1, echo_body).unwrap();
    scene
        .driven
        .client
        .run(async move || {
            let stream = traffic::connect(target).await?;
            traffic::bounded("the request", post(stream)).await
        })
        .unwrap();
}

async fn post(mut stream: TcpStream) -> lab::Result<()> {
    let head = format!("POST / HTTP/1.1\r\nhost: web\r\ncontent-length: {LARGE}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let sent = traffic::send(&mut stream, 11, LARGE).await?;
    let (head, rest) = read_head(&mut stream).await?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    ensure!(field(&head, "content-length")?.parse::<u64>()? == LARGE, "{head}");
    // The connection stays open: were it to end here, Envoy would not wait until we have everything.
    let mut body = (&rest[..]).chain(stream).take(LARGE);
    ensure!(traffic::receive(&mut body).await? == sent, "the echo differs");
    Ok(())
}

/// Handler: an HTTP/1.1 server that answers one request with its body, once it has all of it.
async fn echo_body(mut stream: TcpStream, _peer: SocketAddr) -> lab::Result<()> {
    let (head, mut body) = read_head(&mut stream).await?;
    ensure!(field(&head, "x-waypoint")? == "waypoint");
    let length: usize = field(&head, "content-length")?.parse()?;
    let missing = length.checked_sub(body.len()).context("more than announced")?;
    let at = body.len();
    body.resize(length, 0);
    stream.read_exact(&mut body[at..at + missing]).await?;
    stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").as_bytes()).await?;
    stream.write_all(&body).await?;
    // Until Envoy is done with the connection.
    traffic::ending(&mut stream).await?;
    Ok(())
}
