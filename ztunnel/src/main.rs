//! The `ztunnel` command: reads what was asked for, and does it.

use std::io::Write as _;
use std::process::ExitCode;

use ztunnel::cli::{Cli, Command, OutputForm, version_line};
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
        Command::Config { output } => print_config(output),
        Command::Version { .. } => print(&version_line(std::env::var("ISTIO_META_ISTIO_VERSION").ok())),
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
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
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

/// Prints what the settings amount to, without secrets; warnings go to standard error.
fn print_config(form: OutputForm) -> ExitCode {
    let config = match Config::read(&ProcessEnvironment) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    for warning in &config.warnings {
        drop(writeln!(std::io::stderr(), "ztunnel: warning: {warning}"));
    }
    match form.text(&config.to_json()) {
        Ok(text) => print(text.trim_end()),
        Err(error) => fail(&error),
    }
}

/// Prints a line, or several. A reader that went away has seen enough.
fn print(text: &str) -> ExitCode {
    drop(writeln!(std::io::stdout(), "{text}"));
    ExitCode::SUCCESS
}

/// Says why on standard error, where it is seen also when logs go elsewhere.
fn fail(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    drop(writeln!(std::io::stderr(), "ztunnel: {}", with_causes(error)));
    ExitCode::FAILURE
}
