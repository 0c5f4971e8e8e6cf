//! Keeps a stream to the control plane: connects, sends what the session says, hands over what comes, begins anew.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout};
use tonic::client::GrpcService;
use tonic::codegen::Body as HttpBody;
use tonic::metadata::MetadataMap;
use tracing::{debug, info, warn};

use crate::backoff::{Answered, Backoff};
use crate::demand::{Demand, Demanded, Shared};
use crate::discovery::Node;
use crate::grpc::{Call, End, Limits};
use crate::session::{DEFAULT_REQUEST_LIMIT, Demanding, Mode, Session, Unreadable};
use crate::transaction::Progress;
use crate::{Event, Handler, Termination};

/// Any error, as connectors and transports report it.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Makes connections to the control plane.
pub trait Connect {
    /// What carries calls over one connection. It completes the URI of a request, which has a path only, by scheme and
    /// authority.
    type Service: GrpcService<tonic::body::Body, ResponseBody: HttpBody<Data = Bytes, Error: Into<BoxError>>>;

    /// Connects, for one stream. Called again for each; the client bounds the time and waits between calls. An error is
    /// logged with its sources, so it must not contain the token.
    fn connect(&self) -> impl Future<Output = Result<Connection<Self::Service>, BoxError>>;
}

/// A connection, and what the call over it says about us.
pub struct Connection<S> {
    /// Carries the call. Dropped when the stream has ended.
    pub service: S,
    /// `authorization`, `clusterid` and other headers, made anew for each stream: tokens expire.
    pub metadata: MetadataMap,
}

// Not derived, because the metadata holds the token.
impl<S> fmt::Debug for Connection<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// What a client needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who we are: `id`, and `metadata` as istiod expects it.
    pub node: Node,
    /// What is subscribed to.
    pub mode: Mode,
    /// For a connection, until calls can be made over it.
    pub connect_timeout: Duration,
    /// For the control plane to go on when it is its turn: to answer the first requests, to continue a message that has
    /// begun, to take a request. Between responses it may be silent for ever; that the connection is alive is for the
    /// transport to find out.
    pub stall_timeout: Duration,
    /// The largest response, in bytes.
    pub message_limit: usize,
    /// The largest first request, in bytes. See [`Session::new`].
    pub request_limit: usize,
}

impl Config {
    /// What suits istiod: 10 s to connect, 60 s to go on, responses up to 200 MiB.
    pub fn new(node: Node, mode: Mode) -> Self {
        Self {
            node,
            mode,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            message_limit: 200 * 1024 * 1024,
            request_limit: DEFAULT_REQUEST_LIMIT,
        }
    }
}

/// After so many resources other tasks of the thread have their turn: a millisecond or so, if all are new.
const RESOURCES_PER_TURN: usize = 256;

/// How long a rejection of a whole response may take to be sent, before the stream is given up.
const FAREWELL: Duration = Duration::from_secs(1);

/// The client of one control plane.
pub struct Client<C, H> {
    config: Config,
    connector: C,
    handler: H,
    session: Session,
    demands: Arc<Shared>,
}

impl<C: Connect, H: Handler> Client<C, H> {
    /// Nothing happens before [`run`](Self::run).
    pub fn new(config: Config, connector: C, handler: H) -> Self {
        let session = Session::new(config.node.clone(), config.mode, config.request_limit);
        Self { config, connector, handler, session, demands: Arc::default() }
    }

    /// For asking after single addresses. `None` in wildcard mode, where what is not known does not exist.
    pub fn demand(&self) -> Option<Demand> {
        match self.config.mode {
            Mode::Wildcard => None,
            Mode::OnDemand => Some(self.demands.handle()),
        }
    }

    /// Keeps the handler up to date until `shutdown` completes. Failures are reported to the handler, logged, and tried
    /// again for ever. Dropping the future does the same as `shutdown`: the stream is cancelled, a response that is being
    /// applied is left without its commit, and whoever waits for a [`Demand`] is told.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let shutdown = pin!(shutdown);
        tokio::select! {
            biased;
            () = shutdown => {}
            never = self.keep() => match never {},
        }
    }

    async fn keep(&mut self) -> Infallible {
        let mut backoff = Backoff::new();
        loop {
            let mut answered = Answered::No;
            let end = match self.stream(&mut answered).await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            let termination = match (answered, end.termination()) {
                (Answered::Yes, termination) | (_, termination @ Termination::Complete) => termination,
                (Answered::No, _) => Termination::ConnectionError,
            };
            let wait = backoff.after(termination, answered, fastrand::f64());
            report(&end, termination, answered, wait);
            self.handler.observe(&Event::Terminated(termination));
            sleep(wait).await;
        }
    }

    /// One stream, from the connection to its end.
    async fn stream(&mut self, answered: &mut Answered) -> Result<Infallible, End> {
        let mut call = self.connect().await?;
        for request in self.session.open() {
            call.requests.push(&request);
        }
        loop {
            while call.requests.has_room()
                && let Some(name) = self.demands.next()
            {
                self.ask(&name, &mut call);
            }
            let has_room = call.requests.has_room();
            tokio::select! {
                sent = call.requests.send() => sent?,
                () = self.demands.asked(), if has_room => {}
                message = call.messages.next(), if has_room => {
                    let message = message?;
                    if *answered == Answered::No {
                        *answered = Answered::Yes;
                        info!("connected to the control plane");
                        self.handler.observe(&Event::Connected);
                    }
                    if let Err(unreadable) = self.apply(message, &mut call).await {
                        let _ = timeout(FAREWELL, call.finish()).await;
                        return Err(End::Unreadable(unreadable));
                    }
                }
            }
        }
    }

    async fn connect(&self) -> Result<Call<C::Service>, End> {
        let limits = Limits { message: self.config.message_limit, stall: self.config.stall_timeout };
        let connecting = async {
            let connection = self.connector.connect().await.map_err(End::Connect)?;
            Call::start(connection, limits).await
        };
        let deadline = self.config.connect_timeout;
        timeout(deadline, connecting).await.unwrap_or(Err(End::ConnectDeadline(deadline)))
    }

    fn ask(&mut self, name: &Arc<str>, call: &mut Call<C::Service>) {
        match self.session.demand(name) {
            Demanding::Known => self.demands.answer(name, Demanded::Found),
            Demanding::Ask(request) => call.requests.push(&request),
            Demanding::Refused => self.demands.answer(name, Demanded::Unavailable),
        }
    }

    /// Applies a response and queues the answer to it.
    async fn apply(&mut self, message: Bytes, call: &mut Call<C::Service>) -> Result<(), Unreadable> {
        let mut transaction = match self.session.receive(message, &mut self.handler) {
            Ok(transaction) => transaction,
            Err(unreadable) => {
                self.refuse(&unreadable, call);
                return Err(unreadable);
            }
        };
        while transaction.step(&mut self.handler, RESOURCES_PER_TURN) == Progress::More {
            tokio::task::yield_now().await;
        }
        let reply = transaction.commit(&mut self.handler);
        call.requests.push(&reply.request);
        for (name, answer) in reply.answers {
            self.demands.answer(&name, answer);
        }
        Ok(())
    }

    fn refuse(&mut self, unreadable: &Unreadable, call: &mut Call<C::Service>) {
        let type_url = &unreadable.cause.header.type_url;
        self.handler.observe(&Event::Received { type_url, payload_bytes: 0 });
        if let Some(kind) = unreadable.kind {
            self.handler.observe(&Event::Answered { kind, rejected: 1 });
        }
        if let Some(reply) = &unreadable.reply {
            call.requests.push(reply);
        }
    }
}

impl<C, H> Drop for Client<C, H> {
    fn drop(&mut self) {
        self.demands.close();
    }
}

impl<C, H> fmt::Debug for Client<C, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("session", &self.session).finish_non_exhaustive()
    }
}

fn report(end: &End, termination: Termination, answered: Answered, wait: Duration) {
    let error = end as &dyn StdError;
    match termination {
        _ if end.is_refusal() => warn!(
            error,
            ?wait,
            "the control plane refuses us: check that the service account's token is mounted and not expired, that its \
             audience is the one that istiod expects (istio-ca), and that cluster id and namespace are those of the token",
        ),
        // Every half an hour, with istiod's defaults.
        Termination::Complete | Termination::Reconnect if answered == Answered::Yes => {
            debug!(error, ?wait, "the stream ended; opening another");
        }
        Termination::Complete | Termination::Reconnect | Termination::ConnectionError => {
            warn!(error, ?wait, "no stream to the control plane; will try again");
        }
        Termination::Error => warn!(error, ?wait, "the stream to the control plane failed; will try again"),
    }
}
