#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use redirect::socket::{ConnectOptions, ListenOptions};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::*;
use crate::config::WorkloadName;
use crate::state::Mesh;
use crate::state::model::{NamespacedHostname, NetworkAddress, Service};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A DNS thread that serves one pod, whose workload the mesh does not know.
struct Scene {
    mesh: Arc<MeshState>,
    metrics: Arc<DnsMetrics>,
    dns: DnsHandle,
    pod: Arc<Pod>,
    address: SocketAddr,
}

impl Scene {
    async fn new() -> Self {
        // Nobody else binds it for both transports at this moment, or there would be another.
        let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address: SocketAddr = ([127, 0, 0, 1], port).into();
        let environment = [
            ("LOCAL_XDS", "{}".to_owned()),
            ("XDS_ADDRESS", String::new()),
            ("ISTIO_META_DNS_PROXY_ADDR", address.to_string()),
        ];
        let environment: BTreeMap<_, _> = environment.map(|(name, value)| (name.to_owned(), value)).into();
        let config = Arc::new(Config::read(&environment).unwrap());
        let mesh = Arc::new(MeshState::new(Mesh::new(None)));
        mesh.update(|mesh| {
            mesh.upsert_service(Arc::new(Service {
                host: NamespacedHostname { namespace: "ns".into(), hostname: "web.io".into() },
                vips: [NetworkAddress { network: "".into(), address: [10, 0, 0, 1].into() }].into(),
                ..Service::default()
            }));
        });
        let metrics = Arc::<DnsMetrics>::default();
        let dns =
            DnsHandle::start(config.clone(), mesh.clone(), metrics.clone(), &Threads::default()).unwrap();
        let name = WorkloadName {
            name: "pod".to_owned(),
            namespace: "ns".to_owned(),
            service_account: "sa".to_owned(),
        };
        let pod = Arc::new(Pod::new(name, None, ConnectOptions::default()));
        let sockets = bind_all(&config, None, &ListenOptions::default()).unwrap();
        dns.serve(pod.clone(), sockets).await;
        Self { mesh, metrics, dns, pod, address }
    }

    fn know_the_pod(&self) {
        self.mesh.update(|mesh| {
            mesh.upsert_workload(Arc::new(Workload {
                uid: "c//Pod/ns/pod".into(),
                name: "pod".into(),
                namespace: "ns".into(),
                service_account: "sa".into(),
                canonical_name: "app".into(),
                canonical_revision: "v1".into(),
                ..Workload::default()
            }));
        });
    }

    async fn send(&self) -> UdpSocket {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii("web.io.").unwrap(), RecordType::A));
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.address).await.unwrap();
        socket.send(&query.to_vec().unwrap()).await.unwrap();
        socket
    }

    fn requests(&self) -> String {
        let mut registry = crate::metrics::Registry::default();
        crate::metrics::dns::register(&mut registry, &self.metrics, true);
        let mut text = String::new();
        crate::metrics::encode(crate::metrics::Format::Text, &registry, &mut text).unwrap();
        let lines = text.lines().filter(|line| line.starts_with("istio_dns_requests_total"));
        lines.collect::<Vec<_>>().join("\n")
    }
}

async fn receive(socket: &UdpSocket) -> Message {
    let mut buffer = [0; 512];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn a_query_of_a_pod_that_the_mesh_does_not_know_yet_is_answered_as_soon_as_it_does() {
    run(async {
        let scene = Scene::new().await;
        let socket = scene.send().await;
        scene.know_the_pod();
        assert_eq!(receive(&socket).await.answers.len(), 1);
        assert_eq!(
            scene.requests(),
            "istio_dns_requests_total{request_query_type=\"a\",request_protocol=\"udp\",\
             source_canonical_service=\"app\",source_canonical_revision=\"v1\"} 1"
        );
    });
}

#[test]
fn a_pod_that_stays_unknown_is_told_that_it_cannot_be_served_and_counts_as_unknown() {
    run(async {
        let scene = Scene::new().await;
        let socket = scene.send().await;
        assert_eq!(receive(&socket).await.metadata.response_code, ResponseCode::ServFail);
        assert!(scene.requests().contains("source_canonical_service=\"unknown\""), "{}", scene.requests());
    });
}

#[test]
fn a_stopped_pod_leaves_its_address_free_at_once() {
    run(async {
        let scene = Scene::new().await;
        scene.know_the_pod();
        assert_eq!(receive(&scene.send().await).await.answers.len(), 1);
        let end = scene.dns.stop(scene.pod.instance, Stop::Now).await;
        // Resolves, as an error, when nothing is left.
        drop(timeout(PATIENCE, end).await.unwrap());
        std::net::UdpSocket::bind(scene.address).unwrap();
        // Again, and one that was never there: nothing happens.
        drop(timeout(PATIENCE, scene.dns.stop(scene.pod.instance, Stop::Now).await).await.unwrap());
    });
}
