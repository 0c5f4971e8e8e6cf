//! The `playground` command: two nodes and five pods on this machine, a real ztunnel on each node, real requests.
//!
//! Started by a user, it [launches](sandbox::launch) itself again inside namespaces of its own. There it builds the
//! [`scene`], runs every [`story`] and checks it, and then stays [`live`] so that `playground exec` can [`join`] from
//! another terminal.

mod join;
mod live;
mod request;
mod sandbox;
mod scene;
mod screen;
mod story;
mod web;
mod wire;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

use crate::scene::Scene;
use crate::screen::Screen;

/// See the mesh work: two nodes, five pods and a real ztunnel on each node, all on this machine.
///
/// Sends real requests, shows what became of each and why, and fails if anything is not as it should be. Then it
/// stays up for your own requests. It needs no privilege where user namespaces are allowed, does not touch the
/// machine's network or files, and leaves nothing behind, however it ends.
#[derive(Parser)]
#[command(name = "playground", args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
struct Cli {
    /// Exit after the last request instead of staying up.
    #[arg(long)]
    once: bool,
    /// Already inside the namespaces: set by `playground` itself.
    #[arg(long, hide = true)]
    inside: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a command in a pod or on a node of the playground that is up.
    #[command(after_help = EXAMPLES)]
    Exec {
        /// client, intruder, server-1, server-2, outsider, node-1 or node-2.
        #[arg(value_name = "POD")]
        place: String,
        /// The program to run there, and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

const EXAMPLES: &str = "\
Examples:
  playground                                        watch the requests, then stay up until Ctrl-C
  playground --once                                 watch the requests, then exit
  playground exec client -- curl http://server      from another terminal, while it is up
  playground exec intruder -- curl http://server    denied by a policy";

fn main() -> ExitCode {
    let outcome = match Cli::parse() {
        Cli { command: Some(Command::Exec { place, command }), .. } => {
            join::exec(&place, &command).map(|never| match never {})
        }
        Cli { inside: false, once, .. } => sandbox::launch(once),
        Cli { inside: true, once, .. } => inside(once).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        // Standard error is the last resort: when it is closed, the exit code remains.
        let _ = writeln!(std::io::stderr(), "playground: {error:#}");
        ExitCode::FAILURE
    })
}

/// What happens inside the namespaces, as their first process.
fn inside(once: bool) -> Result<()> {
    sandbox::cover_scratch()?;
    let mut screen = Screen::new();
    screen.title("ztunnel playground: two nodes and five pods on this machine")?;
    screen.progress("building the nodes and pods, and starting a ztunnel on each node")?;
    let scene = Scene::build()?;
    sandbox::cover_name_resolution(&scene.hosts())?;
    scene.describe(&mut screen)?;

    let surprises = story::tell_all(&scene, &mut screen)?;
    if surprises > 0 {
        live::print_logs(&scene)?;
        bail!("{surprises} of the above did not turn out as it should, see FAILED");
    }
    screen.line("All of this was checked, and is as it should be.\n")?;
    if once {
        return Ok(());
    }
    let _join = join::serve(&scene)?;
    live::stay(&scene, &mut screen)
}
