//! A real Envoy, as istiod has it play waypoint and gateway, in a pod of the laboratory.
//!
//! Its configuration is what istiod generates for these roles, written down as static resources: the same listeners and
//! clusters under the same names, certificates by SDS (from files), an internal listener between tunnel and HTTP. What it
//! does with tunnels is thus what a waypoint in a mesh does.
//!
//! `scripts/setup test` fetches the binary.

mod gateway;
mod parts;
mod waypoint;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

pub use gateway::Forwarded;
pub use waypoint::{Attached, Layer};

use crate::{PATIENCE, Pod, Process, Result, ScriptedIstiod, traffic};

/// The version that `scripts/setup` fetches.
const VERSION: &str = "1.40.0";

/// Its administration port, on loopback. Not 15000: that is taken where a pod has a proxy of its own.
const ADMIN_PORT: u16 = 15009;

/// The last parts of the names of counters of what peers did wrong.
const FAULTS: [&str; 10] = [
    "downstream_cx_protocol_error",
    "upstream_cx_protocol_error",
    "rx_messaging_error",
    "inbound_empty_frames_flood",
    "inbound_window_update_frames_flood",
    "header_overflow",
    "keepalive_timeout",
    "ssl.connection_error",
    "ssl.fail_verify_error",
    "ssl.fail_verify_san",
];

/// What an Envoy is for.
#[derive(Clone, Debug)]
pub enum EnvoyRole {
    /// A waypoint that terminates tunnels on port 15008 and opens its own.
    Waypoint(Vec<Attached>),
    /// A waypoint whose tunnels the node's proxy terminates and opens. It listens on this port of the loopback interface
    /// and is told in a PROXY protocol header who the client is and where it was going.
    Sandwiched(u16, Vec<Attached>),
    /// An east-west gateway: terminates outer tunnels on port 15008 and passes on what is inside.
    Gateway(Vec<Forwarded>),
}

/// An Envoy in a pod, with a certificate for the pod's identity. Dropping it kills it; while a test is panicking, its
/// log is printed then.
pub struct Envoy {
    process: Option<Process>,
    pod: Pod,
    bootstrap: PathBuf,
}

impl Envoy {
    /// Starts an Envoy with a certificate of istiod's authority, and waits until it listens.
    pub fn start(pod: &Pod, istiod: &ScriptedIstiod, role: &EnvoyRole) -> Result<Self> {
        let envoy = Self::prepare(pod, istiod, role)?;
        envoy.started()
    }

    /// As [`start`](Self::start), but nothing runs before [`restart`](Self::restart).
    pub fn prepare(pod: &Pod, istiod: &ScriptedIstiod, role: &EnvoyRole) -> Result<Self> {
        let directory = pod.node().directory().join(format!("envoy-{}", pod.name()));
        fs::create_dir_all(&directory)?;
        let files = Files::write(directory.clone(), pod, istiod)?;
        let (listeners, clusters) = match role {
            EnvoyRole::Waypoint(attached) => waypoint::resources(pod, &files, attached),
            EnvoyRole::Sandwiched(port, attached) => waypoint::sandwiched_resources(pod, *port, attached),
            EnvoyRole::Gateway(forwarded) => gateway::resources(&files, forwarded),
        };
        let bootstrap = directory.join("envoy.json");
        fs::write(&bootstrap, serde_json::to_string_pretty(&bootstrap_of(pod, &listeners, &clusters))?)?;
        Ok(Self { process: None, pod: pod.clone(), bootstrap })
    }

    fn started(mut self) -> Result<Self> {
        self.restart()?;
        Ok(self)
    }

    /// Kills it if it runs, starts it and waits until it listens.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        let mut command = self.pod.command(Self::binary()?);
        command
            .arg("--config-path")
            .arg(&self.bootstrap)
            .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"])
            .env_clear();
        self.process = Some(self.pod.start("envoy", command)?);
        self.wait_ready()
    }

    /// Kills it: its connections are reset.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Has it end by itself, as a waypoint does when its pod is deleted.
    pub fn stop(&mut self) -> Result<()> {
        let Some(process) = self.process.take() else { return Ok(()) };
        process.signal(Signal::SIGTERM)?;
        process.wait(PATIENCE).map(drop)
    }

    /// The pod that it is in.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// Its counters of what peers did wrong in TLS and HTTP/2, as far as they are not 0. To be asked after some traffic, when
    /// all are there.
    pub fn faults(&self) -> Result<Vec<String>> {
        let (status, text) = self.get("/stats")?;
        ensure!(status == 200, "Envoy's statistics answered {status}");
        let mut faults = Vec::new();
        for kind in FAULTS {
            let suffix = format!(".{kind}: ");
            let counters: Vec<_> = text.lines().filter(|line| line.contains(&suffix)).collect();
            ensure!(!counters.is_empty(), "Envoy does not count {kind}");
            faults.extend(counters.into_iter().filter(|line| !line.ends_with(": 0")).map(str::to_owned));
        }
        Ok(faults)
    }

    /// One of its counters or gauges, by its full name. One that is not there yet counts as 0.
    pub fn stat(&self, name: &str) -> Result<u64> {
        let (status, text) = self.get("/stats")?;
        ensure!(status == 200, "Envoy's statistics answered {status}");
        let prefix = format!("{name}: ");
        let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
        value.map_or(Ok(0), |value| value.trim().parse().with_context(|| format!("{name} is {value:?}")))
    }

    /// The binary that `scripts/setup test` has put below the target folder.
    ///
    /// Errors: it is not there. The message says how to get it.
    pub fn binary() -> Result<PathBuf> {
        let executable = std::env::current_exe()?;
        let name = format!("envoy-{VERSION}/envoy");
        let found = executable.ancestors().map(|folder| folder.join(&name)).find(|path| path.is_file());
        found.with_context(|| {
            format!("there is no {name} above {}: run `scripts/setup test` first", executable.display())
        })
    }

    fn get(&self, path: &'static str) -> Result<(u16, String)> {
        let target = ([127, 0, 0, 1], ADMIN_PORT).into();
        self.pod.run(async move || traffic::http_get(target, path).await)
    }

    fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.get("/ready").is_ok_and(|(status, _)| status == 200) {
                return Ok(());
            }
            let runs = self.process.as_ref().is_some_and(Process::is_running);
            ensure!(runs, "Envoy ended at its start:\n{}", self.output());
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("Envoy is not ready:\n{}", self.output())
    }

    fn output(&self) -> String {
        let output = self.process.as_ref().map(|process| process.stderr().to_text());
        output.unwrap_or_default()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "--- envoy@{}\n{}", self.pod.name(), self.output());
        }
    }
}

/// Files from which it reads its certificate and the roots, in the form in which SDS delivers them.
struct Files {
    directory: PathBuf,
}

impl Files {
    fn write(directory: PathBuf, pod: &Pod, istiod: &ScriptedIstiod) -> Result<Self> {
        let issued = istiod.ca().issue(&pod.identity())?;
        let files = Self { directory };
        fs::write(files.directory.join("key.pem"), issued.key)?;
        fs::write(files.directory.join("chain.pem"), issued.chain)?;
        fs::write(files.directory.join("roots.pem"), issued.roots)?;
        let at = |name: &str| json!({"filename": files.directory.join(name)});
        let certificate = json!({"certificate_chain": at("chain.pem"), "private_key": at("key.pem")});
        files.secret("default", "tls_certificate", &certificate)?;
        files.secret("ROOTCA", "validation_context", &json!({"trusted_ca": at("roots.pem")}))?;
        Ok(files)
    }

    fn secret(&self, name: &str, kind: &str, content: &Value) -> Result<()> {
        let secret = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            "name": name,
            kind: content,
        });
        Ok(fs::write(self.path_of(name), json!({"resources": [secret]}).to_string())?)
    }

    fn path_of(&self, secret: &str) -> PathBuf {
        self.directory.join(format!("{secret}.json"))
    }

    /// How a TLS configuration refers to a secret.
    fn sds(&self, secret: &str) -> Value {
        let source =
            json!({"path_config_source": {"path": self.path_of(secret)}, "resource_api_version": "V3"});
        json!({"name": secret, "sds_config": source})
    }
}

fn bootstrap_of(pod: &Pod, listeners: &[Value], clusters: &[Value]) -> Value {
    let internal = "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener";
    json!({
        "node": {
            "id": format!("waypoint~{}~{}.{}~cluster.local", pod.ipv4(), pod.name(), Pod::NAMESPACE),
            "cluster": pod.name(),
        },
        "bootstrap_extensions": [
            {"name": "envoy.bootstrap.internal_listener", "typed_config": {"@type": internal}},
        ],
        "admin": {"address": parts::socket_address("127.0.0.1", ADMIN_PORT)},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}
