//! Threads that run until the process ends, each with a single-threaded runtime of its own.

use std::io;

use tokio::runtime::{Builder, LocalOptions};

use crate::metrics::Threads;

/// Starts a thread that runs what `main` makes, and adds it to `threads`. Returns once it has its runtime.
///
/// # Errors
/// The system refuses a thread or a runtime.
///
/// # Aborts
/// The process, when the thread panics later: others would go on to wait for it.
pub(crate) fn start<F>(
    name: String,
    threads: &Threads,
    main: impl FnOnce() -> F + Send + 'static,
) -> io::Result<()>
where
    F: Future<Output = ()> + 'static,
{
    let (started, start) = std::sync::mpsc::channel();
    std::thread::Builder::new().name(name.clone()).spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        let (runtime, outcome) = match runtime {
            Ok(runtime) => {
                let metrics = runtime.handle().metrics();
                (Some(runtime), Ok(metrics))
            }
            Err(error) => (None, Err(error)),
        };
        // Fails when `start` has given up, which ends the process.
        drop(started.send(outcome));
        if let Some(runtime) = runtime {
            let _alive = AbortOnPanic;
            runtime.block_on(main());
        }
    })?;
    let metrics = start.recv().unwrap_or_else(|_| Err(io::Error::other("a thread ended at its start")))?;
    threads.add(name, metrics);
    Ok(())
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
