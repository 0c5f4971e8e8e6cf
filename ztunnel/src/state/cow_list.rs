//! A short list that shares its items with its clones, ordered by a key that the items carry.
//!
//! Most addresses, hostnames and services have one owner, so a list of one costs no allocation of its own. Larger lists
//! are copied when they are changed while somebody else holds them, and changed in place otherwise.

use std::cmp::Ordering;
use std::sync::Arc;

/// Items in ascending order, no two of them equal. The order is the list's whole memory: it does not depend on the
/// order in which the items came.
#[derive(Clone, Debug, Default)]
pub(crate) enum CowList<T> {
    #[default]
    Empty,
    One(T),
    /// At least two.
    Many(Arc<Vec<T>>),
}

/// What an item is ordered by.
pub(crate) trait Ranked {
    /// How `self` stands to `other`; equal items replace each other.
    fn rank(&self, other: &Self) -> Ordering;
}

impl<T> CowList<T> {
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Self::Empty => &[],
            Self::One(item) => std::slice::from_ref(item),
            Self::Many(items) => items,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

impl<T: Clone + Ranked> CowList<T> {
    /// Puts `item` in its place, instead of one that is equal to it.
    pub(crate) fn put(&mut self, item: T) {
        match self {
            Self::Empty => *self = Self::One(item),
            Self::One(other) => match item.rank(other) {
                Ordering::Equal => *other = item,
                Ordering::Less => *self = Self::Many(Arc::new(vec![item, other.clone()])),
                Ordering::Greater => *self = Self::Many(Arc::new(vec![other.clone(), item])),
            },
            Self::Many(items) => {
                let items = Arc::make_mut(items);
                match items.binary_search_by(|other| other.rank(&item)) {
                    Ok(at) => items[at] = item,
                    Err(at) => items.insert(at, item),
                }
            }
        }
    }

    /// Takes out the item equal to `item`. Returns whether there was one.
    pub(crate) fn take(&mut self, item: &T) -> bool {
        match self {
            Self::Empty => false,
            Self::One(other) if other.rank(item) == Ordering::Equal => {
                *self = Self::Empty;
                true
            }
            Self::One(_) => false,
            Self::Many(items) => {
                let Ok(at) = items.binary_search_by(|other| other.rank(item)) else { return false };
                if let [one, other] = items.as_slice() {
                    *self = Self::One(if at == 0 { other.clone() } else { one.clone() });
                } else {
                    Arc::make_mut(items).remove(at);
                }
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Equal by `key` alone, so that it shows which of two was kept.
    #[derive(Clone, Debug, PartialEq)]
    struct Item {
        key: u8,
        value: u32,
    }

    impl Ranked for Item {
        fn rank(&self, other: &Self) -> Ordering {
            self.key.cmp(&other.key)
        }
    }

    proptest! {
        #[test]
        fn it_behaves_as_a_sorted_map_and_its_clones_never_change(
            changes in prop::collection::vec((0..6u8, any::<u32>(), any::<bool>()), 0..60)
        ) {
            let mut list = CowList::default();
            let mut expected = BTreeMap::new();
            let mut clones = Vec::new();
            for (key, value, is_removal) in changes {
                if is_removal {
                    prop_assert_eq!(list.take(&Item { key, value }), expected.remove(&key).is_some());
                } else {
                    list.put(Item { key, value });
                    expected.insert(key, value);
                }
                clones.push((list.clone(), expected.clone()));
            }
            for (list, expected) in clones {
                let items: Vec<_> = expected.into_iter().map(|(key, value)| Item { key, value }).collect();
                prop_assert_eq!(list.as_slice(), &items[..]);
                prop_assert_eq!(list.is_empty(), items.is_empty());
                prop_assert_eq!(matches!(list, CowList::One(_)), items.len() == 1);
            }
        }
    }
}
