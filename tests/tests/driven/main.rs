//! Proxies that know only what a control plane, a certificate authority and the node agent tell them.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

mod certificates;
mod credentials;
mod enrolment;
mod on_demand;
mod outages;
mod readiness;
mod rejected;
mod revocation;
mod roots;
mod scale;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lab::istiod::{CLUSTER, Caller, from_pod, policy, without_identity};
use lab::traffic::{self, Outcome, Server};
use lab::{
    AccessLine, Ack, BackendChoice, Capture, Driven, DrivenOptions, OpenConnection, Pod, ZtunnelOptions,
    hello,
};
use xds_client::ResourceType::{Address, Authorization};
use xds_client::prost_types::value::Kind;
use xds_client::security::{Action, Scope};

/// The virtual address of services here. Nobody has it.
const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1));

/// Whether a connection from the pod is served.
fn answers(from: &Pod, target: SocketAddr) -> bool {
    hello(from, target).unwrap() == Outcome::answered("hello")
}

/// Whether a connection from the pod is accepted by its proxy and then cut without a byte.
fn cut(from: &Pod, target: SocketAddr) -> bool {
    hello(from, target).unwrap() == Outcome::Cut
}

/// An echo server in the pod.
fn echo(pod: &Pod) -> Server {
    Server::start(pod, 8080, traffic::echo).unwrap()
}

#[test]
fn pods_talk_through_tunnels_when_only_istiod_describes_them() {
    let scene = Driven::new().unwrap();
    let echo = echo(&scene.server);
    let capture = Capture::start(scene.lab.wire()).unwrap();
    for target in [echo.ipv4(), echo.ipv6()] {
        for pod in [&scene.client, &scene.neighbour, &scene.outsider] {
            assert!(answers(pod, target), "{} to {target}", pod.name());
        }
        let secret = scene.client.run(async move || traffic::ask(target, b"a secret word").await).unwrap();
        assert_eq!(secret, b"a secret word");
    }
    let recording = capture.stop().unwrap();
    assert_eq!(recording.containing(b"a secret word"), 0);

    let from_client = |line: &AccessLine| line.text("src.identity") == scene.client.identity();
    let line = scene.west.ztunnel().unwrap().wait_for_access(from_client).unwrap();
    assert_eq!(line.text("direction"), "inbound");
    assert_eq!(line.text("dst.identity"), scene.server.identity());
    assert_eq!(line.text("src.workload"), "client");
    assert_eq!(scene.istiod.nacks(), Vec::<String>::new());
}

#[test]
fn the_first_requests_say_who_the_proxy_is_and_ask_for_everything() {
    let scene = Driven::new().unwrap();
    let requests = scene.istiod.first_requests();
    for (node, proxy) in [(&scene.east.node, "ztunnel-east"), (&scene.west.node, "ztunnel-west")] {
        let own: Vec<_> = requests.iter().filter(|request| request.proxy == proxy).collect();
        assert_eq!(own.iter().map(|request| request.kind).collect::<Vec<_>>(), [Address, Authorization]);
        assert_eq!(own[0].stream, own[1].stream);
        for first in own {
            let request = &first.request;
            assert!(request.resource_names_subscribe.is_empty());
            assert!(request.resource_names_unsubscribe.is_empty());
            assert!(request.initial_resource_versions.is_empty());
            assert!(request.response_nonce.is_empty() && request.error_detail.is_none());
            let described = request.node.as_ref().unwrap();
            let id = format!("ztunnel~{}~{proxy}.istio-system~istio-system.svc.cluster.local", node.ipv4());
            assert_eq!(described.id, id);
            let metadata = &described.metadata.as_ref().unwrap().fields;
            for (key, value) in [("NODE_NAME", node.name()), ("NAMESPACE", "istio-system"), ("NAME", proxy)] {
                assert_eq!(metadata[key].kind, Some(Kind::StringValue(value.to_owned())), "{key}");
            }
            let header = |name: &str| {
                let values = first.headers.iter().filter(|(key, _)| key == name);
                values.map(|(_, value)| value.as_str()).collect::<Vec<_>>()
            };
            assert_eq!(header("authorization"), [format!("Bearer token-of-{proxy}")]);
            assert_eq!(header("clusterid"), [CLUSTER]);
        }
    }
}

#[test]
fn certificates_are_there_before_the_first_connection_and_only_for_pods_of_the_node() {
    let scene = Driven::new().unwrap();
    let ca = scene.istiod.ca();
    let enrolled = [&scene.client, &scene.neighbour, &scene.server];
    for pod in enrolled {
        ca.wait_issued(&pod.identity(), 1).unwrap();
    }
    let echo = echo(&scene.server);
    for pod in [&scene.client, &scene.neighbour, &scene.outsider] {
        assert!(answers(pod, echo.ipv4()));
    }
    assert_eq!(ca.identities(), enrolled.iter().map(|pod| pod.identity()).collect::<BTreeSet<_>>());
    let requests = ca.requests();
    assert_eq!(requests.len(), 3, "one each: {requests:?}");
    for request in requests {
        let node = if request.identity == scene.server.identity() { "west" } else { "east" };
        assert_eq!(request.caller, Caller::node_proxy(Some(node)));
        assert!(request.impersonated);
        assert_eq!(request.validity, 24 * 3600);
    }
}

#[test]
fn a_pod_is_reachable_from_when_it_is_pushed_until_it_is_removed() {
    let scene = Driven::new().unwrap();
    let late = scene.west.node.pod("late").unwrap();
    let echo = echo(&late);
    assert_eq!(scene.west.agent.enrol(&late, BackendChoice::Nftables).unwrap(), Ack::Accepted);
    scene.push(|world| world.enrol(&late)).unwrap();
    let before = OpenConnection::open(&scene.client, echo.ipv4()).unwrap();
    for pod in [&scene.client, &scene.outsider] {
        assert!(answers(pod, echo.ipv4()));
    }
    let from_client = |line: &AccessLine| line.text("src.identity") == scene.client.identity();
    scene.west.ztunnel().unwrap().wait_for_access(from_client).unwrap();

    assert_eq!(scene.west.agent.delete(&late).unwrap(), Ack::Accepted);
    scene.push(|world| world.remove_pod(&late)).unwrap();
    before.wait_until_cut().unwrap();
    lab::wait_until(|| [&scene.client, &scene.outsider].into_iter().all(|pod| !answers(pod, echo.ipv4())))
        .unwrap();
}

#[test]
fn a_pushed_policy_keeps_out_whom_it_denies_until_it_is_removed() {
    let scene = Driven::new().unwrap();
    let echo = echo(&scene.server);
    assert!(answers(&scene.neighbour, echo.ipv4()));
    let deny = policy("no-neighbour", Scope::Namespace, Action::Deny, vec![from_pod(&scene.neighbour)]);
    scene.push(|world| world.set_policy(&deny)).unwrap();
    assert!(cut(&scene.neighbour, echo.ipv4()));
    assert!(answers(&scene.client, echo.ipv4()));
    let denied =
        |line: &AccessLine| line.text("error").contains("explicitly denied by: default/no-neighbour");
    scene.west.ztunnel().unwrap().wait_for_access(denied).unwrap();
    scene.push(|world| world.remove_policy("no-neighbour")).unwrap();
    assert!(answers(&scene.neighbour, echo.ipv4()));
}

#[test]
fn a_pushed_policy_cuts_the_open_connections_that_it_denies_and_no_others() {
    let scene = Driven::new().unwrap();
    let echo = echo(&scene.server);
    let [allowed, denied, plaintext] = [&scene.client, &scene.neighbour, &scene.outsider]
        .map(|pod| OpenConnection::open(pod, echo.ipv4()).unwrap());
    let deny = policy("no-neighbour", Scope::Namespace, Action::Deny, vec![from_pod(&scene.neighbour)]);
    scene.push(|world| world.set_policy(&deny)).unwrap();
    denied.wait_until_cut().unwrap();
    assert!(allowed.works() && plaintext.works());
    let strict = policy("strict", Scope::Global, Action::Deny, vec![without_identity()]);
    scene.push(|world| world.set_policy(&strict)).unwrap();
    plaintext.wait_until_cut().unwrap();
    assert!(allowed.works());
}

#[test]
fn policies_in_dry_run_decide_nothing_and_are_logged_and_counted() {
    let options = DrivenOptions {
        ztunnel: ZtunnelOptions::default().variable("AUTHZ_POLICY_INFO_LOGGING", "true"),
        ..DrivenOptions::default()
    };
    let scene = Driven::with(&options, |_, _| Ok(())).unwrap();
    let echo = echo(&scene.server);
    let open = OpenConnection::open(&scene.client, echo.ipv4()).unwrap();
    let mut deny = policy("trial-deny", Scope::Namespace, Action::Deny, vec![from_pod(&scene.client)]);
    let mut allow = policy("trial-allow", Scope::Namespace, Action::Allow, vec![from_pod(&scene.neighbour)]);
    (deny.dry_run, allow.dry_run) = (true, true);
    scene
        .push(|world| {
            world.set_policy(&deny);
            world.set_policy(&allow);
        })
        .unwrap();
    assert!(answers(&scene.client, echo.ipv4()) && open.works());
    assert!(answers(&scene.neighbour, echo.ipv4()));
    let west = scene.west.ztunnel().unwrap();
    for line in
        ["dry-run: deny policy match", "dry-run: allow policy match", "dry-run: no allow policies match"]
    {
        west.wait_for_log(line).unwrap();
    }
    for verdict in ["deny", "allow", "none_allowed"] {
        let labels = format!("verdict=\"{verdict}\"");
        let counted = west.metric("istio_authz_dry_run_verdicts_total", &labels).unwrap();
        assert!((counted - 1.0).abs() < f64::EPSILON, "{verdict}: {counted}");
    }
}

#[test]
fn a_policy_that_a_pushed_workload_names_cuts_the_open_connections_that_it_does_not_allow() {
    let scene = Driven::new().unwrap();
    let echo = echo(&scene.server);
    let [allowed, other] =
        [&scene.client, &scene.neighbour].map(|pod| OpenConnection::open(pod, echo.ipv4()).unwrap());
    let allow = policy("client-only", Scope::WorkloadSelector, Action::Allow, vec![from_pod(&scene.client)]);
    scene.push(|world| world.set_policy(&allow)).unwrap();
    assert!(other.works(), "no workload names the policy yet");
    let attach = |workload: &mut xds_client::workload::Workload| {
        workload.authorization_policies.push("default/client-only".to_owned());
    };
    scene.push(|world| world.change_workload(&scene.server, attach)).unwrap().unwrap();
    other.wait_until_cut().unwrap();
    assert!(allowed.works());
    let denied = |line: &AccessLine| {
        line.text("error")
            == "connection closed due to policy rejection: allow policies exist, but none allowed"
            && line.text("bytes_recv") != "0"
    };
    scene.west.ztunnel().unwrap().wait_for_access(denied).unwrap();
}

#[test]
fn a_pushed_policy_lets_in_only_whom_it_allows() {
    let scene = Driven::new().unwrap();
    let echo = echo(&scene.server);
    let allow = policy("client-only", Scope::WorkloadSelector, Action::Allow, vec![from_pod(&scene.client)]);
    scene
        .push(|world| {
            world.set_policy(&allow);
            let attach = |workload: &mut xds_client::workload::Workload| {
                workload.authorization_policies.push("default/client-only".to_owned());
            };
            world.change_workload(&scene.server, attach)
        })
        .unwrap()
        .unwrap();
    assert!(answers(&scene.client, echo.ipv4()));
    let permitted = |line: &AccessLine| line.text("authz.policy") == "default/client-only";
    let line = scene.west.ztunnel().unwrap().wait_for_access(permitted).unwrap();
    assert_eq!((line.text("error"), line.text("authz.rule")), ("", "0"));
    assert!(cut(&scene.neighbour, echo.ipv4()) && cut(&scene.outsider, echo.ipv4()));

    let strict = policy("strict", Scope::Global, Action::Deny, vec![without_identity()]);
    scene
        .push(|world| {
            world.set_policy(&strict);
            let detach =
                |workload: &mut xds_client::workload::Workload| workload.authorization_policies.clear();
            world.change_workload(&scene.server, detach)
        })
        .unwrap()
        .unwrap();
    assert!(answers(&scene.client, echo.ipv4()) && answers(&scene.neighbour, echo.ipv4()));
    assert!(cut(&scene.outsider, echo.ipv4()), "plaintext");
}

#[test]
fn a_pushed_service_follows_its_replicas() {
    let scene = Driven::with(&DrivenOptions::default(), |world, server| {
        world.service("web", &[VIP], (80, 8080), &[server])
    })
    .unwrap();
    let target = (VIP, 80).into();
    let [first, second] = [&scene.server, &scene.neighbour].map(echo);
    for _ in 0..8 {
        assert!(answers(&scene.client, target));
    }
    assert_eq!((first.accepted(), second.accepted()), (8, 0));

    // The replica moves to another node.
    scene
        .push(|world| {
            world.change_workload(&scene.server, |workload| workload.services.clear())?;
            world.service("web", &[VIP], (80, 8080), &[&scene.neighbour])
        })
        .unwrap()
        .unwrap();
    for _ in 0..8 {
        assert!(answers(&scene.client, target));
    }
    assert_eq!((first.accepted(), second.accepted()), (8, 8));

    scene
        .push(|world| world.change_workload(&scene.neighbour, |workload| workload.services.clear()))
        .unwrap()
        .unwrap();
    assert!(cut(&scene.client, target), "a service without replicas");
}
