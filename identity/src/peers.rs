//! The identities that may answer at the other end of a connection.

use std::sync::Arc;

use crate::SpiffeId;

/// The identities of which a server must prove one.
///
/// A set: order and repetition in the making do not matter for equality. Cheap to clone, and fit to be part of the key
/// under which connections are shared. No server satisfies the empty set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExpectedPeers(
    /// Sorted, without repetition.
    Arc<[SpiffeId]>,
);

impl ExpectedPeers {
    /// Whether `peer` is one of them.
    pub fn contains(&self, peer: &SpiffeId) -> bool {
        self.0.binary_search(peer).is_ok()
    }

    /// The identities, in order.
    pub fn as_slice(&self) -> &[SpiffeId] {
        &self.0
    }
}

impl FromIterator<SpiffeId> for ExpectedPeers {
    fn from_iter<I: IntoIterator<Item = SpiffeId>>(peers: I) -> Self {
        let mut peers: Vec<_> = peers.into_iter().collect();
        peers.sort_unstable();
        peers.dedup();
        Self(peers.into())
    }
}

impl From<SpiffeId> for ExpectedPeers {
    fn from(peer: SpiffeId) -> Self {
        Self(Arc::new([peer]))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn id(account: &str) -> SpiffeId {
        SpiffeId::new("td", "ns", account).unwrap()
    }

    #[test]
    fn order_and_repetition_do_not_make_a_different_set() {
        let one: ExpectedPeers = [id("b"), id("a"), id("b")].into_iter().collect();
        let two: ExpectedPeers = [id("a"), id("b")].into_iter().collect();
        assert_eq!(one, two);
        assert_eq!(HashSet::from([one.clone(), two]).len(), 1);
        assert_eq!(one.as_slice(), [id("a"), id("b")]);
    }

    #[test]
    fn only_members_are_contained_and_the_empty_set_has_none() {
        let peers = ExpectedPeers::from(id("a"));
        assert!(peers.contains(&id("a")));
        assert!(!peers.contains(&SpiffeId::new("other", "ns", "a").unwrap()));
        assert!(!ExpectedPeers::default().contains(&id("a")));
    }
}
