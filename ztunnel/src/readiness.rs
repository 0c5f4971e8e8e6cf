//! Whether the process should get traffic: `GET /healthz/ready` on port 15021.
//!
//! Named tasks are pending until they are done; the answer is 200 when none is, and 500 with their names otherwise.

use std::collections::BTreeSet;
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
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Port of the readiness server.
pub const PORT: u16 = 15021;

/// A kubelet that does not finish its request in this time is cut off.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// Pause when the kernel has no descriptor for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections served at once. Probes are few; more is a mistake or an attack.
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

    /// Answers until dropped. Needs a `LocalRuntime` or `LocalSet`.
    pub async fn serve(self, readiness: Readiness) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a readiness probe");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if let Ok(slot) = slots.clone().try_acquire_owned() {
                tokio::task::spawn_local(probe(stream, readiness.clone(), slot));
            }
        }
    }
}

async fn probe(stream: TcpStream, readiness: Readiness, _slot: OwnedSemaphorePermit) {
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
    use super::*;

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
