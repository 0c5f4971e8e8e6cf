//! The lines a process has written so far, and waiting for one.

use std::io::{BufRead as _, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::Result;

/// A growing list of lines. Clones refer to the same list.
#[derive(Clone, Default)]
pub struct Lines {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    /// Collects everything `source` gives, on a thread of its own that ends with the source.
    pub(crate) fn collect(source: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let sink = lines.clone();
        std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while source.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                sink.state().lines.push(text);
                sink.shared.changed.notify_all();
                line.clear();
            }
            sink.state().ended = true;
            sink.shared.changed.notify_all();
        });
        lines
    }

    /// All lines so far.
    pub fn all(&self) -> Vec<String> {
        self.state().lines.clone()
    }

    /// All lines so far, which are then forgotten: for a process that runs long.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.state().lines)
    }

    /// All lines so far as one text.
    pub fn to_text(&self) -> String {
        self.state().lines.join("\n")
    }

    /// Waits until the writer has closed its end: then [`all`](Self::all) is complete.
    pub(crate) fn wait_for_end(&self, bound: Duration) {
        let state = self.state();
        drop(self.shared.changed.wait_timeout_while(state, bound, |state| !state.ended));
    }

    /// The first line, written already or within `bound`, for which `select` gives something.
    ///
    /// Errors: none came. The message holds the lines that did.
    pub fn wait_for<T>(&self, bound: Duration, mut select: impl FnMut(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + bound;
        let mut seen = 0;
        let mut state = self.state();
        loop {
            // Fewer than seen when they have been taken meanwhile.
            let unseen = state.lines.get(seen..).unwrap_or(&state.lines);
            if let Some(found) = unseen.iter().find_map(|line| select(line)) {
                return Ok(found);
            }
            seen = state.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.ended {
                bail!("the awaited line never came; these did:\n{}", state.lines.join("\n"));
            }
            state = match self.shared.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
