//! A peer with a valid certificate that does to its tunnel what is known to bring HTTP/2 servers down, and what becomes
//! of it, and of nobody else.
//!
//! The proxy has one data-plane thread, which the attacker's tunnel shares with everybody. All the while a client makes
//! connections through another tunnel to the pod that is attacked, and another pod of that proxy has traffic of its own.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

mod floods;
mod headers;
mod holding;
mod malformed;
mod slow;

use std::path::PathBuf;

use lab::raw_peer::RawPeer;
use lab::traffic::{self, Server};
use lab::{BackendChoice, Flow, PATIENCE, TwoNodes, Ztunnel, ZtunnelOptions};

/// What the proxy may grow by while it is attacked, in bytes: what 200 streams that nobody reads hold unsent, 37 MiB, their
/// read buffers, and what the allocator has beside that.
const GROWTH: u64 = 64 << 20;

const FAULTS: &str = "istio_tunnel_faults_total";

/// ```text
///   outsider, as client --- hostile tunnel --> neighbour (echo)    one proxy, that of "east"
///   server -- honest tunnel -----------------> neighbour
///   client -- honest tunnel --> server (echo)
/// ```
struct Siege {
    scene: TwoNodes,
    victim: Server,
    flows: Vec<Flow>,
    memory: u64,
    _elsewhere: Server,
}

/// What an attacker needs to know.
#[derive(Clone)]
struct Target {
    ca: PathBuf,
    own: String,
    server: String,
    tunnel: std::net::SocketAddr,
    /// Where an echo server listens, for `:authority`.
    authority: String,
}

impl Siege {
    fn begin() -> Self {
        let options = ZtunnelOptions { threads: 1, ..ZtunnelOptions::default() };
        let scene = TwoNodes::with(BackendChoice::Nftables, &options, |_, _| Ok(())).unwrap();
        let victim = Server::start(&scene.neighbour, 8080, traffic::echo).unwrap();
        let elsewhere = Server::start(&scene.server, 8080, traffic::echo).unwrap();
        let flows = vec![
            Flow::start(&scene.server, victim.ipv4()).unwrap(),
            Flow::start(&scene.client, elsewhere.ipv4()).unwrap(),
        ];
        let memory = scene.east_ztunnel().unwrap().process().resident_memory().unwrap();
        Self { scene, victim, flows, memory, _elsewhere: elsewhere }
    }

    fn ztunnel(&self) -> &Ztunnel {
        self.scene.east_ztunnel().unwrap()
    }

    fn target(&self) -> Target {
        let scene = &self.scene;
        Target {
            ca: scene.east.ca_directory().to_owned(),
            own: scene.client.identity(),
            server: scene.neighbour.identity(),
            tunnel: scene.neighbour.at(15008),
            authority: self.victim.ipv4().to_string(),
        }
    }

    /// Has the attacker do something.
    fn attack<T: Send + 'static>(
        &self,
        work: impl AsyncFnOnce(Target) -> lab::Result<T> + Send + 'static,
    ) -> T {
        let target = self.target();
        self.scene.outsider.spawn(async move || work(target).await).join_within(2 * PATIENCE).unwrap()
    }

    /// How often tunnels ended for this reason.
    fn faults(&self, reason: &str) -> usize {
        let labels = format!("reporter=\"destination\",reason=\"{reason}\"");
        self.ztunnel().metric(FAULTS, &labels).unwrap() as usize
    }

    /// How many lines tell of tunnels that were ended.
    fn warnings(&self) -> usize {
        let text = "ended a tunnel because of what its peer sent";
        self.ztunnel().log().all().iter().filter(|line| line.contains(text)).count()
    }

    /// Everybody else has got what they asked for, and the proxy has not grown much.
    fn end(self) {
        let process = self.ztunnel().process();
        let grown = process.resident_memory().unwrap().saturating_sub(self.memory);
        assert!(grown < GROWTH, "the proxy has grown by {grown} bytes");
        for flow in self.flows {
            flow.stop_whole().unwrap();
        }
    }
}

impl Target {
    /// Mutual TLS, and the prefaces.
    async fn open(&self) -> lab::Result<RawPeer> {
        RawPeer::open(self.tunnel, &self.ca, &self.own, &self.server).await
    }

    /// Mutual TLS only.
    async fn connect(&self) -> lab::Result<RawPeer> {
        RawPeer::connect(self.tunnel, &self.ca, &self.own, &self.server).await
    }
}

/// What an attacker has sent before its tunnel ended, in bytes, and the code it was told.
async fn flood(
    peer: RawPeer,
    next: impl FnMut() -> Option<Vec<u8>> + 'static,
) -> lab::Result<(usize, Option<u32>)> {
    let RawPeer { mut write, mut read } = peer;
    let reading = tokio::task::spawn_local(async move { read.goodbye().await });
    let sent = write.flood(next).await;
    Ok((sent, reading.await??))
}

/// The same bytes again and again, but not for ever.
fn again(bytes: Vec<u8>) -> impl FnMut() -> Option<Vec<u8>> {
    let mut left = 400_000_u32;
    move || {
        left = left.checked_sub(1)?;
        Some(bytes.clone())
    }
}

/// ENHANCE_YOUR_CALM, RFC 9113 section 7.
const CALM: u32 = 0xb;
