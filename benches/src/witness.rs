//! Proof that what was measured went through the proxies: their own logs, one line for each connection.

use std::ops::AddAssign;
use std::time::Instant;

use anyhow::{Context as _, bail};
use lab::{AccessLine, Lines, PATIENCE, Result};

use crate::interrupt::Interrupt;

/// Connections, and bytes in both directions together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Carried {
    pub(crate) connections: u64,
    pub(crate) bytes: u64,
}

impl Carried {
    /// Whether this is nine tenths of what is expected. Not all, because haproxy drops lines when the pipe that it logs
    /// to is full.
    fn accounts_for(self, expected: Self) -> bool {
        let enough = |seen: u64, expected: u64| seen * 10 >= expected * 9;
        enough(self.connections, expected.connections) && enough(self.bytes, expected.bytes)
    }
}

impl AddAssign for Carried {
    fn add_assign(&mut self, other: Self) {
        self.connections += other.connections;
        self.bytes += other.bytes;
    }
}

/// The log of one proxy.
pub(crate) struct Witness {
    log: Lines,
    read: fn(&str) -> Option<Carried>,
}

impl Witness {
    /// `read` gives what a line says was carried as it should be, and None for any other line.
    pub(crate) fn new(log: Lines, read: fn(&str) -> Option<Carried>) -> Self {
        Self { log, read }
    }

    /// Forgets what was carried so far.
    pub(crate) fn forget(&self) {
        self.log.take();
    }

    /// Waits, at most [`PATIENCE`], until connections that have ended since [`forget`](Self::forget) account for
    /// `expected`.
    ///
    /// Errors: they do not, so that something was measured that went past the proxy.
    pub(crate) fn confirm(&self, expected: Carried, interrupt: &Interrupt) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Carried::default();
        let mut other = Vec::new();
        loop {
            for line in self.log.take() {
                match (self.read)(&line) {
                    Some(carried) => seen += carried,
                    None => other.push(line),
                }
            }
            if seen.accounts_for(expected) {
                return Ok(());
            }
            if Instant::now() > deadline {
                other.truncate(10);
                bail!("only {seen:?} of {expected:?} is in the log; other lines:\n{}", other.join("\n"));
            }
            interrupt.check()?;
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// A line of ztunnel's access log about a connection that came or went through a tunnel, between two identities.
pub(crate) fn ztunnel(line: &str) -> Option<Carried> {
    let line = AccessLine::parse(line)?;
    let tunnelled =
        ["dst.hbone_addr", "src.identity", "dst.identity"].iter().all(|key| line.get(key).is_some());
    let bytes = |key| line.get(key)?.parse::<u64>().ok();
    (line.message == "connection complete" && tunnelled && line.get("error").is_none())
        .then_some(Carried { connections: 1, bytes: bytes("bytes_sent")? + bytes("bytes_recv")? })
}

/// A line in the form that haproxy and nginx are told to write: `carried`, bytes from and to the client.
pub(crate) fn pair(line: &str) -> Option<Carried> {
    let (from, to) = line.strip_prefix("carried ")?.split_once(' ')?;
    let parse = |text: &str| text.parse::<u64>().context("bytes").ok();
    Some(Carried { connections: 1, bytes: parse(from)? + parse(to)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPLETE: &str = "2031-05-01T08:00:03.120000Z\tinfo\taccess\tconnection complete\tsrc.addr=10.1.0.1:37771 \
        src.identity=\"spiffe://cluster.local/ns/default/sa/client\" dst.addr=10.2.0.1:15008 \
        dst.hbone_addr=10.2.0.1:8080 dst.identity=\"spiffe://cluster.local/ns/default/sa/server\" \
        direction=\"outbound\" bytes_sent=40 bytes_recv=2 duration=\"7ms\"";

    #[test]
    fn a_tunnelled_connection_counts() {
        assert_eq!(ztunnel(COMPLETE), Some(Carried { connections: 1, bytes: 42 }));
        assert_eq!(pair("carried 40 2"), Some(Carried { connections: 1, bytes: 42 }));
    }

    #[test]
    fn what_went_in_plaintext_or_failed_does_not_count() {
        assert_eq!(ztunnel(&COMPLETE.replace("dst.hbone_addr=10.2.0.1:8080 ", "")), None);
        assert_eq!(ztunnel(&COMPLETE.replace("src.identity", "src.other")), None);
        assert_eq!(ztunnel(&COMPLETE.replace("complete", "failed")), None);
        assert_eq!(ztunnel(&COMPLETE.replace("duration", "error=\"cut\" duration")), None);
        assert_eq!(pair("[notice] carried 1 2"), None);
        assert_eq!(pair("carried 1 -"), None);
    }

    #[test]
    fn carrying_enough_bytes_on_too_few_connections_is_not_enough() {
        let expected = Carried { connections: 10, bytes: 100 };
        assert!(!Carried { connections: 8, bytes: 1000 }.accounts_for(expected));
        assert!(!Carried { connections: 30, bytes: 89 }.accounts_for(expected));
        assert!(Carried { connections: 9, bytes: 90 }.accounts_for(expected));
        let one = Carried { connections: 1, bytes: 0 };
        assert!(!Carried::default().accounts_for(one));
        assert!(one.accounts_for(one));
    }
}
