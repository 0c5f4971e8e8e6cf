//! Entering a playground that is up, from another terminal.
//!
//! The meeting point is a Unix socket in the abstract namespace (unix(7)), one for each user: it is no file, so it
//! cannot be left behind. The launcher binds it where other terminals look, in the machine's network namespace; the
//! process inside listens on it. The kernel tells whoever connects the process id of the one that listens
//! (`SO_PEERCRED`), and through it, in `/proc`, lie the namespaces to enter.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket, sockopt,
};
use nix::unistd::geteuid;

use crate::sandbox;
use crate::scene::Scene;

/// Takes the meeting point without listening there, which [`serve`] does in the process that is to be found.
///
/// Errors: another playground of this user is up.
pub(crate) fn reserve() -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    match bind(socket.as_raw_fd(), &UnixAddr::new_abstract(meeting_point().as_bytes())?) {
        Ok(()) => Ok(socket),
        Err(Errno::EADDRINUSE) => bail!(
            "a playground of yours is up already. Join it with `playground exec`, or end it with Ctrl-C where it runs"
        ),
        Err(error) => Err(error).context("cannot take the socket for `playground exec`"),
    }
}

/// Tells everybody who connects to the socket on standard input where the namespaces are: lines of a name and the
/// descriptor, in this process, of a network namespace. The scene has to outlive the returned thread's use.
pub(crate) fn serve(scene: &Scene) -> Result<JoinHandle<()>> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    listen(&socket, Backlog::new(8)?).context("standard input is not the launcher's socket")?;
    let describe =
        |(name, place): (&str, &lab::Namespace)| format!("{name} {}\n", place.netns().as_fd().as_raw_fd());
    let places: String = scene.places().map(describe).collect();
    Ok(std::thread::spawn(move || {
        for mut visitor in UnixListener::from(socket).incoming().flatten() {
            // A visitor who has left needs no answer.
            let _ = visitor.write_all(places.as_bytes());
        }
    }))
}

/// Becomes `command`, inside the named pod or node of the playground that is up.
pub(crate) fn exec(place: &str, command: &[OsString]) -> Result<Infallible> {
    let (pid, places) = find()?;
    let entry = |line: &str| line.split_once(' ').map(|(name, fd)| (name.to_owned(), fd.to_owned()));
    let places: Vec<(String, String)> = places.lines().filter_map(entry).collect();
    let Some((_, descriptor)) = places.iter().find(|(name, _)| name == place) else {
        let names: Vec<_> = places.iter().map(|(name, _)| name.as_str()).collect();
        bail!("there is no {place} in the playground. It has {}", names.join(", "));
    };
    let user_of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user"));
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--target", &pid, "--mount", "--pid"]).arg(format!("--net=/proc/{pid}/fd/{descriptor}"));
    if user_of(&pid).context("cannot look at the playground's namespaces")? != user_of("self")? {
        // The user namespace maps this user alone, to root.
        nsenter.args(["--user", "--preserve-credentials"]);
    }
    nsenter.arg("--").args(command).env("PATH", sandbox::search_path());
    // Proxies of the machine cannot be reached from inside.
    for variable in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        nsenter.env_remove(variable);
    }
    Err(nsenter.exec()).context("cannot start nsenter (from util-linux)")
}

/// The process id of the playground that is up, and what it tells.
fn find() -> Result<(String, String)> {
    let user = geteuid();
    let address = SocketAddr::from_abstract_name(meeting_point())?;
    let mut stream = UnixStream::connect_addr(&address).map_err(|_| {
        anyhow::anyhow!(
            "no playground of yours (user id {user}) is up. Start `playground` in another terminal, and wait until it \
             says that it stays up"
        )
    })?;
    let owner = getsockopt(&stream, sockopt::PeerCredentials)?;
    // Anybody can take the name of an abstract socket.
    ensure!(owner.uid() == user.as_raw(), "user {} pretends to be your playground", owner.uid());
    ensure!(owner.pid() > 0, "your playground is up, but in another container");
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut places = String::new();
    stream.read_to_string(&mut places).context("the playground does not answer")?;
    Ok((owner.pid().to_string(), places))
}

fn meeting_point() -> String {
    format!("ztunnel-playground-{}", geteuid())
}
