//! What single decisions and codecs of a connection cost. See benches/README.md.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use criterion::Criterion;
use fastrand::Rng;
use hbone::headers::{self, Baggage, WorkloadKind, forwarded, forwarded_host};
use hbone::{Authority, HostName};
use http::HeaderMap;
use identity::SpiffeId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use ztunnel::config::Config;
use ztunnel::dns::{Client, Decoded, Request, Responder, Transport};
use ztunnel::policy::{
    Access, Action, Enforcement, MatchSpec, Policy, PolicyScope, PolicySpec, StringMatch, compile,
};
use ztunnel::proxy::copy::{Limits, Transfer, tcp_to_tcp};
use ztunnel::state::Mesh;
use ztunnel::state::avoided::Avoiding;
use ztunnel::state::balance::{Resolution, choose};
use ztunnel::state::model::{
    BalanceMode, Destination, GatewayAddress, LoadBalancer, Locality, NamespacedHostname, NetworkAddress,
    PortMap, Scope, Service, TunnelProtocol, Workload,
};
use ztunnel::state::route::{Route, RouteConfig, route};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    headers(&mut criterion);
    policies(&mut criterion);
    routes(&mut criterion);
    endpoints(&mut criterion);
    changes(&mut criterion);
    names(&mut criterion);
    copies(&mut criterion);
    criterion.final_summary();
}

/// The headers of one CONNECT request.
fn headers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("headers");

    let address: SocketAddr = "10.2.0.17:8080".parse().expect("an address");
    assert_eq!(Authority::from(address).to_string(), "10.2.0.17:8080");
    group.bench_function("authority: write", |bencher| {
        bencher.iter(|| Authority::from(black_box(address)).to_string());
    });
    for (name, text) in [("an address", "10.2.0.17:8080"), ("a name", "server.shop.svc.cluster.local:8080")] {
        assert!(text.parse::<Authority>().is_ok(), "{text}");
        group.bench_function(format!("authority: read {name}"), |bencher| {
            bencher.iter(|| black_box(text).parse::<Authority>());
        });
    }

    let baggage = Baggage {
        cluster: Some("Kubernetes"),
        namespace: Some("shop"),
        workload: Some((WorkloadKind::Deployment, "server-v1")),
        service: Some("server"),
        version: Some("v1"),
        region: Some("eu-central-1"),
        zone: Some("eu-central-1b"),
    };
    group.bench_function("baggage: write", |bencher| bencher.iter(|| black_box(&baggage).encode()));
    let carrying = HeaderMap::from_iter([(headers::BAGGAGE, baggage.encode())]);
    assert_eq!(Baggage::from_headers(&carrying).as_ref(), Some(&baggage));
    group.bench_function("baggage: read", |bencher| {
        bencher.iter(|| Baggage::from_headers(black_box(&carrying)));
    });

    let client: SocketAddr = "10.1.0.3:41234".parse().expect("an address");
    let service = HostName::new("server.shop.svc.cluster.local").expect("a name");
    group.bench_function("forwarded: write", |bencher| {
        bencher.iter(|| forwarded(black_box(client), Some(black_box(&service))));
    });
    let carrying = HeaderMap::from_iter([(headers::FORWARDED, forwarded(client, Some(&service)))]);
    assert_eq!(forwarded_host(&carrying), Some(service.as_str()));
    group.bench_function("forwarded: read the host", |bencher| {
        bencher.iter(|| forwarded_host(black_box(&carrying)).map(str::len));
    });
    group.finish();
}

/// One connection evaluated against the policies of its destination.
fn policies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policies");
    let destination = workload(1, &[]);
    let from = account("client").parse::<SpiffeId>().expect("an identity");
    let address = SocketAddr::new(destination.addresses[0], 8080);
    let access = Access::new(Ipv4Addr::new(10, 1, 0, 3).into(), Some(&from), address);
    let sets = [
        ("none", vec![], true),
        ("1 with 1 principal, which matches", vec![allow(0, principals(0, true))], true),
        ("1 with 1000 principals, the last matches", vec![allow(0, principals(999, true))], true),
        (
            "100 with 10 principals, none matches",
            (0..100).map(|n| allow(n, principals(10, false))).collect(),
            false,
        ),
    ];
    for (name, policies, allowed) in sets {
        let mut mesh = Mesh::new(None);
        for policy in policies {
            mesh.upsert_policy(Arc::new(policy));
        }
        let evaluate = || mesh.policies_for(black_box(&destination)).evaluate(black_box(&access));
        assert_eq!(evaluate().decision.is_ok(), allowed, "{name}");
        group.bench_function(name, |bencher| bencher.iter(evaluate));
    }
    group.finish();
}

/// One connection of a local workload, in a mesh of 10,000 workloads and 1,000 services with ten of them each.
fn routes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routes");
    let mesh = mesh(10_000, 1000);
    let config = RouteConfig { network: "".into(), illegal_ports: [15001, 15006, 15008].into() };
    let source = mesh.workload(&uid(0)).expect("it was added").clone();
    let mut rng = Rng::with_seed(7);
    let destinations = [
        ("to a workload", pod_ip(1234), 8080, "hbone"),
        ("to a service with ten endpoints", vip(20), 80, "hbone"),
        ("to a service behind a waypoint", vip(WITH_WAYPOINT), 80, "hbone"),
        ("to an address outside the mesh", Ipv4Addr::new(192, 0, 2, 1).into(), 443, "plain"),
    ];
    for (name, ip, port, kind) in destinations {
        let destination = SocketAddr::new(ip, port);
        let mut decide = || {
            let source = black_box(&source);
            route(&mesh, &config, source, pod_ip(0), black_box(destination), Avoiding::NOBODY, &mut rng)
        };
        let decided = match decide() {
            Ok(Route::Hbone(_)) => "hbone",
            Ok(Route::Plain(_)) => "plain",
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(decided, kind, "{name}");
        group.bench_function(name, |bencher| bencher.iter(&mut decide));
    }
    group.finish();
}

/// The choice of an endpoint, by the size of the service, and one changed endpoint while readers hold the view before.
fn endpoints(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("endpoints");
    let near = LoadBalancer {
        mode: BalanceMode::Failover,
        preferences: [Scope::Network, Scope::Region, Scope::Zone, Scope::Node].into(),
        ..LoadBalancer::default()
    };
    for size in [10, 1000, 50_000] {
        for (name, load_balancer) in [("any", LoadBalancer::default()), ("the nearest", near.clone())] {
            let mut mesh = mesh(size, 1);
            let service = Service { load_balancer, ..Service::clone(only_service(&mesh)) };
            mesh.upsert_service(Arc::new(service));
            let source = mesh.workload(&uid(0)).expect("it was added").clone();
            let mut rng = Rng::with_seed(7);
            let mut draw = || {
                let service = only_service(&mesh);
                choose(
                    &mesh,
                    service,
                    80,
                    black_box(&source),
                    Resolution::Standard,
                    Avoiding::NOBODY,
                    &mut rng,
                )
                .map(|choice| choice.port)
            };
            assert_eq!(draw(), Some(8080));
            group.bench_function(format!("{name} of {size}"), |bencher| bencher.iter(&mut draw));
        }
        let mut mesh = mesh(size, 1);
        let mut rng = Rng::with_seed(7);
        group.bench_function(format!("one of {size} changes"), |bencher| {
            bencher.iter(|| {
                let before = mesh.clone();
                mesh.upsert_workload(Arc::new(workload(rng.usize(0..size), &[0])));
                before
            });
        });
    }
    group.finish();
}

fn only_service(mesh: &Mesh) -> &Arc<Service> {
    let host = host(0);
    mesh.service(&host.namespace, &host.hostname).expect("it was added")
}

/// One changed workload, as when a pod becomes unhealthy, while readers hold the view before.
fn changes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("changes");
    for workloads in [1000, 50_000] {
        let mut mesh = mesh(workloads, workloads / 10);
        let mut rng = Rng::with_seed(7);
        group.bench_function(format!("one of {workloads} workloads"), |bencher| {
            bencher.iter(|| {
                let index = rng.usize(0..workloads);
                let before = mesh.clone();
                mesh.upsert_workload(Arc::new(workload(index, &[index % (workloads / 10)])));
                before
            });
        });
        assert_eq!(mesh.workload_count(), workloads);
    }
    group.finish();
}

/// Which of the services of [`mesh`] has a waypoint.
const WITH_WAYPOINT: usize = 1;

/// Workload n is an endpoint of service n modulo `services`.
fn mesh(workloads: usize, services: usize) -> Mesh {
    let mut mesh = Mesh::new(Some("node-0".into()));
    for index in 0..services {
        let mut service = Service {
            name: format!("service-{index}").into(),
            host: host(index),
            vips: [NetworkAddress { network: "".into(), address: vip(index) }].into(),
            ports: PortMap::from_iter([(80, 8080)]),
            ..Service::default()
        };
        if index == WITH_WAYPOINT {
            let destination = NetworkAddress { network: "".into(), address: pod_ip(2) };
            service.waypoint = Some(Arc::new(GatewayAddress {
                destination: Destination::Address(destination),
                hbone_mtls_port: 15008,
            }));
        }
        mesh.upsert_service(Arc::new(service));
    }
    for index in 0..workloads {
        mesh.upsert_workload(Arc::new(workload(index, &[index % services])));
    }
    mesh
}

fn workload(index: usize, services: &[usize]) -> Workload {
    Workload {
        uid: uid(index).into(),
        name: format!("workload-{index}").into(),
        namespace: "shop".into(),
        service_account: "server".into(),
        trust_domain: "cluster.local".into(),
        node: format!("node-{}", index % 100).into(),
        // A node is in one zone.
        locality: Locality {
            region: "eu-central-1".into(),
            zone: format!("eu-central-1{}", ["a", "b", "c", "d"][index % 4]).into(),
            subzone: "".into(),
        },
        addresses: [pod_ip(index)].into(),
        tunnel_protocol: TunnelProtocol::Hbone,
        services: services.iter().map(|service| (host(*service), PortMap::from_iter([(80, 8080)]))).collect(),
        ..Workload::default()
    }
}

fn uid(index: usize) -> String {
    format!("Kubernetes//Pod/shop/workload-{index}")
}

fn host(index: usize) -> NamespacedHostname {
    let hostname = format!("service-{index}.shop.svc.cluster.local").into();
    NamespacedHostname { namespace: "shop".into(), hostname }
}

fn pod_ip(index: usize) -> IpAddr {
    nth_address(Ipv4Addr::new(10, 0, 0, 1), index)
}

fn vip(index: usize) -> IpAddr {
    nth_address(Ipv4Addr::new(172, 16, 0, 1), index)
}

fn nth_address(first: Ipv4Addr, index: usize) -> IpAddr {
    let offset = u32::try_from(index).expect("a mesh has fewer addresses");
    Ipv4Addr::from_bits(first.to_bits() + offset).into()
}

fn account(name: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{name}")
}

/// A policy of the namespace that allows what has one of these principals.
fn allow(index: usize, principals: Vec<StringMatch>) -> Policy {
    let principals = principals.into_iter().map(Ok).collect();
    let (policy, warnings) = compile(PolicySpec {
        namespace: "shop".into(),
        name: format!("policy-{index}").into(),
        scope: PolicyScope::Namespace,
        action: Action::Allow,
        enforcement: Enforcement::Enforced,
        rules: vec![vec![vec![MatchSpec { principals, ..MatchSpec::default() }]]],
    });
    assert!(warnings.is_empty(), "{warnings:?}");
    policy
}

/// So many strangers, and then perhaps the client.
fn principals(strangers: usize, with_client: bool) -> Vec<StringMatch> {
    let strangers = (0..strangers).map(|number| format!("stranger-{number}"));
    let names = strangers.chain(with_client.then(|| "client".to_owned()));
    let principal = |name: String| account(&name).trim_start_matches("spiffe://").into();
    names.map(|name| StringMatch::Exact(principal(name))).collect()
}

/// One direction of a connection through the copy stage, from one loopback connection to another: what moving bytes costs
/// without a tunnel.
fn copies(criterion: &mut Criterion) {
    const BYTES: usize = 16 << 20;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut group = criterion.benchmark_group("copies");
    group.sample_size(20).throughput(criterion::Throughput::Bytes(BYTES as u64));
    for (name, chunk) in [("1 KiB at a time", 1 << 10), ("256 KiB at a time", 256 << 10)] {
        group.bench_function(format!("16 MiB, {name}"), |bencher| {
            bencher.iter(|| runtime.block_on(copy_through(BYTES, chunk)));
        });
    }
    group.finish();
}

/// A connection that nobody ends from outside.
struct Unlimited;

impl Limits for Unlimited {
    fn poll_end(&self, _: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        std::task::Poll::Pending
    }

    fn half_closed(&self) -> std::time::Duration {
        std::time::Duration::MAX
    }
}

/// DNS queries, from the datagram to the answer or to the decision that others are asked, in a mesh of 10,000 services.
fn names(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dns");
    let environment = [("LOCAL_XDS", "{}"), ("XDS_ADDRESS", "")];
    let environment: std::collections::BTreeMap<_, _> =
        environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let responder = Responder::new(&Config::read(&environment).expect("a configuration"));
    let mut mesh = Mesh::new(None);
    for number in 0..10_000_u32 {
        let hostname = format!("service-{number}.shop.svc.cluster.local");
        let address = Ipv4Addr::from(0x0a60_0000 + number).into();
        mesh.upsert_service(Arc::new(Service {
            host: NamespacedHostname { namespace: "shop".into(), hostname: hostname.into() },
            vips: [NetworkAddress { network: "".into(), address }].into(),
            ..Service::default()
        }));
    }
    let workload = Workload { namespace: "shop".into(), ..Workload::default() };
    let search = responder.search_domains("shop");
    let client = Client { workload: &workload, search: &search };
    for (what, name, known) in [
        ("a full name", "service-77.shop.svc.cluster.local", true),
        ("a short name", "service-77", true),
        ("an unknown name behind a search domain", "www.example.com.shop.svc.cluster.local", false),
        ("an unknown name", "www.example.com", false),
    ] {
        let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).expect("a label"));
            query.extend_from_slice(label.as_bytes());
        }
        query.extend_from_slice(&[0, 0, 1, 0, 1]);
        let answer = || match Request::decode(black_box(&query), Transport::Udp) {
            Decoded::Request(request) => responder.answer(&mesh, client, &request).is_some(),
            Decoded::Ignored | Decoded::Refused(_) => false,
        };
        assert_eq!(answer(), known, "{name}");
        group.bench_function(what, |bencher| bencher.iter(answer));
    }
    group.finish();
}

async fn copy_through(bytes: usize, chunk: usize) {
    let ((mut sender, client), (upstream, mut receiver)) = (loopback().await, loopback().await);
    let counts = Transfer::default();
    let send = async {
        let chunk = vec![7; chunk];
        for _ in 0..bytes / chunk.len() {
            sender.write_all(&chunk).await.expect("the copy reads");
        }
        sender.shutdown().await.expect("the connection is open");
    };
    let receive = async {
        let mut buffer = vec![0; 256 << 10];
        while receiver.read(&mut buffer).await.expect("the copy writes") > 0 {}
        receiver.shutdown().await.expect("the connection is open");
    };
    let (copied, (), ()) = tokio::join!(tcp_to_tcp(client, upstream, &counts, &Unlimited), send, receive);
    copied.expect("both ends closed in order");
    assert_eq!(counts.from_client.get(), bytes as u64);
}

/// Both ends of a TCP connection.
async fn loopback() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("a bound listener has an address");
    let (dialled, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (dialled.expect("loopback"), accepted.expect("loopback").0)
}
