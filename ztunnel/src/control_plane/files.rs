//! Reading small files of ours without delaying other tasks.

use std::io;
use std::path::Path;

/// Anything larger is neither a bundle nor a token. In bytes.
pub(super) const LARGEST_FILE: u64 = 16 << 20;

/// Runs `work` on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// The whole file, if it is no larger than any bundle or token could be.
pub(super) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    identity::read_bounded(path, LARGEST_FILE)
}
