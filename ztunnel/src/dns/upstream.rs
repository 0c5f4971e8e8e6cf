//! Asking the servers of `/etc/resolv.conf`.
//!
//! Each try has a socket of its own on a random port, and a random id, and takes only what comes from the server's
//! address with that id and the same question: somebody who does not see the query has to guess some thirty bits
//! (RFC 5452 section 9). A server that is silent is not waited for before the next one is asked too; the first final
//! answer wins. A truncated answer is asked for again over TCP (RFC 7766 section 5).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redirect::Netns;
use redirect::socket::{ConnectOptions, Keepalive, bind_udp, connect};
use rustls::crypto::aws_lc_rs;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until, timeout};

use super::request::LARGEST_REQUEST;
use super::resolv_conf::ResolvConf;
use super::wire;

/// From where servers are asked.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// The network namespace; `None`: the process's own.
    pub(crate) netns: Option<Netns>,
    /// Mark of the packets, by which the rules of the namespace let them through.
    pub(crate) mark: Option<u32>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum AskError {
    /// `/etc/resolv.conf` names no server.
    #[error("no name server is known")]
    NoServers,
    /// No server answered in time.
    #[error("no name server answered in time")]
    TimedOut,
    /// The servers cannot be reached, or broke off.
    #[error("no name server can be reached: {0}")]
    Unreachable(io::ErrorKind),
    /// An answer that is none.
    #[error("a name server answered with what is no DNS message")]
    Malformed,
    /// There are too many queries in flight.
    #[error("too many queries wait for name servers")]
    Shed,
}

/// All tries together take no longer than this: clients give up after five seconds, and should be told before.
const BUDGET: Duration = Duration::from_millis(4500);

/// Pause before the next server is asked, or the same again. Doubles each time.
const IMPATIENCE: Duration = Duration::from_millis(400);

/// Sockets that one question uses at most.
const MOST_TRIES: usize = 6;

/// Ports to try at random before the kernel chooses.
const PORT_ATTEMPTS: usize = 4;

/// Sends `query` to the servers and returns the answer, whose id is one of ours: a final one (NOERROR or NXDOMAIN) of any
/// server, else the first error answer. Dropping the future closes all sockets.
pub(crate) async fn ask(origin: &Origin, conf: &ResolvConf, query: &[u8]) -> Result<Vec<u8>, AskError> {
    let all = conf.timeout.saturating_mul(conf.attempts + 1).min(BUDGET);
    timeout(all, race(origin, conf, query)).await.unwrap_or(Err(AskError::TimedOut))
}

async fn race(origin: &Origin, conf: &ResolvConf, query: &[u8]) -> Result<Vec<u8>, AskError> {
    let servers = &conf.servers;
    let rounds = usize::try_from(conf.attempts + 1).unwrap_or(1);
    let mut tries = (0..rounds).flat_map(|_| servers.iter()).take(MOST_TRIES);
    let attempt = |server: &SocketAddr| {
        let server = *server;
        async move {
            let tried = try_one(origin, server, query);
            timeout(conf.timeout, tried).await.unwrap_or(Err(AskError::TimedOut))
        }
    };
    let mut running = FuturesUnordered::new();
    running.push(attempt(tries.next().ok_or(AskError::NoServers)?));
    let mut pause = IMPATIENCE;
    let mut again = Instant::now() + pause;
    let (mut refusals, mut refusal, mut failure) = (0, None, AskError::TimedOut);
    loop {
        let ended = tokio::select! {
            ended = running.next() => ended,
            () = sleep_until(again) => None,
        };
        match ended {
            Some(Ok(answer)) if matches!(wire::rcode(&answer), wire::NOERROR | wire::NXDOMAIN) => {
                return Ok(answer);
            }
            Some(Ok(answer)) => {
                refusals += 1;
                refusal.get_or_insert(answer);
            }
            Some(Err(error)) => failure = error,
            None => pause *= 2,
        }
        again = Instant::now() + pause;
        // A server that refuses would refuse again.
        let next = if refusals < servers.len() { tries.next() } else { None };
        match next {
            Some(server) => running.push(attempt(server)),
            None if running.is_empty() => return refusal.ok_or(failure),
            None => again += BUDGET,
        }
    }
}

async fn try_one(origin: &Origin, server: SocketAddr, query: &[u8]) -> Result<Vec<u8>, AskError> {
    let mut query = query.to_vec();
    wire::set_id(&mut query, random()?);
    let answer = over_udp(origin, server, &query).await?;
    if wire::is_truncated(&answer) {
        // What is there is better than nothing: the client is told that it is not all.
        return Ok(over_tcp(origin, server, &query).await.unwrap_or(answer));
    }
    Ok(answer)
}

async fn over_udp(origin: &Origin, server: SocketAddr, query: &[u8]) -> Result<Vec<u8>, AskError> {
    let socket = bind(origin, server)?;
    socket.connect(server).await.map_err(unreachable)?;
    socket.send(query).await.map_err(unreachable)?;
    let mut buffer = vec![0; usize::from(LARGEST_REQUEST)];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(unreachable)?;
        let answer = buffer.get(..length).unwrap_or_default();
        if is_answer(query, answer) {
            if !wire::is_truncated(answer) && !is_whole(answer) {
                return Err(AskError::Malformed);
            }
            buffer.truncate(length);
            return Ok(buffer);
        }
        tracing::debug!(%server, "a datagram that answers another question was ignored");
    }
}

async fn over_tcp(origin: &Origin, server: SocketAddr, query: &[u8]) -> Result<Vec<u8>, AskError> {
    let options = ConnectOptions {
        mark: origin.mark,
        keepalive: None::<Keepalive>,
        user_timeout: None,
        timeout: BUDGET,
    };
    let connected = connect(origin.netns.as_ref(), None, server, &options).await;
    let mut stream = connected.map_err(|error| unreachable(error.source))?;
    let length = u16::try_from(query.len()).map_err(|_| AskError::Malformed)?;
    let message = [&length.to_be_bytes(), query].concat();
    stream.write_all(&message).await.map_err(unreachable)?;
    let length = stream.read_u16().await.map_err(unreachable)?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.map_err(unreachable)?;
    if !is_answer(query, &answer) || !is_whole(&answer) {
        return Err(AskError::Malformed);
    }
    Ok(answer)
}

/// Whether `answer` is meant for `query`. A server that cannot read the question may leave it out.
fn is_answer(query: &[u8], answer: &[u8]) -> bool {
    let is_response = wire::is_response(answer)
        && wire::opcode(answer) == wire::opcode(query)
        && wire::u16_at(answer, 0) == wire::u16_at(query, 0);
    is_response && (wire::same_question(query, answer) || is_bare_error(answer))
}

fn is_bare_error(answer: &[u8]) -> bool {
    wire::u16_at(answer, 4) == Some(0)
        && answer.len() >= wire::HEADER
        && !matches!(wire::rcode(answer), wire::NOERROR | wire::NXDOMAIN)
}

fn is_whole(answer: &[u8]) -> bool {
    is_bare_error(answer) || wire::contents(answer).is_some()
}

/// A socket on a random port of the server's family.
fn bind(origin: &Origin, server: SocketAddr) -> Result<UdpSocket, AskError> {
    let any = |port| -> SocketAddr {
        match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
        }
    };
    for _ in 0..PORT_ATTEMPTS {
        let port = random()?.max(1024);
        if let Ok(socket) = bind_udp(origin.netns.as_ref(), any(port), origin.mark, None) {
            return UdpSocket::from_std(socket).map_err(unreachable);
        }
    }
    let bound = bind_udp(origin.netns.as_ref(), any(0), origin.mark, None);
    bound.map_err(|error| error.source).and_then(UdpSocket::from_std).map_err(unreachable)
}

/// Sixteen bits that nobody can guess.
fn random() -> Result<u16, AskError> {
    let mut octets = [0; 2];
    let filled = aws_lc_rs::default_provider().secure_random.fill(&mut octets);
    filled.map_err(|_| AskError::Unreachable(io::ErrorKind::Other))?;
    Ok(u16::from_be_bytes(octets))
}

fn unreachable(error: io::Error) -> AskError {
    AskError::Unreachable(error.kind())
}
