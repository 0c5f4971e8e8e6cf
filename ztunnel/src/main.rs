//! The `ztunnel` command: reads what was asked for, and does it.

use std::io::Write as _;
use std::process::ExitCode;

use ztunnel::cli::{Cli, Command};
use ztunnel::config::{Config, ProcessEnvironment};
use ztunnel::telemetry::{self, with_causes};
use ztunnel::{app, rules};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(asked) => {
            // Nobody is left to tell when the terminal is gone.
            drop(asked.print());
            return if asked.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    match cli.command.unwrap_or(Command::Proxy { names: Vec::new() }) {
        Command::Proxy { .. } => proxy(),
        Command::Rules { action } => rules::run(&action),
        Command::Version => {
            drop(writeln!(std::io::stdout(), "{}", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
    }
}

/// Runs the proxy until it is told to stop.
fn proxy() -> ExitCode {
    let config = match Config::read(&ProcessEnvironment) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    let log = match telemetry::start(config.log_format, &config.log_filter) {
        Ok(log) => log,
        Err(error) => return fail(&error),
    };
    let status = match app::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = with_causes(&error), "stopped");
            fail(&error)
        }
    };
    drop(log);
    status
}

/// Says why on standard error, where it is seen also when logs go elsewhere.
fn fail(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    drop(writeln!(std::io::stderr(), "ztunnel: {}", with_causes(error)));
    ExitCode::FAILURE
}
