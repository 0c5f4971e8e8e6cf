//! A child process in a namespace: its output, signals to it, and its end.

use std::process::{Child, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Lines, Result};

/// A running process. Dropping it kills it.
pub struct Process {
    name: String,
    id: u32,
    child: Mutex<Child>,
    stdout: Lines,
    stderr: Lines,
}

impl Process {
    /// Takes over a child whose standard output and error are piped.
    pub(crate) fn new(name: &str, mut child: Child) -> Self {
        let stdout = child.stdout.take().map(Lines::collect).unwrap_or_default();
        let stderr = child.stderr.take().map(Lines::collect).unwrap_or_default();
        Self { name: name.to_owned(), id: child.id(), child: Mutex::new(child), stdout, stderr }
    }

    /// Program and namespace, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What it wrote to standard output.
    pub fn stdout(&self) -> &Lines {
        &self.stdout
    }

    /// What it wrote to standard error.
    pub fn stderr(&self) -> &Lines {
        &self.stderr
    }

    /// Sends a signal. Sending one to a process that has just ended is no error.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.id()).context("process ids are positive")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        matches!(self.child().try_wait(), Ok(None))
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> Result<usize> {
        let directory = std::fs::read_dir(format!("/proc/{}/fd", self.id));
        Ok(directory.with_context(|| format!("{} has no descriptors", self.name))?.count())
    }

    /// Memory it occupies (`VmRSS`), in bytes.
    pub fn resident_memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes * 1024)
    }

    /// User and system time it has spent so far, to the hundredth of a second.
    pub fn processor_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id))?;
        // The program's name, in parentheses, may contain anything.
        let (_, fields) = stat.rsplit_once(')').context("no program name")?;
        let mut ticks = 0;
        for field in fields.split_whitespace().skip(11).take(2) {
            ticks += field.parse::<u64>()?;
        }
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Waits for it to end and for all it wrote, at most `bound`.
    pub fn wait(&self, bound: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + bound;
        loop {
            let ended = self.child().try_wait()?;
            if let Some(status) = ended {
                // The pipes may be shared with grandchildren; what the process itself wrote is there at once.
                self.stdout.wait_for_end(Duration::from_secs(1));
                self.stderr.wait_for_end(Duration::from_secs(1));
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} still runs after {bound:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = self.child();
        // Killing one that has ended does nothing.
        let _ = child.kill();
        let _ = child.wait();
    }
}
