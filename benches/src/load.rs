//! The kinds of load, each produced by a program or code that knows nothing of what is between it and the server.

mod bulk;
mod connections;
mod requests;

use std::fmt;

use anyhow::Context as _;
use lab::Result;

pub(crate) use self::bulk::Direction;
pub(crate) use self::connections::Held;
use crate::interrupt::Interrupt;
use crate::path::Path;
use crate::witness::Carried;

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Load {
    /// As many bytes as possible: iperf3.
    Bulk { direction: Direction, streams: u16 },
    /// As many small HTTP/1.1 requests as possible on connections that stay open, each with one request at a time: wrk.
    Requests { connections: u16 },
    /// As many connections as possible, each for one small HTTP/1.1 request and closed by the server: our own client.
    NewConnections { at_once: u16 },
}

/// What was achieved under a load.
pub(crate) struct Achieved {
    /// In [`Unit`]s.
    pub(crate) work: f64,
    pub(crate) seconds: f64,
    /// Of a request, or of a connection from connecting to its end.
    pub(crate) latency: Option<Latency>,
    /// What the proxies must have carried for that.
    pub(crate) carried: Carried,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// What work is counted in.
pub(crate) struct Unit {
    pub(crate) rate: &'static str,
    pub(crate) cpu: &'static str,
    /// Factor from CPU seconds per unit to `cpu`.
    pub(crate) cpu_factor: f64,
}

impl Load {
    /// Everything that is measured, in order.
    pub(crate) const ALL: [Self; 7] = [
        Self::Bulk { direction: Direction::ToServer, streams: 1 },
        Self::Bulk { direction: Direction::ToClient, streams: 1 },
        Self::Bulk { direction: Direction::ToServer, streams: 4 },
        Self::Bulk { direction: Direction::ToClient, streams: 4 },
        Self::Requests { connections: 1 },
        Self::Requests { connections: 64 },
        Self::NewConnections { at_once: 16 },
    ];

    /// What is run unmeasured before anything else.
    pub(crate) const WARM_UP: [Self; 2] =
        [Self::Bulk { direction: Direction::ToServer, streams: 1 }, Self::Requests { connections: 64 }];

    pub(crate) fn unit(self) -> Unit {
        match self {
            Self::Bulk { .. } => Unit { rate: "GB/s", cpu: "CPU s/GB", cpu_factor: 1.0 },
            Self::Requests { .. } => Unit { rate: "requests/s", cpu: "CPU us/request", cpu_factor: 1e6 },
            Self::NewConnections { .. } => {
                Unit { rate: "connections/s", cpu: "CPU us/connection", cpu_factor: 1e6 }
            }
        }
    }

    /// Puts the load on a path for some seconds. It is over when this returns.
    pub(crate) fn apply(self, path: &Path, seconds: u64, interrupt: &Interrupt) -> Result<Achieved> {
        let achieved = match self {
            Self::Bulk { direction, streams } => bulk::apply(path, direction, streams, seconds, interrupt),
            Self::Requests { connections } => requests::apply(path, connections, seconds, interrupt),
            Self::NewConnections { at_once } => connections::apply(path, at_once, seconds, interrupt),
        };
        achieved.with_context(|| format!("{self}, {}", path.name))
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bulk { direction, streams: 1 } => write!(f, "1 stream {direction}"),
            Self::Bulk { direction, streams } => write!(f, "{streams} streams {direction}"),
            Self::Requests { connections: 1 } => write!(f, "requests on 1 connection"),
            Self::Requests { connections } => write!(f, "requests on {connections} connections"),
            Self::NewConnections { at_once } => write!(f, "new connections, {at_once} at once"),
        }
    }
}
