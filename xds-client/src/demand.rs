//! Lookups that wait for the control plane: the handle for other threads, and the book of who waits.
//!
//! A lookup that finds nothing asks for the name and waits until a response has been committed that settles it, under this
//! name or an alias. Whoever waits for the same name shares one request. An answer is remembered for a moment, so that a
//! busy client of an address outside of the mesh does not ask for each connection.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

/// How long somebody waits. A connection waits along, so it is a few seconds.
const WAIT: Duration = Duration::from_secs(3);
/// How long an answer is remembered. A pod that starts is found by the first connection after this at the latest.
const MEMORY: Duration = Duration::from_secs(2);
/// Answers remembered at once. The oldest makes room.
const MAX_REMEMBERED: usize = 4096;
/// Waiters at once, over all names.
const MAX_WAITERS: usize = 4096;

/// Asks the control plane for single addresses. Cheap to clone, for any thread.
#[derive(Clone, Debug)]
pub struct Demand {
    shared: Arc<Shared>,
}

/// What came of waiting for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demanded {
    /// It has been committed, or was there all the time: look again.
    Found,
    /// The control plane knows no such name, or what it knows was rejected.
    Absent,
    /// There was no answer in time. There may be no stream at the moment.
    TimedOut,
    /// Nobody can be asked: too many are waiting, or the client has ended.
    Unavailable,
}

impl Demand {
    /// Asks for `name` and waits for the answer, three seconds at most. The forms of names: a uid, `<network>/<ip>` (the
    /// default network is empty), or `<namespace>/<hostname>`. Look up before asking: this does not know what is held.
    ///
    /// Dropping the future leaves nothing behind, except that the control plane may still answer.
    pub async fn wait(&self, name: &str) -> Demanded {
        let now = Instant::now();
        let joined = self.shared.book().join(name, now);
        let receiver = match joined {
            Joined::Settled(answer) => return answer,
            Joined::Waiting(receiver) => receiver,
        };
        self.shared.asked.notify_one();
        let waiting = Waiting { shared: &self.shared, name, receiver: Some(receiver) };
        waiting.answer(now + WAIT).await
    }
}

/// Takes the waiter out of the book when it stops waiting.
struct Waiting<'a> {
    shared: &'a Shared,
    name: &'a str,
    receiver: Option<oneshot::Receiver<Demanded>>,
}

impl Waiting<'_> {
    async fn answer(mut self, deadline: Instant) -> Demanded {
        let Some(receiver) = self.receiver.as_mut() else { return Demanded::Unavailable };
        match timeout_at(deadline, receiver).await {
            Ok(answer) => answer.unwrap_or(Demanded::Unavailable),
            Err(_) => Demanded::TimedOut,
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // The book finds out who is gone by the closed channel.
        self.receiver = None;
        self.shared.book().leave(self.name);
    }
}

/// The client's end.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    book: Mutex<Book>,
    asked: Notify,
}

impl Shared {
    pub(crate) fn handle(self: &Arc<Self>) -> Demand {
        Demand { shared: Arc::clone(self) }
    }

    /// Completes when names may have been added to [`next`](Self::next).
    pub(crate) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// The next name to ask for, once for all who wait for it.
    pub(crate) fn next(&self) -> Option<Arc<str>> {
        self.book().next()
    }

    pub(crate) fn answer(&self, name: &str, answer: Demanded) {
        self.book().answer(name, answer, Instant::now());
    }

    /// Nobody will answer any more.
    pub(crate) fn close(&self) {
        self.book().close();
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Each operation leaves the book usable at every point, so a panic elsewhere changes nothing.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who waits for what. No clock.
#[derive(Debug, Default)]
struct Book {
    waiters: HashMap<Arc<str>, Waiters>,
    /// All of them, over all names.
    count: usize,
    /// Names to be asked for. Some may have lost their waiters, or occur again, since.
    unasked: VecDeque<Arc<str>>,
    settled: Settled,
    closed: bool,
}

/// Who waits for one name.
#[derive(Debug)]
struct Waiters {
    senders: Vec<oneshot::Sender<Demanded>>,
    asked: bool,
}

enum Joined {
    Settled(Demanded),
    Waiting(oneshot::Receiver<Demanded>),
}

impl Book {
    fn join(&mut self, name: &str, now: Instant) -> Joined {
        if self.closed || self.count >= MAX_WAITERS || self.unasked.len() >= MAX_WAITERS {
            return Joined::Settled(Demanded::Unavailable);
        }
        if let Some(answer) = self.settled.recall(name, now) {
            return Joined::Settled(answer);
        }
        let (sender, receiver) = oneshot::channel();
        self.count += 1;
        match self.waiters.get_mut(name) {
            Some(waiters) => waiters.senders.push(sender),
            None => {
                let name: Arc<str> = name.into();
                self.waiters.insert(Arc::clone(&name), Waiters { senders: vec![sender], asked: false });
                self.unasked.push_back(name);
            }
        }
        Joined::Waiting(receiver)
    }

    fn leave(&mut self, name: &str) {
        let Some(waiters) = self.waiters.get_mut(name) else { return };
        let before = waiters.senders.len();
        waiters.senders.retain(|waiter| !waiter.is_closed());
        self.count -= before - waiters.senders.len();
        if waiters.senders.is_empty() {
            self.waiters.remove(name);
        }
    }

    fn next(&mut self) -> Option<Arc<str>> {
        loop {
            let name = self.unasked.pop_front()?;
            if let Some(waiters) = self.waiters.get_mut(&name)
                && !std::mem::replace(&mut waiters.asked, true)
            {
                return Some(name);
            }
        }
    }

    fn answer(&mut self, name: &str, answer: Demanded, now: Instant) {
        match answer {
            // Also what was found: who asks for it again has looked, and it was not what is looked for.
            Demanded::Found | Demanded::Absent => self.settled.remember(name, answer, now),
            Demanded::TimedOut | Demanded::Unavailable => {}
        }
        let waiters = self.waiters.remove(name);
        for waiter in waiters.into_iter().flat_map(|waiters| waiters.senders) {
            self.count -= 1;
            // Whoever has left in the meantime needs no answer.
            let _ = waiter.send(answer);
        }
    }

    fn close(&mut self) {
        self.closed = true;
        self.waiters.clear();
        self.unasked.clear();
        self.count = 0;
    }
}

/// Recent answers of the control plane.
#[derive(Debug, Default)]
struct Settled {
    answers: HashMap<Arc<str>, (Demanded, Instant)>,
    /// All that were added, the oldest first, with the end of their time. A name may occur again.
    order: VecDeque<(Instant, Arc<str>)>,
}

impl Settled {
    fn recall(&self, name: &str, now: Instant) -> Option<Demanded> {
        let (answer, until) = self.answers.get(name)?;
        (now < *until).then_some(*answer)
    }

    fn remember(&mut self, name: &str, answer: Demanded, now: Instant) {
        while self.order.len() >= MAX_REMEMBERED || self.order.front().is_some_and(|(until, _)| *until <= now)
        {
            let Some((until, oldest)) = self.order.pop_front() else { break };
            if self.answers.get(&oldest).is_some_and(|(_, latest)| *latest == until) {
                self.answers.remove(&oldest);
            }
        }
        let name: Arc<str> = name.into();
        let until = now + MEMORY;
        self.order.push_back((until, Arc::clone(&name)));
        self.answers.insert(name, (answer, until));
    }
}

/// For any thread, as promised.
const _: fn() = || {
    fn shared<T: Send + Sync + Clone>() {}
    shared::<Demand>();
};

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(joined: Joined) -> oneshot::Receiver<Demanded> {
        match joined {
            Joined::Waiting(receiver) => receiver,
            Joined::Settled(answer) => panic!("settled: {answer:?}"),
        }
    }

    fn settled(joined: Joined) -> Demanded {
        match joined {
            Joined::Settled(answer) => answer,
            Joined::Waiting(_) => panic!("has to wait"),
        }
    }

    #[test]
    fn several_waiters_for_a_name_share_one_request_and_all_are_answered() {
        let mut book = Book::default();
        let now = Instant::now();
        let mut receivers = [waiting(book.join("n", now)), waiting(book.join("n", now))];
        assert_eq!(book.next().as_deref(), Some("n"));
        assert_eq!(book.next(), None);
        book.answer("n", Demanded::Found, now);
        for receiver in &mut receivers {
            assert_eq!(receiver.try_recv(), Ok(Demanded::Found));
        }
        assert_eq!(book.count, 0);
    }

    #[test]
    fn the_latest_answer_is_remembered_for_a_moment() {
        let mut book = Book::default();
        let now = Instant::now();
        let last = now + MEMORY - Duration::from_millis(1);
        book.answer("n", Demanded::Absent, now);
        assert_eq!(settled(book.join("n", last)), Demanded::Absent);
        book.answer("n", Demanded::Found, now);
        assert_eq!(settled(book.join("n", last)), Demanded::Found);
        waiting(book.join("n", now + MEMORY));
        book.answer("other", Demanded::TimedOut, now);
        waiting(book.join("other", now));
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_not_asked_for() {
        let mut book = Book::default();
        drop(waiting(book.join("n", Instant::now())));
        book.leave("n");
        assert_eq!((book.next(), book.count, book.waiters.len()), (None, 0, 0));
    }

    #[test]
    fn waiters_and_memory_are_bounded() {
        let mut book = Book::default();
        let now = Instant::now();
        let all: Vec<_> = (0..MAX_WAITERS).map(|n| waiting(book.join(&n.to_string(), now))).collect();
        assert_eq!(settled(book.join("more", now)), Demanded::Unavailable);
        drop(all);
        for n in 0..MAX_WAITERS {
            book.leave(&n.to_string());
        }
        while book.next().is_some() {}
        for n in 0..2 * MAX_REMEMBERED {
            book.answer(&n.to_string(), Demanded::Absent, now);
        }
        assert_eq!((book.settled.answers.len(), book.settled.order.len()), (MAX_REMEMBERED, MAX_REMEMBERED));
        waiting(book.join("more", now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_without_an_answer_and_leaves_nothing_behind() {
        let shared = Arc::new(Shared::default());
        let demand = shared.handle();
        assert_eq!(demand.wait("n").await, Demanded::TimedOut);
        assert_eq!(shared.book().count, 0);
        shared.close();
        assert_eq!(demand.wait("n").await, Demanded::Unavailable);
    }
}
