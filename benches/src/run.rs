//! A whole run: all paths are opened, then measured in turns.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::ensure;
use lab::Result;

use crate::figures::{DIRECT, Figures};
use crate::held::{self, per_connection};
use crate::interrupt::Interrupt;
use crate::load::Load;
use crate::path::{Kind, Path};
use crate::programs;
use crate::report::Report;

/// Seconds of each load that warms a path up.
const WARM_UP: u64 = 1;

/// What to measure, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The columns: names, each once, and what they stand for.
    pub columns: Vec<(String, Kind)>,
    /// How often everything is measured.
    pub rounds: usize,
    /// How long each measurement takes.
    pub seconds: u64,
}

/// The name of the column that others are compared with.
pub const BASE: &str = DIRECT;

/// The path of our release binary, which is built first unless it is there and up to date.
///
/// Errors: it cannot be built, or the build was interrupted.
pub fn build_ztunnel(interrupt: &Interrupt) -> Result<PathBuf> {
    programs::build_ztunnel(interrupt)
}

/// Measures all columns. Says on standard error what is being done. Whether it succeeds or fails, nothing is left of
/// what was built for it.
pub fn run(options: &Options, interrupt: &Interrupt) -> Result<Report> {
    let Options { columns, rounds, seconds } = options;
    ensure!(!columns.is_empty() && *rounds > 0 && *seconds > 0, "nothing to measure");
    let described = describe(columns)?;
    let machine = programs::machine()?;

    let mut figures = Figures::new(columns.iter().map(|(name, _)| name.clone()).collect());
    let (mut paths, mut memory) = (Vec::new(), Vec::new());
    for (index, (name, kind)) in columns.iter().enumerate() {
        progress(format_args!("setting up {name}"))?;
        let path = Path::open(name, kind, interrupt)?;
        if !path.proxies.is_empty() {
            progress(format_args!("memory of {name}"))?;
            let processes = held::measure(&path, interrupt)?;
            record_memory(&mut figures, index, &processes);
            memory.push((name.clone(), processes));
        }
        for load in Load::WARM_UP {
            measure(&path, load, WARM_UP, interrupt, &mut |_, _| {})?;
        }
        paths.push(path);
    }
    measure_in_turns(&paths, options, interrupt, &mut figures)?;
    Ok(Report { machine, programs: described, rounds: *rounds, seconds: *seconds, figures, memory })
}

fn record_memory(figures: &mut Figures, path: usize, processes: &[held::Process]) {
    let load = format!("{} connections held", held::CONNECTIONS);
    let rss = per_connection(processes, |memory| memory.rss);
    let pss = per_connection(processes, |memory| memory.pss);
    figures.record(path, &load, "kB/connection, Rss", rss);
    figures.record(path, &load, "kB/connection, Pss", pss);
}

/// Each load on all paths one after the other, each round beginning with another path: a disturbance of the machine
/// hits them alike.
fn measure_in_turns(
    paths: &[Path],
    options: &Options,
    interrupt: &Interrupt,
    figures: &mut Figures,
) -> Result<()> {
    let steps = options.rounds * Load::ALL.len() * paths.len();
    let mut step = 0;
    for round in 0..options.rounds {
        for load in Load::ALL {
            for turn in 0..paths.len() {
                let index = (round + turn) % paths.len();
                let path = &paths[index];
                let mut said = Vec::new();
                measure(path, load, options.seconds, interrupt, &mut |unit, value| {
                    figures.record(index, &load.to_string(), unit, value);
                    said.push(format!("{value:.2} {unit}"));
                })?;
                step += 1;
                let said = said.join(", ");
                progress(format_args!(
                    "[{step}/{steps}] round {}, {load}, {}: {said}",
                    round + 1,
                    path.name
                ))?;
            }
        }
    }
    Ok(())
}

/// Puts a load on a path, makes sure that the proxies have carried it, and records what follows from it.
fn measure(
    path: &Path,
    load: Load,
    seconds: u64,
    interrupt: &Interrupt,
    record: &mut dyn FnMut(&'static str, f64),
) -> Result<()> {
    path.forget();
    let before = path.cpu_seconds()?;
    let achieved = load.apply(path, seconds, interrupt)?;
    let cpu = path.cpu_seconds()? - before;
    path.confirm(achieved.carried, interrupt)?;

    let unit = load.unit();
    record(unit.rate, achieved.work / achieved.seconds);
    if let Some(latency) = achieved.latency {
        record("us, p50", latency.p50);
        record("us, p99", latency.p99);
    }
    if !path.proxies.is_empty() {
        record(unit.cpu, cpu / achieved.work * unit.cpu_factor);
    }
    Ok(())
}

/// Makes sure that every program is there that will be needed, and says which ones they are.
fn describe(columns: &[(String, Kind)]) -> Result<Vec<(String, String)>> {
    let has = |kind: &Kind| columns.iter().any(|(_, column)| column == kind);
    let mut needed = vec!["ip", "setpriv", "unshare", "iperf3", "wrk", "nginx"];
    needed.extend(has(&Kind::Haproxy).then_some("haproxy"));
    programs::require(&needed)?;
    if has(&Kind::Nginx) {
        programs::nginx_stream_module()?;
    }
    let mut described = Vec::new();
    for (name, kind) in columns {
        match kind {
            Kind::Ztunnel(binary) => {
                ensure!(binary.is_file(), "there is no {}", binary.display());
                described.push((name.clone(), binary.display().to_string()));
            }
            Kind::Haproxy => described.push((name.clone(), programs::version("haproxy", "-v")?)),
            Kind::Direct | Kind::Nginx => {}
        }
    }
    for (name, option) in [("nginx", "-v"), ("iperf3", "-v"), ("wrk", "-v")] {
        described.push((name.to_owned(), programs::version(name, option)?));
    }
    Ok(described)
}

fn progress(what: std::fmt::Arguments<'_>) -> Result<()> {
    writeln!(std::io::stderr(), "{what}")?;
    Ok(())
}
