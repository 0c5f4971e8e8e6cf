//! The thread that writes log lines.
//!
//! The queue is bounded and pushing to it never blocks: when the reader of our output stalls, lines are dropped and
//! counted, and the count is itself logged once the reader is back.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Lines that may wait. At 300 bytes a line this bounds the queue to about 3 MB.
const QUEUED_LINES: usize = 10_000;

/// Lines joined into one write while a backlog exists.
const LINES_PER_WRITE: usize = 64;

/// How long exit waits for queued lines.
const FLUSH_DEADLINE: Duration = Duration::from_secs(1);

enum Message {
    Line(String),
    Stop,
}

/// The sending side, shared by all threads.
#[derive(Clone)]
pub(super) struct Lines {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl Lines {
    /// Queues a line, newline included. Never blocks.
    pub(super) fn push(&self, line: String) {
        match self.queue.try_send(Message::Line(line)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Owns the writing thread. Dropping it lets queued lines out, for a second at most.
#[derive(Debug)]
pub struct LogWriter {
    queue: SyncSender<Message>,
    thread: Option<JoinHandle<()>>,
}

impl LogWriter {
    pub(super) fn start(output: impl Write + Send + 'static) -> (Self, Lines) {
        let (queue, lines) = sync_channel(QUEUED_LINES);
        let dropped = Arc::new(AtomicU64::new(0));
        let counter = dropped.clone();
        let thread = std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_lines(output, &lines, &counter))
            .inspect_err(|error| drop(writeln!(std::io::stderr(), "no log thread: {error}")))
            .ok();
        (Self { queue: queue.clone(), thread }, Lines { queue, dropped })
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let deadline = Instant::now() + FLUSH_DEADLINE;
        // A full queue behind a stalled reader must not hold up exit, hence no blocking send and no plain join.
        let mut stop_sent = false;
        while Instant::now() < deadline && !thread.is_finished() {
            stop_sent = stop_sent || self.queue.try_send(Message::Stop).is_ok();
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn write_lines(mut output: impl Write, lines: &Receiver<Message>, dropped: &AtomicU64) {
    let mut batch = String::new();
    let mut dropped_reported = 0;
    loop {
        let mut stop = match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(Message::Line(line)) => {
                batch.push_str(&line);
                false
            }
            Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => true,
            Err(RecvTimeoutError::Timeout) => false,
        };
        for message in lines.try_iter().take(LINES_PER_WRITE) {
            match message {
                Message::Line(line) => batch.push_str(&line),
                Message::Stop => stop = true,
            }
        }
        // Nobody is left to tell when standard output is gone: the proxy goes on without logs.
        drop(output.write_all(batch.as_bytes()).and_then(|()| output.flush()));
        batch.clear();
        let dropped_total = dropped.load(Ordering::Relaxed);
        if dropped_total != dropped_reported {
            dropped_reported = dropped_total;
            // Takes its place in the queue like any other line.
            tracing::warn!(dropped_total, "log lines were dropped because their reader was too slow");
        }
        if stop {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;

    /// Writes to a shared buffer, and only once a token arrives for each write.
    struct Gated {
        tokens: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.tokens.recv().ok();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_reader_costs_lines_and_not_time() {
        let (tokens, gate) = channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let (writer, lines) = LogWriter::start(Gated { tokens: gate, written: written.clone() });
        for number in 0..QUEUED_LINES * 2 {
            lines.push(format!("{number}\n"));
        }
        let dropped = lines.dropped.load(Ordering::Relaxed);
        assert!(dropped >= (QUEUED_LINES - 2 * LINES_PER_WRITE) as u64, "{dropped} dropped");
        drop(tokens);
        drop(writer);
        let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert!(written.starts_with("0\n1\n2\n"), "the oldest lines come out first");
        assert_eq!(written.lines().count() as u64 + dropped, QUEUED_LINES as u64 * 2);
    }
}
