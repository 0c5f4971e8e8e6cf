//! Stage 2: where a connection goes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use identity::SpiffeId;
use xds_client::{Demand, Demanded};

use super::accept::{Accepted, Listener};
use super::pod::LocalPod;
use crate::dns::ResolveError;
use crate::state::Mesh;
use crate::state::inbound::InboundError;
use crate::state::model::{Service, Workload};
use crate::state::route::{self, Family, Route, RouteError, Target};

/// How long a pod's first connections wait for the mesh to know the pod.
const WORKLOAD_PATIENCE: Duration = Duration::from_secs(5);

/// How long a destination's name may take to resolve.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(5);

/// Why it is not known where a connection goes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClassifyError {
    /// The mesh does not know the pod whose connection it is.
    #[error("failed to fetch information about local workload: {namespace}/{name}")]
    UnknownWorkload {
        /// Kubernetes namespace.
        namespace: String,
        /// Pod name.
        name: String,
    },
    /// It is one of our own ports.
    #[error("attempted recursive call to ourselves")]
    SelfCall,
    /// There is no way to the destination.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The peer asks for something that is not here.
    #[error(transparent)]
    Inbound(#[from] InboundError),
    /// The pod has no identity that it could use.
    #[error("identity error")]
    Identity(#[from] super::pod::NoIdentity),
    /// Whether the mesh knows the destination cannot be found out at the moment.
    #[error("the control plane did not answer for {0}")]
    NotAnswered(String),
    /// The destination is known by a name that does not resolve.
    #[error("no ip addresses were resolved for {0}")]
    Unresolved(Arc<str>),
    /// The destination is known by a name that has no addresses.
    #[error("no ip addresses were resolved for {0}: the name has none")]
    ResolvedEmpty(Arc<str>),
}

/// The workload that the pod is, as soon as the mesh knows it. Nothing is decided on behalf of one that the pod's network
/// namespace is not.
pub(crate) async fn local_workload(pod: &LocalPod) -> Result<Arc<Workload>, ClassifyError> {
    let name = &pod.pod.workload;
    let workload = pod
        .worker
        .shared()
        .mesh
        .wait_for_workload(&name.name, &name.namespace, &name.service_account, WORKLOAD_PATIENCE)
        .await
        .ok_or_else(|| ClassifyError::UnknownWorkload {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
        })?;
    pod.pod.check(&workload).map_err(super::pod::NoIdentity::from)?;
    Ok(workload)
}

/// What decides where a connection goes that the pod's application opened.
pub(crate) async fn outbound(pod: &LocalPod, accepted: &Accepted) -> Result<Decision, ClassifyError> {
    let source = local_workload(pod).await?;
    let shared = pod.worker.shared();
    if let Some(demand) = &shared.demand {
        let unknown = |mesh: &Mesh| route::unknown(mesh, &shared.routing, &source, accepted.destination);
        learn(pod, demand, unknown).await?;
    }
    Ok(Decision {
        mesh: shared.mesh.load(),
        source,
        listener: accepted.listener,
        client: accepted.peer,
        destination: accepted.destination,
        // Seeded from the generator that each thread has.
        rng: fastrand::Rng::new(),
    })
}

/// What a connection's route is decided by. It does not change, so the route can be decided again when the endpoint cannot be
/// reached, and then differs in nothing but the endpoint: the same weighted waypoint, for one, is drawn again.
#[derive(Debug)]
pub(crate) struct Decision {
    mesh: Arc<Mesh>,
    /// The workload whose connection it is.
    pub(crate) source: Arc<Workload>,
    /// Where it came in.
    pub(crate) listener: Listener,
    client: SocketAddr,
    destination: SocketAddr,
    rng: fastrand::Rng,
}

impl Decision {
    /// The route, past what the pod avoids at the moment.
    pub(crate) fn route(&self, pod: &LocalPod) -> Result<Route, RouteError> {
        let shared = pod.worker.shared();
        let avoid = shared.avoided.at(pod.pod.instance.number(), Instant::now());
        let (config, mut rng) = (&shared.routing, self.rng.clone());
        route::route(&self.mesh, config, &self.source, self.client.ip(), self.destination, avoid, &mut rng)
    }
}

/// Names that one connection may ask the control plane for: the destination, its waypoint, that of its gateway, and one
/// more if one of them changes meanwhile.
const MOST_DEMANDS: usize = 4;

/// Connections of a pod on one worker that may wait for the control plane at once, so that no pod takes all places.
const MOST_ASKING: usize = 256;

/// Asks the control plane for what is `unknown`, one thing after another. What it does not know does not exist; what it
/// does not answer for may be anything, so nothing is decided about it.
pub(super) async fn learn(
    pod: &LocalPod,
    demand: &Demand,
    unknown: impl Fn(&Mesh) -> Option<String>,
) -> Result<(), ClassifyError> {
    let mesh = &pod.worker.shared().mesh;
    for _ in 0..MOST_DEMANDS {
        let Some(name) = unknown(&mesh.load()) else { return Ok(()) };
        let answer = match pod.ask(MOST_ASKING) {
            Some(_asking) => demand.wait(&name).await,
            None => Demanded::Unavailable,
        };
        match answer {
            Demanded::Found => {}
            Demanded::Absent => return Ok(()),
            Demanded::TimedOut | Demanded::Unavailable => return Err(ClassifyError::NotAnswered(name)),
        }
    }
    Ok(())
}

/// The address of a target; looks it up, on behalf of `source`, if it only has a name.
pub(crate) async fn resolve(
    pod: &LocalPod,
    source: &Arc<Workload>,
    target: &Target,
) -> Result<SocketAddr, ClassifyError> {
    let (hostname, port, family) = match target {
        Target::Address(address) => return Ok(*address),
        Target::Resolve { hostname, port, family } => (hostname, *port, *family),
    };
    let lookup = pod.worker.shared().dns.resolve(hostname.clone(), source.clone());
    let answers = tokio::time::timeout(RESOLVE_DEADLINE, lookup).await.unwrap_or(Err(ResolveError::Failed));
    let answers = answers.map_err(|error| match error {
        ResolveError::Failed => ClassifyError::Unresolved(hostname.clone()),
        ResolveError::Empty => ClassifyError::ResolvedEmpty(hostname.clone()),
    })?;
    let (preferred, others): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|address| address.is_ipv4() == (family == Family::Ipv4));
    let chosen = fastrand::choice(if preferred.is_empty() { others } else { preferred });
    chosen
        .map(|address| SocketAddr::new(address, port))
        .ok_or_else(|| ClassifyError::ResolvedEmpty(hostname.clone()))
}

/// A connection that arrived in plaintext goes on to where it was going, unless that is ourselves.
pub(crate) fn plaintext(pod: &LocalPod, destination: SocketAddr) -> Result<(), ClassifyError> {
    match pod.worker.shared().routing.illegal_ports.contains(&destination.port()) {
        true => Err(ClassifyError::SelfCall),
        false => Ok(()),
    }
}

/// The workload at a peer's address. Where the peer has proved an identity, a workload of another identity is not it:
/// the address may have changed hands.
pub(crate) fn peer_workload(
    mesh: &Mesh,
    network: &str,
    address: IpAddr,
    identity: Option<&SpiffeId>,
) -> Option<Arc<Workload>> {
    let workload = mesh.workload_by_address(network, address)?;
    identity.is_none_or(|identity| is_of(workload, identity)).then(|| workload.clone())
}

fn is_of(workload: &Workload, identity: &SpiffeId) -> bool {
    *workload.trust_domain == *identity.trust_domain()
        && *workload.namespace == *identity.namespace()
        && *workload.service_account == *identity.service_account()
}

/// The service by which a client reached `workload`: the one it names, if the workload belongs to it, else the first
/// that leads to `port`.
pub(crate) fn guess_service(
    mesh: &Mesh,
    workload: &Workload,
    named: Option<&str>,
    port: u16,
) -> Option<Arc<Service>> {
    let by_name = mesh.services_of(workload).find(|service| named == Some(&*service.host.hostname));
    let leads_here = |service: &&Arc<Service>| {
        let ports = workload.ports_for(&service.host).into_iter().chain([&service.ports]);
        ports.flat_map(|ports| ports.iter()).any(|(_, target)| target == port)
    };
    by_name.or_else(|| mesh.services_of(workload).find(leads_here)).cloned()
}
