//! Families whose values are read at each scrape.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// Numbers that know the families they belong to.
pub(super) trait Numbers: 'static {
    /// Writes all of them.
    fn expose(&self, families: &mut Families<'_>) -> fmt::Result;
}

/// Has `read` called at each scrape, on whatever thread encodes it.
pub(super) fn read_at_scrape<N: Numbers>(
    registry: &mut Registry,
    read: impl Fn() -> N + Send + Sync + 'static,
) {
    registry.register_collector(Box::new(Reading { read: Box::new(read) }));
}

/// Where numbers are written, family by family. Help texts end with a full stop.
#[derive(Debug)]
pub(super) struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    /// A counter without labels; `name` lacks `_total`.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    /// A gauge without labels.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: i64) -> fmt::Result {
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    /// A counter per set of labels. A family without any is left out.
    pub(super) fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        self.labelled(name, help, MetricType::Counter, series, |value, encoder| {
            ConstCounter::new(value).encode(encoder)
        })
    }

    /// A gauge per set of labels. A family without any is left out.
    pub(super) fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, i64)>,
    ) -> fmt::Result {
        self.labelled(name, help, MetricType::Gauge, series, |value, encoder| {
            ConstGauge::new(value).encode(encoder)
        })
    }

    /// A histogram per set of labels: the sum of all values, and how many fell into each bucket, with the buckets' upper
    /// bounds; `f64::MAX` is no bound. A family without any is left out.
    pub(super) fn histograms<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, f64, Vec<(f64, u64)>)>,
    ) -> fmt::Result {
        let series = series.into_iter().map(|(labels, sum, buckets)| (labels, (sum, buckets)));
        self.labelled(name, help, MetricType::Histogram, series, |(sum, buckets), mut encoder| {
            let count = buckets.iter().map(|(_, count)| count).sum();
            encoder.encode_histogram::<L>(sum, count, &buckets, None)
        })
    }

    fn labelled<L: EncodeLabelSet, V>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        series: impl IntoIterator<Item = (L, V)>,
        encode: impl Fn(V, MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        series.try_for_each(|(labels, value)| encode(value, family.encode_family(&labels)?))
    }
}

struct Reading<N> {
    read: Box<dyn Fn() -> N + Send + Sync>,
}

impl<N: Numbers> Collector for Reading<N> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.read)().expose(&mut Families(encoder))
    }
}

impl<N> fmt::Debug for Reading<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").finish_non_exhaustive()
    }
}
