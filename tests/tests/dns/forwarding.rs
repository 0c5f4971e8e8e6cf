//! What is not of the mesh.

use std::net::IpAddr;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::NULL;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use lab::{BackendChoice, PATIENCE, ZtunnelOptions, wait_until};

use crate::resolver::{Asked, Resolver, address, no_such_name, octets, response};
use crate::scene::{CLUSTER_DNS, LOOK, Scene, data, framed, query, tcp, udp, with_edns};

fn one_address(asked: &Asked) -> Vec<Vec<u8>> {
    let mut answer = response(asked);
    answer.add_answer(address(asked, 1, 300));
    octets(&answer)
}

#[test]
fn query_and_answer_go_through_octet_by_octet() {
    // A record of a type that nobody knows, and an OPT record with an option that nobody knows.
    fn script(asked: &Asked) -> Vec<Vec<u8>> {
        let mut answer = response(asked);
        let data =
            RData::Unknown { code: RecordType::Unknown(65_280), rdata: NULL::with(vec![1, 2, 3, 255]) };
        answer.add_answer(Record::from_rdata(Name::from_ascii("unknown.example.").unwrap(), 77, data));
        let mut octets = answer.to_vec().unwrap();
        octets.extend([0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, 6, 0xfd, 0xe9, 0, 2, 7, 8]);
        octets[11] = 1;
        vec![octets]
    }
    let scene = Scene::new(script).unwrap();
    let mut asked = query("UnKnown.Example.", RecordType::Unknown(65_280)).to_vec().unwrap();
    asked.extend([0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, 6, 0xfd, 0xe9, 0, 2, 5, 6]);
    asked[11] = 1;
    let answer = udp(&scene.client, CLUSTER_DNS[0], asked.clone()).unwrap();
    let seen = scene.resolver.asked();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].octets[2..], asked[2..]);
    let mut expected = script(&seen[0]).remove(0);
    expected[..2].copy_from_slice(&asked[..2]);
    // Not ours to be authoritative about.
    expected[2] &= !0x04;
    assert_eq!(answer, expected);
    // From the pod's own address, so that it is subject to the pod's network policies.
    assert_eq!(seen[0].from.ip().to_canonical(), IpAddr::from(scene.client.ipv4()));
}

#[test]
fn answers_are_kept_for_their_lifetime_by_each_pod_for_itself_and_errors_are_not() {
    let scene = Scene::new(|asked| match &*asked.name {
        "failing.example." => {
            let mut answer = response(asked);
            answer.metadata.response_code = ResponseCode::ServFail;
            octets(&answer)
        }
        "absent.example." => octets(&no_such_name(asked, 60)),
        _ => one_address(asked),
    })
    .unwrap();
    for spelling in ["there.example.", "THERE.example.", "there.EXAMPLE."] {
        let answer = scene.ask(spelling, RecordType::A).unwrap();
        assert_eq!(data(&answer), ["192.0.2.1"]);
        assert_eq!(answer.queries[0].name.to_ascii(), spelling);
        assert!(answer.answers[0].ttl <= 300 && !answer.metadata.authoritative);
        let absent = scene.ask("absent.example.", RecordType::A).unwrap();
        assert_eq!(absent.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(absent.authorities.len(), 1, "the SOA record is relayed");
        let failing = scene.ask("failing.example.", RecordType::A).unwrap();
        assert_eq!(failing.metadata.response_code, ResponseCode::ServFail);
        assert!(failing.edns.is_none() && failing.metadata.recursion_available);
    }
    assert_eq!(scene.resolver.count("there.example."), 1);
    assert_eq!(scene.resolver.count("absent.example."), 1);
    assert_eq!(scene.resolver.count("failing.example."), 3);
    let asked = query("there.example.", RecordType::A).to_vec().unwrap();
    udp(&scene.other, CLUSTER_DNS[0], with_edns(Message::from_vec(&asked).unwrap(), 4096).to_vec().unwrap())
        .unwrap();
    assert_eq!(scene.resolver.count("there.example."), 2, "what one pod was told is told to no other");
    let failed = scene.ztunnel.metric("istio_dns_upstream_failures_total", "").unwrap();
    assert_eq!(failed, 6.0);
    assert_eq!(scene.ztunnel.metric("istio_dns_cache_hits_total", "").unwrap(), 4.0);
    let outcomes = "istio_dns_upstream_outcomes_total";
    assert_eq!(scene.ztunnel.metric(outcomes, "no_such_name").unwrap(), 3.0);
    assert_eq!(scene.ztunnel.metric(outcomes, "error_answer").unwrap(), 3.0);
}

#[test]
fn the_same_question_is_asked_once_however_many_wait_for_it() {
    let scene = Scene::new(one_address).unwrap();
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let octets = query("held.example.", RecordType::A).to_vec().unwrap();
            let client = scene.client.clone();
            std::thread::spawn(move || udp(&client, CLUSTER_DNS[0], octets))
        })
        .collect();
    let counted = || scene.ztunnel.metric("istio_dns_requests_total", "").unwrap();
    wait_until(|| counted() == 50.0).unwrap();
    assert_eq!(scene.resolver.count("held.example."), 1);
    scene.resolver.release();
    for client in clients {
        let answer = Message::from_vec(&client.join().unwrap().unwrap()).unwrap();
        assert_eq!(data(&answer), ["192.0.2.1"]);
    }
}

#[test]
fn a_truncated_answer_is_fetched_over_tcp() {
    let scene = Scene::new(|asked| {
        let mut answer = response(asked);
        if asked.tcp {
            answer.add_answers((0..100).map(|last| address(asked, last, 300)));
        } else {
            answer.metadata.truncation = true;
        }
        octets(&answer)
    })
    .unwrap();
    let answer = scene.ask("large.example.", RecordType::A).unwrap();
    assert_eq!((answer.answers.len(), answer.metadata.truncation), (100, false));
    let small = scene.exchange(&query("large.example.", RecordType::A)).unwrap();
    assert!(small.metadata.truncation && small.answers.len() < 40, "the client's own limit counts too");
    let transports: Vec<_> = scene.resolver.asked().iter().map(|asked| asked.tcp).collect();
    assert_eq!(transports, [false, true, false, true]);
}

#[test]
fn a_silent_or_refusing_server_is_passed_over() {
    let scene = Scene::new(one_address).unwrap();
    // Nobody has the first address, and nobody listens at the second.
    let servers =
        ["172.30.0.77".parse().unwrap(), scene.server.ipv4().into(), scene.resolver_pod.ipv4().into()];
    scene.set_servers(&servers).unwrap();
    scene.ztunnel.wait_for_log("172.30.0.77:53").unwrap();
    let answer = scene.ask("failover.example.", RecordType::A).unwrap();
    assert_eq!(data(&answer), ["192.0.2.1"]);
}

#[test]
fn without_an_answer_the_client_is_told_before_it_gives_up() {
    let scene = Scene::new(|_| Vec::new()).unwrap();
    let answer = scene.ask("silent.example.", RecordType::A).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(answer.edns.is_some() && answer.metadata.recursion_available);
    assert_eq!(scene.ztunnel.metric("istio_dns_upstream_outcomes_total", "timed_out").unwrap(), 1.0);
    let asked = scene.resolver.asked();
    assert!(asked.len() > 1, "it is asked again");
    let ports: std::collections::HashSet<_> = asked.iter().map(|asked| asked.from.port()).collect();
    let ids: std::collections::HashSet<_> = asked.iter().map(|asked| asked.octets[..2].to_vec()).collect();
    assert!(ports.len() > 1 && ids.len() > 1, "from another port, with another id: {ports:?} {ids:?}");
}

#[test]
fn other_name_servers_are_used_as_soon_as_resolv_conf_names_them() {
    let scene = Scene::new(one_address).unwrap();
    let second = Resolver::start(&scene.server, |asked| {
        let mut answer = response(asked);
        answer.add_answer(address(asked, 2, 300));
        octets(&answer)
    })
    .unwrap();
    assert_eq!(data(&scene.ask("moved.example.", RecordType::A).unwrap()), ["192.0.2.1"]);
    scene.set_servers(&[scene.server.ipv4().into()]).unwrap();
    // What the old one said is forgotten.
    let moved = || {
        std::thread::sleep(LOOK);
        data(&scene.ask("moved.example.", RecordType::A).unwrap()) == ["192.0.2.2"]
    };
    wait_until(moved).unwrap();
    assert_eq!(second.count("moved.example."), 1);
    scene.set_servers(&[]).unwrap();
    scene.ztunnel.wait_for_log("no name server").unwrap();
    let nobody = scene.ask("elsewhere.example.", RecordType::A).unwrap();
    assert_eq!(nobody.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(data(&scene.ask("web.", RecordType::A).unwrap()), ["10.96.0.1"], "the mesh needs none");
}

#[test]
fn names_that_mean_the_same_everywhere_leave_the_node_never() {
    let scene = Scene::new(one_address).unwrap();
    assert_eq!(data(&scene.ask("db.localhost.", RecordType::A).unwrap()), ["127.0.0.1"]);
    for name in ["x.invalid.", "abc.onion."] {
        let answer = scene.ask(name, RecordType::A).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    }
    assert!(scene.resolver.asked().is_empty());
}

#[test]
fn queries_of_one_connection_do_not_wait_for_one_another() {
    let scene = Scene::new(one_address).unwrap();
    let queries = ["held.example.", "web.", "quick.example."].map(|name| query(name, RecordType::A));
    let octets: Vec<_> = queries.iter().flat_map(|query| framed(&query.to_vec().unwrap())).collect();
    let ids: Vec<_> = queries.iter().map(|query| query.metadata.id).collect();
    let client = scene.client.clone();
    let quick = tcp(&client, CLUSTER_DNS[0], octets.clone(), 2).unwrap();
    assert_eq!(quick.iter().map(|answer| answer.metadata.id).collect::<Vec<_>>(), ids[1..]);
    let all = std::thread::spawn(move || tcp(&client, CLUSTER_DNS[0], octets, 3));
    wait_until(|| scene.resolver.count("held.example.") >= 2).unwrap();
    scene.resolver.release();
    assert_eq!(all.join().unwrap().unwrap().len(), 3);
}

#[test]
fn every_query_is_counted_and_logged_by_who_asked_for_what() {
    let options = ZtunnelOptions { log: "info,dns=debug".into(), ..ZtunnelOptions::default() };
    let scene = Scene::with(BackendChoice::Nftables, options, one_address, |_, _| Ok(())).unwrap();
    scene.ask("web.", RecordType::AAAA).unwrap();
    scene.ask("there.example.", RecordType::A).unwrap();
    let asked = framed(&query("there.example.", RecordType::Unknown(4711)).to_vec().unwrap());
    tcp(&scene.client, CLUSTER_DNS[0], asked, 1).unwrap();
    let requests = |labels: &str| scene.ztunnel.metric("istio_dns_requests_total", labels).unwrap();
    assert_eq!(requests(r#"request_query_type="aaaa",request_protocol="udp""#), 1.0);
    assert_eq!(requests(r#"request_query_type="a",request_protocol="udp""#), 1.0);
    assert_eq!(requests(r#"request_query_type="unknown",request_protocol="tcp""#), 1.0);
    assert_eq!(requests(r#"source_canonical_service="unknown""#), 3.0);
    assert_eq!(scene.ztunnel.metric("istio_dns_upstream_requests_total", "").unwrap(), 2.0);
    let duration = "istio_dns_upstream_request_duration_seconds";
    assert_eq!(scene.ztunnel.metric(&format!("{duration}_count"), "").unwrap(), 2.0);
    assert_eq!(scene.ztunnel.metric(&format!("{duration}_bucket"), r#"le="+Inf""#).unwrap(), 2.0);
    let line = scene.ztunnel.wait_for_log("domain").unwrap();
    for part in ["client", "default", "AAAA", "web.", "success"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    let line =
        scene.ztunnel.log().wait_for(PATIENCE, |line| line.contains("forwarded").then(|| line.to_owned()));
    assert!(line.unwrap().contains("there.example."));
}
