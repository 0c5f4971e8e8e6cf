//! What peers of a local workload's HBONE port may ask for, and where they get to.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::net::{IpAddr, SocketAddr};

use ztunnel::state::inbound::{Authority, InboundError, NextHop, next_hop, validate_authority};
use ztunnel::state::route::RouteConfig;
use ztunnel::state::{Mesh, StaticConfig};

const SERVER: &str = "10.0.0.2";
const WAYPOINT: &str = "10.0.0.3";

/// A server pod 10.0.0.2 behind 10.10.0.1, and a waypoint pod 10.0.0.3 behind 10.10.0.2. `WORKLOAD_WAYPOINT`,
/// `SERVICE_WAYPOINT` and `TUNNEL` are filled in by the cases.
const MESH: &str = r#"
services:
- {name: server, namespace: ns, hostname: server.example.com, vips: ["/10.10.0.1", "other/10.99.0.1"], ports: {80: 8080, 81: 0, 82: 15006}SERVICE_WAYPOINT}
- {name: waypoint, namespace: ns, hostname: waypoint.example.com, vips: ["/10.10.0.2"], ports: {15008: 15008}}
- {name: headless, namespace: ns, hostname: headless.example.com, vips: [], ports: {80: 8080}}
- {name: hidden, namespace: other, hostname: hidden.example.com, vips: [], ports: {80: 8080}, visibility: Namespace}
workloads:
- {uid: server, name: server, namespace: ns, protocol: HBONE, workloadIps: ["10.0.0.2"], services: {"ns/server.example.com": {80: 8080}}WORKLOAD_WAYPOINT}
- {uid: waypoint, name: waypoint, namespace: ns, protocol: HBONE, workloadIps: ["10.0.0.3"], services: {"ns/waypoint.example.com": {15008: 15008}}TUNNEL}
- {uid: client, name: client, namespace: ns, protocol: HBONE, workloadIps: ["10.0.0.1"], services: {}}
"#;

#[derive(Clone, Copy, Default)]
struct Case<'a> {
    workload_waypoint: &'a str,
    service_waypoint: &'a str,
    tunnel: &'a str,
}

impl Case<'_> {
    fn mesh(&self) -> Mesh {
        let waypoint = |destination: &str| match destination {
            "" => String::new(),
            destination => format!(r#", waypoint: {{destination: "{destination}", hboneMtlsPort: 15008}}"#),
        };
        let tunnel = match self.tunnel {
            "" => String::new(),
            tunnel => format!(", applicationTunnel: {tunnel}"),
        };
        let text = MESH
            .replace("WORKLOAD_WAYPOINT", &waypoint(self.workload_waypoint))
            .replace("SERVICE_WAYPOINT", &waypoint(self.service_waypoint))
            .replace("TUNNEL", &tunnel);
        let mut mesh = Mesh::new(None);
        StaticConfig::parse("test", &text).unwrap().apply(&mut mesh);
        mesh
    }

    /// What a peer gets that is connected to `local` and asks for `authority`.
    fn ask(&self, local: &str, authority: &str) -> Result<NextHop, InboundError> {
        let mesh = self.mesh();
        let config = RouteConfig { network: "".into(), illegal_ports: [15001, 15006, 15008].into() };
        let local_ip: IpAddr = local.parse().unwrap();
        let workload = mesh.workload_by_address("", local_ip).unwrap();
        let authority = match authority.parse::<SocketAddr>() {
            Ok(address) => Authority::Address(address),
            Err(_) => {
                let (hostname, port) = authority.rsplit_once(':').unwrap();
                Authority::Hostname(hostname, port.parse().unwrap())
            }
        };
        validate_authority(&mesh, &config, workload, local_ip, authority)?;
        next_hop(&mesh, &config, workload, local_ip, authority)
    }

    /// The address, and the destination in the PROXY header if there is one.
    fn hop(&self, local: &str, authority: &str) -> (String, Option<String>) {
        let hop = self.ask(local, authority).unwrap();
        (hop.address.to_string(), hop.proxy_destination.map(|address| address.to_string()))
    }
}

const TUNNEL: &str = "{protocol: PROXY, port: 15088}";

#[test]
fn a_peer_may_ask_for_the_workload_it_is_connected_to() {
    let case = Case::default();
    assert_eq!(case.hop(SERVER, "10.0.0.2:8080"), ("10.0.0.2:8080".into(), None));
    assert_eq!(case.hop(SERVER, "[::ffff:10.0.0.2]:8080"), ("10.0.0.2:8080".into(), None));
    assert_eq!(case.hop(SERVER, "server.example.com:80"), ("10.0.0.2:8080".into(), None));
    let hop = case.ask(SERVER, "server.example.com:80").unwrap();
    assert_eq!(&*hop.service.unwrap().host.hostname, "server.example.com");
}

#[test]
fn a_captured_waypoint_takes_what_is_meant_for_its_workloads() {
    for waypoint in ["/10.0.0.3", "/10.10.0.2", "ns/waypoint.example.com"] {
        let case = Case { workload_waypoint: waypoint, ..Case::default() };
        assert_eq!(case.hop(WAYPOINT, "10.0.0.2:8080"), ("10.0.0.3:8080".into(), None));
        let case = Case { tunnel: TUNNEL, ..case };
        let expected = ("10.0.0.3:15088".into(), Some("10.0.0.2:8080".into()));
        assert_eq!(case.hop(WAYPOINT, "10.0.0.2:8080"), expected);
    }
}

#[test]
fn a_captured_waypoint_takes_what_is_meant_for_its_services() {
    for waypoint in ["/10.0.0.3", "/10.10.0.2", "ns/waypoint.example.com"] {
        let case = Case { service_waypoint: waypoint, ..Case::default() };
        assert_eq!(case.hop(WAYPOINT, "10.10.0.1:80"), ("10.0.0.3:80".into(), None));
        let case = Case { tunnel: TUNNEL, ..case };
        assert_eq!(
            case.hop(WAYPOINT, "10.10.0.1:80"),
            ("10.0.0.3:15088".into(), Some("10.10.0.1:80".into()))
        );
    }
}

#[test]
fn a_waypoint_of_services_is_not_one_of_workloads_nor_the_reverse() {
    let of_service = Case { service_waypoint: "/10.0.0.3", ..Case::default() };
    assert!(matches!(of_service.ask(WAYPOINT, "10.0.0.2:8080"), Err(InboundError::IpMismatch { .. })));
    let of_workload = Case { workload_waypoint: "/10.0.0.3", ..Case::default() };
    assert!(matches!(of_workload.ask(WAYPOINT, "10.10.0.1:80"), Err(InboundError::IpMismatch { .. })));
}

#[test]
fn another_address_is_refused() {
    let case = Case::default();
    for (local, authority) in [
        (SERVER, "10.0.0.1:8080"),
        (SERVER, "1.2.3.4:80"),
        (WAYPOINT, "10.0.0.1:80"),
        (WAYPOINT, "10.10.0.1:80"),
    ] {
        let error = case.ask(local, authority).unwrap_err();
        let (ip, _) = authority.split_once(':').unwrap();
        assert_eq!(error.to_string(), format!("ip mismatch: {local} != {ip}"));
    }
    // Having a waypoint does not let the workload itself be asked for other addresses.
    let case = Case { workload_waypoint: "/10.0.0.3", ..case };
    assert!(matches!(case.ask(SERVER, "10.0.0.3:80"), Err(InboundError::IpMismatch { .. })));
}

#[test]
fn an_application_tunnel_takes_any_address() {
    let bare = Case { tunnel: "{protocol: NONE}", ..Case::default() };
    assert_eq!(bare.hop(WAYPOINT, "1.2.3.4:80"), ("10.0.0.3:80".into(), None));
    let with_port = Case { tunnel: "{protocol: NONE, port: 15088}", ..Case::default() };
    assert_eq!(with_port.hop(WAYPOINT, "1.2.3.4:80"), ("10.0.0.3:15088".into(), None));
    let proxy = Case { tunnel: "{protocol: PROXY}", ..Case::default() };
    assert_eq!(proxy.hop(WAYPOINT, "1.2.3.4:80"), ("10.0.0.3:80".into(), Some("1.2.3.4:80".into())));
}

#[test]
fn an_application_tunnel_learns_the_address_of_a_service() {
    let case = Case { tunnel: TUNNEL, ..Case::default() };
    let expected = ("10.0.0.3:15088".into(), Some("10.10.0.1:80".into()));
    assert_eq!(case.hop(WAYPOINT, "server.example.com:80"), expected);
    let error = case.ask(WAYPOINT, "headless.example.com:80").unwrap_err();
    assert_eq!(error, InboundError::NoAddressForService("headless.example.com".into()));
}

#[test]
fn a_hostname_must_lead_to_a_port() {
    let case = Case::default();
    let error = |authority: &str| case.ask(SERVER, authority).unwrap_err().to_string();
    assert_eq!(error("nobody.example.com:80"), "no service or workload for hostname: nobody.example.com");
    assert_eq!(error("hidden.example.com:80"), "no service or workload for hostname: hidden.example.com");
    assert_eq!(error("server.example.com:443"), "no port for service: server.example.com:443");
    assert_eq!(error("server.example.com:81"), "no port for service: server.example.com:81");
}

#[test]
fn our_own_ports_are_refused_before_the_tunnel_replaces_them() {
    let case = Case::default();
    assert_eq!(case.ask(SERVER, "10.0.0.2:15008"), Err(InboundError::SelfCall));
    assert_eq!(case.ask(SERVER, "server.example.com:82"), Err(InboundError::SelfCall));
    let case = Case { tunnel: TUNNEL, ..case };
    assert_eq!(case.ask(WAYPOINT, "10.0.0.3:15006"), Err(InboundError::SelfCall));
}
