//! What the operator asked for: environment variables and two YAML documents, read once at start.
//!
//! Two steps. [`settings`] lists every variable with its meaning, form and default, and turns its text into a value;
//! `documents` does the same for the documents. This module turns those values into a [`Config`], the form in which the
//! rest of the program wants them. All faults are collected, so that one start reports everything there is to correct.

mod control_plane;
mod dns;
mod documents;
mod metadata;
mod print;
mod read;
pub mod settings;
mod sockets;
#[cfg(test)]
mod tests;
mod threads;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hbone::{ClientSettings, PoolSettings, ServerSettings};
use redirect::socket::Keepalive;

use crate::control_plane::TokenSource;
use crate::telemetry::{LogFilter, LogFormat};
use control_plane::Shared;
pub use control_plane::{AddressDemand, CaSource, XdsConfig};
pub use dns::{DnsAddress, DnsConfig};
use documents::ProxyConfig;
pub use metadata::NodeDescription;
use read::Reader;
pub use read::{Environment, Fault, ProcessEnvironment};
pub use sockets::{Families, SocketConfig};
use values::Compliance;
pub use values::{PolicyLog, WorkloadName};

/// Everything the proxy was asked to do. Immutable after start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whose traffic this process serves.
    pub mode: ProxyMode,
    /// This node's name: only workloads on it count as local. `None`: all do.
    pub node: Option<Arc<str>>,
    /// Network id of this node; empty is the default network.
    pub network: Arc<str>,
    /// Id of this node's cluster.
    pub cluster_id: Arc<str>,
    /// DNS suffix of the cluster.
    pub cluster_domain: Arc<str>,
    /// The workload that this process is, for the listener on its own metrics.
    pub own_workload: Option<WorkloadName>,
    /// Trust domain of this process's own identity; for information.
    pub own_trust_domain: Arc<str>,
    /// Where a part of the mesh, or all of it, is described locally. Loaded before the control plane is asked.
    pub mesh: Option<MeshSource>,
    /// The control plane; `None` when there is none.
    pub xds: Option<XdsConfig>,
    /// Who issues certificates.
    pub ca: CaSource,
    /// Lifetime asked for when a certificate is requested.
    pub certificate_ttl: Duration,
    /// File of certificate revocation lists; it may appear late. `None`: nothing is revoked.
    pub crl: Option<PathBuf>,
    /// TLS versions, key exchange and ciphers.
    pub tls: identity::TlsOptions,
    /// Options of the sockets made for pods.
    pub sockets: SocketConfig,
    /// TCP keepalive as set, also when it is off.
    pub keepalive: Keepalive,
    /// HTTP/2 settings of the tunnels we dial.
    pub client: ClientSettings,
    /// HTTP/2 settings of the tunnels we accept.
    pub server: ServerSettings,
    /// How tunnels are shared and kept.
    pub pool: PoolSettings,
    /// How long a connection of which one direction has ended may be silent in the other.
    pub half_closed: Duration,
    /// Whether tunnel responses describe this side's workload.
    pub response_baggage: bool,
    /// Whether traffic for an application tunnel is delivered to loopback.
    pub localhost_app_tunnel: bool,
    /// Port of the administration server, on loopback.
    pub admin_port: u16,
    /// Port of the metrics server, on every address.
    pub stats_port: u16,
    /// The DNS proxy.
    pub dns: DnsConfig,
    /// At which level policy decisions are logged.
    pub policy_log: PolicyLog,
    /// Metadata of this proxy, of documents and variables.
    pub metadata: BTreeMap<String, String>,
    /// Istio release that this proxy is part of.
    pub istio_version: Arc<str>,
    /// Data-plane threads; at least 1.
    pub workers: usize,
    /// How long connections may finish after shutdown was asked for.
    pub drain_deadline: Duration,
    /// Form of the log lines.
    pub log_format: LogFormat,
    /// Which events are logged.
    pub log_filter: LogFilter,
    /// What the operator should know: settings that have less of an effect than they say.
    pub warnings: Vec<Fault>,
}

/// Whose traffic this process serves.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ProxyMode {
    /// All pods that a node agent hands over on this Unix socket.
    Shared {
        /// Path of the agent's socket.
        agent: PathBuf,
    },
    /// One workload, in the process's own network namespace.
    Dedicated {
        /// The workload.
        workload: WorkloadName,
    },
}

/// Where the description of the mesh comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MeshSource {
    /// A YAML or JSON file.
    File(PathBuf),
    /// The document itself.
    Inline(String),
}

/// Every fault found in the configuration.
#[derive(Debug)]
pub struct ConfigError {
    /// The faults, in the order of the settings. Never empty.
    pub faults: Vec<Fault>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.faults.len() == 1 { "" } else { "s" };
        write!(formatter, "{} fault{plural} in the configuration", self.faults.len())?;
        self.faults.iter().try_for_each(|fault| write!(formatter, "\n  {fault}"))
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the configuration.
    ///
    /// Errors: every setting and field that cannot be read, and every pair that contradicts itself.
    pub fn read(environment: &impl Environment) -> Result<Self, ConfigError> {
        let mut read = Reader::new(environment);
        let documents = ProxyConfig::read(&mut read);
        let mode = mode(&mut read);
        let cluster_id = cluster_id(&mut read);
        let shared = Shared::read(&mut read, &cluster_id);
        let (client, server, pool) = tunnels(&mut read);
        let (sockets, keepalive) = sockets::sockets(&mut read, &mode);
        let mut config = Self {
            node: read.optional(&settings::NODE_NAME).map(Into::into),
            network: read.value(&settings::NETWORK).into(),
            cluster_domain: read.value(&settings::CLUSTER_DOMAIN).into(),
            own_workload: own_workload(&mut read),
            own_trust_domain: read.value(&settings::TRUST_DOMAIN).into(),
            mesh: mesh_source(&mut read),
            xds: control_plane::xds(&mut read, &documents, &shared),
            ca: control_plane::ca(&mut read, &shared),
            cluster_id: cluster_id.into(),
            certificate_ttl: read.value(&settings::SECRET_TTL),
            crl: read.optional(&settings::CRL_PATH).filter(|path| !path.is_empty()).map(Into::into),
            tls: tls(&mut read),
            sockets,
            keepalive,
            client,
            server,
            pool,
            response_baggage: read.value(&settings::ENABLE_RESPONSE_BAGGAGE),
            localhost_app_tunnel: read.value(&settings::LOCALHOST_APP_TUNNEL),
            admin_port: documents.admin_port.unwrap_or(settings::DEFAULT_ADMIN_PORT),
            stats_port: documents.stats_port.unwrap_or(settings::DEFAULT_STATS_PORT),
            dns: dns::dns(&mut read, &documents.metadata),
            policy_log: read.value(&settings::AUTHZ_POLICY_INFO_LOGGING),
            istio_version: read.value(&settings::ISTIO_META_ISTIO_VERSION).into(),
            workers: threads::workers(&mut read, documents.concurrency),
            half_closed: read.value(&settings::HALF_CLOSED_TIMEOUT),
            drain_deadline: drain_deadline(&mut read),
            log_format: read.value(&settings::LOG_FORMAT),
            log_filter: read.value(&settings::RUST_LOG),
            metadata: documents.metadata.into_iter().map(|(key, sourced)| (key, sourced.value)).collect(),
            warnings: Vec::new(),
            mode,
        };
        config.contradictions(&mut read);
        config.warnings = read.finish()?;
        Ok(config)
    }

    /// Settings that cannot be right together.
    fn contradictions(&self, read: &mut Reader<'_>) {
        if !read.value(&settings::ENABLE_PROXY) {
            let problem = match self.dns.enabled {
                false => "must be true when the DNS proxy is off: there would be nothing to run",
                true => "must be true in this version, which runs the DNS proxy beside the others only",
            };
            read.fault(settings::ENABLE_PROXY.name, problem);
        }
        let on_demand = self.xds.as_ref().is_some_and(|xds| xds.addresses == AddressDemand::OnDemand);
        if on_demand && self.dns.enabled {
            let problem = "cannot be used together with the DNS proxy, which has to know every service: set \
                           ISTIO_META_DNS_CAPTURE to false";
            read.fault(settings::XDS_ON_DEMAND.name, problem);
        }
        let calls = self.xds.as_ref().map(|xds| &xds.peer).or(match &self.ca {
            CaSource::Remote(peer) => Some(peer),
            CaSource::Local(_) => None,
        });
        if calls.is_some_and(|peer| matches!(peer.credentials.token, TokenSource::None)) {
            let problem = "is not set and its default file does not exist: calls to the control plane say neither who \
                           we are nor which cluster we are of";
            read.warning(settings::AUTH_TOKEN.name, problem);
        }
    }
}

fn mode(read: &mut Reader<'_>) -> ProxyMode {
    match read.value(&settings::PROXY_MODE) {
        values::Mode::Shared => ProxyMode::Shared { agent: read.value(&settings::INPOD_UDS) },
        values::Mode::Dedicated => ProxyMode::Dedicated {
            workload: read
                .required(&settings::PROXY_WORKLOAD_INFO, "is required when PROXY_MODE is dedicated"),
        },
    }
}

/// The variable of the metadata goes before that of our own.
fn cluster_id(read: &mut Reader<'_>) -> String {
    let own = read.value(&settings::CLUSTER_ID);
    read.optional(&settings::ISTIO_META_CLUSTER_ID).unwrap_or(own)
}

fn own_workload(read: &mut Reader<'_>) -> Option<WorkloadName> {
    Some(WorkloadName {
        namespace: read.optional(&settings::POD_NAMESPACE)?,
        name: read.optional(&settings::POD_NAME)?,
        service_account: read.optional(&settings::SERVICE_ACCOUNT)?,
    })
}

fn mesh_source(read: &mut Reader<'_>) -> Option<MeshSource> {
    match (read.optional(&settings::LOCAL_XDS_PATH), read.optional(&settings::LOCAL_XDS)) {
        (Some(path), None) => Some(MeshSource::File(path)),
        (None, Some(document)) => Some(MeshSource::Inline(document)),
        (Some(_), Some(_)) => {
            read.fault(settings::LOCAL_XDS.name, "only one of LOCAL_XDS_PATH or LOCAL_XDS may be set");
            None
        }
        (None, None) => {
            // A wrong path was told already.
            let path = read.machine().text(settings::LOCAL_XDS_PATH.name);
            let disabled =
                read.machine().text(settings::XDS_ADDRESS.name).is_some_and(|text| text.is_empty());
            if disabled && path.is_none() {
                let problem =
                    "is required when XDS_ADDRESS is empty: it names the file that describes the mesh";
                read.fault(settings::LOCAL_XDS_PATH.name, problem);
            }
            None
        }
    }
}

fn tunnels(read: &mut Reader<'_>) -> (ClientSettings, ServerSettings, PoolSettings) {
    let stream_window = read.value(&settings::HTTP2_STREAM_WINDOW_SIZE);
    let connection_window = read.value(&settings::HTTP2_CONNECTION_WINDOW_SIZE);
    let max_frame_size = read.value(&settings::HTTP2_FRAME_SIZE);
    let max_streams = usize::from(read.value(&settings::POOL_MAX_STREAMS_PER_CONNECTION));
    let idle_timeout = read.value(&settings::POOL_UNUSED_RELEASE_TIMEOUT);
    (
        ClientSettings {
            stream_window,
            connection_window,
            max_frame_size,
            max_streams,
            ..ClientSettings::default()
        },
        ServerSettings { stream_window, connection_window, max_frame_size, ..ServerSettings::default() },
        PoolSettings { max_streams, idle_timeout, ..PoolSettings::default() },
    )
}

fn tls(read: &mut Reader<'_>) -> identity::TlsOptions {
    let mut options = identity::TlsOptions {
        versions: read.value(&settings::TLS12_ENABLED),
        ciphers: read.value(&settings::TLS_CIPHER_PREFERENCE),
        ..identity::TlsOptions::default()
    };
    match read.value(&settings::COMPLIANCE_POLICY) {
        Compliance::KeyExchange(key_exchange) => options.key_exchange = key_exchange,
        Compliance::Fips140_3 if identity::Tls::new(options).provider().fips() => {}
        Compliance::Fips140_3 => {
            let problem =
                "fips-140-3 cannot be honoured: the cryptography of this build is not a validated module";
            read.fault(settings::COMPLIANCE_POLICY.name, problem);
        }
    }
    options
}

/// The explicit deadline, else what the pod's grace period leaves after a margin for exit, else five seconds.
fn drain_deadline(read: &mut Reader<'_>) -> Duration {
    let grace = read.optional(&settings::TERMINATION_GRACE_PERIOD_SECONDS);
    let explicit = read.optional(&settings::CONNECTION_TERMINATION_DEADLINE);
    explicit.unwrap_or_else(|| match grace {
        Some(grace) if grace > 10 => Duration::from_secs(grace - 5),
        Some(grace) => Duration::from_secs(grace.saturating_sub(1).max(1)),
        None => settings::DEFAULT_DRAIN_DEADLINE,
    })
}
