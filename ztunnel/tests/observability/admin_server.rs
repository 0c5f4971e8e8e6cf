//! The administration server: methods, sections, loopback alone, readers that stall.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use ztunnel::admin::dump::DumpSources;
use ztunnel::admin::{AdminServer, GatherPods};
use ztunnel::config::Families;
use ztunnel::state::Mesh;
use ztunnel::state::model::{NamespacedHostname, Workload};

use crate::fixture::{full_dump, mesh, parsed, pods, sources};
use crate::http_client::{LONG, ask, get, run};

fn serve(sources: DumpSources, pods: Option<GatherPods>) -> SocketAddr {
    let server = AdminServer::bind(Families::Ipv4, 0).unwrap();
    let address = server.local_addresses().unwrap()[0];
    tokio::task::spawn_local(server.serve(sources, pods));
    address
}

fn gather() -> Option<GatherPods> {
    Some(Box::new(|| async { pods() }.boxed_local()))
}

#[test]
fn the_server_answers_as_tools_expect() {
    run(async {
        let server = serve(sources(|| Arc::new(mesh())), gather());
        let (content_type, text) = get(server, "/config_dump", None).await;
        assert_eq!((content_type.as_str(), text.as_bytes()), ("application/json", &*full_dump()));
        let post = ask(server, "POST", "/config_dump?format=x", None).await;
        assert_eq!((post.status().as_u16(), &**post.body()), (200, &*full_dump()));
        let head = ask(server, "HEAD", "/config_dump", None).await;
        assert!(head.status() == 200 && head.body().is_empty());

        let (_, text) = get(server, "/config_dump?section=version,services", None).await;
        let part = parsed(text.as_bytes());
        assert_eq!(part.as_object().unwrap().keys().collect::<Vec<_>>(), ["services", "version"]);
        assert_eq!(part["services"], parsed(&full_dump())["services"]);
        let unknown = ask(server, "GET", "/config_dump?section=secrets", None).await;
        assert_eq!(unknown.status(), 400);
        assert!(String::from_utf8_lossy(unknown.body()).contains("workloads"));

        let (content_type, page) = get(server, "/", None).await;
        assert_eq!(content_type, "text/html; charset=utf-8");
        assert!(page.contains("<title>Ztunnel Admin</title>") && page.contains("href=\"./config_dump\""));
        for path in ["/config_dump/", "//config_dump", "/metrics", "/certs", "/quitquitquit"] {
            let answer = ask(server, "GET", path, None).await;
            assert!(answer.status() == 404 && answer.body().is_empty(), "{path}");
        }
    });
}

#[test]
fn the_server_is_on_the_loopback_addresses_and_no_others() {
    run(async {
        let both = AdminServer::bind(Families::Both, 0).unwrap().local_addresses().unwrap();
        assert!(both.iter().all(|address| address.ip().is_loopback()), "{both:?}");
        let server = serve(sources(|| Arc::new(mesh())), None);
        assert!(TcpStream::connect(server).await.is_ok());
        // Another address of this machine, which a wildcard would cover.
        let elsewhere = SocketAddr::new(IpAddr::from([127, 0, 0, 2]), server.port());
        let refused = TcpStream::connect(elsewhere).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn pods_that_do_not_tell_their_state_do_not_hold_up_the_dump() {
    run(async {
        let silent: GatherPods = Box::new(|| std::future::pending().boxed_local());
        let server = serve(sources(|| Arc::new(mesh())), Some(silent));
        let (_, text) = get(server, "/config_dump", None).await;
        assert_eq!(parsed(text.as_bytes())["workloadState"], json!({}));
        assert_eq!(parsed(text.as_bytes())["workloads"], parsed(&full_dump())["workloads"]);
    });
}

/// So large that no socket buffer holds its dump.
fn large_mesh() -> Mesh {
    let mut mesh = Mesh::new(None);
    for number in 0..30_000 {
        let host =
            NamespacedHostname { namespace: "ns".into(), hostname: format!("svc-{}", number % 100).into() };
        mesh.upsert_workload(Arc::new(Workload {
            uid: format!("cluster//Pod/ns/pod-{number}").into(),
            name: format!("pod-{number}").into(),
            services: [(host, [(80, 8080)].into_iter().collect())].into(),
            ..Workload::default()
        }));
    }
    mesh
}

#[test]
fn a_slow_reader_holds_up_nobody_and_its_dump_ends_with_it() {
    run(async {
        let mesh = Arc::new(large_mesh());
        let held = Arc::downgrade(&mesh);
        let views = mesh.clone();
        let server = serve(sources(move || views.clone()), None);
        let idle = held.strong_count();
        let mut slow = TcpStream::connect(server).await.unwrap();
        slow.write_all(b"GET /config_dump HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut beginning = [0; 12];
        slow.read_exact(&mut beginning).await.unwrap();
        assert_eq!(&beginning, b"HTTP/1.1 200");

        let (_, text) = get(server, "/config_dump?section=workloads", None).await;
        assert_eq!(parsed(text.as_bytes())["workloads"].as_array().unwrap().len(), 30_000);
        assert!(held.strong_count() > idle, "the slow reader's dump is not finished");
        drop(slow);
        let ended = async {
            while held.strong_count() > idle {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, ended).await.expect("the dump of a reader that left goes on");
        drop(mesh);
    });
}
