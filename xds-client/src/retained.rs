//! What has been accepted from the control plane: for each name the version, and a digest of the payload.
//!
//! There is an entry for every workload of the mesh, so it is kept small: the name is shared with whoever keeps the
//! resource, a version as istiod makes them fits into an integer, and of the payload only 63 bits are kept.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// The accepted resources of one type.
#[derive(Default)]
pub(crate) struct Retained {
    entries: HashMap<Arc<str>, Entry>,
    /// Keyed at random per process, so that nobody can make two payloads that count as the same.
    digests: RandomState,
}

struct Entry {
    version: Version,
    stamp: Stamp,
}

impl Retained {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    pub(crate) fn versions(&self) -> impl Iterator<Item = (&Arc<str>, &Version)> {
        self.entries.iter().map(|(name, entry)| (name, &entry.version))
    }

    pub(crate) fn digest(&self, payload: &[u8]) -> Digest {
        // Never that of nothing.
        Digest((self.digests.hash_one(payload) & !Stamp::MARK).max(Stamp::MARK << 1))
    }

    /// Whether this payload was accepted under this name. If so, remembers the version that it has now.
    pub(crate) fn confirm(&mut self, name: &str, version: &str, digest: Digest, mark: Mark) -> bool {
        let Some(entry) = self.entries.get_mut(name) else { return false };
        if mark == Mark::Set {
            entry.stamp.mark();
        }
        if entry.stamp.digest() != digest {
            return false;
        }
        entry.version.replace(version);
        true
    }

    /// The name as it is shared, or as it will be.
    pub(crate) fn name(&self, name: &str) -> Arc<str> {
        self.entries.get_key_value(name).map_or_else(|| name.into(), |(name, _)| Arc::clone(name))
    }

    /// The resource has been accepted.
    pub(crate) fn accept(&mut self, name: Arc<str>, version: &str, digest: Digest, mark: Mark) {
        let entry = Entry { version: Version::new(version), stamp: Stamp::new(digest, mark) };
        self.entries.insert(name, entry);
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        self.entries.remove(name).is_some()
    }

    /// Another version of a resource has been rejected. The version before stays, for the next stream; its digest does not,
    /// so the next version is handed over whatever its bytes are. Returns the name if anything was ever accepted.
    pub(crate) fn doubt(&mut self, name: &str, mark: Mark) -> Option<Arc<str>> {
        let name = self.entries.get_key_value(name)?.0.clone();
        let entry = self.entries.get_mut(&name)?;
        entry.stamp.doubt();
        if mark == Mark::Set {
            entry.stamp.mark();
        }
        Some(name)
    }

    /// Takes the marks off, and returns what had none.
    pub(crate) fn unmark(&mut self) -> Vec<Arc<str>> {
        let unmarked = self.entries.iter_mut().filter_map(|(name, entry)| {
            let marked = entry.stamp.unmark();
            (!marked).then(|| Arc::clone(name))
        });
        unmarked.collect()
    }

    /// Returns memory after a large part is gone.
    pub(crate) fn trim(&mut self) {
        if self.entries.capacity() > 1024 && self.entries.capacity() / 4 > self.entries.len() {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }
}

impl fmt::Debug for Retained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retained").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Whether a resource is to be marked as contained in a full response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Set,
    Leave,
}

/// 63 bits of a keyed hash. The lowest bit is 0, and some other is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest(u64);

/// A digest, and the mark in the bit that the digest does not use.
#[derive(Clone, Copy)]
struct Stamp(u64);

impl Stamp {
    const MARK: u64 = 1;

    fn new(digest: Digest, mark: Mark) -> Self {
        Self(digest.0 | if mark == Mark::Set { Self::MARK } else { 0 })
    }

    fn digest(self) -> Digest {
        Digest(self.0 & !Self::MARK)
    }

    fn mark(&mut self) {
        self.0 |= Self::MARK;
    }

    /// Takes the digest out: what is left is equal to none.
    fn doubt(&mut self) {
        self.0 &= Self::MARK;
    }

    /// Takes the mark off, and tells whether there was one.
    fn unmark(&mut self) -> bool {
        let marked = self.0 & Self::MARK != 0;
        self.0 &= !Self::MARK;
        marked
    }
}

/// A version, opaque to us. istiod's are 64-bit hashes in lower-case hexadecimal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Hexadecimal as `{:x}` prints it.
    Hex(u64),
    Text(Box<str>),
}

// A pointer is never null, which tells the variants apart.
const _: () = assert!(size_of::<Entry>() == 24);

impl Version {
    pub(crate) fn new(text: &str) -> Self {
        Self::hex(text).map_or_else(|| Self::Text(text.into()), Self::Hex)
    }

    fn hex(text: &str) -> Option<u64> {
        let digits = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let canonical = text.bytes().all(|byte| digits(&byte)) && (text == "0" || !text.starts_with('0'));
        // At most 16 digits, and at least one, or it does not parse.
        canonical.then(|| u64::from_str_radix(text, 16).ok()).flatten()
    }

    fn replace(&mut self, text: &str) {
        let same = matches!(self, Self::Text(old) if **old == *text);
        if !same {
            *self = Self::new(text);
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hex(value) => write!(f, "{value:x}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_comes_back_as_it_was() {
        for (text, hex) in [
            ("9f2c0123456789ab", true),
            ("f", true),
            ("0", true),
            ("", false),
            ("00", false),
            ("0f2c0123456789ab", false),
            ("9F2C", false),
            ("+1", false),
            ("1ffffffffffffffff", false),
            ("v1", false),
        ] {
            let version = Version::new(text);
            assert_eq!(version.to_string(), text);
            assert_eq!(matches!(version, Version::Hex(_)), hex, "{text}");
        }
    }

    #[test]
    fn what_has_no_mark_is_found_and_earlier_marks_do_not_count() {
        let mut retained = Retained::default();
        let digest = retained.digest(b"payload");
        retained.accept("kept".into(), "1", digest, Mark::Leave);
        retained.accept("gone".into(), "1", digest, Mark::Leave);
        assert!(retained.confirm("kept", "2", digest, Mark::Set));
        assert_eq!(retained.unmark(), ["gone".into()]);
        retained.remove("gone");
        assert_eq!(retained.versions().map(|(_, version)| version.to_string()).collect::<Vec<_>>(), ["2"]);
        assert_eq!(retained.unmark(), ["kept".into()]);
    }

    #[test]
    fn another_payload_is_not_confirmed_and_changes_no_version() {
        let mut retained = Retained::default();
        retained.accept("n".into(), "1", retained.digest(b"one"), Mark::Leave);
        assert!(!retained.confirm("n", "2", retained.digest(b"two"), Mark::Leave));
        assert_eq!(retained.versions().next().unwrap().1, &Version::Hex(1));
    }

    #[test]
    fn after_a_rejection_no_payload_is_confirmed_until_one_is_accepted() {
        let mut retained = Retained::default();
        let digest = retained.digest(b"one");
        assert_eq!(retained.doubt("n", Mark::Set), None);
        retained.accept("n".into(), "1", digest, Mark::Leave);
        assert!(retained.doubt("n", Mark::Set).is_some());
        assert!(!retained.confirm("n", "1", digest, Mark::Leave));
        assert_eq!(retained.versions().next().unwrap().1, &Version::Hex(1), "for the next stream");
        assert_eq!(retained.unmark(), Vec::<Arc<str>>::new(), "it is there");
        retained.accept("n".into(), "1", digest, Mark::Leave);
        assert!(retained.confirm("n", "1", digest, Mark::Leave));
    }

    #[test]
    fn two_processes_digest_differently() {
        let (one, other) = (Retained::default(), Retained::default());
        assert_ne!(one.digest(b"payload"), other.digest(b"payload"));
        assert_eq!(one.digest(b"payload"), one.digest(b"payload"));
    }
}
