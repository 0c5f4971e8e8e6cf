//! The node agent and istiod each tell their part about the pods of a node.

use std::os::fd::AsFd as _;

use lab::istiod::{pod_uid, workload_of};
use lab::traffic::Outcome;
use lab::{
    Ack, BackendChoice, ControlPlane, Driven, DrivenOptions, Flow, OpenConnection, PATIENCE, Pod, Ztunnel,
    ZtunnelOptions, apply_rules, hello,
};
use nix::sys::signal::Signal;
use xds_client::workload::TunnelProtocol;

use crate::{answers, echo};

#[test]
fn an_agent_that_flaps_thirty_times_under_traffic_harms_no_connection() {
    let scene = Driven::new().unwrap();
    let [west, east] = [&scene.server, &scene.client].map(echo);
    let flows = [
        Flow::start(&scene.client, west.ipv4()).unwrap(),
        Flow::start(&scene.outsider, west.ipv4()).unwrap(),
        Flow::start(&scene.server, east.ipv4()).unwrap(),
    ];
    for round in 0..30 {
        for node in [&scene.east, &scene.west] {
            let snapshots = node.agent.snapshots();
            // Sometimes only its connections go, sometimes the whole agent.
            if round % 3 == 0 {
                node.agent.stop();
                node.agent.listen().unwrap();
            } else {
                node.agent.disconnect();
            }
            node.agent.wait_for_snapshots(snapshots + 1).unwrap();
        }
    }
    scene.wait_ready().unwrap();
    for flow in flows {
        flow.stop_whole().unwrap();
    }
    let requests = scene.istiod.ca().requests();
    assert_eq!(requests.len(), 3, "every pod keeps its certificate: {requests:?}");
}

#[test]
fn pods_that_vanished_while_the_agent_was_away_are_stopped_and_the_others_go_on() {
    let scene = Driven::new().unwrap();
    let echo = echo(&scene.server);
    let [gone, kept] =
        [&scene.neighbour, &scene.client].map(|pod| OpenConnection::open(pod, echo.ipv4()).unwrap());
    let agent = &scene.east.agent;
    let snapshots = agent.snapshots();
    agent.stop();
    agent.forget(&scene.neighbour);
    scene.push(|world| world.remove_pod(&scene.neighbour)).unwrap();
    assert!(kept.works());
    agent.listen().unwrap();
    agent.wait_for_snapshots(snapshots + 1).unwrap();
    gone.wait_until_cut().unwrap();
    assert_eq!(hello(&scene.neighbour, echo.ipv4()).unwrap(), Outcome::Refused);
    assert!(kept.works() && answers(&scene.client, echo.ipv4()));
}

#[test]
fn a_pod_whose_sandbox_was_made_again_is_served_in_its_new_namespace() {
    let scene = Driven::new().unwrap();
    let old = echo(&scene.server);
    let connection = OpenConnection::open(&scene.client, old.ipv4()).unwrap();
    // The same pod, so the same uid and account, with another namespace and address.
    let again = scene.west.node.pod("server").unwrap();
    assert_eq!(again.uid(), scene.server.uid());
    apply_rules(&again, BackendChoice::Nftables).unwrap();
    scene.push(|world| world.set_workload(workload_of(&again))).unwrap();
    assert_eq!(scene.west.agent.add(&again).unwrap(), Ack::Accepted);
    connection.wait_until_cut().unwrap();
    let echo = echo(&again);
    assert!(answers(&scene.client, echo.ipv4()) && answers(&scene.outsider, echo.ipv4()));
    assert_eq!(hello(&scene.outsider, old.ipv4()).unwrap(), Outcome::Refused, "nobody serves the old one");
}

/// Waits until a connection from the pod is refused, or no longer is: whether it has a proxy.
fn wait_served(pod: &Pod, target: std::net::SocketAddr, served: bool) {
    lab::wait_until(|| (hello(pod, target).unwrap() != Outcome::Refused) == served).unwrap();
}

#[test]
fn a_namespace_without_the_address_of_its_pod_gets_neither_a_proxy_nor_the_pods_identity() {
    let scene = Driven::new().unwrap();
    let echo = echo(&scene.server);
    let (victim, impostor) =
        (scene.east.node.pod("victim").unwrap(), scene.east.node.pod("impostor").unwrap());
    apply_rules(&impostor, BackendChoice::Nftables).unwrap();
    // Takes no tunnel, so that istiod's word alone has nobody ask for its certificate. What is told apart below is whether
    // handing over the namespace does.
    let mut workload = workload_of(&victim);
    workload.set_tunnel_protocol(TunnelProtocol::None);
    scene.push(|world| world.set_workload(workload)).unwrap();
    let descriptor = impostor.netns().as_fd().try_clone_to_owned().unwrap();
    let Ack::Refused(reason) = scene.east.agent.add_descriptor(&victim, descriptor).unwrap() else {
        panic!("a namespace that is not the pod's is accepted");
    };
    assert!(reason.contains(&impostor.ipv4().to_string()), "{reason}");
    assert!(reason.contains(&victim.ipv4().to_string()), "{reason}");
    assert_eq!(hello(&impostor, echo.ipv4()).unwrap(), Outcome::Refused);
    let ztunnel = scene.east.ztunnel().unwrap();
    ztunnel.wait_for_log(&victim.uid()).unwrap();
    let identities = scene.istiod.ca().identities();
    assert!(!identities.contains(&victim.identity()), "{identities:?}");
    assert!(answers(&scene.client, echo.ipv4()), "others are served");

    // The network of a pod may be set up late: then it is looked at again.
    impostor.ip(&format!("addr add {}/32 dev eth0", victim.ipv4())).unwrap();
    wait_served(&impostor, echo.ipv4(), true);
}

/// An address that no pod has.
const ELSEWHERE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 2, 0, 200);

#[test]
fn a_pod_whose_address_is_anothers_by_a_later_push_is_served_no_more_until_that_is_corrected() {
    let scene = Driven::new().unwrap();
    let (server, client) = (echo(&scene.server), echo(&scene.client));
    let before = OpenConnection::open(&scene.outsider, server.ipv4()).unwrap();
    let heir = scene.west.node.pod("heir").unwrap();
    let mut inherited = workload_of(&heir);
    inherited.addresses = workload_of(&scene.server).addresses;
    scene
        .push(|world| {
            world.set_workload(inherited);
            world.change_workload(&scene.server, |workload| {
                workload.addresses = vec![ELSEWHERE.octets().to_vec().into()];
            })
        })
        .unwrap()
        .unwrap();
    before.wait_until_cut().unwrap();
    wait_served(&scene.server, client.ipv4(), false);
    assert_eq!(hello(&scene.outsider, server.ipv4()).unwrap(), Outcome::Refused);
    scene
        .push(|world| {
            world.remove_pod(&heir);
            world.enrol(&scene.server);
        })
        .unwrap();
    wait_served(&scene.server, client.ipv4(), true);
    lab::wait_until(|| answers(&scene.client, server.ipv4())).unwrap();
    assert!(answers(&scene.server, client.ipv4()), "with the identity of {}", pod_uid(&scene.server));
}

#[test]
fn a_push_with_a_wrong_address_for_a_pod_cuts_no_connection_and_nothing_is_done_in_its_name_meanwhile() {
    let scene = Driven::new().unwrap();
    let (server, client) = (echo(&scene.server), echo(&scene.client));
    let plaintext = echo(&scene.outsider);
    let open = [
        OpenConnection::open(&scene.outsider, server.ipv4()).unwrap(),
        OpenConnection::open(&scene.client, server.ipv4()).unwrap(),
        OpenConnection::open(&scene.server, client.ipv4()).unwrap(),
    ];
    scene
        .push(|world| {
            world.change_workload(&scene.server, |workload| {
                workload.addresses = vec![ELSEWHERE.octets().to_vec().into()];
            })
        })
        .unwrap()
        .unwrap();
    scene.west.ztunnel().unwrap().wait_for_log("a pod has no identity for new connections").unwrap();
    // Accepted and ended, whatever it would take: a tunnel from it, none from it, none to it.
    for (from, to) in
        [(&scene.server, client.ipv4()), (&scene.server, plaintext.ipv4()), (&scene.outsider, server.ipv4())]
    {
        assert_eq!(hello(from, to).unwrap(), Outcome::Cut, "{to}");
    }
    assert!(open.iter().all(OpenConnection::works));
    scene.push(|world| world.enrol(&scene.server)).unwrap();
    lab::wait_until(|| answers(&scene.server, client.ipv4())).unwrap();
    lab::wait_until(|| answers(&scene.client, server.ipv4())).unwrap();
    assert!(answers(&scene.outsider, server.ipv4()) && open.iter().all(OpenConnection::works));
}

#[test]
fn a_pod_that_istiod_describes_after_the_agent_has_its_certificate_before_its_first_connection() {
    let scene = Driven::new().unwrap();
    let late = scene.east.node.pod("late").unwrap();
    assert_eq!(scene.east.agent.enrol(&late, BackendChoice::Nftables).unwrap(), Ack::Accepted);
    let identities = scene.istiod.ca().identities();
    assert!(!identities.contains(&late.identity()), "nobody can know who it is: {identities:?}");
    scene.push(|world| world.enrol(&late)).unwrap();
    scene.istiod.ca().wait_issued(&late.identity(), 1).unwrap();
    let echo = echo(&scene.server);
    assert!(answers(&late, echo.ipv4()));
    assert_eq!(scene.istiod.ca().issued_to(&late.identity()), 1);
}

#[test]
fn a_node_can_change_proxies_under_traffic_without_a_failed_connection() {
    let ztunnel = ZtunnelOptions { drain: PATIENCE, ..ZtunnelOptions::default() };
    let scene = Driven::with(&DrivenOptions { ztunnel, ..DrivenOptions::default() }, |_, _| Ok(())).unwrap();
    let echo = echo(&scene.server);
    let flows = [&scene.client, &scene.outsider].map(|pod| Flow::start(pod, echo.ipv4()).unwrap());
    let (node, options) = (&scene.west.node, &scene.west.options);
    let mut successors: Vec<Ztunnel> = Vec::new();
    for round in 1..=3 {
        // A proxy's own ports are in the namespace of the proxy's pod, so two proxies of one node do not collide.
        let name = format!("ztunnel-west-{round}");
        let home = node.pod(&name).unwrap();
        let control = ControlPlane::new(&scene.istiod, node, &name).unwrap();
        let successor = Ztunnel::driven_in(&home, node, &control, options).unwrap();
        successor.wait_ready().unwrap();
        let old = successors.last().unwrap_or_else(|| scene.west.ztunnel().unwrap());
        old.process().signal(Signal::SIGTERM).unwrap();
        lab::wait_until(|| scene.west.agent.proxies() == 1).unwrap();
        assert!(answers(&scene.neighbour, echo.ipv4()) && answers(&scene.outsider, echo.ipv4()));
        successors.push(successor);
    }
    for flow in flows {
        flow.stop_whole().unwrap();
    }
    // The connections that stayed open were what the first of them waited for.
    let first = scene.west.ztunnel().unwrap().process();
    assert_eq!(first.wait(PATIENCE).unwrap().code(), Some(0));
    assert!(answers(&scene.client, echo.ipv4()));
}
