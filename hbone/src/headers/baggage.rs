//! `baggage`: which workload is at the sender's end, as `key=value` pairs separated by commas.
//!
//! The keys are OpenTelemetry resource attributes. Unlike W3C Baggage there is neither white space nor
//! percent-encoding; an attribute that is empty or unknown is left out.

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderValue};

use super::BAGGAGE;

const CLUSTER: &str = "k8s.cluster.name";
const NAMESPACE: &str = "k8s.namespace.name";
const SERVICE: &str = "service.name";
const VERSION: &str = "service.version";
const REGION: &str = "cloud.region";
const ZONE: &str = "cloud.availability_zone";

/// A workload's description. Borrows its texts: from the workload when encoding, from the headers when
/// parsing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Baggage<'a> {
    /// `k8s.cluster.name`: the cluster's identifier.
    pub cluster: Option<&'a str>,
    /// `k8s.namespace.name`.
    pub namespace: Option<&'a str>,
    /// `k8s.<kind>.name`: what owns the pod, and its name.
    pub workload: Option<(WorkloadKind, &'a str)>,
    /// `service.name`: the canonical service.
    pub service: Option<&'a str>,
    /// `service.version`: the canonical revision.
    pub version: Option<&'a str>,
    /// `cloud.region`.
    pub region: Option<&'a str>,
    /// `cloud.availability_zone`.
    pub zone: Option<&'a str>,
}

/// The kinds of Kubernetes object that `k8s.<kind>.name` can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkloadKind {
    /// A Deployment.
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare Pod.
    Pod,
    /// A Job.
    Job,
}

impl WorkloadKind {
    const ALL: [WorkloadKind; 4] =
        [WorkloadKind::Deployment, WorkloadKind::CronJob, WorkloadKind::Pod, WorkloadKind::Job];

    /// The key under which a workload of this kind is named.
    fn key(self) -> &'static str {
        match self {
            WorkloadKind::Deployment => "k8s.deployment.name",
            WorkloadKind::CronJob => "k8s.cronjob.name",
            WorkloadKind::Pod => "k8s.pod.name",
            WorkloadKind::Job => "k8s.job.name",
        }
    }
}

impl<'a> Baggage<'a> {
    /// The header's value, in one allocation.
    ///
    /// An attribute whose value the format cannot carry (a comma, an equals sign, anything but visible
    /// ASCII, a space at either end) is left out rather than misread by the receiver.
    pub fn encode(&self) -> HeaderValue {
        let members = self.members();
        let carried = || members.iter().filter(|(_, value)| is_representable(value));
        let length = carried().map(|(key, value)| key.len() + value.len() + 2).sum();
        let mut text = BytesMut::with_capacity(length);
        for (key, value) in carried() {
            if !text.is_empty() {
                text.put_u8(b',');
            }
            text.put_slice(key.as_bytes());
            text.put_u8(b'=');
            text.put_slice(value.as_bytes());
        }
        HeaderValue::from_maybe_shared(text.freeze())
            .expect("keys and representable values are visible ASCII")
    }

    /// Reads all `baggage` headers as if they were one; where a key is repeated the last one counts,
    /// and unknown keys are ignored. `None` if there is no such header, or if any has bytes outside
    /// visible ASCII.
    pub fn from_headers(headers: &'a HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(BAGGAGE).iter().peekable();
        values.peek()?;
        let mut baggage = Baggage::default();
        for value in values {
            for member in value.to_str().ok()?.split(',') {
                baggage.set(member);
            }
        }
        Some(baggage)
    }

    /// Takes over one `key=value`; the value ends at a second equals sign.
    fn set(&mut self, member: &'a str) {
        let mut parts = member.split('=');
        let (Some(key), Some(value)) = (parts.next(), parts.next()) else {
            return;
        };
        let value = Some(value).filter(|value| !value.is_empty());
        match key {
            CLUSTER => self.cluster = value,
            NAMESPACE => self.namespace = value,
            SERVICE => self.service = value,
            VERSION => self.version = value,
            REGION => self.region = value,
            ZONE => self.zone = value,
            _ => {
                if let Some(kind) = WorkloadKind::ALL.into_iter().find(|kind| kind.key() == key) {
                    self.workload = value.map(|name| (kind, name));
                }
            }
        }
    }

    /// Keys and values in the order in which they are sent.
    fn members(&self) -> [(&'static str, &'a str); 7] {
        let (workload_key, workload) = match self.workload {
            Some((kind, name)) => (kind.key(), name),
            None => ("", ""),
        };
        [
            (CLUSTER, self.cluster.unwrap_or_default()),
            (NAMESPACE, self.namespace.unwrap_or_default()),
            (workload_key, workload),
            (SERVICE, self.service.unwrap_or_default()),
            (VERSION, self.version.unwrap_or_default()),
            (REGION, self.region.unwrap_or_default()),
            (ZONE, self.zone.unwrap_or_default()),
        ]
    }
}

fn is_representable(value: &str) -> bool {
    !value.is_empty()
        && value.trim_matches(' ').len() == value.len()
        && value.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b',' && byte != b'=')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FULL: Baggage<'_> = Baggage {
        cluster: Some("Kubernetes"),
        namespace: Some("shop"),
        workload: Some((WorkloadKind::Deployment, "cart")),
        service: Some("cart"),
        version: Some("v1"),
        region: Some("eu-1"),
        zone: Some("eu-1a"),
    };

    const FULL_TEXT: &str = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart,\
        service.name=cart,service.version=v1,cloud.region=eu-1,cloud.availability_zone=eu-1a";

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(BAGGAGE, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn a_full_description_is_written_in_order_and_read_back() {
        assert_eq!(FULL.encode(), FULL_TEXT);
        assert_eq!(Baggage::from_headers(&headers(&[FULL_TEXT])), Some(FULL));
    }

    #[test]
    fn one_header_line_per_key_reads_the_same() {
        let lines: Vec<&str> = FULL_TEXT.split(',').collect();
        assert_eq!(Baggage::from_headers(&headers(&lines)), Some(FULL));
    }

    #[test]
    fn every_kind_of_workload_has_its_key() {
        for (kind, text) in [
            (WorkloadKind::Deployment, "k8s.deployment.name=x"),
            (WorkloadKind::CronJob, "k8s.cronjob.name=x"),
            (WorkloadKind::Pod, "k8s.pod.name=x"),
            (WorkloadKind::Job, "k8s.job.name=x"),
        ] {
            let baggage = Baggage { workload: Some((kind, "x")), ..Baggage::default() };
            assert_eq!(baggage.encode(), text);
            assert_eq!(Baggage::from_headers(&headers(&[text])), Some(baggage));
        }
    }

    #[test]
    fn empty_values_are_unset_both_ways() {
        let empty =
            Baggage { cluster: Some(""), workload: Some((WorkloadKind::Pod, "")), ..Baggage::default() };
        assert_eq!(empty.encode(), "");
        let text = "k8s.cluster.name=,k8s.namespace.name=,k8s.pod.name=,service.name=,service.version=";
        assert_eq!(Baggage::from_headers(&headers(&[text])), Some(Baggage::default()));
    }

    #[test]
    fn no_header_is_no_baggage_and_so_is_one_outside_visible_ascii() {
        assert_eq!(Baggage::from_headers(&HeaderMap::new()), None);
        assert_eq!(Baggage::from_headers(&headers(&[FULL_TEXT, "service.name=cärt"])), None);
    }

    #[test]
    fn later_keys_win_values_end_at_the_second_equals_sign_and_strange_members_are_ignored() {
        let text = ["service.name=old", "x=y,,=,lonely,service.name=new=er, cloud.region=spaced"];
        let baggage = Baggage { service: Some("new"), ..Baggage::default() };
        assert_eq!(Baggage::from_headers(&headers(&text)), Some(baggage));
    }

    #[test]
    fn a_value_cannot_smuggle_in_another_member() {
        let hostile = Baggage {
            namespace: Some("shop"),
            region: Some("x,k8s.namespace.name=root"),
            zone: Some("a\r\nb"),
            ..Baggage::default()
        };
        assert_eq!(hostile.encode(), "k8s.namespace.name=shop");
    }

    proptest! {
        #[test]
        fn what_is_representable_round_trips(
            texts in proptest::array::uniform7("[!-+\\--<>-~]([ -+\\--<>-~]{0,20}[!-+\\--<>-~])?"),
            kind in 0usize..4,
        ) {
            let [cluster, namespace, workload, service, version, region, zone] = &texts;
            let baggage = Baggage {
                cluster: Some(cluster),
                namespace: Some(namespace),
                workload: Some((WorkloadKind::ALL[kind], workload)),
                service: Some(service),
                version: Some(version),
                region: Some(region),
                zone: Some(zone),
            };
            let mut headers = HeaderMap::new();
            headers.insert(BAGGAGE, baggage.encode());
            prop_assert_eq!(Baggage::from_headers(&headers), Some(baggage));
        }

        #[test]
        fn any_texts_can_be_encoded_and_any_header_read(
            texts in proptest::array::uniform2("\\PC{0,40}"),
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let baggage = Baggage { cluster: Some(&texts[0]), zone: Some(&texts[1]), ..Baggage::default() };
            baggage.encode();
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let headers = HeaderMap::from_iter([(BAGGAGE, value)]);
                let _ = Baggage::from_headers(&headers);
            }
        }
    }
}
