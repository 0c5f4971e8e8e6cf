//! Sockets come and go with their pod.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use lab::{Ack, BackendChoice, DnsCapture, ZtunnelOptions, apply_rules_with, wait_until};

use crate::resolver::{Asked, address, octets, response};
use crate::scene::{CLUSTER_DNS, Scene, data, framed, query, tcp, udp};

fn one_address(asked: &Asked) -> Vec<Vec<u8>> {
    let mut answer = response(asked);
    answer.add_answer(address(asked, 1, 300));
    octets(&answer)
}

/// Whether somebody listens there in the pod.
fn listens(pod: &lab::Pod, address: IpAddr) -> bool {
    pod.run(async move || Ok(tokio::net::TcpStream::connect((address, 15053)).await.is_ok())).unwrap()
}

const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)];

#[test]
fn both_loopback_addresses_are_served_until_the_pod_is_deleted_and_no_others() {
    let scene = Scene::new(one_address).unwrap();
    assert!(LOOPBACKS.into_iter().all(|address| listens(&scene.client, address)));
    assert!(!listens(&scene.client, scene.client.ipv4().into()));
    assert_eq!(scene.agent.delete(&scene.client).unwrap(), Ack::Accepted);
    wait_until(|| !LOOPBACKS.into_iter().any(|address| listens(&scene.client, address))).unwrap();
    assert!(listens(&scene.other, LOOPBACKS[0]));
    let answer = udp(&scene.other, CLUSTER_DNS[0], query("web.", RecordType::A).to_vec().unwrap()).unwrap();
    assert_eq!(data(&Message::from_vec(&answer).unwrap()), ["10.96.0.1"]);
    // It can come back.
    assert_eq!(scene.agent.add(&scene.client).unwrap(), Ack::Accepted);
    assert_eq!(data(&scene.ask("web.", RecordType::A).unwrap()), ["10.96.0.1"]);
}

#[test]
fn a_pod_without_ipv6_on_its_loopback_is_served_on_the_other_address() {
    let scene = Scene::new(one_address).unwrap();
    assert_eq!(scene.agent.delete(&scene.client).unwrap(), Ack::Accepted);
    wait_until(|| !listens(&scene.client, LOOPBACKS[0])).unwrap();
    scene.client.sysctl("ipv6/conf/lo/disable_ipv6", "1").unwrap();
    assert_eq!(scene.agent.add(&scene.client).unwrap(), Ack::Accepted);
    assert_eq!(data(&scene.ask("web.", RecordType::A).unwrap()), ["10.96.0.1"]);
}

#[test]
fn a_pod_whose_port_is_taken_is_refused_as_a_whole() {
    let scene = Scene::new(one_address).unwrap();
    assert_eq!(scene.agent.delete(&scene.client).unwrap(), Ack::Accepted);
    wait_until(|| !listens(&scene.client, LOOPBACKS[0])).unwrap();
    let taken = scene.client.visit(|| std::net::UdpSocket::bind("127.0.0.1:15053")).unwrap().unwrap();
    let Ack::Refused(reason) = scene.agent.add(&scene.client).unwrap() else { panic!("accepted") };
    assert!(reason.contains("127.0.0.1:15053"), "{reason}");
    let outbound =
        scene.client.run(async || Ok(tokio::net::TcpStream::connect("127.0.0.1:15001").await.is_ok()));
    assert!(!outbound.unwrap(), "the others were released");
    drop(taken);
    // Tried again by itself.
    wait_until(|| listens(&scene.client, LOOPBACKS[0])).unwrap();
}

#[test]
fn queries_that_were_taken_are_answered_while_the_proxy_drains() {
    let options = ZtunnelOptions { drain: Duration::from_secs(20), ..ZtunnelOptions::default() };
    let scene = Scene::with(BackendChoice::Nftables, options, one_address, |_, _| Ok(())).unwrap();
    let over_udp = {
        let (client, octets) =
            (scene.client.clone(), query("held.example.", RecordType::A).to_vec().unwrap());
        std::thread::spawn(move || {
            udp(&client, CLUSTER_DNS[0], octets).map(|octets| Message::from_vec(&octets))
        })
    };
    let over_tcp = {
        let octets = framed(&query("held.example.", RecordType::AAAA).to_vec().unwrap());
        let client = scene.client.clone();
        std::thread::spawn(move || tcp(&client, CLUSTER_DNS[0], octets, 1))
    };
    wait_until(|| scene.resolver.asked().len() >= 2).unwrap();
    scene.ztunnel.process().signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    scene.ztunnel.wait_for_log("draining").unwrap();
    scene.resolver.release();
    assert_eq!(data(&over_udp.join().unwrap().unwrap().unwrap()), ["192.0.2.1"]);
    assert_eq!(over_tcp.join().unwrap().unwrap().len(), 1);
    assert_eq!(scene.ztunnel.process().wait(lab::PATIENCE).unwrap().code(), Some(0));
}

#[test]
fn without_capture_there_are_neither_sockets_nor_metrics() {
    let options = ZtunnelOptions::default().variable("ISTIO_META_DNS_CAPTURE", "false");
    let scene = Scene::with(BackendChoice::Nftables, options, one_address, |_, _| Ok(())).unwrap();
    assert!(!LOOPBACKS.into_iter().any(|address| listens(&scene.client, address)));
    let (_, metrics) = scene.ztunnel.get(15020, "/metrics").unwrap();
    assert!(!metrics.contains("istio_dns_"), "{metrics}");
}

#[test]
fn another_port_is_used_when_the_metadata_says_so() {
    let options = ZtunnelOptions::default().variable("ISTIO_META_DNS_PROXY_ADDR", "localhost:15099");
    let scene = Scene::with(BackendChoice::Nftables, options, one_address, |_, _| Ok(())).unwrap();
    let octets = query("web.", RecordType::A).to_vec().unwrap();
    let answer = udp(&scene.client, "127.0.0.1:15099", octets).unwrap();
    assert_eq!(data(&Message::from_vec(&answer).unwrap()), ["10.96.0.1"]);
}

#[test]
fn a_dedicated_proxy_serves_its_pod_and_takes_its_own_search_domains() {
    let lab = lab::Lab::new().unwrap();
    let node = lab.node("east").unwrap();
    let client = node.pod("client").unwrap();
    let mut file = lab::MeshFile::default();
    file.enrol(&client);
    file.service("web", &["10.96.0.1".parse().unwrap()], (80, 8080), &[&client]).unwrap();
    let resolv_conf = node.directory().join("resolv.conf");
    std::fs::write(&resolv_conf, "search my.search.example\n").unwrap();
    let options = ZtunnelOptions { resolv_conf: Some(resolv_conf), ..ZtunnelOptions::default() }
        .variable("PACKET_MARK", "1337");
    let ztunnel = lab::Ztunnel::dedicated(&client, &file, &options).unwrap();
    apply_rules_with(&client, BackendChoice::Nftables, DnsCapture::On).unwrap();
    ztunnel.wait_ready().unwrap();
    let asked = query("web.default.my.search.example.", RecordType::A).to_vec().unwrap();
    let answer = Message::from_vec(&udp(&client, CLUSTER_DNS[0], asked).unwrap()).unwrap();
    assert_eq!(data(&answer), ["web.default.", "10.96.0.1"]);
}
