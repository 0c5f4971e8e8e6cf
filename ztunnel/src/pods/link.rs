//! The connection with the node agent: dialled, used, lost, and dialled again, for ever.
//!
//! ```text
//!            +---------------------------- lost <-----------------------------+
//!            v                                                                |
//!   Away: wait, dial --> Greeting: say hello --> Listening: a request --> Answering
//!            |                                        ^                       |
//!            +- nobody there: wait longer             +-----------------------+
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{io, mem};

use redirect::zds::{Backoff, Connection, Recovery, Request, ZdsError};
use tokio::time::{Instant, sleep_until, timeout_at};

/// How long the agent may take to make room for a packet of ours. It waits as long for an answer.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// The connection, and what is needed to make it anew.
#[derive(Debug)]
pub(crate) struct Link {
    agent: PathBuf,
    state: State,
    /// Delays while nobody is there.
    dialling: Backoff,
    /// Delays while the agent is there and connections end before they have served their purpose.
    hanging_up: Backoff,
    /// The current connection has served its purpose: the agent has named its pods.
    settled: bool,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// The agent accepted the connection; its snapshot follows.
    Opened,
    /// A request, which is owed [`Link::answer`].
    Request(Request),
    /// A request that makes no sense, which is owed [`Link::refuse`].
    Misunderstood(ZdsError),
    /// The connection has ended, because of the error or by the agent's wish; it is dialled again after this time.
    Lost(Option<ZdsError>, Duration),
    /// Nobody is there; dialled again after this time.
    Absent(ZdsError, Duration),
    /// What was refused leaves unknown which pods are ours, and the agent has been told so. The end.
    Misbehaved(ZdsError),
}

#[derive(Debug)]
enum State {
    Away { until: Instant },
    Greeting { agent: Connection, deadline: Instant },
    Listening { agent: Connection },
    Answering { agent: Connection, answer: Result<(), String>, deadline: Instant, then: Option<ZdsError> },
}

impl Link {
    /// To the agent that listens on this path; dialled by [`next`](Self::next).
    pub(crate) fn new(agent: &Path) -> Self {
        Self {
            agent: agent.to_owned(),
            state: State::Away { until: Instant::now() },
            dialling: Backoff::default(),
            hanging_up: Backoff::for_hello(),
            settled: false,
        }
    }

    /// Whether there is a connection.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.state, State::Away { .. })
    }

    /// Waits for the next event. Cancel safe: what has been begun is continued by the next call, and no request is lost.
    pub(crate) async fn next(&mut self) -> LinkEvent {
        loop {
            match &mut self.state {
                State::Away { until } => {
                    sleep_until(*until).await;
                    return self.dial().await;
                }
                State::Greeting { agent, deadline } => {
                    match bounded(*deadline, agent.announce()).await {
                        Ok(()) => self.listen(),
                        Err(error) => return self.lose(Some(error)),
                    };
                }
                State::Listening { agent } => {
                    return match agent.next_request().await {
                        Ok(Some(request)) => LinkEvent::Request(request),
                        Ok(None) => self.lose(None),
                        Err(error) => LinkEvent::Misunderstood(error),
                    };
                }
                State::Answering { agent, answer, deadline, then } => {
                    let answer = answer.as_ref().copied().map_err(String::as_str);
                    let sent = bounded(*deadline, agent.respond(answer)).await;
                    match (then.take(), sent) {
                        (Some(error), _) if error.recovery() == Recovery::Exit => {
                            return LinkEvent::Misbehaved(error);
                        }
                        // The answer is a courtesy; the error is what counts.
                        (Some(error), _) | (None, Err(error)) => return self.lose(Some(error)),
                        (None, Ok(())) => self.listen(),
                    };
                }
            }
        }
    }

    /// Answers the request that [`next`](Self::next) returned last. It is sent by the call that follows.
    pub(crate) fn answer(&mut self, answer: Result<(), String>) {
        self.send(answer, None);
    }

    /// Answers with the error that [`next`](Self::next) returned last, in these words, and does what it calls for.
    pub(crate) fn refuse(&mut self, error: ZdsError, words: String) {
        let then = (error.recovery() != Recovery::Continue).then_some(error);
        self.send(Err(words), then);
    }

    /// The agent has named its pods: should it hang up now, that is no reason to keep it waiting.
    pub(crate) fn settled(&mut self) {
        self.settled = true;
        self.hanging_up.reset();
    }

    /// Hangs up, so that the agent turns to whoever else is connected. A request that is owed an answer gets none.
    pub(crate) fn close(&mut self) {
        drop(self.take_connection());
    }

    async fn dial(&mut self) -> LinkEvent {
        match Connection::dial(&self.agent).await {
            Ok(agent) => {
                self.dialling.reset();
                self.state = State::Greeting { agent, deadline: Instant::now() + SEND_DEADLINE };
                LinkEvent::Opened
            }
            Err(error) => {
                let delay = self.dialling.delay();
                self.state = State::Away { until: Instant::now() + delay };
                LinkEvent::Absent(error, delay)
            }
        }
    }

    fn lose(&mut self, error: Option<ZdsError>) -> LinkEvent {
        let delay = match mem::take(&mut self.settled) {
            true => Duration::ZERO,
            // Else an agent that hangs up at once would keep us dialling without a pause.
            false => self.hanging_up.delay(),
        };
        self.state = State::Away { until: Instant::now() + delay };
        LinkEvent::Lost(error, delay)
    }

    fn listen(&mut self) {
        if let Some(agent) = self.take_connection() {
            self.state = State::Listening { agent };
        }
    }

    fn send(&mut self, answer: Result<(), String>, then: Option<ZdsError>) {
        if let Some(agent) = self.take_connection() {
            let deadline = Instant::now() + SEND_DEADLINE;
            self.state = State::Answering { agent, answer, deadline, then };
        }
    }

    /// The connection, which leaves its place for the caller to fill.
    fn take_connection(&mut self) -> Option<Connection> {
        match mem::replace(&mut self.state, State::Away { until: Instant::now() }) {
            State::Away { .. } => None,
            State::Greeting { agent, .. } | State::Listening { agent } | State::Answering { agent, .. } => {
                Some(agent)
            }
        }
    }
}

/// Sends, or gives up at the deadline.
async fn bounded(
    deadline: Instant,
    sending: impl Future<Output = Result<(), ZdsError>>,
) -> Result<(), ZdsError> {
    let late = |_| ZdsError::Send(io::ErrorKind::TimedOut.into());
    timeout_at(deadline, sending).await.map_err(late)?
}

#[cfg(test)]
mod tests {
    use redirect::zds::server::{Listener, Peer, PeerError};
    use tempfile::TempDir;

    use super::*;

    fn agent() -> (TempDir, PathBuf, Listener) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let listener = Listener::bind(&path).unwrap();
        (directory, path, listener)
    }

    /// A link and its agent after the hello.
    async fn connected() -> (TempDir, Link, Listener, Peer) {
        let (directory, path, listener) = agent();
        let mut link = Link::new(&path);
        let peer = greet(&mut link, &listener).await;
        (directory, link, listener, peer)
    }

    async fn greet(link: &mut Link, listener: &Listener) -> Peer {
        assert!(matches!(link.next().await, LinkEvent::Opened));
        let mut peer = listener.accept().await.unwrap();
        tokio::select! {
            event = link.next() => panic!("{event:?}"),
            hello = peer.hello() => assert_eq!(hello.unwrap(), 1),
        }
        peer
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_not_there_is_dialled_ever_more_slowly_and_at_once_when_it_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let mut link = Link::new(&path);
        for expected in [20, 40, 80, 160] {
            let LinkEvent::Absent(_, delay) = link.next().await else { panic!("somebody is there") };
            assert_eq!(delay.as_millis(), expected);
        }
        let listener = Listener::bind(&path).unwrap();
        let peer = greet(&mut link, &listener).await;
        link.settled();
        drop((peer, listener));
        let LinkEvent::Lost(None, delay) = link.next().await else { panic!("not lost") };
        assert_eq!(delay, Duration::ZERO);
        assert!(!link.is_open());
        let LinkEvent::Absent(_, delay) = link.next().await else { panic!("somebody is there") };
        assert_eq!(delay.as_millis(), 20, "a new round of dialling begins with short delays");
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_hangs_up_before_its_snapshot_is_given_ever_more_time() {
        let (_directory, path, listener) = agent();
        let mut link = Link::new(&path);
        let mut delays = Vec::new();
        for _ in 0..8 {
            drop(greet(&mut link, &listener).await);
            let LinkEvent::Lost(_, delay) = link.next().await else { panic!("not lost") };
            delays.push(delay);
        }
        assert!(delays[0] <= Duration::from_millis(6), "{delays:?}");
        assert!(delays.is_sorted() && delays[7] >= Duration::from_millis(500), "{delays:?}");
        // A whole snapshot makes good for that.
        let peer = greet(&mut link, &listener).await;
        link.settled();
        drop(peer);
        assert!(matches!(link.next().await, LinkEvent::Lost(None, Duration::ZERO)));
    }

    #[tokio::test]
    async fn giving_up_a_wait_loses_no_request_and_no_answer() {
        let (_directory, mut link, _listener, mut peer) = connected().await;
        let proxy = async {
            let event = loop {
                tokio::select! {
                    biased;
                    event = link.next() => break event,
                    () = tokio::task::yield_now() => {}
                }
            };
            assert!(matches!(event, LinkEvent::Request(Request::SnapshotSent)), "{event:?}");
            link.answer(Err("not today".to_owned()));
            tokio::time::timeout(Duration::from_millis(50), link.next()).await.unwrap_err();
        };
        let (answer, ()) = tokio::join!(peer.snapshot_sent(), proxy);
        assert!(matches!(answer, Err(PeerError::Refused(text)) if text == "not today"));
        assert!(link.is_open());
    }

    #[tokio::test]
    async fn an_agent_that_breaks_the_protocol_is_told_before_the_end() {
        let (_directory, mut link, _listener, mut peer) = connected().await;
        let proxy = async {
            let LinkEvent::Request(_) = link.next().await else { panic!("no snapshot") };
            link.answer(Ok(()));
            let LinkEvent::Misunderstood(error) = link.next().await else { panic!("understood") };
            assert_eq!(error.recovery(), Recovery::Exit);
            link.refuse(error, "twice".to_owned());
            link.next().await
        };
        let agent = async {
            peer.snapshot_sent().await.unwrap();
            peer.snapshot_sent().await
        };
        let (event, refused) = tokio::join!(proxy, agent);
        assert!(matches!(event, LinkEvent::Misbehaved(ZdsError::RepeatedSnapshot)), "{event:?}");
        assert!(matches!(refused, Err(PeerError::Refused(text)) if text == "twice"));
    }

    #[tokio::test]
    async fn an_add_without_descriptor_is_refused_and_the_connection_made_again() {
        let (_directory, mut link, listener, mut peer) = connected().await;
        let add = redirect::zds::RequestMessage::Add { uid: "u".to_owned(), workload: None };
        let proxy = async {
            let LinkEvent::Misunderstood(error) = link.next().await else { panic!("understood") };
            link.refuse(error, "no namespace".to_owned());
            link.next().await
        };
        let (event, refused) = tokio::join!(proxy, peer.request(&add, None));
        assert!(matches!(event, LinkEvent::Lost(Some(ZdsError::MissingDescriptor { .. }), _)), "{event:?}");
        assert!(matches!(refused, Err(PeerError::Refused(_))));
        assert!(matches!(peer.lost().await, PeerError::Closed));
        greet(&mut link, &listener).await;
    }
}
