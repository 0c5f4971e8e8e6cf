//! A list that shares its items with its clones, ordered by a key that the items carry.
//!
//! Most addresses, hostnames and services have one owner, so a list of one costs no allocation of its own. A large list is
//! cut into chunks, so that a change copies one of them and not the list, while somebody else holds it; what nobody else
//! holds is changed in place.

use std::cmp::Ordering;
use std::sync::Arc;

/// Items in ascending order, no two of them equal. The order is the list's whole memory: it does not depend on the
/// order in which the items came.
#[derive(Clone, Debug, Default)]
pub(crate) enum CowList<T> {
    #[default]
    Empty,
    One(T),
    /// At least two, and no more than a chunk holds.
    Few(Arc<Vec<T>>),
    /// At least two chunks, none of them empty.
    Many(Arc<Vec<Arc<Vec<T>>>>),
}

/// What an item is ordered by.
pub(crate) trait Ranked {
    /// How `self` stands to `other`; equal items replace each other.
    fn rank(&self, other: &Self) -> Ordering;
}

/// Items in a chunk at most. A change in a list of 10,000 copies one chunk and the 200 pointers to the others.
const CHUNK: usize = 64;

impl<T> CowList<T> {
    /// All items, in order. Allocates nothing.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        let (few, many): (&[T], &[Arc<Vec<T>>]) = match self {
            Self::Empty => (&[], &[]),
            Self::One(item) => (std::slice::from_ref(item), &[]),
            Self::Few(items) => (items, &[]),
            Self::Many(chunks) => (&[], chunks),
        };
        few.iter().chain(many.iter().flat_map(|chunk| chunk.iter()))
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
                Ordering::Less => *self = Self::Few(Arc::new(vec![item, other.clone()])),
                Ordering::Greater => *self = Self::Few(Arc::new(vec![other.clone(), item])),
            },
            Self::Few(items) => {
                if let Some(second_half) = put_into(Arc::make_mut(items), item) {
                    *self = Self::Many(Arc::new(vec![items.clone(), Arc::new(second_half)]));
                }
            }
            Self::Many(chunks) => {
                let at = chunk_of(chunks, &item);
                let chunks = Arc::make_mut(chunks);
                if let Some(second_half) = put_into(Arc::make_mut(&mut chunks[at]), item) {
                    chunks.insert(at + 1, Arc::new(second_half));
                }
            }
        }
    }

    /// The item equal to `item`, to be changed in ways that leave it where it stands.
    pub(crate) fn get_mut(&mut self, item: &T) -> Option<&mut T> {
        match self {
            Self::Empty => None,
            Self::One(other) => (other.rank(item) == Ordering::Equal).then_some(other),
            Self::Few(items) => {
                let at = find(items, item).ok()?;
                Arc::make_mut(items).get_mut(at)
            }
            Self::Many(chunks) => {
                let chunk = chunk_of(chunks, item);
                let at = find(&chunks[chunk], item).ok()?;
                Arc::make_mut(&mut Arc::make_mut(chunks)[chunk]).get_mut(at)
            }
        }
    }

    /// Takes out the item equal to `item`. Returns whether there was one.
    pub(crate) fn take(&mut self, item: &T) -> bool {
        match self {
            Self::Empty => false,
            Self::One(other) => {
                let found = other.rank(item) == Ordering::Equal;
                if found {
                    *self = Self::Empty;
                }
                found
            }
            Self::Few(items) => {
                let Ok(at) = find(items, item) else { return false };
                Arc::make_mut(items).remove(at);
                *self = Self::few(items.clone());
                true
            }
            Self::Many(chunks) => {
                let chunk = chunk_of(chunks, item);
                let Ok(at) = find(&chunks[chunk], item) else { return false };
                let chunks = Arc::make_mut(chunks);
                Arc::make_mut(&mut chunks[chunk]).remove(at);
                if chunks[chunk].is_empty() {
                    chunks.remove(chunk);
                }
                if let [last] = chunks.as_slice() {
                    *self = Self::few(last.clone());
                }
                true
            }
        }
    }

    /// A list of what is left, at least one item.
    fn few(items: Arc<Vec<T>>) -> Self {
        match items.as_slice() {
            [item] => Self::One(item.clone()),
            _ => Self::Few(items),
        }
    }
}

/// Puts `item` in its place in a chunk. Returns the second half of the chunk if it has become too large.
fn put_into<T: Ranked>(items: &mut Vec<T>, item: T) -> Option<Vec<T>> {
    match find(items, &item) {
        Ok(at) => items[at] = item,
        Err(at) => items.insert(at, item),
    }
    (items.len() > CHUNK).then(|| {
        let second_half = items.split_off(CHUNK / 2);
        items.shrink_to(CHUNK);
        second_half
    })
}

fn find<T: Ranked>(items: &[T], item: &T) -> Result<usize, usize> {
    items.binary_search_by(|other| other.rank(item))
}

/// The chunk that `item` is in, or belongs to.
fn chunk_of<T: Ranked>(chunks: &[Arc<Vec<T>>], item: &T) -> usize {
    chunks.partition_point(|chunk| chunk[0].rank(item) != Ordering::Greater).saturating_sub(1)
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
            changes in prop_oneof![1..6u8, 200..=255u8].prop_flat_map(|keys| {
                prop::collection::vec((0..keys, any::<u32>(), prop::bool::weighted(0.35)), 0..1000)
            })
        ) {
            let mut list = CowList::default();
            let mut expected = BTreeMap::new();
            let mut clones = Vec::new();
            for (key, value, is_removal) in changes {
                if is_removal {
                    prop_assert_eq!(list.take(&Item { key, value }), expected.remove(&key).is_some());
                } else if value % 3 == 0 {
                    let item = list.get_mut(&Item { key, value });
                    prop_assert_eq!(item.is_some(), expected.contains_key(&key));
                    if let Some(item) = item {
                        item.value = value;
                        expected.insert(key, value);
                    }
                } else {
                    list.put(Item { key, value });
                    expected.insert(key, value);
                }
                // Half of them, so that some changes are made in place.
                if value % 2 == 0 {
                    clones.push((list.clone(), expected.clone()));
                }
            }
            clones.push((list, expected));
            for (list, expected) in clones {
                let items: Vec<_> = expected.into_iter().map(|(key, value)| Item { key, value }).collect();
                prop_assert_eq!(list.iter().cloned().collect::<Vec<_>>(), &items[..]);
                prop_assert_eq!(list.is_empty(), items.is_empty());
                prop_assert_eq!(matches!(list, CowList::One(_)), items.len() == 1);
            }
        }
    }
}
