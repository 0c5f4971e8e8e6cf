//! Transfers that the proxy cuts: neither application may take what it has for the whole.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use lab::traffic::{self, Ending, Server};
use lab::{Ack, BackendChoice, PATIENCE, Pod, Task, TwoNodes, Ztunnel, ZtunnelOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What an application does with its connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Role {
    Sends,
    Receives,
}

impl Role {
    fn other(self) -> Self {
        match self {
            Self::Sends => Self::Receives,
            Self::Receives => Self::Sends,
        }
    }

    /// Goes on without end, and says how it ended. The receiver says when the transfer is under way.
    async fn play(self, mut stream: TcpStream, under_way: &Sender<()>) -> lab::Result<Ending> {
        match self {
            Self::Sends => send_without_end(&mut stream).await,
            Self::Receives => {
                let mut first = vec![0; 1 << 20];
                traffic::bounded("the first megabyte", async { Ok(stream.read_exact(&mut first).await?) })
                    .await?;
                under_way.send(())?;
                traffic::ending(&mut stream).await
            }
        }
    }
}

async fn send_without_end(stream: &mut TcpStream) -> lab::Result<Ending> {
    let block = vec![0; 64 * 1024];
    traffic::bounded("waiting for the connection's end", async {
        loop {
            match stream.write(&block).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Ending::Reset),
                // The answer to bytes that came after an end of data.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Ending::Closed),
                Err(error) => return Err(error.into()),
            }
        }
    })
    .await
}

/// A transfer that goes on until it is cut.
struct Transfer {
    name: String,
    at_client: Task<Ending>,
    at_server: Receiver<lab::Result<Ending>>,
    _server: Server,
}

impl Transfer {
    /// Returns once it is under way.
    fn start(from: &Pod, to: &Pod, client: Role) -> Self {
        let (under_way, is_under_way) = channel();
        let (results, at_server) = channel();
        let server = Server::start(to, 0, {
            let under_way = under_way.clone();
            async move |stream, _| {
                results.send(client.other().play(stream, &under_way).await)?;
                Ok(())
            }
        })
        .unwrap();
        let target = server.ipv4();
        let at_client =
            from.spawn(async move || client.play(traffic::connect(target).await?, &under_way).await);
        is_under_way.recv_timeout(PATIENCE).unwrap();
        let name = format!("{} {client:?}, {} {:?}", from.name(), to.name(), client.other());
        Self { name, at_client, at_server, _server: server }
    }

    fn endings(self) -> (String, Ending, Ending) {
        let Self { name, at_client, at_server, .. } = self;
        (name, at_client.join().unwrap(), at_server.recv_timeout(PATIENCE).unwrap().unwrap())
    }
}

/// Has `cut` end transfers in both directions between the pods, and checks how the applications see it.
fn expect_resets(pairs: &[(&Pod, &Pod)], cut: impl FnOnce()) {
    let mut transfers = Vec::new();
    for (from, to) in pairs {
        for client in [Role::Sends, Role::Receives] {
            transfers.push(Transfer::start(from, to, client));
        }
    }
    cut();
    let endings: Vec<_> = transfers.into_iter().map(Transfer::endings).collect();
    let is_reset = |(_, client, server): &(String, Ending, Ending)| [client, server] == [&Ending::Reset; 2];
    assert!(endings.iter().all(is_reset), "(client and server) {endings:#?}");
}

/// Proxies that give connections a second at their end.
fn impatient() -> TwoNodes {
    let options = ZtunnelOptions { drain: Duration::from_secs(1), ..ZtunnelOptions::default() };
    TwoNodes::with(BackendChoice::Nftables, &options, |_, _| Ok(())).unwrap()
}

fn terminate(ztunnel: &Ztunnel) {
    assert_eq!(ztunnel.terminate(PATIENCE).unwrap().code(), Some(0), "{}", ztunnel.output());
}

#[test]
fn the_deadline_of_the_clients_proxy_is_a_reset_for_both_applications() {
    let scene = impatient();
    let pairs = [(&scene.client, &scene.server), (&scene.client, &scene.outsider)];
    expect_resets(&pairs, || terminate(scene.east_ztunnel().unwrap()));
}

#[test]
fn the_deadline_of_the_servers_proxy_is_a_reset_for_both_applications() {
    let scene = impatient();
    let pairs = [(&scene.client, &scene.server), (&scene.outsider, &scene.server)];
    expect_resets(&pairs, || terminate(scene.west_ztunnel().unwrap()));
}

#[test]
fn the_deletion_of_the_clients_pod_is_a_reset_for_both_applications() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let pairs = [(&scene.client, &scene.server), (&scene.client, &scene.outsider)];
    let agent = scene.mesh.agent(&scene.east).unwrap();
    expect_resets(&pairs, || assert_eq!(agent.delete(&scene.client).unwrap(), Ack::Accepted));
}

#[test]
fn the_deletion_of_the_servers_pod_is_a_reset_for_both_applications() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let pairs = [(&scene.client, &scene.server), (&scene.outsider, &scene.server)];
    let agent = scene.mesh.agent(&scene.west).unwrap();
    expect_resets(&pairs, || assert_eq!(agent.delete(&scene.server).unwrap(), Ack::Accepted));
}
