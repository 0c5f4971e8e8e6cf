//! The dialling side: a tunnel, and the right to open streams on it.
//!
//! [`Tunnel::handshake`] gives two things: the [`Tunnel`], to open streams with, and its [`Driver`], a
//! future that moves the bytes and has to be spawned. A stream is opened in two steps, so that a slot
//! is counted before anything is sent and a tunnel never carries more streams than its peer allows:
//! [`Tunnel::lease`] takes a slot, [`Lease::connect`] sends the CONNECT.
//!
//! The tunnel ends, with GOAWAY(NO_ERROR) and a clean shutdown of the transport, when its last `Tunnel`
//! value and its last stream are gone.

mod connect;
mod driver;

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::rc::Rc;

use h2::client::SendRequest;
use tokio::time::Instant;

use crate::stream::Piece;

pub use connect::{ConnectError, ConnectRequest, ConnectResponse, Connected};
pub use driver::{Driver, HandshakeError, TunnelError};

/// A handle to an open tunnel. Clones refer to the same tunnel.
#[derive(Clone)]
pub struct Tunnel(Rc<Shared>);

/// A slot for one stream: counted from [`Tunnel::lease`] until it is dropped, or until both halves of
/// the stream that [`Lease::connect`] opened with it are.
pub struct Lease(Rc<Shared>);

/// Whether this side has cut a tunnel, as opposed to the peer or the network. Set by whoever is about to drop the tunnel's
/// [`Driver`], read by those who want to know why their stream ended. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct CutMark(Rc<Cell<bool>>);

impl CutMark {
    /// This side cuts the tunnel.
    pub fn set(&self) {
        self.0.set(true);
    }

    /// Whether this side has cut it.
    pub fn is_set(&self) -> bool {
        self.0.get()
    }
}

/// What a tunnel's handles, streams and driver have in common.
struct Shared {
    sender: RefCell<SendRequest<Piece>>,
    /// Streams that we are willing to put on this tunnel.
    max_streams: usize,
    /// Streams that the peer allows; unknown until its SETTINGS came.
    peer_max_streams: Cell<Option<usize>>,
    leases: Cell<usize>,
    /// When the last lease ended, or when the tunnel was made.
    idle_since: Cell<Instant>,
    availability: Cell<Availability>,
    cut: CutMark,
    peer_name: OnceCell<Rc<str>>,
    /// Called when a lease ends, the peer's limit becomes known, or the tunnel is no longer available.
    observer: OnceCell<Box<dyn Fn()>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Availability {
    /// New streams may be opened.
    Open,
    /// No new streams; those that are open go on.
    Retired,
    /// The driver is gone, and all streams with it.
    Ended,
}

impl Tunnel {
    /// Takes a slot for one stream, if the tunnel has one.
    ///
    /// There is one slot until the peer's SETTINGS have come, then as many as both sides allow. So the
    /// first stream need not wait for a round trip, and no number of further ones overruns the peer.
    pub fn lease(&self) -> Option<Lease> {
        let shared = &self.0;
        if !self.is_available() || shared.leases.get() >= shared.slots() {
            return None;
        }
        shared.leases.set(shared.leases.get() + 1);
        Some(Lease(shared.clone()))
    }

    /// [`lease`](Tunnel::lease) and [`Lease::connect`] in one; fails with [`ConnectError::Full`] if
    /// there is no slot.
    pub async fn connect(
        &self,
        request: &ConnectRequest,
        deadline: Instant,
    ) -> Result<Connected, ConnectError> {
        self.lease().ok_or(ConnectError::Full)?.connect(request, deadline).await
    }

    /// Whether new streams may be opened: false after GOAWAY, after [`retire`](Tunnel::retire), and when
    /// the tunnel has ended.
    pub fn is_available(&self) -> bool {
        self.0.availability.get() == Availability::Open
    }

    /// Where it is noted that this side cuts the tunnel.
    pub fn cut_mark(&self) -> CutMark {
        self.0.cut.clone()
    }

    /// Notes who the peer is, for those who open streams: [`Connected::peer_name`]. A tunnel has one peer; later names are
    /// ignored.
    pub fn name_peer(&self, name: Rc<str>) {
        let _ = self.0.peer_name.set(name);
    }

    /// Slots taken.
    pub fn leases(&self) -> usize {
        self.0.leases.get()
    }

    /// Opens no more streams on this tunnel. Those that are open go on, and the tunnel closes after
    /// them.
    pub fn retire(&self) {
        self.0.retire();
    }

    /// Slots in all, or `None` while the peer has not said how many it allows.
    pub(crate) fn known_slots(&self) -> Option<usize> {
        self.0.peer_max_streams.get().map(|_| self.0.slots())
    }

    /// When the tunnel fell idle; `None` while it has streams.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        (self.0.leases.get() == 0).then(|| self.0.idle_since.get())
    }

    /// Registers the one who is told of changes. A tunnel has one observer at most; later ones are
    /// ignored.
    pub(crate) fn observe(&self, observer: Box<dyn Fn()>) {
        let _ = self.0.observer.set(observer);
    }
}

impl Shared {
    fn new(sender: SendRequest<Piece>, max_streams: usize) -> Self {
        Shared {
            sender: RefCell::new(sender),
            max_streams,
            peer_max_streams: Cell::new(None),
            leases: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            availability: Cell::new(Availability::Open),
            cut: CutMark::default(),
            peer_name: OnceCell::new(),
            observer: OnceCell::new(),
        }
    }

    fn slots(&self) -> usize {
        self.peer_max_streams.get().map_or(1, |peer| peer.min(self.max_streams))
    }

    fn retire(&self) {
        if self.availability.get() == Availability::Open {
            self.availability.set(Availability::Retired);
            self.notify();
        }
    }

    fn end(&self) {
        if self.availability.replace(Availability::Ended) != Availability::Ended {
            self.notify();
        }
    }

    fn notify(&self) {
        if let Some(observer) = self.observer.get() {
            observer();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let leases = self.0.leases.get() - 1;
        self.0.leases.set(leases);
        if leases == 0 {
            self.0.idle_since.set(Instant::now());
        }
        self.0.notify();
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("availability", &self.0.availability.get())
            .field("leases", &self.0.leases.get())
            .field("peer_max_streams", &self.0.peer_max_streams.get())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").finish_non_exhaustive()
    }
}
