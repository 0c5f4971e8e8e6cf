//! The configuration as it is shown to people and tools.
//!
//! Names and shapes are those of the `config` object in the dumps of Istio's ztunnel; what only we have stands beside it
//! under names of ours. Header values and the description of the mesh are left out, and how we authenticate altogether.

use std::sync::Arc;
use std::time::Duration;

use identity::{CipherPreference, KeyExchange, TlsVersions};
use redirect::socket::{PortSharing, Transparency};
use serde_json::{Map, Value, json};

use super::{
    AddressDemand, CaSource, Config, DnsAddress, Families, MeshSource, PolicyLog, ProxyMode, WorkloadName,
    settings,
};
use crate::control_plane::{PeerConfig, RootSource};
use crate::proxy::Listener;
use crate::readiness;
use crate::telemetry::LogFormat;

/// Characters of a PEM text that are shown.
const PEM_EXCERPT: usize = 48;

impl Config {
    /// The effective configuration as a JSON object, without secrets.
    pub fn to_json(&self) -> Value {
        let parts = [self.placement(), self.control(), self.data_path(), self.own()];
        Value::Object(parts.into_iter().flatten().collect())
    }

    fn placement(&self) -> Map<String, Value> {
        let (mode, agent, dedicated) = match &self.mode {
            ProxyMode::Shared { agent } => ("Shared", Some(agent), None),
            ProxyMode::Dedicated { workload } => ("Dedicated", None, Some(workload)),
        };
        let identity = self.own_workload.as_ref().map(|own| {
            let WorkloadName { namespace, service_account, .. } = own;
            format!("spiffe://{}/ns/{namespace}/sa/{service_account}", self.own_trust_domain)
        });
        object(json!({
            "proxy": true,
            "proxyMode": mode,
            "proxyArgs": std::env::args().skip(1).collect::<Vec<_>>().join(" "),
            "proxyMetadata": self.metadata,
            "proxyWorkloadInformation": dedicated.map(workload),
            "inpodUds": agent,
            "localNode": self.node,
            "network": self.network,
            "clusterId": self.cluster_id,
            "clusterDomain": self.cluster_domain,
            "ztunnelIdentity": identity,
            "ztunnelWorkload": self.own_workload.as_ref().map(workload),
            "numWorkerThreads": self.workers,
            "selfTerminationDeadline": duration(self.drain_deadline),
            "fakeSelfInbound": false,
        }))
    }

    fn control(&self) -> Map<String, Value> {
        let xds = Shown::of(self.xds.as_ref().map(|xds| &xds.peer));
        let ca = Shown::of(match &self.ca {
            CaSource::Remote(peer) => Some(peer),
            CaSource::Local(_) => None,
        });
        let on_demand = self.xds.as_ref().is_some_and(|xds| xds.addresses == AddressDemand::OnDemand);
        object(json!({
            "xdsAddress": xds.address,
            "xdsRootCert": xds.roots,
            "altXdsHostname": xds.alternative,
            "xdsHeaders": xds.headers,
            "xdsOnDemand": on_demand,
            "caAddress": ca.address,
            "caRootCert": ca.roots,
            "altCaHostname": ca.alternative,
            "caHeaders": ca.headers,
            "fakeCa": false,
            "secretTtl": duration(self.certificate_ttl),
            "crlPath": self.crl,
        }))
    }

    fn data_path(&self) -> Map<String, Value> {
        let listener = |port| json!(self.sockets.families.wildcard(port));
        let localhost = |port| json!({ "Localhost": [self.sockets.families == Families::Both, port] });
        let keepalive = self.keepalive;
        let mut own_ports = Listener::own_ports(&self.sockets);
        own_ports.sort_unstable();
        object(json!({
            "adminAddr": localhost(self.admin_port),
            "statsAddr": { "SocketAddr": listener(self.stats_port) },
            "readinessAddr": { "SocketAddr": listener(readiness::PORT) },
            "inboundAddr": listener(Listener::Tunnel.port()),
            "inboundPlaintextAddr": listener(Listener::Plaintext.port()),
            "outboundAddr": listener(Listener::Outbound.port()),
            "socks5Addr": self.sockets.socks5.then(|| localhost(settings::SOCKS5_PORT)),
            "dnsProxy": self.dns.enabled,
            "dnsProxyAddr": match self.dns.address {
                DnsAddress::Localhost(port) => localhost(port),
                DnsAddress::Socket(address) => json!({ "SocketAddr": address }),
            },
            "dnsResolverCfg": null,
            "dnsResolverOpts": null,
            "preferedServiceNamespace": self.dns.preferred_namespace,
            "illegalPorts": own_ports,
            "ipv6Enabled": self.sockets.families == Families::Both,
            "packetMark": self.sockets.mark,
            "requireOriginalSource": match self.sockets.transparency {
                Transparency::BestEffort => None,
                Transparency::Require => Some(true),
                Transparency::Off => Some(false),
            },
            "inpodPortReuse": self.sockets.sharing == PortSharing::ReusePort,
            "socketConfig": {
                "keepaliveEnabled": self.sockets.keepalive.is_some(),
                "keepaliveTime": duration(keepalive.idle),
                "keepaliveInterval": duration(keepalive.interval),
                "keepaliveRetries": keepalive.retries,
                "userTimeoutEnabled": self.sockets.user_timeout.is_some(),
            },
            "windowSize": self.client.stream_window,
            "connectionWindowSize": self.client.connection_window,
            "frameSize": self.client.max_frame_size,
            "poolMaxStreamsPerConn": self.pool.max_streams,
            "poolUnusedReleaseTimeout": duration(self.pool.idle_timeout),
            "localhostAppTunnel": self.localhost_app_tunnel,
            "enableEnhancedBaggage": self.response_baggage,
        }))
    }

    /// What only this proxy has, or shows.
    fn own(&self) -> Map<String, Value> {
        object(json!({
            "halfClosedTimeout": duration(self.half_closed),
            "localCaPath": match &self.ca {
                CaSource::Local(directory) => Some(directory),
                CaSource::Remote(_) => None,
            },
            "localXds": match &self.mesh {
                Some(MeshSource::File(path)) => json!({ "File": path }),
                Some(MeshSource::Inline(_)) => json!("Inline"),
                None => Value::Null,
            },
            "xdsNodeId": self.xds.as_ref().map(|xds| &xds.node.id),
            "istioVersion": self.istio_version,
            "tlsVersions": match self.tls.versions {
                TlsVersions::Tls13 => json!(["1.3"]),
                TlsVersions::Tls12And13 => json!(["1.3", "1.2"]),
            },
            "tlsKeyExchange": match self.tls.key_exchange {
                KeyExchange::ClassicalFirst => "ClassicalFirst",
                KeyExchange::HybridOnly => "HybridOnly",
            },
            "tlsCipherPreference": match self.tls.ciphers {
                CipherPreference::Aes128First => "Aes128First",
                CipherPreference::Aes256First => "Aes256First",
                CipherPreference::Aes256Only => "Aes256Only",
            },
            "logFormat": match self.log_format {
                LogFormat::Text => "plain",
                LogFormat::Json => "json",
            },
            "logFilter": self.log_filter.text,
            "authzPolicyInfoLogging": self.policy_log == PolicyLog::Info,
        }))
    }
}

/// A peer as it is shown.
#[derive(Default)]
struct Shown {
    address: Option<String>,
    roots: Option<Value>,
    alternative: Option<String>,
    headers: Vec<[String; 2]>,
}

impl Shown {
    fn of(peer: Option<&Arc<PeerConfig>>) -> Self {
        let Some(peer) = peer else { return Self::default() };
        let headers = peer.credentials.headers.iter();
        Self {
            address: Some(peer.endpoint.to_string()),
            roots: Some(match &peer.roots {
                RootSource::File(path) => json!({ "File": path }),
                RootSource::System => json!("System"),
                RootSource::Pem(text) => {
                    let excerpt: String = text.chars().take(PEM_EXCERPT).collect();
                    json!({ "Static": format!("{excerpt}...") })
                }
            }),
            alternative: peer.alternative_name.as_ref().map(|name| name.to_str().into_owned()),
            headers: headers.map(|header| [header.name().to_owned(), "<redacted>".to_owned()]).collect(),
        }
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

fn workload(name: &WorkloadName) -> Value {
    json!({ "name": name.name, "namespace": name.namespace, "serviceAccount": name.service_account })
}

fn duration(duration: Duration) -> Value {
    json!({ "secs": duration.as_secs(), "nanos": duration.subsec_nanos() })
}
