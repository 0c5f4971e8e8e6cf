//! The servers in the server pod that everything is measured against.

use std::fs;
use std::process::Command;

use lab::{PATIENCE, Pod, Process, Result};

use crate::interrupt::Interrupt;
use crate::programs;

/// The HTTP server's port, which clients dial.
pub(crate) const HTTP: u16 = 8080;

/// iperf3's port, which clients dial.
pub(crate) const BULK: u16 = 5201;

/// Answers with the address that a request came from.
pub(crate) const PEER: &str = "/peer";

/// The answer to any other request: sixty-four bytes, with the end of the line.
const ANSWER: &str = "Sixty-four bytes, the end of this line among them, and no more.";

/// Starts an HTTP server in the pod: nginx with one worker, which answers from memory and does not log.
pub(crate) fn start(pod: &Pod) -> Result<Process> {
    start_nginx(
        pod,
        "origin",
        &format!(
            "user root;
             worker_processes 1;
             events {{ worker_connections 8192; }}
             http {{
                 access_log off;
                 keepalive_timeout 1h;
                 keepalive_requests 1000000000;
                 default_type text/plain;
                 server {{
                     listen {HTTP} backlog=4096;
                     location / {{ return 200 \"{ANSWER}\\n\"; }}
                     location {PEER} {{ return 200 $remote_addr; }}
                 }}
             }}"
        ),
    )
}

/// Starts nginx with a configuration, to which the usual settings of a process in the laboratory are added.
///
/// Its workers would outlive a master that is killed. So the master is the first process of a PID namespace, with which
/// everything in it ends, and that of `unshare`, which ends with us.
pub(crate) fn start_nginx(pod: &Pod, name: &str, configuration: &str) -> Result<Process> {
    let directory = pod.node().directory();
    let file = directory.join(format!("{name}.conf"));
    let pid = directory.join(format!("{name}.pid"));
    let common = format!("daemon off;\nerror_log stderr warn;\npid {};\n", pid.display());
    fs::write(&file, common + configuration)?;
    let mut command: Command = pod.command("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--"]).arg(programs::find("nginx")?);
    command.arg("-p").arg(directory).args(["-e", "stderr", "-c"]).arg(file);
    pod.start(name, command)
}

/// An iperf3 server for one test. It takes a while to be ready for another, so each test has its own.
pub(crate) struct BulkServer(Process);

impl BulkServer {
    /// Starts it, and waits until it listens.
    pub(crate) fn start(pod: &Pod) -> Result<Self> {
        let mut command = pod.command(programs::find("iperf3")?);
        command.args(["--server", "--one-off", "--forceflush", "--port", &BULK.to_string()]);
        let process = pod.start("iperf3 server", command)?;
        process.stdout().wait_for(PATIENCE, |line| line.contains("listening").then_some(()))?;
        Ok(Self(process))
    }

    /// Waits for the end of the test, so that the port is free again.
    pub(crate) fn finish(self, interrupt: &Interrupt) -> Result<()> {
        interrupt.wait("the iperf3 server", PATIENCE, || !self.0.is_running())
    }
}
