//! The delta protocol: what to send when, what is kept, and what an answer changes. No I/O and no clock.
//!
//! ```text
//!  open ----------> first requests of a stream: Address, Authorization
//!  receive -------> Transaction: step ... step, commit ----> ACK or NACK
//!  demand --------> a request for one name (on-demand mode)
//! ```
//!
//! A [`Session`] outlives streams. What was accepted stays when a stream ends, and is named when the next one begins, so
//! that only differences are sent.
//!
//! istiod takes requests of at most 4 MiB, and naming 40,000 resources takes more. A wildcard subscription then names
//! none: the first response is complete, and what it does not contain is gone. An on-demand subscription names the rest
//! in further requests.

use std::sync::Arc;

use bytes::Bytes;
use tracing::{debug, info};

use crate::asked::Asked;
use crate::discovery::Node;
use crate::rejected_names::RejectedNames;
use crate::requests::{self, Fit, Subscription};
use crate::response::{MalformedResponse, Response};
use crate::retained::Retained;
use crate::transaction::Transaction;
use crate::{Handler, ResourceType};

/// The largest first request, below istiod's limit of 4 MiB for any request.
pub const DEFAULT_REQUEST_LIMIT: usize = 3584 * 1024;

/// How addresses are subscribed to. Policies always are in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// The whole mesh.
    #[default]
    Wildcard,
    /// What somebody asks for (`XDS_ON_DEMAND`), and what the control plane adds by itself.
    OnDemand,
}

/// The state of the protocol, for one control plane.
#[derive(Debug)]
pub struct Session {
    node: Node,
    mode: Mode,
    request_limit: usize,
    pub(crate) address: Collection,
    pub(crate) authorization: Collection,
    pub(crate) asked: Asked,
    synchronized: bool,
}

impl Session {
    /// Nothing is known. `request_limit`, in bytes, is where a first request becomes too large to name what is retained:
    /// [`DEFAULT_REQUEST_LIMIT`] for istiod.
    pub fn new(node: Node, mode: Mode, request_limit: usize) -> Self {
        Self {
            node,
            mode,
            request_limit,
            address: Collection::default(),
            authorization: Collection::default(),
            asked: Asked::default(),
            synchronized: false,
        }
    }

    /// A new stream begins. Returns the requests to send on it, in order, without waiting for an answer.
    pub fn open(&mut self) -> Vec<Vec<u8>> {
        self.asked.reopen();
        let mut further = Vec::new();
        let mut all: Vec<_> =
            ResourceType::ALL.into_iter().map(|kind| self.first_request(kind, &mut further)).collect();
        all.append(&mut further);
        all
    }

    fn first_request(&mut self, kind: ResourceType, further: &mut Vec<Vec<u8>>) -> Vec<u8> {
        let subscription = self.subscription(kind);
        let mut request = requests::first(kind, &self.node, subscription);
        let bare = request.len();
        let mut rest = Spread::new(kind, self.request_limit);
        let mut fits = true;
        let mut text = String::new();
        for (name, version) in self.names(kind) {
            text.clear();
            if let Some(version) = version {
                text = version.to_string();
            }
            match requests::append_version(&mut request, name, &text, self.request_limit) {
                Fit::Appended => {}
                Fit::TooLarge if subscription == Subscription::OnDemand => rest.push(name),
                Fit::TooLarge => {
                    fits = false;
                    break;
                }
            }
        }
        if !fits {
            request.truncate(bare);
            info!(type_url = kind.url(), "too much is retained to be named; all of it will be sent again");
        }
        self.collection(kind).first_response = if fits { First::Difference } else { First::Complete };
        further.append(&mut rest.requests());
        request
    }

    /// What the first request names: all that is retained, and what has been asked for beyond it.
    fn names(
        &self,
        kind: ResourceType,
    ) -> impl Iterator<Item = (&Arc<str>, Option<&crate::retained::Version>)> {
        let retained = match kind {
            ResourceType::Address => &self.address.retained,
            ResourceType::Authorization => &self.authorization.retained,
        };
        let asked =
            self.asked.names().filter(move |name| kind == ResourceType::Address && !retained.contains(name));
        let retained = retained.versions().map(|(name, version)| (name, Some(version)));
        retained.chain(asked.map(|name| (name, None)))
    }

    /// A response has come, and becomes a transaction on `handler`, which has begun when this returns. It has to be carried
    /// through: if it is dropped before its commit, session and handler disagree, and neither may be used any more.
    ///
    /// # Errors
    ///
    /// The control plane is at fault, and nothing has changed. What it meant to tell is lost, so the stream should end
    /// after the [`Unreadable::reply`] was sent: the next one begins with what is really held.
    pub fn receive(
        &mut self,
        message: Bytes,
        handler: &mut impl Handler,
    ) -> Result<Transaction<'_>, Unreadable> {
        match Response::parse(message) {
            Ok(response) => Ok(Transaction::begin(self, response, handler)),
            Err(cause) => Err(Unreadable::new(cause)),
        }
    }

    /// Somebody needs an address that is not there (on-demand mode). To be called once per wait, not once per waiter:
    /// each call for a name that is not held is a request.
    pub fn demand(&mut self, name: &Arc<str>) -> Demanding {
        if self.mode == Mode::Wildcard || self.address.retained.contains(name) {
            return Demanding::Known;
        }
        match self.asked.ask(name) {
            Some(ask) => {
                debug!(%name, ?ask, "asking the control plane for an address");
                Demanding::Ask(requests::demand(ResourceType::Address, name, &ask))
            }
            None => Demanding::Refused,
        }
    }

    /// How many resources of a type are held.
    pub fn retained(&self, kind: ResourceType) -> usize {
        match kind {
            ResourceType::Address => self.address.retained.len(),
            ResourceType::Authorization => self.authorization.retained.len(),
        }
    }

    fn subscription(&self, kind: ResourceType) -> Subscription {
        match (kind, self.mode) {
            (ResourceType::Address, Mode::OnDemand) => Subscription::OnDemand,
            (ResourceType::Address, Mode::Wildcard) | (ResourceType::Authorization, _) => {
                Subscription::Wildcard
            }
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    pub(crate) fn collection(&mut self, kind: ResourceType) -> &mut Collection {
        match kind {
            ResourceType::Address => &mut self.address,
            ResourceType::Authorization => &mut self.authorization,
        }
    }

    /// True once: when the last of the types that are subscribed to in full has had a response.
    pub(crate) fn processed(&mut self, kind: ResourceType) -> bool {
        self.collection(kind).processed = true;
        let address = self.address.processed || self.mode == Mode::OnDemand;
        let all = address && self.authorization.processed;
        all && !std::mem::replace(&mut self.synchronized, true)
    }
}

/// What is held of one type.
#[derive(Debug, Default)]
pub(crate) struct Collection {
    pub(crate) retained: Retained,
    /// What was rejected and never accepted: none of it is retained.
    pub(crate) unaccepted: RejectedNames,
    /// What was rejected after it had been accepted: all of it is retained, as it was before.
    pub(crate) doubted: RejectedNames,
    pub(crate) first_response: First,
    processed: bool,
}

/// What the next response of a type tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum First {
    /// What has changed: it is not the first of a stream.
    #[default]
    No,
    /// Everything that is subscribed to, except what was named with its current version.
    Difference,
    /// Everything that there is.
    Complete,
}

/// What comes of a [`Session::demand`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Demanding {
    /// It is held already: no request is needed.
    Known,
    /// The request to send.
    Ask(Vec<u8>),
    /// As many names as can be noted wait for their answers. Each answer makes room, on this stream or a later one.
    Refused,
}

/// A response that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("a response of the control plane cannot be read")]
pub struct Unreadable {
    /// The fault.
    #[source]
    pub cause: MalformedResponse,
    /// The type, if it is one of ours and came before the fault.
    pub kind: Option<ResourceType>,
    /// The NACK to send. `None` if the fault came before the type and the nonce, which a NACK needs.
    pub reply: Option<Vec<u8>>,
}

impl Unreadable {
    fn new(cause: MalformedResponse) -> Self {
        let header = &cause.header;
        let answerable = !header.type_url.is_empty() && !header.nonce.is_empty();
        let reply = answerable.then(|| {
            requests::rejection(&header.type_url, &header.nonce, format!("{cause}: {}", cause.cause))
        });
        Self { kind: ResourceType::from_url(&header.type_url), reply, cause }
    }
}

/// Names spread over as many requests as they need.
struct Spread {
    kind: ResourceType,
    limit: usize,
    full: Vec<Vec<u8>>,
    current: Option<Vec<u8>>,
}

impl Spread {
    fn new(kind: ResourceType, limit: usize) -> Self {
        Self { kind, limit, full: Vec::new(), current: None }
    }

    fn push(&mut self, name: &str) {
        let mut request = self.current.take().unwrap_or_else(|| requests::subscribe(self.kind));
        if requests::append_name(&mut request, name, self.limit) == Fit::TooLarge {
            self.full.push(std::mem::replace(&mut request, requests::subscribe(self.kind)));
            // A single name always goes out, or it would be lost.
            requests::append_name(&mut request, name, usize::MAX);
        }
        self.current = Some(request);
    }

    fn requests(mut self) -> Vec<Vec<u8>> {
        self.full.extend(self.current);
        self.full
    }
}
