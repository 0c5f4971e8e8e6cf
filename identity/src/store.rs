//! Certificates of all workloads on the node, kept current.
//!
//! Reading a certificate that is there touches no lock. Everything else happens behind one short lock: wishes and
//! the end of them are written down at once, so nothing queues up and nothing is lost, and the [`StoreDriver`] is woken
//! to do what the [schedule](crate::schedule) says.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::sync::{Notify, watch};

use crate::driver::{RequestError, RequestOutcome, StoreDriver};
use crate::schedule::{Now, Priority, Schedule, Wanted};
use crate::{Issuer, SpiffeId, Tls, WorkloadCertificate};

/// How the store treats its issuer.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// How many requests run at once; at least one.
    pub concurrency: usize,
    /// How long a request may take. A call that hangs would otherwise hold one of the places for ever.
    pub request_deadline: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { concurrency: 8, request_deadline: Duration::from_secs(15) }
    }
}

/// A handle to the certificates of the node; clones share them.
///
/// An identity is managed from the first wish for it until [`forget`](Self::forget): its certificate is renewed at about
/// half-life and failures are retried, with traffic or without.
#[derive(Clone)]
pub struct CertificateStore {
    shared: Arc<Shared>,
}

impl CertificateStore {
    /// A store without certificates, and the driver that fills it. Nothing is requested until the driver runs; once
    /// it is gone, nothing is requested any more.
    pub fn new(issuer: Arc<dyn Issuer>, tls: Tls, options: StoreOptions) -> (Self, StoreDriver) {
        let shared = Arc::new(Shared {
            current: ArcSwap::default(),
            managed: Mutex::new(Managed {
                schedule: Schedule::new(options.concurrency.max(1), fastrand::Rng::new()),
                identities: HashMap::new(),
                closed: false,
            }),
            wake: Notify::new(),
            requests: Default::default(),
        });
        let driver = StoreDriver::new(shared.clone(), issuer, tls, options.request_deadline);
        (Self { shared }, driver)
    }

    /// The certificate of `identity`, if there is one that has not expired. Never waits and requests nothing.
    pub fn current(&self, identity: &SpiffeId) -> Option<Arc<WorkloadCertificate>> {
        self.shared.current(identity)
    }

    /// The certificate of `identity`, for a connection that needs it now.
    ///
    /// Returns at once if there is one, or if the last request failed within seconds or for good; else waits for the
    /// answer to a request, which all who wait share. How long that takes depends on the issuer, so the caller has a
    /// deadline of its own. Dropping the future leaves nothing behind, but the identity stays managed.
    pub async fn certificate(
        &self,
        identity: &SpiffeId,
    ) -> Result<Arc<WorkloadCertificate>, CertificateError> {
        let mut answer = match self.shared.join(identity)? {
            Joined::Held(certificate) => return Ok(certificate),
            Joined::Waiting(answer) => answer,
        };
        let answer = answer.wait_for(Option::is_some).await.map_err(|_| CertificateError::Closed)?;
        let certificate = answer.clone().unwrap_or(Err(CertificateError::Closed))?;
        // The answer may have waited for this task longer than it was good for.
        if certificate.is_expired(SystemTime::now()) {
            return Err(CertificateError::Expired);
        }
        Ok(certificate)
    }

    /// Takes `identity` under management without waiting: its workload will have traffic soon.
    pub fn prefetch(&self, identity: &SpiffeId) {
        let mut managed = self.shared.managed();
        if managed.closed {
            return;
        }
        managed.identities.entry(identity.clone()).or_default();
        managed.schedule.want(identity, Priority::Warmup, Now::read());
        drop(managed);
        self.shared.wake.notify_one();
    }

    /// Drops the certificate of `identity` and ends its management; whoever waits for it is told so. A request that is
    /// running is not interrupted, but its answer is dropped.
    pub fn forget(&self, identity: &SpiffeId) {
        let mut managed = self.shared.managed();
        managed.schedule.forget(identity);
        let forgotten = managed.identities.remove(identity);
        self.shared.remove(&managed, identity);
        drop(managed);
        if let Some(answer) = forgotten.and_then(|managed| managed.answer) {
            answer.send_replace(Some(Err(CertificateError::Forgotten)));
        }
    }

    /// Renews every certificate within `spread` from now, each at a random time: for when the trust roots change, which
    /// reach a workload only with its next certificate. What is held stays in use meanwhile; failures are retried as
    /// ever. Requests that are running may come from before the change, so their identities are asked for again, too.
    pub fn renew_all(&self, spread: Duration) {
        self.shared.managed().schedule.renew_all(spread, Now::read());
        self.shared.wake.notify_one();
    }

    /// How many requests have ended in each way since the start. Takes no lock.
    pub fn requests(&self) -> [(RequestOutcome, u64); RequestOutcome::ALL.len()] {
        RequestOutcome::ALL
            .map(|outcome| (outcome, self.shared.requests[outcome as usize].load(Ordering::Relaxed)))
    }

    /// The identities whose last request failed, and why, in the order of their names. Some of them may hold a
    /// certificate from before.
    pub fn last_errors(&self) -> Vec<(SpiffeId, Arc<RequestError>)> {
        let managed = self.shared.managed();
        let failing = managed.identities.iter();
        let mut failing: Vec<_> = failing
            .filter_map(|(identity, managed)| Some((identity.clone(), managed.last_error.clone()?)))
            .collect();
        drop(managed);
        failing.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        failing
    }

    /// What the store manages and how each identity is doing, in the order of their names.
    pub fn identities(&self) -> Vec<(SpiffeId, IdentityState)> {
        let managed = self.shared.managed();
        let state = |identity: &SpiffeId, managed: &Identity| match self.shared.current(identity) {
            Some(certificate) => IdentityState::Available(certificate),
            None => match &managed.last_error {
                Some(error) => IdentityState::Unavailable(error.clone()),
                None => IdentityState::Initializing,
            },
        };
        let mut identities: Vec<_> = managed
            .identities
            .iter()
            .map(|(identity, managed)| (identity.clone(), state(identity, managed)))
            .collect();
        drop(managed);
        identities.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        identities
    }
}

/// How a managed identity is doing.
#[derive(Clone, Debug)]
pub enum IdentityState {
    /// The first request is not answered yet.
    Initializing,
    /// There is a certificate.
    Available(Arc<WorkloadCertificate>),
    /// The last request failed, and there is no certificate that has not expired.
    Unavailable(Arc<RequestError>),
}

/// Why there is no certificate for a connection.
#[derive(Clone, Debug, Error)]
pub enum CertificateError {
    /// The last request failed. It will be repeated.
    #[error("no certificate could be obtained")]
    Unavailable(#[source] Arc<RequestError>),
    /// The last certificate has expired moments after it was issued.
    #[error("the certificate has expired and its renewal is not due")]
    Expired,
    /// The identity was forgotten while somebody waited.
    #[error("the identity is no longer needed")]
    Forgotten,
    /// The store's driver is gone: the process is shutting down.
    #[error("the certificate store is closed")]
    Closed,
}

impl fmt::Debug for CertificateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateStore")
            .field("current", &self.shared.current.load())
            .finish_non_exhaustive()
    }
}

type Answer = Result<Arc<WorkloadCertificate>, CertificateError>;

/// What handles and driver share.
pub(crate) struct Shared {
    /// Replaced as a whole, and only with `managed` locked; read without a lock.
    current: ArcSwap<HashMap<SpiffeId, Arc<WorkloadCertificate>>>,
    managed: Mutex<Managed>,
    /// Wakes the driver after a change of the schedule.
    pub(crate) wake: Notify,
    /// By outcome.
    requests: [AtomicU64; RequestOutcome::ALL.len()],
}

pub(crate) struct Managed {
    pub(crate) schedule: Schedule,
    identities: HashMap<SpiffeId, Identity>,
    closed: bool,
}

#[derive(Default)]
struct Identity {
    last_error: Option<Arc<RequestError>>,
    /// Where the answer to the next request is awaited, if anybody waits.
    answer: Option<watch::Sender<Option<Answer>>>,
}

enum Joined {
    Held(Arc<WorkloadCertificate>),
    Waiting(watch::Receiver<Option<Answer>>),
}

impl Shared {
    /// No code panics while it holds the lock, so what it guards is whole.
    pub(crate) fn managed(&self) -> MutexGuard<'_, Managed> {
        self.managed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn current(&self, identity: &SpiffeId) -> Option<Arc<WorkloadCertificate>> {
        let current = self.current.load();
        let certificate = current.get(identity)?;
        (!certificate.is_expired(SystemTime::now())).then(|| certificate.clone())
    }

    /// Has every certificate that is revoked, or whose issuer's is, renewed in its turn, and returns those. Judges them
    /// without the lock.
    pub(crate) fn renew_revoked(&self) -> Vec<Arc<WorkloadCertificate>> {
        let current = self.current.load_full();
        let revoked: Vec<_> = current.iter().filter(|(_, held)| held.is_revoked()).collect();
        let mut managed = self.managed();
        for (identity, _) in &revoked {
            managed.schedule.renew(identity, Duration::ZERO, Now::read());
        }
        revoked.into_iter().map(|(_, held)| held.clone()).collect()
    }

    fn join(&self, identity: &SpiffeId) -> Result<Joined, CertificateError> {
        if let Some(certificate) = self.current(identity) {
            return Ok(Joined::Held(certificate));
        }
        let mut managed = self.managed();
        // The answer may have come between the first look and the lock.
        if let Some(certificate) = self.current(identity) {
            return Ok(Joined::Held(certificate));
        }
        if managed.closed {
            return Err(CertificateError::Closed);
        }
        let wanted = managed.schedule.want(identity, Priority::RealTime, Now::read());
        let waiting = managed.identities.entry(identity.clone()).or_default();
        if wanted == Wanted::BackingOff {
            let error = waiting.last_error.clone();
            return Err(error.map_or(CertificateError::Expired, CertificateError::Unavailable));
        }
        let answer = waiting.answer.get_or_insert_with(|| watch::Sender::new(None)).subscribe();
        drop(managed);
        self.wake.notify_one();
        Ok(Joined::Waiting(answer))
    }

    /// Publishes what a request led to and tells whoever waits for it.
    ///
    /// A failure leaves a certificate that has not expired in place. The answer for an identity that was forgotten
    /// meanwhile is dropped.
    pub(crate) fn answer(
        &self,
        identity: &SpiffeId,
        result: Result<Arc<WorkloadCertificate>, Arc<RequestError>>,
    ) {
        let outcome = result.as_ref().map_or_else(|error| error.outcome(), |_| RequestOutcome::Issued);
        self.requests[outcome as usize].fetch_add(1, Ordering::Relaxed);
        let mut managed = self.managed();
        let answer = match &result {
            Ok(certificate) => Ok(certificate.as_ref().into()),
            Err(error) => Err(error.retry()),
        };
        if !managed.schedule.answered(identity, answer, Now::read()) {
            return;
        }
        let entry = managed.identities.entry(identity.clone()).or_default();
        entry.last_error = result.as_ref().err().cloned();
        let waiting = entry.answer.take();
        match &result {
            Ok(certificate) => self.insert(&managed, identity, certificate.clone()),
            Err(_) if self.current(identity).is_none() => self.remove(&managed, identity),
            Err(_) => {}
        }
        drop(managed);
        if let Some(waiting) = waiting {
            waiting.send_replace(Some(result.map_err(CertificateError::Unavailable)));
        }
    }

    /// Ends the service: whoever waits or will ask gets [`CertificateError::Closed`]. Certificates stay readable.
    pub(crate) fn close(&self) {
        let mut managed = self.managed();
        managed.closed = true;
        for identity in managed.identities.values_mut() {
            identity.answer = None;
        }
    }

    /// Under the identity that was asked for, whatever the authority made of it.
    fn insert(&self, _locked: &Managed, identity: &SpiffeId, certificate: Arc<WorkloadCertificate>) {
        let mut next = HashMap::clone(&self.current.load());
        next.insert(identity.clone(), certificate);
        self.current.store(Arc::new(next));
    }

    fn remove(&self, _locked: &Managed, identity: &SpiffeId) {
        let current = self.current.load();
        if current.contains_key(identity) {
            let mut next = HashMap::clone(&current);
            next.remove(identity);
            self.current.store(Arc::new(next));
        }
    }
}
