//! Data-plane threads.
//!
//! Each worker is one thread with its own single-threaded runtime. A connection is given to a worker when it is
//! accepted and never leaves it: its sockets, its tunnel, the pool it uses and both copy directions live there, so no
//! byte crosses a thread, takes a lock or wakes another core. What crosses is the accepted socket, once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use crate::proxy::{LocalPod, PodInstance};
use crate::state::MeshState;
use crate::state::avoided::Avoided;
use crate::state::route::RouteConfig;
use crate::thread;

/// What is the same for every connection of the process.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The configuration.
    pub(crate) config: Arc<crate::config::Config>,
    /// What the mesh looks like now.
    pub(crate) mesh: Arc<MeshState>,
    /// What routing knows of this proxy.
    pub(crate) routing: RouteConfig,
    /// Our pods' certificates.
    pub(crate) certificates: identity::CertificateStore,
    /// What is counted.
    pub(crate) counters: crate::metrics::DataPlane,
    /// Serves pods' DNS queries, and looks up hostnames.
    pub(crate) dns: crate::dns::DnsHandle,
    /// Endpoints that could not be connected to a moment ago.
    pub(crate) avoided: Avoided,
    /// Tunnels to our pods that are coming up.
    pub(crate) handshakes: crate::proxy::Handshakes,
    /// Asks the control plane for what is not known. `None`: what is not known does not exist.
    pub(crate) demand: Option<xds_client::Demand>,
}

/// Something to do on a worker's thread.
type Job = Box<dyn FnOnce(&Rc<Worker>) + Send>;

/// Connections that may wait for one worker to take them. A worker that is this far behind gets no more.
const QUEUED_JOBS: usize = 1024;

/// One worker as other threads see it.
#[derive(Clone, Debug)]
pub(crate) struct WorkerHandle {
    index: usize,
    jobs: mpsc::Sender<Job>,
    load: Arc<AtomicUsize>,
}

impl WorkerHandle {
    /// Runs `job` on the worker, waiting for room in its queue. The job is lost when the worker has ended.
    pub(crate) async fn run(&self, job: impl FnOnce(&Rc<Worker>) + Send + 'static) {
        // A worker ends only with the process; nobody is left to care about the job then.
        drop(self.jobs.send(Box::new(job)).await);
    }

    fn occupy(&self) -> Occupied {
        self.load.fetch_add(1, Ordering::Relaxed);
        Occupied { load: self.load.clone() }
    }

    /// A place in the worker's queue, if there is one.
    fn reserve(&self) -> Option<Slot<'_>> {
        self.jobs.try_reserve().ok().map(Slot)
    }

    fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }
}

/// A place in a worker's queue.
pub(crate) struct Slot<'a>(mpsc::Permit<'a, Job>);

impl Slot<'_> {
    /// Runs `job` on the worker.
    pub(crate) fn run(self, job: impl FnOnce(&Rc<Worker>) + Send + 'static) {
        self.0.send(Box::new(job));
    }
}

/// One worker as its own thread sees it.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    /// All workers, this one included.
    all: Arc<[WorkerHandle]>,
    index: usize,
    pods: RefCell<HashMap<PodInstance, Rc<LocalPod>>>,
}

impl Worker {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// A place on the worker with the fewest connections, which counts from now. Nothing when that is this one, since
    /// staying saves waking another thread, or when the other's queue is full.
    pub(crate) fn hand_over(&self) -> Option<(Slot<'_>, Occupied)> {
        let here = self.all[self.index].load();
        let other = self.all.iter().min_by_key(|worker| worker.load())?;
        if other.index == self.index || other.load() >= here {
            return None;
        }
        Some((other.reserve()?, other.occupy()))
    }

    /// Counts a connection for as long as the guard lives.
    pub(crate) fn occupy(&self) -> Occupied {
        self.all[self.index].occupy()
    }

    pub(crate) fn pod(&self, instance: PodInstance) -> Option<Rc<LocalPod>> {
        self.pods.borrow().get(&instance).cloned()
    }

    pub(crate) fn add_pod(&self, instance: PodInstance, pod: Rc<LocalPod>) {
        self.pods.borrow_mut().insert(instance, pod);
    }

    /// Judges all open connections by the mesh as it is now.
    async fn reconsider(&self) {
        let mesh = self.shared.mesh.load();
        let pods: Vec<_> = self.pods.borrow().values().cloned().collect();
        for pod in pods {
            crate::proxy::reconsider(&pod, &mesh).await;
        }
    }

    pub(crate) fn remove_pod(&self, instance: PodInstance) -> Option<Rc<LocalPod>> {
        self.pods.borrow_mut().remove(&instance)
    }
}

/// A connection's share of its worker's load.
#[derive(Debug)]
pub(crate) struct Occupied {
    load: Arc<AtomicUsize>,
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The data-plane threads. They run until the process ends.
#[derive(Debug)]
pub(crate) struct Workers {
    handles: Arc<[WorkerHandle]>,
}

impl Workers {
    /// Starts `count` threads, named `ztunnel-0` and so on.
    ///
    /// # Aborts
    /// The process, when a worker panics later: its pods would have listeners that nobody serves.
    pub(crate) fn start(count: usize, shared: &Arc<Shared>) -> io::Result<Self> {
        let (handles, queues): (Vec<_>, Vec<_>) = (0..count)
            .map(|index| {
                let (jobs, queue) = mpsc::channel(QUEUED_JOBS);
                (WorkerHandle { index, jobs, load: Arc::default() }, queue)
            })
            .unzip();
        let handles: Arc<[WorkerHandle]> = handles.into();
        for (index, queue) in queues.into_iter().enumerate() {
            let (shared, all) = (shared.clone(), handles.clone());
            let threads = shared.counters.threads.clone();
            thread::start(format!("ztunnel-{index}"), &threads, move || run(shared, all, index, queue))?;
        }
        Ok(Self { handles })
    }

    /// All workers.
    pub(crate) fn handles(&self) -> &Arc<[WorkerHandle]> {
        &self.handles
    }
}

async fn run(shared: Arc<Shared>, all: Arc<[WorkerHandle]>, index: usize, mut queue: mpsc::Receiver<Job>) {
    let mut changes = shared.mesh.subscribe();
    let worker = Rc::new(Worker { shared, all, index, pods: RefCell::default() });
    loop {
        tokio::select! {
            job = queue.recv() => match job {
                Some(job) => job(&worker),
                None => return,
            },
            // The sender lives as long as what this thread shares.
            Ok(()) = changes.changed() => worker.reconsider().await,
        }
    }
}
