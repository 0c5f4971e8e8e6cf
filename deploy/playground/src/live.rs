//! The playground while it stays up: new connections on the screen, the proxies' logs in files.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{AccessLine, Node, Ztunnel};

use crate::sandbox::SCRATCH;
use crate::scene::Scene;
use crate::screen::Screen;

/// How often new lines are looked for.
const TICK: Duration = Duration::from_millis(200);

/// Connections shown for each tick and node. Of a flood, the rest is only counted.
const SHOWN: usize = 10;

/// Bytes of each proxy's log that are kept; the files are in memory.
const LOG_LIMIT: usize = 32 << 20;

/// Shows connections until the process is killed.
///
/// Errors: a proxy has ended, or there is no screen any more.
pub(crate) fn stay(scene: &Scene, screen: &mut Screen) -> Result<()> {
    let [one, two] = scene.proxies()?;
    let mut logs = [Log::new(one)?, Log::new(two)?];
    for log in &mut logs {
        // What came before has been told.
        log.read();
    }
    screen.line(&invitation(&logs)?)?;
    loop {
        for log in &mut logs {
            let lines = log.read();
            for line in lines.iter().take(SHOWN) {
                screen.line(&describe(log.node.name(), line))?;
            }
            if lines.len() > SHOWN {
                screen.line(&format!("{}  and {} more", log.node.name(), lines.len() - SHOWN))?;
            }
            ensure!(log.ztunnel.process().is_running(), "the ztunnel of {} has ended", log.node.name());
        }
        std::thread::sleep(TICK);
    }
}

/// Prints the end of both logs, for whoever has to find out what went wrong.
pub(crate) fn print_logs(scene: &Scene) -> Result<()> {
    const LINES: usize = 40;
    let mut out = std::io::stderr();
    for (node, ztunnel) in scene.proxies()? {
        let lines = [ztunnel.log().all(), ztunnel.process().stderr().all()].concat();
        writeln!(out, "--- ztunnel of {}", node.name())?;
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

/// A proxy's log on its way into a file.
struct Log<'a> {
    node: &'a Node,
    ztunnel: &'a Ztunnel,
    path: PathBuf,
    file: File,
    room: usize,
}

impl<'a> Log<'a> {
    fn new((node, ztunnel): (&'a Node, &'a Ztunnel)) -> Result<Self> {
        let path = PathBuf::from(SCRATCH).join(format!("{}.log", node.name()));
        let file = File::create(&path)?;
        Ok(Self { node, ztunnel, path, file, room: LOG_LIMIT })
    }

    /// Moves new lines into the file, while there is room, and returns those of the access log.
    fn read(&mut self) -> Vec<AccessLine> {
        let lines = self.ztunnel.log().take();
        for line in &lines {
            self.room = self.room.saturating_sub(line.len() + 1);
            if self.room > 0 && writeln!(self.file, "{line}").is_err() {
                self.room = 0;
            }
        }
        lines.iter().filter_map(|line| AccessLine::parse(line)).collect()
    }
}

fn invitation(logs: &[Log<'_>; 2]) -> Result<String> {
    let program = std::env::current_exe()?;
    let here = std::env::current_dir()?;
    let exec = format!("{} exec", program.strip_prefix(here).unwrap_or(&program).display());
    let [one, two] = logs;
    Ok(format!(
        "The mesh stays up until Ctrl-C. In another terminal:\n\n  \
         {exec} client -- curl http://server\n  \
         {exec} intruder -- curl http://server\n  \
         {exec} outsider -- curl http://server-1:8080\n  \
         {exec} client -- sh\n  \
         {exec} {} -- tail -f {}\n  \
         {exec} {} -- tail -f {}\n\n\
         Connections, as each node's ztunnel reports them:\n",
        one.node.name(),
        one.path.display(),
        two.node.name(),
        two.path.display(),
    ))
}

/// `node-1  outbound  client -> server-1  HBONE  81 bytes sent, 90 received`
fn describe(node: &str, line: &AccessLine) -> String {
    let party = |side: &str| {
        let name = line.get(&format!("{side}.workload")).unwrap_or(line.text(&format!("{side}.addr")));
        name.to_owned()
    };
    let carrier = if line.get("dst.hbone_addr").is_some() { "HBONE" } else { "TCP" };
    let result = match line.get("error") {
        Some(error) => error.to_owned(),
        None => format!("{} bytes sent, {} received", line.text("bytes_sent"), line.text("bytes_recv")),
    };
    let parties = format!("{} -> {}", party("src"), party("dst"));
    format!("{node}  {:<8}  {parties:<22}  {carrier:<5}  {result}", line.text("direction"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_one_short_line() {
        let line = |fields: &str| {
            AccessLine::parse(&format!("time\tinfo\taccess\tconnection complete\t{fields}")).unwrap()
        };
        let tunnelled = line(
            "src.addr=10.1.0.1:40000 src.workload=\"client\" dst.addr=10.2.0.1:15008 dst.hbone_addr=10.2.0.1:8080 \
             dst.workload=\"server-1\" direction=\"outbound\" bytes_sent=81 bytes_recv=90 duration=\"3ms\"",
        );
        assert_eq!(
            describe("node-1", &tunnelled),
            "node-1  outbound  client -> server-1      HBONE  81 bytes sent, 90 received"
        );
        let denied =
            line("src.addr=10.2.0.2:40000 dst.addr=10.1.0.3:8080 direction=\"inbound\" error=\"no\"");
        assert_eq!(
            describe("node-1", &denied),
            "node-1  inbound   10.2.0.2:40000 -> 10.1.0.3:8080  TCP    no"
        );
    }
}
