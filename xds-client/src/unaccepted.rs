//! The names of resources of which no version was ever accepted.
//!
//! A first request does not name them, so their deletion while there is no stream is never told. But the first response
//! of a stream carries whatever was not named with its current version: what it does not carry is gone.

use std::collections::HashSet;
use std::sync::Arc;

/// Our own choice: some megabytes. What is rejected beyond it is not remembered; if it is deleted while there is no
/// stream, the handler goes on with what it remembers of it. Stale is better than missing.
const MAX_NAMES: usize = 1 << 16;

/// The names of one type. None of them is retained.
#[derive(Debug, Default)]
pub(crate) struct Unaccepted {
    names: HashSet<Arc<str>>,
}

impl Unaccepted {
    pub(crate) fn insert(&mut self, name: Arc<str>) {
        if self.names.len() < MAX_NAMES {
            self.names.insert(name);
        }
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.names.remove(name);
    }

    /// All of them. What is there still has to be inserted again.
    pub(crate) fn take(&mut self) -> HashSet<Arc<str>> {
        std::mem::take(&mut self.names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ever_new_rejected_names_are_bounded() {
        let mut unaccepted = Unaccepted::default();
        for n in 0..=MAX_NAMES {
            unaccepted.insert(n.to_string().into());
        }
        unaccepted.remove("0");
        unaccepted.insert("more".into());
        let names = unaccepted.take();
        assert_eq!(names.len(), MAX_NAMES);
        assert!(names.contains("more") && !names.contains(&*MAX_NAMES.to_string()));
    }
}
