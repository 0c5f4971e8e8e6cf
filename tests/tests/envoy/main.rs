//! A real Envoy between real proxies: as waypoint of services and workloads, behind a proxy of its own, and as east-west
//! gateway.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

mod gateway;
mod sandwich;
mod transfers;
mod waypoint;

use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use lab::istiod::{service_key, waypoint as waypoint_service};
use lab::traffic::{self, Outcome, Server};
use lab::{Attached, Driven, DrivenOptions, Envoy, EnvoyRole, Layer, Pod};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use xds_client::workload::{Port, PortList};

/// The address of the service `web`, which has the server as its only endpoint. Nobody has it.
const WEB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1));

/// Its port for HTTP, and the server's.
const HTTP: (u16, u16) = (80, 8080);

/// Its port for what the waypoint does not look into, and the server's.
const RAW: (u16, u16) = (90, 8090);

/// Where a waypoint behind the node's proxy listens.
const APPLICATION_TUNNEL: u16 = 15088;

/// The two nodes of [`Driven`], and the pod `waypoint` on a third: endpoint of the service `way`, which is the waypoint
/// of `web`.
struct Scene {
    waypoint: Pod,
    driven: Driven,
}

impl Scene {
    /// Without an Envoy.
    fn new() -> Self {
        let driven = Driven::prepare(&DrivenOptions::default()).unwrap();
        let waypoint = driven.lab.node("middle").unwrap().pod("waypoint").unwrap();
        Self { waypoint, driven }.started()
    }

    fn started(mut self) -> Self {
        self.describe();
        self.driven.istiod.listen().unwrap();
        self.driven.start().unwrap();
        self
    }

    fn describe(&self) {
        let (server, waypoint) = (&self.driven.server, &self.waypoint);
        self.driven
            .istiod
            .edit(|world| -> lab::Result<()> {
                world.enrol(waypoint);
                world.service("way", &["10.96.0.2".parse()?], (15008, 15008), &[waypoint])?;
                world.service("web", &[WEB], HTTP, &[server])?;
                let ports = [HTTP, RAW].map(|(service_port, target_port)| Port {
                    service_port: service_port.into(),
                    target_port: target_port.into(),
                    ..Port::default()
                });
                world.change_workload(server, |workload| {
                    workload.services.insert(service_key("web"), PortList { ports: ports.to_vec() });
                })?;
                world.change_service("web", |service| {
                    service.ports = ports.to_vec();
                    service.waypoint = Some(waypoint_service("way"));
                })
            })
            .unwrap();
    }

    /// An Envoy in the waypoint's pod that serves both ports of the service, and those of the server itself.
    fn envoy(&self) -> Envoy {
        Envoy::start(&self.waypoint, &self.driven.istiod, &self.role()).unwrap()
    }

    fn role(&self) -> EnvoyRole {
        EnvoyRole::Waypoint(self.attached())
    }

    fn attached(&self) -> Vec<Attached> {
        let server = &self.driven.server;
        let mut attached = Vec::new();
        for ((port, target), layer) in [(HTTP, Layer::Http), (RAW, Layer::Tcp)] {
            for address in [(WEB, port).into(), server.at(target), server.at_ipv6(target)] {
                let endpoint = if address.is_ipv4() { server.at(target) } else { server.at_ipv6(target) };
                attached.push(Attached { address, layer, endpoints: vec![endpoint] });
            }
        }
        attached
    }

    /// An HTTP server behind the service that answers with the head of the request.
    fn http_server(&self) -> Server {
        Server::start(&self.driven.server, HTTP.1, tell_head).unwrap()
    }

    /// What the server behind an address was asked by the client, and answers with.
    fn head_seen(&self, target: SocketAddr) -> String {
        let (status, head) =
            self.driven.client.run(async move || traffic::http_get(target, "/hello").await).unwrap();
        assert_eq!(status, 200, "{head}");
        assert!(head.starts_with("GET /hello HTTP/1.1\r\n"), "{head}");
        head
    }

    /// What becomes of an HTTP request of the client.
    fn outcome(&self, target: SocketAddr) -> Outcome {
        let request = b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
        self.driven.client.run(async move || traffic::outcome(target, request).await).unwrap()
    }
}

/// Handler: an HTTP/1.1 server that answers one request with its head.
async fn tell_head(mut stream: TcpStream, _peer: SocketAddr) -> lab::Result<()> {
    let (head, _) = read_head(&mut stream).await?;
    let answer =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{head}", head.len());
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

/// The head of an HTTP/1.1 message, with its empty line, and what has been read after it.
async fn read_head(stream: &mut TcpStream) -> lab::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((String::from_utf8(bytes)?, rest));
        }
        anyhow::ensure!(stream.read_buf(&mut bytes).await? > 0, "the message ends in its head");
    }
}

/// The value of a field in a head.
fn field<'a>(head: &'a str, name: &str) -> lab::Result<&'a str> {
    let prefix = format!("{name}: ");
    let value = head.lines().find_map(|line| line.strip_prefix(&prefix));
    value.with_context(|| format!("no {name} in {head:?}"))
}
