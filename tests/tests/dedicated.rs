//! A proxy of its own for one pod, in the pod's namespace.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use lab::traffic::{self, Outcome, Server};
use lab::{BackendChoice, Lab, MeshFile, Ztunnel, ZtunnelOptions, apply_rules, hello};

#[test]
fn two_pods_with_a_proxy_each_are_joined_by_a_tunnel() {
    let lab = Lab::new().unwrap();
    let client = lab.node("east").unwrap().pod("client").unwrap();
    let server = lab.node("west").unwrap().pod("server").unwrap();
    let mut file = MeshFile::default();
    let pods = [&client, &server];
    for pod in pods {
        file.enrol(pod);
    }
    // The pod's rules know the proxy by its mark.
    let options = ZtunnelOptions::default().variable("PACKET_MARK", "1337");
    let ztunnels = pods.map(|pod| {
        apply_rules(pod, BackendChoice::Nftables).unwrap();
        Ztunnel::dedicated(pod, &file, &options).unwrap()
    });
    for ztunnel in &ztunnels {
        ztunnel.wait_ready().unwrap();
    }
    let echo = Server::start(&server, 8080, traffic::echo).unwrap();
    for target in [echo.ipv4(), echo.ipv6()] {
        assert_eq!(hello(&client, target).unwrap(), Outcome::answered("hello"));
        for ztunnel in &ztunnels {
            let tunnelled = |line: &lab::AccessLine| line.text("dst.hbone_addr") == target.to_string();
            let line = ztunnel.wait_for_access(tunnelled).unwrap();
            assert_eq!(line.text("src.identity"), client.identity(), "{line:?}");
            assert_eq!(line.text("dst.identity"), server.identity(), "{line:?}");
        }
    }
    for ztunnel in &ztunnels {
        assert_eq!(ztunnel.terminate(lab::PATIENCE).unwrap().code(), Some(0));
    }
}
