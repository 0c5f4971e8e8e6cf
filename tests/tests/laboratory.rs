//! The laboratory itself: what the other suites stand on.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::traffic::Outcome;
use lab::{BackendChoice, Capture, Lab, PATIENCE, apply_rules, hello, traffic};

#[test]
fn pods_reach_one_another_on_the_same_node_and_across_nodes_with_ipv4_and_ipv6() {
    let lab = Lab::new().unwrap();
    let east = lab.node("east").unwrap();
    let client = east.pod("client").unwrap();
    let servers = [east.pod("near").unwrap(), lab.node("west").unwrap().pod("far").unwrap()];
    for server in &servers {
        let reporting = traffic::Server::start(server, 8080, traffic::report_peer).unwrap();
        for (target, own) in [
            (reporting.ipv4(), client.ipv4().to_string()),
            (reporting.ipv6(), format!("[{}]", client.ipv6())),
        ] {
            let seen = client.run(async move || traffic::ask(target, b"").await).unwrap();
            let seen = String::from_utf8(seen).unwrap();
            assert_eq!(seen.rsplit_once(':').unwrap().0, own, "the client's address at {target}");
        }
    }
}

#[test]
fn two_laboratories_with_the_same_addresses_do_not_meet() {
    let (one, other) = (Lab::new().unwrap(), Lab::new().unwrap());
    let server = one.node("node").unwrap().pod("pod").unwrap();
    let echo = traffic::Server::start(&server, 8080, traffic::echo).unwrap();
    let stranger = other.node("node").unwrap().pod("pod").unwrap();
    assert_eq!(server.ipv4(), stranger.ipv4());
    let target = echo.ipv4();
    let refused = stranger.run(async move || traffic::ask(target, b"hello").await).unwrap_err();
    assert!(format!("{refused:#}").contains("Connection refused"), "{refused:#}");
}

#[test]
fn a_capture_on_the_wire_sees_what_passes_between_nodes_and_nothing_else() {
    let lab = Lab::new().unwrap();
    let east = lab.node("east").unwrap();
    let (client, near) = (east.pod("client").unwrap(), east.pod("near").unwrap());
    let far = lab.node("west").unwrap().pod("far").unwrap();
    let capture = Capture::start(lab.wire()).unwrap();
    for (server, text) in [(&near, b"a word to the neighbour"), (&far, b"a word to the far side ")] {
        let echo = traffic::Server::start(server, 8080, traffic::echo).unwrap();
        let target = echo.ipv4();
        client.run(async move || traffic::ask(target, text).await).unwrap();
    }
    capture.wait_for(b"a word to the far side ").unwrap();
    let recording = capture.stop().unwrap();
    assert!(recording.tcp_packets(8080) > 0);
    assert_eq!(recording.containing(b"a word to the neighbour"), 0);
}

#[test]
fn a_pod_with_rules_and_without_a_proxy_reaches_nobody() {
    for backend in [BackendChoice::Nftables, BackendChoice::Iptables] {
        let lab = Lab::new().unwrap();
        let node = lab.node("node").unwrap();
        let (captured, other) = (node.pod("captured").unwrap(), node.pod("other").unwrap());
        let echo = [&captured, &other].map(|pod| traffic::Server::start(pod, 8080, traffic::echo).unwrap());
        assert_eq!(hello(&captured, echo[1].ipv4()).unwrap(), Outcome::answered("hello"));
        apply_rules(&captured, backend).unwrap();
        for family in [traffic::Server::ipv4, traffic::Server::ipv6] {
            assert_eq!(hello(&captured, family(&echo[1])).unwrap(), Outcome::Refused, "out, {backend}");
            assert_eq!(hello(&other, family(&echo[0])).unwrap(), Outcome::Refused, "in, {backend}");
        }
    }
}

#[test]
fn programs_run_inside_a_pod_and_see_only_its_interfaces() {
    let lab = Lab::new().unwrap();
    let pod = lab.node("node").unwrap().pod("pod").unwrap();
    let mut command = pod.command("ip");
    command.args(["-brief", "address"]);
    let output = pod.output(command).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains("10.1.0.1/32"), "{text}");
}

#[test]
fn work_that_fails_or_panics_fails_the_one_who_waits_for_it() {
    let lab = Lab::new().unwrap();
    let failed = lab.wire().run::<(), _>(async || anyhow::bail!("as told")).unwrap_err();
    assert_eq!(failed.to_string(), "as told");
    let panicked = lab.wire().run::<(), _>(async || panic!("this panic belongs to a test")).unwrap_err();
    assert_eq!(panicked.to_string(), "work in wire panicked");
    let slow = lab.wire().spawn::<(), _>(async || std::future::pending().await);
    let late = slow.join_within(Duration::from_millis(10)).unwrap_err();
    assert!(late.to_string().contains("did not finish"), "{late}");
}

/// What a killed process leaves behind can only be seen from another one: this test runs
/// `a_laboratory_that_waits_to_be_killed` as a process of its own, kills it, and looks for its child.
#[test]
fn nothing_outlives_a_laboratory_whose_process_is_killed() {
    // Files are all that stays, so they are put where this test can remove them.
    let directory = tempfile::tempdir().unwrap();
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .env("TMPDIR", directory.path())
        .args(["--exact", "a_laboratory_that_waits_to_be_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(owner.stdout.take().unwrap()));
    let child = lines
        .find_map(|line| line.unwrap().split_once("child=").map(|(_, pid)| pid.to_owned()))
        .expect("the laboratory tells its child");
    let alive = || {
        // A zombie counts as gone: whether it has been reaped is up to the machine's init.
        let stat = std::fs::read_to_string(Path::new("/proc").join(&child).join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
    };
    assert!(alive());
    owner.kill().unwrap();
    owner.wait().unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while alive() {
        assert!(std::time::Instant::now() < deadline, "the child lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
#[ignore = "started and killed by nothing_outlives_a_laboratory_whose_process_is_killed"]
fn a_laboratory_that_waits_to_be_killed() {
    let lab = Lab::new().unwrap();
    let pod = lab.node("node").unwrap().pod("pod").unwrap();
    let mut command = pod.command("sleep");
    command.arg("600");
    let sleeping = pod.start("sleep", command).unwrap();
    println!("child={}", sleeping.id());
    std::io::stdout().flush().unwrap();
    std::thread::sleep(PATIENCE);
}
