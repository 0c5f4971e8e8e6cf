//! Asking on behalf of one pod: what is known already is not asked again, and the same question is asked once at a time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{LocalBoxFuture, Shared, WeakShared};
use tokio::time::Instant;

use super::cache::Cache;
use super::resolv_conf::ResolvConf;
use super::upstream::{AskError, Origin, ask};
use super::wire;
use crate::proxy::PodInstance;

/// What all askers of a node share.
#[derive(Debug)]
pub(crate) struct Upstreams {
    /// What `/etc/resolv.conf` says now.
    pub(crate) conf: RefCell<Rc<ResolvConf>>,
    /// Answers to pods.
    pub(crate) cache: RefCell<Cache>,
}

/// Whoever has questions.
pub(crate) struct Asker {
    /// Whose partition of the cache it uses.
    instance: PodInstance,
    origin: Origin,
    upstreams: Rc<Upstreams>,
    /// Questions that are being asked.
    flights: RefCell<HashMap<Rc<[u8]>, WeakShared<Flight>>>,
}

type Flight = LocalBoxFuture<'static, Outcome>;
type Outcome = Result<Rc<[u8]>, AskError>;

/// An answer, of whatever RCODE.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    /// The message as the server sent it: the id means nothing, the question is spelt as by whoever asked first.
    pub(crate) octets: Rc<[u8]>,
    /// How long ago it came.
    pub(crate) age: Duration,
}

impl Asker {
    pub(crate) fn new(instance: PodInstance, origin: Origin, upstreams: Rc<Upstreams>) -> Rc<Self> {
        Rc::new(Self { instance, origin, upstreams, flights: RefCell::default() })
    }

    /// What is known of the answer to `query`.
    pub(crate) fn known(&self, query: &[u8]) -> Option<Answered> {
        let cache = self.upstreams.cache.borrow();
        let (octets, age) = cache.get(self.instance, &key_of(query), Instant::now())?;
        Some(Answered { octets, age })
    }

    /// Asks the servers, together with everybody who asks the same now. Queries that are not `shareable` are asked as
    /// they are, and what comes back is not kept.
    pub(crate) async fn ask(self: &Rc<Self>, query: &[u8], shareable: bool) -> Result<Answered, AskError> {
        let mut query = query.to_vec();
        wire::desire_recursion(&mut query);
        let octets = if shareable {
            self.join(key_of(&query), query).await?
        } else {
            let conf = self.upstreams.conf.borrow().clone();
            ask(&self.origin, &conf, &query).await?.into()
        };
        Ok(Answered { octets, age: Duration::ZERO })
    }

    fn join(self: &Rc<Self>, key: Rc<[u8]>, query: Vec<u8>) -> Shared<Flight> {
        let mut flights = self.flights.borrow_mut();
        if let Some(flight) = flights.get(&key).and_then(WeakShared::upgrade) {
            return flight;
        }
        let landing = Landing { asker: self.clone(), key: key.clone() };
        let flight = landing.fly(query).boxed_local().shared();
        // Nothing has run yet, so it is not over.
        if let Some(weak) = flight.downgrade() {
            flights.insert(key, weak);
        }
        flight
    }
}

/// A question that is being asked; nobody can join any more once this is dropped.
struct Landing {
    asker: Rc<Asker>,
    key: Rc<[u8]>,
}

impl Landing {
    async fn fly(self, query: Vec<u8>) -> Outcome {
        let Asker { instance, origin, upstreams, .. } = &*self.asker;
        let conf = upstreams.conf.borrow().clone();
        let answer: Rc<[u8]> = ask(origin, &conf, &query).await?.into();
        let lifetime = lifetime(&answer);
        let mut cache = upstreams.cache.borrow_mut();
        cache.put(*instance, self.key.clone(), answer.clone(), lifetime, Instant::now());
        Ok(answer)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.asker.flights.borrow_mut().remove(&self.key);
    }
}

/// How long an answer may be kept: final ones, and of those only whole ones.
fn lifetime(answer: &[u8]) -> Duration {
    let is_final = matches!(wire::rcode(answer), wire::NOERROR | wire::NXDOMAIN);
    let contents = wire::contents(answer).filter(|contents| !contents.is_signed);
    let contents = contents.filter(|_| is_final && !wire::is_truncated(answer));
    Duration::from_secs(contents.map_or(0, |contents| contents.lifetime).into())
}

/// Everything in a query that the answer may depend on: all of it but the id, and but the case of the name.
fn key_of(query: &[u8]) -> Rc<[u8]> {
    let mut key = query.get(2..).unwrap_or_default().to_vec();
    if let Some(flags) = key.first_mut() {
        // As everything that is asked.
        *flags |= 1;
    }
    if let Some(end) = wire::question_end(query)
        && let Some(name) = key.get_mut(wire::HEADER - 2..end - 2 - 4)
    {
        // Lengths of labels are below the letters.
        name.make_ascii_lowercase();
    }
    key.into()
}
