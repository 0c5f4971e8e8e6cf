//! Services of another network: a tunnel to that network's gateway, and inside it a tunnel to the destination.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lab::traffic::{self, Outcome, Server};
use lab::{
    AccessLine, BackendChoice, Ending, HboneRelay, Lab, Mesh, MeshFile, Pod, ScriptedAgent, Ztunnel,
    ZtunnelOptions, apply_rules, hello,
};

/// The service of the other network. Nobody has its address.
const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
const TARGET: SocketAddr = SocketAddr::new(VIP, 80);
const AUTHORITY: &str = "remote.default.svc.cluster.local:80";

/// ```text
///   east, network ""         west, network "far", as the east sees it
///     client --------------> gateway (not in the mesh: its relay is the test's) ---> server
/// ```
struct Scene {
    client: Pod,
    server: Pod,
    gateway: Pod,
    /// Of the client's node.
    east: Ztunnel,
    _east_agent: ScriptedAgent,
    _west: Mesh,
    _lab: Lab,
}

/// How the client's side is described.
struct Described<'a> {
    /// The gateway of the other network, as YAML.
    gateway: String,
    /// Identities of the service.
    names: &'a [String],
    options: ZtunnelOptions,
}

impl Scene {
    /// The service's identity is the server's, and the gateway is known by its address.
    fn new() -> Self {
        Self::with(|gateway, server| Described {
            gateway: by_address(gateway),
            names: Box::leak(Box::new([server.identity()])),
            options: ZtunnelOptions::default(),
        })
    }

    fn with<'a>(describe: impl FnOnce(&Pod, &Pod) -> Described<'a>) -> Self {
        let lab = Lab::new().unwrap();
        let (east, west) = (lab.node("east").unwrap(), lab.node("west").unwrap());
        let client = east.pod("client").unwrap();
        let (server, gateway) = (west.pod("server").unwrap(), west.pod("gateway").unwrap());
        let described = describe(&gateway, &server);

        let mut file = MeshFile::default();
        file.enrol(&server);
        file.more_of_workload("{workloadName: echo, workloadType: deployment, canonicalName: echo-app}")
            .unwrap();
        file.service("remote", &[VIP], (80, 8080), &[&server]).unwrap();
        let west_mesh = Mesh::start(&file, &[&server], BackendChoice::Nftables).unwrap();

        let mut file = MeshFile::default();
        file.enrol(&client);
        file.enrol(&gateway);
        file.service("eastwest", &[], (15009, 15008), &[&gateway]).unwrap();
        // All that this side knows of the other: that something is there.
        file.enrol(&server).workload_ips.clear();
        file.more_of_workload(&format!("{{network: far, networkGateway: {}}}", described.gateway)).unwrap();
        file.service("remote", &[VIP], (80, 8080), &[&server]).unwrap();
        file.more_of_service(&format!("subjectAltNames: {:?}", described.names)).unwrap();
        apply_rules(&client, BackendChoice::Nftables).unwrap();
        let agent = ScriptedAgent::start(&east).unwrap();
        let ztunnel = Ztunnel::shared(&east, &file, &described.options).unwrap();
        agent.add(&client).unwrap();
        ztunnel.wait_ready().unwrap();
        Self { client, server, gateway, east: ztunnel, _east_agent: agent, _west: west_mesh, _lab: lab }
    }

    /// A gateway that is who it should be, in front of the server's node proxy.
    fn relay(&self) -> HboneRelay {
        HboneRelay::start(&self.gateway, 15008, &self.gateway.identity(), self.server.at(15008), None)
            .unwrap()
    }

    fn echo(&self) -> Server {
        Server::start(&self.server, 8080, traffic::echo).unwrap()
    }

    fn line(&self) -> AccessLine {
        self.east.wait_for_access(|_| true).unwrap()
    }

    /// A connection of the client comes to nothing, and the log says why.
    fn fails_with(&self, error: &str) {
        assert_eq!(hello(&self.client, TARGET).unwrap(), Outcome::Cut);
        let line = self.line();
        assert!(line.text("error").contains(error), "{line:?}");
        assert_eq!(line.text("dst.hbone_addr"), AUTHORITY, "{line:?}");
        assert_eq!(line.get("dst.identity"), None, "nobody answered: {line:?}");
    }
}

fn by_address(gateway: &Pod) -> String {
    format!("{{destination: /{}, hboneMtlsPort: 15008}}", gateway.ipv4())
}

#[test]
fn a_service_of_another_network_is_reached_through_its_gateway_by_address_and_by_hostname() {
    let by_hostname = |_: &Pod| {
        "{destination: default/eastwest.default.svc.cluster.local, hboneMtlsPort: 15009}".to_owned()
    };
    for described in [by_address as fn(&Pod) -> String, by_hostname] {
        let scene = Scene::with(|gateway, server| Described {
            gateway: described(gateway),
            names: Box::leak(Box::new([server.identity()])),
            options: ZtunnelOptions::default(),
        });
        let (relay, echo) = (scene.relay(), scene.echo());
        assert_eq!(hello(&scene.client, TARGET).unwrap(), Outcome::answered("hello"));
        assert_eq!(echo.accepted(), 1);

        let [heard] = &relay.heard()[..] else { panic!("{:?}", relay.heard()) };
        assert_eq!(heard.authority, AUTHORITY);
        let names: Vec<_> = heard.headers.keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["baggage", "forwarded", "traceparent"]);

        let line = scene.line();
        for (key, value) in [
            ("dst.addr", scene.gateway.at(15008).to_string().as_str()),
            ("dst.hbone_addr", AUTHORITY),
            ("dst.service", "remote.default.svc.cluster.local"),
            ("dst.workload", "echo"),
            ("dst.namespace", "default"),
            ("dst.identity", &scene.server.identity()),
            ("src.identity", &scene.client.identity()),
        ] {
            assert_eq!(line.text(key), value, "{key} in {line:?}");
        }
        assert_eq!(line.get("error"), None);
    }
}

#[test]
fn our_network_is_told_inside_and_not_to_the_gateway() {
    let scene = Scene::new();
    // Plays the destination, too.
    let echo = scene.echo();
    let far = scene.gateway.node().pod("far").unwrap();
    let baggage = Some("k8s.namespace.name=elsewhere,k8s.pod.name=deep,k8s.cluster.name=c2");
    let inner = HboneRelay::start(&far, 15008, &scene.server.identity(), echo.ipv4(), baggage).unwrap();
    let onward = far.at(15008);
    let outer = HboneRelay::start(
        &scene.gateway,
        15008,
        &scene.gateway.identity(),
        onward,
        Some("k8s.pod.name=liar"),
    )
    .unwrap();
    assert_eq!(hello(&scene.client, TARGET).unwrap(), Outcome::answered("hello"));

    let ([outer], [inner]) = (&outer.heard()[..], &inner.heard()[..]) else { panic!("one request each") };
    assert_eq!((&*outer.authority, &*inner.authority), (AUTHORITY, AUTHORITY));
    assert_eq!(outer.headers.get("x-forwarded-network"), None);
    assert_eq!(inner.headers.get("x-forwarded-network").unwrap(), "", "the network without a name");
    for name in ["baggage", "forwarded", "traceparent"] {
        assert_eq!(outer.headers.get(name), inner.headers.get(name), "{name}");
        assert!(inner.headers.contains_key(name));
    }
    let forwarded = inner.headers["forwarded"].to_str().unwrap();
    assert!(forwarded.ends_with(";host=remote.default.svc.cluster.local"), "{forwarded}");
    let line = scene.line();
    let far_end = ["dst.workload", "dst.namespace", "dst.cluster"].map(|key| line.text(key));
    assert_eq!(far_end, ["deep", "elsewhere", "c2"]);
}

#[test]
fn without_its_gateway_a_network_is_out_of_reach() {
    let scene = Scene::new();
    let echo = scene.echo();
    scene.fails_with("Connection refused");
    assert_eq!(echo.accepted(), 0);
}

#[test]
fn a_gateway_of_another_identity_is_told_nothing() {
    let scene = Scene::new();
    let echo = scene.echo();
    let impostor = "spiffe://cluster.local/ns/default/sa/impostor";
    let relay = HboneRelay::start(&scene.gateway, 15008, impostor, scene.server.at(15008), None).unwrap();
    assert_eq!(hello(&scene.client, TARGET).unwrap(), Outcome::Cut);
    assert_eq!((relay.accepted(), relay.heard().len(), echo.accepted()), (1, 0, 0));
}

#[test]
fn a_destination_of_another_identity_gets_no_byte_and_without_identities_nobody_is_accepted() {
    for names in [&["spiffe://cluster.local/ns/default/sa/somebody".to_owned()][..], &[]] {
        let scene = Scene::with(|gateway, _| Described {
            gateway: by_address(gateway),
            names,
            options: ZtunnelOptions::default(),
        });
        let (relay, echo) = (scene.relay(), scene.echo());
        scene.fails_with("invalid peer certificate");
        assert_eq!((relay.heard().len(), echo.accepted()), (1, 0), "{names:?}");
    }
}

#[test]
fn connections_share_a_few_inner_tunnels_in_one_outer_tunnel() {
    let scene = Scene::with(|gateway, server| Described {
        gateway: by_address(gateway),
        names: Box::leak(Box::new([server.identity()])),
        options: ZtunnelOptions { threads: 1, ..ZtunnelOptions::default() },
    });
    let (relay, echo) = (scene.relay(), scene.echo());
    for _ in 0..24 {
        assert_eq!(hello(&scene.client, TARGET).unwrap(), Outcome::answered("hello"));
    }
    assert_eq!(echo.accepted(), 24);
    assert_eq!(relay.accepted(), 1);
    let inner = relay.heard().len();
    assert!((1..=4).contains(&inner), "{inner} inner tunnels");
}

#[test]
fn a_gateway_that_ends_in_the_middle_of_a_transfer_is_a_reset_and_not_an_end_of_file() {
    for ending in [Ending::EndStream, Ending::Close] {
        let scene = Scene::new();
        let (relay, _echo) = (scene.relay(), scene.echo());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let client = scene.client.spawn(async move || {
            let mut stream = traffic::connect(TARGET).await?;
            traffic::round_trip(&mut stream, b"still there?").await?;
            ready.send(())?;
            traffic::ending(&mut stream).await
        });
        is_ready.recv_timeout(lab::PATIENCE).unwrap();
        relay.end(ending);
        assert_eq!(client.join().unwrap(), traffic::Ending::Reset, "{ending:?}");
    }
}
