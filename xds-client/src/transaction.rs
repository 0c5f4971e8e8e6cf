//! A response being applied.

use std::collections::HashSet;
use std::sync::Arc;

use tracing::{debug, error, warn};

use crate::asked::{Answer, Asked};
use crate::demand::Demanded;
use crate::requests;
use crate::response::{MalformedResource, Position, Resource, Response};
use crate::retained::Mark;
use crate::session::{First, Mode, Session};
use crate::{Event, Handler, Rejected, ResourceType};

/// A response on its way to the handler, in steps; between two of them the caller may do something else. Updates come
/// first, then removals, then (on the first response of a stream) what is gone without being named.
#[derive(Debug)]
pub struct Transaction<'s> {
    response: Response,
    stage: Stage,
    work: Work<'s>,
}

#[derive(Debug)]
enum Stage {
    Updates(Position),
    Removals(Position),
    /// What is gone without being named. Taken from the end.
    Sweep(Vec<Arc<str>>),
    Complete,
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Step again.
    More,
    /// All of it has been handed over; what is left is the commit.
    Complete,
}

/// What follows from a response.
#[derive(Debug)]
pub struct Reply {
    /// The ACK or NACK to send.
    pub request: Vec<u8>,
    /// The names that had been asked for and are answered now (on-demand mode).
    pub answers: Vec<(Arc<str>, Demanded)>,
}

impl<'s> Transaction<'s> {
    pub(crate) fn begin(session: &'s mut Session, response: Response, handler: &mut impl Handler) -> Self {
        let type_url = &response.header().type_url;
        let kind = ResourceType::from_url(type_url);
        match kind {
            Some(kind) => handler.begin(kind),
            None => error!(type_url, "the control plane sent a type that was not asked for; ignored"),
        }
        let work = Work::new(session, kind);
        Self { response, stage: Stage::Updates(Position::default()), work }
    }

    /// Hands the next resources to the handler: at most `limit`, counting unchanged and removed ones too.
    pub fn step(&mut self, handler: &mut impl Handler, limit: usize) -> Progress {
        for _ in 0..limit {
            if matches!(self.stage, Stage::Complete) {
                return Progress::Complete;
            }
            self.advance(handler);
        }
        Progress::More
    }

    /// One resource, or the end of a stage.
    fn advance(&mut self, handler: &mut impl Handler) {
        let work = &mut self.work;
        match &mut self.stage {
            Stage::Updates(at) => match self.response.next_resource(at) {
                Some(resource) => work.resource(&self.response, resource, handler),
                None => self.stage = Stage::Removals(Position::default()),
            },
            Stage::Removals(at) => match self.response.next_removal(at) {
                Some(name) => work.removal(name, handler),
                None => {
                    work.restore(handler);
                    self.stage = Stage::Sweep(work.gone());
                }
            },
            Stage::Sweep(names) => match names.pop() {
                Some(name) => drop(work.forget(&name, handler)),
                None => self.stage = Stage::Complete,
            },
            Stage::Complete => {}
        }
    }

    /// Makes the response visible and tells the handler what happened. Hands over first what has not been.
    pub fn commit(mut self, handler: &mut impl Handler) -> Reply {
        while self.step(handler, usize::MAX) == Progress::More {}
        let header = self.response.header();
        let work = self.work;
        if let Some(kind) = work.kind {
            work.session.collection(kind).retained.trim();
            handler.commit(kind);
        }
        handler.observe(&Event::Received { type_url: &header.type_url, payload_bytes: work.payload_bytes });
        if let Some(kind) = work.kind {
            handler.observe(&Event::Answered { kind, rejected: work.rejections.count });
            if work.session.processed(kind) {
                handler.observe(&Event::Synchronized);
            }
        }
        debug!(
            type_url = header.type_url,
            updated = work.updated,
            unchanged = work.unchanged,
            removed = work.removed,
            rejected = work.rejections.count,
            "applied a response of the control plane",
        );
        let request = match work.rejections.into_message() {
            None => requests::acknowledgement(&header.type_url, &header.nonce),
            Some(message) => {
                warn!(
                    type_url = header.type_url,
                    message, "rejected resources; their previous versions stay"
                );
                requests::rejection(&header.type_url, &header.nonce, message)
            }
        };
        Reply { request, answers: work.answers }
    }
}

/// What a transaction works on, and has found so far.
#[derive(Debug)]
struct Work<'s> {
    session: &'s mut Session,
    /// `None` for a type that was not subscribed to.
    kind: Option<ResourceType>,
    mark: Mark,
    /// What was rejected on earlier streams and never accepted, if this is the first response of a stream: what of it is
    /// not in the response is gone.
    unheard: HashSet<Arc<str>>,
    /// Likewise what was rejected after it had been accepted: what of it is not in the response is as it was before.
    doubted: HashSet<Arc<str>>,
    /// A resource could not be read so far as to its name.
    nameless: bool,
    updated: usize,
    unchanged: usize,
    removed: usize,
    payload_bytes: u64,
    rejections: Rejections,
    answers: Vec<(Arc<str>, Demanded)>,
}

impl<'s> Work<'s> {
    fn new(session: &'s mut Session, kind: Option<ResourceType>) -> Self {
        let (first, unheard, doubted) = match kind.map(|kind| session.collection(kind)) {
            Some(collection) => match std::mem::take(&mut collection.first_response) {
                First::No => (First::No, HashSet::new(), HashSet::new()),
                first => (first, collection.unaccepted.take(), collection.doubted.take()),
            },
            None => (First::No, HashSet::new(), HashSet::new()),
        };
        Self {
            session,
            kind,
            mark: if first == First::Complete { Mark::Set } else { Mark::Leave },
            unheard,
            doubted,
            nameless: false,
            updated: 0,
            unchanged: 0,
            removed: 0,
            payload_bytes: 0,
            rejections: Rejections::default(),
            answers: Vec::new(),
        }
    }

    fn resource(
        &mut self,
        response: &Response,
        resource: Result<Resource<'_>, MalformedResource<'_>>,
        handler: &mut impl Handler,
    ) {
        let size = resource.ok().and_then(|resource| resource.payload).map_or(0, <[u8]>::len);
        self.payload_bytes += size as u64;
        let Some(kind) = self.kind else { return };
        match resource {
            Ok(resource) => {
                if let Err(reason) = self.update(kind, response, &resource, handler) {
                    self.reject(kind, resource.name, &reason);
                }
                self.answer_resource(kind, &resource);
            }
            Err(fault) => {
                self.nameless |= fault.name.is_none();
                let reason = Rejected(format!("{fault}: {}", fault.cause));
                self.reject(kind, fault.name.unwrap_or("(no name)"), &reason);
            }
        }
    }

    fn update(
        &mut self,
        kind: ResourceType,
        response: &Response,
        resource: &Resource<'_>,
        handler: &mut impl Handler,
    ) -> Result<(), Rejected> {
        let payload = resource.payload.ok_or_else(|| Rejected("XDS payload without resource".into()))?;
        let retained = &mut self.session.collection(kind).retained;
        let digest = retained.digest(payload);
        if retained.confirm(resource.name, resource.version, digest, self.mark) {
            self.unchanged += 1;
            return Ok(());
        }
        let name = retained.name(resource.name);
        let outcome = handler.update(kind, &name, response.share(payload));
        let collection = self.session.collection(kind);
        self.unheard.remove(&name);
        match &outcome {
            Ok(()) => {
                self.doubted.remove(&name);
                collection.doubted.remove(&name);
                collection.unaccepted.remove(&name);
                collection.retained.accept(name, resource.version, digest, self.mark);
                self.updated += 1;
            }
            Err(_) if collection.retained.contains(&name) => {}
            Err(_) => collection.unaccepted.insert(name),
        }
        outcome
    }

    fn reject(&mut self, kind: ResourceType, name: &str, reason: &Rejected) {
        // It is there, though it cannot be used: what was accepted before stays, and so does what the handler remembers.
        let collection = self.session.collection(kind);
        if let Some(name) = collection.retained.doubt(name, self.mark) {
            self.doubted.remove(&name);
            collection.doubted.insert(name);
        } else if let Some(name) = self.unheard.take(name) {
            collection.unaccepted.insert(name);
        }
        self.rejections.add(name, reason);
    }

    fn removal(&mut self, name: &str, handler: &mut impl Handler) {
        let Some(kind) = self.kind else { return };
        let held = self.forget(name, handler);
        if let Some(asked) = self.asked(kind) {
            asked.keep_aliases(name, std::iter::empty());
            let gone = Answer::Missing;
            let answered = if held { asked.sent(name, gone) } else { asked.answer(name, gone) };
            self.answers.extend(answered.map(|name| (name, Demanded::Absent)));
        }
    }

    /// Forgets a resource, here and in the handler. Whether it was held.
    fn forget(&mut self, name: &str, handler: &mut impl Handler) -> bool {
        let Some(kind) = self.kind else { return false };
        self.removed += 1;
        handler.remove(kind, name);
        self.unheard.remove(name);
        self.doubted.remove(name);
        let collection = self.session.collection(kind);
        collection.unaccepted.remove(name);
        collection.doubted.remove(name);
        collection.retained.remove(name)
    }

    /// Tells of what the first response of a stream would have carried, were it not as it was before it was rejected. After
    /// a request without names there is no telling: what is not carried then is gone.
    fn restore(&mut self, handler: &mut impl Handler) {
        let doubted = std::mem::take(&mut self.doubted);
        let Some(kind) = self.kind else { return };
        for name in doubted {
            if self.nameless {
                self.session.collection(kind).doubted.insert(name);
            } else if self.mark == Mark::Leave {
                handler.restore(kind, &name);
            }
        }
    }

    /// What the first response of a stream would have carried, if it were there.
    ///
    /// In full subscriptions that is all that was rejected and never accepted, and after a request without names also
    /// what is retained. On demand, a stream that was not asked for what was rejected tells no more about it. It is
    /// forgotten too: whoever needs it asks for it, and it is rejected again, or found.
    fn gone(&mut self) -> Vec<Arc<str>> {
        let Some(kind) = self.kind else { return Vec::new() };
        let collection = self.session.collection(kind);
        let mut gone = match self.mark {
            Mark::Set => collection.retained.unmark(),
            Mark::Leave => Vec::new(),
        };
        let unheard = std::mem::take(&mut self.unheard);
        if self.nameless && !(gone.is_empty() && unheard.is_empty()) {
            // One of them may be the one without a name. Stale is better than missing.
            warn!(type_url = kind.url(), "cannot tell what is gone, because a resource has no readable name");
            unheard.into_iter().for_each(|name| collection.unaccepted.insert(name));
            return Vec::new();
        }
        gone.extend(unheard);
        gone
    }

    /// Whoever waits for the resource, under any of its names, can look it up after the commit.
    fn answer_resource(&mut self, kind: ResourceType, resource: &Resource<'_>) {
        // Rejected and not there before: as good as absent.
        let retained = &self.session.collection(kind).retained;
        let held = retained.contains(resource.name).then(|| retained.name(resource.name));
        let Some(asked) = self.asked(kind) else { return };
        let (answer, of_name, of_alias) = match held {
            Some(name) => (Demanded::Found, Answer::Held, Answer::AliasOf(name)),
            None => (Demanded::Absent, Answer::Missing, Answer::Missing),
        };
        asked.keep_aliases(resource.name, resource.aliases());
        let mut answered: Vec<_> = asked.sent(resource.name, of_name).into_iter().collect();
        answered.extend(resource.aliases().filter_map(|alias| asked.answer(alias, of_alias.clone())));
        self.answers.extend(answered.into_iter().map(|name| (name, answer)));
    }

    /// The names asked for, if this type is asked for by name.
    fn asked(&mut self, kind: ResourceType) -> Option<&mut Asked> {
        let asks = self.session.mode() == Mode::OnDemand && kind == ResourceType::Address;
        asks.then_some(&mut self.session.asked)
    }
}

/// What is wrong with a response, in words for the control plane's operators.
#[derive(Debug, Default)]
struct Rejections {
    count: usize,
    /// How many of them are in the text.
    told: usize,
    text: String,
}

impl Rejections {
    /// The text ends here, so that a request stays small whatever is wrong. Our own choice: a screenful or two.
    const MAX_TEXT: usize = 4096;
    /// No single entry takes all of it.
    const MAX_ENTRY: usize = 512;

    fn add(&mut self, name: &str, reason: &Rejected) {
        self.count += 1;
        if self.text.len() >= Self::MAX_TEXT {
            return;
        }
        self.told += 1;
        if !self.text.is_empty() {
            self.text.push_str("; ");
        }
        self.text.push_str(shortened(name, Self::MAX_ENTRY));
        self.text.push_str(": ");
        self.text.push_str(shortened(&reason.0, Self::MAX_ENTRY));
    }

    fn into_message(self) -> Option<String> {
        match self.count - self.told {
            _ if self.count == 0 => None,
            0 => Some(self.text),
            untold => Some(format!("{}; and {untold} more", self.text)),
        }
    }
}

fn shortened(text: &str, limit: usize) -> &str {
    let end = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= limit).last();
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_a_nack_names_each_resource_and_is_bounded() {
        let mut few = Rejections::default();
        few.add("a", &Rejected("bad".into()));
        few.add("b", &Rejected("worse".into()));
        assert_eq!(few.into_message().as_deref(), Some("a: bad; b: worse"));
        let mut many = Rejections::default();
        for _ in 0..10_000 {
            many.add("ä".repeat(1000).as_str(), &Rejected("é".repeat(1000)));
        }
        let message = many.into_message().unwrap();
        assert!(message.len() < 6000, "{}", message.len());
        assert!(message.ends_with("; and 9996 more"), "{}", &message[message.len() - 40..]);
        assert_eq!(Rejections::default().into_message(), None);
    }
}
