//! The node agent comes and goes, and so do pods.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use lab::traffic::{self, Outcome, Server};
use lab::{Ack, BackendChoice, Lab, Mesh, MeshFile, PATIENCE, ScriptedAgent, TwoNodes, hello};
use redirect::zds::RequestMessage;
use tokio::sync::{mpsc, oneshot};

/// A connection that stays open, and makes a round trip when asked to.
struct LongLived {
    asks: mpsc::UnboundedSender<oneshot::Sender<bool>>,
    _task: lab::Task<()>,
}

impl LongLived {
    fn open(from: &lab::Pod, target: std::net::SocketAddr) -> Self {
        let (asks, mut asked) = mpsc::unbounded_channel::<oneshot::Sender<bool>>();
        let task = from.spawn(async move || {
            let mut stream = traffic::connect(target).await?;
            while let Some(answer) = asked.recv().await {
                // Whoever asked may have given up.
                let _ = answer.send(traffic::round_trip(&mut stream, b"still there?").await.is_ok());
            }
            Ok(())
        });
        let connection = Self { asks, _task: task };
        assert!(connection.works());
        connection
    }

    fn works(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        self.asks.send(answer).is_ok() && answered.blocking_recv().unwrap_or(false)
    }
}

#[test]
fn traffic_goes_on_while_the_agent_restarts_but_the_proxy_is_not_ready_meanwhile() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let connection = LongLived::open(&scene.client, echo.ipv4());
    let (agent, ztunnel) = (scene.mesh.agent(&scene.west).unwrap(), scene.west_ztunnel().unwrap());
    let snapshots = agent.snapshots();

    agent.stop();
    lab::wait_until(|| ztunnel.readiness().unwrap().0 == 500).unwrap();
    assert_eq!(ztunnel.readiness().unwrap().1, "not ready, pending: workload proxy manager\n");
    assert!(connection.works());
    assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::answered("hello"));

    agent.listen().unwrap();
    agent.wait_for_snapshots(snapshots + 1).unwrap();
    ztunnel.wait_ready().unwrap();
    assert_eq!(agent.snapshot_acks().last(), Some(&(scene.server.uid(), Ack::Accepted)));
    assert!(connection.works());
    assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
}

#[test]
fn a_cut_connection_to_the_agent_is_made_again_without_harm() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let connection = LongLived::open(&scene.client, echo.ipv4());
    for node in [&scene.east, &scene.west] {
        let agent = scene.mesh.agent(node).unwrap();
        let snapshots = agent.snapshots();
        agent.disconnect();
        agent.wait_for_snapshots(snapshots + 1).unwrap();
    }
    assert!(connection.works());
    assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
}

#[test]
fn a_deleted_pod_is_served_no_more_and_its_connections_are_cut() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let tunnelled = LongLived::open(&scene.client, echo.ipv4());
    let in_plaintext = LongLived::open(&scene.outsider, echo.ipv4());
    let agent = scene.mesh.agent(&scene.west).unwrap();
    assert_eq!(agent.delete(&scene.server).unwrap(), Ack::Accepted);
    lab::wait_until(|| !tunnelled.works() && !in_plaintext.works()).unwrap();
    // The rules are still there, so nothing gets past the missing listeners.
    lab::wait_until(|| hello(&scene.outsider, echo.ipv4()).unwrap() == Outcome::Refused).unwrap();
    assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::Cut);

    // And back again.
    assert_eq!(agent.add(&scene.server).unwrap(), Ack::Accepted);
    assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
    assert_eq!(hello(&scene.outsider, echo.ipv4()).unwrap(), Outcome::answered("hello"));
}

/// The pod's connections to the tunnel port that are still being opened.
fn tunnels_being_opened(pod: &lab::Pod) -> String {
    let mut command = pod.command("ss");
    command.args(["-H", "-tn", "state", "syn-sent", "dport = :15008"]);
    let output = pod.output(command).unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_deleted_pod_opens_no_more_tunnels() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    scene.swallow_tunnels().unwrap();
    let target = scene.server.at(8080);
    let client = scene.client.spawn(async move || traffic::outcome(target, b"hello").await);
    lab::wait_until(|| !tunnels_being_opened(&scene.client).is_empty()).unwrap();
    assert_eq!(scene.mesh.agent(&scene.east).unwrap().delete(&scene.client).unwrap(), Ack::Accepted);
    let since = Instant::now();
    lab::wait_until(|| tunnels_being_opened(&scene.client).is_empty()).unwrap();
    // After ten seconds the attempt would have failed by itself.
    assert!(since.elapsed() < Duration::from_secs(5), "after {:?}", since.elapsed());
    assert_eq!(client.join().unwrap(), Outcome::Cut);
}

#[test]
fn a_pod_that_vanished_while_the_agent_was_away_is_stopped_after_the_next_snapshot() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let (served, gone) = (&scene.client, &scene.neighbour);
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let connection = LongLived::open(gone, echo.ipv4());
    let agent = scene.mesh.agent(&scene.east).unwrap();
    let snapshots = agent.snapshots();
    agent.forget(gone);
    agent.disconnect();
    agent.wait_for_snapshots(snapshots + 1).unwrap();
    lab::wait_until(|| !connection.works()).unwrap();
    assert_eq!(hello(gone, echo.ipv4()).unwrap(), Outcome::Refused);
    assert_eq!(hello(served, echo.ipv4()).unwrap(), Outcome::answered("hello"));
}

#[test]
fn a_pod_whose_namespace_the_agent_cannot_find_is_kept() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let connection = LongLived::open(&scene.client, echo.ipv4());
    let agent = scene.mesh.agent(&scene.west).unwrap();
    let snapshots = agent.snapshots();
    agent.remember_without_namespace(&scene.server);
    agent.disconnect();
    agent.wait_for_snapshots(snapshots + 1).unwrap();
    scene.west_ztunnel().unwrap().wait_ready().unwrap();
    assert!(connection.works());
    assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
}

#[test]
fn a_pod_that_joins_while_it_runs_keeps_its_open_connections() {
    let lab = lab::Lab::new().unwrap();
    let (east, west) = (lab.node("east").unwrap(), lab.node("west").unwrap());
    let (client, server) = (east.pod("client").unwrap(), west.pod("server").unwrap());
    let late = west.pod("late").unwrap();
    let mut file = MeshFile::default();
    for pod in [&client, &server, &late] {
        file.enrol(pod);
    }
    let mesh = Mesh::start(&file, &[&client, &server], BackendChoice::Nftables).unwrap();
    let echo = Server::start(&late, 8080, traffic::echo).unwrap();
    let outsider = east.pod("outsider").unwrap();
    let before = LongLived::open(&outsider, echo.ipv4());

    let agent = mesh.agent(&west).unwrap();
    assert_eq!(agent.enrol(&late, BackendChoice::Nftables).unwrap(), Ack::Accepted);
    assert!(before.works());
    assert_eq!(hello(&client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
    let inbound = |line: &lab::AccessLine| line.text("dst.hbone_addr") == echo.ipv4().to_string();
    mesh.ztunnel(&west).unwrap().wait_for_access(inbound).unwrap();
}

#[test]
fn an_agent_that_breaks_the_protocol_ends_the_proxy_with_status_1() {
    type Offence = fn(&ScriptedAgent, &lab::Pod) -> lab::Result<Ack>;
    let offences: [(&str, Offence); 3] = [
        ("a second snapshot", |agent, _| agent.request(RequestMessage::SnapshotSent)),
        ("Keep after the snapshot", |agent, pod| agent.request(RequestMessage::Keep { uid: pod.uid() })),
        ("Add without a name", |agent, pod| agent.add_nameless(pod)),
    ];
    for (offence, commit) in offences {
        let lab = Lab::new().unwrap();
        let node = lab.node("node").unwrap();
        let pod = node.pod("pod").unwrap();
        let mut file = MeshFile::default();
        file.enrol(&pod);
        let mesh = Mesh::start(&file, &[&pod], BackendChoice::Nftables).unwrap();
        let answer = commit(mesh.agent(&node).unwrap(), &pod).unwrap();
        assert!(matches!(answer, Ack::Refused(_)), "{offence}: {answer:?}");
        let status = mesh.ztunnel(&node).unwrap().process().wait(PATIENCE).unwrap();
        assert_eq!(status.code(), Some(1), "{offence}");
    }
}

#[test]
fn a_malformed_request_costs_the_connection_to_the_agent_and_nothing_else() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let connection = LongLived::open(&scene.client, echo.ipv4());
    let agent = scene.mesh.agent(&scene.west).unwrap();
    let snapshots = agent.snapshots();
    let nameless = RequestMessage::Add { uid: "nobody".to_owned(), workload: None };
    assert!(matches!(agent.request(nameless).unwrap(), Ack::Refused(_)), "no namespace came with it");
    agent.wait_for_snapshots(snapshots + 1).unwrap();
    scene.west_ztunnel().unwrap().wait_ready().unwrap();
    assert!(connection.works());
    assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
}

#[test]
fn a_pod_handed_over_under_anothers_name_is_refused_and_served_once_it_has_the_address() {
    let lab = Lab::new().unwrap();
    let (east, west) = (lab.node("east").unwrap(), lab.node("west").unwrap());
    let (client, server) = (east.pod("client").unwrap(), west.pod("server").unwrap());
    let stranger = east.pod("stranger").unwrap();
    let mut file = MeshFile::default();
    file.enrol(&client);
    file.enrol(&server);
    file.enrol(&stranger).workload_ips = vec!["10.99.0.1".parse().unwrap()];
    let mesh = Mesh::start(&file, &[&client, &server], BackendChoice::Nftables).unwrap();
    let echo = Server::start(&server, 8080, traffic::echo).unwrap();
    let (agent, ztunnel) = (mesh.agent(&east).unwrap(), mesh.ztunnel(&east).unwrap());

    let Ack::Refused(reason) = agent.enrol(&stranger, BackendChoice::Nftables).unwrap() else {
        panic!("it is served")
    };
    assert!(reason.contains("10.99.0.1") && reason.contains(&stranger.ipv4().to_string()), "{reason}");
    let line = ztunnel.wait_for_log("a pod is refused").unwrap();
    for part in [&*stranger.uid(), "default/stranger", "10.99.0.1", &stranger.ipv4().to_string()] {
        assert!(line.contains(part), "{line}");
    }
    assert_eq!(hello(&stranger, echo.ipv4()).unwrap(), Outcome::Refused);
    assert_eq!(hello(&client, echo.ipv4()).unwrap(), Outcome::answered("hello"));

    // The network plugin had been late. The proxy looks again by itself.
    stranger.ip("addr add 10.99.0.1/32 dev eth0").unwrap();
    lab::wait_until(|| hello(&stranger, echo.ipv4()).unwrap() == Outcome::answered("hello")).unwrap();
}

#[test]
fn a_pod_in_a_new_sandbox_under_the_same_uid_is_served_there() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let connection = LongLived::open(&scene.client, echo.ipv4());
    // The same pod to agent and mesh, elsewhere: a namespace with the same address.
    let sandbox = scene.east.pod("sandbox").unwrap();
    lab::apply_rules(&sandbox, BackendChoice::Nftables).unwrap();
    sandbox.ip(&format!("addr add {}/32 dev lo", scene.client.ipv4())).unwrap();
    let agent = scene.mesh.agent(&scene.east).unwrap();
    let descriptor = sandbox.netns().as_fd().try_clone_to_owned().unwrap();
    assert_eq!(agent.add_descriptor(&scene.client, descriptor).unwrap(), Ack::Accepted);
    lab::wait_until(|| !connection.works()).unwrap();
    assert_eq!(hello(&sandbox, echo.ipv4()).unwrap(), Outcome::answered("hello"));
    lab::wait_until(|| hello(&scene.client, echo.ipv4()).unwrap() == Outcome::Refused).unwrap();
}
