//! Every setting: its name, form, default and meaning.
//!
//! Defaults are text and go through the same parser as what an operator writes, so the help cannot disagree with the
//! program.

use std::path::PathBuf;
use std::time::Duration;

use identity::{KeyExchange, TlsVersions};

use super::values::{self, CpuCount, Mode, WorkerCount, WorkloadName};
use crate::telemetry::{LogFilter, LogFormat};

/// One environment variable.
pub struct Setting<T> {
    /// The variable's name.
    pub name: &'static str,
    /// What a value looks like, units included; completes "expected …".
    pub expected: &'static str,
    /// The value when the variable is not set. `None`: there is none, or it depends on other settings.
    pub default: Option<&'static str>,
    /// What it does.
    pub meaning: &'static str,
    pub(super) parse: fn(&str) -> Option<T>,
}

impl<T> Setting<T> {
    pub(super) fn default_value(&self) -> T {
        self.default.and_then(self.parse).expect("a setting read with a default has one that parses")
    }
}

/// Mark on our packets in shared mode: the pods' rules name this value.
pub const DEFAULT_PACKET_MARK: u32 = 1337;

/// Time for connections to finish when nothing says otherwise.
pub const DEFAULT_DRAIN_DEADLINE: Duration = Duration::from_secs(5);

macro_rules! settings {
    ($($name:ident: $kind:ty = $default:expr, $parse:expr, $expected:literal, $meaning:literal;)*) => {
        $(
            #[doc = $meaning]
            pub const $name: Setting<$kind> = Setting {
                name: stringify!($name),
                expected: $expected,
                default: $default,
                meaning: $meaning,
                parse: $parse,
            };
        )*

        /// All settings, for help texts: name, expected form, default, meaning.
        pub const ALL: &[Described] = &[$(Described {
            name: $name.name,
            expected: $name.expected,
            default: $name.default,
            meaning: $name.meaning,
        }),*];

        #[cfg(test)]
        const DEFAULTS_PARSE: &[(&str, fn() -> bool)] = &[$((
            stringify!($name),
            || $name.default.is_none_or(|text| ($name.parse)(text).is_some()),
        )),*];
    };
}

/// A setting without its type, for help texts.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// The variable's name.
    pub name: &'static str,
    /// What a value looks like.
    pub expected: &'static str,
    /// The value when it is not set.
    pub default: Option<&'static str>,
    /// What it does.
    pub meaning: &'static str,
}

settings! {
    PROXY_MODE: Mode = Some("shared"), values::mode, "shared or dedicated",
        "Serve all pods a node agent hands over (shared), or one workload in this network namespace (dedicated).";
    PROXY_WORKLOAD_INFO: WorkloadName = None, values::workload_name, "namespace/name/service-account",
        "The workload of a dedicated proxy; not read in shared mode.";
    INPOD_UDS: PathBuf = Some("/var/run/ztunnel/ztunnel.sock"), values::path, "a path",
        "Unix socket of the node agent.";
    NODE_NAME: String = None, values::text, "a node name",
        "This node: only workloads on it count as local. Not set: all do.";
    NETWORK: String = Some(""), values::text, "a network id",
        "Network of this node.";
    LOCAL_XDS_PATH: PathBuf = None, values::path, "a path",
        "YAML or JSON file that describes workloads, services and policies.";
    LOCAL_XDS: String = None, values::text, "a YAML or JSON document",
        "The same, inline.";
    LOCAL_CA_PATH: PathBuf = Some("/var/run/ztunnel/ca"), values::path, "a path",
        "Directory of the local certificate authority. Made on first use; proxies that share it trust each other.";
    SECRET_TTL: Duration = Some("24h"), values::duration, "a duration such as 24h, at most 3650d",
        "Lifetime of the certificates asked for.";
    XDS_ADDRESS: String = None, values::text, "nothing: the mesh comes from LOCAL_XDS_PATH or LOCAL_XDS",
        "Control plane.";
    CA_ADDRESS: String = None, values::text, "nothing: certificates come from LOCAL_CA_PATH",
        "Certificate authority.";
    TLS12_ENABLED: TlsVersions = Some("false"), values::tls_versions, "true or false",
        "Also allow TLS 1.2.";
    COMPLIANCE_POLICY: KeyExchange = Some(""), values::key_exchange, "pqc, or nothing",
        "pqc: only the hybrid post-quantum key exchange X25519MLKEM768.";
    IPV6_ENABLED: bool = Some("true"), values::boolean, "true or false",
        "Listen on IPv6 as well.";
    PACKET_MARK: u32 = None, values::number, "a number from 0 to 4294967295; 0 for none",
        "Mark on our packets, by which pods' rules know them. Default 1337 in shared mode, none in dedicated mode.";
    ENABLE_ORIG_SRC: bool = None, values::boolean, "true or false",
        "Keep the client's address towards the application. Not set: where the kernel allows it.";
    INPOD_PORT_REUSE: bool = Some("true"), values::boolean, "true or false",
        "Let another proxy listen beside this one, as during an upgrade.";
    KEEPALIVE_ENABLED: bool = Some("true"), values::boolean, "true or false",
        "TCP keepalive on connections to and from applications and tunnels.";
    KEEPALIVE_TIME: Duration = Some("180s"), values::duration, "a duration such as 180s, at most 3650d",
        "Idle time before the first keepalive probe.";
    KEEPALIVE_INTERVAL: Duration = Some("180s"), values::duration, "a duration such as 180s, at most 3650d",
        "Time between keepalive probes.";
    KEEPALIVE_RETRIES: u32 = Some("9"), values::number, "a number",
        "Unanswered keepalive probes that end a connection.";
    USER_TIMEOUT_ENABLED: bool = Some("false"), values::boolean, "true or false",
        "End connections whose sent bytes stay unacknowledged for as long as keepalive would take.";
    POOL_MAX_STREAMS_PER_CONNECTION: u16 = Some("100"), values::positive, "a number from 1 to 65535",
        "Connections carried by one tunnel.";
    POOL_UNUSED_RELEASE_TIMEOUT: Duration = Some("5m"), values::duration, "a duration such as 5m, at most 3650d",
        "How long an unused tunnel is kept.";
    HTTP2_STREAM_WINDOW_SIZE: u32 = Some("4194304"), values::window, "a number of bytes from 1 to 2147483647",
        "Bytes a peer may send on one stream before we have passed them on.";
    HTTP2_CONNECTION_WINDOW_SIZE: u32 = Some("16777216"), values::connection_window, "a number of bytes from 65535 to 2147483647",
        "The same for a whole tunnel.";
    HTTP2_FRAME_SIZE: u32 = Some("1048576"), values::frame_size, "a number of bytes from 16384 to 16777215",
        "Largest frame we accept.";
    ENABLE_RESPONSE_BAGGAGE: bool = Some("true"), values::boolean, "true or false",
        "Describe this side's workload in tunnel responses.";
    LOCALHOST_APP_TUNNEL: bool = Some("true"), values::boolean, "true or false",
        "Deliver traffic for an application tunnel to loopback.";
    ZTUNNEL_WORKER_THREADS: WorkerCount = None, values::worker_count, "a number up to 65535, 0 for all CPUs, or a percentage such as 50%",
        "Data-plane threads. Not set: from the CPU limit and request, else a quarter of the CPUs, at least 2.";
    ZTUNNEL_CPU_LIMIT: CpuCount = None, values::cpu_count, "a number of CPUs from 1 to 65535",
        "CPUs of which percentages are taken.";
    ZTUNNEL_RESOURCE_CPU_LIMIT: CpuCount = None, values::cpu_quantity, "CPUs such as 2, 1.5 or 500m",
        "CPU limit of the pod; goes before ZTUNNEL_CPU_LIMIT.";
    ZTUNNEL_RESOURCE_CPU_REQUEST: CpuCount = None, values::cpu_quantity, "CPUs such as 2, 1.5 or 500m",
        "CPU request of the pod: raises the default number of threads to at least this.";
    CONNECTION_TERMINATION_DEADLINE: Duration = None, values::duration, "a duration such as 25s, at most 3650d",
        "How long connections may finish after shutdown was asked for.";
    TERMINATION_GRACE_PERIOD_SECONDS: u64 = None, values::seconds, "a number of seconds, at most 315360000",
        "Grace period of the pod, from which that deadline is taken when it is not set. Neither set: 5s.";
    RUST_LOG: LogFilter = Some("info"), values::log_filter, "a comma list of level or target=level, such as info,access=off",
        "Which events are logged: off, error, warn, info, debug or trace; the longest matching target counts.";
    LOG_FORMAT: LogFormat = Some("plain"), values::log_format, "plain or json",
        "Form of the log lines.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_can_be_read() {
        for (name, parses) in DEFAULTS_PARSE {
            assert!(parses(), "{name}");
        }
    }

    #[test]
    fn no_setting_is_listed_twice() {
        let mut names: Vec<_> = ALL.iter().map(|setting| setting.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
