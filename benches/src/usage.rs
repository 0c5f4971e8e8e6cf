//! What processes use, according to the kernel: proc(5).

use std::fs;
use std::io;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::Result;

/// Unit of the times in `/proc/PID/stat`: USER_HZ, which is 100 wherever ztunnel runs (x86-64, arm64).
const TICKS_PER_SECOND: f64 = 100.0;

/// Memory of one process, in kB.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    /// Pages that are mapped and present, shared ones in full.
    pub(crate) rss: u64,
    /// The same, where a page that is shared by n processes counts for an n-th.
    pub(crate) pss: u64,
}

/// CPU that a process has used in the threads that it has now, in steps of nanoseconds (`/proc/PID/task/TID/schedstat`).
pub(crate) fn cpu_time(process: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let path = thread?.path().join("schedstat");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("a measured thread ended: {}", path.display()))?;
        let first = text.split(' ').next().and_then(|first| first.parse::<u64>().ok());
        nanoseconds += first.with_context(|| format!("not the format of the kernel: {}", path.display()))?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Seconds of CPU, user and system, that the processes have used in all their threads, ended threads included.
///
/// Errors: one of them has ended, so that its share is unknown.
pub(crate) fn cpu_seconds(processes: &[u32]) -> Result<f64> {
    let mut ticks = 0;
    for process in processes {
        let path = format!("/proc/{process}/stat");
        let stat = fs::read_to_string(&path).with_context(|| format!("a measured process ended: {path}"))?;
        let stat = Stat::parse(&stat).with_context(|| format!("not the format of proc(5): {path}"))?;
        ensure!(stat.state != 'Z', "a measured process ended: {process}");
        ticks += stat.ticks;
    }
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// The memory of a process.
pub(crate) fn memory(process: u32) -> Result<Memory> {
    let path = format!("/proc/{process}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse_smaps_rollup(&text).with_context(|| format!("not the format of proc(5): {path}"))
}

/// The most memory of a process that was ever resident, in kB.
pub(crate) fn peak(process: u32) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    kilobytes(&status, "VmHWM").with_context(|| format!("not the format of proc(5): {path}"))
}

/// The children of a process, their children, and so on.
pub(crate) fn descendants(ancestor: u32) -> Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        match fs::read_to_string(format!("/proc/{process}/stat")) {
            Ok(stat) => parents.extend(Stat::parse(&stat).map(|stat| (process, stat.parent))),
            // It ended meanwhile: ESRCH while reading, or there is no such directory any more.
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut found = vec![ancestor];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(process, _)| *process));
        next += 1;
    }
    found.remove(0);
    Ok(found)
}

/// What we read of `/proc/PID/stat`.
#[derive(Debug, PartialEq)]
struct Stat {
    state: char,
    parent: u32,
    /// User and system time.
    ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, which may contain anything. State is the third.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: number(4)?.try_into().ok()?,
            ticks: number(14)? + number(15)?,
        })
    }
}

fn parse_smaps_rollup(text: &str) -> Option<Memory> {
    Some(Memory { rss: kilobytes(text, "Rss")?, pss: kilobytes(text, "Pss")? })
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_and_spaces_shifts_no_field() {
        let text = "4711 (a) R 9 (b) S 12 4711 4711 0 -1 4194560 10 0 0 0 250 31 7 8 20 0 3 0 100 1 1";
        assert_eq!(Stat::parse(text), Some(Stat { state: 'S', parent: 12, ticks: 281 }));
        assert_eq!(Stat::parse("4711 (cut"), None);
        assert_eq!(Stat::parse("4711 (cut) S 1 2"), None);
    }

    #[test]
    fn similar_keys_are_not_confused() {
        let text =
            "55e0-7fff ---p 00000000 00:00 0  [rollup]\nRss:    9004 kB\nPss:    5120 kB\nPss_Anon: 1 kB\n";
        assert_eq!(parse_smaps_rollup(text), Some(Memory { rss: 9004, pss: 5120 }));
        assert_eq!(parse_smaps_rollup("Pss_Anon:  1 kB\nRss: 2 kB\n"), None);
    }

    #[test]
    fn a_busy_process_uses_cpu_and_its_child_is_its_descendant() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let us = std::process::id();
        let before = cpu_seconds(&[us]).unwrap();
        let found = descendants(us).unwrap();
        while cpu_seconds(&[us]).unwrap() == before {}
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&child.id()), "{found:?}");
        assert!(cpu_seconds(&[us, child.id()]).is_err());
        assert!(memory(us).unwrap().rss >= memory(us).unwrap().pss / 2);
    }
}
