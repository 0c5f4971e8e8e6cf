//! The names that have been asked for, in on-demand mode, and what is known of each.

use std::collections::HashMap;
use std::sync::Arc;

use crate::requests::Ask;

/// Names that may be asked for on one stream. Names that are known to be missing make room for others.
const MAX_DEMANDED: usize = 1 << 16;

/// The names that have been asked for, in on-demand mode.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    names: HashMap<Arc<str>, Standing>,
}

#[derive(Clone, Copy, Debug)]
struct Standing {
    /// On this stream.
    subscribed: bool,
    /// The last answer was that there is none.
    missing: bool,
}

impl Asked {
    pub(crate) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.keys()
    }

    /// A new stream: whatever is not known to be missing is asked for again.
    pub(crate) fn reopen(&mut self) {
        self.names.retain(|_, standing| !standing.missing);
        self.names.values_mut().for_each(|standing| standing.subscribed = true);
    }

    /// How to ask for a name; `None` if there are too many.
    pub(crate) fn ask(&mut self, name: &Arc<str>) -> Option<Ask> {
        if let Some(standing) = self.names.get_mut(name) {
            standing.missing = false;
            standing.subscribed = !standing.subscribed;
            return Some(if standing.subscribed { Ask::Subscribe } else { Ask::Once });
        }
        self.make_room();
        if self.names.len() >= MAX_DEMANDED {
            return None;
        }
        self.names.insert(Arc::clone(name), Standing { subscribed: true, missing: false });
        Some(Ask::Subscribe)
    }

    /// Notes the answer for an alias or a missing name, if it is one that was asked for.
    pub(crate) fn answer(&mut self, name: &str, missing: bool) -> Option<Arc<str>> {
        let name = Arc::clone(self.names.get_key_value(name)?.0);
        if let Some(standing) = self.names.get_mut(&name) {
            standing.missing = missing;
        }
        Some(name)
    }

    /// Notes that the control plane has sent a resource under this name, and so counts the name as subscribed, also if
    /// it was asked for by an alias or not at all. What is held does not need a note: it is not asked for.
    pub(crate) fn sent(&mut self, name: &str, missing: bool) -> Option<Arc<str>> {
        if let Some(standing) = self.names.get_mut(name) {
            standing.subscribed = true;
        } else if missing {
            self.make_room();
            self.names.insert(name.into(), Standing { subscribed: true, missing: true });
            return None;
        }
        self.answer(name, missing)
    }

    /// Forgets what is missing, if there are too many names. The control plane may leave a later question for one of them
    /// unanswered, until the next stream.
    fn make_room(&mut self) {
        if self.names.len() >= MAX_DEMANDED {
            self.names.retain(|_, standing| !standing.missing);
        }
    }
}
