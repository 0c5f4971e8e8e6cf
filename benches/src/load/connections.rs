//! Connections that come and go, and connections that are only held: a client of our own.
//!
//! wrk with `Connection: close` would be the first to close, and would soon have used up its ports on connections in
//! TIME_WAIT. Here the server closes first, as it does for any client that waits for the end of the answer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lab::{PATIENCE, Result, Task};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Achieved, Latency};
use crate::interrupt::Interrupt;
use crate::origin::HTTP;
use crate::path::Path;
use crate::witness::Carried;

/// How many of the connections to hold are being opened at a time.
const OPENING: usize = 16;

pub(super) fn apply(path: &Path, at_once: u16, seconds: u64, interrupt: &Interrupt) -> Result<Achieved> {
    let target = path.at(HTTP);
    let duration = Duration::from_secs(seconds);
    let task = path.client.spawn(async move || churn(target, at_once, duration).await);
    let done = finish(task, duration + PATIENCE, interrupt)?;
    let connections = done.latencies.len();
    Ok(Achieved {
        work: connections as f64,
        seconds: done.elapsed.as_secs_f64(),
        latency: Some(percentiles(done.latencies)?),
        carried: Carried { connections: connections as u64, bytes: done.bytes },
    })
}

/// Connections that have carried a request and are now silent. Dropping it closes them.
pub(crate) struct Held {
    streams: Vec<TcpStream>,
}

impl Held {
    /// Opens `count` connections and sends one request on each.
    pub(crate) fn open(path: &Path, count: usize, interrupt: &Interrupt) -> Result<Self> {
        let target = path.at(HTTP);
        let task = path.client.spawn(async move || hold(target, count).await);
        Ok(Self { streams: finish(task, PATIENCE, interrupt)? })
    }

    /// What every proxy has carried once they are closed, at least.
    pub(crate) fn carried(&self) -> Carried {
        Carried { connections: self.streams.len() as u64, bytes: 0 }
    }
}

fn finish<T>(task: Task<T>, bound: Duration, interrupt: &Interrupt) -> Result<T> {
    interrupt.wait("connections", bound, || task.is_finished())?;
    task.join()
}

struct Churned {
    latencies: Vec<Duration>,
    bytes: u64,
    elapsed: Duration,
}

async fn churn(target: SocketAddr, at_once: u16, duration: Duration) -> Result<Churned> {
    let begin = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..at_once {
        clients.spawn_local(one_after_another(target, begin + duration));
    }
    let mut all = Churned { latencies: Vec::new(), bytes: 0, elapsed: Duration::ZERO };
    while let Some(ended) = clients.join_next().await {
        let (latencies, bytes) = ended.context("a client panicked")??;
        all.latencies.extend(latencies);
        all.bytes += bytes;
    }
    all.elapsed = begin.elapsed();
    Ok(all)
}

/// How long each connection took, and the size of all answers.
async fn one_after_another(target: SocketAddr, end: Instant) -> Result<(Vec<Duration>, u64)> {
    let (mut latencies, mut bytes) = (Vec::new(), 0);
    while Instant::now() < end {
        let opened = Instant::now();
        bytes += whole_connection(target).await?;
        latencies.push(opened.elapsed());
    }
    Ok((latencies, bytes))
}

/// Connects, sends a request, and reads until the server closes. Returns the size of the answer.
async fn whole_connection(target: SocketAddr) -> Result<u64> {
    let mut stream = TcpStream::connect(target).await.context("cannot connect")?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::with_capacity(512);
    stream.read_to_end(&mut answer).await.context("no answer")?;
    ensure!(
        answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b".\n"),
        "a broken answer: {:?}",
        String::from_utf8_lossy(&answer)
    );
    Ok(answer.len() as u64)
}

async fn hold(target: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let (mut opening, mut open) = (JoinSet::new(), Vec::with_capacity(count));
    for _ in 0..count {
        if opening.len() == OPENING {
            open.extend(joined(&mut opening).await?);
        }
        opening.spawn_local(open_connection(target));
    }
    while let Some(stream) = joined(&mut opening).await? {
        open.push(stream);
    }
    Ok(open)
}

async fn joined(opening: &mut JoinSet<Result<TcpStream>>) -> Result<Option<TcpStream>> {
    opening.join_next().await.transpose().context("a client panicked")?.transpose()
}

async fn open_connection(target: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(target).await.context("cannot connect")?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n").await?;
    let mut answer = Vec::with_capacity(512);
    while !answer.ends_with(b".\n") {
        ensure!(stream.read_buf(&mut answer).await? > 0, "closed instead of held");
    }
    Ok(stream)
}

fn percentiles(mut latencies: Vec<Duration>) -> Result<Latency> {
    ensure!(!latencies.is_empty(), "no connection succeeded");
    latencies.sort_unstable();
    let at = |percent: usize| {
        // Nearest rank: the smallest value that is not below so many percent of all.
        let rank = (latencies.len() * percent).div_ceil(100).max(1);
        latencies[rank - 1].as_secs_f64() * 1e6
    };
    Ok(Latency { p50: at(50), p99: at(99) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let micros =
            |values: &[u64]| values.iter().map(|value| Duration::from_micros(*value)).collect::<Vec<_>>();
        assert_eq!(percentiles(micros(&[7])).unwrap(), Latency { p50: 7.0, p99: 7.0 });
        let hundred: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(percentiles(micros(&hundred)).unwrap(), Latency { p50: 50.0, p99: 99.0 });
        assert_eq!(percentiles(micros(&[3, 1, 2])).unwrap(), Latency { p50: 2.0, p99: 3.0 });
        assert!(percentiles(Vec::new()).is_err());
    }
}
