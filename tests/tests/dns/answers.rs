//! What the mesh answers itself.

use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::RecordType;
use lab::{BackendChoice, ZtunnelOptions};

use crate::resolver::{no_such_name, octets};
use crate::scene::{CLUSTER_DNS, Scene, data, framed, getent, query, tcp, udp, with_edns};

#[test]
fn a_service_is_answered_over_udp_and_tcp_ipv4_and_ipv6_and_nobody_is_asked() {
    for backend in [BackendChoice::Nftables, BackendChoice::Iptables] {
        let script = |asked: &_| octets(&no_such_name(asked, 60));
        let scene = Scene::with(backend, ZtunnelOptions::default(), script, |_, _| Ok(())).unwrap();
        for server in CLUSTER_DNS {
            for (kind, address) in [(RecordType::A, "10.96.0.1"), (RecordType::AAAA, "fd96::1")] {
                let asked = query("web.default.svc.cluster.local.", kind);
                let over_udp = udp(&scene.client, server, asked.to_vec().unwrap()).unwrap();
                let over_tcp =
                    tcp(&scene.client, server, framed(&asked.to_vec().unwrap()), 1).unwrap().remove(0);
                let over_udp = Message::from_vec(&over_udp).unwrap();
                assert_eq!(over_udp, over_tcp);
                assert_eq!(data(&over_udp), [address], "{server}");
                assert_eq!(over_udp.metadata.id, asked.metadata.id);
                assert!(over_udp.metadata.authoritative && over_udp.metadata.recursion_available);
                assert_eq!(over_udp.answers[0].ttl, 30);
            }
        }
        assert!(scene.resolver.asked().is_empty());
    }
}

#[test]
fn the_c_library_of_a_pod_finds_services_by_their_short_names() {
    let scene = Scene::new(|asked| octets(&no_such_name(asked, 60))).unwrap();
    for name in ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local"] {
        let found = getent(&scene.client, scene.east.directory(), &["ahostsv4", name]).unwrap();
        assert!(found.contains("10.96.0.1"), "{name}: {found}");
        let found = getent(&scene.client, scene.east.directory(), &["ahostsv6", name]).unwrap();
        assert!(found.contains("fd96::1"), "{name}: {found}");
    }
    let none = getent(&scene.client, scene.east.directory(), &["ahostsv4", "nothing"]).unwrap();
    assert_eq!(none, "");
}

#[test]
fn a_known_name_without_the_type_asked_for_is_empty_with_an_soa_record_and_never_forwarded() {
    let scene = Scene::with(
        BackendChoice::Nftables,
        ZtunnelOptions::default(),
        |asked| octets(&no_such_name(asked, 60)),
        |file, server| file.service("four", &["10.96.0.4".parse()?], (80, 8080), &[server]),
    )
    .unwrap();
    let response = scene.ask("four.default.svc.cluster.local.", RecordType::AAAA).unwrap();
    assert_eq!(response.metadata.response_code, ResponseCode::NoError);
    assert!(response.answers.is_empty() && response.metadata.authoritative);
    assert_eq!(response.authorities[0].record_type(), RecordType::SOA);
    assert!(response.edns.is_some());
    assert!(scene.resolver.asked().is_empty());
    // Other types are others' business.
    let response = scene.ask("four.default.svc.cluster.local.", RecordType::TXT).unwrap();
    assert_eq!(response.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(scene.resolver.count("four.default.svc.cluster.local."), 1);
}

#[test]
fn an_answer_that_does_not_fit_is_cut_and_whole_over_tcp() {
    let vips: Vec<_> = (1..=200).map(|last| std::net::IpAddr::from([10, 97, 0, last])).collect();
    let scene = Scene::with(
        BackendChoice::Nftables,
        ZtunnelOptions::default(),
        |asked| octets(&no_such_name(asked, 60)),
        |file, server| file.service("many", &vips, (80, 8080), &[server]),
    )
    .unwrap();
    let name = "many.default.svc.cluster.local.";
    let plain = scene.exchange(&query(name, RecordType::A)).unwrap();
    assert!(plain.metadata.truncation && plain.to_vec().unwrap().len() <= 512);
    let roomy = scene.exchange(&with_edns(query(name, RecordType::A), 1232)).unwrap();
    assert!(roomy.metadata.truncation && roomy.edns.is_some());
    assert!(roomy.answers.len() > plain.answers.len());
    let asked = framed(&query(name, RecordType::A).to_vec().unwrap());
    let whole = tcp(&scene.client, CLUSTER_DNS[0], asked, 1).unwrap().remove(0);
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 200);
    // The C library does the second step by itself.
    let found = getent(&scene.client, scene.east.directory(), &["ahostsv4", "many"]).unwrap();
    assert!((1..=200).all(|last| found.contains(&format!("10.97.0.{last} "))), "{found}");
}

#[test]
fn a_newer_version_of_edns_is_refused_by_its_name() {
    let scene = Scene::new(|asked| octets(&no_such_name(asked, 60))).unwrap();
    let mut asked = query("web.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    asked.set_edns(edns);
    let response = scene.exchange(&asked).unwrap();
    // BADVERS, whose number is that of BADSIG too.
    assert_eq!(u16::from(response.metadata.response_code), 16);
}
