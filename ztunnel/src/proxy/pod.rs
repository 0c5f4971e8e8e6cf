//! A pod whose traffic we carry: what is known of it on every thread, and its connections on one.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use hbone::Pool;
use hbone::headers::{Baggage, WorkloadKind};
use http::HeaderValue;
use identity::{SpiffeId, SpiffeIdError};
use redirect::Netns;
use redirect::socket::ConnectOptions;
use tokio::sync::watch;
use tokio::time::Instant;

use super::cut::CutReason;
use super::gateway::InnerKey;
use super::open_connections::OpenConnections;
use super::reconsider::Basis;
use super::task_set::{Place, TaskSet};
use super::tunnel::{DialError, TunnelKey};
use crate::config::{Config, WorkloadName};
use crate::pods::ownership::{self, NotOwned};
use crate::state::model::Workload;
use crate::worker::{Occupied, Worker};

/// Tells one run of a pod's proxy from an earlier one with the same uid.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct PodInstance(u64);

impl PodInstance {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// No two runs have the same.
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

/// A pod, as far as all threads share it.
#[derive(Debug)]
pub(crate) struct Pod {
    /// This run of its proxy.
    pub(crate) instance: PodInstance,
    /// Which workload it is.
    pub(crate) workload: WorkloadName,
    /// Where its sockets are made; `None`: in the process's own namespace.
    pub(crate) netns: Option<Netns>,
    /// Options of the connections made on its behalf.
    pub(crate) connect: ConnectOptions,
    /// The addresses in `netns` when they were looked at last. Written by the control thread, judged by on every thread.
    addresses: ArcSwap<Vec<IpAddr>>,
}

impl Pod {
    pub(crate) fn new(workload: WorkloadName, netns: Option<Netns>, connect: ConnectOptions) -> Self {
        Self { instance: PodInstance::next(), workload, netns, connect, addresses: ArcSwap::default() }
    }

    /// Whether its namespace can be that of the workload that the mesh describes, by the addresses that were found there
    /// last. A few comparisons: how long a look at the namespace takes is up to the pod, so workers never do that.
    pub(crate) fn check(&self, workload: &Workload) -> Result<(), NotOwned> {
        // A proxy in the pod itself is where it is.
        if self.netns.is_none() {
            return Ok(());
        }
        ownership::judge(workload, &self.addresses.load())
    }

    /// Notes the addresses that are in the namespace.
    pub(crate) fn found(&self, addresses: Vec<IpAddr>) {
        self.addresses.store(Arc::new(addresses));
    }

    /// The addresses that were found in the namespace last.
    pub(crate) fn addresses(&self) -> Arc<Vec<IpAddr>> {
        self.addresses.load_full()
    }

    /// Looks into the namespace, notes which addresses it has, and returns them. When that fails, what was found last
    /// stays noted. For the control thread.
    pub(crate) fn look(&self) -> io::Result<Arc<Vec<IpAddr>>> {
        if let Some(netns) = &self.netns {
            self.found(netns.addresses()?);
        }
        Ok(self.addresses())
    }
}

/// Why a pod has no identity that it could use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoIdentity {
    /// The mesh gives the pod a trust domain that no identity can have.
    #[error("its name is no SPIFFE name")]
    Name(#[from] SpiffeIdError),
    /// The mesh's description of the pod is not of what is in its namespace.
    #[error("it may belong to another pod")]
    NotOwned(#[from] NotOwned),
}

/// How a pod's proxy is ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stop {
    /// Connections are cut at once.
    Now,
    /// Connections may finish for this long.
    Drain(Duration),
}

/// A pod on one worker.
pub(crate) struct LocalPod {
    pub(crate) pod: Arc<Pod>,
    pub(crate) worker: Rc<Worker>,
    /// The tunnels that this worker opened for the pod.
    pub(crate) pool: Pool<TunnelKey, DialError>,
    /// The connections whose records are open.
    pub(crate) open: Rc<OpenConnections>,
    /// What was known when they were judged last.
    judged_by: RefCell<Option<Basis>>,
    /// The tunnels inside tunnels to other networks' gateways.
    pub(crate) inner_pool: Pool<InnerKey, DialError>,
    /// Connections and tunnels served here.
    connections: Rc<TaskSet>,
    /// Accept loops, if this worker has them.
    listeners: Rc<TaskSet>,
    /// The tunnels' own work.
    drivers: Rc<TaskSet>,
    /// How the pod is being ended, once it is.
    ending: watch::Sender<Option<Stop>>,
    /// Cloned for each connection that waits for the control plane.
    asking: Rc<()>,
    /// Who the pod was last.
    identity: RefCell<Option<SpiffeId>>,
    /// The description of the pod that was sent last, and of what.
    baggage: RefCell<Option<(Arc<Workload>, HeaderValue)>>,
}

impl LocalPod {
    pub(crate) fn new(worker: &Rc<Worker>, pod: Arc<Pod>) -> Rc<Self> {
        Rc::new(Self {
            pool: Pool::new(worker.shared().config.pool.clone()),
            inner_pool: Pool::new(worker.shared().config.pool.clone()),
            pod,
            worker: worker.clone(),
            open: Rc::new(OpenConnections::new(worker.shared().config.half_closed)),
            judged_by: RefCell::default(),
            connections: Rc::default(),
            listeners: Rc::default(),
            drivers: Rc::default(),
            ending: watch::Sender::default(),
            asking: Rc::default(),
            identity: RefCell::default(),
            baggage: RefCell::default(),
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.worker.shared().config
    }

    /// Whether what decides about the pod's connections is other than at the last call, or this is the first one.
    pub(super) fn is_to_be_judged_by(&self, basis: &Basis) -> bool {
        let unchanged = self.judged_by.borrow().as_ref() == Some(basis);
        if !unchanged {
            self.judged_by.replace(Some(basis.clone()));
        }
        !unchanged
    }

    /// The pod's identity: its trust domain is the mesh's word, its namespace and account are the node agent's. None for
    /// a pod whose network namespace is not that of `workload`.
    pub(crate) fn identity(&self, workload: &Workload) -> Result<SpiffeId, NoIdentity> {
        self.pod.check(workload)?;
        if let Some(identity) = &*self.identity.borrow()
            && identity.trust_domain() == &*workload.trust_domain
        {
            return Ok(identity.clone());
        }
        let name = &self.pod.workload;
        let identity = SpiffeId::new(&workload.trust_domain, &name.namespace, &name.service_account)?;
        self.identity.replace(Some(identity.clone()));
        Ok(identity)
    }

    /// The description of the pod that goes with requests and answers. Encoded once for each change of `workload`.
    pub(crate) fn baggage(&self, workload: &Arc<Workload>) -> HeaderValue {
        let mut last = self.baggage.borrow_mut();
        match &*last {
            Some((described, value)) if Arc::ptr_eq(described, workload) => value.clone(),
            _ => {
                let value = describe(workload).encode();
                *last = Some((workload.clone(), value.clone()));
                value
            }
        }
    }

    /// Serves a connection in a task of its own, which counts towards the worker's load. `serve` keeps its place for as
    /// long as it runs. A pod that has stopped takes none.
    pub(crate) fn spawn<F>(&self, occupied: Occupied, serve: impl FnOnce(Place) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        self.connections.spawn(Some(occupied), serve);
    }

    /// Runs an accept loop until the listeners are closed.
    pub(crate) fn spawn_listener<F>(&self, listen: impl FnOnce(Place) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        self.listeners.spawn(None, listen);
    }

    /// Runs a tunnel's own work, until the pod is gone.
    pub(crate) fn spawn_driver<F>(&self, driver: impl FnOnce(Place) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        self.drivers.spawn(None, driver);
    }

    /// A place among the `most` connections that may ask the control plane at once, if there is one.
    pub(crate) fn ask(&self, most: usize) -> Option<Rc<()>> {
        (Rc::strong_count(&self.asking) <= most).then(|| self.asking.clone())
    }

    /// Resolves once the pod has begun to drain.
    pub(crate) fn draining(&self) -> impl Future<Output = ()> + 'static {
        let mut ending = self.ending.subscribe();
        async move {
            // The sender lives as long as any connection of the pod.
            drop(ending.wait_for(Option::is_some).await);
        }
    }

    /// How the pod is being ended, once it is.
    pub(super) fn ending(&self) -> Option<Stop> {
        *self.ending.borrow()
    }

    /// Ends the accept loops, because the pod is about to `stop` that way. If it drains, they take what the kernel has
    /// queued for them first.
    pub(crate) async fn close_listeners(&self, stop: Stop) {
        self.ending.send_replace(Some(stop));
        self.listeners.ended().await;
    }

    /// Ends everything else, and returns when nothing is left.
    pub(crate) async fn stop(&self, stop: Stop) {
        self.ending.send_replace(Some(stop));
        if let Stop::Drain(deadline) = stop {
            let deadline = Instant::now() + deadline;
            drop(tokio::time::timeout_at(deadline, self.connections.ended()).await);
        }
        // They reset both their ends, and tunnels say goodbye once they are empty.
        self.open.cut_all(&CutReason::Drained);
        drop(tokio::time::timeout(LAST_RESETS, self.connections.ended()).await);
        self.connections.close();
        self.connections.ended().await;
        // Tunnels without streams close by themselves, with a goodbye to their peers.
        self.inner_pool.drain();
        self.pool.drain();
        drop(tokio::time::timeout(GOODBYE, self.drivers.ended()).await);
        self.drivers.close();
        self.drivers.ended().await;
    }
}

/// How long the resets of connections that are cut may take to be sent.
const LAST_RESETS: Duration = Duration::from_millis(600);

/// How long unused tunnels may take to say goodbye.
const GOODBYE: Duration = Duration::from_millis(100);

fn describe(workload: &Workload) -> Baggage<'_> {
    fn present(text: &str) -> Option<&str> {
        (!text.is_empty()).then_some(text)
    }
    let kind = match &*workload.workload_type {
        "cronjob" => WorkloadKind::CronJob,
        "job" => WorkloadKind::Job,
        "pod" => WorkloadKind::Pod,
        _ => WorkloadKind::Deployment,
    };
    Baggage {
        cluster: present(&workload.cluster_id),
        namespace: present(&workload.namespace),
        workload: present(&workload.workload_name).map(|name| (kind, name)),
        service: present(&workload.canonical_name),
        version: present(&workload.canonical_revision),
        region: present(&workload.locality.region),
        zone: present(&workload.locality.zone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_judged_by_what_was_found_last_and_not_by_looking_again() {
        let Ok(netns) = Netns::create() else { return };
        let pod = Pod::new(WorkloadName::default(), Some(netns), ConnectOptions::default());
        let address = IpAddr::from([10, 0, 0, 1]);
        let workload = Workload { addresses: [address].into(), ..Workload::default() };
        assert!(pod.check(&workload).is_err(), "nothing was found");
        // The namespace has no address: whoever looked would find that this is wrong.
        pod.found(vec![address]);
        assert!(pod.check(&workload).is_ok());
        let other = Workload { addresses: [IpAddr::from([10, 0, 0, 2])].into(), ..Workload::default() };
        assert!(pod.check(&other).is_err());
        assert!(pod.check(&workload).is_ok(), "a misfit has nobody look");
        assert!(pod.look().unwrap().is_empty());
        assert!(pod.check(&workload).is_err());
    }
}
