//! Noticing that the roots were replaced.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, Sleep};

use super::RootSource;
use super::files::{blocking, read_bounded};
use super::roots::Roots;

/// How often the file is looked at: a mounted config map is replaced about once a minute at the most.
const INTERVAL: Duration = Duration::from_secs(3);

/// Watches a root file for new content. Other sources never change.
///
/// The file is looked at every few seconds, not watched by inotify: a mounted volume replaces a link to a link to it, and may
/// come after us. It is read only when its metadata changed.
#[derive(Debug)]
pub struct RootWatch {
    path: Option<PathBuf>,
    interval: Duration,
    stamp: Option<Stamp>,
    content: Option<Vec<u8>>,
}

/// What is compared before content is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: Option<SystemTime>,
}

impl RootWatch {
    /// Takes what `source` holds now as known. A file that cannot be read yet is awaited. Blocks for a small file.
    pub fn new(source: &RootSource) -> Self {
        let path = match source {
            RootSource::File(path) => Some(path.clone()),
            RootSource::System | RootSource::Pem(_) => None,
        };
        let mut watch = Self { path, interval: INTERVAL, stamp: None, content: None };
        if let Some(Ok(Some((stamp, content)))) = watch.path.as_ref().map(|path| look(path, None)) {
            watch.stamp = Some(stamp);
            watch.content = Some(content);
        }
        watch
    }

    /// The same, looking at another interval.
    #[must_use]
    pub fn every(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }

    /// Waits until the file holds a bundle that differs from the one known before. Files that are gone, or that hold no
    /// usable certificate, are waited out. Nothing is lost by dropping the future.
    pub async fn changed(&mut self) {
        loop {
            let Some(path) = self.path.clone() else { return std::future::pending().await };
            self.pause().await;
            let known = self.stamp;
            // Errors are for those who need the file; here it is enough to look again.
            let Ok(Some((stamp, content))) = blocking(move || look(&path, known)).await else { continue };
            self.stamp = Some(stamp);
            let usable = Roots::Pem(content.as_slice().into()).store().is_ok();
            if usable && self.content.as_ref() != Some(&content) {
                self.content = Some(content);
                return;
            }
        }
    }

    fn pause(&self) -> Sleep {
        tokio::time::sleep_until(Instant::now() + self.interval)
    }
}

/// The file's stamp and content; `None` if the stamp is `known`. The stamp is taken first, so a file that changes meanwhile
/// differs again the next time.
fn look(path: &Path, known: Option<Stamp>) -> io::Result<Option<(Stamp, Vec<u8>)>> {
    let metadata = fs::metadata(path)?;
    let stamp = Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        bytes: metadata.len(),
        modified: metadata.modified().ok(),
    };
    match known == Some(stamp) {
        true => Ok(None),
        false => Ok(Some((stamp, read_bounded(path)?))),
    }
}
