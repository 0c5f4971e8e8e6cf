//! The programs that the benchmark runs: where they are, and which versions.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use lab::{PATIENCE, Pod, Result};

use crate::interrupt::Interrupt;

/// Where Debian has programs for administrators, which are not on every user's PATH.
const FOR_ADMINISTRATORS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Where Debian's libnginx-mod-stream puts the module.
const NGINX_STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Fails with everything that is missing of `names` and how to get it.
pub(crate) fn require(names: &[&str]) -> Result<()> {
    let missing: Vec<&str> = names.iter().copied().filter(|name| find(name).is_err()).collect();
    ensure!(
        missing.is_empty(),
        "missing programs: {}; `scripts/setup bench` installs them",
        missing.join(", ")
    );
    Ok(())
}

/// The path of a program.
pub(crate) fn find(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories = std::env::split_paths(&path).chain(FOR_ADMINISTRATORS.map(PathBuf::from));
    let found = directories.find_map(|directory| Some(directory.join(name)).filter(|path| path.is_file()));
    found.with_context(|| format!("{name} is not installed"))
}

/// The first line of what a program says of its version.
pub(crate) fn version(name: &str, option: &str) -> Result<String> {
    let output = Command::new(find(name)?).arg(option).stdin(Stdio::null()).output()?;
    let said = [output.stdout, output.stderr].concat();
    let first = String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned();
    // wrk and haproxy go on with copyright and address.
    Ok(first.split(" [").next().unwrap_or_default().split(" 20").next().unwrap_or_default().to_owned())
}

/// The line of an nginx configuration that makes the stream module available; empty where it is built in.
pub(crate) fn nginx_stream_module() -> Result<String> {
    let output = Command::new(find("nginx")?).arg("-V").stdin(Stdio::null()).output()?;
    let options = String::from_utf8_lossy(&output.stderr).into_owned();
    if options.split_ascii_whitespace().any(|option| option == "--with-stream") {
        return Ok(String::new());
    }
    ensure!(
        Path::new(NGINX_STREAM_MODULE).is_file(),
        "nginx has no stream module; `scripts/setup bench` installs it"
    );
    Ok(format!("load_module {NGINX_STREAM_MODULE};"))
}

/// Runs a program in a pod to its end, and returns what it wrote to standard output.
///
/// Errors: it takes longer than `seconds` and [`PATIENCE`], or it fails; the message holds what it wrote.
pub(crate) fn run<S: AsRef<OsStr>>(
    pod: &Pod,
    name: &str,
    arguments: impl IntoIterator<Item = S>,
    seconds: u64,
    interrupt: &Interrupt,
) -> Result<String> {
    let mut command = pod.command(find(name)?);
    command.args(arguments);
    let process = pod.start(name, command)?;
    let bound = std::time::Duration::from_secs(seconds) + PATIENCE;
    interrupt.wait(name, bound, || !process.is_running())?;
    let status = process.wait(PATIENCE)?;
    let output = process.stdout().to_text();
    if !status.success() {
        bail!("{name}: {status}\n{output}\n{}", process.stderr().to_text());
    }
    Ok(output)
}

/// Builds the release binary unless it is there and up to date, and returns its path.
pub(crate) fn build_ztunnel(interrupt: &Interrupt) -> Result<PathBuf> {
    let workspace =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("this package is in a workspace")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    writeln!(std::io::stderr(), "cargo build --release -p ztunnel")?;
    let child = Command::new(cargo)
        .args(["build", "--release", "-p", "ztunnel", "--message-format", "json-render-diagnostics"])
        .current_dir(workspace)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let output = child.wait_with_output()?;
    // On Ctrl-C cargo, which gets it too, fails before we look.
    interrupt.check()?;
    ensure!(output.status.success(), "cannot build ztunnel");
    executable(&String::from_utf8_lossy(&output.stdout)).context("cargo names no ztunnel executable")
}

/// The `ztunnel` executable among cargo's messages.
fn executable(messages: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut executables = messages.filter(|message| message["target"]["name"] == "ztunnel");
    executables.find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// The machine in one line: processor, cores, kernel, and how busy it was.
pub(crate) fn machine() -> Result<String> {
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let named = processors.lines().find(|line| line.starts_with("model name"));
    let model =
        named.and_then(|line| line.split_once(": ")).map_or(std::env::consts::ARCH, |(_, model)| model);
    let cores = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    Ok(format!("{model}, {cores} cores, Linux {}, load average {load} at the start", kernel.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_of_the_same_name_is_not_the_executable() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"hbone"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"ztunnel","kind":["lib"]},"executable":null}
{"reason":"compiler-artifact","target":{"name":"ztunnel","kind":["bin"]},"executable":"/t/release/ztunnel"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages), Some(PathBuf::from("/t/release/ztunnel")));
        assert_eq!(executable("not json"), None);
    }

    #[test]
    fn everything_that_is_missing_is_named_at_once() {
        let error = require(&["sh", "no-such-program", "nor-this-one"]).unwrap_err().to_string();
        assert!(error.contains("no-such-program, nor-this-one"), "{error}");
        assert!(!error.contains("sh,"), "{error}");
    }
}
