//! A scripted istiod: the control plane of a laboratory, over real TLS and gRPC.
//!
//! It serves delta xDS (`DeltaAggregatedResources`) and signs certificates (`CreateCertificate`) on port 15012 of a node
//! of the laboratory, and is as strict with its clients as istiod is: it checks tokens, the `clusterid` header, the node
//! of a stream's first request, sizes, signing requests and impersonation. It answers and pushes by istiod's rules, and
//! breaks them when told to.
//!
//! What the mesh consists of is its [`World`]; [`push`](ScriptedIstiod::push) changes it and tells every stream. What
//! clients did is on record, and can be waited for.

mod admission;
mod ads;
mod authority;
mod ca;
mod resources;
mod script;
mod server;
mod session;
mod shared;
mod world;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::net::TcpListener;

pub use admission::Caller;
pub use authority::HOST;
pub use ca::{CaBehaviour, CaRequest, Impersonation};
pub use resources::{
    CLUSTER, from_pod, hostname, pod_uid, policy, service_key, service_of, waypoint, without_identity,
    workload_of,
};
pub use script::{IssuedFiles, ScriptedCa};
pub use session::Answer;
pub use shared::{Answered, Demand, FirstRequest, Refusal};
pub use tonic::Code;
pub use world::World;

use crate::{Node, PATIENCE, Result, Task};
use authority::Authority;
use shared::{Ending, Shared};

/// A control plane on a node of the laboratory. Dropping it cuts everything.
pub struct ScriptedIstiod {
    node: Node,
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: Mutex<Option<Task<()>>>,
}

impl ScriptedIstiod {
    /// The port of istiod's TLS listener.
    pub const PORT: u16 = 15012;

    /// Starts it with an empty mesh and one root, accepting no token yet.
    pub fn start(node: &Node) -> Result<Self> {
        let istiod = Self::prepare(node)?;
        istiod.listen()?;
        Ok(istiod)
    }

    /// As [`start`](Self::start), but nobody listens before [`listen`](Self::listen).
    pub fn prepare(node: &Node) -> Result<Self> {
        let address: IpAddr = node.ipv4().into();
        let shared = Arc::new(Shared::new(Authority::new(address)?));
        let address = (address, Self::PORT).into();
        Ok(Self { node: node.clone(), address, shared, serving: Mutex::default() })
    }

    /// Listens, again after [`stop`](Self::stop), knowing all that it knew.
    pub fn listen(&self) -> Result<()> {
        let listener = self.bind()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::clone(&self.shared);
        let task =
            self.node.spawn(async move || server::accept(TcpListener::from_std(listener)?, shared).await);
        self.set_serving(Some(task));
        Ok(())
    }

    /// Cuts all connections and stops listening, as an istiod that is killed does. Returns when everything is closed.
    pub fn stop(&self) -> Result<()> {
        self.set_serving(None);
        self.shared.wait_for("its own connections to close", |state| {
            (state.connections.open == 0 && state.streams.is_empty()).then_some(())
        })
    }

    /// Cuts all connections and goes on listening.
    pub fn cut(&self) {
        self.shared.ending.send_replace(Ending::Cut);
    }

    /// Sends GOAWAY on all connections, as istiod does when they are half an hour old, and cuts them after `grace`.
    pub fn go_away(&self, grace: Duration) {
        self.shared.ending.send_replace(Ending::GoAway(grace));
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The node that it is on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// How many connections with TLS are open.
    pub fn connections(&self) -> usize {
        self.shared.state().connections.open
    }

    /// How many connections with TLS there have been.
    pub fn connections_so_far(&self) -> usize {
        self.shared.state().connections.total
    }

    /// Binds, patiently: a child process that is being started has the old listener until it executes its program.
    fn bind(&self) -> Result<std::net::TcpListener> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.node.visit(|| std::net::TcpListener::bind(self.address))? {
                Ok(listener) => return Ok(listener),
                Err(error) if Instant::now() >= deadline => {
                    return Err(error).context(format!("istiod cannot listen on {}", self.address));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn set_serving(&self, task: Option<Task<()>>) {
        let old = std::mem::replace(&mut *self.serving.lock().unwrap_or_else(PoisonError::into_inner), task);
        if let Some(old) = old {
            old.cancel();
        }
    }
}

impl Drop for ScriptedIstiod {
    fn drop(&mut self) {
        self.set_serving(None);
    }
}
