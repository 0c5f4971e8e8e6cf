//! Ctrl-C: what is going on fails, and everything is taken down in order on the way out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lab::Result;
use tokio::signal::unix::{SignalKind, signal};

/// Whether the user has asked for the end. Clones refer to the same wish.
#[derive(Clone, Default)]
pub struct Interrupt {
    requested: Arc<AtomicBool>,
}

impl Interrupt {
    /// Watches for SIGINT and SIGTERM from now on. The second one ends the process at once; the kernel then removes
    /// processes and namespaces, but files in the temporary directory stay.
    pub fn watch() -> Result<Self> {
        let interrupt = Self::default();
        let requested = Arc::clone(&interrupt.requested);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut interrupts, mut terminations) = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let wait = async move {
            for last in [false, true] {
                tokio::select! {
                    _ = interrupts.recv() => {}
                    _ = terminations.recv() => {}
                }
                requested.store(true, Ordering::Relaxed);
                if last {
                    std::process::exit(130);
                }
            }
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || runtime.block_on(wait))
            .context("cannot watch for signals")?;
        Ok(interrupt)
    }

    /// Fails once the end has been asked for.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(!self.requested.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }

    /// Waits, at most `bound`, until `done` holds.
    pub(crate) fn wait(&self, what: &str, bound: Duration, mut done: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + bound;
        while !done() {
            self.check()?;
            ensure!(Instant::now() < deadline, "{what}: not done within {bound:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}
