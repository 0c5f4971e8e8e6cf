//! A list that shares its items with its clones, ordered by a key that the items carry, that can be drawn from by weight.
//!
//! As [`CowList`](super::cow_list::CowList), with a running sum beside every chunk: the item at a position, or at a share
//! of the total weight, is found by bisection, without allocation. A change copies one chunk and the pointers to the
//! others, and only while somebody else holds them.

use std::cmp::Ordering;
use std::sync::Arc;

use super::cow_list::Ranked;

/// At least one item; ascending, no two of them equal.
#[derive(Clone, Debug)]
pub(crate) enum WeightedList<T> {
    One(T),
    /// At least two items, in chunks that are not empty.
    Many(Arc<Vec<Chunk<T>>>),
}

/// An item with a share in draws.
pub(crate) trait Weighted: Ranked {
    /// Its share; 0 is never drawn.
    fn weight(&self) -> u32;
}

/// What precedes a place in the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    /// How many items.
    pub(crate) items: usize,
    /// Their weights together.
    pub(crate) weight: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Chunk<T> {
    items: Arc<Vec<T>>,
    /// Up to and including this chunk.
    end: Sum,
}

/// Items in a chunk at most.
const CHUNK: usize = 64;

impl<T> WeightedList<T> {
    /// The lowest item.
    pub(crate) fn first(&self) -> &T {
        match self {
            Self::One(item) => item,
            Self::Many(chunks) => &chunks[0].items[0],
        }
    }

    /// All items, in order. Allocates nothing.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        let (one, many): (&[T], &[Chunk<T>]) = match self {
            Self::One(item) => (std::slice::from_ref(item), &[]),
            Self::Many(chunks) => (&[], chunks),
        };
        one.iter().chain(many.iter().flat_map(|chunk| chunk.items.iter()))
    }

    /// The item at this position.
    pub(crate) fn at(&self, position: usize) -> Option<&T> {
        match self {
            Self::One(item) => (position == 0).then_some(item),
            Self::Many(chunks) => {
                let chunk = chunks.partition_point(|chunk| chunk.end.items <= position);
                chunks.get(chunk)?.items.get(position - before(chunks, chunk).items)
            }
        }
    }
}

impl<T: Weighted> WeightedList<T> {
    /// All items together.
    pub(crate) fn total(&self) -> Sum {
        match self {
            Self::One(item) => Sum::default().and(item),
            Self::Many(chunks) => chunks.last().map(|chunk| chunk.end).unwrap_or_default(),
        }
    }

    /// What precedes the first item for which `precedes` is false. No item after that may precede.
    pub(crate) fn sum_while(&self, precedes: impl Fn(&T) -> bool) -> Sum {
        match self {
            Self::One(item) if precedes(item) => self.total(),
            Self::One(_) => Sum::default(),
            Self::Many(chunks) => {
                let Some(chunk) = chunks.partition_point(|chunk| precedes(&chunk.items[0])).checked_sub(1)
                else {
                    return Sum::default();
                };
                let items = &chunks[chunk].items;
                let preceding = &items[..items.partition_point(precedes)];
                preceding.iter().fold(before(chunks, chunk), Sum::and)
            }
        }
    }

    /// The item that owns this share of the total weight: each owns as many as its weight, in the order of the list.
    pub(crate) fn at_weight(&self, share: u64) -> Option<&T> {
        match self {
            Self::One(item) => (share < u64::from(item.weight())).then_some(item),
            Self::Many(chunks) => {
                let chunk = chunks.partition_point(|chunk| chunk.end.weight <= share);
                let mut left = share - before(chunks, chunk).weight;
                chunks.get(chunk)?.items.iter().find(|item| {
                    let weight = u64::from(item.weight());
                    let owns = left < weight;
                    left = left.saturating_sub(weight);
                    owns
                })
            }
        }
    }
}

impl<T: Clone + Weighted> WeightedList<T> {
    /// Puts `item` in its place, instead of one that is equal to it.
    pub(crate) fn put(&mut self, item: T) {
        match self {
            Self::One(other) => {
                let items = match item.rank(other) {
                    Ordering::Equal => return *other = item,
                    Ordering::Less => vec![item, other.clone()],
                    Ordering::Greater => vec![other.clone(), item],
                };
                let end = items.iter().fold(Sum::default(), Sum::and);
                *self = Self::Many(Arc::new(vec![Chunk { items: Arc::new(items), end }]));
            }
            Self::Many(chunks) => {
                let at = chunk_of(chunks, &item);
                let chunks = Arc::make_mut(chunks);
                let items = Arc::make_mut(&mut chunks[at].items);
                match find(items, &item) {
                    Ok(place) => items[place] = item,
                    Err(place) => items.insert(place, item),
                }
                let second_half = (items.len() > CHUNK).then(|| {
                    let second_half = items.split_off(CHUNK / 2);
                    items.shrink_to(CHUNK);
                    second_half
                });
                changed(chunks, at);
                if let Some(items) = second_half {
                    let end = chunks[at].end;
                    chunks.insert(at + 1, Chunk { items: Arc::new(items), end });
                    changed(chunks, at + 1);
                }
            }
        }
    }

    /// Takes out the item equal to `item`, unless it is the only one. Returns what became of it.
    pub(crate) fn take(&mut self, item: &T) -> Taken {
        let Self::Many(chunks) = self else {
            return match self.first().rank(item) {
                Ordering::Equal => Taken::WouldBeEmpty,
                _ => Taken::Absent,
            };
        };
        let at = chunk_of(chunks, item);
        let Ok(place) = find(&chunks[at].items, item) else { return Taken::Absent };
        let chunks = Arc::make_mut(chunks);
        Arc::make_mut(&mut chunks[at].items).remove(place);
        changed(chunks, at);
        if chunks[at].items.is_empty() {
            chunks.remove(at);
        }
        if let [chunk] = chunks.as_slice()
            && let [last] = chunk.items.as_slice()
        {
            *self = Self::One(last.clone());
        }
        Taken::Out
    }
}

/// What became of an item that was to be taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is out.
    Out,
    /// It is the only one, and stays: the list itself has to go.
    WouldBeEmpty,
    /// There was none.
    Absent,
}

impl Sum {
    fn and<T: Weighted>(self, item: &T) -> Self {
        Self { items: self.items + 1, weight: self.weight + u64::from(item.weight()) }
    }

    /// What lies between `start` and here.
    pub(crate) fn since(self, start: Self) -> Self {
        Self { items: self.items - start.items, weight: self.weight - start.weight }
    }
}

/// What precedes a chunk.
fn before<T>(chunks: &[Chunk<T>], chunk: usize) -> Sum {
    chunk.checked_sub(1).map(|previous| chunks[previous].end).unwrap_or_default()
}

/// Makes the sums right after the items of one chunk have changed: the others shift by the difference.
fn changed<T: Weighted>(chunks: &mut [Chunk<T>], at: usize) {
    let old = chunks[at].end;
    let new = chunks[at].items.iter().fold(before(chunks, at), Sum::and);
    chunks[at].end = new;
    for chunk in &mut chunks[at + 1..] {
        let after = chunk.end.since(old);
        chunk.end = Sum { items: new.items + after.items, weight: new.weight + after.weight };
    }
}

fn find<T: Ranked>(items: &[T], item: &T) -> Result<usize, usize> {
    items.binary_search_by(|other| other.rank(item))
}

/// The chunk that `item` is in, or belongs to.
fn chunk_of<T: Ranked>(chunks: &[Chunk<T>], item: &T) -> usize {
    chunks.partition_point(|chunk| chunk.items[0].rank(item) != Ordering::Greater).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Item {
        key: u16,
        weight: u32,
    }

    impl Ranked for Item {
        fn rank(&self, other: &Self) -> Ordering {
            self.key.cmp(&other.key)
        }
    }

    impl Weighted for Item {
        fn weight(&self) -> u32 {
            self.weight
        }
    }

    fn check(list: Option<&WeightedList<Item>>, expected: &BTreeMap<u16, u32>) -> Result<(), TestCaseError> {
        let Some(list) = list else {
            prop_assert!(expected.is_empty());
            return Ok(());
        };
        let items: Vec<_> =
            expected.iter().map(|(key, weight)| Item { key: *key, weight: *weight }).collect();
        prop_assert_eq!(list.iter().cloned().collect::<Vec<_>>(), &items[..]);
        prop_assert_eq!(Some(list.first()), items.first());
        prop_assert_eq!(matches!(list, WeightedList::One(_)), items.len() == 1);
        let mut sum = Sum::default();
        for (position, item) in items.iter().enumerate() {
            prop_assert_eq!(list.at(position), Some(item));
            prop_assert_eq!(list.sum_while(|other| other.key < item.key), sum);
            if item.weight > 0 {
                prop_assert_eq!(list.at_weight(sum.weight), Some(item));
                prop_assert_eq!(list.at_weight(sum.weight + u64::from(item.weight) - 1), Some(item));
            }
            sum = sum.and(item);
        }
        prop_assert_eq!(list.total(), sum);
        prop_assert_eq!(list.at(items.len()), None);
        prop_assert_eq!(list.at_weight(sum.weight), None);
        Ok(())
    }

    fn weight() -> impl Strategy<Value = u32> {
        prop_oneof![2 => Just(0), 4 => 1..5u32, 1 => Just(u32::MAX)]
    }

    proptest! {
        #[test]
        fn it_behaves_as_a_sorted_map_with_sums_and_its_clones_never_change(
            changes in prop_oneof![1..6u16, 300..=400u16].prop_flat_map(|keys| {
                prop::collection::vec((0..keys, weight(), prop::bool::weighted(0.35), prop::bool::weighted(0.05)), 0..900)
            })
        ) {
            let mut list: Option<WeightedList<Item>> = None;
            let mut expected = BTreeMap::new();
            let mut clones = Vec::new();
            for (key, weight, is_removal, is_kept) in changes {
                let item = Item { key, weight };
                match &mut list {
                    Some(held) if is_removal => match held.take(&item) {
                        Taken::Out => prop_assert!(expected.remove(&key).is_some()),
                        Taken::Absent => prop_assert!(expected.remove(&key).is_none()),
                        Taken::WouldBeEmpty => {
                            prop_assert!(expected.remove(&key).is_some() && expected.is_empty());
                            list = None;
                        }
                    },
                    None if is_removal => {}
                    Some(held) => {
                        held.put(item);
                        expected.insert(key, weight);
                    }
                    None => {
                        list = Some(WeightedList::One(item));
                        expected.insert(key, weight);
                    }
                }
                if is_kept {
                    clones.push((list.clone(), expected.clone()));
                }
            }
            clones.push((list, expected));
            for (list, expected) in clones {
                check(list.as_ref(), &expected)?;
            }
        }
    }
}
