//! Traffic for suites about disturbances: what it is worth if nothing disturbs it, and if something does.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use lab::traffic::{self, Server};
use lab::{Flow, Lab, OpenConnection, Pod};

fn pods(lab: &Lab) -> [Pod; 2] {
    let node = lab.node("node").unwrap();
    ["client", "server"].map(|name| node.pod(name).unwrap())
}

#[test]
fn an_undisturbed_flow_is_whole() {
    let lab = Lab::new().unwrap();
    let [client, server] = pods(&lab);
    let echo = Server::start(&server, 8080, traffic::echo).unwrap();
    let flow = Flow::start(&client, echo.ipv4()).unwrap();
    let seen = echo.accepted();
    lab::wait_until(|| echo.accepted() > seen + 20).unwrap();
    let flowed = flow.stop_whole().unwrap();
    assert!(flowed.connections > 20 && flowed.round_trips > 10, "{flowed:?}");
}

#[test]
fn a_flow_whose_server_goes_away_tells_of_every_kind_of_client() {
    let lab = Lab::new().unwrap();
    let [client, server] = pods(&lab);
    let echo = Server::start(&server, 8080, traffic::echo).unwrap();
    let target = echo.ipv4();
    let flow = Flow::start(&client, target).unwrap();
    let open = OpenConnection::open(&client, target).unwrap();
    drop(echo);
    open.wait_until_over().unwrap();
    lab::wait_until(|| lab::hello(&client, target).unwrap() == traffic::Outcome::Refused).unwrap();
    let failures = flow.stop().unwrap().failures;
    assert_eq!(
        failures.iter().filter(|failure| failure.contains("open connection")).count(),
        2,
        "{failures:?}"
    );
    assert!(failures.iter().any(|failure| failure.contains("Refused")), "{failures:?}");
}
