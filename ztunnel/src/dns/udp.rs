//! Queries over UDP.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::pod::{PodDns, Step};
use super::request::{LARGEST_REQUEST, Transport};
use super::sockets::DnsBinding;
use crate::proxy::Stop;
use crate::telemetry::with_causes;

/// Pause before a socket that broke is bound again.
pub(super) const REBIND_PAUSE: Duration = Duration::from_secs(1);

/// How long queries may still take once the pod is drained. No client waits longer.
pub(super) const DRAIN: Duration = Duration::from_secs(5);

/// Datagrams that are looked at before other tasks have their turn.
const IN_A_ROW: usize = 32;

/// Serves a socket until the pod ends; if it drains, until nothing that arrived waits any more. A socket that somebody
/// destroys is bound again.
pub(super) async fn serve(
    pod: Rc<PodDns>,
    binding: DnsBinding,
    socket: std::net::UdpSocket,
    stop: watch::Receiver<Option<Stop>>,
) {
    let mut bound = Ok(socket);
    loop {
        let broken = match bound.map_err(io::Error::other).and_then(UdpSocket::from_std) {
            Ok(socket) => match Server::new(pod.clone(), socket).run(stop.clone()).await {
                Ok(()) => return,
                Err(error) => error,
            },
            Err(error) => error,
        };
        tracing::error!(address = %binding.address(), error = with_causes(&broken), "a DNS socket broke and is bound again");
        tokio::select! {
            _ = stopped(stop.clone()) => return,
            () = sleep(REBIND_PAUSE) => {}
        }
        bound = binding.udp();
    }
}

/// How the pod is to end, once it is.
pub(super) async fn stopped(mut stop: watch::Receiver<Option<Stop>>) -> Stop {
    match stop.wait_for(Option::is_some).await.map(|stop| *stop) {
        Ok(Some(stop)) => stop,
        // Whoever would say so is gone.
        Ok(None) | Err(_) => Stop::Now,
    }
}

struct Server {
    pod: Rc<PodDns>,
    socket: Rc<UdpSocket>,
    /// Queries that wait for others.
    waiting: JoinSet<()>,
    buffer: Vec<u8>,
    looked_at: Cell<usize>,
}

impl Server {
    fn new(pod: Rc<PodDns>, socket: UdpSocket) -> Self {
        let buffer = vec![0; usize::from(LARGEST_REQUEST)];
        Self { pod, socket: Rc::new(socket), waiting: JoinSet::new(), buffer, looked_at: Cell::default() }
    }

    async fn run(mut self, stop: watch::Receiver<Option<Stop>>) -> io::Result<()> {
        let deadline = {
            let mut stopping = std::pin::pin!(stopped(stop));
            loop {
                tokio::select! {
                    biased;
                    how = &mut stopping => match how {
                        Stop::Now => return Ok(()),
                        Stop::Drain(deadline) => break Instant::now() + deadline.min(DRAIN),
                    },
                    ended = self.waiting.join_next(), if !self.waiting.is_empty() => drop(ended),
                    received = self.socket.recv_from(&mut self.buffer) => {
                        let (length, client) = received?;
                        self.received(length, client).await;
                    }
                }
            }
        };
        // Still received: with a successor on the same port, some of what arrives is for this socket until it closes.
        let drained = async {
            loop {
                while let Ok((length, client)) = self.socket.try_recv_from(&mut self.buffer) {
                    self.received(length, client).await;
                }
                if self.waiting.join_next().await.is_none() {
                    return;
                }
            }
        };
        drop(timeout_at(deadline, drained).await);
        Ok(())
    }

    async fn received(&mut self, length: usize, client: SocketAddr) {
        if client.port() == 0 || client.ip().is_unspecified() || is_broadcast(client) {
            return;
        }
        let octets = self.buffer.get(..length).unwrap_or_default();
        match self.pod.look(octets, Transport::Udp) {
            Step::Nothing => {}
            Step::Reply(reply) => send(&self.socket, &reply, client).await,
            Step::Wait(waiting) => {
                let (pod, socket) = (self.pod.clone(), self.socket.clone());
                self.waiting.spawn_local(async move {
                    let reply = pod.finish(&waiting).await;
                    send(&socket, &reply, client).await;
                });
            }
        }
        // A pod that floods has its share of the thread, and no more.
        let looked_at = self.looked_at.get() + 1;
        self.looked_at.set(looked_at % IN_A_ROW);
        if looked_at == IN_A_ROW {
            tokio::task::yield_now().await;
        }
    }
}

fn is_broadcast(client: SocketAddr) -> bool {
    matches!(client, SocketAddr::V4(client) if client.ip().is_broadcast())
}

/// The client is in the same namespace: what it does not take is lost at once, and nothing waits.
async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        tracing::debug!(%client, %error, "a DNS answer could not be sent");
    }
}
