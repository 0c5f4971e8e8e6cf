//! The pods of this node: the node agent says which, and each gets its own listeners.
//!
//! [`inventory`] holds what the agent wants and [`link`] talks to it; this module starts and stops proxies. Losing the
//! agent makes the process unready and changes nothing for the pods that are served.
//!
//! The mesh is followed too. A pod is served only in a namespace that can be its own ([`ownership`]), and the
//! certificates that the node will need are asked for before the first connection ([`identities`]).

mod events;
mod identities;
mod inventory;
mod link;
pub(crate) mod ownership;

use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;

use identity::{CertificateStore, SpiffeId};
use redirect::socket::ListenError;
use redirect::zds::{Recovery, Request, WorkloadInfo, ZdsError};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::config::WorkloadName;
use crate::proxy::{BoundPod, PodInstance, RunningPod, Stop};
use crate::readiness::Task;
use crate::state::Mesh;
use crate::state::model::Workload;
use crate::telemetry::with_causes;
use crate::worker::{Shared, WorkerHandle};
pub use events::{PodEvents, PodState, PodStatus};
use identities::{Changes, Identities};
pub use inventory::PodUid;
use inventory::{Described, Inventory, RETRY_INTERVAL, Waiting, Wanted};
use link::{Link, LinkEvent};
use ownership::NotOwned;

/// The agent broke the protocol in a way that leaves unknown which pods are ours.
#[derive(Debug, thiserror::Error)]
#[error("the node agent does not speak the protocol we know")]
pub struct AgentMisbehaved(#[source] ZdsError);

/// Serves the pods that the agent hands over.
pub(crate) struct PodManager {
    link: Link,
    shared: Arc<Shared>,
    workers: Arc<[WorkerHandle]>,
    events: Arc<PodEvents>,
    ready: Task,
    pods: Inventory<Served>,
    identities: Identities,
    /// Proxies that are being stopped.
    stopping: JoinSet<(PodUid, PodInstance)>,
}

/// A pod that is served.
struct Served {
    pod: Described,
    run: RunningPod,
    /// The mesh's description that its namespace was compared with.
    described: Option<Arc<Workload>>,
}

/// Why a pod cannot be served now.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    /// Its namespace is another's, as far as the mesh knows.
    #[error(transparent)]
    NotOwned(NotOwned),
    /// Its listeners cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

impl PodManager {
    /// For the agent that listens on the path `agent`. Reports to `events`, and to `ready`, which is done once the agent
    /// has named all its pods and each is served.
    pub(crate) fn new(
        agent: &Path,
        shared: Arc<Shared>,
        workers: Arc<[WorkerHandle]>,
        events: Arc<PodEvents>,
        ready: Task,
    ) -> Self {
        Self {
            link: Link::new(agent),
            shared,
            workers,
            events,
            ready,
            pods: Inventory::default(),
            identities: Identities::default(),
            stopping: JoinSet::new(),
        }
    }

    /// Waits for `mesh_known`, then follows the agent until `stop` resolves and says how to end, then ends every pod that
    /// way and returns when all have ended.
    ///
    /// The agent is not dialled before the mesh is known: pods would begin to be served without anybody knowing how, and
    /// their namespaces could not be compared with anything.
    ///
    /// # Errors
    /// The agent broke the protocol. Proxies are still running then, and end with the process.
    pub(crate) async fn run(
        mut self,
        mesh_known: impl Future<Output = ()>,
        stop: impl Future<Output = Stop>,
    ) -> Result<(), AgentMisbehaved> {
        let mut stop = pin!(stop);
        let early = tokio::select! {
            biased;
            how = &mut stop => Some(how),
            () = mesh_known => None,
        };
        let how = match early {
            Some(how) => how,
            None => self.follow(stop).await?,
        };
        // What the agent wants now is for our successor.
        self.link.close();
        for (uid, served) in self.pods.take_running() {
            self.end(uid, served, how);
        }
        while let Some(ended) = self.stopping.join_next().await {
            self.ended(ended.ok());
        }
        Ok(())
    }

    /// Does what agent and mesh demand, until told to stop. Each step is done as a whole: `stop` is looked at between
    /// them, so no pod is left half started, and no request is taken that would not be carried out.
    async fn follow(
        &mut self,
        mut stop: Pin<&mut impl Future<Output = Stop>>,
    ) -> Result<Stop, AgentMisbehaved> {
        // Subscribed before looking, so no change falls in between.
        let mut changes = self.shared.mesh.subscribe();
        self.mesh_changed().await;
        loop {
            tokio::select! {
                biased;
                how = &mut stop => return Ok(how),
                Ok(()) = changes.changed() => self.mesh_changed().await,
                Some(ended) = self.stopping.join_next() => self.ended(ended.ok()),
                () = arrival(self.pods.retry_at()) => self.retry().await,
                event = self.link.next() => self.heard(event).await?,
            }
            let (active, pending) = self.pods.counts();
            self.events.set_counts(active, pending);
            if self.link.is_open() && self.pods.is_settled() {
                self.ready.done();
            }
        }
    }

    /// Something happened on the connection with the agent.
    async fn heard(&mut self, event: LinkEvent) -> Result<(), AgentMisbehaved> {
        match event {
            LinkEvent::Opened => {
                tracing::info!("connected to the node agent");
                for uid in self.pods.begin_snapshot() {
                    self.events.waits_no_more(&uid);
                }
            }
            LinkEvent::Request(request) => {
                let outcome = self.handle(request).await;
                self.link.answer(outcome);
            }
            LinkEvent::Misunderstood(error) => {
                self.pods.misunderstood(&error);
                let words = with_causes(&error);
                if error.recovery() == Recovery::Continue {
                    tracing::warn!(error = words, "cannot carry out a request of the node agent");
                }
                self.link.refuse(error, words);
            }
            LinkEvent::Lost(error, retry_in) => {
                self.ready.again();
                match error {
                    None => tracing::info!(?retry_in, "the node agent closed the connection"),
                    Some(error) => {
                        tracing::warn!(error = with_causes(&error), ?retry_in, "lost the node agent");
                    }
                }
            }
            LinkEvent::Absent(error, retry_in) => {
                tracing::warn!(error = with_causes(&error), ?retry_in, "the node agent is not there");
            }
            LinkEvent::Misbehaved(error) => return Err(AgentMisbehaved(error)),
        }
        Ok(())
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
                self.events.waits_no_more(&uid);
                if let Some(served) = self.pods.unwant(&uid) {
                    tracing::info!(uid, "pod removed");
                    self.end(uid.into(), served, Stop::Now);
                }
            }
            Request::SnapshotSent => {
                self.link.settled();
                for (uid, served) in self.pods.end_snapshot() {
                    self.events.waits_no_more(&uid);
                    if let Some(served) = served {
                        tracing::info!(%uid, "pod removed: the node agent does not know it any more");
                        self.end(uid, served, Stop::Now);
                    }
                }
            }
        }
        Ok(())
    }

    async fn add(&mut self, uid: PodUid, pod: Described) -> Result<(), String> {
        match self.pods.want(&uid, pod.netns.id()) {
            Wanted::Served => return Ok(()),
            Wanted::Start => {}
            // Its listeners are in another namespace, so they are not in the way of the new ones.
            Wanted::Replace(old) => self.end(uid.clone(), old, Stop::Now),
        }
        self.attempt(uid, pod, None).await
    }

    /// Serves the pod, or has it wait. `before` is why it has waited so far.
    async fn attempt(&mut self, uid: PodUid, pod: Described, before: Option<&str>) -> Result<(), String> {
        let described = local_workload(&self.shared.mesh.load(), &pod.workload).cloned();
        match self.start(&pod, described.as_deref()).await {
            Ok(run) => {
                let WorkloadName { namespace, name, service_account } = &pod.workload;
                tracing::info!(%uid, pod = %format_args!("{namespace}/{name}"), service_account, "pod added");
                self.events.up(&uid, &pod.workload);
                let identity = described.as_deref().and_then(|workload| identity_of(&pod.workload, workload));
                carry_out(&self.shared.certificates, self.identities.pod(run.pod().instance, identity));
                self.pods.started(uid, pod.netns.id(), Served { pod, run, described });
                Ok(())
            }
            Err(refusal) => Err(self.refuse(uid, pod, &refusal, described, before)),
        }
    }

    async fn start(&self, pod: &Described, described: Option<&Workload>) -> Result<RunningPod, Refusal> {
        if let Some(workload) = described {
            ownership::examine(workload, &pod.netns).map_err(Refusal::NotOwned)?;
        }
        let sockets = &self.shared.config.sockets;
        let bound = BoundPod::bind(pod.workload.clone(), Some(pod.netns.clone()), sockets)?;
        Ok(bound.serve(&self.workers).await)
    }

    /// Has the pod wait, and returns the reason in words.
    fn refuse(
        &mut self,
        uid: PodUid,
        pod: Described,
        refusal: &Refusal,
        described: Option<Arc<Workload>>,
        before: Option<&str>,
    ) -> String {
        let reason = with_causes(refusal);
        let WorkloadName { namespace, name, .. } = &pod.workload;
        let contradicted = match refusal {
            // Said once, not every five seconds.
            _ if before == Some(&reason) => {
                tracing::debug!(%uid, pod = %format_args!("{namespace}/{name}"), error = reason, "pod still not served");
                described.filter(|_| matches!(refusal, Refusal::NotOwned(_)))
            }
            Refusal::NotOwned(_) => {
                tracing::error!(
                    %uid, pod = %format_args!("{namespace}/{name}"), error = reason, retry_in = ?RETRY_INTERVAL,
                    "a pod is refused: it would speak under the identity of another"
                );
                described
            }
            Refusal::Listen(_) => {
                tracing::warn!(
                    %uid, pod = %format_args!("{namespace}/{name}"), error = reason, retry_in = ?RETRY_INTERVAL,
                    "cannot serve a pod"
                );
                None
            }
        };
        if matches!(refusal, Refusal::NotOwned(NotOwned::Foreign { .. })) {
            self.events.count_wrong_namespace();
        }
        self.events.waits(&uid, &pod.workload);
        self.pods.failed(uid, Waiting { pod, reason: reason.clone(), contradicted }, Instant::now());
        reason
    }

    /// Follows the mesh: which certificates are needed now, and whose namespace it contradicts now.
    ///
    /// Costs a look-up for each pod and each local workload; more only for those that changed.
    async fn mesh_changed(&mut self) {
        let mesh = self.shared.mesh.load();
        // Without a node all workloads of the mesh would be ours; those of served pods are asked for all the same.
        if self.shared.config.node.is_some() {
            carry_out(&self.shared.certificates, self.identities.follow(mesh.local_workloads()));
        }
        for (uid, workload, error) in self.contradictions(&mesh) {
            if let Some(served) = self.pods.evict(&uid) {
                let pod = served.pod.clone();
                self.end(uid.clone(), served, Stop::Now);
                self.refuse(uid, pod, &Refusal::NotOwned(error), Some(workload), None);
            }
        }
        let another_description = |waiting: &Waiting| {
            let now = local_workload(&mesh, &waiting.pod.workload);
            waiting.contradicted.is_some() && !is_same(now, waiting.contradicted.as_ref())
        };
        for (uid, waiting) in self.pods.take_waiting(another_description) {
            // Failing again puts it back, and has been logged.
            drop(self.attempt(uid, waiting.pod, Some(&waiting.reason)).await);
        }
    }

    /// The served pods whose namespaces the mesh contradicts now. The others have the identity that it gives them.
    fn contradictions(&mut self, mesh: &Mesh) -> Vec<(PodUid, Arc<Workload>, NotOwned)> {
        let mut found = Vec::new();
        for (uid, served) in self.pods.running_mut() {
            let name = &served.pod.workload;
            let workload = local_workload(mesh, name);
            if is_same(workload, served.described.as_ref()) {
                continue;
            }
            let pod = served.run.pod();
            if let Some(workload) = workload
                && let Err(error) = pod.check(workload)
            {
                found.push((uid.clone(), workload.clone(), error));
                continue;
            }
            let identity = workload.and_then(|workload| identity_of(name, workload));
            carry_out(&self.shared.certificates, self.identities.pod(pod.instance, identity));
            served.described = workload.cloned();
        }
        found
    }

    async fn retry(&mut self) {
        for (uid, waiting) in self.pods.take_waiting(|_| true) {
            // Failing again puts it back, and has been logged.
            drop(self.attempt(uid, waiting.pod, Some(&waiting.reason)).await);
        }
    }

    /// Stops a pod's proxy in the background.
    fn end(&mut self, uid: PodUid, served: Served, how: Stop) {
        self.stopping.spawn(async move {
            let instance = served.run.pod().instance;
            served.run.stop(how).await;
            (uid, instance)
        });
    }

    /// A proxy has ended: only now, that none of its connections can ask for it, is its certificate given up.
    fn ended(&mut self, ended: Option<(PodUid, PodInstance)>) {
        let Some((uid, instance)) = ended else { return };
        self.events.down(&uid);
        carry_out(&self.shared.certificates, self.identities.pod(instance, None));
    }
}

fn carry_out(certificates: &CertificateStore, changes: Changes) {
    changes.unwanted.iter().for_each(|identity| certificates.forget(identity));
    changes.wanted.iter().for_each(|identity| certificates.prefetch(identity));
}

fn local_workload<'a>(mesh: &'a Mesh, name: &WorkloadName) -> Option<&'a Arc<Workload>> {
    mesh.local_workload(&name.name, &name.namespace, &name.service_account)
}

/// Whether both are the very same description, or there is none.
fn is_same(one: Option<&Arc<Workload>>, other: Option<&Arc<Workload>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// Who a pod is: its trust domain is the mesh's word, its namespace and account are the node agent's. None when that
/// makes no SPIFFE name.
fn identity_of(name: &WorkloadName, workload: &Workload) -> Option<SpiffeId> {
    SpiffeId::new(&workload.trust_domain, &name.namespace, &name.service_account).ok()
}

/// Resolves at `time`; never when there is none.
async fn arrival(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
