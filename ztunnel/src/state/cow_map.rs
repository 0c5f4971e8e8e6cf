//! A hash map that shares its unchanged parts with its clones.
//!
//! Readers hold a clone and are never disturbed; a writer clones, changes a few keys and publishes the result. Changing
//! one key copies the path to it, not the map: a hash trie of 16 children per branch and up to 32 entries per leaf. As
//! long as a writer is the only holder of a part, that part is changed in place, so loading a whole mesh copies nothing.

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::model::{NamespacedHostname, NetworkAddress, NetworkCidr};

/// A map whose clone costs one reference count. See the module for how.
#[derive(Debug)]
pub(crate) struct CowMap<K, V> {
    root: Node<K, V>,
    len: usize,
    hasher: RandomState,
}

/// Something that finds a key without being one. It must hash as the key does.
pub(crate) trait Query<K>: Hash {
    /// True when `key` is the one looked for.
    fn is(&self, key: &K) -> bool;
}

impl<K: Clone + Eq + Hash, V: Clone> CowMap<K, V> {
    /// The value under `query`.
    pub(crate) fn get<Q: Query<K> + ?Sized>(&self, query: &Q) -> Option<&V> {
        let hash = self.hasher.hash_one(query);
        let mut node = &self.root;
        let mut depth = 0;
        loop {
            match node {
                Node::Branch(children) => node = &children[child(hash, depth)],
                Node::Leaf(entries) => {
                    return entries
                        .iter()
                        .find(|entry| entry.hash == hash && query.is(&entry.key))
                        .map(|entry| &entry.value);
                }
            }
            depth += 1;
        }
    }

    /// Puts `value` under `key` and hands back what it replaces.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let hash = self.hasher.hash_one(&key);
        let entries = self.root.leaf_mut(hash);
        if let Some(entry) = entries.iter_mut().find(|entry| entry.hash == hash && entry.key == key) {
            return Some(std::mem::replace(&mut entry.value, value));
        }
        entries.push(Entry { hash, key, value });
        self.len += 1;
        None
    }

    /// The value under `key`, put there first if there is none.
    pub(crate) fn get_or_default(&mut self, key: &K) -> &mut V
    where
        V: Default,
    {
        let hash = self.hasher.hash_one(key);
        let entries = self.root.leaf_mut(hash);
        let found = entries.iter().position(|entry| entry.hash == hash && entry.key == *key);
        let at = found.unwrap_or_else(|| {
            entries.push(Entry { hash, key: key.clone(), value: V::default() });
            self.len += 1;
            entries.len() - 1
        });
        &mut entries[at].value
    }

    /// Takes out the value under `query`. Branches stay, for the keys that will come instead, until the map is empty.
    pub(crate) fn remove<Q: Query<K> + ?Sized>(&mut self, query: &Q) -> Option<V> {
        self.get(query)?;
        let hash = self.hasher.hash_one(query);
        let entries = self.root.leaf_mut(hash);
        let at = entries.iter().position(|entry| entry.hash == hash && query.is(&entry.key))?;
        let removed = entries.swap_remove(at);
        self.len -= 1;
        if self.len == 0 {
            self.root = Node::default();
        }
        Some(removed.value)
    }

    /// The number of keys.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All keys and values, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let mut pending = vec![&self.root];
        let mut leaf = [].iter();
        std::iter::from_fn(move || {
            loop {
                if let Some(entry) = Iterator::next(&mut leaf) {
                    let Entry { key, value, .. } = entry;
                    return Some((key, value));
                }
                match pending.pop()? {
                    Node::Leaf(entries) => leaf = entries.iter(),
                    Node::Branch(children) => pending.extend(children.iter()),
                }
            }
        })
    }
}

impl<K, V> Clone for CowMap<K, V> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), len: self.len, hasher: self.hasher.clone() }
    }
}

impl<K, V> Default for CowMap<K, V> {
    fn default() -> Self {
        Self { root: Node::default(), len: 0, hasher: RandomState::new() }
    }
}

/// A branch takes `CHILD_BITS` of the hash, the lowest first.
#[derive(Debug)]
enum Node<K, V> {
    Leaf(Arc<Vec<Entry<K, V>>>),
    Branch(Arc<[Node<K, V>; CHILDREN]>),
}

#[derive(Clone, Debug)]
struct Entry<K, V> {
    hash: u64,
    key: K,
    value: V,
}

const CHILD_BITS: u32 = 4;
const CHILDREN: usize = 1 << CHILD_BITS;
/// Beyond this depth no bits of the hash are left; only full collisions share such a leaf.
const MAX_DEPTH: u32 = u64::BITS / CHILD_BITS;
/// A change copies one leaf: few enough for a microsecond, enough to keep the overhead per entry small.
const LEAF_ENTRIES: usize = 32;

fn child(hash: u64, depth: u32) -> usize {
    (hash >> (depth * CHILD_BITS)) as usize % CHILDREN
}

impl<K: Clone, V: Clone> Node<K, V> {
    /// The leaf for `hash`, with room for one more entry and with nothing on the way to it shared.
    fn leaf_mut(&mut self, hash: u64) -> &mut Vec<Entry<K, V>> {
        let mut node = self;
        let mut depth = 0;
        loop {
            if let Node::Leaf(entries) = node
                && entries.len() >= LEAF_ENTRIES
                && depth < MAX_DEPTH
            {
                *node = split(entries, depth);
            }
            match node {
                Node::Leaf(entries) => return Arc::make_mut(entries),
                Node::Branch(children) => node = &mut Arc::make_mut(children)[child(hash, depth)],
            }
            depth += 1;
        }
    }
}

fn split<K: Clone, V: Clone>(entries: &[Entry<K, V>], depth: u32) -> Node<K, V> {
    let mut leaves: [Vec<Entry<K, V>>; CHILDREN] = Default::default();
    for entry in entries {
        leaves[child(entry.hash, depth)].push(entry.clone());
    }
    Node::Branch(Arc::new(leaves.map(|entries| Node::Leaf(Arc::new(entries)))))
}

impl<K, V> Clone for Node<K, V> {
    fn clone(&self) -> Self {
        match self {
            Self::Leaf(entries) => Self::Leaf(entries.clone()),
            Self::Branch(children) => Self::Branch(children.clone()),
        }
    }
}

impl<K, V> Default for Node<K, V> {
    fn default() -> Self {
        Self::Leaf(Arc::default())
    }
}

// The standard library hashes a tuple and a struct alike: field by field. `Arc<str>` hashes as `str`.

impl<K: Eq + Hash> Query<K> for K {
    fn is(&self, key: &K) -> bool {
        self == key
    }
}

impl Query<Arc<str>> for str {
    fn is(&self, key: &Arc<str>) -> bool {
        self == &**key
    }
}

impl Query<NetworkAddress> for (&str, IpAddr) {
    fn is(&self, key: &NetworkAddress) -> bool {
        self.1 == key.address && self.0 == &*key.network
    }
}

impl Query<NetworkCidr> for (&str, IpNet) {
    fn is(&self, key: &NetworkCidr) -> bool {
        self.1 == key.cidr && self.0 == &*key.network
    }
}

impl Query<NamespacedHostname> for (&str, &str) {
    fn is(&self, key: &NamespacedHostname) -> bool {
        self.1 == &*key.hostname && self.0 == &*key.namespace
    }
}

impl Query<(Arc<str>, Arc<str>)> for (&str, &str) {
    fn is(&self, key: &(Arc<str>, Arc<str>)) -> bool {
        self.0 == &*key.0 && self.1 == &*key.1
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Change {
        Insert(u16, u32),
        Remove(u16),
        Add(u16, u32),
        Snapshot,
    }

    /// Few keys, so that maps become empty again, or enough of them for branches.
    fn changes() -> impl Strategy<Value = Vec<Change>> {
        prop_oneof![1..4u16, 200..300u16].prop_flat_map(|keys| prop::collection::vec(change(keys), 0..2000))
    }

    fn change(keys: u16) -> impl Strategy<Value = Change> {
        let key = 0..keys;
        prop_oneof![
            6 => (key.clone(), any::<u32>()).prop_map(|(key, value)| Change::Insert(key, value)),
            3 => key.clone().prop_map(Change::Remove),
            2 => (key, 0..9u32).prop_map(|(key, value)| Change::Add(key, value)),
            1 => Just(Change::Snapshot),
        ]
    }

    fn contents(map: &CowMap<u16, u32>) -> HashMap<u16, u32> {
        map.iter().map(|(key, value)| (*key, *value)).collect()
    }

    proptest! {
        #[test]
        fn it_behaves_as_a_hash_map_and_its_clones_never_change(changes in changes()) {
            let mut map = CowMap::default();
            let mut expected = HashMap::new();
            let mut snapshots = Vec::new();
            for change in changes {
                match change {
                    Change::Insert(key, value) => prop_assert_eq!(map.insert(key, value), expected.insert(key, value)),
                    Change::Remove(key) => prop_assert_eq!(map.remove(&key), expected.remove(&key)),
                    Change::Add(key, value) => {
                        let sum = map.get_or_default(&key);
                        *sum = sum.wrapping_add(value);
                        let sum = expected.entry(key).or_default();
                        *sum = sum.wrapping_add(value);
                    }
                    Change::Snapshot => snapshots.push((map.clone(), expected.clone())),
                }
            }
            snapshots.push((map, expected));
            for (map, expected) in &snapshots {
                prop_assert_eq!(map.len(), expected.len());
                prop_assert_eq!(&contents(map), expected);
                for key in 0..300 {
                    prop_assert_eq!(map.get(&key), expected.get(&key));
                }
            }
        }
    }

    #[test]
    fn borrowed_queries_find_owned_keys() {
        let mut by_host = CowMap::default();
        let host = NamespacedHostname { namespace: "ns".into(), hostname: "web".into() };
        by_host.insert(host, 1);
        assert_eq!(by_host.get(&("ns", "web")), Some(&1));
        assert_eq!(by_host.get(&("web", "ns")), None);

        let mut by_address = CowMap::default();
        let address = NetworkAddress { network: "net".into(), address: IpAddr::from([10, 0, 0, 1]) };
        by_address.insert(address, 2);
        assert_eq!(by_address.get(&("net", IpAddr::from([10, 0, 0, 1]))), Some(&2));
        assert_eq!(by_address.get(&("", IpAddr::from([10, 0, 0, 1]))), None);

        let mut by_text: CowMap<Arc<str>, u8> = CowMap::default();
        by_text.insert("uid".into(), 3);
        assert_eq!(by_text.get("uid"), Some(&3));
    }

    #[test]
    fn keys_whose_hashes_collide_entirely_stay_apart() {
        #[derive(Clone, PartialEq, Eq, Debug)]
        struct Colliding(u16);
        impl Hash for Colliding {
            fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
        }
        let mut map = CowMap::default();
        for key in 0..200 {
            map.insert(Colliding(key), key);
        }
        assert!((0..200).all(|key| map.get(&Colliding(key)) == Some(&key)));
        assert_eq!(map.remove(&Colliding(7)), Some(7));
        assert_eq!(map.get(&Colliding(7)), None);
        assert_eq!(map.len(), 199);
    }
}
