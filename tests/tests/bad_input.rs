//! Wrong settings, wrong files, missing privileges, and an agent that talks nonsense.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use lab::traffic::{self, Outcome, Server};
use lab::{
    Ack, BackendChoice, Lab, Mesh, MeshFile, Node, PATIENCE, ScriptedAgent, TwoNodes, Ztunnel,
    ZtunnelOptions, apply_rules, hello,
};
use redirect::zds::RequestMessage;
use redirect::zds::server::Listener;
use socket2::{Domain, SockAddr, Socket, Type};

/// Starts a proxy that cannot work, waits for its end, and returns what it said on standard error.
fn refuses_to_start(node: &Node, options: &ZtunnelOptions) -> String {
    let ztunnel = Ztunnel::shared(node, &MeshFile::default(), options).unwrap();
    let status = ztunnel.process().wait(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(1), "{}", ztunnel.output());
    ztunnel.process().stderr().to_text()
}

fn assert_says(message: &str, fragments: &[&str]) {
    for fragment in fragments {
        assert!(message.contains(fragment), "{fragment:?} is not in this message:\n{message}");
    }
}

#[test]
fn a_mesh_file_that_is_not_there_is_named() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    let options = ZtunnelOptions::default().variable("LOCAL_XDS_PATH", "/nowhere/mesh.yaml");
    assert_says(&refuses_to_start(&node, &options), &["/nowhere/mesh.yaml", "No such file or directory"]);
}

#[test]
fn a_wrong_value_in_the_mesh_file_is_shown_with_its_place_and_what_was_expected() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    let path = node.directory().join("wrong.yaml");
    let workloads = "workloads:\n\
                     - uid: cluster1//Pod/default/a\n  \
                       name: a\n  \
                       namespace: default\n  \
                       workloadIps: [10.1.0.1]\n  \
                       protocol: HBNE\n  \
                       services: {}\n";
    std::fs::write(&path, workloads).unwrap();
    let options = ZtunnelOptions::default().variable("LOCAL_XDS_PATH", &path);
    let message = refuses_to_start(&node, &options);
    assert_says(&message, &["wrong.yaml:6:", "workloads[0].protocol", "HBNE", "HBONE", "TCP"]);
}

#[test]
fn a_mesh_file_that_is_not_yaml_is_shown_with_the_line() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    let path = node.directory().join("broken.yaml");
    std::fs::write(&path, "workloads:\n- uid: [1, 2\nservices: []\n").unwrap();
    let options = ZtunnelOptions::default().variable("LOCAL_XDS_PATH", &path);
    assert_says(&refuses_to_start(&node, &options), &["broken.yaml:"]);
}

#[test]
fn every_wrong_setting_is_reported_at_once() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    let options = ZtunnelOptions::default()
        .variable("PROXY_MODE", "sharde")
        .variable("IPV6_ENABLED", "yes")
        .variable("POOL_MAX_STREAMS_PER_CONNECTION", "many");
    let message = refuses_to_start(&node, &options);
    assert_says(&message, &["PROXY_MODE", "sharde", "IPV6_ENABLED", "yes", "true"]);
    assert_says(&message, &["POOL_MAX_STREAMS_PER_CONNECTION", "many"]);
}

#[test]
fn a_missing_capability_is_named() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    // Either of the last two permits what the proxy does with sockets, on kernels since 5.17.
    for (without, named) in [("-sys_admin", "CAP_SYS_ADMIN"), ("-net_admin,-net_raw", "CAP_NET_ADMIN")] {
        let options = ZtunnelOptions {
            privileges: vec![format!("--bounding-set={without}"), format!("--inh-caps={without}")],
            ..ZtunnelOptions::default()
        };
        assert_says(&refuses_to_start(&node, &options), &[named, "missing"]);
    }
}

#[test]
fn a_certificate_authority_whose_key_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let key = scene.east.ca_directory().join("ca-key.pem");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let spare = scene.lab.node("spare").unwrap();
    assert_says(&refuses_to_start(&spare, &ZtunnelOptions::default()), &["ca-key.pem"]);
}

/// A pod that cannot be served must not disturb the others.
fn assert_others_go_on(scene: &TwoNodes) {
    let echo = Server::start(&scene.server, 0, traffic::echo).unwrap();
    assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
}

fn refusal(ack: Ack) -> String {
    match ack {
        Ack::Refused(reason) => reason,
        Ack::Accepted => panic!("this pod cannot be served"),
    }
}

#[test]
fn a_descriptor_that_is_no_network_namespace_is_refused_and_the_other_pods_go_on() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let stranger = scene.east.pod("stranger").unwrap();
    let agent = scene.mesh.agent(&scene.east).unwrap();
    for path in ["/dev/null", "/proc/self/ns/mnt"] {
        let descriptor: OwnedFd = std::fs::File::open(path).unwrap().into();
        let reason = refusal(agent.add_descriptor(&stranger, descriptor).unwrap());
        assert_says(&reason, &["network namespace"]);
        assert_others_go_on(&scene);
    }
}

#[test]
fn a_pod_whose_ports_are_taken_is_served_as_soon_as_they_are_free() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let late = scene.west.pod("late").unwrap();
    apply_rules(&late, BackendChoice::Nftables).unwrap();
    let squatter = late.visit(|| std::net::TcpListener::bind("[::]:15006")).unwrap().unwrap();
    let agent = scene.mesh.agent(&scene.west).unwrap();
    let reason = refusal(agent.add(&late).unwrap());
    assert_says(&reason, &["15006", "in use"]);
    assert_others_go_on(&scene);

    drop(squatter);
    // Nobody tells the proxy; it tries again by itself.
    let echo = Server::start(&late, 8080, traffic::echo).unwrap();
    let arrives = || hello(&scene.outsider, echo.ipv4()).unwrap() != Outcome::Refused;
    lab::wait_until(arrives).unwrap();
    scene.west_ztunnel().unwrap().wait_ready().unwrap();
}

#[test]
fn a_pod_the_mesh_does_not_know_gets_no_connections_through() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    let (known, unknown) = (node.pod("known").unwrap(), node.pod("unknown").unwrap());
    let mut file = MeshFile::default();
    file.enrol(&known);
    let mesh = Mesh::start(&file, &[&known, &unknown], BackendChoice::Nftables).unwrap();
    let echo = Server::start(&known, 8080, traffic::echo).unwrap();
    assert_eq!(hello(&unknown, echo.ipv4()).unwrap(), Outcome::Cut);
    let line = mesh.ztunnel(&node).unwrap().wait_for_access(|_| true).unwrap();
    assert_says(line.text("error"), &["failed to fetch information about local workload: "]);
    assert_eq!(echo.accepted(), 0);
}

/// An agent's listening socket without an agent.
fn bare_agent(path: &Path) -> Socket {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    socket.bind(&SockAddr::unix(path).unwrap()).unwrap();
    socket.listen(4).unwrap();
    socket
}

/// Waits for the proxy and its hello.
fn greeted(listener: &Socket) -> Socket {
    // Accepting waits as long as it has to; the proxy's end shows by its missing hello.
    listener.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut proxy, _) = listener.accept().unwrap();
    proxy.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut hello = [0; 16];
    let size = proxy.read(&mut hello).unwrap();
    assert_eq!(hello[..size], [0x08, 0x01]);
    proxy
}

#[test]
fn nonsense_from_the_agent_is_answered_with_an_error_and_a_new_connection() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    let listener = bare_agent(&node.agent_socket());
    let ztunnel = Ztunnel::shared(&node, &MeshFile::default(), &ZtunnelOptions::default()).unwrap();
    let too_long = [0x0a; 2000];
    let packets: [(&str, &[u8]); 4] = [
        ("not protobuf", &[0xff; 7]),
        ("an Add that ends in the middle of its length", &[0x0a, 0x0f, 0x0a, 0x02]),
        ("more than fits a packet", &too_long),
        ("an Add without a descriptor", b"\x0a\x0f\x0a\x02u1\x12\x09\x0a\x01p\x12\x01n\x1a\x01s"),
    ];
    for (what, packet) in packets {
        let mut proxy = greeted(&listener);
        proxy.write_all(packet).unwrap();
        let mut answer = [0; 1024];
        let size = proxy.read(&mut answer).unwrap();
        // WorkloadResponse.ack, which is two bytes long without an error text.
        assert!(size > 4 && answer[0] == 0x0a, "{what}: {:?}", &answer[..size]);
        assert_eq!(proxy.read(&mut answer).unwrap(), 0, "{what}: the proxy hangs up");
    }
    drop(greeted(&listener));
    assert!(ztunnel.process().is_running());
}

#[test]
fn an_agent_that_breaks_the_protocol_ends_the_proxy() {
    let lab = Lab::new().unwrap();
    let requests = [
        ("Add without saying which pod", vec![RequestMessage::Add { uid: "u".into(), workload: None }]),
        ("second snapshot", vec![RequestMessage::SnapshotSent, RequestMessage::SnapshotSent]),
        ("Keep", vec![RequestMessage::SnapshotSent, RequestMessage::Keep { uid: "u".into() }]),
    ];
    for (number, (what, messages)) in requests.into_iter().enumerate() {
        let node = lab.node(&format!("node{number}")).unwrap();
        let (path, pod) = (node.agent_socket(), node.pod("pod").unwrap());
        let agent = node.spawn(async move || {
            let mut proxy = Listener::bind(path)?.accept().await?;
            proxy.hello().await?;
            for message in messages {
                let is_add = matches!(message, RequestMessage::Add { .. });
                let descriptor = is_add.then(|| std::os::fd::AsFd::as_fd(pod.netns()));
                // The last one is refused.
                drop(proxy.request(&message, descriptor).await);
            }
            Ok(())
        });
        let ztunnel = Ztunnel::shared(&node, &MeshFile::default(), &ZtunnelOptions::default()).unwrap();
        agent.join().unwrap();
        let status = ztunnel.process().wait(PATIENCE).unwrap();
        assert_eq!(status.code(), Some(1), "{what}: {}", ztunnel.output());
    }
}

#[test]
fn a_proxy_waits_for_an_agent_that_comes_late() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    let ztunnel = Ztunnel::shared(&node, &MeshFile::default(), &ZtunnelOptions::default()).unwrap();
    lab::wait_until(|| ztunnel.readiness().is_ok()).unwrap();
    assert_eq!(
        ztunnel.readiness().unwrap(),
        (500, "not ready, pending: workload proxy manager\n".to_owned())
    );
    let _agent = ScriptedAgent::start(&node).unwrap();
    ztunnel.wait_ready().unwrap();
}
