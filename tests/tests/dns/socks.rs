//! Names that SOCKS clients ask for are those that the DNS proxy would tell them.

use hickory_proto::rr::RecordType;
use lab::traffic::{self, Server};
use lab::{BackendChoice, PATIENCE, ZtunnelOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::resolver::{Asked, address, no_such_name, octets, response};
use crate::scene::Scene;

/// Knows one name outside of the mesh, which is the server's.
fn script(asked: &Asked) -> Vec<Vec<u8>> {
    let query = hickory_proto::op::Message::from_vec(&asked.octets).unwrap();
    if (&*asked.name, query.queries[0].query_type) != ("outside.example.", RecordType::A) {
        return octets(&no_such_name(asked, 60));
    }
    let mut answer = response(asked);
    let mut record = address(asked, 0, 300);
    record.data = hickory_proto::rr::RData::A(hickory_proto::rr::rdata::A::new(10, 2, 0, 2));
    answer.add_answer(record);
    octets(&answer)
}

/// The reply to a request for `name`, and what an echo server behind it says.
fn ask(scene: &Scene, name: &'static str, port: u16) -> (u8, Vec<u8>) {
    let length = u8::try_from(name.len()).unwrap();
    let request = [&[5, 1, 0, 5, 1, 0, 3, length], name.as_bytes(), &port.to_be_bytes(), b"hello"].concat();
    scene
        .client
        .run(async move || {
            let mut stream = TcpStream::connect("127.0.0.1:15080").await?;
            stream.write_all(&request).await?;
            stream.shutdown().await?;
            let mut answer = Vec::new();
            // A connection that is refused may be reset after the answer.
            let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await?;
            let [5, 0, 5, code, ..] = answer[..] else { anyhow::bail!("{answer:?}") };
            Ok((code, answer.split_off(12)))
        })
        .unwrap()
}

#[test]
fn names_of_the_mesh_and_others_are_found_and_what_nobody_knows_is_not() {
    let options = ZtunnelOptions::default().variable("UNSTABLE_ENABLE_SOCKS5", "true");
    // The server's node has no proxy here.
    let scene = Scene::with(BackendChoice::Nftables, options, script, |file, server| {
        let mut workloads = file.workloads.iter_mut();
        let server = workloads.find(|workload| workload.name == server.name()).unwrap();
        server.protocol = lab::Protocol::Tcp;
        Ok(())
    })
    .unwrap();
    let _echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    assert_eq!(ask(&scene, "web.default.svc.cluster.local", 80), (0, b"hello".to_vec()));
    assert_eq!(ask(&scene, "outside.example", 8080), (0, b"hello".to_vec()));
    assert_eq!(ask(&scene, "outside.example.", 8080), (0, b"hello".to_vec()));
    assert_eq!(scene.resolver.count("web.default.svc.cluster.local."), 0);
    assert_eq!(ask(&scene, "absent.example", 8080), (4, Vec::new()));
    assert_eq!(ask(&scene, "not..a.name", 8080), (4, Vec::new()));
}
