//! Endpoints that cannot be reached: another one of the same service is tried, by the same rules.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lab::traffic::{self, Outcome, Server};
use lab::{BackendChoice, HboneRelay, Lab, Mesh, MeshFile, Node, Pod, hello};

/// A service. Nobody has its address.
const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
const TARGET: SocketAddr = SocketAddr::new(VIP, 80);

struct Scene {
    client: Pod,
    /// Serves.
    alive: Pod,
    /// Nobody listens on any port of it.
    dead: Pod,
    mesh: Mesh,
    east: Node,
    _lab: Lab,
}

impl Scene {
    /// `describe` is given the file, the client, the pod that is alive and the one that is dead; `enrolled` says whether the
    /// living pod's tunnels are terminated by its node's proxy.
    fn new(enrolled: bool, describe: impl FnOnce(&mut MeshFile, &Pod, &Pod)) -> Self {
        let lab = Lab::new().unwrap();
        let (east, west) = (lab.node("east").unwrap(), lab.node("west").unwrap());
        let client = east.pod("client").unwrap();
        let (alive, dead) = (west.pod("alive").unwrap(), west.pod("dead").unwrap());
        let mut file = MeshFile::default();
        file.enrol(&client);
        describe(&mut file, &alive, &dead);
        let pods = [&client, &alive];
        let mesh = Mesh::start(&file, &pods[..1 + usize::from(enrolled)], BackendChoice::Nftables).unwrap();
        Self { client, alive, dead, mesh, east, _lab: lab }
    }

    fn retries(&self, outcome: &str) -> f64 {
        let labels = format!("outcome=\"{outcome}\"");
        self.mesh.ztunnel(&self.east).unwrap().metric("istio_connect_retries_total", &labels).unwrap()
    }

    /// Every connection of many is served, though half of them would be sent to the dead pod first.
    fn all_are_served(&self) {
        for _ in 0..24 {
            assert_eq!(hello(&self.client, TARGET).unwrap(), Outcome::answered("hello"));
        }
        assert!(self.retries("connected") >= 1.0, "none of 24 went to the dead pod");
        assert_eq!(self.retries("failed"), 0.0);
        let lines = self.mesh.ztunnel(&self.east).unwrap().access_lines();
        let outbound: Vec<_> = lines.iter().filter(|line| line.text("direction") == "outbound").collect();
        assert!(!outbound.is_empty());
        for line in outbound {
            let reached: SocketAddr = line.text("dst.addr").parse().unwrap();
            assert_eq!(
                (reached.ip(), line.text("dst.workload")),
                (self.alive.ipv4().into(), "alive"),
                "{line:?}"
            );
        }
    }

    fn is_cut_with(&self, error: &str) {
        assert_eq!(hello(&self.client, TARGET).unwrap(), Outcome::Cut);
        let ztunnel = self.mesh.ztunnel(&self.east).unwrap();
        let line = ztunnel.wait_for_access(|line| line.text("direction") == "outbound").unwrap();
        assert!(line.text("error").contains(error), "{line:?}");
    }
}

#[test]
fn a_pod_whose_tunnels_are_refused_is_passed_over_for_another_of_the_service() {
    let scene = Scene::new(true, |file, alive, dead| {
        file.enrol(alive);
        file.enrol(dead);
        file.service("web", &[VIP], (80, 8080), &[alive, dead]).unwrap();
    });
    let echo = Server::start(&scene.alive, 8080, traffic::echo).unwrap();
    scene.all_are_served();
    assert_eq!(echo.accepted(), 24);
}

#[test]
fn a_pod_that_refuses_plain_connections_is_passed_over_for_another_of_the_service() {
    let scene = Scene::new(false, |file, alive, dead| {
        file.outsider(alive);
        file.outsider(dead);
        file.service("web", &[VIP], (80, 8080), &[alive, dead]).unwrap();
    });
    let _echo = Server::start(&scene.alive, 8080, traffic::echo).unwrap();
    scene.all_are_served();
}

#[test]
fn a_service_of_nobody_but_dead_pods_is_tried_no_more_often_than_it_has_pods() {
    let scene = Scene::new(false, |file, _, dead| {
        file.enrol(dead);
        file.service("web", &[VIP], (80, 8080), &[dead]).unwrap();
    });
    scene.is_cut_with("Connection refused");
    assert_eq!((scene.retries("connected"), scene.retries("failed")), (0.0, 0.0));
    assert_eq!(hello(&scene.client, TARGET).unwrap(), Outcome::Cut, "avoided, and used all the same");
    assert_eq!(
        hello(&scene.client, scene.dead.at(8080)).unwrap(),
        Outcome::Cut,
        "nor is a pod's own address"
    );
    assert_eq!((scene.retries("connected"), scene.retries("failed")), (0.0, 0.0));
}

/// A waypoint in front of a service of the living pod.
fn behind_waypoint(file: &mut MeshFile, server: &Pod, waypoints: &[&Pod]) {
    for pod in waypoints {
        file.enrol(pod);
    }
    file.service("waypoint", &[], (15008, 15008), waypoints).unwrap();
    if !waypoints.iter().any(|pod| pod.name() == server.name()) {
        file.outsider(server);
    }
    file.service("web", &[VIP], (80, 8080), &[server]).unwrap();
    file.more_of_service(
        "waypoint: {destination: default/waypoint.default.svc.cluster.local, hboneMtlsPort: 15008}",
    )
    .unwrap();
}

#[test]
fn a_dead_waypoint_is_never_bypassed() {
    let scene = Scene::new(false, |file, alive, dead| behind_waypoint(file, alive, &[dead]));
    let echo = Server::start(&scene.alive, 8080, traffic::echo).unwrap();
    scene.is_cut_with("Connection refused");
    assert_eq!(hello(&scene.client, TARGET).unwrap(), Outcome::Cut);
    assert_eq!(echo.accepted(), 0);
}

#[test]
fn another_endpoint_of_the_same_waypoint_takes_the_connection() {
    let scene = Scene::new(false, |file, alive, dead| behind_waypoint(file, alive, &[alive, dead]));
    let echo = Server::start(&scene.alive, 8080, traffic::echo).unwrap();
    let identity = scene.alive.identity();
    let waypoint = HboneRelay::start(&scene.alive, 15008, &identity, echo.ipv4(), None).unwrap();
    scene.all_are_served();
    assert_eq!(echo.accepted(), 24);
    assert!(waypoint.heard().iter().all(|heard| heard.authority == TARGET.to_string()));
}
