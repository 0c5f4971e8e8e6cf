//! What the DNS proxy does.
//!
//! The series are kept apart from the registry: one that is new must not wait for a scrape that is being sent.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::rr::RecordType;
use prometheus_client::registry::Registry;

use super::ISTIO;
use super::exposition::{Families, Numbers, read_at_scrape};
use crate::dns::Transport;
use crate::state::model::Workload;

/// Counts queries of pods, and lookups for connections.
#[derive(Debug, Default)]
pub struct DnsMetrics {
    series: Mutex<HashMap<Source, Series>>,
    on_demand: Mutex<HashMap<OnDemand, u64>>,
    /// In the order of [`Forwarded::ALL`].
    outcomes: [AtomicU64; Forwarded::ALL.len()],
    /// In the order of [`Limit::ALL`].
    shed: [AtomicU64; Limit::ALL.len()],
    cache_hits: AtomicU64,
}

/// Who asked for what.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Source {
    kind: &'static str,
    transport: Transport,
    service: Arc<str>,
    revision: Arc<str>,
}

/// What stands for a label without a value.
const UNKNOWN: &str = "unknown";

impl Source {
    /// A query for records of the type `kind` by `workload`, if that is known.
    pub(crate) fn new(kind: RecordType, transport: Transport, workload: Option<&Workload>) -> Self {
        let text = |text: Option<&Arc<str>>| text.cloned().unwrap_or_default();
        Self {
            kind: label_of(kind),
            transport,
            service: text(workload.map(|workload| &workload.canonical_name)),
            revision: text(workload.map(|workload| &workload.canonical_revision)),
        }
    }

    fn labels(&self) -> [(&'static str, String); 4] {
        [
            ("request_query_type", self.kind.to_owned()),
            ("request_protocol", self.transport.label().to_owned()),
            ("source_canonical_service", known(&self.service)),
            ("source_canonical_revision", known(&self.revision)),
        ]
    }
}

fn known(text: &str) -> String {
    if text.is_empty() { UNKNOWN.to_owned() } else { text.to_owned() }
}

/// The types that have a series of their own. What a client may make up has none.
fn label_of(kind: RecordType) -> &'static str {
    match kind {
        RecordType::A => "a",
        RecordType::AAAA => "aaaa",
        RecordType::ANY => "any",
        RecordType::CNAME => "cname",
        RecordType::HTTPS => "https",
        RecordType::MX => "mx",
        RecordType::NAPTR => "naptr",
        RecordType::NS => "ns",
        RecordType::PTR => "ptr",
        RecordType::SOA => "soa",
        RecordType::SRV => "srv",
        RecordType::SVCB => "svcb",
        RecordType::TXT => "txt",
        _ => UNKNOWN,
    }
}

#[derive(Clone, Debug, Default)]
struct Series {
    requests: u64,
    forwarded: u64,
    failed: u64,
    seconds: f64,
    /// Not cumulative; the last is for everything above [`BOUNDS`].
    buckets: [u64; BOUNDS.len() + 1],
}

/// Of the histogram, in seconds.
const BOUNDS: [f64; 6] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];

/// What became of a query that was forwarded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Forwarded {
    /// Records came back.
    Records,
    /// The name exists, without such records.
    NoData,
    /// There is no such name.
    NoName,
    /// The server answered with an error.
    Refused,
    /// No server answered in time.
    TimedOut,
    /// No server could be reached, or is known, or what came back was no answer.
    Unreachable,
}

impl Forwarded {
    const ALL: [Self; 6] =
        [Self::Records, Self::NoData, Self::NoName, Self::Refused, Self::TimedOut, Self::Unreachable];

    /// By RCODE and number of answer records.
    pub(crate) fn of_answer(rcode: u8, answers: usize) -> Self {
        match (rcode, answers) {
            (0, 0) => Self::NoData,
            (0, _) => Self::Records,
            (3, _) => Self::NoName,
            _ => Self::Refused,
        }
    }

    /// Its name in labels and logs.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Records => "records",
            Self::NoData => "no_data",
            Self::NoName => "no_such_name",
            Self::Refused => "error_answer",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
        }
    }
}

/// A bound that was met.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Limit {
    /// Queries of one pod that wait for name servers.
    Pod,
    /// Queries of all pods that wait for name servers.
    Node,
    /// TCP connections of one pod.
    Connections,
    /// Lookups of workloads' hostnames.
    Lookups,
}

impl Limit {
    const ALL: [Self; 4] = [Self::Pod, Self::Node, Self::Connections, Self::Lookups];

    /// Its name in labels and logs.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Pod => "pod_queries",
            Self::Node => "node_queries",
            Self::Connections => "pod_connections",
            Self::Lookups => "lookups",
        }
    }
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct OnDemand {
    workload: Arc<str>,
    service: Arc<str>,
    revision: Arc<str>,
    namespace: Arc<str>,
    principal: String,
    cluster: Arc<str>,
    hostname: Arc<str>,
}

impl DnsMetrics {
    /// A query was read.
    pub(crate) fn request(&self, source: &Source) {
        self.count(source, |series| series.requests += 1);
    }

    /// A query was forwarded, which took so long.
    pub(crate) fn forwarded(&self, source: &Source, outcome: Forwarded, took: Duration) {
        if let Some(count) = self.outcomes.get(outcome as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let seconds = took.as_secs_f64();
        self.count(source, |series| {
            series.forwarded += 1;
            series.failed += u64::from(outcome != Forwarded::Records);
            series.seconds += seconds;
            let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
            if let Some(count) = series.buckets.get_mut(bucket) {
                *count += 1;
            }
        });
    }

    /// A query was answered with what a server had said before.
    pub(crate) fn cache_hit(&self) {
        self.cache_hits.fetch_add(1, Ordering::Relaxed);
    }

    /// Something was not done because of a limit.
    pub(crate) fn shed(&self, limit: Limit) {
        if let Some(count) = self.shed.get(limit as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A workload's hostname is looked up for a connection of `source`.
    pub(crate) fn on_demand(&self, source: &Workload, hostname: &Arc<str>) {
        let key = OnDemand {
            workload: source.workload_name.clone(),
            service: source.canonical_name.clone(),
            revision: source.canonical_revision.clone(),
            namespace: source.namespace.clone(),
            principal: source.identity().map(|identity| identity.to_string()).unwrap_or_default(),
            cluster: source.cluster_id.clone(),
            hostname: hostname.clone(),
        };
        *lock(&self.on_demand).entry(key).or_default() += 1;
    }

    fn count(&self, source: &Source, change: impl FnOnce(&mut Series)) {
        let mut all = lock(&self.series);
        match all.get_mut(source) {
            Some(series) => change(series),
            None => change(all.entry(source.clone()).or_default()),
        }
    }
}

/// Held for a few additions, or for a copy. A panic in between leaves numbers behind, which are good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds the families to `registry`: those of the proxy if it runs, and `istio_on_demand_dns`.
pub fn register(registry: &mut Registry, metrics: &Arc<DnsMetrics>, proxy_runs: bool) {
    let istio = registry.sub_registry_with_prefix(ISTIO);
    let read = metrics.clone();
    read_at_scrape(istio, move || OnDemandNumbers(lock(&read.on_demand).clone()));
    if proxy_runs {
        let read = metrics.clone();
        read_at_scrape(istio, move || ProxyNumbers {
            series: lock(&read.series).clone(),
            counters: read.clone(),
        });
    }
}

struct OnDemandNumbers(HashMap<OnDemand, u64>);

impl Numbers for OnDemandNumbers {
    fn expose(&self, families: &mut Families<'_>) -> fmt::Result {
        let series = self.0.iter().map(|(key, count)| {
            let labels = [
                ("source_workload", known(&key.workload)),
                ("source_canonical_service", known(&key.service)),
                ("source_canonical_revision", known(&key.revision)),
                ("source_workload_namespace", known(&key.namespace)),
                ("source_principal", known(&key.principal)),
                ("source_app", known(&key.service)),
                ("source_version", known(&key.revision)),
                ("source_cluster", known(&key.cluster)),
                ("hostname", known(&key.hostname)),
            ];
            (labels, *count)
        });
        families.counters(
            "on_demand_dns",
            "Hostnames of workloads looked up for connections (unstable).",
            series,
        )
    }
}

struct ProxyNumbers {
    series: HashMap<Source, Series>,
    counters: Arc<DnsMetrics>,
}

impl Numbers for ProxyNumbers {
    fn expose(&self, families: &mut Families<'_>) -> fmt::Result {
        let of = |number: fn(&Series) -> u64| {
            self.series.iter().map(move |(source, series)| (source.labels(), number(series)))
        };
        families.counters("dns_requests", "DNS queries of pods (unstable).", of(|series| series.requests))?;
        families.counters(
            "dns_upstream_requests",
            "DNS queries forwarded to name servers (unstable).",
            of(|series| series.forwarded),
        )?;
        families.counters(
            "dns_upstream_failures",
            "DNS queries forwarded to name servers that brought no records (unstable).",
            of(|series| series.failed),
        )?;
        families.histograms(
            "dns_upstream_request_duration_seconds",
            "How long forwarded DNS queries took (unstable).",
            self.series.iter().filter(|(_, series)| series.forwarded > 0).map(|(source, series)| {
                let bounds = BOUNDS.into_iter().chain([f64::MAX]);
                let buckets = bounds.zip(series.buckets).collect();
                (source.labels(), series.seconds, buckets)
            }),
        )?;
        let counters = &*self.counters;
        let outcomes = Forwarded::ALL.into_iter().zip(&counters.outcomes);
        families.counters(
            "dns_upstream_outcomes",
            "What became of DNS queries forwarded to name servers (unstable).",
            outcomes.map(|(outcome, count)| ([("outcome", outcome.label())], count.load(Ordering::Relaxed))),
        )?;
        let shed = Limit::ALL.into_iter().zip(&counters.shed);
        families.counters(
            "dns_shed",
            "DNS queries, connections and lookups refused because there are too many (unstable).",
            shed.map(|(limit, count)| ([("limit", limit.label())], count.load(Ordering::Relaxed))),
        )?;
        families.counter(
            "dns_cache_hits",
            "DNS queries answered with what a name server had said before (unstable).",
            counters.cache_hits.load(Ordering::Relaxed),
        )
    }
}
