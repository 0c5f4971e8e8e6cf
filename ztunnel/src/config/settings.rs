//! Every setting: its name, form, default and meaning.
//!
//! Defaults are text and go through the same parser as what an operator writes, so the help cannot disagree with the
//! program.

use std::path::PathBuf;
use std::time::Duration;

use identity::{CipherPreference, TlsVersions};

use super::values::{self, Compliance, CpuCount, Mode, PolicyLog, WorkerCount, WorkloadName};
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

/// Port of the administration server when no document names one.
pub const DEFAULT_ADMIN_PORT: u16 = 15000;

/// Port of the metrics server when no document names one.
pub const DEFAULT_STATS_PORT: u16 = 15020;

/// Where the DNS proxy listens, on both loopback addresses, when the metadata names nothing.
pub const DEFAULT_DNS_PORT: u16 = 15053;

/// Port of the SOCKS5 listener, on loopback.
pub const SOCKS5_PORT: u16 = 15080;

macro_rules! settings {
    ($($section:literal {
        $($name:ident: $kind:ty = $default:expr, $parse:expr, $expected:literal, $meaning:literal;)*
    })*) => {
        $($(
            #[doc = $meaning]
            pub const $name: Setting<$kind> = Setting {
                name: stringify!($name),
                expected: $expected,
                default: $default,
                meaning: $meaning,
                parse: $parse,
            };
        )*)*

        /// All settings of one name each, for help texts: section, name, expected form, default, meaning.
        pub const ALL: &[Described] = &[$($(Described {
            section: $section,
            name: $name.name,
            expected: $name.expected,
            default: $name.default,
            meaning: $name.meaning,
        },)*)*];

        #[cfg(test)]
        const DEFAULTS_PARSE: &[(&str, fn() -> bool)] = &[$($((
            stringify!($name),
            || $name.default.is_none_or(|text| ($name.parse)(text).is_some()),
        ),)*)*];
    };
}

/// A setting without its type, for help texts.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// What it belongs to.
    pub section: &'static str,
    /// The variable's name.
    pub name: &'static str,
    /// What a value looks like.
    pub expected: &'static str,
    /// The value when it is not set.
    pub default: Option<&'static str>,
    /// What it does.
    pub meaning: &'static str,
}

/// Settings whose names go on as the operator likes.
pub const PREFIXES: &[Described] = &[
    prefix(
        "Control plane and certificates",
        "XDS_HEADER_<NAME>",
        "printable ASCII",
        "Sends <NAME> along with calls to the control plane.",
    ),
    prefix(
        "Control plane and certificates",
        "CA_HEADER_<NAME>",
        "printable ASCII",
        "Sends <NAME> along with certificate requests.",
    ),
    prefix(
        "Metadata",
        "ISTIO_META_<KEY>",
        "text",
        "Metadata of this proxy, sent to the control plane; goes before proxyMetadata. Of a meaning here: DNS_CAPTURE \
         (anything but true turns the DNS proxy off) and DNS_PROXY_ADDR (localhost:<port> or an address).",
    ),
    prefix("Metadata", "ISTIO_METAJSON_<KEY>", "a JSON value", "The same, structured."),
];

const fn prefix(
    section: &'static str,
    name: &'static str,
    expected: &'static str,
    meaning: &'static str,
) -> Described {
    Described { section, name, expected, default: None, meaning }
}

settings! {
    "Mode and placement" {
        ENABLE_PROXY: bool = Some("true"), values::boolean, "true or false",
            "Run the proxy. There is nothing else to run in this version, so false is refused.";
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
        CLUSTER_ID: String = Some("Kubernetes"), values::text, "a cluster id",
            "Cluster of this node.";
        CLUSTER_DOMAIN: String = Some("cluster.local"), values::text, "a DNS suffix",
            "DNS suffix of the cluster.";
        TRUST_DOMAIN: String = Some("cluster.local"), values::text, "a trust domain",
            "Trust domain of the proxy's own identity; for information.";
        POD_NAME: String = None, values::text, "a pod name",
            "The pod that the proxy runs in.";
        POD_NAMESPACE: String = None, values::text, "a namespace",
            "Its namespace.";
        SERVICE_ACCOUNT: String = None, values::text, "a service account",
            "Its service account. With the two above: the proxy's own workload.";
        INSTANCE_IP: String = Some("1.1.1.1"), values::text, "an IP address",
            "Its address, as the control plane is told.";
    }
    "Control plane and certificates" {
        XDS_ADDRESS: String = None, values::text, "host:port or https://host:port; nothing for no control plane",
            "Control plane. Not set: discoveryAddress of the proxy configuration, else istiod in istio-system.";
        CA_ADDRESS: String = None, values::text, "host:port or https://host:port; nothing for no such authority",
            "Certificate authority. Not set: istiod in istio-system.";
        KUBERNETES_SERVICE_HOST: String = None, values::text, "anything, as Kubernetes sets it",
            "Whether istiod is looked for in this cluster, or on localhost when this is not set.";
        XDS_ROOT_CA: String = Some("./var/run/secrets/istio/root-cert.pem"), values::text, "a path, PEM text, or SYSTEM",
            "Authorities that may vouch for the control plane. A file is read for every connection and may appear late.";
        CA_ROOT_CA: String = Some("./var/run/secrets/istio/root-cert.pem"), values::text, "a path, PEM text, or SYSTEM",
            "Authorities that may vouch for the certificate authority.";
        ALT_XDS_HOSTNAME: String = None, values::text, "a host name or IP address",
            "Another name that the control plane's certificate may carry.";
        ALT_CA_HOSTNAME: String = None, values::text, "a host name or IP address",
            "Another name that the certificate authority's certificate may carry.";
        AUTH_TOKEN: String = None, values::text, "a path or a token",
            "Token that authenticates us. Not set: ./var/run/secrets/tokens/istio-token if it exists, else none.";
        XDS_ON_DEMAND: bool = Some("false"), values::boolean, "true or false",
            "Learn of workloads and services when they are first needed. Not together with the DNS proxy.";
        LOCAL_XDS_PATH: PathBuf = None, values::path, "a path",
            "YAML or JSON file that describes workloads, services and policies; read before the control plane is asked.";
        LOCAL_XDS: String = None, values::text, "a YAML or JSON document",
            "The same, inline.";
        LOCAL_CA_PATH: PathBuf = None, values::path, "a path",
            "Directory of a local certificate authority, used in place of CA_ADDRESS. Made on first use; proxies that share it trust each other.";
        FAKE_CA: bool = Some("false"), values::boolean, "false; set LOCAL_CA_PATH for an authority without a control plane",
            "Not in this program.";
        SECRET_TTL: Duration = Some("24h"), values::duration, "a duration such as 24h, at most 3650d",
            "Lifetime of the certificates asked for.";
        CRL_PATH: String = None, values::text, "a path",
            "File of certificate revocation lists. It may appear late.";
    }
    "TLS" {
        TLS12_ENABLED: TlsVersions = Some("false"), values::tls_versions, "true or false",
            "Also allow TLS 1.2.";
        COMPLIANCE_POLICY: Compliance = Some(""), values::compliance, "pqc, fips-140-3, or nothing",
            "pqc: only the hybrid post-quantum key exchange X25519MLKEM768. fips-140-3: only where the build's cryptography is validated.";
        TLS_CIPHER_PREFERENCE: CipherPreference = Some("aes128-first"), values::ciphers, "aes128-first, aes256-first or aes256-only",
            "Which AES key length is offered first, or whether only the longer one is.";
    }
    "Sockets and tunnels" {
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
        HALF_CLOSED_TIMEOUT: Duration = Some("1h"), values::duration, "a duration such as 1h, at most 3650d",
            "How long a connection of which one direction has ended may be silent in the other.";
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
        UNSTABLE_ENABLE_SOCKS5: bool = Some("false"), values::boolean, "true or false",
            "SOCKS5 listener on 127.0.0.1:15080 of every pod. Names need the DNS proxy not to be off.";
        PREFERED_SERVICE_NAMESPACE: String = None, values::text, "a namespace",
            "Namespace whose services the DNS proxy prefers.";
    }
    "Threads, shutdown and logs" {
        ZTUNNEL_WORKER_THREADS: WorkerCount = None, values::worker_count, "a number up to 65535, 0 for all CPUs, or a percentage such as 50%",
            "Data-plane threads. Not set: concurrency of the proxy configuration, else from the CPU limit and request, else a quarter of the CPUs, at least 2.";
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
        AUTHZ_POLICY_INFO_LOGGING: PolicyLog = Some("false"), values::policy_log, "true or false",
            "Log policy decisions at info and not at debug.";
    }
    "Metadata" {
        PROXY_CONFIG: String = None, values::text, "a YAML document",
            "Proxy configuration: discoveryAddress, proxyAdminPort, statsPort, concurrency, proxyMetadata. Goes before defaultConfig in ./etc/istio/config/mesh.";
        ISTIO_META_CLUSTER_ID: String = None, values::text, "a cluster id",
            "Cluster of this node; goes before CLUSTER_ID.";
        ISTIO_META_ISTIO_VERSION: String = Some("unknown"), values::text, "a version",
            "Istio release that this proxy is part of, as it is told to the control plane.";
    }
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
