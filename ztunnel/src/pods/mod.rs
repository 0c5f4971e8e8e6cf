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

use std::io;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;

use identity::{CertificateStore, SpiffeId};
use redirect::socket::ListenError;
use redirect::zds::{Recovery, Request, WorkloadInfo, ZdsError};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::config::WorkloadName;
use crate::proxy::{BoundPod, Pod, RunningPod, Stop};
use crate::readiness::Task;
use crate::state::Mesh;
use crate::state::model::Workload;
use crate::telemetry::with_causes;
use crate::worker::{Shared, WorkerHandle};
pub use events::{PodEvents, PodState, PodStatus};
use identities::{Changes, Identities};
pub use inventory::PodUid;
use inventory::{Described, Inventory, Past, RETRY_INTERVAL, Waiting, Wanted};
use link::{Link, LinkEvent};
use ownership::{NotOwned, Standing};

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
    stopping: JoinSet<(PodUid, Arc<Pod>)>,
    /// When to look again at the served pods that are in doubt; `None` while none is.
    look_at: Option<Instant>,
}

/// A pod that is served.
struct Served {
    pod: Described,
    run: RunningPod,
    /// The mesh's description that its namespace was compared with.
    described: Option<Arc<Workload>>,
    /// Why it has no identity for new connections, if so.
    doubt: Option<Doubt>,
}

/// Why a pod that is served may not be what `described` says. It goes on, and is looked at again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Doubt {
    /// Its namespace does not fit, and is nobody else's.
    Outdated,
    /// Its namespace cannot be read.
    Unreadable,
}

/// When served pods are compared with the mesh.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Occasion {
    /// The mesh has changed.
    MeshChanged,
    /// Those in doubt are due.
    LookAgain,
}

/// Why a pod cannot be served now.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    /// Its namespace is another's, as far as the mesh knows.
    #[error(transparent)]
    NotOwned(#[from] NotOwned),
    /// Whose its namespace is cannot be told.
    #[error("the addresses in the network namespace cannot be read")]
    Unreadable(#[source] io::Error),
    /// Its namespace is that of another pod, as far as the agent says.
    #[error("the network namespace given for pod {uid} is that of pod {other}, which is served in it")]
    Taken {
        /// Who cannot be served.
        uid: PodUid,
        /// Who is.
        other: PodUid,
    },
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
            look_at: None,
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
                () = arrival(self.look_at) => self.compare(&self.shared.mesh.load(), Occasion::LookAgain),
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
        self.attempt(uid, pod, Before::default()).await
    }

    /// Serves the pod, or has it wait.
    async fn attempt(&mut self, uid: PodUid, pod: Described, before: Before<'_>) -> Result<(), String> {
        let described = local_workload(&self.shared.mesh.load(), &pod.workload).cloned();
        match self.start(&uid, &pod, described.as_deref()).await {
            Ok(run) => {
                let WorkloadName { namespace, name, service_account } = &pod.workload;
                tracing::info!(%uid, pod = %format_args!("{namespace}/{name}"), service_account, "pod added");
                self.events.up(&uid, &pod.workload);
                let identity = described.as_deref().and_then(|workload| identity_of(&pod.workload, workload));
                carry_out(&self.shared.certificates, self.identities.pod(run.pod().instance, identity));
                self.pods.started(uid, pod.netns.id(), Served { pod, run, described, doubt: None });
                Ok(())
            }
            Err(refusal) => Err(self.refuse(uid, pod, &refusal, described, before)),
        }
    }

    async fn start(
        &mut self,
        uid: &PodUid,
        pod: &Described,
        described: Option<&Workload>,
    ) -> Result<RunningPod, Refusal> {
        let addresses = pod.netns.addresses().map_err(Refusal::Unreadable)?;
        if let Some(workload) = described {
            ownership::judge(workload, &addresses)?;
        }
        let claimed = self.pods.claim(uid, pod.netns.id());
        if let Some((old, served)) = claimed.map_err(|other| Refusal::Taken { uid: uid.clone(), other })? {
            tracing::info!(uid = %old, by = %uid, "pod removed: its network namespace is another pod's now");
            let ended = served.run.pod().clone();
            // Its listeners would be in the way.
            served.run.stop(Stop::Now).await;
            self.ended(Some((old, ended)));
        }
        let config = &self.shared.config;
        let bound = BoundPod::bind(pod.workload.clone(), Some(pod.netns.clone()), config)?;
        bound.pod().found(addresses);
        Ok(bound.serve(&self.workers, &self.shared.dns).await)
    }

    /// Has the pod wait, and returns the reason in words.
    fn refuse(
        &mut self,
        uid: PodUid,
        pod: Described,
        refusal: &Refusal,
        described: Option<Arc<Workload>>,
        before: Before<'_>,
    ) -> String {
        let reason = with_causes(refusal);
        let WorkloadName { namespace, name, .. } = &pod.workload;
        let (pod_name, retry_in) = (format_args!("{namespace}/{name}"), RETRY_INTERVAL);
        let is_foreign = matches!(refusal, Refusal::NotOwned(_));
        // Said once, not every five seconds.
        if before.reason == Some(&reason) {
            tracing::debug!(%uid, pod = %pod_name, error = reason, "pod still not served");
        } else if is_foreign {
            tracing::error!(
                %uid, pod = %pod_name, error = reason, ?retry_in,
                "a pod is refused: it would speak under the identity of another"
            );
        } else {
            tracing::warn!(%uid, pod = %pod_name, error = reason, ?retry_in, "cannot serve a pod");
        }
        if is_foreign {
            self.events.count_wrong_namespace();
        }
        self.events.waits(&uid, &pod.workload);
        let contradicted = described.filter(|_| is_foreign);
        let waiting = Waiting { pod, reason: reason.clone(), contradicted, past: before.past };
        self.pods.failed(uid, waiting, Instant::now());
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
        self.compare(&mesh, Occasion::MeshChanged);
        let another_description = |waiting: &Waiting| {
            let now = local_workload(&mesh, &waiting.pod.workload);
            waiting.contradicted.is_some() && !is_same(now, waiting.contradicted.as_ref())
        };
        let due = self.pods.take_waiting(another_description);
        self.try_again(due).await;
    }

    /// Compares the served pods with the mesh: those that changed, and those in doubt. Evicts those whose namespaces are
    /// somebody else's.
    fn compare(&mut self, mesh: &Mesh, occasion: Occasion) {
        let mut strangers = Vec::new();
        for (uid, served) in self.pods.running_mut() {
            let workload = local_workload(mesh, &served.pod.workload);
            if served.needs_no_look(mesh, workload, occasion) {
                continue;
            }
            let standing =
                workload.map_or(Standing::Fits, |workload| standing_of(served.run.pod(), mesh, workload));
            match standing {
                Standing::Fits => {
                    if served.doubt.take().is_some() {
                        tracing::info!(%uid, "a pod has its identity again");
                    }
                    let identity = workload.and_then(|workload| identity_of(&served.pod.workload, workload));
                    let changes = self.identities.pod(served.run.pod().instance, identity);
                    carry_out(&self.shared.certificates, changes);
                }
                Standing::Strangers(error) => strangers.push((uid.clone(), workload.cloned(), error)),
                Standing::Outdated(error) => {
                    self.events.count_wrong_namespace();
                    served.withhold(uid, Doubt::Outdated, workload, &error);
                }
                Standing::Unreadable(error) => {
                    served.withhold(uid, Doubt::Unreadable, workload, &Refusal::Unreadable(error));
                }
            }
            served.described = workload.cloned();
        }
        for (uid, workload, error) in strangers {
            if let Some(served) = self.pods.evict(&uid) {
                let (pod, before) = (served.pod.clone(), Before { reason: None, past: Past::Evicted });
                self.end(uid.clone(), served, Stop::Now);
                self.refuse(uid, pod, &Refusal::NotOwned(error), workload, before);
            }
        }
        let in_doubt = self.pods.running_mut().any(|(_, served)| served.doubt.is_some());
        let due = self.look_at.filter(|_| occasion == Occasion::MeshChanged);
        self.look_at = in_doubt.then(|| due.unwrap_or_else(|| Instant::now() + RETRY_INTERVAL));
    }

    async fn retry(&mut self) {
        let due = self.pods.take_waiting(|_| true);
        self.try_again(due).await;
    }

    async fn try_again(&mut self, due: Vec<(PodUid, Waiting)>) {
        for (uid, Waiting { pod, reason, past, .. }) in due {
            // Failing again puts it back, and has been logged.
            drop(self.attempt(uid, pod, Before { reason: Some(&reason), past }).await);
        }
    }

    /// Stops a pod's proxy in the background.
    fn end(&mut self, uid: PodUid, served: Served, how: Stop) {
        self.stopping.spawn(async move {
            let pod = served.run.pod().clone();
            served.run.stop(how).await;
            (uid, pod)
        });
    }

    /// A proxy has ended: only now, that none of its connections can ask for them, are its certificates given up.
    fn ended(&mut self, ended: Option<(PodUid, Arc<Pod>)>) {
        let Some((uid, pod)) = ended else { return };
        self.events.down(&uid);
        let certificates = &self.shared.certificates;
        let WorkloadName { namespace, service_account, .. } = &pod.workload;
        let is_its = |identity: &SpiffeId| {
            *identity.namespace() == **namespace && *identity.service_account() == **service_account
        };
        let asked = certificates.identities().into_iter().map(|(identity, _)| identity).filter(is_its);
        carry_out(certificates, self.identities.ended(pod.instance, asked));
    }
}

/// What is known of a pod that is about to be tried.
#[derive(Clone, Copy, Debug, Default)]
struct Before<'a> {
    /// Why it has waited so far, in the words of the log.
    reason: Option<&'a str>,
    past: Past,
}

impl Served {
    /// Whether it has been compared with `workload`, and comparing again now would tell nothing. A pod in doubt is looked
    /// at when that is due, not each time that anything changes in the mesh, unless its namespace may be another's now.
    fn needs_no_look(&self, mesh: &Mesh, workload: Option<&Arc<Workload>>, occasion: Occasion) -> bool {
        if !is_same(workload, self.described.as_ref()) {
            return false;
        }
        match (self.doubt, occasion, workload) {
            (None, ..) => true,
            (Some(_), Occasion::LookAgain, _) | (Some(_), _, None) => false,
            (Some(_), Occasion::MeshChanged, Some(workload)) => {
                !ownership::is_anothers(mesh, workload, &self.run.pod().addresses())
            }
        }
    }

    /// The data path gives the pod no identity as long as the addresses noted do not fit. Says so, once.
    fn withhold(
        &mut self,
        uid: &PodUid,
        doubt: Doubt,
        workload: Option<&Arc<Workload>>,
        error: &(dyn std::error::Error + 'static),
    ) {
        let is_known = self.doubt == Some(doubt) && is_same(workload, self.described.as_ref());
        self.doubt = Some(doubt);
        if is_known {
            return;
        }
        let WorkloadName { namespace, name, .. } = &self.pod.workload;
        tracing::error!(
            %uid, pod = %format_args!("{namespace}/{name}"), error = with_causes(error), look_again_in = ?RETRY_INTERVAL,
            "a pod has no identity for new connections: it is not known to be the workload that the mesh describes"
        );
    }
}

/// Judges by what was found last in the pod's namespace; by a look at it only when that does not fit.
fn standing_of(pod: &Pod, mesh: &Mesh, workload: &Workload) -> Standing {
    if pod.check(workload).is_ok() {
        return Standing::Fits;
    }
    match pod.look() {
        Ok(found) => ownership::standing(mesh, workload, Ok(&found)),
        Err(error) => ownership::standing(mesh, workload, Err(error)),
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
