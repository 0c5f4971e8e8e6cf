//! The delta protocol, without a network.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use support::{ADDRESS, AUTHORIZATION, Answer, BAD, Keeper, alias, apply, node, open, resource, response};
use xds_client::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use xds_client::prost::Message;
use xds_client::{Demanded, Demanding, Mode, Session};

const LIMIT: usize = xds_client::DEFAULT_REQUEST_LIMIT;

fn wildcard() -> (Session, Keeper) {
    (Session::new(node(), Mode::Wildcard, LIMIT), Keeper::default())
}

fn on_demand() -> (Session, Keeper) {
    (Session::new(node(), Mode::OnDemand, LIMIT), Keeper::default())
}

fn versions<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(name, version)| (name.to_owned(), version.to_owned())).collect()
}

fn asked(demanding: Demanding) -> DeltaDiscoveryRequest {
    match demanding {
        Demanding::Ask(bytes) => DeltaDiscoveryRequest::decode(bytes.as_slice()).unwrap(),
        other => panic!("not asked: {other:?}"),
    }
}

#[test]
fn a_stream_begins_with_addresses_then_policies_and_names_nothing_at_first() {
    let (mut session, _) = wildcard();
    let first = |kind: xds_client::ResourceType, names: &[String]| DeltaDiscoveryRequest {
        node: Some(node()),
        type_url: kind.url().into(),
        resource_names_subscribe: names.to_vec(),
        resource_names_unsubscribe: names.to_vec(),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(open(&mut session), [first(ADDRESS, &[]), first(AUTHORIZATION, &[])]);
    let (mut session, _) = on_demand();
    assert_eq!(open(&mut session), [first(ADDRESS, &["*".into()]), first(AUTHORIZATION, &[])]);
}

#[test]
fn the_next_stream_names_what_was_accepted_with_its_version() {
    let (mut session, mut keeper) = wildcard();
    open(&mut session);
    let addresses = vec![
        resource("a", "9f2c0123456789ab", b"1"),
        resource("hex", "00ff", b"2"),
        resource("bad", "1", BAD),
    ];
    apply(&mut session, &mut keeper, &response(ADDRESS, "N1", addresses, &[]));
    apply(&mut session, &mut keeper, &response(AUTHORIZATION, "N2", vec![resource("ns/p", "", b"3")], &[]));
    let requests = open(&mut session);
    let expected = versions([("a", "9f2c0123456789ab"), ("hex", "00ff")]);
    assert_eq!(requests[0].initial_resource_versions, expected, "the rejected one is not among them");
    assert_eq!(requests[1].initial_resource_versions, versions([("ns/p", "")]));
    assert!(requests.iter().all(|request| request.node.is_some() && request.response_nonce.is_empty()));
}

#[test]
fn updates_come_before_removals_and_all_within_one_transaction() {
    let (mut session, mut keeper) = wildcard();
    let resources = (1..=4).map(|n| resource(&n.to_string(), "v", b"x")).collect();
    let (answer, _) =
        apply(&mut session, &mut keeper, &response(ADDRESS, "N", resources, &["2", "never heard of"]));
    assert_eq!(answer, Answer::Ack);
    let calls = keeper.take_calls();
    let expected = [
        "begin",
        "update 1",
        "update 2",
        "update 3",
        "update 4",
        "remove 2",
        "remove never heard of",
        "commit",
    ];
    assert_eq!(calls, expected);
    assert_eq!(keeper.names(ADDRESS), ["1", "3", "4"]);
    assert!(!open(&mut session)[0].initial_resource_versions.contains_key("2"), "removed, so not retained");
}

#[test]
fn a_rejection_spares_the_other_resources_and_the_previous_version() {
    let (mut session, mut keeper) = wildcard();
    apply(&mut session, &mut keeper, &response(ADDRESS, "N1", vec![resource("a", "1", b"one")], &[]));
    let mut empty = resource("empty", "1", b"");
    empty.resource = None;
    let resources = vec![resource("a", "2", BAD), resource("b", "1", b"two"), empty];
    let (answer, _) = apply(&mut session, &mut keeper, &response(ADDRESS, "N2", resources, &[]));
    assert_eq!(answer, Answer::Nack("a: bad payload; empty: XDS payload without resource".into()));
    assert_eq!(keeper.names(ADDRESS), ["a", "b"]);
    assert_eq!(keeper.view()[&(ADDRESS, "a".into())], b"one");
    assert_eq!(open(&mut session)[0].initial_resource_versions, versions([("a", "1"), ("b", "1")]));
}

#[test]
fn a_rejected_version_that_was_taken_back_without_a_stream_is_told_to_the_handler() {
    let (mut session, mut keeper) = wildcard();
    for (nonce, version, payload) in [("N1", "1", b"one".as_slice()), ("N2", "2", BAD)] {
        apply(
            &mut session,
            &mut keeper,
            &response(ADDRESS, nonce, vec![resource("a", version, payload)], &[]),
        );
    }
    assert_eq!(keeper.claims().len(), 1);
    open(&mut session);
    keeper.take_calls();
    // The control plane has the version that the request named, so it sends nothing.
    apply(&mut session, &mut keeper, &response(ADDRESS, "N3", vec![], &[]));
    assert_eq!(keeper.take_calls(), ["begin", "restore a", "commit"]);
    assert_eq!(keeper.claims(), BTreeMap::new());
    open(&mut session);
    apply(&mut session, &mut keeper, &response(ADDRESS, "N4", vec![], &[]));
    assert_eq!(keeper.take_calls(), ["begin", "commit"], "once");
}

#[test]
fn the_version_before_a_rejected_one_reaches_the_handler_when_it_comes_back() {
    let (mut session, mut keeper) = wildcard();
    let mut push = |nonce, version, payload| {
        let pushed = response(ADDRESS, nonce, vec![resource("a", version, payload)], &[]);
        apply(&mut session, &mut keeper, &pushed);
        keeper.take_calls()
    };
    push("N1", "1", b"one");
    push("N2", "2", BAD);
    assert_eq!(push("N3", "1", b"one"), ["begin", "update a", "commit"]);
    assert_eq!(push("N4", "1", b"one"), ["begin", "commit"], "unchanged again");
    assert_eq!(keeper.claims(), BTreeMap::new());
    assert_eq!(open(&mut session)[0].initial_resource_versions, versions([("a", "1")]));
}

#[test]
fn what_was_only_ever_rejected_and_is_not_in_the_first_response_is_gone() {
    for mode in [Mode::Wildcard, Mode::OnDemand] {
        let mut session = Session::new(node(), mode, LIMIT);
        let mut keeper = Keeper::default();
        open(&mut session);
        let bad = |name| resource(name, "1", BAD);
        let mut unusable = bad("unusable");
        let all = vec![bad("gone"), bad("healed"), bad("still bad"), bad("removed"), unusable.clone()];
        apply(&mut session, &mut keeper, &response(ADDRESS, "N1", all, &[]));
        // Another response of the same stream tells nothing about what it does not carry.
        apply(&mut session, &mut keeper, &response(ADDRESS, "N2", vec![], &[]));
        assert_eq!(keeper.claims().len(), 5);
        keeper.take_calls();
        assert_eq!(open(&mut session)[0].initial_resource_versions, versions([]));
        unusable.resource = None;
        let first = vec![resource("healed", "2", b"x"), bad("still bad"), unusable];
        let (_, reply) = apply(&mut session, &mut keeper, &response(ADDRESS, "N1", first, &["removed"]));
        let calls = ["begin", "update healed", "update still bad", "remove removed", "remove gone", "commit"];
        assert_eq!(keeper.take_calls(), calls);
        assert!(reply.answers.iter().all(|(name, _)| &**name != "gone"), "nobody answered for it");
        apply(&mut session, &mut keeper, &response(ADDRESS, "N2", vec![], &[]));
        assert_eq!(keeper.take_calls(), ["begin", "commit"]);
        // And again on the next stream.
        open(&mut session);
        apply(&mut session, &mut keeper, &response(ADDRESS, "N1", vec![], &[]));
        assert_eq!(keeper.claims(), BTreeMap::new());
    }
}

#[test]
fn what_was_rejected_stays_if_a_resource_of_the_first_response_has_no_readable_name() {
    let (mut session, mut keeper) = wildcard();
    apply(&mut session, &mut keeper, &response(ADDRESS, "N1", vec![resource("a", "1", BAD)], &[]));
    open(&mut session);
    let mut bytes = response(ADDRESS, "N2", vec![], &[]).encode_to_vec();
    bytes.extend_from_slice(b"\x12\x02\x1a\x09");
    session.receive(bytes.into(), &mut keeper).unwrap().commit(&mut keeper);
    assert_eq!(keeper.claims().len(), 1);
    // The next stream can tell.
    open(&mut session);
    apply(&mut session, &mut keeper, &response(ADDRESS, "N3", vec![], &[]));
    assert_eq!(keeper.claims(), BTreeMap::new());
}

#[test]
fn a_rejected_resource_is_decoded_again_and_an_unchanged_one_is_not() {
    let (mut session, mut keeper) = wildcard();
    let push = || vec![resource("bad", "1", BAD), resource("good", "1", b"x")];
    apply(&mut session, &mut keeper, &response(ADDRESS, "N1", push(), &[]));
    keeper.take_calls();
    let mut again = push();
    again[1].version = "2".into();
    apply(&mut session, &mut keeper, &response(ADDRESS, "N2", again, &[]));
    assert_eq!(keeper.take_calls(), ["begin", "update bad", "commit"]);
    assert_eq!(open(&mut session)[0].initial_resource_versions, versions([("good", "2")]));
    let (answer, _) = apply(
        &mut session,
        &mut keeper,
        &response(ADDRESS, "N3", vec![resource("bad", "3", b"fine now")], &[]),
    );
    assert_eq!(answer, Answer::Ack);
    assert_eq!(keeper.names(ADDRESS), ["bad", "good"]);
}

#[test]
fn a_resource_that_was_removed_is_new_when_it_comes_back() {
    let (mut session, mut keeper) = wildcard();
    apply(&mut session, &mut keeper, &response(ADDRESS, "N1", vec![resource("a", "1", b"x")], &[]));
    apply(&mut session, &mut keeper, &response(ADDRESS, "N2", vec![], &["a"]));
    keeper.take_calls();
    apply(&mut session, &mut keeper, &response(ADDRESS, "N3", vec![resource("a", "1", b"x")], &[]));
    assert_eq!(keeper.take_calls(), ["begin", "update a", "commit"]);
}

#[test]
fn the_same_name_in_both_types_is_two_resources() {
    let (mut session, mut keeper) = wildcard();
    apply(&mut session, &mut keeper, &response(ADDRESS, "N1", vec![resource("ns/a", "1", b"x")], &[]));
    apply(&mut session, &mut keeper, &response(AUTHORIZATION, "N2", vec![resource("ns/a", "", b"x")], &[]));
    apply(&mut session, &mut keeper, &response(ADDRESS, "N3", vec![], &["ns/a"]));
    assert_eq!((keeper.names(ADDRESS).len(), keeper.names(AUTHORIZATION).len()), (0, 1));
}

#[test]
fn an_unknown_type_is_acknowledged_and_changes_nothing() {
    let (mut session, mut keeper) = wildcard();
    let mut unknown = response(ADDRESS, "N", vec![resource("a", "1", b"xyz")], &["b"]);
    unknown.type_url = "type.googleapis.com/istio.workload.Workload".into();
    let (answer, _) = apply(&mut session, &mut keeper, &unknown);
    assert_eq!(answer, Answer::Ack);
    assert_eq!(keeper.take_calls(), [""; 0]);
    let received = format!("Received {{ type_url: {:?}, payload_bytes: 3 }}", unknown.type_url);
    assert_eq!(keeper.take_events(), [received]);
}

#[test]
fn a_malformed_response_is_refused_in_full_and_a_malformed_resource_alone() {
    let (mut session, mut keeper) = wildcard();
    let mut bytes = response(ADDRESS, "N1", vec![resource("a", "1", b"x")], &["gone"]).encode_to_vec();
    bytes.pop();
    let error = session.receive(bytes.into(), &mut keeper).unwrap_err();
    let nack = DeltaDiscoveryRequest::decode(error.reply.unwrap().as_slice()).unwrap();
    assert_eq!((nack.response_nonce.as_str(), error.kind), ("N1", Some(ADDRESS)));
    assert_eq!(nack.error_detail.unwrap().message, "malformed response: cut off");
    assert_eq!(keeper.take_calls(), [""; 0]);

    let mut bytes = response(ADDRESS, "N2", vec![resource("a", "1", b"x")], &[]).encode_to_vec();
    // A resource with a name and a field that is cut off.
    bytes.extend_from_slice(b"\x12\x06\x1a\x01b\x0a\x09x");
    let mut transaction = session.receive(bytes.into(), &mut keeper).unwrap();
    transaction.step(&mut keeper, 1);
    let nack = DeltaDiscoveryRequest::decode(transaction.commit(&mut keeper).request.as_slice()).unwrap();
    assert_eq!(nack.error_detail.unwrap().message, "b: malformed resource: cut off");
    assert_eq!(keeper.names(ADDRESS), ["a"]);
}

#[test]
fn without_type_and_nonce_there_is_nothing_to_refuse_with() {
    let (mut session, mut keeper) = wildcard();
    let error = session.receive(b"\x12\x7f".as_slice().into(), &mut keeper).unwrap_err();
    assert_eq!((error.reply, error.kind), (None, None));
}

#[test]
fn the_mesh_is_known_once_both_types_were_processed_even_with_rejections() {
    let (mut session, mut keeper) = wildcard();
    open(&mut session);
    apply(&mut session, &mut keeper, &response(ADDRESS, "N1", vec![resource("a", "1", BAD)], &[]));
    assert!(!keeper.take_events().contains(&"Synchronized".into()));
    // Progress outlives the stream.
    open(&mut session);
    apply(&mut session, &mut keeper, &response(AUTHORIZATION, "N1", vec![], &[]));
    let events = keeper.take_events();
    let expected = [
        "Received { type_url: \"type.googleapis.com/istio.security.Authorization\", payload_bytes: 0 }",
        "Answered { kind: Authorization, rejected: 0 }",
        "Synchronized",
    ];
    assert_eq!(events, expected);
    apply(&mut session, &mut keeper, &response(ADDRESS, "N2", vec![], &[]));
    assert!(!keeper.take_events().contains(&"Synchronized".into()), "a second time");
}

#[test]
fn on_demand_the_policies_alone_are_waited_for() {
    let (mut session, mut keeper) = on_demand();
    open(&mut session);
    apply(&mut session, &mut keeper, &response(AUTHORIZATION, "N1", vec![], &[]));
    assert!(keeper.take_events().contains(&"Synchronized".into()));
}

/// A session with 100 addresses whose names do not fit into a first request.
fn crowded(mode: Mode) -> (Session, Keeper, DeltaDiscoveryResponse) {
    let mut session = Session::new(node(), mode, 600);
    let mut keeper = Keeper::default();
    let all: Vec<_> = (0..100).map(|n| resource(&format!("workload-{n:03}"), "1", b"x")).collect();
    let all = response(ADDRESS, "N1", all, &[]);
    apply(&mut session, &mut keeper, &all);
    keeper.take_calls();
    (session, keeper, all)
}

#[test]
fn too_many_names_are_left_out_and_what_the_complete_answer_lacks_is_removed() {
    let (mut session, mut keeper, mut all) = crowded(Mode::Wildcard);
    let requests = open(&mut session);
    assert_eq!(requests.len(), 2);
    assert!(requests[0].initial_resource_versions.is_empty());
    all.resources.remove(7);
    // What is there and cannot be used is not gone.
    all.resources[7] = resource("workload-008", "2", BAD);
    all.resources[8].resource = None;
    let (answer, _) = apply(&mut session, &mut keeper, &all);
    assert_eq!(
        answer,
        Answer::Nack("workload-008: bad payload; workload-009: XDS payload without resource".into())
    );
    assert_eq!(keeper.take_calls(), ["begin", "update workload-008", "remove workload-007", "commit"]);
    assert_eq!(session.retained(ADDRESS), 99);
    // Only the first response of the stream was complete.
    apply(&mut session, &mut keeper, &response(ADDRESS, "N3", vec![], &[]));
    assert_eq!(session.retained(ADDRESS), 99);
}

#[test]
fn a_resource_without_a_readable_name_keeps_everything_in_place() {
    let (mut session, mut keeper, _) = crowded(Mode::Wildcard);
    open(&mut session);
    let mut bytes = response(ADDRESS, "N2", vec![resource("workload-000", "1", b"x")], &[]).encode_to_vec();
    bytes.extend_from_slice(b"\x12\x02\x1a\x09");
    session.receive(bytes.into(), &mut keeper).unwrap().commit(&mut keeper);
    assert_eq!(session.retained(ADDRESS), 100);
}

#[test]
fn on_demand_too_many_names_are_spread_over_further_requests() {
    let (mut session, _, _) = crowded(Mode::OnDemand);
    session.demand(&Arc::from("/10.0.0.1"));
    let bytes = session.open();
    assert!(bytes.iter().all(|request| request.len() <= 600));
    let requests: Vec<_> =
        bytes.iter().map(|bytes| DeltaDiscoveryRequest::decode(bytes.as_slice()).unwrap()).collect();
    assert!(requests.len() > 3, "{}", requests.len());
    assert_eq!((&*requests[0].type_url, &*requests[1].type_url), (ADDRESS.url(), AUTHORIZATION.url()));
    let mut names: Vec<_> = requests[0].initial_resource_versions.keys().cloned().collect();
    for further in &requests[2..] {
        assert_eq!((&*further.type_url, &further.node), (ADDRESS.url(), &None));
        names.extend(further.resource_names_subscribe.iter().cloned());
    }
    names.sort();
    let mut expected: Vec<_> = (0..100).map(|n| format!("workload-{n:03}")).collect();
    expected.insert(0, "/10.0.0.1".into());
    assert_eq!(names, expected, "each name once");
}

#[test]
fn whoever_asked_is_answered_by_name_alias_or_removal() {
    let (mut session, mut keeper) = on_demand();
    for name in ["uid", "/10.0.0.1", "/10.0.0.2", "rejected"] {
        let request = asked(session.demand(&Arc::from(name)));
        assert_eq!(request.resource_names_subscribe, [name]);
        assert!(request.node.is_none() && request.resource_names_unsubscribe.is_empty());
    }
    let resources = vec![
        resource("uid", "1", b"x"),
        alias(alias(resource("pod", "1", b"x"), "/10.0.0.9"), "/10.0.0.1"),
        resource("rejected", "1", BAD),
        resource("not asked for", "1", b"x"),
    ];
    let (_, reply) =
        apply(&mut session, &mut keeper, &response(ADDRESS, "N1", resources.clone(), &["/10.0.0.2"]));
    let answers: Vec<_> = reply.answers.iter().map(|(name, answer)| (&**name, *answer)).collect();
    let expected = [
        ("uid", Demanded::Found),
        ("/10.0.0.1", Demanded::Found),
        ("rejected", Demanded::Absent),
        ("/10.0.0.2", Demanded::Absent),
    ];
    assert_eq!(answers, expected);
    let (_, reply) = apply(&mut session, &mut keeper, &response(ADDRESS, "N2", resources, &[]));
    let answers: Vec<_> = reply.answers.iter().map(|(name, answer)| (&**name, *answer)).collect();
    let expected = [("/10.0.0.1", Demanded::Found), ("rejected", Demanded::Absent)];
    assert_eq!(answers, expected, "an unchanged resource answers too; what is held is not asked for");
}

#[test]
fn a_name_that_is_subscribed_already_is_asked_for_in_a_way_that_is_answered() {
    let (mut session, mut keeper) = on_demand();
    let name: Arc<str> = "/10.0.0.1".into();
    asked(session.demand(&name));
    apply(&mut session, &mut keeper, &response(ADDRESS, "N1", vec![], &[&name]));
    let again = asked(session.demand(&name));
    assert_eq!(again.resource_names_subscribe, ["/10.0.0.1"]);
    assert_eq!(again.resource_names_unsubscribe, ["/10.0.0.1"], "or there is no answer");
    let third = asked(session.demand(&name));
    assert!(third.resource_names_unsubscribe.is_empty(), "it is not subscribed any more");
}

#[test]
fn a_name_that_was_only_sent_counts_as_subscribed_too() {
    let (mut session, mut keeper) = on_demand();
    let resources = vec![resource("rejected", "1", BAD), resource("removed", "1", b"x")];
    apply(&mut session, &mut keeper, &response(ADDRESS, "N1", resources, &[]));
    apply(&mut session, &mut keeper, &response(ADDRESS, "N2", vec![], &["removed"]));
    for name in ["rejected", "removed"] {
        let request = asked(session.demand(&Arc::from(name)));
        assert_eq!(request.resource_names_unsubscribe, [name], "or there is no answer");
    }
}

#[test]
fn what_was_asked_for_is_subscribed_again_on_the_next_stream_unless_it_is_missing() {
    let (mut session, mut keeper) = on_demand();
    open(&mut session);
    for name in ["pending", "found", "missing"] {
        asked(session.demand(&Arc::from(name)));
    }
    let pod = alias(resource("pod", "1", b"x"), "found");
    apply(&mut session, &mut keeper, &response(ADDRESS, "N1", vec![pod], &["missing"]));
    let first = open(&mut session).remove(0);
    assert_eq!(first.initial_resource_versions, versions([("pod", "1"), ("found", ""), ("pending", "")]));
    assert_eq!(session.demand(&Arc::from("pod")), Demanding::Known);
    assert!(asked(session.demand(&Arc::from("missing"))).resource_names_unsubscribe.is_empty());
}

#[test]
fn in_wildcard_mode_nothing_is_asked_for() {
    let (mut session, _) = wildcard();
    assert_eq!(session.demand(&Arc::from("a")), Demanding::Known);
}

/// As many names as can be noted.
fn many_names() -> Vec<Arc<str>> {
    (0..1 << 16).map(|n| format!("/{n}").into()).collect()
}

#[test]
fn asking_for_ever_new_names_is_bounded_and_misses_make_room() {
    let (mut session, mut keeper) = on_demand();
    let names = many_names();
    for name in &names {
        asked(session.demand(name));
    }
    assert_eq!(session.demand(&Arc::from("more")), Demanding::Refused);
    apply(&mut session, &mut keeper, &response(ADDRESS, "N1", vec![], &[&names[0]]));
    let request = asked(session.demand(&Arc::from("more")));
    assert_eq!(request.resource_names_subscribe, ["more"]);
    assert_eq!(request.resource_names_unsubscribe, [&*names[0]], "or a later question is not answered");
    let again = asked(session.demand(&Arc::from("more")));
    assert_eq!(again.resource_names_unsubscribe, ["more"]);
    assert_eq!(session.demand(&names[0]), Demanding::Refused, "all of them wait again");
}

#[test]
fn as_many_addresses_as_there_is_room_for_do_not_keep_others_from_being_asked_for() {
    let (mut session, mut keeper) = on_demand();
    let names = many_names();
    for name in &names {
        asked(session.demand(name));
    }
    let pods = names.iter().map(|name| alias(resource(&format!("pod{name}"), "1", b"x"), name)).collect();
    apply(&mut session, &mut keeper, &response(ADDRESS, "N1", pods, &[]));
    let request = asked(session.demand(&Arc::from("/more")));
    assert_eq!(request.resource_names_unsubscribe, ["/0"], "the oldest answer makes room");
    assert!(session.retained(ADDRESS) == names.len(), "what it was the address of stays");
    // What was forgotten is asked for again, as it was the first time.
    let request = asked(session.demand(&names[0]));
    assert_eq!(request.resource_names_subscribe, ["/0"]);
    assert_eq!(request.resource_names_unsubscribe, ["/1"]);
}

#[test]
fn the_address_of_a_pod_that_is_gone_or_has_another_is_not_asked_for_on_the_next_stream() {
    let (mut session, mut keeper) = on_demand();
    for name in ["/gone", "/moved", "/kept", "/taken over"] {
        asked(session.demand(&Arc::from(name)));
    }
    let pods = vec![
        alias(resource("a", "1", b"x"), "/gone"),
        alias(alias(resource("b", "1", b"x"), "/moved"), "/kept"),
        alias(resource("c", "1", b"x"), "/taken over"),
    ];
    apply(&mut session, &mut keeper, &response(ADDRESS, "N1", pods, &[]));
    let pods = vec![alias(resource("b", "2", b"y"), "/kept"), alias(resource("d", "1", b"x"), "/taken over")];
    // Removals come by the names of resources.
    apply(&mut session, &mut keeper, &response(ADDRESS, "N2", pods, &["a", "c"]));
    let listed = open(&mut session).remove(0).initial_resource_versions;
    assert_eq!(listed, versions([("b", "2"), ("d", "1"), ("/kept", ""), ("/taken over", "")]));
}

#[test]
fn a_name_that_was_found_and_is_gone_is_asked_for_in_a_way_that_is_answered() {
    let (mut session, mut keeper) = on_demand();
    for name in ["uid", "/10.0.0.1"] {
        asked(session.demand(&Arc::from(name)));
    }
    let pod = alias(resource("uid", "1", b"x"), "/10.0.0.1");
    apply(&mut session, &mut keeper, &response(ADDRESS, "N1", vec![pod], &[]));
    apply(&mut session, &mut keeper, &response(ADDRESS, "N2", vec![], &["uid"]));
    for name in ["uid", "/10.0.0.1"] {
        let request = asked(session.demand(&Arc::from(name)));
        assert_eq!(request.resource_names_unsubscribe, [name]);
    }
}
