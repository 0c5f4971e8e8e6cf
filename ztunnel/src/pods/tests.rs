//! The manager with a real agent's end, real namespaces, and a mesh that changes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use identity::{LocalCa, StoreDriver, StoreOptions, Tls};
use redirect::socket::{ListenOptions, Listening, PortSharing, listen};
use redirect::zds::server::{Listener, Peer, PeerError};
use redirect::{Netns, NetnsError};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::*;
use crate::config::Config;
use crate::dns::DnsHandle;
use crate::readiness::Readiness;
use crate::state::MeshState;
use crate::state::route::RouteConfig;
use crate::worker::Workers;

const LONG: Duration = Duration::from_secs(30);

/// Everything around a manager.
struct Scene {
    shared: Arc<Shared>,
    events: Arc<PodEvents>,
    readiness: Readiness,
    workers: Workers,
    agent: Listener,
    path: PathBuf,
    _directory: TempDir,
    _driver: StoreDriver,
}

impl Scene {
    /// Needs a runtime.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let environment = [("LOCAL_XDS", "{}"), ("NODE_NAME", "here"), ("XDS_ADDRESS", "")];
        let environment: BTreeMap<_, _> =
            environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let config = Arc::new(Config::read(&environment).unwrap());
        let ca = LocalCa::open(directory.path(), config.certificate_ttl).unwrap();
        let (certificates, driver) =
            CertificateStore::new(Arc::new(ca), Tls::new(config.tls), StoreOptions::default());
        let routing = RouteConfig { network: config.network.clone(), illegal_ports: [].into() };
        let mesh = Arc::new(MeshState::new(Mesh::new(config.node.clone())));
        let counters = crate::metrics::DataPlane::default();
        let dns = DnsHandle::start(config.clone(), mesh.clone(), Arc::default(), &counters.threads).unwrap();
        let shared = Arc::new(Shared {
            config,
            mesh,
            routing,
            certificates,
            counters,
            dns,
            avoided: crate::state::avoided::Avoided::new(std::time::Instant::now()),
            handshakes: Default::default(),
            demand: None,
        });
        let path = directory.path().join("agent.sock");
        Self {
            workers: Workers::start(1, &shared).unwrap(),
            events: Arc::default(),
            readiness: Readiness::default(),
            agent: Listener::bind(&path).unwrap(),
            path,
            shared,
            _directory: directory,
            _driver: driver,
        }
    }

    fn manager(&self) -> PodManager {
        let (handles, ready) = (self.workers.handles().clone(), self.readiness.register("pods"));
        PodManager::new(&self.path, self.shared.clone(), handles, self.events.clone(), ready)
    }

    /// Runs `test` beside a manager, which is then told to stop.
    fn run(test: impl AsyncFnOnce(&Scene)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let scene = Scene::new();
            let (stop, stopped) = oneshot::channel();
            let manager = scene.manager().run(std::future::ready(()), async { stopped.await.unwrap() });
            let testing = async {
                test(&scene).await;
                stop.send(Stop::Now).unwrap();
            };
            let (outcome, ()) = tokio::join!(manager, testing);
            outcome.unwrap();
            assert_eq!(scene.events.started(), scene.events.stopped());
            assert!(scene.events.snapshot().is_empty());
        });
    }

    async fn greet(&self) -> Peer {
        let mut peer = self.agent.accept().await.unwrap();
        assert_eq!(peer.hello().await.unwrap(), 1);
        peer
    }

    /// A pod that takes no tunnel, so that nothing but serving it takes a certificate.
    fn describe(&self, trust_domain: &str, address: &str) {
        self.describe_named("p", trust_domain, address);
    }

    fn describe_named(&self, name: &str, trust_domain: &str, address: &str) {
        let workload = Workload {
            uid: format!("c//Pod/n/{name}").into(),
            name: name.into(),
            namespace: "n".into(),
            service_account: "s".into(),
            trust_domain: trust_domain.into(),
            node: "here".into(),
            addresses: [address.parse().unwrap()].into(),
            ..Workload::default()
        };
        self.shared.mesh.update(|mesh| mesh.upsert_workload(Arc::new(workload)));
    }

    fn identities(&self) -> Vec<String> {
        self.shared.certificates.identities().iter().map(|(identity, _)| identity.to_string()).collect()
    }

    fn states(&self) -> Vec<PodState> {
        self.events.snapshot().into_iter().map(|(_, status)| status.state).collect()
    }

    async fn until(&self, what: &str, condition: impl Fn(&Scene) -> bool) {
        let wait = async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = tokio::time::timeout(LONG, wait).await;
        assert!(waited.is_ok(), "{what}: {:?} {:?}", self.events, self.identities());
    }
}

/// A namespace with this address; None where the machine allows none.
fn namespace(address: &str) -> Option<Netns> {
    match Netns::create() {
        Ok(netns) => {
            // Where DNS queries are answered, in a pod as here.
            ip(&netns, &["link", "set", "lo", "up"]);
            give(&netns, address);
            Some(netns)
        }
        Err(NetnsError::Create(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => None,
        Err(error) => panic!("{error}"),
    }
}

fn give(netns: &Netns, address: &str) {
    ip(netns, &["addr", "add", address, "dev", "lo"]);
}

fn ip(netns: &Netns, arguments: &[&str]) {
    assert!(netns.run(|| Command::new("ip").args(arguments).status()).unwrap().unwrap().success());
}

/// Takes the tunnel port in a namespace, for nobody else.
fn occupy(netns: &Netns) -> Listening {
    let options = ListenOptions { port_sharing: PortSharing::ReuseAddress, ..ListenOptions::default() };
    listen(Some(netns), (IpAddr::from([0; 16]), 15008).into(), &options).unwrap()
}

fn info() -> WorkloadInfo {
    let [name, namespace, service_account] = ["p", "n", "s"].map(str::to_owned);
    WorkloadInfo { name, namespace, service_account }
}

const OLD: &str = "spiffe://old/ns/n/sa/s";
const NEW: &str = "spiffe://new/ns/n/sa/s";

#[test]
fn a_served_pods_certificate_is_asked_for_when_the_mesh_knows_the_pod_and_given_up_with_it() {
    let Some(netns) = namespace("10.0.0.1") else { return };
    Scene::run(async |scene| {
        let mut agent = scene.greet().await;
        agent.add("u", &info(), &netns).await.unwrap();
        agent.snapshot_sent().await.unwrap();
        scene.until("ready", |scene| scene.readiness.pending().is_empty()).await;
        assert!(scene.identities().is_empty(), "nobody knows its trust domain");
        scene.describe("old", "10.0.0.1");
        scene.until("asked for", |scene| scene.identities() == [OLD]).await;
        scene.describe("new", "10.0.0.1");
        scene.until("changed", |scene| scene.identities() == [NEW]).await;
        scene.shared.mesh.update(|mesh| mesh.remove_address("c//Pod/n/p"));
        scene.until("given up", |scene| scene.identities().is_empty()).await;
        scene.describe("new", "10.0.0.1");
        scene.until("asked for again", |scene| scene.identities() == [NEW]).await;
        agent.delete("u").await.unwrap();
        scene.until("given up with the pod", |scene| scene.identities().is_empty()).await;
        assert_eq!(scene.events.wrong_namespace(), 0);
        assert_eq!((scene.events.started(), scene.events.stopped()), (1, 1));
        // And a pod that the mesh knows already.
        agent.add("u", &info(), &netns).await.unwrap();
        assert_eq!(scene.identities(), [NEW]);
    });
}

#[test]
fn certificates_of_the_nodes_tunnelled_workloads_are_asked_for_without_any_pod() {
    Scene::run(async |scene| {
        let workload = |uid: &str, node: &str| Workload {
            uid: uid.into(),
            namespace: "n".into(),
            service_account: uid.into(),
            trust_domain: "td".into(),
            node: node.into(),
            native_tunnel: true,
            ..Workload::default()
        };
        scene.shared.mesh.update(|mesh| {
            mesh.upsert_workload(Arc::new(workload("a", "here")));
            mesh.upsert_workload(Arc::new(workload("b", "elsewhere")));
        });
        scene.until("asked for", |scene| scene.identities() == ["spiffe://td/ns/n/sa/a"]).await;
        scene.shared.mesh.update(|mesh| mesh.remove_address("a"));
        scene.until("forgotten", |scene| scene.identities().is_empty()).await;
    });
}

#[test]
fn a_pod_in_anothers_namespace_is_not_served_until_the_contradiction_is_gone() {
    let Some(netns) = namespace("10.0.0.1") else { return };
    Scene::run(async |scene| {
        scene.describe("td", "10.0.0.9");
        let mut agent = scene.greet().await;
        let Err(PeerError::Refused(reason)) = agent.add("u", &info(), &netns).await else {
            panic!("a stranger's namespace is served")
        };
        assert!(reason.contains("10.0.0.1") && reason.contains("10.0.0.9"), "{reason}");
        agent.snapshot_sent().await.unwrap();
        assert_eq!(scene.states(), [PodState::Pending]);
        assert!(
            scene.identities().is_empty(),
            "it takes no tunnel, so only serving it would ask for its certificate"
        );
        assert_eq!(scene.events.wrong_namespace(), 1);
        assert_eq!(scene.readiness.pending(), ["pods"]);
        drop(occupy(&netns));

        // The mesh had been wrong: looked at again at once.
        scene.describe("td", "10.0.0.1");
        scene.until("served", |scene| scene.states() == [PodState::Up] && scene.events.active() == 1).await;
        scene.until("ready", |scene| scene.readiness.pending().is_empty()).await;
        assert_eq!(scene.identities(), ["spiffe://td/ns/n/sa/s"]);

        // A description that fits no more, while its address is another's, stops it.
        scene.describe_named("q", "td", "10.0.0.1");
        scene.describe("td", "10.0.0.8");
        scene.until("stopped", |scene| scene.states() == [PodState::Pending]).await;
        scene.until("gone", |scene| scene.events.stopped() == 1 && scene.identities().is_empty()).await;
        assert_eq!((scene.events.active(), scene.events.pending()), (0, 1));
        assert_eq!(scene.events.wrong_namespace(), 2);
        drop(occupy(&netns));

        // The address had been late.
        give(&netns, "10.0.0.8");
        scene.until("tried again", |scene| scene.states() == [PodState::Up]).await;
    });
}

#[test]
fn a_pod_learnt_of_later_is_stopped_when_its_namespace_is_anothers() {
    let Some(netns) = namespace("10.0.0.1") else { return };
    Scene::run(async |scene| {
        let mut agent = scene.greet().await;
        agent.add("u", &info(), &netns).await.unwrap();
        scene.describe_named("q", "td", "10.0.0.1");
        scene.describe("td", "10.0.0.9");
        scene.until("stopped", |scene| scene.events.stopped() == 1).await;
        assert_eq!(scene.states(), [PodState::Pending]);
        assert!(scene.identities().is_empty());
        agent.delete("u").await.unwrap();
        assert!(scene.states().is_empty());
        agent.snapshot_sent().await.unwrap();
        scene.until("ready", |scene| scene.readiness.pending().is_empty()).await;
    });
}

#[test]
fn a_served_pod_with_an_outdated_description_is_kept_until_its_namespace_is_known_to_be_anothers() {
    let Some(netns) = namespace("10.0.0.1") else { return };
    Scene::run(async |scene| {
        scene.describe("td", "10.0.0.1");
        let mut agent = scene.greet().await;
        agent.add("u", &info(), &netns).await.unwrap();
        agent.snapshot_sent().await.unwrap();
        scene.describe("new", "10.0.0.8");
        scene.until("noticed", |scene| scene.events.wrong_namespace() >= 1).await;
        let served = |scene: &Scene| scene.events.stopped() == 0 && scene.states() == [PodState::Up];
        assert!(served(scene));
        assert_eq!(scene.identities(), ["spiffe://td/ns/n/sa/s"], "its connections go on");
        // Looked at again without any change of the mesh.
        give(&netns, "10.0.0.8");
        scene.until("looked at again", |scene| scene.identities() == [NEW]).await;
        let noticed = scene.events.wrong_namespace();
        // Its own description stays as it is, and another workload turns out to be in the namespace.
        scene.describe("td", "10.0.0.7");
        scene.until("noticed again", |scene| scene.events.wrong_namespace() > noticed).await;
        assert!(served(scene));
        scene.describe_named("q", "td", "10.0.0.1");
        scene.until("evicted", |scene| scene.states() == [PodState::Pending]).await;
        scene.until("stopped", |scene| scene.events.stopped() == 1).await;
        agent.delete("u").await.unwrap();
    });
}

#[test]
fn an_evicted_pod_that_the_agent_confirms_after_it_was_away_is_served_once_the_mesh_is_corrected() {
    let Some(netns) = namespace("10.0.0.1") else { return };
    Scene::run(async |scene| {
        let mut agent = scene.greet().await;
        agent.add("u", &info(), &netns).await.unwrap();
        agent.snapshot_sent().await.unwrap();
        scene.describe_named("q", "td", "10.0.0.1");
        scene.describe("td", "10.0.0.9");
        scene.until("evicted", |scene| scene.states() == [PodState::Pending]).await;
        scene.until("stopped", |scene| scene.events.stopped() == 1).await;
        drop(agent);
        let mut agent = scene.greet().await;
        agent.keep("u").await.unwrap();
        agent.snapshot_sent().await.unwrap();
        assert_eq!(scene.states(), [PodState::Pending]);
        scene.describe("td", "10.0.0.1");
        scene.until("served", |scene| scene.states() == [PodState::Up]).await;
    });
}

#[test]
fn two_pods_in_one_namespace_are_not_both_served_and_one_made_again_takes_over() {
    let Some(netns) = namespace("10.0.0.1") else { return };
    Scene::run(async |scene| {
        let mut agent = scene.greet().await;
        agent.add("first", &info(), &netns).await.unwrap();
        let Err(PeerError::Refused(reason)) = agent.add("second", &info(), &netns).await else {
            panic!("two proxies share the ports of one namespace")
        };
        assert!(reason.contains("first") && reason.contains("second"), "{reason}");
        assert_eq!((scene.events.started(), scene.events.stopped()), (1, 0));
        drop(agent);
        let mut agent = scene.greet().await;
        agent.add("second", &info(), &netns).await.unwrap();
        assert_eq!((scene.events.started(), scene.events.stopped()), (2, 1));
        agent.snapshot_sent().await.unwrap();
        assert_eq!(scene.events.snapshot()[0].0, "second".into());
        scene.until("ready", |scene| scene.readiness.pending().is_empty()).await;
    });
}

#[test]
fn an_identity_that_a_late_connection_asked_for_again_is_given_up_with_the_pod() {
    let Some(netns) = namespace("10.0.0.1") else { return };
    Scene::run(async |scene| {
        scene.describe("old", "10.0.0.1");
        let mut agent = scene.greet().await;
        agent.add("u", &info(), &netns).await.unwrap();
        agent.snapshot_sent().await.unwrap();
        scene.describe("new", "10.0.0.1");
        scene.until("changed", |scene| scene.identities() == [NEW]).await;
        // As a connection does that was classified before.
        scene.shared.certificates.prefetch(&SpiffeId::new("old", "n", "s").unwrap());
        assert_eq!(scene.identities().len(), 2);
        agent.delete("u").await.unwrap();
        scene.until("given up", |scene| scene.identities().is_empty()).await;
    });
}

#[test]
fn a_pod_whose_port_is_taken_waits_for_it_and_a_good_description_replaces_the_bad_one() {
    let (Some(taken), Some(free)) = (namespace("10.0.0.1"), namespace("10.0.0.1")) else { return };
    Scene::run(async |scene| {
        let mut agent = scene.greet().await;
        let occupied = occupy(&taken);
        assert!(matches!(agent.add("u", &info(), &taken).await, Err(PeerError::Refused(_))));
        agent.snapshot_sent().await.unwrap();
        assert_eq!((scene.states(), scene.events.started()), (vec![PodState::Pending], 0));
        agent.add("u", &info(), &free).await.unwrap();
        assert_eq!(scene.states(), [PodState::Up]);
        // Nothing waits any more, so the old namespace is not tried.
        scene.until("settled", |scene| scene.readiness.pending().is_empty()).await;
        assert_eq!((scene.events.active(), scene.events.pending()), (1, 0));

        // Replaced: two starts, one active, and never out of the table.
        assert!(matches!(agent.add("u", &info(), &taken).await, Err(PeerError::Refused(_))));
        scene.until("stopped", |scene| scene.events.stopped() == 1).await;
        assert_eq!(scene.states(), [PodState::Pending]);
        drop(occupied);
        scene.until("tried again", |scene| scene.states() == [PodState::Up]).await;
        assert_eq!((scene.events.started(), scene.events.active()), (2, 1));
        agent.add("u", &info(), &taken).await.unwrap();
        assert_eq!(scene.events.started(), 2, "the same namespace again is nothing new");
    });
}

#[test]
fn the_agent_is_not_dialled_before_the_mesh_is_known() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let scene = Scene::new();
        let (learn, known) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let manager = scene.manager().run(async { known.await.unwrap() }, async { stopped.await.unwrap() });
        let testing = async {
            let early = tokio::time::timeout(Duration::from_millis(100), scene.agent.accept()).await;
            assert!(early.is_err());
            learn.send(()).unwrap();
            scene.greet().await.snapshot_sent().await.unwrap();
            stop.send(Stop::Now).unwrap();
        };
        tokio::join!(manager, testing).0.unwrap();
    });
}

#[test]
fn told_to_stop_while_the_agent_hangs_or_the_mesh_is_unknown_it_stops() {
    let Some(netns) = namespace("10.0.0.1") else { return };
    Scene::run(async |scene| {
        let mut agent = scene.greet().await;
        // Asks, and never reads the answer.
        let asked = tokio::time::timeout(Duration::from_millis(1), agent.add("u", &info(), &netns)).await;
        drop(asked);
        scene.until("served", |scene| scene.events.started() == 1).await;
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let scene = Scene::new();
        let stopped = scene.manager().run(std::future::pending(), std::future::ready(Stop::Now));
        tokio::time::timeout(LONG, stopped).await.unwrap().unwrap();
    });
}

#[test]
fn a_lost_agent_unsettles_until_its_next_snapshot_and_stops_only_what_that_leaves_out() {
    let (Some(one), Some(two)) = (namespace("10.0.0.1"), namespace("10.0.0.2")) else { return };
    Scene::run(async |scene| {
        let other = WorkloadInfo { name: "q".to_owned(), ..info() };
        let mut agent = scene.greet().await;
        agent.add("u", &info(), &one).await.unwrap();
        agent.add("v", &other, &two).await.unwrap();
        assert_eq!(scene.readiness.pending(), ["pods"], "the snapshot has not ended");
        agent.snapshot_sent().await.unwrap();
        scene.until("ready", |scene| scene.readiness.pending().is_empty()).await;
        drop(agent);
        scene.until("not ready", |scene| !scene.readiness.pending().is_empty()).await;
        let mut agent = scene.greet().await;
        agent.keep("u").await.unwrap();
        assert_eq!(scene.states(), [PodState::Up, PodState::Up]);
        agent.snapshot_sent().await.unwrap();
        scene.until("stopped", |scene| scene.events.stopped() == 1).await;
        assert_eq!(scene.events.snapshot()[0].0, "u".into());
        scene.until("ready", |scene| scene.readiness.pending().is_empty()).await;
        assert_eq!(scene.events.started(), 2);
    });
}
