//! The connections under way, as those see them who list them or may have to end them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::copy::Limits;
use super::cut::{CutReason, Cutter};
use super::report::Record;

/// A connection from its record's opening to its end.
#[derive(Debug)]
pub(crate) struct OpenConnection {
    /// What is reported of it.
    pub(crate) record: Record,
    /// By which it is cut.
    pub(crate) cutter: Cutter,
    /// Whether it has been announced.
    pub(super) announced: Cell<bool>,
    /// Whether its end has been reported.
    pub(super) finished: Cell<bool>,
    among: Rc<OpenConnections>,
    id: u64,
}

/// A connection's place among the open ones, which it leaves when this is dropped. A pointer, since the connection's task keeps
/// it for as long as it lives.
#[derive(Debug)]
pub(crate) struct Entry(Rc<OpenConnection>);

impl Deref for Entry {
    type Target = OpenConnection;

    fn deref(&self) -> &OpenConnection {
        &self.0
    }
}

impl Limits for OpenConnection {
    fn poll_end(&self, context: &mut Context<'_>) -> Poll<()> {
        self.cutter.poll(context)
    }

    fn half_closed(&self) -> Duration {
        self.among.half_closed
    }
}

/// The open connections of one pod on one worker, in the order in which they were opened.
#[derive(Debug)]
pub(crate) struct OpenConnections {
    /// How long each may be silent in one direction once the other has ended.
    half_closed: Duration,
    next: Cell<u64>,
    open: RefCell<BTreeMap<u64, Rc<OpenConnection>>>,
}

impl OpenConnections {
    pub(crate) fn new(half_closed: Duration) -> Self {
        Self { half_closed, next: Cell::default(), open: RefCell::default() }
    }

    /// Adds a connection, which leaves when the entry is dropped.
    pub(crate) fn add(self: &Rc<Self>, record: Record) -> Entry {
        let id = self.next.get();
        self.next.set(id + 1);
        let connection = Rc::new(OpenConnection {
            record,
            cutter: Cutter::default(),
            announced: Cell::new(false),
            finished: Cell::new(false),
            among: self.clone(),
            id,
        });
        self.open.borrow_mut().insert(id, connection.clone());
        Entry(connection)
    }

    /// Those that are open now.
    pub(crate) fn all(&self) -> Vec<Rc<OpenConnection>> {
        self.open.borrow().values().cloned().collect()
    }

    /// Has all connections end.
    pub(crate) fn cut_all(&self, reason: &CutReason) {
        self.cut(|_| true, reason);
    }

    /// Has those end that came in the tunnel between `peer` and our address `local`.
    pub(crate) fn cut_tunnel(&self, peer: SocketAddr, local: SocketAddr, reason: &CutReason) {
        self.cut(|record| record.is_in_tunnel(peer, local), reason);
    }

    fn cut(&self, which: impl Fn(&Record) -> bool, reason: &CutReason) {
        // A cut only wakes the connection's task, which leaves later.
        for connection in self.open.borrow().values().filter(|connection| which(&connection.record)) {
            connection.cutter.cut(reason.clone());
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let connection = &self.0;
        connection.among.open.borrow_mut().remove(&connection.id);
    }
}
