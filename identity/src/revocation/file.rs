//! The file with the lists, followed as it changes.
//!
//! Its metadata is compared every two seconds. That needs no notification from the kernel, of which there is none on some
//! file systems and for a file that is not there yet, and it sees what is behind symbolic links: Kubernetes replaces a
//! mounted ConfigMap by turning the link `..data` to another folder.

use std::fs::{self, File, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::{CrlError, CrlSet, Shared};

/// How often the file is looked at.
const POLL: Duration = Duration::from_secs(2);

/// The longest file read: some millions of revoked certificates. A ConfigMap holds a mebibyte.
const LONGEST_FILE: u64 = 64 << 20;

/// The task that keeps a [`Revocations`](super::Revocations) in step with its file. Without it, what was read last
/// stays in force.
pub struct RevocationDriver {
    shared: Arc<Shared>,
    path: PathBuf,
    follower: Follower,
}

impl RevocationDriver {
    pub(super) fn new(shared: Arc<Shared>, path: PathBuf) -> Self {
        let mut driver = Self { shared, path, follower: Follower::default() };
        if driver.follower.is_due(stamp(&driver.path)) {
            driver.finish(load(&driver.path));
        }
        driver
    }

    /// Follows the file until `shutdown` completes. Dropping the future does the same.
    ///
    /// Reads and parses on the runtime's blocking threads, so other tasks do not wait for a large file.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = &mut shutdown => return,
                () = async { _ = poll.tick().await } => {}
            }
            let path = self.path.clone();
            if !self.follower.is_due(stamp(&path)) {
                continue;
            }
            tokio::select! {
                () = &mut shutdown => return,
                loaded = tokio::task::spawn_blocking(move || load(&path)) => match loaded {
                    Ok(loaded) => self.finish(loaded),
                    // The runtime is shutting down.
                    Err(_) => return,
                },
            }
        }
    }

    /// Takes a good file into use. Of a bad one, or of none, it says so once and leaves in force what is.
    fn finish(&mut self, loaded: Loaded) {
        if !self.follower.is_news(loaded.digest()) {
            return;
        }
        let path = self.path.display();
        match loaded {
            Loaded::Contents(_, Ok(crls)) => {
                info!(%path, lists = crls.len(), "certificate revocation lists taken into use");
                self.shared.publish(crls);
            }
            Loaded::Contents(_, Err(error)) => {
                let error = &error as &dyn std::error::Error;
                warn!(%path, error, "the file of revocation lists is bad; what was read before stays in force");
            }
            Loaded::Unreadable(error) => {
                let error = &error as &dyn std::error::Error;
                warn!(%path, error, "no file of revocation lists; what was read before stays in force");
            }
        }
    }
}

impl std::fmt::Debug for RevocationDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RevocationDriver").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Decides when to read and whether what was read is news.
#[derive(Debug, Default)]
struct Follower {
    /// The file as it was when it was last read; the inner None stands for no file.
    read: Option<Option<Stamp>>,
    /// Whether it was read twice in that state. A file system tells times by its clock's ticks: a change within the tick
    /// of the first reading leaves no trace but its contents.
    settled: bool,
    digest: Option<u64>,
}

impl Follower {
    fn is_due(&mut self, stamp: Option<Stamp>) -> bool {
        let same = self.read == Some(stamp);
        let due = !(same && self.settled);
        self.settled = same;
        self.read = Some(stamp);
        due
    }

    fn is_news(&mut self, digest: u64) -> bool {
        self.digest.replace(digest) != Some(digest)
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

enum Loaded {
    /// With the digest of the contents.
    Contents(u64, Result<CrlSet, CrlError>),
    Unreadable(ReadError),
}

impl Loaded {
    fn digest(&self) -> u64 {
        match self {
            Self::Contents(digest, _) => *digest,
            Self::Unreadable(error) => digest(error.to_string().as_bytes()),
        }
    }
}

#[derive(Debug, Error)]
enum ReadError {
    #[error("cannot be read")]
    Io(#[source] io::Error),
    #[error("not a file")]
    NotAFile,
    #[error("longer than {LONGEST_FILE} octets")]
    TooLong,
}

fn load(path: &Path) -> Loaded {
    match read(path) {
        Ok(contents) => Loaded::Contents(digest(&contents), CrlSet::from_file(&contents)),
        Err(error) => Loaded::Unreadable(error),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    // To open a pipe could take for ever.
    if !fs::metadata(path).map_err(ReadError::Io)?.is_file() {
        return Err(ReadError::NotAFile);
    }
    let mut contents = Vec::new();
    let file = File::open(path).map_err(ReadError::Io)?;
    file.take(LONGEST_FILE + 1).read_to_end(&mut contents).map_err(ReadError::Io)?;
    match contents.len() as u64 > LONGEST_FILE {
        true => Err(ReadError::TooLong),
        false => Ok(contents),
    }
}

/// Good enough to notice a change: who can write the file has no need for collisions.
fn digest(contents: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    contents.hash(&mut hasher);
    hasher.finish()
}
