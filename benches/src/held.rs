//! Memory of the proxies, idle and with many connections that are open and silent.

use std::fs;
use std::time::Duration;

use lab::Result;

use crate::interrupt::Interrupt;
use crate::load::Held;
use crate::path::Path;
use crate::usage::{self, Memory};

/// How many connections are held.
pub(crate) const CONNECTIONS: usize = 2000;

/// One process of a proxy.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) side: &'static str,
    pub(crate) program: String,
    pub(crate) idle: Memory,
    pub(crate) holding: Memory,
}

/// Measures every process of a path's proxies. They should be fresh: what a load has once needed, an allocator keeps,
/// and later connections would seem to need nothing.
pub(crate) fn measure(path: &Path, interrupt: &Interrupt) -> Result<Vec<Process>> {
    let idle = settled(path, interrupt)?;
    path.forget();
    let held = Held::open(path, CONNECTIONS, interrupt)?;
    let holding = settled(path, interrupt)?;
    let carried = held.carried();
    drop(held);
    path.confirm(carried, interrupt)?;

    let mut found = Vec::new();
    let processes = path.proxies.iter().flat_map(|proxy| proxy.processes.iter().map(|id| (proxy.side, id)));
    for ((side, id), (idle, holding)) in processes.zip(idle.into_iter().zip(holding)) {
        let program = fs::read_to_string(format!("/proc/{id}/comm"))?.trim().to_owned();
        found.push(Process { side, program, idle, holding });
    }
    Ok(found)
}

/// Kilobytes for each held connection, in all processes together.
pub(crate) fn per_connection(processes: &[Process], of: fn(Memory) -> u64) -> f64 {
    let sum = |memory: fn(&Process) -> Memory| {
        processes.iter().map(|process| of(memory(process)) as f64).sum::<f64>()
    };
    (sum(|process| process.holding) - sum(|process| process.idle)) / CONNECTIONS as f64
}

/// The memory of all processes of the proxies, in order, once it no longer changes or after three seconds.
fn settled(path: &Path, interrupt: &Interrupt) -> Result<Vec<Memory>> {
    let processes = || path.proxies.iter().flat_map(|proxy| &proxy.processes);
    let read = || processes().map(|id| usage::memory(*id)).collect::<Result<Vec<_>>>();
    let mut last = read()?;
    for _ in 0..12 {
        interrupt.check()?;
        std::thread::sleep(Duration::from_millis(250));
        let now = read()?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_given_back_counts_as_well() {
        let process = |idle, holding| Process {
            side: "client",
            program: "p".to_owned(),
            idle: Memory { rss: idle, pss: 0 },
            holding: Memory { rss: holding, pss: 0 },
        };
        let processes = [process(1000, 7000), process(3000, 1000)];
        assert_eq!(per_connection(&processes, |memory| memory.rss), 2.0);
        assert_eq!(per_connection(&processes, |memory| memory.pss), 0.0);
    }
}
