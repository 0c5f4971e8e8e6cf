//! The command as its users run it, in a network namespace that stands for their machine: there, no playground of
//! somebody else is up.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lab::{Namespace, PATIENCE, Process, Ztunnel};
use nix::sys::signal::Signal;
use tempfile::TempDir;

const PLAYGROUND: &str = env!("CARGO_BIN_EXE_playground");

/// Ends the invitation, after which `exec` finds the playground.
const IS_UP: &str = "Connections, as each node's ztunnel reports them:";

fn machine() -> Namespace {
    Namespace::new("machine").unwrap()
}

fn run(machine: &Namespace, arguments: &[&str]) -> Output {
    let mut command = machine.command(PLAYGROUND);
    command.args(arguments);
    machine.output(command).unwrap()
}

fn start(machine: &Namespace, environment: &[(&str, &Path)]) -> Process {
    let mut command = machine.command(PLAYGROUND);
    command.envs(environment.iter().copied());
    let playground = machine.start("playground", command).unwrap();
    let is_up = playground.stdout().wait_for(PATIENCE, |line| (line == IS_UP).then_some(()));
    is_up.unwrap_or_else(|error| panic!("{error:#}\n{}", playground.stderr().to_text()));
    playground
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn assert_tells_every_story(output: &Output) {
    let text = stdout(output);
    assert!(output.status.success(), "{text}\n{}", stderr(output));
    for line in [
        "ok  client calls the service",
        "ok  client calls the service over IPv6",
        "ok  intruder calls the service: denied",
        "allow policies exist, but none allowed",
        "http status: 401 Unauthorized",
        "ok  outsider, which has no identity, calls a replica: denied",
        "explicitly denied by: default/strict",
        "ok  client calls outsider: passed through",
        "ok  what could be read on the wire between the nodes",
        "appears 0 times",
        "All of this was checked",
    ] {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
    assert!(!text.contains("FAILED"), "{text}");
}

#[test]
fn one_run_tells_what_was_allowed_and_denied_without_escape_codes_where_there_is_no_terminal() {
    let output = run(&machine(), &["--once"]);
    assert_tells_every_story(&output);
    assert!(!stdout(&output).contains(['\x1b', '\r']), "{:?}", stdout(&output));
}

/// Copies of programs beside one another, where every user can run them.
fn copies(programs: &[&Path]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for program in programs {
        std::fs::copy(program, directory.path().join(program.file_name().unwrap())).unwrap();
    }
    directory
}

#[test]
fn an_ordinary_user_sees_the_same_or_is_told_what_to_enable() {
    const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let as_nobody = |program: &Path| {
        let machine = machine();
        let mut command = machine.restricted_command(&NOBODY.map(str::to_owned), program);
        command.args(if program.ends_with("playground") { &["--once"][..] } else { &["--user", "true"] });
        machine.output(command).unwrap()
    };
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    if map.split_whitespace().nth(2) == Some("1") {
        // In a user namespace with one user in it: we are ordinary ourselves, and nobody else can be.
        return assert_tells_every_story(&run(&machine(), &["--once"]));
    }
    let programs = copies(&[Path::new(PLAYGROUND), &Ztunnel::binary().unwrap()]);
    let output = as_nobody(&programs.path().join("playground"));
    if as_nobody(Path::new("unshare")).status.success() {
        assert_tells_every_story(&output);
    } else {
        assert!(!output.status.success());
        assert!(stderr(&output).contains("sudo sysctl user.max_user_namespaces"), "{}", stderr(&output));
    }
}

#[test]
fn another_terminal_can_join_and_its_connections_are_shown() {
    let machine = machine();
    let playground = start(&machine, &[]);
    for (family, address) in [("-4", "10.1.0.1"), ("-6", "fd10:0:0:1::1")] {
        let allowed = run(&machine, &["exec", "client", "--", "curl", "-sS", family, "http://server"]);
        let text = stdout(&allowed);
        assert!(allowed.status.success(), "{}", stderr(&allowed));
        assert!(text.starts_with("server-") && text.ends_with(&format!(" answers {address}")), "{text}");
    }
    let denied = run(&machine, &["exec", "intruder", "--", "curl", "-sS", "-d", "by hand", "http://server"]);
    assert_eq!(denied.status.code(), Some(56), "curl's code for a reset: {}", stderr(&denied));

    let shown = |text: &'static str| {
        playground.stdout().wait_for(PATIENCE, |line| line.contains(text).then_some(())).unwrap();
    };
    shown("node-1  outbound  client -> server-");
    shown("HBONE  http status: 401 Unauthorized");

    let pod = stdout(&run(&machine, &["exec", "server-1", "ip", "-brief", "address"]));
    assert!(pod.contains("10.2.0.1/32"), "{pod}");
    let log = stdout(&run(&machine, &["exec", "node-1", "--", "cat", "/dev/shm/node-1.log"]));
    assert!(log.contains("\taccess\tconnection complete\t"), "{log}");
    let unknown = run(&machine, &["exec", "server-3", "--", "true"]);
    assert!(stderr(&unknown).contains("there is no server-3"), "{}", stderr(&unknown));
    let second = run(&machine, &[]);
    assert!(stderr(&second).contains("is up already"), "{}", stderr(&second));
    assert!(!second.status.success());
}

#[test]
fn joining_without_a_playground_says_how_to_start_one() {
    let output = run(&machine(), &["exec", "client", "--", "true"]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("Start `playground` in another terminal"), "{}", stderr(&output));
}

#[test]
fn nothing_is_left_behind_by_any_way_to_end_it() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT] {
        let (machine, temporary) = (machine(), tempfile::tempdir().unwrap());
        let before = Left::behind(temporary.path());
        let playground = start(&machine, &[("TMPDIR", temporary.path())]);
        let processes = descendants(playground.id());
        assert!(processes.len() >= 4, "unshare, playground and two ztunnels: {processes:?}");
        let mut namespaces = network_namespaces(&processes);
        namespaces.remove(&std::fs::read_link(format!("/proc/{}/ns/net", playground.id())).unwrap());
        assert!(namespaces.len() >= 9, "five pods, two nodes, the wire and its own: {namespaces:?}");

        playground.signal(signal).unwrap();
        playground.wait(PATIENCE).unwrap();
        lab::wait_until(|| !processes.iter().any(|pid| is_alive(*pid))).unwrap();
        let remaining = network_namespaces(&all_processes());
        assert!(remaining.is_disjoint(&namespaces), "{remaining:?} {namespaces:?}");
        assert_eq!(Left::behind(temporary.path()), before, "{signal}");
        assert!(stderr(&run(&machine, &["exec", "client", "--", "true"])).contains("no playground"));
    }
}

/// What a program may leave on a machine besides processes.
#[derive(Debug, Eq, PartialEq)]
struct Left {
    temporary: BTreeSet<PathBuf>,
    shared_memory: BTreeSet<PathBuf>,
    mounts: String,
}

impl Left {
    fn behind(temporary: &Path) -> Self {
        let names = |directory: &Path| {
            std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
        };
        Self {
            temporary: names(temporary),
            shared_memory: names(Path::new("/dev/shm")),
            mounts: std::fs::read_to_string("/proc/self/mounts").unwrap(),
        }
    }
}

fn all_processes() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).collect()
}

/// State and parent from /proc/PID/stat, whose second field may hold anything in its parentheses.
fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// A zombie counts as gone: whether it has been reaped is up to the machine's init.
fn is_alive(pid: u32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != 'Z')
}

fn descendants(ancestor: u32) -> Vec<u32> {
    let parent = |pid| state_and_parent(pid).map(|(_, parent)| parent).filter(|parent| *parent != 0);
    let is_descendant =
        |pid: &u32| std::iter::successors(parent(*pid), |pid| parent(*pid)).any(|pid| pid == ancestor);
    all_processes().into_iter().filter(is_descendant).collect()
}

/// Those that any thread is in.
fn network_namespaces(processes: &[u32]) -> BTreeSet<PathBuf> {
    let threads = |pid: &u32| std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let threads = processes.iter().flat_map(threads);
    threads.filter_map(|thread| std::fs::read_link(thread.path().join("ns/net")).ok()).collect()
}

#[test]
fn a_terminal_gets_colours_unless_they_are_unwanted() {
    let on_terminal = |no_color: &str| {
        let machine = machine();
        let mut command = machine.command("script");
        command.args(["-qefc", &format!("{PLAYGROUND} --once"), "/dev/null"]);
        command.env("TERM", "xterm").env("NO_COLOR", no_color);
        let output = machine.output(command).unwrap();
        assert!(output.status.success(), "{}", stdout(&output));
        stdout(&output)
    };
    assert!(on_terminal("").contains("\x1b[32mok\x1b[0m  \x1b[1mclient calls the service\x1b[0m"));
    let plain = on_terminal("1");
    assert!(plain.contains("ok  client calls the service") && !plain.contains('\x1b'), "{plain:?}");
}

#[test]
fn what_does_not_happen_as_it_should_is_a_failure() {
    let directory = tempfile::tempdir().unwrap();
    let curl = directory.path().join("curl");
    // Every request is answered, by nobody known.
    std::fs::write(&curl, "#!/bin/sh\nprintf 'hello\\n200 10.1.0.1 40000'\n").unwrap();
    std::fs::set_permissions(&curl, PermissionsExt::from_mode(0o755)).unwrap();
    let machine = machine();
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    let mut command = machine.command(PLAYGROUND);
    command.arg("--once").env("PATH", path);
    let output = machine.output(command).unwrap();
    let text = stdout(&output);
    assert!(text.contains("FAILED  client calls the service\n"), "{text}");
    assert!(text.contains("FAILED  intruder calls the service: denied\n"), "{text}");
    assert!(text.contains("it was answered: 200 \"hello\""), "{text}");
    assert!(stderr(&output).contains("did not turn out as it should"), "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn without_its_programs_it_says_what_to_install_or_build() {
    let alone = copies(&[Path::new(PLAYGROUND)]);
    let output = Command::new(alone.path().join("playground")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cargo build -p ztunnel"), "{}", stderr(&output));

    let output = Command::new(PLAYGROUND).env("PATH", alone.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    // The directories for administrators' programs are always searched; curl is in none of them.
    assert!(stderr(&output).starts_with("playground: not installed: curl"), "{}", stderr(&output));
    assert!(stderr(&output).contains("sudo apt-get install curl"), "{}", stderr(&output));
}

#[test]
fn its_inside_does_not_run_outside() {
    let output = Command::new(PLAYGROUND).arg("--inside").output().unwrap();
    assert!(!output.status.success());
    assert!(stderr(&output).contains("for playground's own use"), "{}", stderr(&output));
}
