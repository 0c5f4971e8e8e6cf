//! Requests on connections that stay open: wrk.

use std::fs;

use anyhow::{Context as _, ensure};
use lab::Result;
use serde::Deserialize;

use super::{Achieved, Latency};
use crate::interrupt::Interrupt;
use crate::origin::HTTP;
use crate::path::Path;
use crate::programs;
use crate::witness::Carried;

/// Tells wrk to print its result in a form that [`parse`] reads.
const SCRIPT: &str = include_str!("../wrk.lua");

pub(super) fn apply(path: &Path, connections: u16, seconds: u64, interrupt: &Interrupt) -> Result<Achieved> {
    let script = path.client.node().directory().join("wrk.lua");
    fs::write(&script, SCRIPT)?;
    let arguments = [
        // One is enough to keep any of the paths busy, and leaves the other cores alone.
        "--threads=1".to_owned(),
        format!("--connections={connections}"),
        format!("--duration={seconds}s"),
        format!("--script={}", script.display()),
        format!("http://{}/", path.at(HTTP)),
    ];
    let summary = parse(&programs::run(&path.client, "wrk", arguments, seconds, interrupt)?)?;
    Ok(Achieved {
        work: summary.requests as f64,
        seconds: summary.microseconds as f64 / 1e6,
        latency: Some(Latency { p50: summary.p50, p99: summary.p99 }),
        carried: Carried { connections: connections.into(), bytes: summary.bytes },
    })
}

/// The line that the script prints.
#[derive(Debug, Deserialize, PartialEq)]
struct Summary {
    requests: u64,
    bytes: u64,
    microseconds: u64,
    p50: f64,
    p99: f64,
    errors: u64,
}

fn parse(output: &str) -> Result<Summary> {
    let line = output.lines().find(|line| line.starts_with('{')).context("no result of wrk")?;
    let summary: Summary = serde_json::from_str(line).context("not the result of wrk")?;
    ensure!(summary.requests > 0, "no request succeeded");
    ensure!(summary.errors == 0, "{} errors in {} requests", summary.errors, summary.requests);
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_found_among_the_text() {
        let output = "Running 1s test @ http://10.2.0.1:8080/\n  1 threads and 1 connections\n\
            {\"requests\":3,\"bytes\":600,\"microseconds\":1000123,\"p50\":80,\"p99\":131,\"errors\":0}\n";
        let expected =
            Summary { requests: 3, bytes: 600, microseconds: 1_000_123, p50: 80.0, p99: 131.0, errors: 0 };
        assert_eq!(parse(output).unwrap(), expected);
    }

    #[test]
    fn errors_make_a_result_worthless() {
        let with = |requests: u64, errors: u64| {
            let rest = "\"bytes\":600,\"microseconds\":1,\"p50\":1,\"p99\":1";
            parse(&format!("{{\"requests\":{requests},\"errors\":{errors},{rest}}}"))
        };
        assert!(with(10, 0).is_ok());
        assert!(with(10, 1).is_err());
        assert!(with(0, 0).is_err());
        assert!(parse("unable to connect").is_err());
    }
}
