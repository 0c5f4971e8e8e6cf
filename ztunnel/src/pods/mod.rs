//! The pods of this node: the node agent says which, and each gets its own listeners.
//!
//! [`inventory`] holds what the agent wants; this module talks to the agent and starts and stops proxies. Losing the
//! agent makes the process unready and changes nothing for the pods that are served.

mod inventory;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use identity::{CertificateStore, SpiffeId};
use redirect::zds::{Backoff, Connection, Recovery, Request, WorkloadInfo, ZdsError};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::config::{SocketConfig, WorkloadName};
use crate::proxy::{BoundPod, RunningPod, Stop};
use crate::readiness::Task;
use crate::telemetry::with_causes;
use crate::worker::WorkerHandle;
use inventory::{Described, Inventory, PodUid, RETRY_INTERVAL, Wanted};

/// The agent broke the protocol in a way that leaves unknown which pods are ours.
#[derive(Debug, thiserror::Error)]
#[error("the node agent does not speak the protocol we know")]
pub struct AgentMisbehaved(#[source] ZdsError);

/// Serves the pods that the agent hands over.
pub(crate) struct PodManager {
    agent: PathBuf,
    sockets: SocketConfig,
    workers: Arc<[WorkerHandle]>,
    ready: Task,
    pods: Inventory<RunningPod>,
    certificates: CertificateStore,
    /// Proxies that are being stopped, and the identity of each.
    stopping: JoinSet<Option<SpiffeId>>,
}

impl PodManager {
    pub(crate) fn new(
        agent: &Path,
        sockets: SocketConfig,
        workers: Arc<[WorkerHandle]>,
        certificates: CertificateStore,
        ready: Task,
    ) -> Self {
        Self {
            agent: agent.to_owned(),
            sockets,
            workers,
            ready,
            certificates,
            pods: Inventory::default(),
            stopping: JoinSet::new(),
        }
    }

    /// Follows the agent until `stop` resolves and says how to end, then ends every pod that way and returns when all
    /// have ended.
    ///
    /// # Errors
    /// The agent broke the protocol. Proxies are still running then, and end with the process.
    pub(crate) async fn run(mut self, stop: impl Future<Output = Stop>) -> Result<(), AgentMisbehaved> {
        let how = tokio::select! {
            // Checked first: once we are told to stop, no request is taken that would not be carried out.
            biased;
            how = stop => how,
            error = self.follow() => return Err(error),
        };
        for (_, pod) in self.pods.take_running() {
            self.end(pod, how);
        }
        while self.stopping.join_next().await.is_some() {}
        Ok(())
    }

    /// Talks to the agent, one connection after another.
    async fn follow(&mut self) -> AgentMisbehaved {
        let mut backoff = Backoff::default();
        loop {
            let error = match self.converse(&mut backoff).await {
                Ok(()) => {
                    tracing::info!("the node agent closed the connection");
                    backoff.reset();
                    None
                }
                Err(error) if error.recovery() == Recovery::Exit => return AgentMisbehaved(error),
                Err(error) => Some(error),
            };
            self.ready.again();
            let delay = backoff.delay();
            if let Some(error) = error {
                tracing::warn!(error = with_causes(&error), retry_in = ?delay, "lost the node agent");
            }
            tokio::time::sleep(delay).await;
        }
    }

    /// One connection, from dialling to its end.
    async fn converse(&mut self, backoff: &mut Backoff) -> Result<(), ZdsError> {
        let mut agent = Connection::dial(&self.agent).await?;
        self.pods.begin_snapshot();
        agent.announce().await?;
        tracing::info!(agent = %self.agent.display(), "connected to the node agent");
        loop {
            tokio::select! {
                request = agent.next_request() => {
                    let outcome = match request {
                        Ok(None) => return Ok(()),
                        Ok(Some(request)) => {
                            backoff.reset();
                            self.handle(request).await
                        }
                        Err(error) => {
                            self.pods.misunderstood(&error);
                            let text = with_causes(&error);
                            if error.recovery() != Recovery::Continue {
                                // The answer is a courtesy; the error is what counts.
                                drop(agent.respond(Err(&text)).await);
                                return Err(error);
                            }
                            tracing::warn!(error = text, "cannot carry out a request of the node agent");
                            Err(text)
                        }
                    };
                    agent.respond(outcome.as_ref().copied().map_err(String::as_str)).await?;
                }
                () = arrival(self.pods.retry_at()) => self.retry().await,
                Some(ended) = self.stopping.join_next() => self.ended(ended.ok().flatten()),
            }
            if self.pods.is_settled() {
                self.ready.done();
            }
        }
    }

    /// Carries out a request. An error is meant for the agent's log.
    async fn handle(&mut self, request: Request) -> Result<(), String> {
        match request {
            Request::Add { uid, workload, netns } => {
                let WorkloadInfo { name, namespace, service_account } = workload;
                let workload = WorkloadName { namespace, name, service_account };
                self.add(uid.into(), Described { workload, netns }).await?;
            }
            Request::Keep { uid } => self.pods.keep(&uid.into()),
            Request::Delete { uid } => {
                if let Some(pod) = self.pods.unwant(&uid) {
                    tracing::info!(uid, "pod removed");
                    self.end(pod, Stop::Now);
                }
            }
            Request::SnapshotSent => {
                for (uid, pod) in self.pods.end_snapshot() {
                    tracing::info!(%uid, "pod removed: the node agent does not know it any more");
                    self.end(pod, Stop::Now);
                }
            }
        }
        Ok(())
    }

    async fn add(&mut self, uid: PodUid, pod: Described) -> Result<(), String> {
        let namespace = pod.netns.id();
        match self.pods.want(&uid, namespace) {
            Wanted::Served => return Ok(()),
            Wanted::Start => {}
            // Its listeners are in another namespace, so they are not in the way of the new ones.
            Wanted::Replace(old) => {
                self.end(old, Stop::Now);
            }
        }
        let WorkloadName { namespace: pod_namespace, name, service_account } = &pod.workload;
        match BoundPod::bind(pod.workload.clone(), Some(pod.netns.clone()), &self.sockets) {
            Ok(bound) => {
                tracing::info!(%uid, pod = %format_args!("{pod_namespace}/{name}"), service_account, "pod added");
                let running = bound.serve(&self.workers).await;
                self.pods.started(uid, namespace, running);
                Ok(())
            }
            Err(error) => {
                let text = with_causes(&error);
                tracing::warn!(
                    %uid, pod = %format_args!("{pod_namespace}/{name}"), error = text, retry_in = ?RETRY_INTERVAL,
                    "cannot serve a pod"
                );
                self.pods.failed(uid, pod, Instant::now());
                Err(text)
            }
        }
    }

    /// Stops a pod's proxy in the background.
    fn end(&mut self, pod: RunningPod, how: Stop) {
        self.stopping.spawn(async move {
            let identity = pod.identity().cloned();
            pod.stop(how).await;
            identity
        });
    }

    /// A proxy has stopped. The certificate of its identity goes with the last pod that has it.
    fn ended(&self, identity: Option<SpiffeId>) {
        if let Some(identity) = identity
            && !self.pods.running().any(|pod| pod.identity() == Some(&identity))
        {
            self.certificates.forget(&identity);
        }
    }

    async fn retry(&mut self) {
        for (uid, pod) in self.pods.take_waiting() {
            // Failing again puts it back, and has been logged.
            drop(self.add(uid, pod).await);
        }
    }
}

/// Resolves at `time`; never when there is none.
async fn arrival(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
