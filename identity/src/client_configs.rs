//! The client configurations of one certificate, by the peers they accept.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ClientConfig;

use crate::ExpectedPeers;

/// A bounded cache in two generations: what is in use stays, what is not goes.
///
/// A new entry goes to the young generation. When that is full it becomes the old one, and the old one is dropped. An
/// entry found in the old generation moves to the young one, so it survives. At most twice [`GENERATION`] entries, no
/// bookkeeping on a hit in the young generation, and a hit never waits but for an insertion.
#[derive(Default)]
pub(crate) struct ClientConfigs(RwLock<Generations>);

/// Half of the entries kept. A workload talks to fewer kinds of peers than this as a rule.
const GENERATION: usize = 512;

#[derive(Default)]
struct Generations {
    young: HashMap<ExpectedPeers, Arc<ClientConfig>>,
    old: HashMap<ExpectedPeers, Arc<ClientConfig>>,
}

impl ClientConfigs {
    /// The configuration for `expected`, made by `make` if there is none.
    pub(crate) fn get_or_make(
        &self,
        expected: &ExpectedPeers,
        make: impl FnOnce() -> Arc<ClientConfig>,
    ) -> Arc<ClientConfig> {
        if let Some(config) = self.0.read().unwrap_or_else(PoisonError::into_inner).young.get(expected) {
            return config.clone();
        }
        self.0.write().unwrap_or_else(PoisonError::into_inner).promote_or_make(expected, make)
    }
}

impl Generations {
    fn promote_or_make(
        &mut self,
        expected: &ExpectedPeers,
        make: impl FnOnce() -> Arc<ClientConfig>,
    ) -> Arc<ClientConfig> {
        // Another thread may have been here between the two locks.
        if let Some(config) = self.young.get(expected) {
            return config.clone();
        }
        let config = self.old.remove(expected).unwrap_or_else(make);
        if self.young.len() == GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(expected.clone(), config.clone());
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::{ServerVerifier, TrustRoots};
    use crate::{SpiffeId, Tls, TlsOptions};

    fn peers(number: usize) -> ExpectedPeers {
        SpiffeId::new("td", "ns", &number.to_string()).unwrap().into()
    }

    fn config() -> Arc<ClientConfig> {
        let tls = Tls::new(TlsOptions::default());
        let algorithms = tls.provider().signature_verification_algorithms;
        let trust =
            TrustRoots::new(rustls::RootCertStore::empty(), algorithms, crate::Revocations::disabled());
        let verifier = Arc::new(ServerVerifier::new(Arc::new(trust), ExpectedPeers::default()));
        let key = rustls::sign::CertifiedKey::new(vec![], Arc::new(crate::PrivateKey::generate().unwrap()));
        tls.client_config(Arc::new(key.into()), verifier)
    }

    #[test]
    fn an_entry_in_use_outlives_any_number_of_others_and_the_size_is_bounded() {
        let configs = ClientConfigs::default();
        let used = configs.get_or_make(&peers(0), config);
        let other = config();
        for number in 1..10 * GENERATION {
            configs.get_or_make(&peers(number), || other.clone());
            let again = configs.get_or_make(&peers(0), || other.clone());
            assert!(Arc::ptr_eq(&used, &again), "lost after {number} others");
        }
        let held = configs.0.read().unwrap();
        assert!(held.young.len() + held.old.len() <= 2 * GENERATION);
    }

    #[test]
    fn an_entry_not_in_use_goes() {
        let configs = ClientConfigs::default();
        let unused = configs.get_or_make(&peers(0), config);
        let other = config();
        for number in 1..=2 * GENERATION {
            configs.get_or_make(&peers(number), || other.clone());
        }
        assert!(!Arc::ptr_eq(&unused, &configs.get_or_make(&peers(0), || other.clone())));
    }
}
