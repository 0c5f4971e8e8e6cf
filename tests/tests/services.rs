//! Services: virtual addresses, several replicas, port maps.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::net::{IpAddr, SocketAddr};

use lab::traffic::{self, Outcome, Server};
use lab::{AccessLine, BackendChoice, Lab, Mesh, MeshFile, TwoNodes, ZtunnelOptions, hello};

#[test]
fn both_replicas_of_a_service_are_used_and_its_port_is_mapped() {
    let lab = Lab::new().unwrap();
    let (east, west) = (lab.node("east").unwrap(), lab.node("west").unwrap());
    let client = east.pod("client").unwrap();
    let replicas = [east.pod_as("web-1", "web").unwrap(), west.pod_as("web-2", "web").unwrap()];
    let mut file = MeshFile::default();
    for pod in [&client, &replicas[0], &replicas[1]] {
        file.enrol(pod);
    }
    let vips: [IpAddr; 2] = ["10.96.0.1".parse().unwrap(), "fd96::1".parse().unwrap()];
    file.service("web", &vips, (80, 8080), &[&replicas[0], &replicas[1]]).unwrap();
    let mesh = Mesh::start(&file, &[&client, &replicas[0], &replicas[1]], BackendChoice::Nftables).unwrap();
    let servers = replicas.each_ref().map(|replica| Server::start(replica, 8080, traffic::echo).unwrap());

    // With a fair choice between two, 64 connections all go to one in one run of 2^63.
    for vip in [vips[0]; 32].into_iter().chain([vips[1]; 32]) {
        assert_eq!(hello(&client, (vip, 80).into()).unwrap(), Outcome::answered("hello"));
    }
    let used = servers.each_ref().map(Server::accepted);
    assert_eq!(used.iter().sum::<usize>(), 64);
    assert!(used.iter().all(|count| *count > 0), "{used:?}");

    let to_service = |line: &AccessLine| line.text("direction") == "outbound";
    let line = mesh.ztunnel(&east).unwrap().wait_for_access(to_service).unwrap();
    assert_eq!(line.text("dst.service"), "web.default.svc.cluster.local", "{line:?}");
    let chosen: SocketAddr = line.text("dst.hbone_addr").parse().unwrap();
    assert_eq!(chosen.port(), 8080, "{line:?}");
    assert!(replicas.iter().any(|replica| replica.addresses().contains(&chosen.ip())), "{line:?}");
}

#[test]
fn a_service_without_endpoints_is_not_passed_through_in_clear() {
    let vip: IpAddr = "10.96.0.9".parse().unwrap();
    let scene = TwoNodes::with(BackendChoice::Nftables, &ZtunnelOptions::default(), |file, _| {
        file.service("empty", &[vip], (80, 8080), &[])
    })
    .unwrap();
    assert_eq!(hello(&scene.client, (vip, 80).into()).unwrap(), Outcome::Cut);
    let line = scene.east_ztunnel().unwrap().wait_for_access(|_| true).unwrap();
    assert_eq!(line.message, "connection failed");
    assert_eq!(line.text("error"), "no healthy upstream: 10.96.0.9:80");
}
