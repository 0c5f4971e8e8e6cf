//! A node agent that does as it is told: it enrols pods in the order the CNI agent does, and its connections to the
//! proxy can be cut and its answers looked at.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, bail};
use redirect::Netns;
use redirect::rules::{self, BackendChoice, DnsCapture, Family, PodRules};
use redirect::zds::server::{Listener, Peer, PeerError};
use redirect::zds::{RequestMessage, WorkloadInfo};
use tokio::sync::mpsc;

use crate::{Node, PATIENCE, Pod, Result, Task};

/// A proxy's answer to a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ack {
    /// Done.
    Accepted,
    /// Not done, with the proxy's reason.
    Refused(String),
}

/// The agent of one node, listening where the node's proxy dials. Dropping it closes everything.
pub struct ScriptedAgent {
    node: Node,
    shared: Arc<Shared>,
    listening: Mutex<Option<Task<()>>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What a snapshot consists of: pods whose namespace is known, and others.
    pods: BTreeMap<String, Announcement>,
    /// Connected proxies, oldest first.
    proxies: Vec<Proxy>,
    /// Answers to the Adds and Keeps of all snapshots.
    snapshot_acks: Vec<(String, Ack)>,
    snapshots: usize,
    connections: usize,
}

#[derive(Clone)]
struct Announcement {
    workload: WorkloadInfo,
    netns: Option<Netns>,
}

struct Proxy {
    connection: usize,
    requests: mpsc::UnboundedSender<Request>,
}

struct Request {
    message: RequestMessage,
    descriptor: Option<OwnedFd>,
    answer: SyncSender<Result<Ack>>,
}

impl ScriptedAgent {
    /// Starts listening, with no pods.
    pub fn start(node: &Node) -> Result<Self> {
        let agent = Self { node: node.clone(), shared: Arc::default(), listening: Mutex::default() };
        agent.listen()?;
        Ok(agent)
    }

    /// Listens again after [`stop`](Self::stop), knowing the same pods.
    pub fn listen(&self) -> Result<()> {
        let (path, shared) = (self.node.agent_socket(), Arc::clone(&self.shared));
        // Bound before this returns: a proxy started next finds the socket.
        let (bound, is_bound) = sync_channel(1);
        let task = self.node.spawn(async move || {
            let listener = match Listener::bind(&path) {
                Ok(listener) => listener,
                Err(error) => {
                    drop(bound.send(Err(error)));
                    return Ok(());
                }
            };
            drop(bound.send(Ok(())));
            accept(listener, shared).await
        });
        is_bound.recv_timeout(PATIENCE)?.context("the agent cannot listen")?;
        self.set_listening(Some(task));
        Ok(())
    }

    /// Stops listening and closes all connections, as an agent that restarts does. It forgets nothing.
    pub fn stop(&self) {
        self.set_listening(None);
        self.disconnect();
    }

    /// Closes all connections. Proxies will dial again.
    pub fn disconnect(&self) {
        self.state().proxies.clear();
    }

    /// Enrols a pod as the CNI agent does: its rules first, so that nothing escapes, then the proxy.
    pub fn enrol(&self, pod: &Pod, backend: BackendChoice) -> Result<Ack> {
        apply_rules(pod, backend)?;
        self.add(pod)
    }

    /// Has the pod in the next snapshot, without telling a connected proxy.
    pub fn remember(&self, pod: &Pod) {
        let announcement = Announcement { workload: workload_info(pod), netns: Some(pod.netns().clone()) };
        self.state().pods.insert(pod.uid(), announcement);
    }

    /// Has the pod in the next snapshot as one whose namespace cannot be found.
    pub fn remember_without_namespace(&self, pod: &Pod) {
        self.state().pods.insert(pod.uid(), Announcement { workload: workload_info(pod), netns: None });
    }

    /// Forgets a pod without telling a connected proxy.
    pub fn forget(&self, pod: &Pod) {
        self.state().pods.remove(&pod.uid());
    }

    /// Adds a pod at the newest proxy, waiting for one to connect if there is none.
    pub fn add(&self, pod: &Pod) -> Result<Ack> {
        self.remember(pod);
        self.add_descriptor(pod, pod.netns().as_fd().try_clone_to_owned()?)
    }

    /// Sends an Add for the pod with any descriptor, at the newest proxy, and remembers nothing.
    pub fn add_descriptor(&self, pod: &Pod, descriptor: OwnedFd) -> Result<Ack> {
        let message = RequestMessage::Add { uid: pod.uid(), workload: Some(workload_info(pod)) };
        let newest = self.wait_until(|state| state.proxies.last().map(|proxy| proxy.requests.clone()))?;
        request(&newest, message, Some(descriptor))
    }

    /// Sends a request as it is, without a descriptor, at the newest proxy.
    pub fn request(&self, message: RequestMessage) -> Result<Ack> {
        let newest = self.wait_until(|state| state.proxies.last().map(|proxy| proxy.requests.clone()))?;
        request(&newest, message, None)
    }

    /// Sends an Add that does not say which pod it is, at the newest proxy.
    pub fn add_nameless(&self, pod: &Pod) -> Result<Ack> {
        let message = RequestMessage::Add { uid: pod.uid(), workload: None };
        let newest = self.wait_until(|state| state.proxies.last().map(|proxy| proxy.requests.clone()))?;
        request(&newest, message, Some(pod.netns().as_fd().try_clone_to_owned()?))
    }

    /// Deletes a pod at every proxy. Its rules stay.
    pub fn delete(&self, pod: &Pod) -> Result<Ack> {
        self.forget(pod);
        let proxies: Vec<_> = self.state().proxies.iter().map(|proxy| proxy.requests.clone()).collect();
        for proxy in proxies {
            if let refused @ Ack::Refused(_) =
                request(&proxy, RequestMessage::Delete { uid: pod.uid() }, None)?
            {
                return Ok(refused);
            }
        }
        Ok(Ack::Accepted)
    }

    /// Waits until `count` snapshots have been sent in all and answered.
    pub fn wait_for_snapshots(&self, count: usize) -> Result<()> {
        self.wait_until(|state| (state.snapshots >= count).then_some(()))
    }

    /// How many snapshots have been sent and answered.
    pub fn snapshots(&self) -> usize {
        self.state().snapshots
    }

    /// Every pod of every snapshot with the proxy's answer, in order.
    pub fn snapshot_acks(&self) -> Vec<(String, Ack)> {
        self.state().snapshot_acks.clone()
    }

    /// How many proxies are connected.
    pub fn proxies(&self) -> usize {
        self.state().proxies.len()
    }

    fn wait_until<T>(&self, mut select: impl FnMut(&State) -> Option<T>) -> Result<T> {
        let mut found = None;
        let state = self.state();
        let waiting = |state: &mut State| {
            found = select(state);
            found.is_none()
        };
        drop(self.shared.changed.wait_timeout_while(state, PATIENCE, waiting));
        found.with_context(|| format!("the agent of {} waited in vain for its proxy", self.node.name()))
    }

    fn set_listening(&self, task: Option<Task<()>>) {
        *self.listening.lock().unwrap_or_else(PoisonError::into_inner) = task;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

/// Applies the in-pod rules of an ordinary pod, as the CNI agent does before it tells the proxy.
///
/// DNS is not captured: there is no resolver in most laboratories.
pub fn apply_rules(pod: &Pod, backend: BackendChoice) -> Result<()> {
    apply_rules_with(pod, backend, DnsCapture::Off)
}

/// As [`apply_rules`], with DNS captured or not.
pub fn apply_rules_with(pod: &Pod, backend: BackendChoice, dns: DnsCapture) -> Result<()> {
    let wanted = PodRules { dns, ..PodRules::default() };
    let backend = backend.resolve(pod.netns(), &[Family::V4, Family::V6])?;
    rules::apply(pod.netns(), &wanted, backend)
        .with_context(|| format!("cannot apply {backend} rules to {}", pod.name()))
}

fn workload_info(pod: &Pod) -> WorkloadInfo {
    WorkloadInfo {
        name: pod.name().to_owned(),
        namespace: Pod::NAMESPACE.to_owned(),
        service_account: pod.service_account().to_owned(),
    }
}

fn request(
    proxy: &mpsc::UnboundedSender<Request>,
    message: RequestMessage,
    descriptor: Option<OwnedFd>,
) -> Result<Ack> {
    let (answer, answered) = sync_channel(1);
    if proxy.send(Request { message, descriptor, answer }).is_err() {
        bail!("the proxy has disconnected");
    }
    answered.recv_timeout(PATIENCE).context("the proxy did not answer")?
}

async fn accept(listener: Listener, shared: Arc<Shared>) -> Result<()> {
    loop {
        let peer = listener.accept().await?;
        let (requests, queue) = mpsc::unbounded_channel();
        // Known before its snapshot is put together, so that no pod can fall between the two.
        let connection = {
            let mut state = shared.state();
            state.connections += 1;
            let connection = state.connections;
            state.proxies.push(Proxy { connection, requests });
            connection
        };
        let shared = Arc::clone(&shared);
        // Not tied to the listener: an agent can stop listening and keep its connections.
        tokio::task::spawn_local(async move {
            // Whatever ends the connection, the proxy dials again.
            let _ = serve(peer, queue, &shared).await;
            shared.state().proxies.retain(|proxy| proxy.connection != connection);
            shared.changed.notify_all();
        });
    }
}

/// A proxy's connection: hello, snapshot, then one request at a time until either side leaves.
async fn serve(
    mut peer: Peer,
    mut queue: mpsc::UnboundedReceiver<Request>,
    shared: &Shared,
) -> Result<(), PeerError> {
    peer.hello().await?;
    let pods = shared.state().pods.clone();
    for (uid, Announcement { workload, netns }) in pods {
        let answer = match netns {
            Some(netns) => peer.add(&uid, &workload, &netns).await,
            None => peer.keep(&uid).await,
        };
        let ack = acknowledgement(answer)?;
        shared.state().snapshot_acks.push((uid, ack));
    }
    peer.snapshot_sent().await?;
    shared.state().snapshots += 1;
    shared.changed.notify_all();
    loop {
        let request = tokio::select! {
            lost = peer.lost() => return Err(lost),
            request = queue.recv() => request,
        };
        // None: this agent has disconnected.
        let Some(Request { message, descriptor, answer }) = request else { return Ok(()) };
        let result = acknowledgement(peer.request(&message, descriptor.as_ref().map(|fd| fd.as_fd())).await);
        let usable = result.is_ok();
        // Whoever asked may have given up.
        let _ = answer.send(result.map_err(anyhow::Error::from));
        if !usable {
            return Ok(());
        }
    }
}

fn acknowledgement(answer: Result<(), PeerError>) -> Result<Ack, PeerError> {
    match answer {
        Ok(()) => Ok(Ack::Accepted),
        Err(PeerError::Refused(reason)) => Ok(Ack::Refused(reason)),
        Err(error) => Err(error),
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ScriptedAgent {
    fn drop(&mut self) {
        self.stop();
    }
}
