//! The names of resources whose latest version was rejected.
//!
//! While there is a stream, the control plane tells what becomes of them. What happens while there is none shows in the
//! first response of the next stream, which carries whatever was not named with its current version. So of a resource of
//! which no version was ever accepted, and which the request does not name, it tells by silence that it is gone; of one
//! that the request names with the version before the rejected one, that this version is in force again.

use std::collections::HashSet;
use std::sync::Arc;

/// Our own choice: some megabytes. What is rejected beyond it is not remembered; what becomes of it while there is no
/// stream is not noticed, and the handler goes on with what it remembers of it. Stale is better than missing.
const MAX_NAMES: usize = 1 << 16;

/// Some of the names of one type.
#[derive(Debug, Default)]
pub(crate) struct RejectedNames {
    names: HashSet<Arc<str>>,
}

impl RejectedNames {
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
        let mut rejected = RejectedNames::default();
        for n in 0..=MAX_NAMES {
            rejected.insert(n.to_string().into());
        }
        rejected.remove("0");
        rejected.insert("more".into());
        let names = rejected.take();
        assert_eq!(names.len(), MAX_NAMES);
        assert!(names.contains("more") && !names.contains(&*MAX_NAMES.to_string()));
    }
}
