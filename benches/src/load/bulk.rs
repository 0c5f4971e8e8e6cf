//! Throughput: iperf3.

use std::fmt;

use anyhow::{Context as _, bail};
use lab::Result;
use serde::Deserialize;

use super::Achieved;
use crate::interrupt::Interrupt;
use crate::origin::{BULK, BulkServer};
use crate::path::Path;
use crate::programs;
use crate::witness::Carried;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Direction {
    /// From the side that opened the connections.
    ToServer,
    /// To the side that opened the connections.
    ToClient,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ToServer => "to server",
            Self::ToClient => "to client",
        })
    }
}

pub(super) fn apply(
    path: &Path,
    direction: Direction,
    streams: u16,
    seconds: u64,
    interrupt: &Interrupt,
) -> Result<Achieved> {
    let server = BulkServer::start(&path.server)?;
    let target = path.at(BULK);
    let mut arguments = vec!["--client".to_owned(), target.ip().to_string(), "--json".to_owned()];
    let numbers = [("--port", u64::from(BULK)), ("--time", seconds), ("--parallel", u64::from(streams))];
    arguments.extend(numbers.into_iter().flat_map(|(key, value)| [key.to_owned(), value.to_string()]));
    arguments.extend((direction == Direction::ToClient).then(|| "--reverse".to_owned()));
    let output = programs::run(&path.client, "iperf3", arguments, seconds, interrupt)?;
    let received = parse(&output)?;
    server.finish(interrupt)?;
    Ok(Achieved {
        work: received.bytes as f64 / 1e9,
        seconds: received.seconds,
        latency: None,
        // The streams, and the connection by which client and server of iperf3 talk about them.
        carried: Carried { connections: u64::from(streams) + 1, bytes: received.bytes },
    })
}

/// What the receiving end counted.
#[derive(Debug, Deserialize, PartialEq)]
struct Received {
    bytes: u64,
    seconds: f64,
}

fn parse(output: &str) -> Result<Received> {
    #[derive(Deserialize)]
    struct Output {
        error: Option<String>,
        end: Option<End>,
    }
    #[derive(Deserialize)]
    struct End {
        sum_received: Option<Received>,
    }
    let output: Output = serde_json::from_str(output).context("not the JSON of iperf3")?;
    if let Some(error) = output.error {
        bail!("iperf3: {error}");
    }
    let received = output.end.and_then(|end| end.sum_received);
    received.filter(|received| received.bytes > 0).context("iperf3 received nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_received_counts_not_what_was_sent() {
        let output = r#"{"start": {}, "end": {"sum_sent": {"bytes": 9, "seconds": 1.0},
            "sum_received": {"start": 0, "end": 2.5, "bytes": 5000, "seconds": 2.5}}}"#;
        assert_eq!(parse(output).unwrap(), Received { bytes: 5000, seconds: 2.5 });
    }

    #[test]
    fn a_failed_or_empty_test_is_an_error() {
        let refused = r#"{"start": {}, "end": {}, "error": "unable to connect"}"#;
        assert!(parse(refused).unwrap_err().to_string().contains("unable to connect"));
        assert!(parse(r#"{"end": {"sum_received": {"bytes": 0, "seconds": 1.0}}}"#).is_err());
        assert!(parse("iperf3: parameter error").is_err());
    }
}
