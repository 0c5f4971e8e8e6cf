//! What two nodes cost, side by side with other proxies and with no proxy at all. See benches/README.md.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use benches::{Interrupt, Kind, Options};
use clap::{Parser, ValueEnum};

/// Measure throughput, requests, new connections, CPU and memory between two pods on two nodes made of namespaces:
/// with nothing between them, with ztunnel, and with haproxy and nginx as TLS proxies.
#[derive(Parser)]
#[command(name = "two-node")]
struct Cli {
    /// One round of one second: to see that it works, not to compare.
    #[arg(long)]
    quick: bool,
    /// Measure only these paths [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Path>,
    /// How often everything is measured [default: 3].
    #[arg(long)]
    rounds: Option<usize>,
    /// Length of each measurement [default: 3].
    #[arg(long)]
    seconds: Option<u64>,
    /// Compare with another ztunnel binary, such as that of the commit before. Can be given more than once.
    #[arg(long, value_name = "PATH")]
    ztunnel: Vec<PathBuf>,
    /// Also write everything, with the values of single rounds, to a file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// `cargo bench` passes this.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Path {
    Direct,
    Ztunnel,
    Haproxy,
    Nginx,
}

fn main() -> ExitCode {
    match measure(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is the last resort: when it is closed, the exit code remains.
            let _ = writeln!(std::io::stderr(), "two-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: &Cli) -> Result<()> {
    let interrupt = Interrupt::watch()?;
    let (rounds, seconds) = if cli.quick { (1, 1) } else { (3, 3) };
    let options = Options {
        columns: columns(cli, &interrupt)?,
        rounds: cli.rounds.unwrap_or(rounds),
        seconds: cli.seconds.unwrap_or(seconds),
    };
    let report = benches::run(&options, &interrupt)?;
    write!(std::io::stdout(), "{report}")?;
    if let Some(file) = &cli.json {
        let text = serde_json::to_string_pretty(&report.to_json())?;
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// In the order of the table: what others are compared with, ours, ours at other times, others.
fn columns(cli: &Cli, interrupt: &Interrupt) -> Result<Vec<(String, Kind)>> {
    let wanted = |path| cli.only.is_empty() || cli.only.contains(&path);
    let mut columns = Vec::new();
    if wanted(Path::Direct) {
        columns.push((benches::BASE.to_owned(), Kind::Direct));
    }
    if wanted(Path::Ztunnel) {
        columns.push(("ztunnel".to_owned(), Kind::Ztunnel(benches::build_ztunnel(interrupt)?)));
    }
    for (index, binary) in cli.ztunnel.iter().enumerate() {
        ensure!(binary.is_file(), "there is no {}", binary.display());
        let binary = std::path::absolute(binary)?;
        columns.push((format!("ztunnel-{}", index + 1), Kind::Ztunnel(binary)));
    }
    if wanted(Path::Haproxy) {
        columns.push(("haproxy".to_owned(), Kind::Haproxy));
    }
    if wanted(Path::Nginx) {
        columns.push(("nginx".to_owned(), Kind::Nginx));
    }
    Ok(columns)
}
