//! The file with the lists, followed as it changes.

use std::panic::{UnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use super::{CrlError, CrlSet, Shared};
use crate::FileFollower;

/// The longest file read: some millions of revoked certificates. A ConfigMap holds a mebibyte.
const LONGEST_FILE: u64 = 64 << 20;

/// The task that keeps a [`Revocations`](super::Revocations) in step with its file. Without it, what was read last
/// stays in force.
pub struct RevocationDriver {
    shared: Arc<Shared>,
    file: FileFollower,
    parse: Parse,
}

type Parse = fn(&[u8]) -> Result<CrlSet, CrlError>;

impl RevocationDriver {
    pub(super) fn new(shared: Arc<Shared>, path: PathBuf) -> Self {
        let mut driver = Self::of(shared, path, CrlSet::from_file);
        match driver.file.read_now() {
            Ok(contents) => driver.finish(Parsed::of(driver.parse, &contents)),
            Err(error) => driver.complain(&error),
        }
        driver
    }

    fn of(shared: Arc<Shared>, path: PathBuf, parse: Parse) -> Self {
        Self { shared, file: FileFollower::new(path, LONGEST_FILE), parse }
    }

    /// Follows the file until `shutdown` completes. Dropping the future does the same.
    ///
    /// A list is in force between two and four seconds after it was written: a file that may still be changing is not
    /// taken, since half a file of lists could revoke nobody. Reads and parses on the runtime's blocking threads, so other
    /// tasks do not wait for a large file.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        loop {
            let read = tokio::select! {
                () = &mut shutdown => return,
                read = self.file.changed() => read,
            };
            let contents = match read {
                Ok(contents) => contents,
                Err(error) => {
                    self.complain(&error);
                    continue;
                }
            };
            let parse = self.parse;
            tokio::select! {
                () = &mut shutdown => return,
                parsed = spawn_blocking(move || Parsed::of(parse, &contents)) => match parsed {
                    Ok(parsed) => self.finish(parsed),
                    // The runtime is shutting down.
                    Err(_) => return,
                },
            }
        }
    }

    /// Takes good lists into use. Bad ones leave in force what is.
    fn finish(&self, parsed: Parsed) {
        let path = self.file.path().display();
        match parsed {
            Parsed::Lists(Ok(crls)) => {
                info!(%path, lists = crls.len(), "certificate revocation lists taken into use");
                self.shared.publish(crls);
            }
            Parsed::Lists(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                warn!(%path, error, "the file of revocation lists is bad; what was read before stays in force");
            }
            Parsed::Panicked => {
                error!(%path, "parsing the file of revocation lists panicked; what was read before stays in force");
            }
        }
    }

    fn complain(&self, error: &std::io::Error) {
        let (path, error) = (self.file.path().display(), error as &dyn std::error::Error);
        warn!(%path, error, "no file of revocation lists; what was read before stays in force");
    }
}

impl std::fmt::Debug for RevocationDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RevocationDriver").field("file", &self.file).finish_non_exhaustive()
    }
}

/// What became of the contents of a file.
enum Parsed {
    Lists(Result<CrlSet, CrlError>),
    /// A bug of the parser. It must not cost us the lists that come later.
    Panicked,
}

impl Parsed {
    fn of(parse: impl FnOnce(&[u8]) -> Result<CrlSet, CrlError> + UnwindSafe, contents: &[u8]) -> Self {
        catch_unwind(|| parse(contents)).map_or(Self::Panicked, Self::Lists)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_parser_that_panics_does_not_end_the_driver() {
        fn parse(contents: &[u8]) -> Result<CrlSet, CrlError> {
            assert_ne!(contents, b"poison");
            CrlSet::from_file(contents)
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("crl");
        std::fs::write(&path, "poison").unwrap();
        let shared = Arc::new(Shared::default());
        let mut generation = shared.generation.subscribe();
        let driver = RevocationDriver::of(shared, path.clone(), parse);
        let driver = tokio::spawn(driver.run(std::future::pending()));
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(!generation.has_changed().unwrap());
        std::fs::write(&path, "").unwrap();
        tokio::time::timeout(Duration::from_secs(20), generation.changed()).await.unwrap().unwrap();
        driver.abort();
    }
}
