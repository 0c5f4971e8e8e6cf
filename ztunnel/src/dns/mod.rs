//! The DNS proxy: pods' queries arrive at port 15053 of their own namespaces, where the rules redirect port 53 to.
//!
//! ```text
//!   udp, tcp -> request    what was asked; what cannot be read is refused
//!               names      which names of the mesh it can mean
//!               lookup     the best service of these that the client may see, and its addresses
//!               respond    the answer, authoritative
//!   not of the mesh:
//!               asker      is the answer known, or being asked for (cache)?
//!               upstream   the servers of /etc/resolv.conf (resolv_conf), asked from within the pod's namespace
//!               pod        their answer, byte for byte but for id, flags and lifetimes
//! ```
//!
//! All of it runs on one thread of its own, `dns`: a pod that floods it with queries costs other pods' queries time, but
//! delays no byte of a connection and no news of the control plane, and nothing here is shared or locked. The answers of
//! the mesh come from the current snapshot, so they take no waiting. [`on_demand`] looks up workloads that the mesh knows by
//! hostname only, for the data plane.

mod asker;
mod behalf;
mod cache;
mod lookup;
mod names;
mod on_demand;
mod pod;
mod request;
mod resolv_conf;
mod respond;
mod sockets;
mod tcp;
mod udp;
mod upstream;
mod wire;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use identity::FileFollower;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::config::{Config, Families, ProxyMode};
use crate::metrics::dns::Limit;
use crate::metrics::{DnsMetrics, Threads};
use crate::proxy::{Pod, PodInstance, Stop};
use crate::state::MeshState;
use crate::state::model::Workload;
use crate::state::route::Family;
use crate::thread;
use asker::{Asker, Upstreams};
use behalf::AddressQuery;
use cache::{Bounds, Cache};
pub use lookup::Client;
pub(crate) use on_demand::ResolveError;
use on_demand::{HostResolver, MOST_CACHED};
use pod::PodDns;
pub use request::{Decoded, Request, Transport};
use resolv_conf::ResolvConf;
pub use respond::{Answer, Responder};
pub(crate) use sockets::{DnsSocket, bind_all};
use upstream::Origin;

/// Orders that may wait for the thread. Lookups beyond that fail; pods wait.
const QUEUED_ORDERS: usize = 1024;

/// Lookups for the data plane at one time.
const MOST_LOOKUPS: usize = 1024;

/// The DNS thread as others see it.
#[derive(Clone, Debug)]
pub(crate) struct DnsHandle {
    orders: mpsc::Sender<Order>,
    metrics: Arc<DnsMetrics>,
}

enum Order {
    Serve { pod: Arc<Pod>, sockets: Vec<DnsSocket> },
    Stop { instance: PodInstance, how: Stop, ended: oneshot::Sender<()> },
    Resolve { hostname: Arc<str>, source: Arc<Workload>, answer: oneshot::Sender<Resolved> },
    Ask { instance: PodInstance, query: AddressQuery, answer: oneshot::Sender<Result<IpAddr, ResolveError>> },
}

type Resolved = Result<Vec<IpAddr>, ResolveError>;

impl DnsHandle {
    /// Starts the thread. It runs until the process ends.
    ///
    /// # Errors
    /// The system refuses a thread or a runtime.
    ///
    /// # Aborts
    /// The process, when the thread panics later: its pods would have sockets that nobody serves.
    pub(crate) fn start(
        config: Arc<Config>,
        mesh: Arc<MeshState>,
        metrics: Arc<DnsMetrics>,
        threads: &Threads,
    ) -> io::Result<Self> {
        let (orders, queue) = mpsc::channel(QUEUED_ORDERS);
        let handle = Self { orders, metrics: metrics.clone() };
        thread::start("dns".to_owned(), threads, move || run(Service::new(&config, mesh, metrics), queue))?;
        Ok(handle)
    }

    /// Serves a pod's sockets, until [`stop`](Self::stop).
    pub(crate) async fn serve(&self, pod: Arc<Pod>, sockets: Vec<DnsSocket>) {
        if !sockets.is_empty() {
            // The thread ends only with the process.
            drop(self.orders.send(Order::Serve { pod, sockets }).await);
        }
    }

    /// Ends what is served for a pod. The receiver resolves, as an error, when nothing is left of it.
    pub(crate) async fn stop(&self, instance: PodInstance, how: Stop) -> oneshot::Receiver<()> {
        let (ended, end) = oneshot::channel();
        drop(self.orders.send(Order::Stop { instance, how, ended }).await);
        end
    }

    /// The addresses of a workload's hostname, on behalf of a connection of `source`. Takes as long as name servers do,
    /// within bounds. Dropping the future abandons the lookup.
    ///
    /// # Errors
    /// The lookup failed, or too many are under way.
    pub(crate) async fn resolve(&self, hostname: Arc<str>, source: Arc<Workload>) -> Resolved {
        let (answer, answered) = oneshot::channel();
        if self.orders.try_send(Order::Resolve { hostname, source, answer }).is_err() {
            self.metrics.shed(Limit::Lookups);
            return Err(ResolveError::Failed);
        }
        answered.await.unwrap_or(Err(ResolveError::Failed))
    }

    /// The address of the full `name` that the applications of a pod would be answered with, whose sockets are served. Bounds
    /// and cancellation as for [`resolve`](Self::resolve).
    ///
    /// # Errors
    /// It is no name, has no address of the family, could not be looked up, or too many are under way.
    pub(crate) async fn address(
        &self,
        instance: PodInstance,
        name: &str,
        family: Family,
    ) -> Result<IpAddr, ResolveError> {
        let query = AddressQuery::new(name, family)?;
        let (answer, answered) = oneshot::channel();
        if self.orders.try_send(Order::Ask { instance, query, answer }).is_err() {
            self.metrics.shed(Limit::Lookups);
            return Err(ResolveError::Failed);
        }
        answered.await.unwrap_or(Err(ResolveError::Failed))
    }
}

/// What all pods share, on the thread.
struct Node {
    mesh: Arc<MeshState>,
    metrics: Arc<DnsMetrics>,
    responder: Responder,
    search: SearchDomains,
    upstreams: Rc<Upstreams>,
    waiting: Rc<()>,
}

/// Whose search domains clients are expected to append.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum SearchDomains {
    /// Those that Kubernetes gives every pod of the namespace.
    OfThePod,
    /// Those of the file that this process, which is in the pod, reads.
    OfTheProcess,
}

/// Everything on the thread.
struct Service {
    node: Rc<Node>,
    hosts: Rc<HostResolver>,
    /// Those of pods, and those of [`Self::hosts`].
    configured: [Rc<Upstreams>; 2],
    lookups: JoinSet<()>,
    pods: HashMap<PodInstance, Served>,
}

struct Served {
    dns: Rc<PodDns>,
    stop: watch::Sender<Option<Stop>>,
    tasks: JoinSet<()>,
}

async fn run(mut service: Service, mut orders: mpsc::Receiver<Order>) {
    // In a task of its own: dropped and begun again with each order, it would never come to look.
    let _following = AbortOnDrop(tokio::task::spawn_local(follow(service.configured.clone())));
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(order) => service.carry_out(order),
                // Nobody is left to ask for anything: the process is ending.
                None => return,
            },
            ended = service.lookups.join_next(), if !service.lookups.is_empty() => drop(ended),
        }
    }
}

/// Keeps to what resolv.conf says.
async fn follow(upstreams: [Rc<Upstreams>; 2]) {
    let mut file = FileFollower::new(resolv_conf::PATH, resolv_conf::LONGEST);
    configure(&upstreams, file.read_now());
    loop {
        configure(&upstreams, file.changed().await);
    }
}

/// Takes over the servers that resolv.conf names, and forgets the answers of others. What cannot be read changes nothing.
fn configure(upstreams: &[Rc<Upstreams>], read: io::Result<Vec<u8>>) {
    let path = resolv_conf::PATH;
    let conf = match read {
        Ok(text) => Rc::new(ResolvConf::parse(&text)),
        Err(error) => {
            return tracing::warn!(path, %error, "the name servers of before stay in use, if any");
        }
    };
    if conf.servers.is_empty() {
        tracing::warn!(path, "no name server: only names of the mesh are answered until there is one");
    } else {
        tracing::info!(path, servers = ?conf.servers, "name servers for names outside of the mesh");
    }
    for upstreams in upstreams {
        upstreams.conf.replace(conf.clone());
        upstreams.cache.borrow_mut().clear();
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Service {
    fn new(config: &Config, mesh: Arc<MeshState>, metrics: Arc<DnsMetrics>) -> Self {
        let upstreams =
            |bounds| Rc::new(Upstreams { conf: RefCell::default(), cache: RefCell::new(Cache::new(bounds)) });
        let host_answers = upstreams(Bounds { entries: MOST_CACHED, ..Bounds::default() });
        let ourselves = Origin { netns: None, mark: config.sockets.mark };
        let asker = Asker::new(PodInstance::next(), ourselves, host_answers.clone());
        let node = Node {
            mesh,
            metrics,
            responder: Responder::new(config),
            search: match config.mode {
                ProxyMode::Shared { .. } => SearchDomains::OfThePod,
                ProxyMode::Dedicated { .. } => SearchDomains::OfTheProcess,
            },
            upstreams: upstreams(Bounds::default()),
            waiting: Rc::default(),
        };
        Self {
            configured: [node.upstreams.clone(), host_answers],
            node: Rc::new(node),
            hosts: Rc::new(HostResolver::new(asker, config.sockets.families == Families::Both)),
            lookups: JoinSet::new(),
            pods: HashMap::new(),
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Serve { pod, sockets } => self.serve(pod, sockets),
            Order::Stop { instance, how, ended } => self.stop(instance, how, ended),
            Order::Resolve { hostname, source, answer } => self.resolve(hostname, source, answer),
            Order::Ask { instance, query, answer } => self.ask(instance, query, answer),
        }
    }

    fn serve(&mut self, pod: Arc<Pod>, sockets: Vec<DnsSocket>) {
        let (stop, stopping) = watch::channel(None);
        let instance = pod.instance;
        let pod = PodDns::new(pod, self.node.clone());
        let mut tasks = JoinSet::new();
        for DnsSocket { binding, udp, tcp } in sockets {
            tasks.spawn_local(udp::serve(pod.clone(), binding.clone(), udp, stopping.clone()));
            tasks.spawn_local(tcp::serve(pod.clone(), binding, tcp, stopping.clone()));
        }
        self.pods.insert(instance, Served { dns: pod, stop, tasks });
    }

    fn stop(&mut self, instance: PodInstance, how: Stop, ended: oneshot::Sender<()>) {
        let Some(Served { stop, mut tasks, .. }) = self.pods.remove(&instance) else { return };
        stop.send_replace(Some(how));
        let node = self.node.clone();
        // Ends with the drain, which has a bound.
        tokio::task::spawn_local(async move {
            while tasks.join_next().await.is_some() {}
            node.upstreams.cache.borrow_mut().forget(instance);
            drop(ended);
        });
    }

    fn ask(
        &mut self,
        instance: PodInstance,
        query: AddressQuery,
        mut answer: oneshot::Sender<Result<IpAddr, ResolveError>>,
    ) {
        if self.lookups.len() >= MOST_LOOKUPS {
            self.node.metrics.shed(Limit::Lookups);
            // Nobody may wait for it any more.
            let _ = answer.send(Err(ResolveError::Failed));
            return;
        }
        // Of a pod that is not served any more nobody waits for answers.
        let Some(pod) = self.pods.get(&instance).map(|served| served.dns.clone()) else { return };
        self.lookups.spawn_local(async move {
            tokio::select! {
                () = answer.closed() => {}
                address = query.ask(&pod) => {
                    let _ = answer.send(address);
                }
            }
        });
    }

    fn resolve(&mut self, hostname: Arc<str>, source: Arc<Workload>, mut answer: oneshot::Sender<Resolved>) {
        self.node.metrics.on_demand(&source, &hostname);
        if self.lookups.len() >= MOST_LOOKUPS {
            self.node.metrics.shed(Limit::Lookups);
            drop(answer.send(Err(ResolveError::Failed)));
            return;
        }
        let (hosts, conf) = (self.hosts.clone(), self.node.upstreams.conf.borrow().clone());
        self.lookups.spawn_local(async move {
            tokio::select! {
                // Whoever asked has given up.
                () = answer.closed() => {}
                resolved = hosts.resolve(&hostname, &conf.search, conf.ndots) => {
                    if let Err(error) = &resolved {
                        tracing::warn!(%hostname, %error, "a workload has no address that could be looked up");
                    }
                    drop(answer.send(resolved));
                }
            }
        });
    }
}

#[cfg(test)]
mod tests;
