//! The real proxy binary as a child process in a node's namespace.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;

use crate::{AccessLine, Lines, MeshFile, Namespace, Node, PATIENCE, Pod, Process, Result, traffic};

/// How a proxy is started. [`Default`] is what most tests want.
#[derive(Clone, Debug)]
pub struct ZtunnelOptions {
    /// Value of `RUST_LOG`.
    pub log: String,
    /// Data-plane threads.
    pub threads: usize,
    /// What remains of its life after a SIGTERM.
    pub drain: Duration,
    /// More environment variables, which may override the others.
    pub environment: Vec<(String, OsString)>,
    /// The binary, when not the one that belongs to this build.
    pub binary: Option<PathBuf>,
    /// Arguments for setpriv(1), such as `--bounding-set=-net_admin`.
    pub privileges: Vec<String>,
}

impl Default for ZtunnelOptions {
    fn default() -> Self {
        Self {
            log: "info".to_owned(),
            threads: 2,
            drain: Duration::from_secs(5),
            environment: Vec::new(),
            binary: None,
            privileges: Vec::new(),
        }
    }
}

impl ZtunnelOptions {
    /// Adds an environment variable.
    #[must_use]
    pub fn variable(mut self, key: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((key.to_owned(), value.into()));
        self
    }
}

/// A running proxy. Dropping it kills it; while a test is panicking, its log is printed then.
pub struct Ztunnel {
    process: Process,
    namespace: Namespace,
}

impl Ztunnel {
    /// Starts a proxy for all pods of the node, without waiting for it.
    pub fn shared(node: &Node, file: &MeshFile, options: &ZtunnelOptions) -> Result<Self> {
        Self::shared_in(node, node, file, options)
    }

    /// Starts a proxy for all pods of the node in another namespace than the node's, without waiting for it. That is
    /// where its readiness and administration ports are.
    pub fn shared_in(
        home: &Namespace,
        node: &Node,
        file: &MeshFile,
        options: &ZtunnelOptions,
    ) -> Result<Self> {
        let environment = [
            ("PROXY_MODE".to_owned(), "shared".into()),
            ("INPOD_UDS".to_owned(), node.agent_socket().into_os_string()),
        ];
        Self::start(node, home, file, environment, options)
    }

    /// Starts a proxy for one pod, in the pod's own namespace, without waiting for it. Nothing is redirected to it
    /// by that.
    pub fn dedicated(pod: &Pod, file: &MeshFile, options: &ZtunnelOptions) -> Result<Self> {
        let workload = format!("{}/{}/{}", Pod::NAMESPACE, pod.name(), pod.service_account());
        let environment = [
            ("PROXY_MODE".to_owned(), "dedicated".into()),
            ("PROXY_WORKLOAD_INFO".to_owned(), workload.into()),
        ];
        Self::start(pod.node(), pod, file, environment, options)
    }

    fn start(
        node: &Node,
        namespace: &Namespace,
        file: &MeshFile,
        mode: [(String, OsString); 2],
        options: &ZtunnelOptions,
    ) -> Result<Self> {
        let mesh = node.directory().join("mesh.yaml");
        file.write(&mesh)?;
        let binary = options.binary.clone().map_or_else(Self::binary, Ok)?;
        let mut command = namespace.restricted_command(&options.privileges, binary);
        command
            .args(["proxy", "ztunnel"])
            .current_dir(node.directory())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("NODE_NAME", node.name())
            .env("LOCAL_XDS_PATH", mesh)
            .env("LOCAL_CA_PATH", node.ca_directory())
            .env("XDS_ADDRESS", "")
            .env("RUST_LOG", &options.log)
            .env("RUST_BACKTRACE", "1")
            .env("ZTUNNEL_WORKER_THREADS", options.threads.to_string())
            .env("CONNECTION_TERMINATION_DEADLINE", format!("{}ms", options.drain.as_millis()))
            .envs(mode)
            .envs(options.environment.iter().cloned());
        let process = namespace.start("ztunnel", command)?;
        Ok(Self { process, namespace: namespace.clone() })
    }

    /// The binary that belongs to this build: `target/<profile>/ztunnel`, beside the test executables.
    ///
    /// Errors: it has not been built. The message says how to.
    pub fn binary() -> Result<PathBuf> {
        let executable = std::env::current_exe()?;
        let beside = |directory: &Path| directory.join("ztunnel");
        let found = executable.ancestors().skip(1).take(2).map(beside).find(|path| path.is_file());
        found.with_context(|| {
            format!("there is no ztunnel beside {}: run `cargo build -p ztunnel` first", executable.display())
        })
    }

    /// Waits until `/healthz/ready` says so, at most [`PATIENCE`].
    pub fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::from("no answer");
        while Instant::now() < deadline {
            match self.readiness() {
                Ok((200, _)) => return Ok(()),
                Ok((_, body)) => last = body,
                Err(error) => last = format!("{error:#}"),
            }
            ensure!(
                self.process.is_running(),
                "{} ended at its start:\n{}",
                self.process.name(),
                self.output()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("{} is not ready: {last}\n{}", self.process.name(), self.output())
    }

    /// Status and body of `/healthz/ready`.
    pub fn readiness(&self) -> Result<(u16, String)> {
        let target = (Ipv4Addr::LOCALHOST, 15021).into();
        self.namespace.run(async move || traffic::http_get(target, "/healthz/ready").await)
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its log.
    pub fn log(&self) -> &Lines {
        self.process.stdout()
    }

    /// All lines of its access log so far.
    pub fn access_lines(&self) -> Vec<AccessLine> {
        self.log().all().iter().filter_map(|line| AccessLine::parse(line)).collect()
    }

    /// The first line of the access log, written already or within [`PATIENCE`], that `select` chooses.
    pub fn wait_for_access(&self, mut select: impl FnMut(&AccessLine) -> bool) -> Result<AccessLine> {
        self.log().wait_for(PATIENCE, |line| AccessLine::parse(line).filter(|access| select(access)))
    }

    /// Waits, at most [`PATIENCE`], for a line that contains `text`.
    pub fn wait_for_log(&self, text: &str) -> Result<String> {
        self.log().wait_for(PATIENCE, |line| line.contains(text).then(|| line.to_owned()))
    }

    /// Sends SIGTERM and waits for the end, at most `bound`.
    pub fn terminate(&self, bound: Duration) -> Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(bound)
    }

    /// Everything it wrote, for messages.
    pub fn output(&self) -> String {
        format!("{}\n{}", self.process.stdout().to_text(), self.process.stderr().to_text())
    }
}

impl Drop for Ztunnel {
    fn drop(&mut self) {
        if std::thread::panicking() {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "--- {}\n{}", self.process.name(), self.output());
        }
    }
}
