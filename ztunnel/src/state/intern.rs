//! One copy of every repeated string.

use std::collections::HashSet;
use std::sync::Arc;

/// Shares equal strings while resources are decoded.
///
/// A mesh of 50,000 pods has a few hundred namespaces, nodes, networks and localities; each is stored once. Whoever
/// decodes resources owns the interner; the strings live on in the resources after it is dropped.
#[derive(Debug, Default)]
pub struct Interner {
    strings: HashSet<Arc<str>>,
}

impl Interner {
    /// The shared copy of `text`, made now if there is none.
    pub fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.strings.get(text) {
            return shared.clone();
        }
        let shared: Arc<str> = text.into();
        self.strings.insert(shared.clone());
        shared
    }

    /// Forgets the strings that nothing else refers to any more. Cost: one pass over all strings; call it after a
    /// large push, not after each resource.
    pub fn sweep(&mut self) {
        self.strings.retain(|shared| Arc::strong_count(shared) > 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_share_one_copy_and_unused_ones_are_forgotten() {
        let mut interner = Interner::default();
        let first = interner.intern("shop");
        assert!(Arc::ptr_eq(&first, &interner.intern("shop")));
        interner.intern("gone");
        interner.sweep();
        assert_eq!(interner.strings.len(), 1);
        assert!(Arc::ptr_eq(&first, &interner.intern("shop")));
    }
}
