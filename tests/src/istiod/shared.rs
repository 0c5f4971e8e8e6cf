//! What the tasks of the scripted istiod and the test share, behind one lock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tonic::{Code, Status};
use xds_client::ResourceType;

use super::admission::{Admission, ProxyName};
use super::authority::Authority;
use super::ca::CaScript;
use super::session::{Answer, Session};
use super::world::World;
use crate::{PATIENCE, Result};

/// State, and news of its changes.
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// What all open connections are told to do.
    pub(super) ending: watch::Sender<Ending>,
}

/// How connections end at the server's will.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ending {
    /// Not at all.
    Open,
    /// With a GOAWAY, and after this long without one more word.
    GoAway(Duration),
    /// At once.
    Cut,
}

/// Everything there is to know and to script.
pub(super) struct State {
    pub(super) world: World,
    pub(super) admission: Admission,
    /// How every new stream is refused, if it is.
    pub(super) refuse: Option<(Code, String)>,
    /// Types whose responses wait.
    pub(super) held: BTreeSet<ResourceType>,
    /// How many pushes there have been.
    pub(super) revision: u64,
    /// Of the newest push of each type.
    pub(super) revisions: BTreeMap<ResourceType, u64>,
    pub(super) streams: BTreeMap<u64, Stream>,
    pub(super) stream_count: u64,
    pub(super) log: Log,
    pub(super) connections: Connections,
    pub(super) authority: Authority,
    pub(super) ca: CaScript,
}

/// An open stream whose first request has been accepted.
pub(super) struct Stream {
    pub(super) proxy: ProxyName,
    pub(super) session: Session,
    pub(super) commands: mpsc::UnboundedSender<Command>,
}

/// What a stream is told to do.
#[derive(Clone)]
pub(super) enum Command {
    /// These names of a type have changed.
    Push { kind: ResourceType, touched: Arc<BTreeSet<String>>, revision: u64 },
    /// Send these bytes as they are.
    Send(Bytes),
    /// Look again whether responses are held.
    Resume,
    /// End with this status.
    Close(Status),
}

/// What has happened so far.
#[derive(Default)]
pub(super) struct Log {
    pub(super) first_requests: Vec<FirstRequest>,
    pub(super) demands: Vec<Demand>,
    pub(super) answers: Vec<Answered>,
    pub(super) refusals: Vec<Refusal>,
}

/// Counted when TLS is done.
#[derive(Default)]
pub(super) struct Connections {
    pub(super) open: usize,
    pub(super) total: usize,
}

/// The first request of a type on a stream.
#[derive(Clone, Debug)]
pub struct FirstRequest {
    /// The stream's number, counted from 1.
    pub stream: u64,
    /// The name of the proxy's pod.
    pub proxy: String,
    /// The type.
    pub kind: ResourceType,
    /// The request.
    pub request: xds_client::discovery::DeltaDiscoveryRequest,
    /// Its size on the wire.
    pub bytes: usize,
    /// The headers of the call, values that are no text left out.
    pub headers: Vec<(String, String)>,
}

/// A request for names that had not been subscribed on the stream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Demand {
    /// The name of the proxy's pod.
    pub proxy: String,
    /// The names.
    pub names: Vec<String>,
}

/// An answer to a response.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answered {
    /// The stream's number, counted from 1.
    pub stream: u64,
    /// The name of the proxy's pod.
    pub proxy: String,
    /// The type.
    pub kind: ResourceType,
    /// The nonce it carries.
    pub nonce: String,
    /// ACK or NACK.
    pub answer: Answer,
    /// Whether it was about the newest response.
    pub newest: bool,
}

/// A call that was not granted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The path of the call.
    pub path: &'static str,
    /// The status code.
    pub code: Code,
    /// The message that the client got.
    pub message: String,
}

impl Shared {
    pub(super) fn new(authority: Authority) -> Self {
        let state = State {
            world: World::default(),
            admission: Admission::new(),
            refuse: None,
            held: BTreeSet::new(),
            revision: 0,
            revisions: BTreeMap::new(),
            streams: BTreeMap::new(),
            stream_count: 0,
            log: Log::default(),
            connections: Connections::default(),
            authority,
            ca: CaScript::default(),
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), ending: watch::Sender::new(Ending::Open) }
    }

    /// Reads the state. Do not wait for anything while holding it.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and tells those who wait for that.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.notify_all();
        result
    }

    /// Waits, at most [`PATIENCE`], until `select` gives something. `what` is for the message if it does not.
    pub(super) fn wait_for<T>(&self, what: &str, mut select: impl FnMut(&State) -> Option<T>) -> Result<T> {
        let mut found = None;
        let waiting = |state: &mut State| {
            found = select(state);
            found.is_none()
        };
        drop(self.changed.wait_timeout_while(self.state(), PATIENCE, waiting));
        found.ok_or_else(|| {
            anyhow::anyhow!("the scripted istiod waited in vain for {what}:\n{}", self.state().tell())
        })
    }
}

impl State {
    /// Sends what has changed to every stream, Address before Authorization as istiod does.
    pub(super) fn publish(&mut self) {
        let mut touched: BTreeMap<ResourceType, BTreeSet<String>> = BTreeMap::new();
        for (kind, name) in self.world.take_touched() {
            touched.entry(kind).or_default().insert(name);
        }
        for (kind, names) in touched {
            self.revision += 1;
            self.revisions.insert(kind, self.revision);
            let push = Command::Push { kind, touched: Arc::new(names), revision: self.revision };
            self.command_all(&push);
        }
    }

    pub(super) fn command_all(&self, command: &Command) {
        for stream in self.streams.values() {
            // A stream that has just ended needs no command.
            let _ = stream.commands.send(command.clone());
        }
    }

    /// The newest push of the type.
    pub(super) fn revision_of(&self, kind: ResourceType) -> u64 {
        self.revisions.get(&kind).copied().unwrap_or_default()
    }

    /// How the proxy answered the newest response of the type, if that tells all there is to tell and it has an answer.
    pub(super) fn current_answer(&self, proxy: &str, kind: ResourceType) -> Option<Answer> {
        // The newest stream counts: an old one may still be there.
        let stream = self.streams.values().rev().find(|stream| stream.proxy.pod == proxy)?;
        let subscription = stream.session.subscription(kind)?;
        let (nonce, answer) = subscription.answered.as_ref()?;
        let current =
            subscription.revision >= self.revision_of(kind) && subscription.sent.as_ref() == Some(nonce);
        current.then(|| answer.clone())
    }

    /// A few lines for whoever waited in vain.
    fn tell(&self) -> String {
        let mut lines = vec![format!(
            "{} open connections of {}, pushes {:?}, held {:?}",
            self.connections.open, self.connections.total, self.revisions, self.held
        )];
        for (number, stream) in &self.streams {
            let [address, authorization] = ResourceType::ALL.map(|kind| {
                let subscription = stream.session.subscription(kind);
                subscription.map(|known| (known.revision, known.sent.clone(), known.answered.clone()))
            });
            lines.push(format!(
                "stream {number} of {:?}: address {address:?}, authorization {authorization:?}",
                stream.proxy
            ));
        }
        let refusals = self.log.refusals.iter().rev().take(5);
        lines.extend(refusals.map(|refusal| format!("refused {refusal:?}")));
        lines.join("\n")
    }
}
