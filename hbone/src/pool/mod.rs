//! Tunnels shared between connections to one destination.
//!
//! A key stands for everything that two connections must have in common to share a tunnel: the caller
//! puts the identities and addresses in. Under a key there are tunnels, dials under way, and callers
//! that wait:
//!
//! ```text
//!   acquire -- a tunnel has a slot ------------------------------> Lease
//!         \--- wait -- a slot comes up, or a dial brings some ---> Lease
//!                  \-- more wait than the dials under way will
//!                      bring slots: this caller dials too
//!                  \-- the dial fails, nothing else to come -----> PoolError::Dial, all at once
//!                  \-- the tunnel that it dialled is useless ----> PoolError::Lost
//!                  \-- the caller's own deadline ----------------> PoolError::Deadline
//! ```
//!
//! Nothing is remembered of a failure: the next caller dials again. Tunnels leave the pool when they
//! refuse new streams or end, when they have been idle for long enough, and, least recently used first,
//! when there are too many. Leaving the pool closes a tunnel only after its last stream.

mod entry;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::rc::{Rc, Weak};

use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::client::{ConnectError, ConnectRequest, Connected, Lease, Tunnel};
use crate::settings::PoolSettings;
use entry::{Entry, Turn};

/// A worker's tunnels. `E` is the error of a dial; it is cloned for everyone who waited for that dial.
///
/// Has to be used inside a `LocalSet`. Dropping the pool is [`drain`](Pool::drain).
pub struct Pool<K: Eq + Hash, E>(Rc<Home<K, E>>);

/// Why the pool gave no stream.
#[derive(Debug, thiserror::Error)]
pub enum PoolError<E> {
    /// No tunnel could be opened.
    #[error("no tunnel could be opened")]
    Dial(#[source] E),
    /// The peer did not accept the connection.
    #[error("no stream could be opened on a tunnel")]
    Connect(#[source] ConnectError),
    /// A tunnel could be opened, but ended or took no streams before it could be used.
    #[error("the tunnel could not be used")]
    Lost,
    /// There was no tunnel with room for another stream in time.
    #[error("no tunnel was ready in time")]
    Deadline,
    /// The pool is being shut down.
    #[error("the tunnel pool is shut down")]
    Drained,
}

struct Home<K: Eq + Hash, E> {
    settings: PoolSettings,
    entries: RefCell<HashMap<K, Rc<Entry<K, E>>>>,
    /// Tunnels in all entries.
    tunnels: Cell<usize>,
    drained: Cell<bool>,
    /// Dials under way, and some that are over.
    dials: RefCell<JoinSet<()>>,
    /// The one timer, there while there are tunnels.
    sweeper: RefCell<Option<AbortHandle>>,
}

impl<K, E> Pool<K, E>
where
    K: Eq + Hash + Clone + 'static,
    E: Clone + 'static,
{
    /// An empty pool.
    pub fn new(settings: PoolSettings) -> Self {
        Pool(Rc::new(Home {
            settings,
            entries: RefCell::new(HashMap::new()),
            tunnels: Cell::new(0),
            drained: Cell::new(false),
            dials: RefCell::default(),
            sweeper: RefCell::new(None),
        }))
    }

    /// A slot on a tunnel for `key`, until `deadline`. `dial` opens a tunnel if one is needed.
    ///
    /// Dials run as tasks of the pool, so that a caller who goes away takes nothing from those who share
    /// its dial: `dial` must bring its own time limits. A pool that is drained drops them. Dropping the future gives up the place in
    /// the queue.
    pub async fn acquire<D>(&self, key: &K, deadline: Instant, dial: D) -> Result<Lease, PoolError<E>>
    where
        D: AsyncFnOnce() -> Result<Tunnel, E> + 'static,
    {
        let entry = self.0.entry(key)?;
        if let Some(lease) = entry.lease() {
            return Ok(lease);
        }
        let mut dial = Some(dial);
        let mut ticket = entry.enqueue();
        loop {
            match timeout_at(deadline, ticket.turn()).await {
                Ok(Some(Turn::Stream(lease))) => return Ok(lease),
                // The turn may have been given before the pool was drained, and taken only now.
                Ok(Some(Turn::Dial(_))) if self.0.is_drained() => return Err(PoolError::Drained),
                Ok(Some(Turn::Dial(permit))) => {
                    if let Some(dial) = dial.take() {
                        self.0.spawn_dial(async move { permit.finish(dial().await) });
                    }
                    ticket.wait_on();
                }
                Ok(Some(Turn::Failed(error))) => return Err(PoolError::Dial(error)),
                Ok(Some(Turn::Lost)) => return Err(PoolError::Lost),
                Ok(None) => return Err(PoolError::Drained),
                Err(_) => return Err(PoolError::Deadline),
            }
        }
    }

    /// Opens a stream: [`acquire`](Pool::acquire), then [`Lease::connect`], both until `deadline`.
    ///
    /// If the peer certainly has not acted on the request (GOAWAY, REFUSED_STREAM), it is sent once
    /// more, on another tunnel.
    pub async fn connect<D>(
        &self,
        key: &K,
        request: &ConnectRequest,
        deadline: Instant,
        dial: D,
    ) -> Result<Connected, PoolError<E>>
    where
        D: AsyncFnOnce() -> Result<Tunnel, E> + Clone + 'static,
    {
        let lease = self.acquire(key, deadline, dial.clone()).await?;
        match lease.connect(request, deadline).await {
            Err(error) if error.is_safe_to_retry() => {
                tracing::debug!(%error, "sending the request again on another tunnel");
            }
            outcome => return outcome.map_err(PoolError::Connect),
        }
        let lease = self.acquire(key, deadline, dial).await?;
        lease.connect(request, deadline).await.map_err(PoolError::Connect)
    }

    /// Gives no more tunnels, drops the dials under way and forgets the tunnels it has: each closes after
    /// its last stream, with GOAWAY. Callers that wait fail with [`PoolError::Drained`].
    pub fn drain(&self) {
        self.0.drain();
    }

    /// Tunnels in the pool.
    pub fn tunnels(&self) -> usize {
        self.0.tunnels.get()
    }

    /// Keys that have a tunnel, a dial under way or a caller that waits.
    pub fn keys(&self) -> usize {
        self.0.entries.borrow().len()
    }
}

impl<K, E> Home<K, E>
where
    K: Eq + Hash + Clone,
{
    fn entry(self: &Rc<Self>, key: &K) -> Result<Rc<Entry<K, E>>, PoolError<E>> {
        if self.drained.get() {
            return Err(PoolError::Drained);
        }
        let mut entries = self.entries.borrow_mut();
        if let Some(entry) = entries.get(key) {
            return Ok(entry.clone());
        }
        let entry = Rc::new(Entry::new(key.clone(), Rc::downgrade(self), self.settings.max_streams));
        entries.insert(key.clone(), entry.clone());
        Ok(entry)
    }
}

impl<K: Eq + Hash + 'static, E: 'static> Home<K, E> {
    /// Counts a tunnel that was added, and sees that the timer runs.
    fn added(self: &Rc<Self>) {
        self.tunnels.set(self.tunnels.get() + 1);
        let mut sweeper = self.sweeper.borrow_mut();
        if sweeper.is_none() {
            *sweeper = Some(tokio::task::spawn_local(sweep(Rc::downgrade(self))).abort_handle());
        }
    }
}

impl<K: Eq + Hash, E> Home<K, E> {
    fn is_drained(&self) -> bool {
        self.drained.get()
    }

    fn spawn_dial(&self, dial: impl Future<Output = ()> + 'static) {
        let mut dials = self.dials.borrow_mut();
        while dials.try_join_next().is_some() {}
        dials.spawn_local(dial);
    }

    fn removed(&self, tunnels: usize) {
        self.tunnels.set(self.tunnels.get() - tunnels);
    }

    fn forget(&self, key: &K) {
        let entry = self.entries.borrow_mut().remove(key);
        drop(entry);
    }

    /// Lets idle tunnels go, least recently used first, while there are too many tunnels.
    fn evict(&self) {
        while self.tunnels.get() > self.settings.max_tunnels {
            let entries = self.all_entries();
            let idle = entries.iter().filter_map(|entry| Some((entry.oldest_idle()?, entry)));
            match idle.min_by_key(|(since, _)| *since) {
                Some((since, entry)) => entry.release_idle(since),
                None => return,
            }
        }
    }

    /// Lets go what has been idle for too long; says when to look again, or `None` if nothing is left.
    fn release_idle(&self, now: Instant) -> Option<Instant> {
        let timeout = self.settings.idle_timeout;
        let entries = self.all_entries();
        if let Some(limit) = now.checked_sub(timeout) {
            entries.iter().for_each(|entry| entry.release_idle(limit));
        }
        // Whatever falls idle after this is not due before a whole timeout from now.
        let oldest = entries.iter().filter_map(|entry| entry.oldest_idle()).min().unwrap_or(now);
        (self.tunnels.get() != 0).then_some(oldest + timeout)
    }

    fn drain(&self) {
        self.drained.set(true);
        if let Some(sweeper) = self.sweeper.borrow_mut().take() {
            sweeper.abort();
        }
        self.dials.borrow_mut().abort_all();
        let entries = std::mem::take(&mut *self.entries.borrow_mut());
        entries.into_values().for_each(|entry| entry.drain());
    }

    /// A copy of the list, because letting a tunnel go may remove its entry.
    fn all_entries(&self) -> Vec<Rc<Entry<K, E>>> {
        self.entries.borrow().values().cloned().collect()
    }
}

/// The pool's one timer.
async fn sweep<K: Eq + Hash, E>(home: Weak<Home<K, E>>) {
    while let Some(home) = home.upgrade() {
        let Some(next) = home.release_idle(Instant::now()) else {
            home.sweeper.borrow_mut().take();
            return;
        };
        drop(home);
        sleep_until(next).await;
    }
}

impl<K: Eq + Hash, E> Drop for Pool<K, E> {
    fn drop(&mut self) {
        self.0.drain();
    }
}

impl<K: Eq + Hash, E> fmt::Debug for Pool<K, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("keys", &self.0.entries.borrow().len())
            .field("tunnels", &self.0.tunnels.get())
            .finish_non_exhaustive()
    }
}
