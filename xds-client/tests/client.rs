//! The client against a control plane over HTTP/2.
//!
//! The clock is paused: it jumps to the next timer when nothing else can happen, so deadlines and pauses between streams
//! take no time.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "support/server.rs"]
mod server;
mod support;

use std::time::Duration;

use bytes::Bytes;
use server::{Attempt, Listener, Pipes, bounded, pipes};
use support::{ADDRESS, AUTHORIZATION, BAD, Keeper, alias, node, resource, response};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use xds_client::prost::Message;
use xds_client::{Client, Config, Demand, Demanded, Mode, Termination};

/// A client that runs until this is dropped.
struct Running {
    keeper: Keeper,
    listener: Listener,
    demand: Option<Demand>,
    shutdown: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

fn run<const N: usize>(mode: Mode, attempts: [Attempt; N]) -> Running {
    run_with(Config::new(node(), mode), pipes(attempts))
}

fn run_with(config: Config, (pipes, listener): (Pipes, Listener)) -> Running {
    let keeper = Keeper::default();
    let client = Client::new(config, pipes, keeper.clone());
    let demand = client.demand();
    let (shutdown, signal) = oneshot::channel();
    let task = tokio::task::spawn_local(client.run(async move { drop(signal.await) }));
    Running { keeper, listener, demand, shutdown, task }
}

/// Runs a test on one thread, where tasks need not be `Send`.
macro_rules! local {
    ($body:block) => {
        tokio::task::LocalSet::new().run_until(async move { $body }).await
    };
}

#[tokio::test(start_paused = true)]
async fn both_first_requests_are_sent_before_any_response_header() {
    local!({
        let mut running = run(Mode::Wildcard, []);
        let mut stream = running.listener.stream().await;
        let head = &stream.head;
        let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
        assert_eq!((head.method.as_str(), head.uri.path()), ("POST", path));
        for (name, value) in [
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("authorization", "Bearer token"),
            ("clusterid", "Kubernetes"),
        ] {
            assert_eq!(head.headers[name], value);
        }
        for kind in [ADDRESS, AUTHORIZATION] {
            let request = stream.request().await;
            assert_eq!((&*request.type_url, request.node), (kind.url(), Some(node())));
        }
        assert_eq!(running.keeper.take_events(), [""; 0]);

        stream.respond(&response(ADDRESS, "N1", vec![resource("a", "1", b"x")], &[]));
        assert_eq!(stream.request().await.response_nonce, "N1");
        assert!(!running.keeper.take_events().contains(&"Synchronized".into()));
        stream.respond(&response(AUTHORIZATION, "N2", vec![resource("ns/p", "", b"y")], &[]));
        assert_eq!(stream.request().await.response_nonce, "N2");
        bounded("readiness", running.keeper.until(|kept| kept.events.contains(&"Synchronized".into()))).await;
        assert_eq!(running.keeper.view().len(), 2);
    });
}

#[tokio::test(start_paused = true)]
async fn an_aborted_stream_leaves_the_state_and_the_next_one_names_what_was_accepted() {
    local!({
        let mut running = run(Mode::Wildcard, []);
        let mut stream = running.listener.stream().await;
        let requests = stream.greet().await;
        assert!(requests.iter().all(|request| request.initial_resource_versions.is_empty()));
        let resources = vec![resource("good", "1", b"x"), resource("bad", "1", BAD)];
        stream.respond(&response(ADDRESS, "N", resources, &[]));
        let nack = stream.request().await;
        assert_eq!(nack.error_detail.unwrap().message, "bad: bad payload");
        stream.end(10, "aborted");

        let mut stream = running.listener.stream().await;
        let [address, authorization] = stream.greet().await;
        assert_eq!(
            address.initial_resource_versions.into_iter().collect::<Vec<_>>(),
            [("good".into(), "1".into())]
        );
        assert!(authorization.initial_resource_versions.is_empty());
        assert_eq!(running.keeper.names(ADDRESS), ["good"]);
        assert_eq!(running.keeper.kept().terminations, [Termination::Error]);
    });
}

#[tokio::test(start_paused = true)]
async fn every_end_of_a_stream_is_told_apart_and_followed_by_another() {
    local!({
        let mut running = run(Mode::Wildcard, [Attempt::Fail, Attempt::Hang]);
        // Refused before an answer: in the headers.
        let mut stream = running.listener.stream().await;
        stream.request().await;
        stream.end(16, "authentication failure");
        // Reset before an answer.
        let mut stream = running.listener.stream().await;
        stream.request().await;
        stream.reset(h2::Reason::REFUSED_STREAM);
        // Closed in order.
        let mut stream = running.listener.stream().await;
        stream.greet().await;
        stream.end(0, "");
        // Unavailable, in the words of a server that goes away.
        let mut stream = running.listener.stream().await;
        stream.greet().await;
        stream.end(14, "transport is closing");
        // Cut.
        let mut stream = running.listener.stream().await;
        stream.greet().await;
        stream.cut();
        // Another error.
        let mut stream = running.listener.stream().await;
        stream.greet().await;
        stream.end(13, "internal");
        running.listener.stream().await.greet().await;
        let expected = [
            Termination::ConnectionError,
            Termination::ConnectionError,
            Termination::ConnectionError,
            Termination::ConnectionError,
            Termination::Complete,
            Termination::Reconnect,
            Termination::Reconnect,
            Termination::Error,
        ];
        assert_eq!(running.keeper.kept().terminations, expected);
    });
}

#[tokio::test(start_paused = true)]
async fn a_stream_goes_on_after_goaway_until_it_is_ended() {
    local!({
        let mut running = run(Mode::Wildcard, []);
        let mut stream = running.listener.stream().await;
        stream.greet().await;
        stream.go_away();
        stream.respond(&response(ADDRESS, "N", vec![resource("a", "1", b"x")], &[]));
        assert_eq!(stream.request().await.response_nonce, "N");
        stream.end(14, "closing: received prior goaway");
        running.listener.stream().await.greet().await;
        assert_eq!(running.keeper.kept().terminations, [Termination::Reconnect]);
    });
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_go_on_is_left() {
    local!({
        let mut running = run(Mode::Wildcard, []);
        // Never answers.
        let mut silent = running.listener.stream().await;
        silent.request().await;
        // Answers with headers, and with frames that say nothing, and hangs. A gateway may do so.
        let mut empty = running.listener.stream().await;
        empty.request().await;
        empty.write(Bytes::new());
        // Stops within the first message.
        let mut begun = running.listener.stream().await;
        begun.request().await;
        begun.write(b"\0\0\0\0\x09begin".as_slice().into());
        // Stops within a message.
        let mut stuck = running.listener.stream().await;
        stuck.greet().await;
        stuck.write(b"\0\0\0\0\x09begin".as_slice().into());
        let mut stream = running.listener.stream().await;
        stream.greet().await;
        let unanswered = Termination::ConnectionError;
        let expected = [unanswered, unanswered, unanswered, Termination::Reconnect];
        assert_eq!(running.keeper.kept().terminations, expected);
        // Silence between messages is in order.
        tokio::time::sleep(Duration::from_secs(3000)).await;
        stream.respond(&response(ADDRESS, "N", vec![resource("a", "1", b"x")], &[]));
        assert_eq!(stream.request().await.response_nonce, "N");
        assert_eq!(running.keeper.kept().terminations, expected);
    });
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_response_is_refused_and_a_new_stream_makes_up_for_it() {
    local!({
        let mut running = run(Mode::Wildcard, []);
        let mut stream = running.listener.stream().await;
        stream.greet().await;
        let mut bytes = response(ADDRESS, "N", vec![resource("a", "1", b"x")], &["gone"]).encode_to_vec();
        bytes.pop();
        stream.respond_with(&bytes);
        let nack = stream.request().await;
        assert_eq!(
            (&*nack.response_nonce, &*nack.error_detail.unwrap().message),
            ("N", "malformed response: cut off")
        );
        assert_eq!(stream.try_request().await, None, "the client ends its side");
        stream.end(0, "");
        running.listener.stream().await.greet().await;
        assert_eq!(running.keeper.kept().terminations, [Termination::Error]);
        assert_eq!(running.keeper.names(ADDRESS), [""; 0]);
    });
}

#[tokio::test(start_paused = true)]
async fn a_message_beyond_the_limit_is_not_received() {
    local!({
        let mut config = Config::new(node(), Mode::Wildcard);
        config.message_limit = 1000;
        let mut running = run_with(config, pipes([]));
        let mut stream = running.listener.stream().await;
        stream.greet().await;
        stream.respond_with(&[0; 1001]);
        running.listener.stream().await.greet().await;
        assert_eq!(running.keeper.kept().terminations, [Termination::Error]);
    });
}

#[tokio::test(start_paused = true)]
async fn a_large_push_lets_other_tasks_run() {
    local!({
        let mut running = run(Mode::Wildcard, []);
        let keeper = running.keeper.clone();
        let turns = tokio::task::spawn_local(async move {
            let mut within = 0;
            loop {
                let calls = keeper.kept().calls.len();
                let committed = keeper.kept().view.len() == 20_000;
                if committed {
                    return within;
                }
                within += usize::from(calls > 5000);
                tokio::task::yield_now().await;
            }
        });
        let mut stream = running.listener.stream().await;
        stream.greet().await;
        let payload = [7; 300];
        let all = (0..20_000).map(|n| resource(&n.to_string(), "1", &payload)).collect();
        stream.respond(&response(ADDRESS, "N", all, &[]));
        assert_eq!(stream.request().await.response_nonce, "N");
        assert!(bounded("the commit", turns).await.unwrap() > 10);
    });
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_an_address_wakes_when_the_whole_response_is_visible() {
    local!({
        let mut running = run(Mode::OnDemand, []);
        let demand = running.demand.clone().unwrap();
        let mut stream = running.listener.stream().await;
        assert_eq!(stream.greet().await[0].resource_names_subscribe, ["*"]);
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let (demand, keeper) = (demand.clone(), running.keeper.clone());
                tokio::task::spawn_local(async move { (demand.wait("/10.0.0.1").await, keeper.view().len()) })
            })
            .collect();
        assert_eq!(stream.request().await.resource_names_subscribe, ["/10.0.0.1"]);
        let mut all: Vec<_> = (0..9_999).map(|n| resource(&n.to_string(), "1", b"x")).collect();
        all.insert(0, alias(resource("pod", "1", b"x"), "/10.0.0.1"));
        stream.respond(&response(ADDRESS, "N", all, &[]));
        for waiter in waiters {
            assert_eq!(bounded("an answer", waiter).await.unwrap(), (Demanded::Found, 10_000));
        }
        assert_eq!(stream.request().await.response_nonce, "N", "one request was enough for all");
    });
}

#[tokio::test(start_paused = true)]
async fn a_miss_is_answered_at_once_for_a_moment_and_then_asked_for_again() {
    local!({
        let mut running = run(Mode::OnDemand, []);
        let demand = running.demand.clone().unwrap();
        let mut stream = running.listener.stream().await;
        stream.greet().await;
        let ask = |name: &'static str| {
            let demand = demand.clone();
            tokio::task::spawn_local(async move { demand.wait(name).await })
        };
        let waiter = ask("/10.0.0.1");
        stream.request().await;
        stream.respond(&response(ADDRESS, "N1", vec![], &["/10.0.0.1"]));
        assert_eq!(waiter.await.unwrap(), Demanded::Absent);
        assert_eq!(stream.request().await.response_nonce, "N1");
        assert_eq!(demand.wait("/10.0.0.1").await, Demanded::Absent);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let waiter = ask("/10.0.0.1");
        // Nothing was asked in between.
        assert_eq!(stream.request().await.resource_names_unsubscribe, ["/10.0.0.1"]);
        stream.respond(&response(ADDRESS, "N2", vec![alias(resource("pod", "1", b"x"), "/10.0.0.1")], &[]));
        assert_eq!(waiter.await.unwrap(), Demanded::Found);
    });
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_asked_for_without_a_stream_is_asked_for_on_the_next() {
    local!({
        let mut running = run(Mode::OnDemand, []);
        let demand = running.demand.clone().unwrap();
        let mut stream = running.listener.stream().await;
        stream.greet().await;
        stream.cut();
        running.keeper.until(|kept| !kept.terminations.is_empty()).await;
        let waiter = tokio::task::spawn_local(async move { demand.wait("uid").await });
        let mut stream = running.listener.stream().await;
        // It does not wait for an answer to the first requests.
        let requests = [stream.request().await, stream.request().await, stream.request().await];
        assert_eq!(requests[2].resource_names_subscribe, ["uid"]);
        // Cut before the answer: the next stream begins with it.
        stream.cut();
        let mut stream = running.listener.stream().await;
        let address = stream.request().await;
        assert_eq!(
            address.initial_resource_versions.into_iter().collect::<Vec<_>>(),
            [("uid".into(), String::new())]
        );
        stream.respond(&response(ADDRESS, "N", vec![resource("uid", "1", b"x")], &[]));
        assert_eq!(waiter.await.unwrap(), Demanded::Found);
    });
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_client_that_has_ended() {
    local!({
        let mut running = run(Mode::OnDemand, []);
        let demand = running.demand.take().unwrap();
        let mut stream = running.listener.stream().await;
        stream.greet().await;
        let waiter = tokio::task::spawn_local({
            let demand = demand.clone();
            async move { demand.wait("uid").await }
        });
        stream.request().await;
        running.shutdown.send(()).unwrap();
        bounded("the end", running.task).await.unwrap();
        assert_eq!(waiter.await.unwrap(), Demanded::Unavailable);
        assert_eq!(demand.wait("uid").await, Demanded::Unavailable);
    });
}
