//! How we get on with the control plane.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use xds_client::{Event, ResourceType, Termination};

use super::ISTIO;

/// Counts what happens on the connection to the control plane.
#[derive(Debug)]
pub struct XdsMetrics {
    terminations: Family<Label, Counter>,
    messages: Family<Label, Counter>,
    message_bytes: Family<Label, Counter>,
    connected: Gauge,
    synchronized: Gauge,
    nacks: Family<Label, Counter>,
    rejected: Family<Label, Counter>,
    last_ack: Family<Label, Gauge>,
    last_nack: Family<Label, Gauge>,
}

type Label = [(&'static str, &'static str); 1];

/// Stands for every type URL that we never asked for, so that no answer can add series.
const OTHER: &str = "other";

const REASONS: [Termination; 4] =
    [Termination::ConnectionError, Termination::Reconnect, Termination::Error, Termination::Complete];

impl XdsMetrics {
    /// Adds the families to `registry`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::at_zero();
        let istio = registry.sub_registry_with_prefix(ISTIO);
        istio.register(
            "xds_connection_terminations",
            "Streams to the control plane that ended or could not be opened (unstable)",
            metrics.terminations.clone(),
        );
        let help = "Responses from the control plane (unstable)";
        istio.register("xds_message", help, metrics.messages.clone());
        istio.register_with_unit(
            "xds_message",
            "Payload of the resources in those responses (unstable)",
            Unit::Bytes,
            metrics.message_bytes.clone(),
        );
        let help = "1 while the control plane has accepted our stream, else 0 (unstable)";
        istio.register("xds_connected", help, metrics.connected.clone());
        let help = "1 once everything subscribed to has been received, else 0 (unstable)";
        istio.register("xds_synchronized", help, metrics.synchronized.clone());
        let help = "Responses of which some resource was rejected (unstable)";
        istio.register("xds_nacks", help, metrics.nacks.clone());
        let help = "Resources that could not be used (unstable)";
        istio.register("xds_rejected_resources", help, metrics.rejected.clone());
        istio.register(
            "xds_last_ack_timestamp_seconds",
            "When a response was last accepted in full, in Unix time; 0 is never (unstable)",
            metrics.last_ack.clone(),
        );
        istio.register(
            "xds_last_nack_timestamp_seconds",
            "When some resource was last rejected, in Unix time; 0 is never (unstable)",
            metrics.last_nack.clone(),
        );
        metrics
    }

    /// Counts one event.
    pub fn observe(&self, event: &Event<'_>) {
        match *event {
            Event::Connected => {
                self.connected.set(1);
            }
            Event::Received { type_url, payload_bytes } => {
                let url = url(ResourceType::from_url(type_url));
                self.messages.get_or_create(&url).inc();
                self.message_bytes.get_or_create(&url).inc_by(payload_bytes);
            }
            Event::Answered { kind, rejected: 0 } => {
                self.last_ack.get_or_create(&url(Some(kind))).set(unix_time());
            }
            Event::Answered { kind, rejected } => {
                let url = url(Some(kind));
                self.nacks.get_or_create(&url).inc();
                self.rejected.get_or_create(&url).inc_by(rejected as u64);
                self.last_nack.get_or_create(&url).set(unix_time());
            }
            Event::Synchronized => {
                self.synchronized.set(1);
            }
            Event::Terminated(termination) => {
                self.connected.set(0);
                self.terminations.get_or_create(&reason(termination)).inc();
            }
        }
    }

    /// Every series that will ever be there.
    fn at_zero() -> Self {
        let metrics = Self {
            terminations: Family::default(),
            messages: Family::default(),
            message_bytes: Family::default(),
            connected: Gauge::default(),
            synchronized: Gauge::default(),
            nacks: Family::default(),
            rejected: Family::default(),
            last_ack: Family::default(),
            last_nack: Family::default(),
        };
        for termination in REASONS {
            drop(metrics.terminations.get_or_create(&reason(termination)));
        }
        for kind in ResourceType::ALL {
            let url = url(Some(kind));
            for counters in [&metrics.messages, &metrics.message_bytes, &metrics.nacks, &metrics.rejected] {
                drop(counters.get_or_create(&url));
            }
            for times in [&metrics.last_ack, &metrics.last_nack] {
                drop(times.get_or_create(&url));
            }
        }
        // A series made later would wait for a scrape that is being sent, and be what it is sent by.
        for counters in [&metrics.messages, &metrics.message_bytes] {
            drop(counters.get_or_create(&url(None)));
        }
        metrics
    }
}

fn url(kind: Option<ResourceType>) -> Label {
    [("url", kind.map_or(OTHER, ResourceType::url))]
}

fn reason(termination: Termination) -> Label {
    [("reason", termination.reason())]
}

fn unix_time() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}
