//! The small HTTP/1.1 servers of the process: readiness, metrics, administration.
//!
//! All of them run on the control thread and treat their clients alike. Whoever does not send the head of a request in
//! time is cut off, and so is whoever does not take the answer; connections are bounded, and the oldest one goes. Neither
//! TLS nor authentication: who may connect is decided by the address that a server listens on. Long answers are produced
//! while they are sent, see [`Body`].

mod body;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

pub use body::{Body, ChunkSink, Interrupted};

/// What every answer is.
pub type Answer = Response<Body>;

/// Whoever does not finish the head of a request in this time is cut off. A kubelet waits one second by default.
const REQUEST_DEADLINE: Duration = Duration::from_secs(2);

/// Whoever takes none of what was sent to it for this long is cut off (`TCP_USER_TIMEOUT`, tcp(7)).
const STALLED_READER_DEADLINE: Duration = Duration::from_secs(30);

/// Pause when the kernel has no descriptor for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes held for a connection: of a request's head, and of an answer that the kernel does not take yet.
const BUFFER: usize = 64 * 1024;

/// A server that has its ports, and does not answer yet.
#[derive(Debug)]
pub struct HttpServer {
    purpose: &'static str,
    max_connections: usize,
    listeners: Vec<TcpListener>,
}

impl HttpServer {
    /// Takes the `addresses`. Needs a tokio runtime.
    ///
    /// `purpose` names the server in the log. Of more than `max_connections` the oldest one goes: it has had its time, and
    /// turning away the newest would let silent connections make the server look dead.
    pub fn bind(
        purpose: &'static str,
        max_connections: usize,
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) -> io::Result<Self> {
        let listeners = addresses.into_iter().map(listen).collect::<io::Result<_>>()?;
        Ok(Self { purpose, max_connections, listeners })
    }

    /// What it listens on, in the order of the addresses given: tells the port when that was 0.
    pub fn local_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.listeners.iter().map(TcpListener::local_addr).collect()
    }

    /// Answers until dropped, which cuts the open connections. Needs a `LocalRuntime` or `LocalSet`.
    ///
    /// `answer` runs on this thread, so what takes long in it belongs into the [`Body`].
    pub async fn serve<A>(self, answer: A)
    where
        A: AsyncFn(&Request<Incoming>) -> Answer + 'static,
    {
        let answer = Rc::new(answer);
        let mut connections = JoinSet::new();
        let mut by_age: VecDeque<AbortHandle> = VecDeque::with_capacity(self.max_connections);
        loop {
            let stream = match self.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, server = self.purpose, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some() {}
            by_age.retain(|connection| !connection.is_finished());
            if by_age.len() >= self.max_connections
                && let Some(oldest) = by_age.pop_front()
            {
                oldest.abort();
            }
            by_age.push_back(connections.spawn_local(converse(stream, self.purpose, answer.clone())));
        }
    }

    async fn accept(&self) -> io::Result<TcpStream> {
        let accept = |context: &mut std::task::Context<'_>| {
            let mut ready = self.listeners.iter().map(|listener| listener.poll_accept(context));
            ready.find(std::task::Poll::is_ready).unwrap_or(std::task::Poll::Pending)
        };
        std::future::poll_fn(accept).await.map(|(stream, _)| stream)
    }
}

/// What stands under a path that is not served.
pub fn not_found() -> Answer {
    with_status(StatusCode::NOT_FOUND, Body::empty())
}

/// An answer without headers of its own.
pub fn with_status(status: StatusCode, body: Body) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    // Accepted connections inherit both.
    let socket = SockRef::from(&listener);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(STALLED_READER_DEADLINE))?;
    TcpListener::from_std(listener)
}

async fn converse<A>(stream: TcpStream, purpose: &'static str, answer: Rc<A>)
where
    A: AsyncFn(&Request<Incoming>) -> Answer + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(answer(&request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_DEADLINE)
        .half_close(true)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, server = purpose, "a connection ended early");
    }
}
