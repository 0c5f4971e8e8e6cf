//! A network namespace with a thread that lives in it.
//!
//! The thread runs a single-threaded async runtime, so every socket made by code given to [`Namespace::spawn`]
//! belongs to the namespace. It also starts all processes there: a parent-death signal is tied to the *thread* that
//! created the child (prctl(2), `PR_SET_PDEATHSIG`), and this one lives as long as the namespace does.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use redirect::Netns;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use crate::{PATIENCE, Process, Result};

/// A network namespace of the laboratory. Clones refer to the same one.
///
/// With the last clone the thread ends: its tasks are dropped, its children are killed, and the kernel removes the
/// namespace.
#[derive(Clone)]
pub struct Namespace {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    netns: Netns,
    jobs: Option<mpsc::UnboundedSender<Job>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Namespace {
    /// Makes an empty namespace with its loopback interface up. `name` appears in messages only.
    pub fn new(name: &str) -> Result<Self> {
        let netns = Netns::create()?;
        let (jobs, queue) = mpsc::unbounded_channel();
        let inside = netns.clone();
        let thread = std::thread::Builder::new().name(name.chars().take(15).collect()).spawn(move || {
            if let Err(error) = inside.run(|| serve(queue)) {
                // Nobody is listening on the channel then, so every use of the namespace fails.
                report(&error);
            }
        })?;
        let inner = Inner { name: name.to_owned(), netns, jobs: Some(jobs), thread: Some(thread) };
        let namespace = Self { inner: Arc::new(inner) };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The name given at the start.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The namespace itself.
    pub fn netns(&self) -> &Netns {
        &self.inner.netns
    }

    /// Starts `work` in the namespace. It may use `spawn_local`. Dropping the returned task cancels the work.
    pub fn spawn<T, F>(&self, work: F) -> Task<T>
    where
        T: Send + 'static,
        F: AsyncFnOnce() -> Result<T> + Send + 'static,
    {
        let (result, receiver) = sync_channel(1);
        let (cancel, cancelled) = oneshot::channel::<()>();
        self.submit(Box::new(move || {
            tokio::task::spawn_local(async move {
                tokio::select! {
                    value = work() => drop(result.send(value)),
                    _ = cancelled => {}
                }
            });
        }));
        Task { namespace: self.clone(), receiver, cancel }
    }

    /// Runs `work` in the namespace and waits for its result, at most [`PATIENCE`].
    pub fn run<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: AsyncFnOnce() -> Result<T> + Send + 'static,
    {
        self.spawn(work).join()
    }

    /// Runs a short synchronous closure in the namespace, on the calling thread.
    pub fn visit<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        self.netns().run(work).with_context(|| format!("cannot enter {}", self.name()))
    }

    /// A command that dies with this namespace or this process. Start it with [`start`](Self::start) or
    /// [`output`](Self::output), which do that inside the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.restricted_command(&[], program)
    }

    /// As [`command`](Self::command), with other options of setpriv(1), such as `--bounding-set=-net_admin`.
    pub fn restricted_command(&self, privileges: &[String], program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(privileges).arg("--").arg(program);
        command
    }

    /// Starts a command made by [`command`](Self::command) inside the namespace; its output is collected.
    pub fn start(&self, name: &str, mut command: Command) -> Result<Process> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (result, spawned) = sync_channel(1);
        self.submit(Box::new(move || drop(result.send(command.spawn()))));
        let child = spawned
            .recv_timeout(PATIENCE)
            .with_context(|| format!("no answer from the thread of {}", self.name()))?
            .with_context(|| format!("cannot start {name} in {}", self.name()))?;
        wait_until_bound_to_us(child.id());
        Ok(Process::new(&format!("{name}@{}", self.name()), child))
    }

    /// Runs a command made by [`command`](Self::command) inside the namespace until it ends, at most [`PATIENCE`].
    pub fn output(&self, command: Command) -> Result<Output> {
        let name = format!("{command:?}");
        let process = self.start(&name, command)?;
        let status = process.wait(PATIENCE)?;
        Ok(Output {
            status,
            stdout: process.stdout().to_text().into_bytes(),
            stderr: process.stderr().to_text().into_bytes(),
        })
    }

    /// Runs lines of `ip -batch` in the namespace.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], batch)
    }

    /// Runs a short program in the namespace with `input` on its standard input, and expects success.
    pub fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.visit(|| command.spawn())?.with_context(|| format!("cannot start {program}"))?;
        let mut stdin = child.stdin.take().context("standard input was piped")?;
        std::io::Write::write_all(&mut stdin, input.as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "{program} {arguments:?} in {}: {}\n{input}",
            self.name(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Writes a setting below `/proc/sys/net`, such as `ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        // /proc/sys/net shows the namespace of the thread that looks.
        self.visit(|| std::fs::write(format!("/proc/sys/net/{key}"), value))?
            .with_context(|| format!("cannot set net/{key} in {}", self.name()))
    }

    fn submit(&self, job: Job) {
        if let Some(jobs) = &self.inner.jobs {
            // When the thread is gone the job is dropped, which its submitter notices on the result channel.
            let _ = jobs.send(job);
        }
    }
}

/// Waits until setpriv(1) has made way for the program: from then on the child cannot outlive us.
fn wait_until_bound_to_us(child: u32) {
    let is_setpriv =
        || std::fs::read_link(format!("/proc/{child}/exe")).is_ok_and(|program| program.ends_with("setpriv"));
    let deadline = Instant::now() + PATIENCE;
    while is_setpriv() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The life of a namespace's thread.
fn serve(mut queue: mpsc::UnboundedReceiver<Job>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&error),
    };
    LocalSet::new().block_on(&runtime, async {
        while let Some(job) = queue.recv().await {
            job();
        }
    });
}

/// Tells a person why a namespace is unusable, on the one channel that is always there.
fn report(error: &dyn std::error::Error) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "a namespace's thread could not work: {error}");
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // The last handle may be dropped by a task of this very thread, which cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

/// Work going on in a namespace. Dropping it cancels the work.
pub struct Task<T> {
    namespace: Namespace,
    receiver: Receiver<Result<T>>,
    cancel: oneshot::Sender<()>,
}

impl<T> Task<T> {
    /// Waits for the result, at most [`PATIENCE`]. Errors: the work's own, or that it panicked or took too long.
    pub fn join(self) -> Result<T> {
        self.join_within(PATIENCE)
    }

    /// Waits for the result, at most `bound`.
    pub fn join_within(self, bound: Duration) -> Result<T> {
        match self.receiver.recv_timeout(bound) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => {
                bail!("work in {} did not finish within {bound:?}", self.namespace.name())
            }
            Err(RecvTimeoutError::Disconnected) => Err(anyhow!("work in {} panicked", self.namespace.name())),
        }
    }

    /// Ends the work and waits, at most [`PATIENCE`], until everything it owned is gone. Not for use by work in the same
    /// namespace, which would wait for itself.
    pub fn cancel(self) {
        drop(self.cancel);
        // Either the result, which came first, or the news that there will be none.
        let _ = self.receiver.recv_timeout(PATIENCE);
    }

    /// Whether the result is there. It stays there for [`join`](Self::join).
    pub fn is_finished(&self) -> bool {
        self.cancel.is_closed()
    }
}
