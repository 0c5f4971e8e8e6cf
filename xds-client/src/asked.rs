//! The names that have been asked for, in on-demand mode, and what is known of each.
//!
//! A name under which a resource is held needs no note: it is not asked for. What is noted here waits for its answer, is
//! an alias (`/10.0.0.1`) of a resource, or is known to be missing. Pods come and go, so what was answered can be
//! forgotten again: it is asked for anew when somebody needs it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::requests::Ask;

/// Names noted at once. Our own choice: some megabytes. Beyond it, the name that was answered longest ago makes room.
const MAX_ASKED: usize = 1 << 16;

/// The names, and who answered them.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    names: HashMap<Arc<str>, Standing>,
    /// The names that were answered, by when.
    answered: BTreeMap<u64, Arc<str>>,
    /// The aliases that were answered by a resource that is held, by its name.
    aliases: HashMap<Arc<str>, Vec<Arc<str>>>,
    /// Counts answers.
    clock: u64,
}

#[derive(Debug)]
struct Standing {
    /// On this stream.
    subscribed: bool,
    answer: Answer,
    /// When it was answered.
    at: u64,
}

/// The last answer for a name.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// There is none yet.
    Awaited,
    /// It is an alias of the resource with this name.
    AliasOf(Arc<str>),
    /// It is the name of a resource, and needs no note.
    Held,
    /// There is nothing of this name, or what there is was rejected, or is gone by now.
    Missing,
}

impl Asked {
    pub(crate) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.keys()
    }

    /// A new stream: whatever is not known to be missing is asked for again.
    pub(crate) fn reopen(&mut self) {
        self.names.retain(|_, standing| !matches!(standing.answer, Answer::Missing));
        self.answered.retain(|_, name| self.names.contains_key(name));
        self.names.values_mut().for_each(|standing| standing.subscribed = true);
    }

    /// How to ask for a name; `None` if there are too many that wait for their answers.
    pub(crate) fn ask(&mut self, name: &Arc<str>) -> Option<Ask> {
        if let Some(standing) = self.names.get_mut(name) {
            standing.subscribed = !standing.subscribed;
            let ask = if standing.subscribed { Ask::Subscribe } else { Ask::Once };
            self.note(name, Answer::Awaited);
            return Some(ask);
        }
        let ask = if self.names.len() < MAX_ASKED {
            Ask::Subscribe
        } else {
            match self.forget_oldest()? {
                (forgotten, Subscribed::Yes) => Ask::InsteadOf(forgotten),
                (_, Subscribed::No) => Ask::Subscribe,
            }
        };
        self.insert(name, Answer::Awaited);
        Some(ask)
    }

    /// Notes the answer for a name, if it is one that was asked for.
    pub(crate) fn answer(&mut self, name: &str, answer: Answer) -> Option<Arc<str>> {
        let name = Arc::clone(self.names.get_key_value(name)?.0);
        self.note(&name, answer);
        Some(name)
    }

    /// Notes that the control plane has sent a resource under this name, and so counts the name as subscribed, also if
    /// it was asked for by an alias or not at all.
    pub(crate) fn sent(&mut self, name: &str, answer: Answer) -> Option<Arc<str>> {
        if let Some(standing) = self.names.get_mut(name) {
            standing.subscribed = true;
        } else if matches!(answer, Answer::Missing) {
            self.insert_missing(name);
            return None;
        }
        self.answer(name, answer)
    }

    /// The resource is gone, or has other aliases than before: those that are not among `aliases` are missing.
    pub(crate) fn keep_aliases<'a>(
        &mut self,
        resource: &str,
        aliases: impl Iterator<Item = &'a str> + Clone,
    ) {
        let Some(noted) = self.aliases.get(resource) else { return };
        let lost = noted.iter().filter(|noted| !aliases.clone().any(|alias| alias == &***noted));
        for alias in lost.cloned().collect::<Vec<_>>() {
            self.note(&alias, Answer::Missing);
        }
    }

    /// There is no room for a request that would unsubscribe from what is forgotten. A later question for that may stay
    /// unanswered until the next stream.
    fn insert_missing(&mut self, name: &str) {
        if self.names.len() < MAX_ASKED || self.forget_oldest().is_some() {
            self.insert(&name.into(), Answer::Missing);
        }
    }

    fn insert(&mut self, name: &Arc<str>, answer: Answer) {
        let standing = Standing { subscribed: true, answer: Answer::Awaited, at: 0 };
        self.names.insert(Arc::clone(name), standing);
        self.note(name, answer);
    }

    /// Puts an answer in the place of the one before.
    fn note(&mut self, name: &Arc<str>, answer: Answer) {
        let Some(standing) = self.names.get_mut(name) else { return };
        let before = std::mem::replace(&mut standing.answer, answer.clone());
        self.answered.remove(&standing.at);
        if !matches!(answer, Answer::Awaited) {
            self.clock += 1;
            standing.at = self.clock;
            self.answered.insert(self.clock, Arc::clone(name));
        }
        if let Answer::AliasOf(resource) = before {
            self.unlink(&resource, name);
        }
        match answer {
            Answer::AliasOf(resource) => self.aliases.entry(resource).or_default().push(Arc::clone(name)),
            Answer::Held => drop(self.forget(name)),
            Answer::Awaited | Answer::Missing => {}
        }
    }

    fn unlink(&mut self, resource: &str, alias: &str) {
        let Some(aliases) = self.aliases.get_mut(resource) else { return };
        aliases.retain(|known| **known != *alias);
        if aliases.is_empty() {
            self.aliases.remove(resource);
        }
    }

    /// Forgets the name that was answered longest ago. `None` if none was.
    fn forget_oldest(&mut self) -> Option<(Arc<str>, Subscribed)> {
        let oldest = Arc::clone(self.answered.first_key_value()?.1);
        let subscribed = self.forget(&oldest)?;
        Some((oldest, subscribed))
    }

    fn forget(&mut self, name: &str) -> Option<Subscribed> {
        let standing = self.names.remove(name)?;
        self.answered.remove(&standing.at);
        if let Answer::AliasOf(resource) = standing.answer {
            self.unlink(&resource, name);
        }
        Some(if standing.subscribed { Subscribed::Yes } else { Subscribed::No })
    }
}

/// Whether a name is subscribed to on this stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subscribed {
    Yes,
    No,
}
