//! How we get on with the certificate authority, and how long the certificates last.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use identity::{IdentityState, SpiffeId};
use prometheus_client::registry::Registry;

use super::ISTIO;
use super::exposition::{Families, Numbers, read_at_scrape};

/// What the certificate store has and has done.
#[derive(Clone, Debug, Default)]
pub struct CertificateNumbers {
    /// Requests that led to a certificate in use.
    pub issued: u64,
    /// Requests that did not, by reason. Reasons come from a fixed set; it is best to name all of them always.
    pub failed: Vec<(&'static str, u64)>,
    /// Identities whose last request failed, also those that hold a certificate from before
    /// ([`CertificateStore::last_errors`](identity::CertificateStore::last_errors)).
    pub failing: usize,
    /// How each managed identity is doing ([`CertificateStore::identities`](identity::CertificateStore::identities)).
    pub identities: Vec<(SpiffeId, IdentityState)>,
}

/// Identities with an expiry series of their own. A node has a few hundred pods and fewer identities; were there more,
/// those that expire first are shown, and the rest in one series with the earliest time among them.
pub const MAX_EXPIRY_SERIES: usize = 500;

/// The identity of that one series: no SPIFFE name.
pub const OTHER_IDENTITIES: &str = "other";

/// Adds the families `istio_certificate*` to `registry`.
pub fn register(registry: &mut Registry, read: impl Fn() -> CertificateNumbers + Send + Sync + 'static) {
    read_at_scrape(registry.sub_registry_with_prefix(ISTIO), read);
}

impl Numbers for CertificateNumbers {
    fn expose(&self, families: &mut Families<'_>) -> fmt::Result {
        let failed = self.failed.iter().map(|(_, count)| count).sum();
        families.counters(
            "certificate_requests",
            "Certificate requests that were answered, or whose answer did not come in time (unstable).",
            [([("outcome", "issued")], self.issued), ([("outcome", "failed")], failed)],
        )?;
        families.counters(
            "certificate_request_failures",
            "Certificate requests that led to no certificate (unstable).",
            self.failed.iter().map(|(reason, count)| ([("reason", *reason)], *count)),
        )?;
        families.gauges(
            "certificates",
            "Managed identities by the state of their certificate (unstable).",
            self.states(),
        )?;
        families.gauge(
            "certificates_failing",
            "Managed identities whose last certificate request failed, whatever they hold (unstable).",
            i64::try_from(self.failing).unwrap_or(i64::MAX),
        )?;
        families.gauges(
            "certificate_expiry_timestamp_seconds",
            "When the certificate of an identity expires, in Unix time (unstable).",
            self.expiries().into_iter().map(|(identity, at)| ([("identity", identity)], at)),
        )
    }
}

impl CertificateNumbers {
    fn states(&self) -> [([(&'static str, &'static str); 1], i64); 3] {
        let (mut available, mut initializing, mut unavailable) = (0, 0, 0);
        for (_, state) in &self.identities {
            match state {
                IdentityState::Available(_) => available += 1,
                IdentityState::Initializing => initializing += 1,
                IdentityState::Unavailable(_) => unavailable += 1,
            }
        }
        let state = |state, count| ([("state", state)], count);
        [
            state("available", available),
            state("initializing", initializing),
            state("unavailable", unavailable),
        ]
    }

    /// The expiry of each identity that has a certificate, soonest first, within the bound.
    fn expiries(&self) -> Vec<(&str, i64)> {
        let expiries = self.identities.iter().filter_map(|(identity, state)| match state {
            IdentityState::Available(certificate) => {
                Some((identity.as_str(), unix_time(certificate.not_after())))
            }
            IdentityState::Initializing | IdentityState::Unavailable(_) => None,
        });
        bounded(expiries.collect(), MAX_EXPIRY_SERIES)
    }
}

/// The `max` soonest, and the soonest of the others as [`OTHER_IDENTITIES`].
fn bounded(mut expiries: Vec<(&str, i64)>, max: usize) -> Vec<(&str, i64)> {
    expiries.sort_unstable_by_key(|(identity, at)| (*at, *identity));
    if let Some((_, at)) = expiries.get(max) {
        expiries[max] = (OTHER_IDENTITIES, *at);
        expiries.truncate(max + 1);
    }
    expiries
}

fn unix_time(at: SystemTime) -> i64 {
    let elapsed = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_bound_the_soonest_of_the_rest_stands_for_all_of_them() {
        let expiries = vec![("d", 40), ("a", 10), ("c", 30), ("b", 20)];
        assert_eq!(bounded(expiries.clone(), 2), [("a", 10), ("b", 20), (OTHER_IDENTITIES, 30)]);
        assert_eq!(bounded(expiries.clone(), 3), [("a", 10), ("b", 20), ("c", 30), (OTHER_IDENTITIES, 40)]);
        assert_eq!(bounded(expiries, 4), [("a", 10), ("b", 20), ("c", 30), ("d", 40)]);
    }
}
