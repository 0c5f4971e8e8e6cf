#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, Query};

use super::*;
use crate::dns::{Decoded, Transport};
use crate::state::model::{
    Health, HealthPolicy, IpFamilies, LoadBalancer, NamespacedHostname, NetworkAddress, PortMap, Service,
    Visibility, Workload,
};

/// The mesh of the lookup table: a client in `ns1` on the network `nw1`.
struct Scene {
    mesh: Mesh,
    responder: Responder,
    client: Workload,
}

#[derive(Default)]
struct Options {
    vips: &'static [&'static str],
    families: IpFamilies,
    visibility: Visibility,
    canonical: bool,
    health_policy: HealthPolicy,
}

impl Scene {
    fn new() -> Self {
        let rules = Rules { domain: "cluster.local".into(), preferred: Some("preferred".into()), ipv6: true };
        let client = Workload {
            name: "client".into(),
            namespace: "ns1".into(),
            network: "nw1".into(),
            ..Workload::default()
        };
        Self { mesh: Mesh::new(None), responder: Responder { rules }, client }
    }

    fn with(mut self, hostname: &str, namespace: &str, options: Options) -> Self {
        let vips = options.vips.iter().map(|vip| {
            let (network, address) = vip.split_once('/').unwrap_or(("nw1", vip));
            NetworkAddress { network: network.into(), address: address.parse().unwrap() }
        });
        self.mesh.upsert_service(Arc::new(Service {
            host: NamespacedHostname { namespace: namespace.into(), hostname: hostname.into() },
            vips: vips.collect(),
            ip_families: options.families,
            visibility: options.visibility,
            canonical: options.canonical,
            load_balancer: LoadBalancer { health_policy: options.health_policy, ..LoadBalancer::default() },
            ..Service::default()
        }));
        self
    }

    /// With a service of one virtual address.
    fn service(self, hostname: &str, namespace: &str, vip: &'static [&'static str]) -> Self {
        self.with(hostname, namespace, Options { vips: vip, ..Options::default() })
    }

    fn endpoint(mut self, name: &str, addresses: &[&str], service: &str, health: Health) -> Self {
        let host = NamespacedHostname { namespace: "ns1".into(), hostname: service.into() };
        self.mesh.upsert_workload(Arc::new(Workload {
            uid: format!("c//Pod/ns1/{name}").into(),
            name: name.into(),
            namespace: "ns1".into(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            services: vec![(host, PortMap::default())].into(),
            health,
            ..Workload::default()
        }));
        self
    }

    fn respond(&self, query: &Message, transport: Transport) -> Option<Message> {
        let Decoded::Request(request) = Request::decode(&query.to_vec().unwrap(), transport) else {
            panic!("{query:?} is no request")
        };
        let search = self.responder.search_domains("ns1");
        let client = Client { workload: &self.client, search: &search };
        let answer = self.responder.answer(&self.mesh, client, &request)?;
        assert!(answer.octets.len() <= request.limit());
        Some(Message::from_vec(&answer.octets).unwrap())
    }

    /// What is answered, as `owner CNAME target` and `owner address`, sorted. `None`: it is forwarded.
    fn ask(&self, name: &str, kind: RecordType) -> Option<Vec<String>> {
        let answers = [Transport::Udp, Transport::Tcp].map(|transport| {
            let response = self.respond(&query(name, kind), transport)?;
            assert_eq!(response.metadata.response_code, ResponseCode::NoError);
            assert!(response.metadata.authoritative && response.metadata.recursion_available);
            assert!(!response.metadata.authentic_data && !response.metadata.truncation);
            assert!(response.answers.iter().all(|record| record.ttl == TTL));
            assert_eq!(response.answers.is_empty(), !response.authorities.is_empty(), "SOA if nothing else");
            let mut lines: Vec<_> = response
                .answers
                .iter()
                .map(|record| match &record.data {
                    RData::CNAME(target) => format!("{} CNAME {}", record.name, target.0),
                    RData::A(address) => format!("{} {}", record.name, address.0),
                    RData::AAAA(address) => format!("{} {}", record.name, address.0),
                    other => panic!("{other:?}"),
                })
                .collect();
            if lines.len() > 1 && !lines[0].contains("CNAME") {
                lines.sort();
            }
            Some(lines)
        });
        let [udp, tcp] = answers;
        assert_eq!(udp, tcp);
        udp
    }

    fn a(&self, name: &str) -> Option<Vec<String>> {
        self.ask(name, RecordType::A)
    }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut query = Message::query();
    query.metadata.id = 7;
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    query
}

fn lines<const N: usize>(lines: [&str; N]) -> Option<Vec<String>> {
    Some(lines.map(str::to_owned).to_vec())
}

const VIP: &[&str] = &["10.0.0.1"];

#[test]
fn a_service_is_found_by_every_form_of_its_name_and_answered_under_the_form_asked_for() {
    let scene = Scene::new().service("productpage.ns1.svc.cluster.local", "ns1", VIP);
    for name in [
        "productpage.ns1.svc.cluster.local.",
        "productpage.ns1.svc.",
        "productpage.ns1.",
        "productpage.",
        "ProductPage.NS1.",
    ] {
        assert_eq!(scene.a(name), lines([&format!("{name} 10.0.0.1")]), "{name}");
    }
    let doubled = "productpage.ns1.ns1.svc.cluster.local.";
    let expected = lines([&format!("{doubled} CNAME productpage.ns1."), "productpage.ns1. 10.0.0.1"]);
    assert_eq!(scene.a(doubled), expected);
    assert_eq!(scene.a("reviews."), None);
    for kind in [RecordType::NS, RecordType::ANY, RecordType::SRV, RecordType::TXT, RecordType::HTTPS] {
        assert_eq!(scene.ask("productpage.", kind), None, "{kind}");
    }
}

#[test]
fn services_of_other_namespaces_need_their_namespace_in_the_name() {
    let scene = Scene::new().service("example.ns2.svc.cluster.local", "ns2", VIP).service(
        "details.ns2.svc.cluster.remote",
        "ns2",
        &["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"],
    );
    for name in ["example.ns2.", "example.ns2.svc.", "example.ns2.svc.cluster.local."] {
        assert_eq!(scene.a(name), lines([&format!("{name} 10.0.0.1")]), "{name}");
    }
    assert_eq!(scene.a("example."), None);
    assert_eq!(scene.a("details.ns2.svc.cluster.remote.").unwrap().len(), 4);
    assert_eq!(scene.a("details.ns2."), None);
}

#[test]
fn an_external_host_is_answered_also_behind_a_search_domain() {
    let scene = Scene::new().service("www.google.com", "ns1", VIP);
    assert_eq!(scene.a("www.google.com."), lines(["www.google.com. 10.0.0.1"]));
    let searched = "www.google.com.ns1.svc.cluster.local.";
    let expected = lines([&format!("{searched} CNAME www.google.com."), "www.google.com. 10.0.0.1"]);
    assert_eq!(scene.a(searched), expected);
    assert_eq!(scene.a("www.bing.com."), None);
}

#[test]
fn wildcards_match_the_most_specific_first_and_never_make_an_alias() {
    let scene = Scene::new()
        .service("*.wildcard", "ns1", VIP)
        .service("*.b.wildcard", "ns1", &["10.0.0.2"])
        .service("*.svc.mesh.company.net", "ns1", &["10.0.0.3"]);
    assert_eq!(scene.a("foo.wildcard."), lines(["foo.wildcard. 10.0.0.1"]));
    assert_eq!(scene.a("a.b.wildcard."), lines(["a.b.wildcard. 10.0.0.2"]));
    for name in ["foo.svc.mesh.company.net", "foo.foons.svc.mesh.company.net"] {
        for name in [format!("{name}."), format!("{name}.ns1.svc.cluster.local.")] {
            assert_eq!(scene.a(&name), lines([&format!("{name} 10.0.0.3")]));
        }
    }
    assert_eq!(scene.a("wildcard."), None);
}

#[test]
fn a_service_of_one_namespace_is_invisible_from_others_and_the_next_candidate_is_tried() {
    let private = || Options { vips: VIP, visibility: Visibility::Namespace, ..Options::default() };
    let scene = Scene::new()
        .with("private.ns2.svc.cluster.local", "ns2", private())
        .with("mine.ns1.svc.cluster.local", "ns1", private())
        .with("host.example.com", "ns2", private())
        .service("*.example.com", "ns2", &["10.0.0.9"]);
    assert_eq!(scene.a("private.ns2."), None);
    assert_eq!(scene.a("mine."), lines(["mine. 10.0.0.1"]));
    assert_eq!(scene.a("host.example.com."), lines(["host.example.com. 10.0.0.9"]));
}

#[test]
fn of_several_services_the_clients_own_then_canonical_then_the_preferred_namespaces_is_chosen() {
    let canonical = |vips| Options { vips, canonical: true, ..Options::default() };
    let scene = Scene::new()
        .service("both.io", "ns1", &["10.1.0.1"])
        .with("both.io", "ns2", canonical(&["10.1.0.2"]))
        .service("preferred.io", "another", &["10.2.0.1"])
        .service("preferred.io", "preferred", &["10.2.0.2"])
        .service("canonical.io", "preferred", &["10.3.0.1"])
        .with("canonical.io", "ns3", canonical(&["10.3.0.2"]))
        // One that has nothing to give is passed over, also if it is the client's own.
        .service("empty.io", "ns1", &[])
        .service("empty.io", "ns2", &["10.4.0.2"]);
    assert_eq!(scene.a("both.io."), lines(["both.io. 10.1.0.1"]));
    assert_eq!(scene.a("preferred.io."), lines(["preferred.io. 10.2.0.2"]));
    assert_eq!(scene.a("canonical.io."), lines(["canonical.io. 10.3.0.2"]));
    assert_eq!(scene.a("empty.io."), lines(["empty.io. 10.4.0.2"]));
}

#[test]
fn addresses_are_those_of_the_family_that_the_service_has_and_of_the_clients_network() {
    let only = |families, vips| Options { families, vips, ..Options::default() };
    let scene = Scene::new()
        .service("dual.io", "ns1", &["10.0.0.1", "fd00::1"])
        .with("ipv4.io", "ns1", only(IpFamilies::Ipv4, &["10.0.0.1", "fd00::1"]))
        .with("ipv6.io", "ns1", only(IpFamilies::Ipv6, &["10.0.0.1", "fd00::1"]))
        .service("elsewhere.io", "ns1", &["nw2/10.0.0.1"])
        .service("everywhere.io", "ns1", &["nw2/10.0.0.1", "nw1/10.0.0.2"]);
    assert_eq!(scene.a("dual.io."), lines(["dual.io. 10.0.0.1"]));
    assert_eq!(scene.ask("dual.io.", RecordType::AAAA), lines(["dual.io. fd00::1"]));
    assert_eq!(scene.ask("ipv4.io.", RecordType::AAAA), lines([]));
    assert_eq!(scene.a("ipv4.io."), lines(["ipv4.io. 10.0.0.1"]));
    assert_eq!(scene.a("ipv6.io."), lines([]));
    assert_eq!(scene.a("elsewhere.io."), lines([]));
    assert_eq!(scene.a("everywhere.io."), lines(["everywhere.io. 10.0.0.2"]));
    let mut without_ipv6 = scene;
    without_ipv6.responder.rules.ipv6 = false;
    assert_eq!(without_ipv6.ask("dual.io.", RecordType::AAAA), lines([]));
    assert_eq!(without_ipv6.a("dual.io."), lines(["dual.io. 10.0.0.1"]));
}

#[test]
fn a_headless_service_is_its_healthy_endpoints_and_each_has_a_name_of_its_own() {
    const NAME: &str = "headless.ns1.svc.cluster.local";
    let build = |health_policy| {
        Scene::new()
            .with(NAME, "ns1", Options { health_policy, ..Options::default() })
            .endpoint("pod0", &["10.1.0.1", "10.1.0.9", "fd01::1"], NAME, Health::Healthy)
            .endpoint("pod1", &["10.1.0.2"], NAME, Health::Healthy)
            .endpoint("ill", &["10.1.0.3"], NAME, Health::Unhealthy)
    };
    let scene = build(HealthPolicy::OnlyHealthy);
    assert_eq!(scene.a("headless."), lines(["headless. 10.1.0.1", "headless. 10.1.0.2"]));
    assert_eq!(scene.ask("headless.", RecordType::AAAA), lines(["headless. fd01::1"]));
    let pod = format!("pod0.{NAME}.");
    assert_eq!(scene.a(&pod), lines([&format!("{pod} 10.1.0.1")]));
    assert_eq!(scene.ask(&format!("pod1.{NAME}."), RecordType::AAAA), lines([]));
    assert_eq!(scene.a(&format!("ill.{NAME}.")), None);
    assert_eq!(scene.a(&format!("headless.pod0.{NAME}.")), None);
    assert_eq!(build(HealthPolicy::AllowAll).a("headless.").unwrap().len(), 3);
    let empty = Scene::new().service(NAME, "ns1", &[]);
    assert_eq!(empty.a("headless."), lines([]), "known, and without addresses");
}

#[test]
fn an_external_host_without_virtual_addresses_is_forwarded_with_or_without_endpoints() {
    let scene = Scene::new()
        .service("bare.io", "ns1", &[])
        .service("backed.io", "ns1", &[])
        // Not below `svc`.
        .service("odd.cluster.local", "ns1", &[])
        .endpoint("pod", &["10.1.0.1"], "backed.io", Health::Healthy);
    for name in ["bare.io.", "backed.io.", "odd.cluster.local."] {
        assert_eq!(scene.a(name), None, "{name}");
    }
}

#[test]
fn a_workload_of_the_clients_namespace_is_found_by_its_hostname() {
    let mut scene = Scene::new();
    let workload = |hostname: &str, namespace: &str, addresses: &[IpAddr]| {
        Arc::new(Workload {
            uid: format!("c//WorkloadEntry/{namespace}/{hostname}").into(),
            namespace: namespace.into(),
            hostname: hostname.into(),
            addresses: addresses.into(),
            ..Workload::default()
        })
    };
    scene.mesh.upsert_workload(workload("vm.example.com", "ns1", &[[10, 9, 0, 1].into()]));
    scene.mesh.upsert_workload(workload("other.example.com", "ns2", &[[10, 9, 0, 2].into()]));
    scene.mesh.upsert_workload(workload("nowhere.example.com", "ns1", &[]));
    assert_eq!(scene.a("vm.example.com."), lines(["vm.example.com. 10.9.0.1"]));
    assert_eq!(scene.ask("vm.example.com.", RecordType::AAAA), lines([]));
    assert_eq!(scene.a("other.example.com."), None);
    assert_eq!(scene.a("nowhere.example.com."), None);
}

#[test]
fn a_negative_answer_says_how_long_it_holds_in_a_zone_that_holds_the_name() {
    let only_ipv4 = Options { families: IpFamilies::Ipv4, vips: VIP, ..Options::default() };
    let scene =
        Scene::new().service("web.ns1.svc.cluster.local", "ns1", VIP).with("ext.io", "ns1", only_ipv4);
    for (name, zone) in [("web.ns1.svc.cluster.local.", "cluster.local."), ("ext.io.", "ext.io.")] {
        let response = scene.respond(&query(name, RecordType::AAAA), Transport::Udp).unwrap();
        let [record] = &*response.authorities else { panic!("{response:?}") };
        let RData::SOA(soa) = &record.data else { panic!("{record:?}") };
        assert_eq!((record.name.to_string().as_str(), record.ttl, soa.minimum), (zone, 5, 5));
    }
}

#[test]
fn the_header_and_the_question_come_back_as_they_were_sent() {
    let scene = Scene::new().service("web.ns1.svc.cluster.local", "ns1", VIP);
    let mut asked = query("wEb.NS1.", RecordType::A);
    asked.metadata.checking_disabled = true;
    let mut edns = Edns::new();
    edns.set_max_payload(1232).set_dnssec_ok(true);
    asked.set_edns(edns);
    let response = scene.respond(&asked, Transport::Udp).unwrap();
    assert_eq!(response.metadata.id, 7);
    assert!(response.metadata.recursion_desired && response.metadata.checking_disabled);
    assert!(response.queries[0].name.eq_case(&asked.queries[0].name));
    let edns = response.edns.as_ref().unwrap();
    assert!(edns.flags().dnssec_ok && edns.version() == 0 && edns.max_payload() == 4096);
    assert!(response.answers[0].name.eq_case(&asked.queries[0].name), "0x20 is honoured");
}

#[test]
fn a_large_answer_is_whole_over_tcp_and_cut_to_what_a_udp_client_takes() {
    const NAME: &str = "large.ns1.svc.cluster.local";
    let mut scene = Scene::new().service(NAME, "ns1", &[]);
    for number in 0..4000_u16 {
        let address = format!("10.7.{}.{}", number / 256, number % 256);
        scene = scene.endpoint(&format!("pod{number}"), &[&address], NAME, Health::Healthy);
    }
    let tcp = scene.respond(&query("large.", RecordType::A), Transport::Tcp).unwrap();
    assert_eq!((tcp.answers.len(), tcp.metadata.truncation), (4000, false));
    let mut with_edns = query("large.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    with_edns.set_edns(edns);
    let udp = scene.respond(&with_edns, Transport::Udp).unwrap();
    assert!(udp.metadata.truncation && udp.edns.is_some(), "{udp:?}");
    assert!((70..=76).contains(&udp.answers.len()), "{}", udp.answers.len());
    let plain = scene.respond(&query("large.", RecordType::A), Transport::Udp).unwrap();
    assert!(plain.metadata.truncation && (25..=31).contains(&plain.answers.len()), "{}", plain.answers.len());
}

#[test]
fn clients_get_the_addresses_in_another_order_each_time() {
    let scene =
        Scene::new().service("many.io", "ns1", &["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"]);
    let first = |_| {
        let response = scene.respond(&query("many.io.", RecordType::A), Transport::Udp).unwrap();
        response.answers[0].data.to_string()
    };
    // One of five each time: 200 times without one of them happens once in 10^19 runs.
    let seen: std::collections::HashSet<_> = (0..200).map(first).collect();
    assert_eq!(seen.len(), 5);
}

#[test]
fn what_cannot_be_served_is_refused_by_its_reason() {
    let refusal = |octets: &[u8]| match Request::decode(octets, Transport::Udp) {
        Decoded::Refused(reply) => Some(Message::from_vec(&reply).unwrap()),
        Decoded::Ignored => None,
        Decoded::Request(request) => panic!("{request:?}"),
    };
    let good = query("web.", RecordType::A).to_vec().unwrap();
    assert!(refusal(&good[..11]).is_none());
    let mut response = good.clone();
    response[2] |= 0x80;
    assert!(refusal(&response).is_none());
    let code = |octets: &[u8]| {
        let refusal = refusal(octets).unwrap();
        assert_eq!(refusal.metadata.id, 7);
        assert!(refusal.metadata.recursion_available && refusal.metadata.recursion_desired);
        refusal.metadata.response_code
    };
    let mut notify = good.clone();
    notify[2] |= 4 << 3;
    assert_eq!(code(&notify), ResponseCode::NotImp);
    for questions in [0, 2] {
        let mut several = good.clone();
        several[5] = questions;
        assert_eq!(code(&several), ResponseCode::FormErr);
    }
    assert_eq!(code(&good[..good.len() - 1]), ResponseCode::FormErr);
    let opt = [0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0];
    let mut two_opts = [&*good, &opt, &opt].concat();
    two_opts[11] = 2;
    assert_eq!(code(&two_opts), ResponseCode::FormErr);
    let mut newer = [&*good, &opt].concat();
    newer[11] = 1;
    newer[good.len() + 6] = 1;
    let refused = refusal(&newer).unwrap();
    // Its number is that of BADSIG too.
    assert_eq!(u16::from(refused.metadata.response_code), 16);
    assert_eq!(refused.edns.unwrap().version(), 0);
}

#[test]
fn names_with_a_dot_inside_a_label_are_not_those_that_they_look_like() {
    let scene = Scene::new().service("web.ns1.svc.cluster.local", "ns1", VIP);
    let mut asked = query("web.", RecordType::A);
    let name = Name::from_labels([&b"web.ns1"[..], b"svc", b"cluster", b"local"]).unwrap();
    asked.queries[0].set_name(name);
    assert!(scene.respond(&asked, Transport::Udp).is_none());
}

#[test]
fn names_that_mean_the_same_everywhere_are_answered_here() {
    let ask = |name: &str, kind| {
        let octets = query(name, kind).to_vec().unwrap();
        let Decoded::Request(request) = Request::decode(&octets, Transport::Udp) else { panic!("{name}") };
        special(&request).map(|octets| Message::from_vec(&octets).unwrap())
    };
    let data = |name, kind| {
        let response = ask(name, kind).unwrap();
        assert!(!response.metadata.authoritative);
        response.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(data("localhost.", RecordType::A), ["127.0.0.1"]);
    assert_eq!(data("db.LOCALHOST.", RecordType::AAAA), ["::1"]);
    assert!(data("localhost.", RecordType::MX).is_empty());
    assert_eq!(data("1.0.0.127.in-addr.arpa.", RecordType::PTR), ["localhost."]);
    let ipv6 = format!("1.{}ip6.arpa.", "0.".repeat(31));
    assert_eq!(data(&ipv6, RecordType::PTR), ["localhost."]);
    for name in ["x.invalid.", "abc.onion."] {
        assert_eq!(ask(name, RecordType::A).unwrap().metadata.response_code, ResponseCode::NXDomain);
    }
    for name in ["printer.local.", "localhost.example.", "2.0.0.127.in-addr.arpa."] {
        assert!(ask(name, RecordType::PTR).is_none(), "{name}");
    }
}
