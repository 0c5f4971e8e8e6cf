//! The wiring: makes each part once, in the order of their needs, waits, and takes them down again.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use identity::{CertificateStore, LocalCa, StoreOptions, Tls};
use redirect::socket::ListenError;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;

use crate::config::{CaSource, Config, MeshSource, ProxyMode};
use crate::pods::{AgentMisbehaved, PodManager};
use crate::proxy::{BoundPod, Listener, Stop};
use crate::readiness::{self, Probes, Readiness};
use crate::shutdown::StopSignals;
use crate::state::route::RouteConfig;
use crate::state::{Mesh, MeshState, StaticConfig, StaticConfigError};
use crate::worker::{Shared, Workers};

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
    /// The configuration names a control plane or a remote certificate authority.
    #[error(
        "this version runs without a control plane: set XDS_ADDRESS to nothing, and LOCAL_CA_PATH to a directory"
    )]
    ControlPlane,
    /// The local certificate authority cannot be used.
    #[error("the local certificate authority in LOCAL_CA_PATH cannot be used")]
    LocalCa(#[from] identity::LocalCaError),
    /// The readiness port cannot be used.
    #[error("cannot serve readiness on port {}", readiness::PORT)]
    Readiness(#[source] io::Error),
    /// A listener of the dedicated proxy cannot be bound.
    #[error("the proxy of this workload cannot start")]
    Listen(#[from] ListenError),
    /// The node agent is not one.
    #[error(transparent)]
    Agent(#[from] AgentMisbehaved),
    /// The system refused a thread, a signal handler or a runtime.
    #[error("cannot start")]
    System(#[from] io::Error),
}

/// Runs the proxy until it is told to stop and has drained. Blocks the calling thread, which becomes the control
/// thread: mesh state, certificates, node agent and readiness live on it, so none of them delays a byte.
pub fn run(config: Config) -> Result<(), AppError> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(control(config))
}

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
    let mesh_ready = readiness.register("state manager");
    let proxy_ready = readiness.register("proxy");
    let probes =
        Probes::bind(config.sockets.families.wildcard(readiness::PORT)).map_err(AppError::Readiness)?;
    let probes = tokio::task::spawn_local(probes.serve(readiness.clone()));

    let CaSource::Local(local_ca) = &config.ca else { return Err(AppError::ControlPlane) };
    let mesh = read_mesh(&config)?;
    mesh_ready.done();
    let ca = LocalCa::open(local_ca, config.certificate_ttl)?;
    let (certificates, renewals) =
        CertificateStore::new(Arc::new(ca), Tls::new(config.tls), StoreOptions::default());
    let renewals = tokio::task::spawn_local(renewals.run(std::future::pending()));
    let config = Arc::new(config);
    let routing = RouteConfig { network: config.network.clone(), illegal_ports: Listener::OWN_PORTS.into() };
    let shared =
        Arc::new(Shared { config: config.clone(), mesh: MeshState::new(mesh), routing, certificates });
    let workers = Workers::start(config.workers, &shared)?;

    let (stop, stopping) = watch::channel(None);
    let served = async {
        match &config.mode {
            ProxyMode::Shared { agent } => {
                let ready = readiness.register("workload proxy manager");
                proxy_ready.done();
                let handles = workers.handles().clone();
                let manager = PodManager::new(agent, shared.clone(), handles, Arc::default(), ready);
                // The mesh has been read.
                manager.run(std::future::ready(()), stopped(stopping)).await.map_err(AppError::from)
            }
            ProxyMode::Dedicated { workload } => {
                let bound = BoundPod::bind(workload.clone(), None, &config.sockets)?;
                let pod = bound.serve(workers.handles()).await;
                proxy_ready.done();
                pod.stop(stopped(stopping).await).await;
                Ok(())
            }
        }
    };
    let outcome = tokio::select! {
        outcome = served => outcome,
        () = tell(&mut signals, &stop, &config) => Ok(()),
    };
    renewals.abort();
    probes.abort();
    outcome
}

fn read_mesh(config: &Config) -> Result<Mesh, AppError> {
    if config.xds.is_some() {
        return Err(AppError::ControlPlane);
    }
    let (name, document) = match &config.mesh {
        None => return Err(AppError::ControlPlane),
        Some(MeshSource::Inline(document)) => ("LOCAL_XDS".to_owned(), document.clone()),
        Some(MeshSource::File(path)) => {
            let read = std::fs::read_to_string(path);
            let document = read.map_err(|source| AppError::MeshFile { path: path.clone(), source })?;
            (path.display().to_string(), document)
        }
    };
    let description = StaticConfig::parse(&name, &document)?;
    for warning in &description.warnings {
        tracing::warn!("{name}{warning}");
    }
    let mut mesh = Mesh::new(config.node.clone());
    description.apply(&mut mesh);
    Ok(mesh)
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
