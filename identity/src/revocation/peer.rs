//! Live connections whose peer may be revoked later.

use std::fmt;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;
use tracing::warn;
use webpki::EndEntityCert;

use super::{CrlSet, Revocations, Shared, Side};
use crate::verify::TrustRoots;

/// Tells when the peer of a connection is revoked.
///
/// Holds what the handshake was about: the chain that the peer presented, the roots by which it was judged, and when.
/// Costs nothing while the lists stay as they are. On new ones, each presented certificate is looked up; only if one is
/// listed, the chain is verified again as of the time of the handshake, and that decides: a certificate that has
/// expired since can still be revoked, and one that was presented without need, or was issued by a namesake of the
/// list's issuer, is no reason to end anything.
pub struct PeerWatch(State);

impl PeerWatch {
    pub(crate) fn new(
        revocations: &Revocations,
        trust: &Arc<TrustRoots>,
        side: Side,
        chain: &[CertificateDer<'_>],
    ) -> Self {
        let Some(shared) = &revocations.shared else { return Self(State::Untracked) };
        if chain.first().is_none_or(|leaf| EndEntityCert::try_from(leaf).is_err()) {
            untracked(shared, side, "its certificate cannot be read");
            return Self(State::Untracked);
        }
        Self(State::Watching(Watched {
            generation: shared.generation.subscribe(),
            looked: false,
            shared: shared.clone(),
            trust: trust.clone(),
            side,
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            established: UnixTime::now(),
        }))
    }

    /// Completes when the peer is revoked, at once if it is already; never if that cannot be found out.
    ///
    /// Looks at the lists that are in force when it is first called, so none that came since the handshake is missed.
    /// Dropping the future loses nothing.
    pub async fn revoked(&mut self) {
        loop {
            match &mut self.0 {
                State::Revoked => return,
                State::Untracked => std::future::pending().await,
                State::Watching(watched) => {
                    // The sender lives in what `watched` holds.
                    if watched.looked && watched.generation.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                    if let Some(state) = watched.look() {
                        self.0 = state;
                    }
                }
            }
        }
    }
}

enum State {
    Watching(Watched),
    Revoked,
    Untracked,
}

struct Watched {
    generation: watch::Receiver<u64>,
    /// Whether the lists of the generation last seen have been looked at.
    looked: bool,
    shared: Arc<Shared>,
    trust: Arc<TrustRoots>,
    side: Side,
    chain: Vec<CertificateDer<'static>>,
    established: UnixTime,
}

impl Watched {
    /// Judges by the lists in force. Returns the state to go into, if the watch is over.
    fn look(&mut self) -> Option<State> {
        self.generation.borrow_and_update();
        self.looked = true;
        let crls = self.shared.current.load_full()?;
        if !self.chain.iter().any(|certificate| is_listed(&crls, certificate)) {
            return None;
        }
        match self.trust.standing(&self.chain, self.side, self.established, &crls) {
            Standing::Good => None,
            Standing::Revoked => {
                self.shared.ended.add(self.side);
                Some(State::Revoked)
            }
            Standing::Unknown => {
                untracked(&self.shared, self.side, "its certificate no longer verifies");
                Some(State::Untracked)
            }
        }
    }
}

/// What a chain is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Good,
    Revoked,
    /// It does not verify, for other reasons than revocation.
    Unknown,
}

fn is_listed(crls: &CrlSet, certificate: &CertificateDer<'_>) -> bool {
    EndEntityCert::try_from(certificate).is_ok_and(|certificate| crls.lists(&certificate))
}

fn untracked(shared: &Shared, side: Side, reason: &str) {
    shared.untracked.add(side);
    warn!(reporter = side.as_str(), reason, "a connection will not end when its peer is revoked");
}

impl fmt::Debug for PeerWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.0 {
            State::Watching(_) => "watching",
            State::Revoked => "revoked",
            State::Untracked => "untracked",
        };
        f.debug_tuple("PeerWatch").field(&state).finish()
    }
}
