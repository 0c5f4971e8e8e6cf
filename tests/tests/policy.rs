//! Authorization where a connection arrives.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use lab::traffic::{self, Outcome, Server};
use lab::{AccessLine, BackendChoice, MeshFile, Pod, TwoNodes, ZtunnelOptions, hello};

const REJECTED: &str = "connection closed due to policy rejection: ";

/// Two nodes where the server has one policy of its own.
fn scene_with(name: &str, action_and_rules: &str) -> lab::Result<TwoNodes> {
    scene_of(name, action_and_rules, &ZtunnelOptions::default())
}

fn scene_of(name: &str, action_and_rules: &str, options: &ZtunnelOptions) -> lab::Result<TwoNodes> {
    let attach = |file: &mut MeshFile, server: &Pod| {
        file.workload(server)?.authorization_policies.push(format!("default/{name}"));
        file.policy(&format!(
            "{{name: {name}, namespace: default, scope: WorkloadSelector, dryRun: false, {action_and_rules}}}"
        ))
    };
    TwoNodes::with(BackendChoice::Nftables, options, attach)
}

fn is_from(pod: &Pod) -> impl Fn(&AccessLine) -> bool {
    let address = format!("{}:", pod.ipv4());
    move |line| line.text("src.addr").starts_with(&address)
}

#[test]
fn an_allow_policy_lets_its_principal_in_and_nobody_else() {
    let scene = scene_with(
        "client-only",
        "action: Allow, rules: [[[{principals: [{Exact: cluster.local/ns/default/sa/client}]}]]]",
    )
    .unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::answered("hello"));

    // The intruder is in the mesh, under another identity.
    assert_eq!(hello(&scene.neighbour, echo.ipv4()).unwrap(), Outcome::Cut);
    let refused = scene.east_ztunnel().unwrap().wait_for_access(is_from(&scene.neighbour)).unwrap();
    assert_eq!(refused.level, "error");
    assert_eq!(refused.text("error"), "http status: 401 Unauthorized");
    let rejected = scene.west_ztunnel().unwrap().wait_for_access(is_from(&scene.neighbour)).unwrap();
    assert_eq!(rejected.level, "error");
    assert_eq!(rejected.text("error"), format!("{REJECTED}allow policies exist, but none allowed"));
    assert_eq!(rejected.text("src.identity"), scene.neighbour.identity());

    assert_eq!(hello(&scene.outsider, echo.ipv4()).unwrap(), Outcome::Cut);
    let rejected = scene.west_ztunnel().unwrap().wait_for_access(is_from(&scene.outsider)).unwrap();
    assert_eq!(rejected.text("error"), format!("{REJECTED}allow policies exist, but none allowed"));
    assert_eq!(rejected.get("src.identity"), None);
    assert_eq!(echo.accepted(), 1, "only the client's connection reached the application");
}

#[test]
fn a_deny_policy_keeps_its_principal_out_and_is_named_in_the_log() {
    let scene =
        scene_with("no-neighbour", "action: Deny, rules: [[[{principals: [{Suffix: /sa/neighbour}]}]]]")
            .unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
    assert_eq!(hello(&scene.outsider, echo.ipv4()).unwrap(), Outcome::answered("hello"));
    assert_eq!(hello(&scene.neighbour, echo.ipv4()).unwrap(), Outcome::Cut);
    let rejected = scene.west_ztunnel().unwrap().wait_for_access(is_from(&scene.neighbour)).unwrap();
    assert_eq!(rejected.text("error"), format!("{REJECTED}explicitly denied by: default/no-neighbour"));
}

#[test]
fn a_strict_policy_keeps_plaintext_out_and_lets_every_identity_in() {
    let scene = scene_with("strict", "action: Deny, rules: [[[{notPrincipals: [{Presence: []}]}]]]").unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    for target in [echo.ipv4(), echo.ipv6()] {
        assert_eq!(hello(&scene.client, target).unwrap(), Outcome::answered("hello"));
        assert_eq!(hello(&scene.neighbour, target).unwrap(), Outcome::answered("hello"));
        assert_eq!(hello(&scene.outsider, target).unwrap(), Outcome::Cut);
    }
    let rejected = scene.west_ztunnel().unwrap().wait_for_access(is_from(&scene.outsider)).unwrap();
    assert_eq!(rejected.text("error"), format!("{REJECTED}explicitly denied by: default/strict"));
    assert_eq!(echo.accepted(), 4, "none of the outsider's connections reached the application");
}

#[test]
fn a_policy_about_ports_means_the_port_of_the_application() {
    let scene = scene_with("web-port", "action: Allow, rules: [[[{destinationPorts: [8080]}]]]").unwrap();
    let web = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let database = Server::start(&scene.server, 5432, traffic::echo).unwrap();
    for pod in [&scene.client, &scene.outsider] {
        assert_eq!(hello(pod, web.ipv4()).unwrap(), Outcome::answered("hello"));
        assert_eq!(hello(pod, database.ipv4()).unwrap(), Outcome::Cut);
    }
    assert_eq!(database.accepted(), 0);
}

#[test]
fn a_pod_whose_policy_is_missing_lets_nobody_in() {
    let scene = TwoNodes::with(BackendChoice::Nftables, &ZtunnelOptions::default(), |file, server| {
        file.workload(server)?.authorization_policies.push("default/not-there".to_owned());
        Ok(())
    })
    .unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    for pod in [&scene.client, &scene.outsider] {
        assert_eq!(hello(pod, echo.ipv4()).unwrap(), Outcome::Cut);
    }
    assert_eq!(echo.accepted(), 0);
}

#[test]
fn policy_decisions_are_logged_at_info_when_the_operator_wants_that() {
    let rules = "action: Deny, rules: [[[{principals: [{Suffix: /sa/neighbour}]}]]]";
    let options = ZtunnelOptions::default().variable("AUTHZ_POLICY_INFO_LOGGING", "true");
    let scene = scene_of("no-neighbour", rules, &options).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    assert_eq!(hello(&scene.neighbour, echo.ipv4()).unwrap(), Outcome::Cut);
    let line = scene.west_ztunnel().unwrap().wait_for_log("deny policy match").unwrap();
    assert!(line.contains("\tinfo\tstate\t"), "{line}");
    assert!(line.contains("policy=\"default/no-neighbour\""), "{line}");
}
