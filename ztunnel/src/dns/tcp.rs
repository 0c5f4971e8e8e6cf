//! Queries over TCP (RFC 7766): several may follow one another on a connection, and are answered as soon as each can be.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::pod::{PodDns, Step};
use super::request::Transport;
use super::sockets::DnsBinding;
use super::udp::{DRAIN, REBIND_PAUSE, stopped};
use crate::metrics::dns::Limit;
use crate::proxy::Stop;
use crate::telemetry::with_causes;

/// How long a connection stays open without a whole query.
const IDLE: Duration = Duration::from_secs(5);

/// How long a client may take to take an answer.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// Connections of one pod to one address.
const MOST_CONNECTIONS: usize = 64;

/// Queries of one connection that may wait for others. More are not read before.
const MOST_PIPELINED: usize = 16;

/// Octets read at once.
const READ: usize = 4096;

/// Pause when the system has no descriptor for another connection.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Serves a listener until the pod ends; if it drains, queries that were read are still answered. A listener that
/// somebody destroys is bound again.
pub(super) async fn serve(
    pod: Rc<PodDns>,
    binding: DnsBinding,
    listener: std::net::TcpListener,
    stop: watch::Receiver<Option<Stop>>,
) {
    let mut connections = JoinSet::new();
    let mut bound = Ok(listener);
    let how = loop {
        let broken = match bound.map_err(io::Error::other).and_then(TcpListener::from_std) {
            Ok(listener) => tokio::select! {
                biased;
                how = stopped(stop.clone()) => break how,
                broken = accept(&pod, &listener, &mut connections, &stop) => broken,
            },
            Err(error) => error,
        };
        tracing::error!(address = %binding.address(), error = with_causes(&broken), "a DNS listener broke and is bound again");
        tokio::select! {
            how = stopped(stop.clone()) => break how,
            () = sleep(REBIND_PAUSE) => {}
        }
        bound = binding.tcp();
    };
    if let Stop::Drain(deadline) = how {
        let all = async { while connections.join_next().await.is_some() {} };
        drop(timeout(deadline.min(DRAIN), all).await);
    }
}

/// Accepts until the listener itself fails.
async fn accept(
    pod: &Rc<PodDns>,
    listener: &TcpListener,
    connections: &mut JoinSet<()>,
    stop: &watch::Receiver<Option<Stop>>,
) -> io::Error {
    loop {
        let accepted = tokio::select! {
            ended = connections.join_next(), if !connections.is_empty() => {
                drop(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(_) if connections.len() >= MOST_CONNECTIONS => pod.node.metrics.shed(Limit::Connections),
            Ok((stream, client)) => {
                let connection = Connection { pod: pod.clone(), stream, buffer: BytesMut::new() };
                let stop = stop.clone();
                connections.spawn_local(async move {
                    if let Err(error) = connection.serve(stop).await {
                        tracing::debug!(%client, %error, "a DNS connection broke off");
                    }
                });
            }
            // EINVAL: it does not listen any more.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return error,
            Err(error) => {
                tracing::debug!(%error, "a DNS connection could not be accepted");
                sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

struct Connection {
    pod: Rc<PodDns>,
    stream: TcpStream,
    /// Read and not yet looked at.
    buffer: BytesMut,
}

impl Connection {
    /// Until the client has closed its side and has its answers, or is idle, or the pod ends.
    async fn serve(mut self, stop: watch::Receiver<Option<Stop>>) -> io::Result<()> {
        let pod = self.pod.clone();
        let mut stopping = std::pin::pin!(stopped(stop));
        let mut waiting = FuturesUnordered::new();
        let mut idle = Instant::now() + IDLE;
        let mut is_open = true;
        loop {
            while waiting.len() < MOST_PIPELINED
                && let Some(message) = take_message(&mut self.buffer)
            {
                idle = Instant::now() + IDLE;
                match pod.look(&message, Transport::Tcp) {
                    Step::Nothing => {}
                    Step::Reply(reply) => self.write(&reply).await?,
                    Step::Wait(query) => {
                        let pod = &pod;
                        waiting.push(async move { pod.finish(&query).await });
                    }
                }
                // Many may have come at once.
                tokio::task::consume_budget().await;
            }
            if !is_open && waiting.is_empty() {
                return Ok(());
            }
            self.buffer.reserve(READ);
            tokio::select! {
                biased;
                how = &mut stopping, if is_open => match how {
                    Stop::Now => return Ok(()),
                    Stop::Drain(_) => is_open = false,
                },
                Some(reply) = waiting.next() => {
                    self.write(&reply).await?;
                    idle = Instant::now() + IDLE;
                }
                read = self.stream.read_buf(&mut self.buffer), if is_open && waiting.len() < MOST_PIPELINED => {
                    is_open = read? > 0;
                }
                () = sleep_until(idle), if waiting.is_empty() => return Ok(()),
            }
        }
    }

    async fn write(&mut self, reply: &[u8]) -> io::Result<()> {
        let Ok(length) = u16::try_from(reply.len()) else { return Ok(()) };
        let message = [&length.to_be_bytes(), reply].concat();
        let written = timeout_at(Instant::now() + WRITE_DEADLINE, self.stream.write_all(&message));
        written.await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// The first message in the buffer, if it is whole.
fn take_message(buffer: &mut BytesMut) -> Option<BytesMut> {
    let length = usize::from(u16::from_be_bytes(*buffer.first_chunk()?));
    if buffer.len() < 2 + length {
        return None;
    }
    buffer.advance(2);
    Some(buffer.split_to(length))
}
