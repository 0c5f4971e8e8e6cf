use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use redirect::socket::PortSharing;
use xds_client::prost_types::Value;
use xds_client::prost_types::value::Kind;

use super::*;
use crate::control_plane::{PeerConfig, RootSource};

const NO_CONTROL_PLANE: [(&str, &str); 4] =
    [("LOCAL_XDS_PATH", "mesh.yaml"), ("XDS_ADDRESS", ""), ("CA_ADDRESS", ""), ("LOCAL_CA_PATH", "ca")];

/// A machine with these variables and files.
#[derive(Default)]
struct Machine {
    variables: BTreeMap<String, String>,
    files: BTreeMap<String, String>,
}

impl Environment for Machine {
    fn text(&self, name: &str) -> Option<String> {
        self.variables.text(name)
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        self.variables.names(prefix)
    }

    fn file(&self, path: &Path) -> io::Result<String> {
        self.files.get(path.to_str().unwrap()).cloned().ok_or(io::ErrorKind::NotFound.into())
    }

    fn exists(&self, path: &Path) -> bool {
        self.files.contains_key(path.to_str().unwrap())
    }
}

fn owned(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::read(&owned(pairs))
}

fn read_on(variables: &[(&str, &str)], files: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::read(&Machine { variables: owned(variables), files: owned(files) })
}

/// The names of what is wrong, in order.
fn faults(result: Result<Config, ConfigError>) -> Vec<String> {
    result.unwrap_err().faults.into_iter().map(|fault| fault.name.into_owned()).collect()
}

fn warnings(config: &Config) -> Vec<&str> {
    config.warnings.iter().map(|warning| warning.name.as_ref()).collect()
}

fn xds_peer(config: &Config) -> &PeerConfig {
    &config.xds.as_ref().unwrap().peer
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
        ("XDS_ADDRESS", ""),
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
    let config = read(&[mesh, ("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", "ns/pod/sa")]).unwrap();
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
fn an_empty_control_plane_address_means_none_and_no_address_the_default_one() {
    let none = read(&NO_CONTROL_PLANE).unwrap();
    assert!(none.xds.is_none() && matches!(none.ca, CaSource::Local(_)));
    let outside = read(&[]).unwrap();
    assert_eq!(xds_peer(&outside).endpoint.to_string(), "https://localhost:15012");
    let inside = read(&[("KUBERNETES_SERVICE_HOST", "")]).unwrap();
    assert_eq!(xds_peer(&inside).endpoint.to_string(), "https://istiod.istio-system.svc:15012");
    let CaSource::Remote(ca) = &inside.ca else { panic!("{:?}", inside.ca) };
    assert_eq!(ca.endpoint.to_string(), "https://istiod.istio-system.svc:15012");
    let named = read(&[("XDS_ADDRESS", "istiod:15012"), ("CA_ADDRESS", "https://ca:15012")]).unwrap();
    assert_eq!(xds_peer(&named).endpoint.to_string(), "https://istiod:15012");
}

#[test]
fn the_mesh_comes_from_the_control_plane_or_a_file_or_both_but_not_from_nowhere() {
    let both = read(&[("XDS_ADDRESS", "istiod:15012"), ("LOCAL_XDS", "{}")]).unwrap();
    assert!(both.xds.is_some() && both.mesh.is_some());
    assert_eq!(read(&[]).unwrap().mesh, None);
    assert_eq!(faults(read(&[("XDS_ADDRESS", "")])), ["LOCAL_XDS_PATH"]);
}

#[test]
fn certificates_come_from_somewhere() {
    assert_eq!(faults(read(&[("CA_ADDRESS", "")])), ["CA_ADDRESS"]);
    let local = read(&[("CA_ADDRESS", "istiod:15012"), ("LOCAL_CA_PATH", "ca")]).unwrap();
    assert!(matches!(&local.ca, CaSource::Local(directory) if directory == Path::new("ca")));
    assert!(warnings(&local).contains(&"CA_ADDRESS"));
    let error = read(&[("FAKE_CA", "true"), ("CA_ADDRESS", "")]).unwrap_err().to_string();
    assert!(error.contains("FAKE_CA") && error.contains("LOCAL_CA_PATH"), "{error}");
    assert!(read(&[("FAKE_CA", "false")]).is_ok());
}

#[test]
fn the_documents_of_the_mesh_and_of_the_pod_are_merged_field_by_field() {
    let mesh = "
ingressClass: istio
defaultConfig:
  discoveryAddress: istiod-canary.istio-system.svc:15012
  proxyAdminPort: 16000
  concurrency: 7
  tracing: {sampling: 1.0}
  proxyMetadata: {ISTIO_META_DNS_CAPTURE: false, A: mesh, B: mesh, C: mesh}
";
    let pod = "
statsPort: 16020
concurrency: 3
proxyMetadata: {ISTIO_META_B: pod, C: pod}
";
    let variables = [("PROXY_CONFIG", pod), ("ISTIO_META_C", "variable")];
    let config = read_on(&variables, &[("./etc/istio/config/mesh", mesh)]).unwrap();
    assert_eq!(xds_peer(&config).endpoint.authority(), "istiod-canary.istio-system.svc:15012");
    assert_eq!((config.admin_port, config.stats_port, config.workers), (16000, 16020, 3));
    let metadata = [("A", "mesh"), ("B", "pod"), ("C", "variable"), ("DNS_CAPTURE", "false")];
    assert_eq!(config.metadata, owned(&metadata));
    assert!(!config.dns.enabled);
    let explicit = [("XDS_ADDRESS", "other:15012"), ("ZTUNNEL_WORKER_THREADS", "2")];
    let config = read_on(&explicit, &[("./etc/istio/config/mesh", mesh)]).unwrap();
    assert_eq!((xds_peer(&config).endpoint.host(), config.workers), ("other", 2));
}

#[test]
fn documents_may_be_empty_and_need_no_metadata() {
    for document in ["", "{}", "concurrency: null", "# nothing"] {
        let config =
            read_on(&[("PROXY_CONFIG", document)], &[("./etc/istio/config/mesh", document)]).unwrap();
        assert_eq!((config.admin_port, config.stats_port), (15000, 15020), "{document:?}");
    }
}

#[test]
fn a_fault_in_a_document_names_the_document_and_the_field() {
    let mesh = "defaultConfig: {statsPort: 70000, proxyMetadata: {A: [1]}}";
    let pod = "{concurrency: many, proxyMetadata: 3}";
    let error = read_on(&[("PROXY_CONFIG", pod)], &[("./etc/istio/config/mesh", mesh)]);
    assert_eq!(
        faults(error),
        [
            "./etc/istio/config/mesh: defaultConfig.statsPort",
            "./etc/istio/config/mesh: defaultConfig.proxyMetadata.A",
            "PROXY_CONFIG: concurrency",
            "PROXY_CONFIG: proxyMetadata",
        ]
    );
    assert_eq!(faults(read(&[("PROXY_CONFIG", "a: [")])), ["PROXY_CONFIG"]);
    assert_eq!(faults(read(&[("PROXY_CONFIG", "text")])), ["PROXY_CONFIG"]);
    assert_eq!(
        faults(read(&[("PROXY_CONFIG", "discoveryAddress: http://a")])),
        ["PROXY_CONFIG: discoveryAddress"]
    );
}

#[test]
fn threads_follow_the_examples_of_the_reference() {
    let threads = |pairs: &[(&str, &str)]| read(pairs).unwrap().workers;
    let asked = |asked, cpus| threads(&[("ZTUNNEL_WORKER_THREADS", asked), ("ZTUNNEL_CPU_LIMIT", cpus)]);
    assert_eq!([asked("4", "64"), asked("50%", "8"), asked("30%", "16"), asked("10%", "4")], [4, 4, 5, 1]);
    assert_eq!(asked("0", "6"), 6);
    let limit = |limit| threads(&[("ZTUNNEL_RESOURCE_CPU_LIMIT", limit), ("ZTUNNEL_CPU_LIMIT", "64")]);
    assert_eq!([limit("16"), limit("1"), limit("500m"), limit("2500m"), limit("1.5")], [16, 1, 1, 3, 2]);
    assert_eq!(threads(&[("ZTUNNEL_CPU_LIMIT", "32")]), 8);
    assert!(threads(&[("ZTUNNEL_RESOURCE_CPU_REQUEST", "8")]) >= 8);
    assert!(threads(&[("ZTUNNEL_RESOURCE_CPU_REQUEST", "1")]) >= 2);
    let both = [("ZTUNNEL_RESOURCE_CPU_LIMIT", "4"), ("ZTUNNEL_RESOURCE_CPU_REQUEST", "8")];
    assert_eq!(threads(&both), 8);
    let concurrency = |text| threads(&[("PROXY_CONFIG", text), ("ZTUNNEL_RESOURCE_CPU_LIMIT", "6")]);
    assert_eq!([concurrency("concurrency: 3"), concurrency("concurrency: 0")], [3, 6]);
    for wrong in ["101%", "0%", "-1", "1.5", "all"] {
        assert_eq!(faults(read(&[("ZTUNNEL_WORKER_THREADS", wrong)])), ["ZTUNNEL_WORKER_THREADS"], "{wrong}");
    }
    for wrong in ["0", "-1", "inf", "NaN", ""] {
        assert_eq!(faults(read(&[("ZTUNNEL_RESOURCE_CPU_LIMIT", wrong)])), ["ZTUNNEL_RESOURCE_CPU_LIMIT"]);
    }
}

#[test]
fn the_dns_proxy_listens_where_the_metadata_says() {
    let address = |text| read(&[("ISTIO_META_DNS_PROXY_ADDR", text)]).map(|config| config.dns.address);
    assert_eq!(read(&[]).unwrap().dns.address, DnsAddress::Localhost(15053));
    assert_eq!(address("localhost:53").unwrap(), DnsAddress::Localhost(53));
    assert_eq!(address("[::1]:53").unwrap(), DnsAddress::Socket("[::1]:53".parse().unwrap()));
    let error = address("nowhere").unwrap_err().to_string();
    assert!(error.contains("DNS_PROXY_ADDR") && error.contains("nowhere"), "{error}");
    let captures = |text| read(&[("ISTIO_META_DNS_CAPTURE", text)]).unwrap().dns.enabled;
    assert_eq!([captures("TRUE"), captures("yes"), captures("")], [true, false, false]);
}

#[test]
fn asking_on_demand_excludes_the_dns_proxy() {
    assert_eq!(faults(read(&[("XDS_ON_DEMAND", "true")])), ["XDS_ON_DEMAND"]);
    let config = read(&[("XDS_ON_DEMAND", "true"), ("ISTIO_META_DNS_CAPTURE", "false")]).unwrap();
    assert_eq!(config.xds.unwrap().addresses, AddressDemand::OnDemand);
}

#[test]
fn a_proxy_that_is_off_leaves_nothing_to_run() {
    assert_eq!(faults(read(&[("ENABLE_PROXY", "false")])), ["ENABLE_PROXY"]);
}

#[test]
fn the_node_is_described_as_the_control_plane_knows_it() {
    let variables = [
        ("INSTANCE_IP", "10.1.2.3"),
        ("POD_NAME", "ztunnel-x7k2p"),
        ("POD_NAMESPACE", "istio-system"),
        ("NODE_NAME", "node-3"),
        ("CLUSTER_DOMAIN", "other.local"),
        ("PROXY_CONFIG", "proxyMetadata: {NAME: document, K: document}"),
        ("ISTIO_META_K", "variable"),
        ("ISTIO_META_CLUSTER_ID", "west"),
        ("CLUSTER_ID", "east"),
        ("ISTIO_METAJSON_CLUSTER_ID", r#"{"list": [null, true, 1.5, "text"]}"#),
        ("ISTIO_METAJSON_WRONG", "{"),
    ];
    let config = read(&variables).unwrap();
    assert_eq!(&*config.cluster_id, "west");
    assert!(warnings(&config).contains(&"ISTIO_METAJSON_WRONG"));
    let node = config.xds.unwrap().node;
    assert_eq!(node.id, "ztunnel~10.1.2.3~ztunnel-x7k2p.istio-system~istio-system.svc.cluster.local");
    let text = |key: &str| match &node.metadata.fields.get(key)?.kind {
        Some(Kind::StringValue(text)) => Some(text.as_str()),
        _ => None,
    };
    assert_eq!(
        [text("NAME"), text("K"), text("NODE_NAME")],
        [Some("document"), Some("variable"), Some("node-3")]
    );
    assert_eq!([text("NAMESPACE"), text("INSTANCE_IPS")], [Some("istio-system"), Some("10.1.2.3")]);
    assert_eq!(node.metadata.fields.len(), 6);
    let Some(Kind::StructValue(json)) = &node.metadata.fields["CLUSTER_ID"].kind else { panic!("{node:?}") };
    let Some(Kind::ListValue(list)) = &json.fields["list"].kind else { panic!("{json:?}") };
    let kinds = [
        Kind::NullValue(0),
        Kind::BoolValue(true),
        Kind::NumberValue(1.5),
        Kind::StringValue("text".to_owned()),
    ];
    assert_eq!(list.values, kinds.map(|kind| Value { kind: Some(kind) }));
}

#[test]
fn a_node_of_which_nothing_is_known_still_has_an_id() {
    let node = read(&[]).unwrap().xds.unwrap().node;
    assert_eq!(node.id, "ztunnel~1.1.1.1~.~.svc.cluster.local");
}

#[test]
fn the_token_is_a_file_where_there_is_one() {
    let token = |variables: &[(&str, &str)], files: &[(&str, &str)]| {
        xds_peer(&read_on(variables, files).unwrap()).credentials.token.clone()
    };
    let default = "./var/run/secrets/tokens/istio-token";
    assert!(matches!(token(&[], &[]), TokenSource::None));
    assert!(matches!(token(&[], &[(default, "")]), TokenSource::File(path) if path == Path::new(default)));
    assert!(matches!(token(&[("AUTH_TOKEN", "mine")], &[("mine", "")]), TokenSource::File(_)));
    assert!(matches!(token(&[("AUTH_TOKEN", "mine")], &[]), TokenSource::Literal(_)));
    assert!(matches!(token(&[("AUTH_TOKEN", "/late/token")], &[]), TokenSource::File(_)));
    assert_eq!(faults(read(&[("AUTH_TOKEN", "")])), ["AUTH_TOKEN"]);
    assert!(warnings(&read(&[]).unwrap()).contains(&"AUTH_TOKEN"));
}

#[test]
fn roots_are_a_file_the_platform_or_text() {
    let roots = |text| read(&[("XDS_ROOT_CA", text)]).map(|config| xds_peer(&config).roots.clone());
    let default = xds_peer(&read(&[]).unwrap()).roots.clone();
    assert_eq!(default, RootSource::File("./var/run/secrets/istio/root-cert.pem".into()));
    assert_eq!(roots("SYSTEM").unwrap(), RootSource::System);
    for wrong in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "two\nlines"] {
        assert_eq!(roots(wrong).unwrap_err().faults[0].name, "XDS_ROOT_CA", "{wrong:?}");
    }
}

#[test]
fn what_cannot_be_sent_or_compared_is_refused() {
    let wrong = [
        ("ALT_XDS_HOSTNAME", "not a name"),
        ("ALT_CA_HOSTNAME", ""),
        ("XDS_HEADER_A B", "x"),
        ("CA_HEADER_X-BIN", "x"),
        ("CA_HEADER_X", "two\nlines"),
        ("CLUSTER_ID", "two\nlines"),
        ("XDS_ADDRESS", "http://istiod:15010"),
        ("CA_ADDRESS", "a b"),
        ("COMPLIANCE_POLICY", "fips-140-2"),
        ("TLS_CIPHER_PREFERENCE", "rot13"),
    ];
    let mut names: Vec<_> = wrong.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut found = faults(read(&wrong));
    names.sort();
    found.sort();
    assert_eq!(found, names);
}

#[test]
fn fips_is_refused_by_a_build_that_is_not_validated() {
    let error = read(&[("COMPLIANCE_POLICY", "fips-140-3")]).unwrap_err();
    assert!(error.to_string().contains("not a validated module"), "{error}");
    assert!(read(&[("COMPLIANCE_POLICY", "pqc")]).is_ok());
}

#[test]
fn settings_of_dns_and_of_revocation_are_taken_without_a_word() {
    let config = read(&[
        ("ISTIO_META_DNS_CAPTURE", "true"),
        ("PREFERED_SERVICE_NAMESPACE", "shop"),
        ("AUTH_TOKEN", "token"),
    ]);
    assert_eq!(warnings(&config.unwrap()), [""; 0]);
    let quiet = read(&[("CRL_PATH", ""), ("AUTH_TOKEN", "token")]).unwrap();
    assert_eq!((warnings(&quiet), &quiet.crl), (Vec::new(), &None));
}

#[test]
fn an_ordinary_deployment_starts_without_a_word() {
    let variables = [
        ("CA_ADDRESS", "istiod.istio-system.svc:15012"),
        ("XDS_ADDRESS", "istiod.istio-system.svc:15012"),
        ("RUST_LOG", "info"),
        ("RUST_BACKTRACE", "1"),
        ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
        ("INPOD_ENABLED", "true"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
        ("POD_NAME", "ztunnel-x7k2p"),
        ("POD_NAMESPACE", "istio-system"),
        ("NODE_NAME", "node-3"),
        ("INSTANCE_IP", "10.1.2.3"),
        ("SERVICE_ACCOUNT", "ztunnel"),
        ("ZTUNNEL_CPU_LIMIT", "8"),
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
    ];
    let config = read_on(&variables, &[("./var/run/secrets/tokens/istio-token", "")]).unwrap();
    assert_eq!(config.warnings, []);
    assert_eq!((config.workers, config.drain_deadline.as_secs()), (2, 25));
    assert_eq!(config.own_workload.unwrap().service_account, "ztunnel");
}

#[test]
fn the_configuration_is_shown_under_the_names_of_the_reference_without_secrets() {
    let variables = [
        ("XDS_HEADER_X-KEY", "s3cret"),
        ("CA_HEADER_X-KEY", "s3cret"),
        ("AUTH_TOKEN", "s3cret"),
        ("LOCAL_XDS", "s3cret: 1"),
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", "ns/pod/sa"),
        ("IPV6_ENABLED", "false"),
        ("POD_NAME", "z"),
        ("POD_NAMESPACE", "istio-system"),
        ("SERVICE_ACCOUNT", "ztunnel"),
        ("KEEPALIVE_ENABLED", "false"),
    ];
    let shown = read(&variables).unwrap().to_json();
    let text = shown.to_string();
    assert!(!text.contains("s3cret"), "{text}");
    assert_eq!(shown["xdsHeaders"], serde_json::json!([["x-key", "<redacted>"]]));
    assert_eq!(shown["proxyMode"], "Dedicated");
    assert_eq!(shown["proxyWorkloadInformation"]["serviceAccount"], "sa");
    assert_eq!(shown["adminAddr"], serde_json::json!({ "Localhost": [false, 15000] }));
    assert_eq!(shown["statsAddr"], serde_json::json!({ "SocketAddr": "0.0.0.0:15020" }));
    assert_eq!(shown["socketConfig"]["keepaliveTime"], serde_json::json!({ "secs": 180, "nanos": 0 }));
    assert_eq!(shown["ztunnelIdentity"], "spiffe://cluster.local/ns/istio-system/sa/ztunnel");
    let names = "proxy dnsProxy windowSize connectionWindowSize frameSize poolMaxStreamsPerConn \
                 poolUnusedReleaseTimeout socks5Addr adminAddr statsAddr readinessAddr inboundAddr inboundPlaintextAddr \
                 outboundAddr dnsProxyAddr illegalPorts network localNode proxyMode proxyWorkloadInformation clusterId \
                 clusterDomain caAddress caRootCert altCaHostname xdsAddress xdsRootCert altXdsHostname \
                 preferedServiceNamespace secretTtl xdsOnDemand fakeCa fakeSelfInbound selfTerminationDeadline \
                 proxyMetadata numWorkerThreads requireOriginalSource proxyArgs dnsResolverCfg dnsResolverOpts inpodUds \
                 inpodPortReuse packetMark socketConfig xdsHeaders caHeaders localhostAppTunnel ztunnelIdentity \
                 ztunnelWorkload ipv6Enabled crlPath enableEnhancedBaggage";
    for name in names.split_whitespace() {
        assert!(shown.get(name).is_some(), "{name}");
    }
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
