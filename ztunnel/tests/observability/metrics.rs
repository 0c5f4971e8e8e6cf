//! What a scrape returns: formats that parse, names, types and labels.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use identity::{IdentityState, SpiffeId};
use xds_client::{Event, ResourceType, Termination};
use ztunnel::metrics::certificates::CertificateNumbers;
use ztunnel::metrics::crl::{BySide, CrlNumbers};
use ztunnel::metrics::pods::PodNumbers;
use ztunnel::metrics::{
    Format, MetricsServer, Registry, XdsMetrics, certificates, crl, encode, pods, process,
};

use crate::http_client::{ask, get, run};

const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";

/// A registry with every area in it.
fn full() -> (Registry, XdsMetrics) {
    let mut registry = Registry::default();
    let xds = XdsMetrics::new(&mut registry);
    process::register(&mut registry, Some("1.30.1"));
    pods::register(&mut registry, || PodNumbers {
        active: 3,
        pending: 1,
        started: 9,
        stopped: 5,
        foreign_namespaces: 2,
    });
    certificates::register(&mut registry, || CertificateNumbers {
        issued: 7,
        failed: vec![("unavailable", 2), ("deadline", 1)],
        failing: 1,
        identities: vec![(SpiffeId::new("td", "ns", "sa").unwrap(), IdentityState::Initializing)],
    });
    crl::register(&mut registry, || CrlNumbers {
        policy_rejections: BySide { source: 4, destination: 6 },
        untracked_connections: BySide::default(),
    });
    (registry, xds)
}

fn scrape(format: Format, registry: &Registry) -> Scrape {
    let mut text = String::new();
    encode(format, registry, &mut text).unwrap();
    Scrape::parse(format, &text)
}

#[test]
fn names_types_and_labels_are_those_that_dashboards_know() {
    let (registry, _xds) = full();
    let scrape = scrape(Format::OpenMetrics, &registry);
    let families: Vec<_> =
        scrape.families.iter().map(|(name, family)| (name.as_str(), &*family.kind)).collect();
    let (counter, gauge) = ("counter", "gauge");
    assert_eq!(
        families,
        [
            ("istio_build", gauge),
            ("istio_certificate_request_failures", counter),
            ("istio_certificate_requests", counter),
            ("istio_certificates", gauge),
            ("istio_certificates_failing", gauge),
            ("istio_crl_policy_rejections", counter),
            ("istio_crl_untracked_connections", counter),
            ("istio_xds_connected", gauge),
            ("istio_xds_connection_terminations", counter),
            ("istio_xds_last_ack_timestamp_seconds", gauge),
            ("istio_xds_last_nack_timestamp_seconds", gauge),
            ("istio_xds_message", counter),
            ("istio_xds_message_bytes", counter),
            ("istio_xds_nacks", counter),
            ("istio_xds_rejected_resources", counter),
            ("istio_xds_synchronized", gauge),
            ("process_max_fds", gauge),
            ("process_open_fds", gauge),
            ("process_resident_memory_bytes", gauge),
            ("workload_manager_active_proxy_count", gauge),
            ("workload_manager_foreign_namespaces", counter),
            ("workload_manager_pending_proxy_count", gauge),
            ("workload_manager_proxies_started", counter),
            ("workload_manager_proxies_stopped", counter),
        ]
    );
    let labels: BTreeMap<_, BTreeSet<_>> = scrape.samples.keys().fold(BTreeMap::new(), |mut all, sample| {
        let names = sample.labels.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",");
        all.entry(names).or_insert_with(BTreeSet::new).insert(sample.name.as_str());
        all
    });
    assert_eq!(labels["component,tag"], ["istio_build"].into());
    assert_eq!(labels["outcome"], ["istio_certificate_requests_total"].into());
    assert_eq!(
        labels["reason"],
        ["istio_certificate_request_failures_total", "istio_xds_connection_terminations_total"].into()
    );
    assert_eq!(labels["state"], ["istio_certificates"].into());
    assert_eq!(
        labels["reporter"],
        ["istio_crl_policy_rejections_total", "istio_crl_untracked_connections_total"].into()
    );
    assert_eq!(labels["url"].len(), 6);
}

#[test]
fn the_help_of_every_family_outside_the_stable_set_says_unstable() {
    let (registry, _xds) = full();
    let stable = ["istio_build", "process_open_fds", "process_max_fds"];
    for (name, family) in scrape(Format::OpenMetrics, &registry).families {
        assert_eq!(family.help.contains("unstable"), !stable.contains(&&*name), "{name}: {}", family.help);
        assert!(family.help.ends_with('.'), "{name}: {}", family.help);
    }
}

#[test]
fn both_formats_have_the_same_samples() {
    let (registry, _xds) = full();
    let names = |format| {
        let mut samples = scrape(format, &registry).samples;
        samples.retain(|sample, _| !sample.name.starts_with("process_"));
        samples
    };
    assert_eq!(names(Format::OpenMetrics), names(Format::Text));
    let scrape = scrape(Format::Text, &registry);
    assert_eq!(scrape.value("istio_build", &[("component", "ztunnel"), ("tag", "1.30.1")]), Some(1.0));
    assert_eq!(scrape.value("workload_manager_proxies_started_total", &[]), Some(9.0));
    assert_eq!(scrape.value("workload_manager_foreign_namespaces_total", &[]), Some(2.0));
    assert_eq!(scrape.value("istio_crl_policy_rejections_total", &[("reporter", "destination")]), Some(6.0));
    assert_eq!(scrape.value("istio_crl_untracked_connections_total", &[("reporter", "source")]), Some(0.0));
    assert_eq!(scrape.value("istio_certificate_requests_total", &[("outcome", "failed")]), Some(3.0));
    assert_eq!(scrape.value("istio_certificates", &[("state", "initializing")]), Some(1.0));
}

#[test]
fn series_of_fixed_label_sets_are_there_before_anything_happens_and_then_count() {
    let (registry, xds) = full();
    let value = |name, labels: &[(&str, &str)]| scrape(Format::OpenMetrics, &registry).value(name, labels);
    for reason in ["ConnectionError", "Reconnect", "Error", "Complete"] {
        assert_eq!(value("istio_xds_connection_terminations_total", &[("reason", reason)]), Some(0.0));
    }
    for url in [ADDRESS, AUTHORIZATION] {
        assert_eq!(value("istio_xds_message_total", &[("url", url)]), Some(0.0));
    }

    let kind = ResourceType::Authorization;
    xds.observe(&Event::Connected);
    xds.observe(&Event::Received { type_url: ADDRESS, payload_bytes: 1000 });
    xds.observe(&Event::Received { type_url: ADDRESS, payload_bytes: 24 });
    xds.observe(&Event::Answered { kind: ResourceType::Address, rejected: 0 });
    xds.observe(&Event::Answered { kind, rejected: 3 });
    xds.observe(&Event::Synchronized);
    assert_eq!(value("istio_xds_connected", &[]), Some(1.0));
    assert_eq!(value("istio_xds_synchronized", &[]), Some(1.0));
    assert_eq!(value("istio_xds_message_total", &[("url", ADDRESS)]), Some(2.0));
    assert_eq!(value("istio_xds_message_bytes_total", &[("url", ADDRESS)]), Some(1024.0));
    assert_eq!(value("istio_xds_nacks_total", &[("url", AUTHORIZATION)]), Some(1.0));
    assert_eq!(value("istio_xds_nacks_total", &[("url", ADDRESS)]), Some(0.0));
    assert_eq!(value("istio_xds_rejected_resources_total", &[("url", AUTHORIZATION)]), Some(3.0));
    assert!(value("istio_xds_last_ack_timestamp_seconds", &[("url", ADDRESS)]) > Some(1e9));
    assert_eq!(value("istio_xds_last_ack_timestamp_seconds", &[("url", AUTHORIZATION)]), Some(0.0));
    assert!(value("istio_xds_last_nack_timestamp_seconds", &[("url", AUTHORIZATION)]) > Some(1e9));

    xds.observe(&Event::Terminated(Termination::Reconnect));
    assert_eq!(value("istio_xds_connected", &[]), Some(0.0));
    assert_eq!(value("istio_xds_connection_terminations_total", &[("reason", "Reconnect")]), Some(1.0));
}

#[test]
fn a_control_plane_that_invents_types_adds_no_series() {
    let (registry, xds) = full();
    let before = scrape(Format::Text, &registry).samples.len();
    for number in 0..100 {
        xds.observe(&Event::Received { type_url: &format!("type/{number}"), payload_bytes: 1 });
    }
    let after = scrape(Format::Text, &registry);
    assert_eq!(after.samples.len(), before, "it was there from the start");
    assert_eq!(after.value("istio_xds_message_total", &[("url", "other")]), Some(100.0));
}

#[test]
fn a_label_value_cannot_break_the_format() {
    let mut registry = Registry::default();
    let tag = "a\"b\\c\nd} 5";
    process::register(&mut registry, Some(tag));
    for format in [Format::OpenMetrics, Format::Text] {
        let scrape = scrape(format, &registry);
        assert_eq!(scrape.value("istio_build", &[("component", "ztunnel"), ("tag", tag)]), Some(1.0));
    }
}

#[test]
fn both_paths_answer_any_method_and_others_do_not_exist() {
    run(async {
        let server = serve(full().0);
        for path in ["/metrics", "/stats/prometheus"] {
            let (content_type, text) = get(server, path, Some("application/openmetrics-text")).await;
            assert_eq!(content_type, "application/openmetrics-text;charset=utf-8;version=1.0.0");
            let scrape = Scrape::parse(Format::OpenMetrics, &text);
            for name in ["process_open_fds", "process_max_fds", "process_resident_memory_bytes"] {
                assert!(scrape.value(name, &[]) > Some(0.0), "{name}");
            }
            let (content_type, text) = get(server, path, None).await;
            assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
            assert_eq!(
                Scrape::parse(Format::Text, &text).value("workload_manager_active_proxy_count", &[]),
                Some(3.0)
            );
        }
        assert!(!ask(server, "POST", "/metrics", None).await.body().is_empty());
        let head = ask(server, "HEAD", "/metrics", None).await;
        assert!(head.status() == 200 && head.body().is_empty());
        for path in ["/", "/metrics/", "/stats", "/config_dump"] {
            let answer = ask(server, "GET", path, None).await;
            assert!(answer.status() == 404 && answer.body().is_empty(), "{path}");
        }
    });
}

fn serve(registry: Registry) -> SocketAddr {
    let server = MetricsServer::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = server.local_addresses().unwrap()[0];
    tokio::task::spawn_local(server.serve(registry));
    address
}

/// A scrape, understood strictly: anything out of order or out of place panics.
#[derive(Default)]
struct Scrape {
    families: BTreeMap<String, Family>,
    samples: BTreeMap<Sample, f64>,
}

#[derive(Default)]
struct Family {
    help: String,
    kind: String,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
}

impl Scrape {
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.samples.get(&Sample { name: name.to_owned(), labels }).copied()
    }

    fn parse(format: Format, text: &str) -> Self {
        let mut scrape = Self::default();
        let text = match format {
            Format::OpenMetrics => text.strip_suffix("# EOF\n").expect("the end is marked"),
            Format::Text => text,
        };
        assert!(text.ends_with('\n') && !text.contains("# EOF"));
        let mut current = String::new();
        for line in text.lines() {
            if let Some(line) = line.strip_prefix("# HELP ") {
                let (name, help) = line.split_once(' ').unwrap();
                let family = Family { help: help.to_owned(), ..Family::default() };
                assert!(scrape.families.insert(name.to_owned(), family).is_none(), "{name} comes twice");
                name.clone_into(&mut current);
            } else if let Some(line) = line.strip_prefix("# TYPE ") {
                let (name, kind) = line.split_once(' ').unwrap();
                assert_eq!(name, current);
                kind.clone_into(&mut scrape.families.get_mut(name).unwrap().kind);
            } else if let Some(line) = line.strip_prefix("# UNIT ") {
                let (name, unit) = line.split_once(' ').unwrap();
                assert!(name == current && name.ends_with(unit) && format == Format::OpenMetrics);
            } else {
                let (sample, value) = parse_sample(line);
                let kind = scrape.families[&current].kind.as_str();
                let expected = match (format, kind) {
                    (Format::OpenMetrics, "counter") => format!("{current}_total"),
                    (_, "counter" | "gauge") => current.clone(),
                    _ => panic!("unexpected type {kind:?} of {current}"),
                };
                assert_eq!(sample.name, expected);
                assert!(scrape.samples.insert(sample, value).is_none(), "{line} comes twice");
            }
        }
        scrape
    }
}

/// `name{label="value",...} number`
fn parse_sample(line: &str) -> (Sample, f64) {
    let end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(end);
    assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{line}");
    let mut labels = Vec::new();
    while let Some(label) = rest.strip_prefix(if labels.is_empty() { '{' } else { ',' }) {
        let (label, quoted) = label.split_once("=\"").unwrap();
        let (value, after) = parse_quoted(quoted);
        labels.push((label.to_owned(), value));
        rest = after;
    }
    if !labels.is_empty() {
        rest = rest.strip_prefix('}').expect("labels are closed");
    }
    let value = rest.strip_prefix(' ').expect("one space before the value").parse().unwrap();
    (Sample { name: name.to_owned(), labels }, value)
}

/// The value up to the closing quote, and what follows that.
fn parse_quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.push(match characters.next().unwrap().1 {
                'n' => '\n',
                character @ ('\\' | '"') => character,
                other => panic!("unknown escape {other:?}"),
            }),
            character => value.push(character),
        }
    }
    panic!("no closing quote in {text}");
}
