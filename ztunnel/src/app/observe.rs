//! What operators see, joined to what it shows: metrics on the stats port, the dump on the administration port.

use std::sync::Arc;

use identity::{CertificateStore, RequestOutcome, Revocations};
use tokio::task::JoinSet;

use super::{AppError, read_description};
use crate::admin::AdminServer;
use crate::admin::dump::{BuildInfo, DumpSources, PodState, ProxyState};
use crate::config::{Config, ProxyMode};
use crate::metrics::certificates::CertificateNumbers;
use crate::metrics::crl::{BySide, CrlNumbers};
use crate::metrics::pods::PodNumbers;
use crate::metrics::{self, DataPlane, DnsMetrics, MetricsServer, Registry, XdsMetrics};
use crate::pods::{self, PodEvents};
use crate::state::{MeshState, StaticConfig};
use crate::telemetry::with_causes;

/// The servers, bound and not yet serving.
pub(super) struct Observers {
    metrics: MetricsServer,
    admin: AdminServer,
}

/// What there is to see.
pub(super) struct Observed<'a> {
    pub(super) config: &'a Arc<Config>,
    pub(super) mesh: &'a Arc<MeshState>,
    pub(super) certificates: &'a CertificateStore,
    pub(super) revocations: &'a Revocations,
    pub(super) events: &'a Arc<PodEvents>,
    pub(super) counters: &'a DataPlane,
    pub(super) dns: &'a Arc<DnsMetrics>,
}

impl Observers {
    /// Takes the ports.
    pub(super) fn bind(config: &Config) -> Result<Self, AppError> {
        let (families, port) = (config.sockets.families, config.stats_port);
        let failed = |what, port| move |source| AppError::Port { what, port, source };
        let metrics = MetricsServer::bind(families.wildcard(port)).map_err(failed("metrics", port))?;
        let port = config.admin_port;
        let admin = AdminServer::bind(families, port).map_err(failed("administration", port))?;
        Ok(Self { metrics, admin })
    }

    /// Serves in tasks of `beside`. Returns the counters that the client of the control plane keeps.
    pub(super) fn serve(self, observed: Observed<'_>, beside: &mut JoinSet<()>) -> XdsMetrics {
        let mut registry = Registry::default();
        let xds = XdsMetrics::new(&mut registry);
        register(&mut registry, &observed);
        beside.spawn_local(self.metrics.serve(registry));
        let pods = matches!(observed.config.mode, ProxyMode::Shared { .. }).then(|| {
            let events = observed.events.clone();
            let gather = move || -> futures_util::future::LocalBoxFuture<'static, Vec<PodState>> {
                let pods = events.snapshot().into_iter().map(pod_state).collect();
                Box::pin(std::future::ready(pods))
            };
            Box::new(gather) as crate::admin::GatherPods
        });
        beside.spawn_local(self.admin.serve(dump_sources(&observed), pods));
        xds
    }
}

fn register(registry: &mut Registry, observed: &Observed<'_>) {
    metrics::process::register(registry, Some(&observed.config.istio_version));
    if matches!(observed.config.mode, ProxyMode::Shared { .. }) {
        let events = observed.events.clone();
        metrics::pods::register(registry, move || PodNumbers {
            active: events.active(),
            pending: events.pending(),
            started: events.started(),
            stopped: events.stopped(),
            foreign_namespaces: events.wrong_namespace(),
        });
    }
    let certificates = observed.certificates.clone();
    metrics::certificates::register(registry, move || certificate_numbers(&certificates));
    let revocations = observed.revocations.clone();
    metrics::crl::register(registry, move || crl_numbers(&revocations));
    observed.counters.register(registry);
    metrics::dns::register(registry, observed.dns, observed.config.dns.enabled);
}

fn certificate_numbers(certificates: &CertificateStore) -> CertificateNumbers {
    let mut numbers = CertificateNumbers {
        identities: certificates.identities(),
        failing: certificates.last_errors().len(),
        ..Default::default()
    };
    for (outcome, count) in certificates.requests() {
        match outcome {
            RequestOutcome::Issued => numbers.issued = count,
            failed => numbers.failed.push((failed.as_str(), count)),
        }
    }
    numbers
}

fn crl_numbers(revocations: &Revocations) -> CrlNumbers {
    let counts = revocations.counts();
    CrlNumbers {
        policy_rejections: BySide {
            source: counts.refused.source + counts.ended.source,
            destination: counts.refused.destination + counts.ended.destination,
        },
        untracked_connections: BySide {
            source: counts.untracked.source,
            destination: counts.untracked.destination,
        },
    }
}

fn dump_sources(observed: &Observed<'_>) -> DumpSources {
    let (mesh, certificates) = (observed.mesh.clone(), observed.certificates.clone());
    let config = observed.config.clone();
    DumpSources {
        mesh: Box::new(move || mesh.load()),
        certificates: Box::new(move || certificates.identities()),
        config: observed.config.to_json(),
        static_config: Box::new(move || static_config(&config)),
        version: BuildInfo::of_this_program(Some(&observed.config.istio_version)),
    }
}

/// The local description as it is now; empty when it cannot be read, which is logged.
fn static_config(config: &Config) -> StaticConfig {
    let Some(source) = &config.mesh else { return StaticConfig::default() };
    match read_description(source) {
        Ok((_, description)) => description,
        Err(error) => {
            tracing::warn!(error = with_causes(&error), "cannot show the local description of the mesh");
            StaticConfig::default()
        }
    }
}

fn pod_state((uid, status): (pods::PodUid, pods::PodStatus)) -> PodState {
    PodState {
        uid,
        workload: status.info,
        state: match status.state {
            pods::PodState::Pending => ProxyState::Pending,
            pods::PodState::Up => ProxyState::Up,
        },
        connections: None,
    }
}
