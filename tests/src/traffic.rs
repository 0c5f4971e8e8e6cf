//! Programs of the application side: small servers and clients to run inside pods.
//!
//! The async functions belong in a closure given to [`Namespace::spawn`](crate::Namespace::spawn) or
//! [`run`](crate::Namespace::run); only there do their sockets belong to the pod.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::{PATIENCE, Pod, Result, Task};

/// A TCP server in a pod. Dropping it closes its listener and its connections.
///
/// Its port may stay taken for a moment after that: a child process that is being started elsewhere in this process
/// has a copy of every descriptor until it executes its program. So tests do not use a port of a pod twice.
pub struct Server {
    addresses: [SocketAddr; 2],
    seen: Arc<Seen>,
    task: Option<Task<()>>,
}

#[derive(Default)]
struct Seen {
    peers: Mutex<Vec<SocketAddr>>,
    open: AtomicUsize,
}

impl Server {
    /// Listens on a port of the pod (0: any free one), on all its addresses, and gives every connection to `handler`.
    pub fn start<H>(pod: &Pod, port: u16, handler: H) -> Result<Self>
    where
        H: AsyncFn(TcpStream, SocketAddr) -> Result<()> + Send + 'static,
    {
        let seen = Arc::new(Seen::default());
        let listener = pod.visit(|| std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))??;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let task = pod.spawn({
            let seen = Arc::clone(&seen);
            async move || accept(TcpListener::from_std(listener)?, handler, seen).await
        });
        Ok(Self { addresses: [pod.at(port), pod.at_ipv6(port)], seen, task: Some(task) })
    }

    /// Where it listens.
    pub fn ipv4(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Where it listens.
    pub fn ipv6(&self) -> SocketAddr {
        self.addresses[1]
    }

    /// The peer addresses of all connections so far.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.seen.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many connections have been accepted so far.
    pub fn accepted(&self) -> usize {
        self.peers().len()
    }

    /// How many connections are being handled now.
    pub fn open(&self) -> usize {
        self.seen.open.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.cancel();
        }
    }
}

async fn accept<H>(listener: TcpListener, handler: H, seen: Arc<Seen>) -> Result<()>
where
    H: AsyncFn(TcpStream, SocketAddr) -> Result<()> + 'static,
{
    let handler = Rc::new(handler);
    // Dropped, and every connection with it, when the server is.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, peer) = listener.accept().await?;
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        seen.peers.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
        seen.open.fetch_add(1, Ordering::SeqCst);
        let (handler, seen) = (Rc::clone(&handler), Arc::clone(&seen));
        connections.spawn_local(async move {
            // A handler's failure shows at the client, where the test looks.
            let _ = handler(stream, peer).await;
            seen.open.fetch_sub(1, Ordering::SeqCst);
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Handler: sends back what it gets, until the client has finished.
pub async fn echo(stream: TcpStream, _peer: SocketAddr) -> Result<()> {
    let (mut read, mut write) = stream.into_split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await?;
    Ok(())
}

/// Handler: sends the peer's address as the server sees it, such as `10.1.0.1:40000`, and closes.
pub async fn report_peer(mut stream: TcpStream, peer: SocketAddr) -> Result<()> {
    stream.write_all(peer.to_string().as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

/// Handler: reads until the client has finished, then sends back twice what it got and closes.
pub async fn echo_twice(mut stream: TcpStream, _peer: SocketAddr) -> Result<()> {
    let mut question = Vec::new();
    stream.read_to_end(&mut question).await?;
    stream.write_all(&question).await?;
    stream.write_all(&question).await?;
    stream.shutdown().await?;
    Ok(())
}

/// Handler: reads until the client has finished, then sends the number of bytes and closes.
pub async fn count(mut stream: TcpStream, _peer: SocketAddr) -> Result<()> {
    let received = receive(&mut stream).await?;
    stream.write_all(received.bytes.to_string().as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

/// Connects, within [`PATIENCE`].
pub async fn connect(target: SocketAddr) -> Result<TcpStream> {
    bounded("connecting", async { Ok(TcpStream::connect(target).await?) })
        .await
        .with_context(|| format!("to {target}"))
}

/// Connects, sends `question`, half-closes, and reads the answer to its end, within [`PATIENCE`].
pub async fn ask(target: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
    let mut stream = connect(target).await?;
    bounded("asking", async {
        stream.write_all(question).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(answer)
    })
    .await
    .with_context(|| format!("{target}"))
}

/// What became of a connection, as its client sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Bytes came back before the connection ended.
    Answered(Vec<u8>),
    /// It was accepted, and ended without a byte: by a close or a reset.
    Cut,
    /// Nobody listens.
    Refused,
}

impl Outcome {
    /// Bytes came back.
    pub fn answered(bytes: impl AsRef<[u8]>) -> Self {
        Self::Answered(bytes.as_ref().to_vec())
    }
}

/// As [`ask`], but a connection that is refused or cut is an answer too.
pub async fn outcome(target: SocketAddr, question: &[u8]) -> Result<Outcome> {
    let mut stream = match bounded("connecting", async { Ok(TcpStream::connect(target).await) }).await? {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(Outcome::Refused),
        Err(error) => return Err(error).context(format!("connecting to {target}")),
    };
    bounded("asking", async {
        let mut answer = Vec::new();
        let asking: io::Result<usize> = async {
            stream.write_all(question).await?;
            stream.shutdown().await?;
            stream.read_to_end(&mut answer).await
        }
        .await;
        let cut = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe, io::ErrorKind::NotConnected];
        match asking {
            _ if !answer.is_empty() => Ok(Outcome::Answered(answer)),
            Ok(_) => Ok(Outcome::Cut),
            Err(error) if cut.contains(&error.kind()) => Ok(Outcome::Cut),
            Err(error) => Err(error.into()),
        }
    })
    .await
    .with_context(|| format!("{target}"))
}

/// Sends `question` and waits for it to come back whole, leaving the connection open. Within [`PATIENCE`].
pub async fn round_trip(stream: &mut TcpStream, question: &[u8]) -> Result<()> {
    bounded("a round trip", async {
        stream.write_all(question).await?;
        let mut answer = vec![0; question.len()];
        stream.read_exact(&mut answer).await?;
        ensure!(answer == question, "the echo differs");
        Ok(())
    })
    .await
}

/// How a connection ended, for the side that only waits for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// The peer finished its direction: end of file.
    Closed,
    /// The connection was reset.
    Reset,
}

/// Reads and discards until the connection ends, within [`PATIENCE`].
pub async fn ending(stream: &mut TcpStream) -> Result<Ending> {
    let mut buffer = vec![0; 64 * 1024];
    bounded("waiting for the connection's end", async {
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => return Ok(Ending::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Ending::Reset),
                Err(error) => return Err(error.into()),
            }
        }
    })
    .await
}

/// Ends the connection with a reset (RST) instead of an orderly close.
pub fn reset(stream: TcpStream) -> Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// Bytes that arrived: how many, and their SHA-256.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Received {
    /// How many.
    pub bytes: u64,
    /// Their digest.
    pub sha256: [u8; 32],
}

/// Sends `bytes` bytes that look random and depend on `seed`, and returns what the other side should receive. Does
/// not close the direction.
pub async fn send(stream: &mut (impl AsyncWrite + Unpin), seed: u64, bytes: u64) -> Result<Received> {
    let mut digest = Sha256::new();
    let mut block = vec![0; 64 * 1024];
    // Xorshift (Marsaglia, 2003). Its state must not be zero.
    let mut state = seed | 1 << 63;
    let mut left = bytes;
    while left > 0 {
        let size = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        digest.update(&block[..size]);
        stream.write_all(&block[..size]).await?;
        left -= size as u64;
    }
    Ok(Received { bytes, sha256: digest.finalize().into() })
}

/// Reads to the end of file.
pub async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> Result<Received> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(Received { bytes, sha256: digest.finalize().into() }),
            size => {
                digest.update(&buffer[..size]);
                bytes += size as u64;
            }
        }
    }
}

/// Sends `bytes` bytes and closes the direction, and meanwhile reads to the end of file. Returns what the other side
/// should have received, and what came from it.
pub async fn exchange(stream: TcpStream, seed: u64, bytes: u64) -> Result<(Received, Received)> {
    let (mut read, mut write) = stream.into_split();
    let sending = async {
        let sent = send(&mut write, seed, bytes).await?;
        write.shutdown().await?;
        Ok(sent)
    };
    tokio::try_join!(sending, receive(&mut read))
}

/// `GET path` over HTTP/1.1 on a new connection: the status code and the body. Within [`PATIENCE`].
pub async fn http_get(target: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = connect(target).await?;
    let answer = bounded("an HTTP request", async {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {target}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    })
    .await?;
    let (head, body) =
        answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer: {answer:?}"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("no status line: {head:?}"))?;
    let chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked");
    Ok((status, if chunked { join_chunks(body)? } else { body.to_owned() }))
}

/// The body that came in chunks (RFC 9112 section 7.1).
fn join_chunks(mut chunks: &str) -> Result<String> {
    let mut body = String::new();
    loop {
        let (size, rest) = chunks.split_once("\r\n").context("a chunk without a size")?;
        let size =
            usize::from_str_radix(size, 16).with_context(|| format!("no size of a chunk: {size:?}"))?;
        if size == 0 {
            return Ok(body);
        }
        let (chunk, rest) = rest.split_at_checked(size).context("a chunk is cut off")?;
        body += chunk;
        chunks = rest.strip_prefix("\r\n").context("a chunk without an end")?;
    }
}

/// Fails when `work` takes longer than [`PATIENCE`].
pub async fn bounded<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(PATIENCE, work).await.with_context(|| format!("{what} took too long"))?
}
