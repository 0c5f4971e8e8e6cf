//! SOCKS5: what an application asks the proxy for instead of having it redirected.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lab::traffic::{self, Outcome, Server, bounded, connect};
use lab::{BackendChoice, Pod, TwoNodes, ZtunnelOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const SOCKS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15080);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const ACCEPTED: [u8; 2] = [5, 0];

fn scene(options: ZtunnelOptions) -> TwoNodes {
    let options = options.variable("UNSTABLE_ENABLE_SOCKS5", "true");
    TwoNodes::with(BackendChoice::Nftables, &options, |file, server| {
        file.service("web", &[VIP.into()], (80, 8080), &[server])
    })
    .unwrap()
}

fn reply(code: u8) -> [u8; 10] {
    [5, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

fn request(target: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(target) = target else { panic!("IPv4 here") };
    [&[5, 1, 0, 1][..], &target.ip().octets(), &target.port().to_be_bytes()].concat()
}

fn request_by_name(name: &str, port: u16) -> Vec<u8> {
    let length = u8::try_from(name.len()).unwrap();
    [&[5, 1, 0, 3, length][..], name.as_bytes(), &port.to_be_bytes()].concat()
}

/// Whether the client stops to send after what it has sent.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Waits,
    Finishes,
}

/// Everything that comes back for these bytes, sent at once, until the proxy closes the connection.
fn answer(pod: &Pod, bytes: Vec<u8>, then: Then) -> Vec<u8> {
    pod.run(async move || {
        let mut stream = connect(SOCKS).await?;
        bounded("an answer", async {
            stream.write_all(&bytes).await?;
            if then == Then::Finishes {
                stream.shutdown().await?;
            }
            let mut answer = Vec::new();
            // A connection that ends at once may be reset after the answer.
            let _ = stream.read_to_end(&mut answer).await;
            Ok(answer)
        })
        .await
    })
    .unwrap()
}

/// An HTTP server that says who asked.
async fn web(mut stream: TcpStream, peer: SocketAddr) -> lab::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await? > 0 {}
    let body = peer.ip().to_canonical().to_string();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

fn curl(pod: &Pod, arguments: &[&str]) -> String {
    let mut command = pod.command("curl");
    command.args(["-sSf", "--max-time", "20"]).args(arguments);
    let output = pod.output(command).unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{arguments:?}: {stdout}\n{stderr}");
    stdout
}

#[test]
fn curl_reaches_a_pod_a_virtual_address_and_a_name_through_tunnels() {
    let scene = scene(ZtunnelOptions::default());
    let server = Server::start(&scene.server, 8080, web).unwrap();
    let socks = SOCKS.to_string();
    for (option, url) in [
        ("--socks5", format!("http://{}/", server.ipv4())),
        ("--socks5", format!("http://{VIP}/")),
        ("--socks5-hostname", "http://web.default.svc.cluster.local/".to_owned()),
    ] {
        assert_eq!(curl(&scene.client, &[option, &socks, &url]), scene.client.ipv4().to_string(), "{url}");
    }
    assert_eq!(server.accepted(), 3);
    let lines = scene.west_ztunnel().unwrap();
    let line = lines.wait_for_access(|line| line.text("direction") == "inbound").unwrap();
    assert_eq!(line.text("src.identity"), scene.client.identity());
    let line =
        scene.east_ztunnel().unwrap().wait_for_access(|line| line.get("dst.service").is_some()).unwrap();
    assert!(line.text("src.addr").starts_with("127.0.0.1:"), "{line:?}");
    assert_eq!(line.text("dst.hbone_addr"), server.ipv4().to_string());
}

#[test]
fn the_listener_is_there_only_when_asked_for_and_only_on_loopback() {
    let without = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let ask = |pod: &Pod, target| pod.run(async move || traffic::outcome(target, &[5, 1, 0]).await).unwrap();
    assert_eq!(ask(&without.client, SOCKS), Outcome::Refused);
    let with = scene(ZtunnelOptions::default());
    assert_ne!(ask(&with.client, SOCKS), Outcome::Refused);
    assert_eq!(ask(&with.client, with.client.at(15080)), Outcome::Refused);
}

#[test]
fn every_refusal_has_its_code() {
    let scene = scene(ZtunnelOptions::default());
    let greeting = [5, 1, 0].to_vec();
    let after_greeting = |request: &[u8]| [&greeting[..], request].concat();
    let accepted_then = |code| [&ACCEPTED[..], &reply(code)].concat();
    for (what, bytes, then, expected) in [
        ("version 4", vec![4, 1, 0], Then::Waits, reply(7).to_vec()),
        ("no methods", vec![5, 0], Then::Waits, reply(7).to_vec()),
        ("a password", vec![5, 1, 2], Then::Waits, reply(7).to_vec()),
        ("bind", after_greeting(&[5, 2, 0, 1, 10, 0, 0, 1, 0, 80]), Then::Waits, accepted_then(7)),
        ("address type 9", after_greeting(&[5, 1, 0, 9, 1, 2, 3]), Then::Waits, accepted_then(7)),
        ("version 4 later", after_greeting(&[4]), Then::Waits, accepted_then(7)),
        (
            "a name of nobody",
            after_greeting(&request_by_name("nobody.example", 80)),
            Then::Waits,
            accepted_then(4),
        ),
        ("an end", after_greeting(&[5, 1]), Then::Finishes, accepted_then(1)),
    ] {
        assert_eq!(answer(&scene.client, bytes, then), expected, "{what}");
    }
    let line = scene.east_ztunnel().unwrap().wait_for_access(|_| true).unwrap();
    assert_eq!(line.message, "connection failed");
    assert!(line.text("error").contains("SOCKS version 4 is not supported"), "{line:?}");
}

#[test]
fn without_the_dns_proxy_names_are_not_supported() {
    let scene = scene(ZtunnelOptions::default().variable("ISTIO_META_DNS_CAPTURE", "false"));
    let bytes = [&[5, 1, 0][..], &request_by_name("web.default.svc.cluster.local", 80)].concat();
    let expected = [&ACCEPTED[..], &reply(7)].concat();
    assert_eq!(answer(&scene.client, bytes, Then::Waits), expected);
}

#[test]
fn what_the_client_sends_along_with_its_request_belongs_to_the_connection() {
    let scene = scene(ZtunnelOptions::default());
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let bytes = [&[5, 1, 0][..], &request(echo.ipv4()), b"hello"].concat();
    let expected = [&ACCEPTED[..], &reply(0), b"hello"].concat();
    assert_eq!(answer(&scene.client, bytes, Then::Finishes), expected);
}

#[test]
fn a_request_for_one_of_our_own_ports_is_accepted_and_closed() {
    let scene = scene(ZtunnelOptions::default());
    for port in [15001, 15006, 15008, 15080] {
        let bytes = [&[5, 1, 0][..], &request((Ipv4Addr::LOCALHOST, port).into())].concat();
        let expected = [&ACCEPTED[..], &reply(0)].concat();
        assert_eq!(answer(&scene.client, bytes, Then::Waits), expected, "{port}");
    }
    let own = |line: &lab::AccessLine| line.text("error").contains("recursive call");
    scene.east_ztunnel().unwrap().wait_for_access(own).unwrap();
}

#[test]
fn a_client_that_says_nothing_is_turned_away() {
    let scene = scene(ZtunnelOptions::default());
    assert_eq!(answer(&scene.client, vec![5, 1, 0], Then::Waits), [&ACCEPTED[..], &reply(1)].concat());
    let late = |line: &lab::AccessLine| line.text("error").contains("the client took too long");
    scene.east_ztunnel().unwrap().wait_for_access(late).unwrap();
}
