//! Whether the process should get traffic: `GET /healthz/ready` on port 15021.
//!
//! Named tasks are pending until they are done; the answer is 200 when none is, and 500 with their names otherwise.

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// Port of the readiness server.
pub const PORT: u16 = 15021;

/// Whoever does not finish the head of a request in this time is cut off. A kubelet waits one second by default.
const REQUEST_DEADLINE: Duration = Duration::from_secs(2);

/// Pause when the kernel has no descriptor for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections served at once. Probes are few; more is a mistake or an attack, and then the oldest one goes: it has had
/// its time, and turning away the newest would let silent connections make the process look unready.
const MAX_CONNECTIONS: usize = 64;

/// The set of things that must happen before the process is ready. Clones share it.
#[derive(Clone, Debug)]
pub struct Readiness {
    started: Instant,
    pending: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { started: Instant::now(), pending: Arc::default() }
    }
}

/// One of those things. It is pending from registration, and may become so again.
#[derive(Debug)]
pub struct Task {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Adds a pending task.
    pub fn register(&self, name: &'static str) -> Task {
        self.lock().insert(name);
        Task { name, readiness: self.clone() }
    }

    /// Names of the pending tasks, sorted.
    pub fn pending(&self) -> Vec<&'static str> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<&'static str>> {
        // The set is whole after every statement that changes it, so a panic elsewhere cannot have left it torn.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Task {
    /// The task is done. Says so in the log the first time.
    pub fn done(&self) {
        let mut pending = self.readiness.lock();
        if pending.remove(self.name) {
            let remaining = pending.len();
            let elapsed = self.readiness.started.elapsed();
            tracing::info!(task = self.name, remaining, ?elapsed, "ready");
        }
    }

    /// The task is pending again.
    pub fn again(&self) {
        if self.readiness.lock().insert(self.name) {
            tracing::warn!(task = self.name, "not ready any more");
        }
    }
}

/// The server that kubelet asks.
#[derive(Debug)]
pub struct Probes {
    listener: TcpListener,
}

impl Probes {
    /// Takes the port. Needs a tokio runtime.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener: TcpListener::from_std(listener)? })
    }

    /// Answers until dropped, which cuts the open connections. Needs a `LocalRuntime` or `LocalSet`.
    pub async fn serve(self, readiness: Readiness) {
        let mut probes = JoinSet::new();
        let mut by_age: VecDeque<AbortHandle> = VecDeque::with_capacity(MAX_CONNECTIONS);
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a readiness probe");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            while probes.try_join_next().is_some() {}
            by_age.retain(|probe| !probe.is_finished());
            if by_age.len() == MAX_CONNECTIONS
                && let Some(oldest) = by_age.pop_front()
            {
                oldest.abort();
            }
            by_age.push_back(probes.spawn_local(probe(stream, readiness.clone())));
        }
    }
}

async fn probe(stream: TcpStream, readiness: Readiness) {
    let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&readiness, &request))));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_DEADLINE)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a readiness probe ended early");
    }
}

fn answer(readiness: &Readiness, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, body) = match (request.uri().path(), request.method()) {
        ("/healthz/ready", &Method::GET) => match readiness.pending().as_slice() {
            [] => (StatusCode::OK, "ready\n".to_owned()),
            pending => {
                (StatusCode::INTERNAL_SERVER_ERROR, format!("not ready, pending: {}\n", pending.join(", ")))
            }
        },
        ("/healthz/ready", _) => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::LocalSet;
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// Runs `client` against a server that is ready.
    async fn with_probes<F: Future>(client: impl FnOnce(SocketAddr) -> F) -> F::Output {
        let serve_and_ask = async {
            let probes = Probes::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let address = probes.listener.local_addr().unwrap();
            tokio::task::spawn_local(probes.serve(Readiness::default()));
            timeout(LONG, client(address)).await.unwrap()
        };
        LocalSet::new().run_until(serve_and_ask).await
    }

    #[tokio::test]
    async fn silent_connections_do_not_keep_a_probe_from_its_answer() {
        let ask = async |address| {
            let mut silent = Vec::new();
            for _ in 0..MAX_CONNECTIONS {
                silent.push(TcpStream::connect(address).await.unwrap());
            }
            let mut kubelet = TcpStream::connect(address).await.unwrap();
            let request = b"GET /healthz/ready HTTP/1.1\r\nhost: probe\r\nconnection: close\r\n\r\n";
            kubelet.write_all(request).await.unwrap();
            let mut answer = String::new();
            kubelet.read_to_string(&mut answer).await.unwrap();
            assert_eq!(silent[0].read(&mut [0]).await.unwrap(), 0, "the oldest made room");
            answer
        };
        let answer = with_probes(ask).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    }

    #[tokio::test]
    async fn a_connection_that_says_nothing_is_closed() {
        let read = with_probes(async |address| {
            let mut silent = TcpStream::connect(address).await.unwrap();
            silent.read(&mut [0]).await.unwrap()
        });
        assert_eq!(read.await, 0);
    }

    #[test]
    fn pending_tasks_are_named_in_order_until_done() {
        let readiness = Readiness::default();
        let (state, agent) = (readiness.register("state manager"), readiness.register("proxy"));
        assert_eq!(readiness.pending(), ["proxy", "state manager"]);
        state.done();
        agent.done();
        assert!(readiness.pending().is_empty());
        agent.again();
        assert_eq!(readiness.pending(), ["proxy"]);
    }
}
