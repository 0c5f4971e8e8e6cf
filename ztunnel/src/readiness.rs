//! Whether the process should get traffic: `GET /healthz/ready` on port 15021.
//!
//! Named tasks are pending until they are done; the answer is 200 when none is, and 500 with their names otherwise.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};

use crate::http_server::{Answer, Body, HttpServer, not_found, with_status};

/// Port of the readiness server.
pub const PORT: u16 = 15021;

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
pub struct Probes(HttpServer);

impl Probes {
    /// Takes the port. Needs a tokio runtime.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        HttpServer::bind("readiness", MAX_CONNECTIONS, [address]).map(Self)
    }

    /// Answers until dropped, which cuts the open connections. Needs a `LocalRuntime` or `LocalSet`.
    pub async fn serve(self, readiness: Readiness) {
        self.0.serve(async move |request: &Request<Incoming>| answer(&readiness, request)).await;
    }
}

fn answer(readiness: &Readiness, request: &Request<Incoming>) -> Answer {
    match (request.uri().path(), request.method()) {
        ("/healthz/ready", &Method::GET) => match readiness.pending().as_slice() {
            [] => with_status(StatusCode::OK, "ready\n".into()),
            pending => {
                let text = format!("not ready, pending: {}\n", pending.join(", "));
                with_status(StatusCode::INTERNAL_SERVER_ERROR, text.into())
            }
        },
        ("/healthz/ready", _) => with_status(StatusCode::METHOD_NOT_ALLOWED, Body::empty()),
        _ => not_found(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::task::LocalSet;
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// Runs `client` against a server that is ready.
    async fn with_probes<F: Future>(client: impl FnOnce(SocketAddr) -> F) -> F::Output {
        let serve_and_ask = async {
            let probes = Probes::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let address = probes.0.local_addresses().unwrap()[0];
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
