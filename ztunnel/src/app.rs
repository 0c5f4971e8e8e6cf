//! The wiring: makes each part once, in the order of their needs, waits, and takes them down again.
//!
//! ```text
//!   configuration -> mesh <-------------- control plane (xDS)
//!                     |                          |
//!                     |    certificates <-- authority (CA)
//!                     v          v
//!                    workers, each with its pods <-- node agent (ZDS)
//! ```
//!
//! All of it but the workers lives on the thread that calls [`run`]. Losing the control plane, the authority or the agent
//! takes nothing down: each is tried again by itself, and what is known goes on to be used.

mod observe;
mod own_proxy;

use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use identity::{CaClient, CertificateStore, Issuer, LocalCa, OnBehalfOf, Revocations, StoreOptions, Tls};
use redirect::socket::ListenError;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;
use tokio::task::JoinSet;
use xds_client::discovery::Node;
use xds_client::{Client, Demand, Mode};

use crate::config::{AddressDemand, CaSource, Config, MeshSource, ProxyMode, XdsConfig};
use crate::control_plane::{ControlPlane, RootWatch, SharedChannel};
use crate::dns::DnsHandle;
use crate::metrics::{DataPlane, DnsMetrics};
use crate::pods::{AgentMisbehaved, PodEvents, PodManager};
use crate::proxy::{BoundPod, Handshakes, Listener, Stop};
use crate::readiness::{self, Probes, Readiness, Task};
use crate::shutdown::StopSignals;
use crate::state::avoided::Avoided;
use crate::state::route::RouteConfig;
use crate::state::xds::XdsState;
use crate::state::{Mesh, MeshState, StaticConfig, StaticConfigError};
use crate::worker::{Shared, Workers};
use observe::{Observed, Observers};

/// Why the proxy could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The process lacks a privilege.
    #[error("the process may not do what a node proxy must")]
    Privileges(#[from] redirect::privileges::PreflightError),
    /// The file that describes the mesh cannot be read.
    #[error("cannot read {}", path.display())]
    MeshFile {
        /// `LOCAL_XDS_PATH`.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The description of the mesh is wrong.
    #[error("the description of the mesh is wrong")]
    Mesh(#[from] StaticConfigError),
    /// The local certificate authority cannot be used.
    #[error("the local certificate authority in LOCAL_CA_PATH cannot be used")]
    LocalCa(#[from] identity::LocalCaError),
    /// A port of ours cannot be used.
    #[error("cannot serve {what} on port {port}")]
    Port {
        /// What is served there.
        what: &'static str,
        /// The port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// A listener of the dedicated proxy cannot be bound.
    #[error("the proxy of this workload cannot start")]
    Listen(#[from] ListenError),
    /// The node agent is not one.
    #[error(transparent)]
    Agent(#[from] AgentMisbehaved),
    /// A part of the control thread is gone, which is a bug.
    #[error("a part that must always run has {0}")]
    Part(&'static str),
    /// The system refused a thread, a signal handler or a runtime.
    #[error("cannot start")]
    System(#[from] io::Error),
}

/// Runs the proxy until it is told to stop and has drained. Blocks the calling thread, which becomes the control
/// thread: mesh state, certificates, node agent and what operators see live on it, so none of them delays a byte.
pub fn run(config: Config) -> Result<(), AppError> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    let outcome = runtime.block_on(control(config));
    // A lookup or a file that hangs is no reason to outlive the grace period.
    runtime.shutdown_timeout(LEFTOVER_DEADLINE);
    outcome
}

/// How long blocking calls may take that nobody waits for any more.
const LEFTOVER_DEADLINE: Duration = Duration::from_secs(1);

async fn control(config: Config) -> Result<(), AppError> {
    let mut signals = StopSignals::catch()?;
    let descriptors = redirect::privileges::raise_descriptor_limit()?;
    if matches!(config.mode, ProxyMode::Shared { .. }) {
        redirect::privileges::preflight()?;
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), mode = ?config.mode, workers = config.workers, descriptors, "starting"
    );

    let readiness = Readiness::default();
    let ready = Tasks::register(&readiness, &config);
    // Everything that runs beside the pods. Ends with this function.
    let mut beside = JoinSet::new();
    let observers = Observers::bind(&config)?;
    let probes = Probes::bind(config.sockets.families.wildcard(readiness::PORT))
        .map_err(|source| AppError::Port { what: "readiness", port: readiness::PORT, source })?;
    beside.spawn_local(probes.serve(readiness.clone()));

    let config = Arc::new(config);
    let mesh = Arc::new(MeshState::new(read_mesh(&config)?));
    let (revocations, certificates) = identities(&config, &mut beside)?;
    let events = Arc::new(PodEvents::default());
    let counters = DataPlane::default();
    let dns_metrics = Arc::new(DnsMetrics::default());
    let dns = DnsHandle::start(config.clone(), mesh.clone(), dns_metrics.clone(), &counters.threads)?;
    let observed = Observed {
        config: &config,
        mesh: &mesh,
        certificates: &certificates,
        revocations: &revocations,
        events: &events,
        counters: &counters,
        dns: &dns_metrics,
    };
    let xds_metrics = observers.serve(observed, &mut beside);
    let (known, mesh_known) = watch::channel(false);
    let demand = match &config.xds {
        Some(xds) => {
            let tls = Tls::new(config.tls);
            follow_control_plane(
                xds,
                tls,
                mesh.clone(),
                xds_metrics,
                Known { known, ready: ready.mesh },
                &mut beside,
            )
        }
        None => {
            Known { known, ready: ready.mesh }.tell();
            None
        }
    };

    let routing = RouteConfig {
        network: config.network.clone(),
        illegal_ports: Listener::own_ports(&config.sockets).into(),
    };
    let shared = Arc::new(Shared {
        config: config.clone(),
        mesh,
        routing,
        certificates,
        counters,
        dns,
        avoided: Avoided::new(Instant::now()),
        handshakes: Handshakes::default(),
        demand,
    });
    let workers = Workers::start(config.workers, &shared)?;

    let (stop, stopping) = watch::channel(None);
    let served = async {
        match &config.mode {
            ProxyMode::Shared { agent } => {
                let own = own_proxy::bind(&config)?;
                let agent_ready = readiness.register("workload proxy manager");
                ready.proxy.done();
                ready.dns.into_iter().for_each(|dns| dns.done());
                let manager =
                    PodManager::new(agent, shared.clone(), workers.handles().clone(), events, agent_ready);
                let own = own_proxy::serve(
                    own,
                    workers.handles(),
                    &shared.dns,
                    is_known(mesh_known.clone()),
                    stopped(stopping.clone()),
                );
                let pods = manager.run(is_known(mesh_known), stopped(stopping));
                tokio::try_join!(async { pods.await.map_err(AppError::from) }, async {
                    own.await;
                    Ok(())
                })?;
                Ok(())
            }
            ProxyMode::Dedicated { workload } => {
                let bound = BoundPod::bind(workload.clone(), None, &config)?;
                let mut stopped = pin!(stopped(stopping));
                // Not served before, since policies would be missing. Connections wait in the kernel's queue.
                tokio::select! {
                    biased;
                    _ = &mut stopped => return Ok(()),
                    () = is_known(mesh_known) => {}
                }
                let pod = bound.serve(workers.handles(), &shared.dns).await;
                ready.proxy.done();
                ready.dns.into_iter().for_each(|dns| dns.done());
                pod.stop(stopped.await).await;
                Ok(())
            }
        }
    };
    tokio::select! {
        outcome = served => outcome,
        () = tell(&mut signals, &stop, &config) => Ok(()),
        error = ended(&mut beside) => Err(error),
    }
}

/// Waits for a part that was to run as long as the process and does not. Without it the process would go on half alive, so
/// it ends and is started again.
async fn ended(beside: &mut JoinSet<()>) -> AppError {
    match beside.join_next().await {
        Some(Err(error)) if error.is_panic() => AppError::Part("panicked"),
        Some(_) => AppError::Part("returned"),
        None => std::future::pending().await,
    }
}

/// What readiness waits for from the start.
struct Tasks {
    mesh: Task,
    proxy: Task,
    dns: Option<Task>,
}

impl Tasks {
    fn register(readiness: &Readiness, config: &Config) -> Self {
        Self {
            mesh: readiness.register("state manager"),
            proxy: readiness.register("proxy"),
            dns: config.dns.enabled.then(|| readiness.register("dns proxy")),
        }
    }
}

/// Whoever waits for the mesh to be known.
struct Known {
    known: watch::Sender<bool>,
    ready: Task,
}

impl Known {
    fn tell(&self) {
        self.ready.done();
        self.known.send_replace(true);
    }
}

/// Certificates are spread over this long when the trust roots change: every workload gets new ones.
const RENEWAL_SPREAD: Duration = Duration::from_secs(10);

/// The certificates of our pods, and who has lost the right to theirs.
fn identities(
    config: &Config,
    beside: &mut JoinSet<()>,
) -> Result<(Revocations, CertificateStore), AppError> {
    let revocations = match &config.crl {
        None => Revocations::disabled(),
        Some(path) => {
            let (revocations, driver) = Revocations::watch_file(path);
            beside.spawn_local(driver.run(std::future::pending()));
            revocations
        }
    };
    let tls = Tls::new(config.tls);
    let issuer: Arc<dyn Issuer> = match &config.ca {
        CaSource::Local(path) => Arc::new(LocalCa::open(path, config.certificate_ttl)?),
        CaSource::Remote(peer) => {
            let on_behalf_of = match config.mode {
                ProxyMode::Shared { .. } => OnBehalfOf::Workloads,
                ProxyMode::Dedicated { .. } => OnBehalfOf::Ourselves,
            };
            let channel = SharedChannel::new(ControlPlane::new(peer.clone(), tls.clone()));
            Arc::new(CaClient::new(channel, config.certificate_ttl, on_behalf_of))
        }
    };
    let tls = tls.with_revocations(revocations.clone());
    let (certificates, renewals) = CertificateStore::new(issuer, tls, StoreOptions::default());
    beside.spawn_local(renewals.run(std::future::pending()));
    if let CaSource::Remote(peer) = &config.ca {
        let (mut roots, certificates) = (RootWatch::new(&peer.roots), certificates.clone());
        beside.spawn_local(async move {
            loop {
                roots.changed().await;
                tracing::info!("the trust roots have changed: renewing all certificates");
                certificates.renew_all(RENEWAL_SPREAD);
            }
        });
    }
    Ok((revocations, certificates))
}

/// Keeps `mesh` as the control plane describes it. The handle is for single addresses, where not all are subscribed to.
fn follow_control_plane(
    xds: &XdsConfig,
    tls: Tls,
    mesh: Arc<MeshState>,
    metrics: crate::metrics::XdsMetrics,
    known: Known,
    beside: &mut JoinSet<()>,
) -> Option<Demand> {
    let node =
        Node { id: xds.node.id.clone(), cluster: String::new(), metadata: Some(xds.node.metadata.clone()) };
    let mode = match xds.addresses {
        AddressDemand::Everything => Mode::Wildcard,
        AddressDemand::OnDemand => Mode::OnDemand,
    };
    let state = XdsState::new(mesh, move |event| {
        metrics.observe(event);
        if *event == xds_client::Event::Synchronized {
            known.tell();
        }
    });
    let control_plane = ControlPlane::new(xds.peer.clone(), tls);
    let mut config = xds_client::Config::new(node, mode);
    // Each step has its own deadline, whose error says more than this one's would.
    config.connect_timeout = control_plane.longest_attempt() + Duration::from_secs(1);
    let client = Client::new(config, control_plane, state);
    let demand = client.demand();
    beside.spawn_local(client.run(std::future::pending()));
    demand
}

/// What is described locally, for a start.
fn read_mesh(config: &Config) -> Result<Mesh, AppError> {
    let mut mesh = Mesh::new(config.node.clone());
    if let Some(source) = &config.mesh {
        let (name, description) = read_description(source)?;
        for warning in &description.warnings {
            tracing::warn!("{name}{warning}");
        }
        description.apply(&mut mesh);
    }
    Ok(mesh)
}

/// The local description as it is now, and what it is called in messages.
fn read_description(source: &MeshSource) -> Result<(String, StaticConfig), AppError> {
    let (name, document) = match source {
        MeshSource::Inline(document) => ("LOCAL_XDS".to_owned(), document.clone()),
        MeshSource::File(path) => {
            let read = std::fs::read_to_string(path);
            let document = read.map_err(|source| AppError::MeshFile { path: path.clone(), source })?;
            (path.display().to_string(), document)
        }
    };
    let description = StaticConfig::parse(&name, &document)?;
    Ok((name, description))
}

async fn is_known(mut known: watch::Receiver<bool>) {
    if known.wait_for(|known| *known).await.is_err() {
        // The control plane's client is gone, which happens when the process ends.
        std::future::pending().await
    }
}

/// How the process is to stop, once it is.
async fn stopped(mut stopping: watch::Receiver<Option<Stop>>) -> Stop {
    match stopping.wait_for(Option::is_some).await.map(|how| *how) {
        Ok(Some(how)) => how,
        // Whoever would have told us is gone, so the process is ending.
        Ok(None) | Err(_) => Stop::Now,
    }
}

/// Passes the wish to stop on. Returns when even the graceful stop takes too long for whoever asked.
async fn tell(signals: &mut StopSignals, stop: &watch::Sender<Option<Stop>>, config: &Config) {
    let signal = signals.requested().await;
    tracing::info!(signal, deadline = ?config.drain_deadline, "draining: no new connections");
    stop.send_replace(Some(Stop::Drain(config.drain_deadline)));
    signals.repeated().await;
    tracing::info!("stopped at once, as asked twice");
}
