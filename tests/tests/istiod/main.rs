//! The scripted istiod against an ordinary gRPC client: it has to behave as the real one does, or what the other suites
//! prove with it is worth nothing.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

mod certificates;
mod client;
mod proxies;
mod refusals;

use std::net::IpAddr;
use std::time::Duration;

use client::{Client, holding, names, on_demand, wildcard};
use lab::istiod::{Caller, pod_uid, policy, service_key};
use lab::{Lab, Node, Pod, ScriptedIstiod};
use tonic::Code;
use xds_client::ResourceType::{Address, Authorization};
use xds_client::security::{Action, Scope};
use xds_client::workload::WorkloadStatus;

const TOKEN: &str = "a-good-token";

/// An istiod on one node, and a client on another that has pods.
struct Scene {
    client: Client,
    istiod: ScriptedIstiod,
    pods: [Pod; 2],
    far: Pod,
    east: Node,
    _lab: Lab,
}

impl Scene {
    /// An empty mesh.
    fn new() -> Self {
        let lab = Lab::new().unwrap();
        let istiod = ScriptedIstiod::start(&lab.node("control").unwrap()).unwrap();
        let east = lab.node("east").unwrap();
        istiod.accept_token(TOKEN, Caller::node_proxy(Some("east")));
        let client = Client::new(&east, &istiod, TOKEN);
        let pods = ["a", "b"].map(|name| east.pod(name).unwrap());
        let far = lab.node("west").unwrap().pod("far").unwrap();
        Self { client, istiod, pods, far, east, _lab: lab }
    }

    fn uids(&self) -> [String; 2] {
        self.pods.each_ref().map(pod_uid)
    }

    /// Adds the two pods, with a service over both at 10.96.0.1.
    fn with_service(self) -> Self {
        let vip: IpAddr = "10.96.0.1".parse().unwrap();
        let [a, b] = &self.pods;
        self.istiod.push(|world| {
            world.enrol(a);
            world.enrol(b);
            world.service("web", &[vip], (80, 8080), &[a, b]).unwrap();
        });
        self
    }
}

#[test]
fn a_wildcard_client_of_an_empty_mesh_gets_one_empty_response_of_each_type() {
    let scene = Scene::new();
    let stream = scene.client.stream();
    for kind in [Address, Authorization] {
        stream.send(wildcard(kind));
        let response = stream.next();
        assert_eq!(response.type_url, kind.url());
        assert!(response.resources.is_empty() && response.removed_resources.is_empty());
        assert!(!response.nonce.is_empty());
        stream.ack(&response);
    }
    scene.istiod.wait_synchronized("ztunnel-east").unwrap();
    assert!(stream.is_silent());
}

#[test]
fn headers_come_with_the_first_message_and_not_before_the_first_request() {
    let scene = Scene::new();
    scene.istiod.hold(Address);
    let (held, waiting) = (scene.client.stream(), scene.client.stream());
    held.send(wildcard(Address));
    scene.istiod.wait_for_streams(1).unwrap();
    // A call on another connection has come and gone meanwhile.
    let probe = scene.client.stream();
    probe.send(wildcard(Authorization));
    probe.next();
    assert!(held.is_silent() && waiting.is_silent());
    scene.istiod.release(Address);
    held.next();
    assert!(waiting.is_silent());
}

#[test]
fn an_on_demand_client_gets_what_is_on_its_node_and_what_it_asks_for() {
    let scene = Scene::new();
    let ([local, _], far) = (&scene.pods, &scene.far);
    scene.istiod.push(|world| world.enrol(far));
    let stream = scene.client.stream();
    stream.send(on_demand());
    assert_eq!(stream.next_names(), (vec![], vec![]));

    let address = format!("/{}", far.ipv4());
    stream.demand(&address);
    let response = stream.next();
    assert_eq!(names(&response), [pod_uid(far)]);
    assert_eq!(response.resources[0].aliases, [address, format!("/{}", far.ipv6())]);
    stream.ack(&response);
    stream.demand("/127.0.0.2");
    assert_eq!(stream.next_names(), (vec![], vec!["/127.0.0.2".to_owned()]));

    // What it has is kept up to date, and pods of its node come unasked. Others do not.
    scene.istiod.push(|world| {
        world.enrol(local);
        world.change_workload(far, |workload| workload.set_status(WorkloadStatus::Unhealthy)).unwrap();
    });
    assert_eq!(stream.next_names(), (vec![pod_uid(local), pod_uid(far)], vec![]));
    scene.istiod.push(|world| world.service("elsewhere", &[], (80, 80), &[]).unwrap());
    scene.istiod.push(|world| world.remove_pod(local));
    assert_eq!(stream.next_names(), (vec![], vec![pod_uid(local)]));
}

#[test]
fn a_name_that_is_subscribed_already_gets_no_answer() {
    let scene = Scene::new();
    let stream = scene.client.stream();
    stream.send(on_demand());
    stream.next_names();
    stream.demand("/127.0.0.2");
    stream.next_names();
    stream.demand("/127.0.0.2");
    stream.demand("/127.0.0.3");
    assert_eq!(stream.next_names(), (vec![], vec!["/127.0.0.3".to_owned()]));
    let demanded: Vec<_> = scene.istiod.demands().into_iter().flat_map(|demand| demand.names).collect();
    assert_eq!(demanded, ["/127.0.0.2", "/127.0.0.3"]);
}

#[test]
fn demanding_the_address_of_a_service_gives_the_service_and_all_its_workloads() {
    let scene = Scene::new().with_service();
    let [a, b] = scene.uids();
    for name in ["/10.96.0.1".to_owned(), service_key("web")] {
        // From another node, so that none of it comes unasked.
        let mut first = on_demand();
        first.node = Some(client::node());
        let metadata = first.node.as_mut().unwrap().metadata.as_mut().unwrap();
        metadata.fields.remove("NODE_NAME");
        let stream = scene.client.stream();
        stream.send(first);
        assert_eq!(stream.next_names(), (vec![], vec![]));
        stream.demand(&name);
        assert_eq!(stream.next_names(), (vec![a.clone(), b.clone(), service_key("web")], vec![]));
    }
}

#[test]
fn an_on_demand_client_that_reconnects_gets_its_names_again_and_what_is_new_on_its_node() {
    let scene = Scene::new();
    let ([local, _], far) = (&scene.pods, &scene.far);
    scene.istiod.push(|world| {
        world.enrol(far);
        world.enrol(local);
    });
    let stream = scene.client.stream();
    stream.send(holding(on_demand(), &[(&format!("/{}", far.ipv4()), ""), ("/127.0.0.9", "")]));
    let response = stream.next();
    assert_eq!(names(&response), [pod_uid(local), pod_uid(far)]);
    assert_eq!(response.removed_resources, ["/127.0.0.9"]);
}

#[test]
fn a_wildcard_client_that_reconnects_gets_what_has_changed_meanwhile() {
    let scene = Scene::new().with_service();
    let [a, b] = scene.uids();
    let version = |name: &str| scene.istiod.read(|world| world.version(Address, name).unwrap().to_owned());
    let (version_a, version_b, web) = (version(&a), version(&b), version(&service_key("web")));
    let first = |held: &[(&str, &str)]| {
        let stream = scene.client.stream();
        stream.send(holding(wildcard(Address), held));
        stream.next_names()
    };
    let web_key = service_key("web");
    let all = [(&*a, &*version_a), (&*b, &*version_b), (&*web_key, &*web)];
    assert_eq!(first(&all), (vec![], vec![]));
    assert_eq!(first(&[all[0], all[1]]), (vec![web_key.clone()], vec![]));
    assert_eq!(first(&[all[0], (&b, "stale"), all[2]]), (vec![b.clone()], vec![]));
    // No version is not the current version.
    assert_eq!(first(&[all[0], (&b, ""), all[2]]), (vec![b.clone()], vec![]));
    let gone = "Kubernetes//Pod/default/gone";
    assert_eq!(first(&[all[0], all[1], all[2], (gone, "1")]), (vec![], vec![gone.to_owned()]));
}

#[test]
fn policies_come_in_full_on_every_stream() {
    let scene = Scene::new();
    let one = policy("one", Scope::Namespace, Action::Deny, vec![]);
    scene.istiod.push(|world| world.set_policy(&one));
    for held in [&[][..], &[("default/one", ""), ("default/gone", "")]] {
        let stream = scene.client.stream();
        stream.send(holding(wildcard(Authorization), held));
        let response = stream.next();
        assert_eq!(names(&response), ["default/one"]);
        assert_eq!(response.resources[0].version, "");
        assert_eq!(response.removed_resources.len(), usize::from(!held.is_empty()));
    }
}

#[test]
fn a_changed_service_brings_its_workloads_along_and_a_deleted_policy_is_named() {
    let scene = Scene::new().with_service();
    let [a, b] = scene.uids();
    scene.istiod.push(|world| world.set_policy(&policy("two", Scope::Namespace, Action::Deny, vec![])));
    let stream = scene.client.stream();
    for kind in [Address, Authorization] {
        stream.send(wildcard(kind));
        stream.next_names();
    }
    scene.istiod.push(|world| {
        world.change_service("web", |service| service.canonical = false).unwrap();
        world.remove_policy("two");
    });
    // Addresses first.
    assert_eq!(stream.next_names(), (vec![a, b, service_key("web")], vec![]));
    assert_eq!(stream.next_names(), (vec![], vec!["default/two".to_owned()]));
    // Also policies that nobody was ever told of.
    scene.istiod.push(|world| world.remove(Authorization, "istio-system/istio_converted_static_strict"));
    assert_eq!(stream.next_names(), (vec![], vec!["istio-system/istio_converted_static_strict".to_owned()]));
}

#[test]
fn an_incremental_push_has_only_what_was_touched() {
    let scene = Scene::new().with_service();
    let [a, _] = scene.uids();
    let stream = scene.client.stream();
    stream.send(wildcard(Address));
    assert_eq!(stream.next_names().0.len(), 3);
    scene.istiod.push(|world| world.touch(Address, &a));
    assert_eq!(stream.next_names(), (vec![a.clone()], vec![]));
    // Without a push, nothing is told.
    scene.istiod.edit(|world| world.remove(Address, &a));
    scene.istiod.push(|world| world.enrol(&scene.far));
    assert_eq!(stream.next_names(), (vec![pod_uid(&scene.far)], vec![a]));
}

#[test]
fn answers_count_for_the_newest_response_only() {
    let scene = Scene::new();
    let stream = scene.client.stream();
    stream.send(wildcard(Address));
    let first = stream.next();
    scene.istiod.push(|world| world.enrol(&scene.far));
    let second = stream.next();
    assert_ne!(first.nonce, second.nonce);
    stream.ack(&first);
    stream.nack(&second, "no room");
    let nack = scene.istiod.wait_nacked("ztunnel-east", Address).unwrap();
    assert_eq!(nack, "no room");
    let answers = scene.istiod.answers();
    assert_eq!(answers.iter().map(|answer| answer.newest).collect::<Vec<_>>(), [false, true]);
    assert!(scene.istiod.wait_acked("ztunnel-east", Address).is_err(), "it was rejected");
    // A later ACK clears it.
    scene.istiod.push(|world| world.enrol(&scene.pods[0]));
    stream.ack(&stream.next());
    scene.istiod.wait_acked("ztunnel-east", Address).unwrap();
    assert!(stream.is_silent(), "a NACK is not answered");
}

#[test]
fn held_responses_come_when_they_are_released_and_tell_the_state_of_then() {
    let scene = Scene::new();
    let stream = scene.client.stream();
    stream.send(wildcard(Address));
    stream.next_names();
    scene.istiod.hold(Address);
    scene.istiod.push(|world| world.enrol(&scene.far));
    scene.istiod.push(|world| world.remove_pod(&scene.far));
    // The other type is not held.
    stream.send(wildcard(Authorization));
    assert_eq!(stream.next().type_url, Authorization.url());
    scene.istiod.release(Address);
    assert_eq!(stream.next_names(), (vec![], vec![pod_uid(&scene.far)]));
}

#[test]
fn resources_and_responses_can_be_as_bad_as_a_test_wants() {
    let scene = Scene::new();
    scene.istiod.push(|world| {
        world.set_raw(Address, "broken", Some(vec![0xff; 4]));
        world.set_raw(Address, "hollow", None);
    });
    let stream = scene.client.stream();
    stream.send(wildcard(Address));
    let response = stream.next();
    assert_eq!(names(&response), ["broken", "hollow"]);
    assert_eq!(response.resources[0].resource.as_ref().unwrap().value, [0xff; 4]);
    assert_eq!(response.resources[1].resource, None);

    let strange = xds_client::discovery::DeltaDiscoveryResponse {
        type_url: "type.googleapis.com/strange".to_owned(),
        nonce: "n".to_owned(),
        ..Default::default()
    };
    scene.istiod.send(&strange).unwrap();
    assert_eq!(stream.next(), strange);
    // No message at all: field 2 says that more bytes follow than do.
    scene.istiod.send_bytes(vec![0x12, 0x7f]);
    assert_eq!(stream.end().0, Code::Internal);
}

#[test]
fn streams_end_with_the_code_that_the_test_chooses() {
    let scene = Scene::new();
    for code in [Code::Ok, Code::Aborted, Code::Unavailable] {
        let stream = scene.client.stream();
        stream.send(wildcard(Address));
        stream.next_names();
        scene.istiod.close_streams(code, "as told");
        let message = if code == Code::Ok { "" } else { "as told" };
        assert_eq!(stream.end(), (code, message.to_owned()));
    }
    lab::wait_until(|| scene.istiod.streams().is_empty()).unwrap();
}

#[test]
fn a_connection_that_is_told_to_go_away_keeps_its_streams_until_the_grace_is_over() {
    let scene = Scene::new();
    let stream = scene.client.stream();
    stream.send(wildcard(Address));
    stream.next_names();
    scene.istiod.go_away(Duration::from_secs(1));
    scene.istiod.push(|world| world.enrol(&scene.far));
    assert_eq!(stream.next_names().0, [pod_uid(&scene.far)]);
    // Which code its library gives to a connection that ends is the client's business.
    assert_ne!(stream.end().0, Code::Ok);
    lab::wait_until(|| scene.istiod.connections() == 0).unwrap();
}

#[test]
fn a_server_that_stops_cuts_everything_and_comes_back_at_the_same_address_with_all_it_knew() {
    let scene = Scene::new().with_service();
    for round in 1..=3 {
        let stream = scene.client.stream();
        stream.send(wildcard(Address));
        assert_eq!(stream.next_names().0.len(), 3);
        assert_eq!(scene.istiod.connections(), 1);
        scene.istiod.stop().unwrap();
        assert_ne!(stream.end().0, Code::Ok);
        let refused = scene.client.stream();
        assert_eq!(refused.end().0, Code::Unavailable);
        scene.istiod.listen().unwrap();
        assert_eq!(scene.istiod.streams_so_far(), round);
    }
    let stream = scene.client.stream();
    stream.send(wildcard(Address));
    stream.next_names();
    scene.istiod.cut();
    assert_ne!(stream.end().0, Code::Ok);
}

#[test]
fn sixty_thousand_resources_come_in_one_message() {
    let scene = Scene::new();
    let name = |index: usize| format!("Kubernetes//Pod/{}/{index:06}", "a-long-namespace".repeat(5));
    scene.istiod.push(|world| {
        for index in 0..60_000 {
            world.set_raw(Address, &name(index), Some(vec![0x0a, 0]));
        }
    });
    let stream = scene.client.stream();
    stream.send(wildcard(Address));
    assert_eq!(stream.next().resources.len(), 60_000);

    // And a client that lists them all is over the limit.
    let names: Vec<_> = (0..60_000).map(name).collect();
    let held: Vec<_> = names.iter().map(|name| (name.as_str(), "0123456789abcdef")).collect();
    let stream = scene.client.stream();
    stream.send(holding(wildcard(Address), &held));
    assert_eq!(stream.end().0, Code::ResourceExhausted);
}
