//! What following a control plane costs: a real proxy and a scripted istiod, then lookups beside a push in one process. See
//! benches/README.md.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use benches::{Interrupt, build_ztunnel, driven, mesh};
use clap::Parser;
use fastrand::Rng;
use xds_client::{Handler as _, ResourceType};
use ztunnel::state::avoided::Avoiding;
use ztunnel::state::model::Workload;
use ztunnel::state::route::{RouteConfig, route};
use ztunnel::state::xds::XdsState;
use ztunnel::state::{Mesh, MeshState};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measure what it costs a proxy to follow a control plane: start, memory, single changes, a resend of everything, a dump.
#[derive(Parser)]
#[command(name = "control-plane")]
struct Cli {
    /// Sizes of the mesh.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 50_000, 300_000])]
    workloads: Vec<usize>,
    /// Another binary than the release build of this tree.
    #[arg(long, value_name = "PATH")]
    ztunnel: Option<PathBuf>,
    /// `cargo bench` passes this.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is the last resort: when it is closed, the exit code remains.
            let _ = writeln!(std::io::stderr(), "control-plane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let binary = match &cli.ztunnel {
        Some(binary) => binary.clone(),
        None => build_ztunnel(&Interrupt::watch()?)?,
    };
    for workloads in &cli.workloads {
        writeln!(std::io::stdout(), "{}", driven::measure(*workloads, binary.clone())?)?;
        writeln!(std::io::stdout(), "{}", lookups(*workloads))?;
    }
    Ok(())
}

/// Routes decided on another thread while a push that changes every workload is applied, and while nothing is.
fn lookups(workloads: usize) -> String {
    let state = Arc::new(MeshState::new(Mesh::new(None)));
    let mut xds = XdsState::new(state.clone(), |_| {});
    let resources = |version| (0..workloads).map(move |number| mesh::pod_resource(number, version));
    let services = mesh::resources(workloads).into_iter().take(mesh::services(workloads));
    apply(&mut xds, services.chain(resources(0)));

    let pushed: Vec<_> = resources(1).collect();
    let (quiet, ()) = beside(&state, workloads, || std::thread::sleep(Duration::from_millis(500)));
    let (busy, took) = beside(&state, workloads, || apply(&mut xds, pushed));
    format!(
        "  applying {workloads} changed workloads   {:.1} ms, {:.1} us each\n  a route decided, idle        {quiet}\n  a route decided, meanwhile   {busy}",
        took.as_secs_f64() * 1e3,
        took.as_secs_f64() * 1e6 / workloads as f64,
    )
}

fn apply(xds: &mut XdsState, resources: impl IntoIterator<Item = mesh::Resource>) -> Duration {
    let started = Instant::now();
    xds.begin(ResourceType::Address);
    for (name, payload) in resources {
        let accepted = xds.update(ResourceType::Address, &name.as_str().into(), payload);
        assert!(accepted.is_ok(), "{name}: {accepted:?}");
    }
    xds.commit(ResourceType::Address);
    started.elapsed()
}

/// Decides routes on a thread of its own for as long as `what` takes.
fn beside<T>(state: &Arc<MeshState>, workloads: usize, what: impl FnOnce() -> T) -> (String, T) {
    let over = Arc::new(AtomicBool::new(false));
    let reader = {
        let (state, over) = (state.clone(), over.clone());
        std::thread::spawn(move || {
            let config = RouteConfig { network: "".into(), illegal_ports: [].into() };
            let source = Workload::default();
            let mut rng = Rng::with_seed(1);
            let mut times = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let destination = (mesh::pod_address(rng.usize(..workloads)), 80).into();
                let started = Instant::now();
                let decided = route(
                    &state.load(),
                    &config,
                    &source,
                    [10, 0, 0, 1].into(),
                    destination,
                    Avoiding::NOBODY,
                    &mut rng,
                );
                times.push(started.elapsed());
                assert!(decided.is_ok(), "{decided:?}");
            }
            times.sort_unstable();
            let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
            format!("p50 {:.2} us, p99 {:.2} us, p99.9 {:.2} us", at(0.5), at(0.99), at(0.999))
        })
    };
    let result = what();
    over.store(true, Ordering::Relaxed);
    (reader.join().expect("the reader does not panic"), result)
}
