//! Objects and lists that are written as they are made.

use std::cell::RefCell;
use std::fmt;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// An object in the making. Keys are to be put in the order of their bytes.
pub(super) struct Object<S: Serializer>(S::SerializeMap);

impl<S: Serializer> Object<S> {
    pub(super) fn begin(serializer: S) -> Result<Self, S::Error> {
        serializer.serialize_map(None).map(Self)
    }

    /// A key that is always there.
    pub(super) fn put(&mut self, key: &str, value: &(impl Serialize + ?Sized)) -> Result<(), S::Error> {
        self.0.serialize_entry(key, value)
    }

    /// A key that is there with a value only.
    pub(super) fn put_some(&mut self, key: &str, value: Option<impl Serialize>) -> Result<(), S::Error> {
        value.map_or(Ok(()), |value| self.put(key, &value))
    }

    /// A key that is there unless its text is empty.
    pub(super) fn put_text(&mut self, key: &str, text: &str) -> Result<(), S::Error> {
        self.put_some(key, (!text.is_empty()).then_some(text))
    }

    /// A key that is there unless its list is empty.
    pub(super) fn put_list<'a, T, V: Serialize>(
        &mut self,
        key: &str,
        items: &'a [T],
        view: impl Fn(&'a T) -> V,
    ) -> Result<(), S::Error> {
        match items {
            [] => Ok(()),
            items => self.put(key, &list(items.iter().map(view))),
        }
    }

    pub(super) fn end(self) -> Result<S::Ok, S::Error> {
        self.0.end()
    }
}

/// A list of whatever the iterator yields. Can be written once.
pub(super) fn list<I: Iterator<Item: Serialize>>(items: I) -> impl Serialize {
    List(RefCell::new(Some(items)))
}

/// An object of whatever pairs the iterator yields, which are to come in the order of the keys' bytes. Can be written once.
pub(super) fn object<K: Serialize, V: Serialize>(entries: impl Iterator<Item = (K, V)>) -> impl Serialize {
    Entries(RefCell::new(Some(entries)))
}

/// The text of something that can be displayed.
pub(super) struct Text<T>(pub(super) T);

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Gives up its iterator when it is written.
struct List<I>(RefCell<Option<I>>);

impl<I: Iterator<Item: Serialize>> Serialize for List<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.take().into_iter().flatten())
    }
}

struct Entries<I>(RefCell<Option<I>>);

impl<K: Serialize, V: Serialize, I: Iterator<Item = (K, V)>> Serialize for Entries<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.take().into_iter().flatten())
    }
}
