//! What the operator asked for: environment variables, read once at start.
//!
//! Two steps. [`settings`] lists every variable with its meaning, form and default, and turns its text into a value.
//! This module turns those values into a [`Config`], the form in which the rest of the program wants them. All faults
//! are collected, so that one start reports everything there is to correct.

mod read;
pub mod settings;
mod threads;
mod values;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hbone::{ClientSettings, PoolSettings, ServerSettings};
use redirect::socket::{Keepalive, PortSharing, Transparency};

use crate::telemetry::{LogFilter, LogFormat};
use read::Reader;
pub use read::{Environment, Fault, ProcessEnvironment};
pub use values::WorkloadName;

/// Everything the proxy was asked to do. Immutable after start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whose traffic this process serves.
    pub mode: ProxyMode,
    /// This node's name: only workloads on it count as local. `None`: all do.
    pub node: Option<Arc<str>>,
    /// Network id of this node; empty is the default network.
    pub network: Arc<str>,
    /// Where the mesh is described.
    pub mesh: MeshSource,
    /// Directory of the local certificate authority.
    pub local_ca: PathBuf,
    /// Lifetime asked for when a certificate is requested.
    pub certificate_ttl: Duration,
    /// TLS versions, key exchange and ciphers.
    pub tls: identity::TlsOptions,
    /// Options of the sockets made for pods.
    pub sockets: SocketConfig,
    /// HTTP/2 settings of the tunnels we dial.
    pub client: ClientSettings,
    /// HTTP/2 settings of the tunnels we accept.
    pub server: ServerSettings,
    /// How tunnels are shared and kept.
    pub pool: PoolSettings,
    /// Whether tunnel responses describe this side's workload.
    pub response_baggage: bool,
    /// Whether traffic for an application tunnel is delivered to loopback.
    pub localhost_app_tunnel: bool,
    /// Data-plane threads; at least 1.
    pub workers: usize,
    /// How long connections may finish after shutdown was asked for.
    pub drain_deadline: Duration,
    /// Form of the log lines.
    pub log_format: LogFormat,
    /// Which events are logged.
    pub log_filter: LogFilter,
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

/// Options of the sockets made for pods.
#[derive(Clone, Debug)]
pub struct SocketConfig {
    /// Mark on our packets, by which the pod's rules know them.
    pub mark: Option<u32>,
    /// How another proxy may listen beside us.
    pub sharing: PortSharing,
    /// Whether a client's address is kept towards the application.
    pub transparency: Transparency,
    /// TCP keepalive; `None` is off.
    pub keepalive: Option<Keepalive>,
    /// How long sent bytes may stay unacknowledged; `None` leaves it to the kernel.
    pub user_timeout: Option<Duration>,
    /// Address families to listen on.
    pub families: Families,
}

/// Address families to listen on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Families {
    /// `0.0.0.0` only.
    Ipv4,
    /// `[::]`, which also serves IPv4.
    Both,
}

impl Families {
    /// Every address of these families, at `port`.
    pub fn wildcard(self, port: u16) -> SocketAddr {
        let address: IpAddr = match self {
            Self::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::Both => Ipv6Addr::UNSPECIFIED.into(),
        };
        SocketAddr::new(address, port)
    }
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
    /// Errors: every setting that cannot be read, and every pair that contradicts itself.
    pub fn read(environment: &impl Environment) -> Result<Self, ConfigError> {
        let mut read = Reader::new(environment);
        let mode = mode(&mut read);
        let mesh = mesh_source(&mut read);
        read.unsupported(&settings::XDS_ADDRESS);
        read.unsupported(&settings::CA_ADDRESS);
        let window = read.value(&settings::HTTP2_STREAM_WINDOW_SIZE);
        let connection_window = read.value(&settings::HTTP2_CONNECTION_WINDOW_SIZE);
        let frame = read.value(&settings::HTTP2_FRAME_SIZE);
        let streams = read.value(&settings::POOL_MAX_STREAMS_PER_CONNECTION);
        let config = Self {
            node: read.optional(&settings::NODE_NAME).map(Into::into),
            network: read.value(&settings::NETWORK).into(),
            mesh,
            local_ca: read.value(&settings::LOCAL_CA_PATH),
            certificate_ttl: read.value(&settings::SECRET_TTL),
            tls: tls(&mut read),
            sockets: sockets(&mut read, &mode),
            client: ClientSettings {
                stream_window: window,
                connection_window,
                max_frame_size: frame,
                max_streams: usize::from(streams),
                ..ClientSettings::default()
            },
            server: ServerSettings {
                stream_window: window,
                connection_window,
                max_frame_size: frame,
                ..ServerSettings::default()
            },
            pool: PoolSettings {
                max_streams: usize::from(streams),
                idle_timeout: read.value(&settings::POOL_UNUSED_RELEASE_TIMEOUT),
                ..PoolSettings::default()
            },
            response_baggage: read.value(&settings::ENABLE_RESPONSE_BAGGAGE),
            localhost_app_tunnel: read.value(&settings::LOCALHOST_APP_TUNNEL),
            workers: threads::workers(&mut read),
            drain_deadline: drain_deadline(&mut read),
            log_format: read.value(&settings::LOG_FORMAT),
            log_filter: read.value(&settings::RUST_LOG),
            mode,
        };
        read.finish(config)
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

fn mesh_source(read: &mut Reader<'_>) -> MeshSource {
    match (read.optional(&settings::LOCAL_XDS_PATH), read.optional(&settings::LOCAL_XDS)) {
        (Some(path), None) => MeshSource::File(path),
        (None, Some(document)) => MeshSource::Inline(document),
        (Some(_), Some(_)) => {
            read.fault(&settings::LOCAL_XDS, "only one of LOCAL_XDS_PATH or LOCAL_XDS may be set");
            MeshSource::Inline(String::new())
        }
        (None, None) => {
            read.fault(&settings::LOCAL_XDS_PATH, "is required: it names the file that describes the mesh");
            MeshSource::Inline(String::new())
        }
    }
}

fn sockets(read: &mut Reader<'_>, mode: &ProxyMode) -> SocketConfig {
    let shared = matches!(mode, ProxyMode::Shared { .. });
    let mark = match read.optional(&settings::PACKET_MARK) {
        Some(mark) => Some(mark).filter(|mark| *mark != 0),
        None => shared.then_some(settings::DEFAULT_PACKET_MARK),
    };
    let sharing = match read.value(&settings::INPOD_PORT_REUSE) && shared {
        true => PortSharing::ReusePort,
        false => PortSharing::ReuseAddress,
    };
    let transparency = match read.optional(&settings::ENABLE_ORIG_SRC) {
        None => Transparency::BestEffort,
        Some(true) => Transparency::Require,
        Some(false) => Transparency::Off,
    };
    let keepalive = Keepalive {
        idle: read.value(&settings::KEEPALIVE_TIME),
        interval: read.value(&settings::KEEPALIVE_INTERVAL),
        retries: read.value(&settings::KEEPALIVE_RETRIES),
    };
    let user_timeout = keepalive.idle.saturating_add(keepalive.interval.saturating_mul(keepalive.retries));
    let families = match read.value(&settings::IPV6_ENABLED) {
        true => Families::Both,
        false => Families::Ipv4,
    };
    SocketConfig {
        mark,
        sharing,
        transparency,
        user_timeout: read.value(&settings::USER_TIMEOUT_ENABLED).then_some(user_timeout),
        keepalive: read.value(&settings::KEEPALIVE_ENABLED).then_some(keepalive),
        families,
    }
}

fn tls(read: &mut Reader<'_>) -> identity::TlsOptions {
    identity::TlsOptions {
        versions: read.value(&settings::TLS12_ENABLED),
        key_exchange: read.value(&settings::COMPLIANCE_POLICY),
        ..identity::TlsOptions::default()
    }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let environment: BTreeMap<String, String> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Config::read(&environment)
    }

    #[test]
    fn a_mesh_file_is_enough() {
        let config = read(&[("LOCAL_XDS_PATH", "mesh.yaml")]).unwrap();
        assert_eq!(config.mode, ProxyMode::Shared { agent: "/var/run/ztunnel/ztunnel.sock".into() });
        assert_eq!(config.sockets.mark, Some(1337));
        assert_eq!(config.sockets.sharing, PortSharing::ReusePort);
        assert_eq!(config.drain_deadline, Duration::from_secs(5));
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let error = read(&[
            ("PROXY_MODE", "both"),
            ("PACKET_MARK", "-1"),
            ("KEEPALIVE_TIME", "soon"),
            ("RUST_LOG", "banana"),
        ])
        .unwrap_err();
        let text = error.to_string();
        for name in ["PROXY_MODE", "PACKET_MARK", "KEEPALIVE_TIME", "LOCAL_XDS_PATH", "RUST_LOG"] {
            assert!(text.contains(name), "{name} in {text}");
        }
        assert_eq!(error.faults.len(), 5, "{text}");
    }

    #[test]
    fn a_dedicated_proxy_marks_nothing_and_needs_its_workload() {
        let mesh = ("LOCAL_XDS_PATH", "mesh.yaml");
        let error = read(&[mesh, ("PROXY_MODE", "dedicated")]).unwrap_err();
        assert!(error.to_string().contains("PROXY_WORKLOAD_INFO"));
        let config =
            read(&[mesh, ("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", "ns/pod/sa")]).unwrap();
        assert_eq!(config.sockets.mark, None);
        assert_eq!(config.sockets.sharing, PortSharing::ReuseAddress);
    }

    #[test]
    fn a_shared_proxy_has_no_use_for_a_workload() {
        let mesh = ("LOCAL_XDS_PATH", "mesh.yaml");
        assert!(read(&[mesh, ("PROXY_WORKLOAD_INFO", "not a workload")]).is_ok());
        let error = read(&[mesh, ("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", "not a workload")]);
        assert_eq!(error.unwrap_err().faults.len(), 1);
    }

    #[test]
    fn a_mark_of_zero_means_no_mark() {
        let config = read(&[("LOCAL_XDS_PATH", "mesh.yaml"), ("PACKET_MARK", "0")]).unwrap();
        assert_eq!(config.sockets.mark, None);
    }

    #[test]
    fn no_keepalive_is_too_long_to_add_up() {
        let keepalive = |interval| {
            let patient = [("KEEPALIVE_TIME", "3650d"), ("KEEPALIVE_RETRIES", "4294967295")];
            let pairs =
                [("LOCAL_XDS_PATH", "a"), ("USER_TIMEOUT_ENABLED", "true"), ("KEEPALIVE_INTERVAL", interval)];
            read(&[&pairs[..], &patient].concat())
        };
        let sum = Duration::from_secs(3_650 * 86_400 * (1 << 32));
        assert_eq!(keepalive("3650d").unwrap().sockets.user_timeout, Some(sum));
        assert!(keepalive("9999999999999999999").is_err());
    }

    #[test]
    fn two_sources_of_the_mesh_contradict_each_other() {
        let error = read(&[("LOCAL_XDS_PATH", "a"), ("LOCAL_XDS", "{}")]).unwrap_err();
        assert!(error.to_string().contains("only one of LOCAL_XDS_PATH or LOCAL_XDS may be set"));
    }

    #[test]
    fn an_empty_control_plane_address_means_none_and_another_is_a_fault() {
        let mesh = ("LOCAL_XDS_PATH", "mesh.yaml");
        assert!(read(&[mesh, ("XDS_ADDRESS", "")]).is_ok());
        assert!(read(&[mesh, ("XDS_ADDRESS", "istiod:15012")]).is_err());
    }

    #[test]
    fn the_grace_period_leaves_a_margin_for_exit() {
        let deadline = |grace| {
            let pairs = [("LOCAL_XDS_PATH", "a"), ("TERMINATION_GRACE_PERIOD_SECONDS", grace)];
            read(&pairs).unwrap().drain_deadline.as_secs()
        };
        assert_eq!(
            [deadline("30"), deadline("11"), deadline("10"), deadline("1"), deadline("0")],
            [25, 6, 9, 1, 1]
        );
    }
}
