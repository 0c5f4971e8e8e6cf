//! The real proxy binary as a child process in a node's namespace.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;

use crate::{
    AccessLine, ControlPlane, Lines, MeshFile, Namespace, Node, PATIENCE, Pod, Process, Result, traffic,
};

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
    /// What it finds as `/etc/resolv.conf` instead of the machine's, unless a control plane drives it. The file may be
    /// rewritten later, not replaced.
    pub resolv_conf: Option<PathBuf>,
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
            resolv_conf: None,
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

    /// Starts a proxy for all pods of the node that knows of the mesh only what the control plane tells it, without
    /// waiting for it.
    pub fn driven(node: &Node, control: &ControlPlane, options: &ZtunnelOptions) -> Result<Self> {
        Self::driven_in(node, node, control, options)
    }

    /// As [`driven`](Self::driven), in another namespace than the node's. That is where its own connections to the
    /// control plane start, and where its readiness and administration ports are.
    pub fn driven_in(
        home: &Namespace,
        node: &Node,
        control: &ControlPlane,
        options: &ZtunnelOptions,
    ) -> Result<Self> {
        let mut environment = control.environment();
        environment.push(("PROXY_MODE".to_owned(), "shared".into()));
        environment.push(("INPOD_UDS".to_owned(), node.agent_socket().into_os_string()));
        let mut command = with_file(home, &control.hosts(), "/etc/hosts");
        command.arg("setpriv").args(&options.privileges).arg("--").arg(Self::chosen(options)?);
        Self::launch(home, node, command, environment, options)
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
        let command = match &options.resolv_conf {
            None => namespace.restricted_command(&options.privileges, Self::chosen(options)?),
            Some(file) => {
                let mut command = with_file(namespace, file, "/etc/resolv.conf");
                command.arg("setpriv").args(&options.privileges).arg("--").arg(Self::chosen(options)?);
                command
            }
        };
        let mut environment = vec![
            ("LOCAL_XDS_PATH".to_owned(), mesh.into_os_string()),
            ("LOCAL_CA_PATH".to_owned(), node.ca_directory().into()),
            // Without these two, it would look for istiod.
            ("XDS_ADDRESS".to_owned(), OsString::new()),
            ("CA_ADDRESS".to_owned(), OsString::new()),
        ];
        environment.extend(mode);
        Self::launch(namespace, node, command, environment, options)
    }

    /// Runs a command that ends with the binary, with an environment of what is given here and nothing else.
    fn launch(
        namespace: &Namespace,
        node: &Node,
        mut command: Command,
        environment: Vec<(String, OsString)>,
        options: &ZtunnelOptions,
    ) -> Result<Self> {
        command
            .args(["proxy", "ztunnel"])
            .current_dir(node.directory())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("NODE_NAME", node.name())
            .env("RUST_LOG", &options.log)
            .env("RUST_BACKTRACE", "1")
            .env("ZTUNNEL_WORKER_THREADS", options.threads.to_string())
            .env("CONNECTION_TERMINATION_DEADLINE", format!("{}ms", options.drain.as_millis()))
            .envs(environment)
            .envs(options.environment.iter().cloned());
        let process = namespace.start("ztunnel", command)?;
        Ok(Self { process, namespace: namespace.clone() })
    }

    fn chosen(options: &ZtunnelOptions) -> Result<PathBuf> {
        options.binary.clone().map_or_else(Self::binary, Ok)
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

    /// Status and body of a GET on another of its ports, from within its namespace: administration is on 15000, metrics
    /// are on 15020.
    pub fn get(&self, port: u16, path: &str) -> Result<(u16, String)> {
        let (target, path) = ((Ipv4Addr::LOCALHOST, port).into(), path.to_owned());
        self.namespace.run(async move || traffic::http_get(target, &path).await)
    }

    /// The sum of a metric over all its label sets that contain `labels`, such as `reason="Reconnect"`. A family that is
    /// not there yet counts as 0.
    pub fn metric(&self, name: &str, labels: &str) -> Result<f64> {
        let (status, text) = self.get(15020, "/metrics")?;
        ensure!(status == 200, "metrics answered {status}");
        let mut sum = 0.0;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let (family, own) = series.split_once('{').unwrap_or((series, ""));
            if family == name && own.contains(labels) {
                sum += value.parse::<f64>().with_context(|| format!("no number: {line}"))?;
            }
        }
        Ok(sum)
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

/// A command of `namespace`, yet to be completed, that finds `file` at the path `place`: what follows happens in a copy of
/// the mounts. Each program makes way for the next, so that the process remains the one that was started.
pub fn with_file(namespace: &Namespace, file: &Path, place: &str) -> Command {
    let mut command = namespace.command("unshare");
    let script = "mount --bind \"$1\" \"$2\"; shift 2; exec \"$@\"";
    command.args(["--mount", "--", "sh", "-euc", script, "sh"]).arg(file).arg(place);
    command
}

impl Drop for Ztunnel {
    fn drop(&mut self) {
        if std::thread::panicking() {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "--- {}\n{}", self.process.name(), self.output());
        }
    }
}
