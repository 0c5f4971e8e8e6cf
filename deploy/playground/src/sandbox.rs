//! A world of the playground's own, which ends with it.
//!
//! The command that the user started, the launcher, runs itself again inside new mount, network and process
//! namespaces, and in a new user namespace if the user is not root:
//!
//! ```text
//! playground ── unshare ── playground --inside ── ztunnel, curl, programs started by `playground exec`
//! (launcher)   killed with    process 1 of its      killed with process 1, by the kernel
//!              the launcher   process namespace
//! ```
//!
//! The launcher handles no signal and cleans nothing up. Ctrl-C, SIGTERM and SIGKILL all end it at once, and
//! everything else with it: processes, interfaces and mounts are in namespaces that nobody else holds, and files are
//! on a tmpfs in one of them.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use lab::Ztunnel;
use nix::mount::{MsFlags, mount};

use crate::join;

/// Where temporary files go. Covered by a tmpfs of our own, so it has to be a directory that every Linux has and
/// that nobody keeps programs or sources in, as these must stay visible.
pub(crate) const SCRATCH: &str = "/dev/shm";

/// Runs `playground --inside` in its namespaces until it ends, and passes its exit code on.
pub(crate) fn launch(once: bool) -> Result<ExitCode> {
    let path = search_path();
    require_programs(&path)?;
    Ztunnel::binary()?;
    // The only descriptor that reaches the process inside without unsafe code is standard input.
    let stdin = if once { Stdio::null() } else { join::reserve()?.into() };
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "unshare"]).args(permitted_namespaces(&path)?);
    command.arg("--").arg(std::env::current_exe()?).arg("--inside").args(once.then_some("--once"));
    command.env("PATH", path).env("TMPDIR", SCRATCH).stdin(stdin);
    // iptables locks a file in /run otherwise, where a user may not write.
    command.env("XTABLES_LOCKFILE", Path::new(SCRATCH).join("xtables.lock"));
    let status = command.status().context("cannot start setpriv")?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The user's `PATH` and the directories where Debian keeps `ip` and `nft`, which are not on every user's.
pub(crate) fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}

/// Each program with its Debian package.
const PROGRAMS: [(&str, &str); 5] = [
    ("curl", "curl"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
];

fn require_programs(path: &OsStr) -> Result<()> {
    let installed = |program: &str| std::env::split_paths(path).any(|at| at.join(program).is_file());
    let mut missing: Vec<_> = PROGRAMS.into_iter().filter(|(program, _)| !installed(program)).collect();
    if !installed("nft") && !installed("iptables") {
        missing.push(("nft", "nftables"));
    }
    let (programs, mut packages): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
    packages.dedup();
    ensure!(
        programs.is_empty(),
        "not installed: {}. On Debian and Ubuntu:\n  sudo apt-get install {}",
        programs.join(", "),
        packages.join(" ")
    );
    Ok(())
}

const NAMESPACES: [&str; 6] = ["--mount", "--net", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"];

/// Options for unshare(1): without a user namespace where that works, so that root stays root; else with one.
fn permitted_namespaces(path: &OsStr) -> Result<Vec<&'static str>> {
    let mut reason = String::new();
    for user_namespace in [&[][..], &["--user", "--map-root-user"]] {
        let options = [user_namespace, &NAMESPACES].concat();
        let mut probe = Command::new("unshare");
        probe.args(&options).args(["ip", "link", "set", "lo", "up"]).env("PATH", path);
        let output = probe.stdin(Stdio::null()).output().context("cannot start unshare")?;
        if output.status.success() {
            return Ok(options);
        }
        reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    }
    bail!(
        "this needs namespaces, and neither root's nor a user's are allowed here ({reason}).\n\
         Either run it as root with CAP_SYS_ADMIN and CAP_NET_ADMIN, or allow user namespaces, whichever applies:\n  \
         sudo sysctl user.max_user_namespaces=10000\n  \
         sudo sysctl kernel.unprivileged_userns_clone=1               # older Debian kernels\n  \
         sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0   # Ubuntu 23.10 and later"
    )
}

/// Gives temporary files a place that ends with the namespaces. Call before anything makes a file.
///
/// Errors: this is not the first process of a process namespace, so the mounts might be the machine's own.
pub(crate) fn cover_scratch() -> Result<()> {
    ensure!(std::process::id() == 1, "--inside is for playground's own use");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), SCRATCH, Some("tmpfs"), flags, Some("mode=0700,size=256m"))
        .with_context(|| format!("cannot mount a tmpfs on {SCRATCH}"))
}

/// Makes names mean what `hosts`, in the format of hosts(5), says, and asks no name server of the machine's.
pub(crate) fn cover_name_resolution(hosts: &str) -> Result<()> {
    for (target, text) in
        [("/etc/hosts", hosts), ("/etc/resolv.conf", "# The playground has no name server.\n")]
    {
        // Without the file there is nothing to hide; without /etc/hosts, curl will say that it finds no name.
        if !Path::new(target).exists() {
            continue;
        }
        let source = Path::new(SCRATCH).join(target.trim_start_matches("/etc/"));
        std::fs::write(&source, text)?;
        mount(Some(&source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("cannot mount over {target}"))?;
    }
    Ok(())
}
