//! Files that others replace or rewrite while we run, followed by looking at them.
//!
//! The metadata is compared at an interval. That needs no notification from the kernel, of which there is none on some
//! file systems and for a file that is not there yet, and it sees what is behind symbolic links: Kubernetes replaces a
//! mounted ConfigMap by turning the link `..data` to another folder.
//!
//! A file that is rewritten in place may be cut anywhere, also where what is left looks whole. So it is read only once two
//! looks in a row have found it in the same state, and what was read counts only if it is in that state still. A change is
//! told of between one and two intervals after the last write, plus the time to read. Only a writer that pauses for longer
//! than an interval is taken to be done; replacing the file by a rename has no such gap.

use std::fs::{self, File, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::error;

/// How often a file is looked at, unless [`FileFollower::every`] says otherwise.
const INTERVAL: Duration = Duration::from_secs(2);

/// Tells when a file has other contents than before, or cannot be read any more.
#[derive(Debug)]
pub struct FileFollower {
    path: PathBuf,
    /// In octets.
    longest: u64,
    interval: Duration,
    seen: Seen,
    /// Of what was told last.
    digest: Option<u64>,
}

impl FileFollower {
    /// Will follow the file at `path`, of which up to `longest` octets are read. Touches nothing yet.
    pub fn new(path: impl Into<PathBuf>, longest: u64) -> Self {
        Self { path: path.into(), longest, interval: INTERVAL, seen: Seen::default(), digest: None }
    }

    /// The same, looking at another interval.
    #[must_use]
    pub fn every(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }

    /// Where the file is looked for.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file holds now, settled or not: for the start, when there is nothing better. Blocks.
    pub fn read_now(&mut self) -> io::Result<Vec<u8>> {
        self.seen = Seen { stamp: Some(stamp(&self.path)), looks: 0 };
        let read = read(&self.path, self.longest).map(|(contents, _)| contents);
        self.digest = Some(digest(&read));
        read
    }

    /// Waits for contents other than those told last, or for the reason why there are none: no such file, not a file
    /// ([`InvalidInput`](io::ErrorKind::InvalidInput)), too long ([`FileTooLarge`](io::ErrorKind::FileTooLarge)). The same
    /// reason is told once in a row. Looks and reads on the runtime's blocking threads, so that neither a large file nor a
    /// file system that hangs delays other tasks.
    ///
    /// Dropping the future loses at most one look.
    pub async fn changed(&mut self) -> io::Result<Vec<u8>> {
        loop {
            sleep(self.interval).await;
            let (path, longest, seen) = (self.path.clone(), self.longest, self.seen);
            let (seen, read) = match spawn_blocking(move || look(&path, longest, seen)).await {
                Ok(looked) => looked,
                Err(panicked) if panicked.is_panic() => {
                    error!(path = %self.path.display(), error = %panicked, "looking at a file panicked; looking again");
                    continue;
                }
                // The runtime is shutting down.
                Err(_) => return std::future::pending().await,
            };
            self.seen = seen;
            let Some(read) = read else { continue };
            let digest = digest(&read);
            if self.digest.replace(digest) != Some(digest) {
                return read;
            }
        }
    }
}

/// The whole file, if it has no more than `longest` octets. Blocks, but not for a pipe.
pub fn read_bounded(path: &Path, longest: u64) -> io::Result<Vec<u8>> {
    read(path, longest).map(|(contents, _)| contents)
}

/// Reads the file if it is time to. Of a file that changes meanwhile nothing is told.
fn look(path: &Path, longest: u64, mut seen: Seen) -> (Seen, Option<io::Result<Vec<u8>>>) {
    let before = stamp(path);
    if !seen.is_due(before) {
        return (seen, None);
    }
    let (read, after) = match read(path, longest) {
        Ok((contents, after)) => (Ok(contents), Some(after)),
        Err(error) => (Err(error), stamp(path)),
    };
    if after != before {
        return (Seen::default(), None);
    }
    (seen, Some(read))
}

/// In which state the file was at the last look, and for how long.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// The outer None stands for no look yet, the inner one for no file.
    stamp: Option<Option<Stamp>>,
    /// Looks in a row that found that state again, up to [`ENOUGH`](Self::ENOUGH).
    looks: u8,
}

impl Seen {
    /// A settled file is read twice. A file system tells times by its clock's ticks: a change within the tick of the first
    /// reading leaves no trace but its contents.
    const ENOUGH: u8 = 3;

    fn is_due(&mut self, stamp: Option<Stamp>) -> bool {
        if self.stamp.replace(stamp) != Some(stamp) {
            self.looks = 0;
            return false;
        }
        self.looks = (self.looks + 1).min(Self::ENOUGH);
        self.looks < Self::ENOUGH
    }
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<Metadata> for Stamp {
    fn from(metadata: Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The state of the file behind all symbolic links.
fn stamp(path: &Path) -> Option<Stamp> {
    fs::metadata(path).ok().map(Stamp::from)
}

/// The contents, and the state of the very file that was read once it had been.
fn read(path: &Path, longest: u64) -> io::Result<(Vec<u8>, Stamp)> {
    // To open a pipe could take for ever.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
    }
    let mut file = File::open(path)?;
    let mut contents = Vec::new();
    file.by_ref().take(longest.saturating_add(1)).read_to_end(&mut contents)?;
    if contents.len() as u64 > longest {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok((contents, file.metadata()?.into()))
}

/// Good enough to notice a change: who can write the file has no need for collisions.
fn digest(read: &io::Result<Vec<u8>>) -> u64 {
    let mut hasher = DefaultHasher::new();
    match read {
        Ok(contents) => contents.hash(&mut hasher),
        Err(error) => error.to_string().hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

    use super::*;

    fn file(size: u64) -> Option<Stamp> {
        Some(Stamp { device: 1, inode: 1, size, modified: (0, 0), changed: (0, 0) })
    }

    #[test]
    fn a_file_is_read_at_the_second_and_third_look_at_one_state_and_not_again() {
        let mut seen = Seen::default();
        let due: Vec<_> =
            [file(1), file(2), file(2), file(2), file(2), file(2), None, file(2), file(2), None, None]
                .into_iter()
                .map(|stamp| seen.is_due(stamp))
                .collect();
        let (no, yes) = (false, true);
        assert_eq!(due, [no, no, yes, yes, no, no, no, no, yes, no, yes]);
    }

    #[test]
    fn a_file_that_is_not_the_one_looked_at_before_is_not_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "one").unwrap();
        let (seen, read) = look(&path, 10, Seen::default());
        assert!(read.is_none());
        let (seen, read) = look(&path, 10, seen);
        assert_eq!(read.unwrap().unwrap(), b"one");
        // A rename leaves size and times as they may, but not the inode.
        fs::write(dir.path().join("new"), "two").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        let (seen, read) = look(&path, 10, seen);
        assert!(read.is_none());
        assert_eq!(look(&path, 2, seen).1.unwrap().unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
