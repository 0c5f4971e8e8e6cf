//! Revoked certificates: what is refused at the handshake, and which connections end when a list changes.
//!
//! The operator names a file of certificate revocation lists (RFC 5280 section 5), which may change at any time. A
//! [`RevocationDriver`] reads it; handshakes and [`PeerWatch`]es look at what it read last, through a [`Revocations`]
//! handle, and touch no file. Every certificate of the path is judged, the root excepted. What no list mentions is good;
//! a list counts beyond its nextUpdate, since a control plane that is late must not unrevoke anything.
//!
//! Names are not enough to tell authorities apart: roots of one name are normal while they are replaced. So every list
//! of a matching name is tried, and one revokes only what the very key that signed it has issued.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

pub use crl::{CrlError, CrlSet};
pub use file::RevocationDriver;
pub use peer::PeerWatch;
pub(crate) use peer::Standing;

mod crl;
mod file;
mod peer;

/// A handle to what is revoked at the moment; clones share it.
#[derive(Clone, Default)]
pub struct Revocations {
    /// None: revocation is not looked at.
    shared: Option<Arc<Shared>>,
}

impl Revocations {
    /// Nothing is ever revoked.
    pub fn disabled() -> Self {
        Self::default()
    }

    /// What the file at `path` revokes. Reads it before returning (blocking), so that the first handshake knows it;
    /// changes are seen while the driver runs, once they have settled for two seconds. A file that is missing or bad revokes nothing until there is a good one.
    pub fn watch_file(path: impl Into<PathBuf>) -> (Self, RevocationDriver) {
        let shared = Arc::new(Shared::default());
        (Self { shared: Some(shared.clone()) }, RevocationDriver::new(shared, path.into()))
    }

    /// How often a revocation made a difference since the start.
    pub fn counts(&self) -> RevocationCounts {
        self.shared.as_ref().map_or_else(RevocationCounts::default, |shared| RevocationCounts {
            refused: shared.refused.read(),
            ended: shared.ended.read(),
            untracked: shared.untracked.read(),
        })
    }

    /// Whether there is a file to follow.
    pub fn is_enabled(&self) -> bool {
        self.shared.is_some()
    }

    /// How many lists are in force.
    pub fn lists(&self) -> usize {
        self.current().map_or(0, |crls| crls.len())
    }

    /// Waits for other lists than those at the time of the last wait, or of the subscription. For ever if disabled.
    pub(crate) fn subscribe(&self) -> Changes {
        Changes(self.shared.as_ref().map(|shared| shared.generation.subscribe()))
    }

    /// The lists in force; none if disabled or if there is no list.
    pub(crate) fn current(&self) -> Option<Arc<CrlSet>> {
        self.shared.as_ref()?.current.load_full()
    }

    pub(crate) fn count_refusal(&self, side: Side) {
        if let Some(shared) = &self.shared {
            shared.refused.add(side);
        }
    }
}

/// Which end of a connection we are; the side from which it is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// We opened it, and the peer is the server.
    Source,
    /// We accepted it, and the peer is the client.
    Destination,
}

impl Side {
    /// `source` or `destination`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// How often a revocation made a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RevocationCounts {
    /// Handshakes that we refused because of one.
    pub refused: BySide,
    /// Live connections whose peer was revoked, each counted once: when its [`PeerWatch`] said so.
    pub ended: BySide,
    /// Connections for which that cannot be found out.
    pub untracked: BySide,
}

/// A number for each [`Side`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BySide {
    /// As [`Side::Source`].
    pub source: u64,
    /// As [`Side::Destination`].
    pub destination: u64,
}

/// New lists, as one who waits for them sees it.
pub(crate) struct Changes(Option<watch::Receiver<u64>>);

impl Changes {
    pub(crate) async fn next(&mut self) {
        if let Some(generation) = &mut self.0
            && generation.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

#[derive(Default)]
pub(crate) struct Shared {
    /// None as long as no list revokes anything, so that nobody looks.
    current: ArcSwapOption<CrlSet>,
    /// Counts the sets that have been in force.
    generation: watch::Sender<u64>,
    refused: Counter,
    ended: Counter,
    untracked: Counter,
}

impl Shared {
    /// Puts `crls` in force, and has live connections looked at.
    fn publish(&self, crls: CrlSet) {
        self.current.store((!crls.is_empty()).then(|| Arc::new(crls)));
        self.generation.send_modify(|generation| *generation += 1);
    }
}

#[derive(Default)]
struct Counter {
    source: AtomicU64,
    destination: AtomicU64,
}

impl Counter {
    fn add(&self, side: Side) {
        let count = match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> BySide {
        BySide {
            source: self.source.load(Ordering::Relaxed),
            destination: self.destination.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocations")
            .field("enabled", &self.is_enabled())
            .field("lists", &self.lists())
            .finish()
    }
}
