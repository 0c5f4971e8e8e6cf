//! Noticing that the roots were replaced.

use std::time::Duration;

use identity::FileFollower;

use super::RootSource;
use super::files::LARGEST_FILE;
use super::roots::Roots;

/// How often the file is looked at: a mounted config map is replaced about once a minute at the most.
const INTERVAL: Duration = Duration::from_secs(3);

/// Watches a root file for new content. Other sources never change.
#[derive(Debug)]
pub struct RootWatch {
    file: Option<FileFollower>,
    /// The last usable bundle.
    known: Option<Vec<u8>>,
}

impl RootWatch {
    /// Takes what `source` holds now as known. A file that cannot be read yet is awaited. Blocks for a small file.
    pub fn new(source: &RootSource) -> Self {
        let mut file = match source {
            RootSource::File(path) => Some(FileFollower::new(path, LARGEST_FILE).every(INTERVAL)),
            RootSource::System | RootSource::Pem(_) => None,
        };
        let known = file.as_mut().and_then(|file| file.read_now().ok());
        Self { file, known }
    }

    /// The same, looking at another interval.
    #[must_use]
    pub fn every(self, interval: Duration) -> Self {
        Self { file: self.file.map(|file| file.every(interval)), ..self }
    }

    /// Waits until the file holds, and has held for one interval, a bundle that differs from the one known before. Files that
    /// are gone, or that hold no usable certificate, are waited out. Nothing is lost by dropping the future.
    pub async fn changed(&mut self) {
        let Some(file) = &mut self.file else { return std::future::pending().await };
        loop {
            // Errors are for those who need the file; here it is enough to look again.
            let Ok(content) = file.changed().await else { continue };
            let usable = Roots::Pem(content.as_slice().into()).store().is_ok();
            if usable && self.known.as_ref() != Some(&content) {
                self.known = Some(content);
                return;
            }
        }
    }
}
