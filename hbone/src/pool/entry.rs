//! Everything under one key: tunnels, dials under way, and the queue of those who wait.
//!
//! Dropping a lease, a permit or a ticket comes back here, so no method keeps a `RefCell` borrowed while
//! it drops one of them or calls another method.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::hash::Hash;
use std::rc::{Rc, Weak};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Home;
use crate::client::{Lease, Tunnel};

pub(super) struct Entry<K: Eq + Hash, E> {
    key: K,
    home: Weak<Home<K, E>>,
    tunnels: RefCell<Vec<Tunnel>>,
    /// Dials permitted and not finished.
    dials: Cell<usize>,
    /// Slots to expect of a new tunnel: the configured number, or what the peer last allowed.
    slots_per_tunnel: Cell<usize>,
    /// In order of arrival.
    queue: RefCell<BTreeMap<u64, Waiter<K, E>>>,
    next_ticket: Cell<u64>,
}

struct Waiter<K: Eq + Hash, E> {
    turn: oneshot::Sender<Turn<K, E>>,
    /// Has used its dial; can only wait for others now.
    has_dialled: bool,
}

/// What one who waits is given.
pub(super) enum Turn<K: Eq + Hash, E> {
    /// A slot.
    Stream(Lease),
    /// The task to open another tunnel.
    Dial(DialPermit<K, E>),
    /// The error of the dial that it waited for.
    Failed(E),
    /// Its own dial succeeded, but the tunnel was of no use, and nothing else is on its way.
    Lost,
}

/// A dial that others count on. Dropping it unfinished passes the task on to the next in the queue.
pub(super) struct DialPermit<K: Eq + Hash, E> {
    /// Taken when the dial is over.
    entry: Option<Rc<Entry<K, E>>>,
    /// The place of the one who dials.
    number: u64,
}

/// A place in the queue; dropping it gives it up.
pub(super) struct Ticket<K: Eq + Hash, E> {
    entry: Rc<Entry<K, E>>,
    number: u64,
    turn: oneshot::Receiver<Turn<K, E>>,
}

impl<K: Eq + Hash, E> Entry<K, E> {
    pub(super) fn new(key: K, home: Weak<Home<K, E>>, slots_per_tunnel: usize) -> Self {
        Entry {
            key,
            home,
            tunnels: RefCell::default(),
            dials: Cell::new(0),
            slots_per_tunnel: Cell::new(slots_per_tunnel),
            queue: RefCell::new(BTreeMap::new()),
            next_ticket: Cell::new(0),
        }
    }

    /// A slot on the oldest tunnel that has one: so the younger ones fall idle when demand does.
    pub(super) fn lease(&self) -> Option<Lease> {
        self.tunnels.borrow().iter().find_map(Tunnel::lease)
    }

    /// Takes a place at the end of the queue.
    pub(super) fn enqueue(self: &Rc<Self>) -> Ticket<K, E> {
        let number = self.next_ticket.replace(self.next_ticket.get() + 1);
        let (sender, turn) = oneshot::channel();
        self.queue.borrow_mut().insert(number, Waiter { turn: sender, has_dialled: false });
        self.settle();
        Ticket { entry: self.clone(), number, turn }
    }

    /// Brings everything in line after any change.
    pub(super) fn settle(self: &Rc<Self>) {
        self.review_tunnels();
        self.serve();
        self.delegate();
        self.forget_if_empty();
    }

    /// When the tunnel that has been idle for longest fell idle.
    pub(super) fn oldest_idle(&self) -> Option<Instant> {
        self.tunnels.borrow().iter().filter_map(Tunnel::idle_since).min()
    }

    /// Lets go of tunnels that have been idle since `limit` or longer.
    pub(super) fn release_idle(&self, limit: Instant) {
        self.let_go(|tunnel| tunnel.idle_since().is_some_and(|since| since <= limit));
        self.forget_if_empty();
    }

    /// Lets go of everything; those who wait learn that the pool is shut down.
    pub(super) fn drain(&self) {
        self.let_go(|_| true);
        let queue = std::mem::take(&mut *self.queue.borrow_mut());
        drop(queue);
    }

    /// Drops tunnels that take no more streams, and remembers what their peer allows.
    fn review_tunnels(&self) {
        self.let_go(|tunnel| !tunnel.is_available());
        if let Some(slots) = self.tunnels.borrow().iter().rev().find_map(Tunnel::known_slots) {
            self.slots_per_tunnel.set(slots.max(1));
        }
    }

    /// Gives free slots to those who wait, first come, first served.
    fn serve(&self) {
        while !self.queue.borrow().is_empty()
            && let Some(lease) = self.lease()
        {
            let first = self.queue.borrow_mut().pop_first();
            if let Some((_, waiter)) = first {
                let _ = waiter.turn.send(Turn::Stream(lease));
            }
        }
    }

    /// While more wait than slots are on their way, has the first who can open another tunnel. If
    /// nobody can, there is nothing to wait for.
    fn delegate(self: &Rc<Self>) {
        while self.queue.borrow().len() > self.expected_slots() {
            if let Some((number, waiter)) = self.take_first_who_can_dial() {
                self.dials.set(self.dials.get() + 1);
                let permit = DialPermit { entry: Some(self.clone()), number };
                let _ = waiter.turn.send(Turn::Dial(permit));
            } else if let Some(waiter) = self.take_last() {
                let _ = waiter.turn.send(Turn::Lost);
            }
        }
    }

    fn take_first_who_can_dial(&self) -> Option<(u64, Waiter<K, E>)> {
        let mut queue = self.queue.borrow_mut();
        let number = queue.iter().find(|(_, waiter)| !waiter.has_dialled).map(|(number, _)| *number)?;
        queue.remove_entry(&number)
    }

    fn take_last(&self) -> Option<Waiter<K, E>> {
        self.queue.borrow_mut().pop_last().map(|(_, waiter)| waiter)
    }

    /// Slots that dials under way will bring, and tunnels whose peer has not yet said what it allows.
    fn expected_slots(&self) -> usize {
        let per_tunnel = self.slots_per_tunnel.get();
        let undisclosed = |tunnel: &Tunnel| match tunnel.known_slots() {
            Some(_) => 0,
            None => per_tunnel.saturating_sub(tunnel.leases()),
        };
        let tunnels = self.tunnels.borrow();
        self.dials.get() * per_tunnel + tunnels.iter().map(undisclosed).sum::<usize>()
    }

    fn let_go(&self, unwanted: impl Fn(&Tunnel) -> bool) {
        let gone: Vec<Tunnel> = self.tunnels.borrow_mut().extract_if(.., |tunnel| unwanted(tunnel)).collect();
        if !gone.is_empty()
            && let Some(home) = self.home.upgrade()
        {
            home.removed(gone.len());
        }
    }

    fn forget_if_empty(&self) {
        let empty =
            self.dials.get() == 0 && self.tunnels.borrow().is_empty() && self.queue.borrow().is_empty();
        if empty && let Some(home) = self.home.upgrade() {
            home.forget(&self.key);
        }
    }
}

impl<K, E> DialPermit<K, E>
where
    K: Eq + Hash + 'static,
    E: Clone + 'static,
{
    /// Ends the dial with the tunnel that it opened, or with the error for those who waited for it.
    pub(super) fn finish(mut self, outcome: Result<Tunnel, E>) {
        let Some(entry) = self.entry.take() else {
            return;
        };
        entry.dials.set(entry.dials.get() - 1);
        match outcome {
            Ok(tunnel) => entry.adopt(tunnel),
            Err(error) => entry.fail(self.number, &error),
        }
    }
}

impl<K, E> Entry<K, E>
where
    K: Eq + Hash + 'static,
    E: Clone + 'static,
{
    fn adopt(self: &Rc<Self>, tunnel: Tunnel) {
        let Some(home) = self.home.upgrade().filter(|home| !home.is_drained()) else {
            return self.drain();
        };
        let entry = Rc::downgrade(self);
        tunnel.observe(Box::new(move || {
            if let Some(entry) = entry.upgrade() {
                entry.settle();
                entry.home.upgrade().iter().for_each(|home| home.evict());
            }
        }));
        self.tunnels.borrow_mut().push(tunnel);
        home.added();
        self.settle();
        home.evict();
    }

    /// Fails the one who dialled, and everyone for whom nothing else is on its way: the latest first,
    /// if some may still hope.
    fn fail(self: &Rc<Self>, number: u64, error: &E) {
        let dialler = self.queue.borrow_mut().remove(&number);
        let surplus =
            || if self.queue.borrow().len() > self.expected_slots() { self.take_last() } else { None };
        for waiter in dialler.into_iter().chain(std::iter::from_fn(surplus)) {
            let _ = waiter.turn.send(Turn::Failed(error.clone()));
        }
        self.settle();
    }
}

impl<K: Eq + Hash, E> Drop for DialPermit<K, E> {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.dials.set(entry.dials.get() - 1);
            entry.settle();
        }
    }
}

impl<K: Eq + Hash, E> Ticket<K, E> {
    /// Waits for a turn; `None` if the pool is shut down. Dropping the future loses nothing.
    pub(super) async fn turn(&mut self) -> Option<Turn<K, E>> {
        (&mut self.turn).await.ok()
    }

    /// Goes back to the same place in the queue, after having started the dial that its turn was.
    pub(super) fn wait_on(&mut self) {
        let (sender, turn) = oneshot::channel();
        self.turn = turn;
        self.entry.queue.borrow_mut().insert(self.number, Waiter { turn: sender, has_dialled: true });
        self.entry.settle();
    }
}

impl<K: Eq + Hash, E> Drop for Ticket<K, E> {
    fn drop(&mut self) {
        let waiter = self.entry.queue.borrow_mut().remove(&self.number);
        drop(waiter);
        self.entry.forget_if_empty();
    }
}
