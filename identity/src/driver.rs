//! Does what the schedule says: one task for all requests of a [`CertificateStore`](crate::CertificateStore).

use std::error::Error as StdError;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use thiserror::Error;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::schedule::{Next, Now, Validity};
use crate::store::Shared;
use crate::{
    CertificateChain, ChainError, CsrError, Granted, IssueError, Issuer, KeyError, PrivateKey, Retry,
    SpiffeId, Tls, WorkloadCertificate, WorkloadCertificateError, certificate_request,
};

/// The longest sleep: a timer does not see that the wall clock was set, so somebody has to look.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// The task that requests certificates. Dropping it closes the store.
pub struct StoreDriver {
    shared: Arc<Shared>,
    issuer: Arc<dyn Issuer>,
    tls: Tls,
    deadline: Duration,
}

impl StoreDriver {
    pub(crate) fn new(shared: Arc<Shared>, issuer: Arc<dyn Issuer>, tls: Tls, deadline: Duration) -> Self {
        Self { shared, issuer, tls, deadline }
    }

    /// Requests certificates until `shutdown` completes, then abandons the requests that are running and closes the
    /// store. Dropping the future does the same.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        let mut running = FuturesUnordered::new();
        let mut revocations = self.tls.revocations().subscribe();
        loop {
            let wake_at = loop {
                let now = Now::read();
                let next = self.shared.managed().schedule.next(now);
                match next {
                    Next::Request(identity) => running.push(self.request(identity)),
                    Next::At(due) => break (now.monotonic + CLOCK_CHECK).min(due),
                    Next::Idle => break now.monotonic + CLOCK_CHECK,
                }
            };
            tokio::select! {
                () = &mut shutdown => return,
                Some((identity, result)) = running.next() => self.finish(&identity, result),
                () = self.shared.wake.notified() => {}
                () = revocations.next() => self.shared.renew_revoked().iter().for_each(|held| warn_of_revoked(held)),
                () = sleep_until(wake_at.into()) => {}
            }
        }
    }

    async fn request(&self, identity: SpiffeId) -> (SpiffeId, Result<WorkloadCertificate, RequestError>) {
        debug!(%identity, "requesting a certificate");
        let result =
            timeout(self.deadline, self.obtain(&identity)).await.unwrap_or(Err(RequestError::Deadline));
        (identity, result)
    }

    /// A new key for every request: a certificate that is replaced takes its key with it.
    async fn obtain(&self, identity: &SpiffeId) -> Result<WorkloadCertificate, RequestError> {
        let key = PrivateKey::generate()?;
        let request = certificate_request(identity, &key)?;
        let issued = self.issuer.issue(identity, &request).await?;
        let chain = CertificateChain::from_pem_elements(&issued.0)?;
        let named = match self.issuer.granted() {
            Granted::Requested => identity.clone(),
            Granted::ByAuthority => chain.identity.clone(),
        };
        Ok(WorkloadCertificate::new(&named, key, chain, &self.tls, SystemTime::now())?)
    }

    fn finish(&self, identity: &SpiffeId, result: Result<WorkloadCertificate, RequestError>) {
        match &result {
            Ok(certificate) => {
                let serial = &certificate.chain().leaf.serial_number;
                info!(%identity, serial, "certificate obtained");
                // To ask again would hardly help, and every new list does.
                if certificate.is_revoked() {
                    warn_of_revoked(certificate);
                }
            }
            // What is held may last until the retry succeeds, and then nobody has to act.
            Err(error) if self.shared.current(identity).is_some() => {
                let error = error as &dyn StdError;
                info!(%identity, error, "certificate not renewed; will ask again");
            }
            Err(error) => {
                let error = error as &dyn StdError;
                warn!(%identity, error, "no certificate obtained; will ask again");
            }
        }
        self.shared.answer(identity, result.map(Arc::new).map_err(Arc::new));
    }
}

/// Peers with the same lists will refuse such a certificate. Only its authority can help, with another one.
fn warn_of_revoked(certificate: &WorkloadCertificate) {
    let (identity, serial) = (certificate.identity(), &certificate.chain().leaf.serial_number);
    warn!(%identity, serial, "our own certificate or its issuer's is revoked");
}

impl Drop for StoreDriver {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl fmt::Debug for StoreDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreDriver").finish_non_exhaustive()
    }
}

impl Now {
    pub(crate) fn read() -> Self {
        Self { monotonic: Instant::now().into_std(), wall: SystemTime::now() }
    }
}

impl From<&WorkloadCertificate> for Validity {
    fn from(certificate: &WorkloadCertificate) -> Self {
        Self { not_before: certificate.not_before(), not_after: certificate.not_after() }
    }
}

/// Why a request led to no certificate.
#[derive(Debug, Error)]
pub enum RequestError {
    /// No key could be made.
    #[error("no private key for the certificate request")]
    Key(#[from] KeyError),
    /// No request could be made.
    #[error("no certificate request")]
    Request(#[from] CsrError),
    /// The issuer did not issue.
    #[error("no certificate issued")]
    Issue(#[from] IssueError),
    /// What was issued cannot be read.
    #[error("unreadable certificate chain issued")]
    Chain(#[from] ChainError),
    /// What was issued is not what was asked for.
    #[error("unusable certificate issued")]
    Certificate(#[from] WorkloadCertificateError),
    /// The issuer did not answer in time.
    #[error("the certificate authority did not answer in time")]
    Deadline,
}

impl RequestError {
    pub(crate) fn retry(&self) -> Retry {
        match self {
            Self::Issue(error) => error.retry(),
            Self::Key(_) | Self::Chain(_) | Self::Certificate(_) | Self::Deadline => Retry::Soon,
            Self::Request(_) => Retry::Rarely,
        }
    }

    /// The reason, as it is counted.
    pub fn outcome(&self) -> RequestOutcome {
        match self {
            Self::Key(_) | Self::Request(_) => RequestOutcome::NotSent,
            Self::Issue(IssueError::Unavailable(_)) => RequestOutcome::Unavailable,
            Self::Issue(IssueError::Unauthorized(_)) => RequestOutcome::Unauthorized,
            Self::Issue(IssueError::Invalid(_)) => RequestOutcome::Invalid,
            Self::Chain(_) | Self::Certificate(_) => RequestOutcome::Unusable,
            Self::Deadline => RequestOutcome::Deadline,
        }
    }
}

/// How a request ended, for the label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestOutcome {
    /// With a certificate.
    Issued,
    /// The authority could not be reached, or could not issue.
    Unavailable,
    /// The authority did not let us have the identity.
    Unauthorized,
    /// The authority found the request invalid.
    Invalid,
    /// The authority did not answer in time.
    Deadline,
    /// What was issued cannot be read, or is not what was asked for.
    Unusable,
    /// No key or no request could be made.
    NotSent,
}

impl RequestOutcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Issued,
        Self::Unavailable,
        Self::Unauthorized,
        Self::Invalid,
        Self::Deadline,
        Self::Unusable,
        Self::NotSent,
    ];

    /// A label, in the style of the other metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Unavailable => "unavailable",
            Self::Unauthorized => "unauthorized",
            Self::Invalid => "invalid",
            Self::Deadline => "deadline",
            Self::Unusable => "unusable",
            Self::NotSent => "not_sent",
        }
    }
}
