//! Running a program inside a namespace, with an end to waiting for it.

use std::io::{self, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::netns::Netns;

/// Longer than `iptables --wait=30` waits for its lock.
const DEADLINE: Duration = Duration::from_secs(40);

/// A program did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Not installed.
    #[error("{program} is not installed")]
    NotFound {
        /// Its name.
        program: String,
    },
    /// Not started, or lost sight of.
    #[error("cannot run {program} in the network namespace")]
    Run {
        /// Its name.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Killed because it did not come to an end.
    #[error("{program} did not finish within {} seconds", DEADLINE.as_secs())]
    TimedOut {
        /// Its name.
        program: String,
    },
    /// Came to a bad end.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// Its name.
        program: String,
        /// Exit code or signal.
        status: ExitStatus,
        /// What it complained of, in one line.
        stderr: String,
    },
}

/// Runs `program` in `netns` with `input` on its standard input, and returns its standard output.
///
/// A child inherits the namespace of the thread that forks it, so entering it for the length of the fork is enough.
pub(super) fn run(
    netns: &Netns,
    program: &str,
    arguments: &[&str],
    input: &str,
) -> Result<String, CommandError> {
    let lost = |source| CommandError::Run { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let spawned = netns.run(|| command.spawn()).map_err(lost)?;
    let child = spawned.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => CommandError::NotFound { program: program.to_owned() },
        _ => lost(source),
    })?;
    match converse(child, input) {
        Ok(Outcome { status, stdout, .. }) if status.success() => Ok(stdout),
        Ok(Outcome { status, stderr, .. }) => {
            Err(CommandError::Failed { program: program.to_owned(), status, stderr: one_line(&stderr) })
        }
        Err(source) if source.kind() == io::ErrorKind::TimedOut => {
            Err(CommandError::TimedOut { program: program.to_owned() })
        }
        Err(source) => Err(lost(source)),
    }
}

struct Outcome {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

/// Feeds the child and listens to it on threads of their own, since a pipe holds only so much; the child has ended
/// when it has closed both outputs. A child that does not is killed.
fn converse(mut child: Child, input: &str) -> io::Result<Outcome> {
    let (Some(mut stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    thread::scope(|scope| {
        scope.spawn(move || {
            // A child that stops reading has its reasons, which its exit status tells.
            let _ = stdin.write_all(input.as_bytes());
        });
        let stdout = listen(scope, stdout);
        let stderr = listen(scope, stderr);
        let deadline = Instant::now() + DEADLINE;
        let heard = |output: mpsc::Receiver<Vec<u8>>| {
            output.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        };
        let (Ok(stdout), Ok(stderr)) = (heard(stdout), heard(stderr)) else {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Outcome { status: child.wait()?, stdout: text(stdout), stderr: text(stderr) })
    })
}

fn listen<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    mut pipe: impl Read + Send + 'scope,
) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    scope.spawn(move || {
        let mut bytes = Vec::new();
        // What could be read before an error is all there is to report.
        let _ = pipe.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// The complaint without its line breaks, and not the whole script if the program quotes it.
fn one_line(stderr: &str) -> String {
    const LONGEST: usize = 500;
    let line = stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, input: &str) -> Result<String, CommandError> {
        let here = Netns::current().unwrap();
        run(&here, "sh", &["-c", script], input)
    }

    #[test]
    fn input_reaches_the_program_and_its_output_comes_back_however_long() {
        let long = "line\n".repeat(100_000);
        assert_eq!(shell("cat", &long).unwrap(), long);
    }

    #[test]
    fn a_program_that_ignores_its_input_is_no_failure() {
        assert_eq!(shell("echo done", &"line\n".repeat(100_000)).unwrap(), "done\n");
    }

    #[test]
    fn a_failure_quotes_the_complaint_in_one_line() {
        let error = shell("echo 'line 1:\n  no such table' >&2; exit 3", "").unwrap_err();
        assert_eq!(error.to_string(), "sh failed (exit status: 3): line 1: no such table");
    }

    #[test]
    fn a_program_that_is_not_installed_is_named() {
        let error = run(&Netns::current().unwrap(), "no-such-program", &[], "").unwrap_err();
        assert_eq!(error.to_string(), "no-such-program is not installed");
    }
}
