//! Whom it does not let in.

use lab::istiod::{Caller, Refusal};
use tonic::Code;
use xds_client::ResourceType::Address;
use xds_client::prost_types::{Value, value::Kind};

use crate::client::{Client, node, wildcard};
use crate::{Scene, TOKEN};

/// How a stream ends whose first request is an ordinary one.
fn first_request_ends(client: &Client) -> (Code, String) {
    let stream = client.stream();
    stream.send(wildcard(Address));
    stream.end()
}

#[test]
fn a_call_without_exactly_one_good_token_and_cluster_id_is_unauthenticated() {
    let scene = Scene::new();
    let bad = [
        scene.client.clone().without("authorization"),
        scene.client.clone().without("authorization").and("authorization", "Bearer another-token"),
        scene.client.clone().without("authorization").and("authorization", TOKEN),
        scene.client.clone().and("authorization", &format!("Bearer {TOKEN}")),
        scene.client.clone().without("clusterid"),
        scene.client.clone().and("clusterid", "Kubernetes"),
        scene.client.clone().without("clusterid").and("clusterid", "another-cluster"),
    ];
    for (index, client) in bad.iter().enumerate() {
        let end = first_request_ends(client);
        assert_eq!(end, (Code::Unauthenticated, "authentication failure".to_owned()), "client {index}");
        let refused = client.create_certificate(Default::default()).unwrap().unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "client {index}");
    }
    assert_eq!(scene.istiod.refusals().len(), 2 * bad.len());
    assert_eq!(scene.istiod.streams_so_far(), 0);
}

#[test]
fn a_token_is_good_from_when_it_is_accepted_until_it_is_refused() {
    let scene = Scene::new();
    let client = Client::new(&scene.east, &scene.istiod, "another");
    assert_eq!(first_request_ends(&client).0, Code::Unauthenticated);
    scene.istiod.accept_token("another", Caller::node_proxy(None));
    let stream = client.stream();
    stream.send(wildcard(Address));
    stream.next_names();
    scene.istiod.refuse_token("another");
    assert_eq!(first_request_ends(&client).0, Code::Unauthenticated);
    // It is looked at when a stream begins, and then no more.
    scene.istiod.push(|world| world.enrol(&scene.far));
    assert_eq!(stream.next_names().0.len(), 1);
}

#[test]
fn a_client_that_does_not_describe_itself_as_a_node_proxy_is_refused() {
    let scene = Scene::new();
    let id = |id: &str| {
        let mut node = node();
        node.id = id.to_owned();
        node
    };
    let metadata = |key: &str, kind: Kind| {
        let mut node = node();
        node.metadata.as_mut().unwrap().fields.insert(key.to_owned(), Value { kind: Some(kind) });
        node
    };
    let text = |text: &str| Kind::StringValue(text.to_owned());
    let bad = [
        (None, Code::InvalidArgument),
        (Some(id("")), Code::InvalidArgument),
        (Some(id("ztunnel~172.30.0.2~a.b")), Code::InvalidArgument),
        (Some(id("waypoint-like~172.30.0.2~a.b~b.svc.cluster.local")), Code::InvalidArgument),
        (Some(metadata("INSTANCE_IPS", text("nowhere"))), Code::InvalidArgument),
        (Some(metadata("INSTANCE_IPS", Kind::NumberValue(1.0))), Code::InvalidArgument),
        (Some(metadata("DNS_CAPTURE", text("yes"))), Code::InvalidArgument),
        (Some(metadata("NAMESPACE", text("default"))), Code::PermissionDenied),
        (Some(metadata("SERVICE_ACCOUNT", text("another"))), Code::PermissionDenied),
    ];
    for (node, code) in bad {
        let stream = scene.client.stream();
        let mut request = wildcard(Address);
        request.node.clone_from(&node);
        stream.send(request);
        assert_eq!(stream.end().0, code, "{node:?}");
    }
}

#[test]
fn a_test_can_have_all_streams_refused_for_a_while() {
    let scene = Scene::new();
    scene.istiod.refuse_streams(Code::Unknown, "server is not ready to serve discovery information");
    let end = first_request_ends(&scene.client);
    assert_eq!(end.0, Code::Unknown);
    let refusal = scene.istiod.wait_refused(0, Code::Unknown).unwrap();
    assert_eq!(Refusal { path: refusal.path, code: end.0, message: end.1 }, refusal);
    scene.istiod.accept_streams();
    let stream = scene.client.stream();
    stream.send(wildcard(Address));
    stream.next_names();
}
