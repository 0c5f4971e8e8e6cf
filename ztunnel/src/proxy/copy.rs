//! Stage 5: both directions until closed.
//!
//! Each direction is a pump: take a chunk from the source, write it to the sink, count it. The two run in one task.
//!
//! How a connection can end:
//!
//! - *End of data* in one direction (FIN, END_STREAM) closes the sink's side and leaves the other direction alone.
//! - *A reset of the source* (RST, RST_STREAM, the tunnel died) ends both directions and resets both ends: an
//!   application must be able to tell a connection that was cut from one that was finished (RFC 9113, 8.5). The reset
//!   follows the bytes: what came before it is delivered first, if the other end takes it soon.
//! - *CONNECT_ERROR from a waypoint* is its way to close a connection, a complete one too, and as good as end of data in
//!   both directions. Envoy resets a stream so when the HTTP/1.1 connection inside it ends with `connection: close`, right
//!   after the response.
//! - *A sink that takes no more* only ends its own direction. What it still had to say is read by the other one, and
//!   so is the reset that follows.
//! - *The caller interrupts it*, because the pod ends or the connection is not allowed any more, and *one direction has
//!   ended and the other is silent* for too long: both ends are reset.
//! - *The task is dropped*: both ends are reset, as well as that can be done on the spot.
//!
//! A source is watched also while nothing is read from it: while its pump is blocked, and after its end of data while
//! the other direction goes on. A client that vanishes in the middle of an upload or of a long answer is noticed at
//! once.

mod hbone;
mod tcp;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use ::hbone::{CutMark, HboneStream};
use bytes::Bytes;
use futures_util::future::{Either, FutureExt as _, Select, join, select};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use self::hbone::HboneEnd;
use self::tcp::{TcpEnd, TcpSink, TcpSource};

/// How long what came before a reset may take to be delivered.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The other side of a connection that the pod's application opened.
#[derive(Debug)]
pub(crate) enum Upstream {
    /// A TCP connection to the destination itself.
    Tcp(TcpStream),
    /// A stream in a tunnel, who is at the other end of it, and whether we have cut that tunnel since.
    Hbone(HboneStream, TunnelPeer, CutMark),
}

/// Who is at the other end of a tunnel, as far as it matters for what the end of a stream means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TunnelPeer {
    /// A node proxy, which resets streams only for connections that were cut.
    NodeProxy,
    /// A waypoint, which resets streams also for connections that came to their end.
    Waypoint,
}

/// Bytes of application data carried so far.
#[derive(Debug, Default)]
pub struct Transfer {
    /// From the side that opened the connection.
    pub from_client: Cell<u64>,
    /// To the side that opened the connection.
    pub to_client: Cell<u64>,
}

/// Copying ended with an error that is not simply a peer going away.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Reading from the side that opened the connection.
    #[error("receive")]
    Receive(#[source] io::Error),
    /// Reading from the side we connected to.
    #[error("send")]
    Send(#[source] io::Error),
    /// The caller ended it.
    #[error("interrupted")]
    Interrupted,
    /// One direction had ended, and the other was silent for too long.
    #[error("half-closed and silent for too long")]
    HalfClosed,
}

/// When a connection is ended that its ends would go on with.
pub trait Limits {
    /// Ready once both ends are to be reset. Wakes the task of the last call.
    fn poll_end(&self, context: &mut Context<'_>) -> Poll<()>;

    /// How long the connection may be silent in one direction once the other has ended.
    fn half_closed(&self) -> Duration;
}

/// Copies between two TCP connections. Dropping the future resets both.
pub async fn tcp_to_tcp(
    client: TcpStream,
    upstream: TcpStream,
    counts: &Transfer,
    limits: &impl Limits,
) -> Result<(), CopyError> {
    let (mut client, mut upstream) = (TcpEnd::new(client), TcpEnd::new(upstream));
    let ended = {
        let (client_read, client_write) = client.stream.split();
        let (upstream_read, upstream_write) = upstream.stream.split();
        both(
            (&mut TcpSource::new(client_read), &mut TcpSink(client_write)),
            (&mut TcpSource::new(upstream_read), &mut TcpSink(upstream_write)),
            counts,
            limits,
        )
        .await
    };
    Box::pin(conclude(ended, client, upstream)).await
}

/// Copies between a TCP connection that opened the conversation and a tunnel's stream. Dropping the future resets both.
pub async fn tcp_to_hbone(
    client: TcpStream,
    upstream: HboneStream,
    peer: TunnelPeer,
    counts: &Transfer,
    limits: &impl Limits,
) -> Result<(), CopyError> {
    let (mut client, mut upstream) = (TcpEnd::new(client), HboneEnd::new(upstream, peer));
    let ended = {
        let (read, write) = client.stream.split();
        let (source, sink) = upstream.split();
        both(
            (&mut TcpSource::new(read), &mut TcpSink(write)),
            (&mut { source }, &mut { sink }),
            counts,
            limits,
        )
        .await
    };
    Box::pin(conclude(ended, client, upstream)).await
}

/// Copies between a tunnel's stream that opened the conversation and a TCP connection to the application. Dropping the
/// future resets both.
pub async fn hbone_to_tcp(
    client: HboneStream,
    upstream: TcpStream,
    counts: &Transfer,
    limits: &impl Limits,
) -> Result<(), CopyError> {
    let (mut client, mut upstream) = (HboneEnd::new(client, TunnelPeer::NodeProxy), TcpEnd::new(upstream));
    let ended = {
        let (read, write) = upstream.stream.split();
        let (source, sink) = client.split();
        both(
            (&mut { source }, &mut { sink }),
            (&mut TcpSource::new(read), &mut TcpSink(write)),
            counts,
            limits,
        )
        .await
    };
    Box::pin(conclude(ended, client, upstream)).await
}

/// How copying ended, other than well.
enum Cut {
    /// The source of one side was cut.
    Source(Side, SourceCut),
    /// We end it.
    Ours(CopyError),
}

/// Ends both ends as the copying did.
async fn conclude(ended: Result<(), Cut>, client: impl End, upstream: impl End) -> Result<(), CopyError> {
    let (side, cut) = match ended {
        Ok(()) => {
            client.finished();
            upstream.finished();
            return Ok(());
        }
        Err(Cut::Ours(error)) => {
            join(client.reset(), upstream.reset()).await;
            return Err(error);
        }
        Err(Cut::Source(side, cut)) => (side, cut),
    };
    // Nothing more can be delivered to the side that was cut.
    let delivered = async {
        match side {
            Side::Client => upstream.delivered().await,
            Side::Upstream => client.delivered().await,
        }
    };
    drop(timeout(LAST_WORDS, delivered).await);
    if cut.manner == Manner::Quiet {
        client.finished();
        upstream.finished();
    } else {
        match side {
            Side::Client => upstream.reset().await,
            Side::Upstream => client.reset().await,
        }
    }
    cut.into_result(side)
}

/// Runs both directions until both have ended, either source was cut or a limit is met.
async fn both(
    (client_source, client_sink): (&mut impl Source, &mut impl Sink),
    (upstream_source, upstream_sink): (&mut impl Source, &mut impl Sink),
    counts: &Transfer,
    limits: &impl Limits,
) -> Result<(), Cut> {
    let open = Cell::new(2);
    let Transfer { from_client, to_client } = counts;
    let up = direction(Side::Client, client_source, upstream_sink, from_client, &open, || {
        until_silent(to_client, limits.half_closed())
    });
    let down = direction(Side::Upstream, upstream_source, client_sink, to_client, &open, || {
        until_silent(from_client, limits.half_closed())
    });
    unless(limits, select(pin!(up), pin!(down))).await
}

/// What either half of `copying` comes to, unless it is to end before.
async fn unless<A, B>(limits: &impl Limits, mut copying: Select<A, B>) -> Result<(), Cut>
where
    A: Future<Output = Result<(), Cut>> + Unpin,
    B: Future<Output = Result<(), Cut>> + Unpin,
{
    poll_fn(|context| {
        if limits.poll_end(context).is_ready() {
            return Poll::Ready(Err(Cut::Ours(CopyError::Interrupted)));
        }
        copying.poll_unpin(context).map(|ended| ended.factor_first().0)
    })
    .await
}

/// One direction. Ends well only as the last of the two; the first goes on to watch its source, and the other direction
/// for silence.
async fn direction<F: Future<Output = CopyError>>(
    side: Side,
    source: &mut impl Source,
    sink: &mut impl Sink,
    count: &Cell<u64>,
    open: &Cell<u8>,
    silence: impl FnOnce() -> F,
) -> Result<(), Cut> {
    pump(source, sink, count).await.map_err(|cut| Cut::Source(side, cut))?;
    open.set(open.get() - 1);
    if open.get() == 0 {
        return Ok(());
    }
    // Boxed, as what few connections need for long.
    let watching = Box::pin(async {
        match select(pin!(source.cut()), pin!(silence())).await {
            Either::Left((cut, _)) => Cut::Source(side, cut),
            Either::Right((error, _)) => Cut::Ours(error),
        }
    });
    Err(watching.await)
}

/// Resolves when `count` has not changed for a whole `limit`, or up to twice that.
async fn until_silent(count: &Cell<u64>, limit: Duration) -> CopyError {
    loop {
        let before = count.get();
        sleep(limit).await;
        if count.get() == before {
            return CopyError::HalfClosed;
        }
    }
}

/// Moves bytes until the source ends or the sink takes no more. `Err`: the source was cut.
async fn pump(source: &mut impl Source, sink: &mut impl Sink, count: &Cell<u64>) -> Result<(), SourceCut> {
    while let Some(chunk) = source.chunk().await? {
        match write_watching(source, sink, chunk, count).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ok(()),
            Err(cut) => {
                drop(Box::pin(timeout(LAST_WORDS, pump_rest(source, sink, count))).await);
                return Err(cut);
            }
        }
    }
    // An error here means that the sink is gone, which the other direction reads.
    drop(sink.finish().await);
    Ok(())
}

/// Writes a chunk, with an eye on the source while the sink is blocked. `Err`: the source was cut meanwhile; the chunk
/// was written if the sink took it soon.
async fn write_watching(
    source: &mut impl Source,
    sink: &mut impl Sink,
    chunk: Bytes,
    count: &Cell<u64>,
) -> Result<io::Result<()>, SourceCut> {
    let mut writing = pin!(sink.write(chunk, count));
    if let Poll::Ready(written) = poll_fn(|context| Poll::Ready(writing.as_mut().poll(context))).await {
        return Ok(written);
    }
    // Boxed, here and below, because most connections never need it and all would keep room for it.
    match select(writing, Box::pin(source.cut())).await {
        Either::Left((written, _)) => Ok(written),
        Either::Right((cut, writing)) => {
            drop(Box::pin(timeout(LAST_WORDS, writing)).await);
            Err(cut)
        }
    }
}

/// What a source that was cut had sent before.
async fn pump_rest(source: &mut impl Source, sink: &mut impl Sink, count: &Cell<u64>) {
    while let Ok(Some(chunk)) = source.chunk().await {
        if sink.write(chunk, count).await.is_err() {
            return;
        }
    }
}

#[derive(Clone, Copy)]
enum Side {
    Client,
    Upstream,
}

/// How the other end is to learn that a source was cut.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Manner {
    /// By a reset.
    Reset,
    /// By the end of data: so peers end a stream of which nothing is missing.
    Quiet,
}

/// A source ended in any way but end of data.
struct SourceCut {
    manner: Manner,
    error: io::Error,
}

impl SourceCut {
    /// A peer that goes away is ordinary; what is left is worth reporting.
    fn into_result(self, side: Side) -> Result<(), CopyError> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
        match (self.error.kind(), side) {
            (BrokenPipe | ConnectionReset | NotConnected | UnexpectedEof, _) => Ok(()),
            (_, Side::Client) => Err(CopyError::Receive(self.error)),
            (_, Side::Upstream) => Err(CopyError::Send(self.error)),
        }
    }
}

impl From<io::Error> for SourceCut {
    fn from(error: io::Error) -> Self {
        Self { manner: Manner::Reset, error }
    }
}

/// One end of the connection, whole. It is reset when it is dropped, unless it has finished.
trait End {
    /// Resolves when everything that was written has reached the peer, or never will.
    async fn delivered(&self);

    /// The connection came to its end: dropping this closes it.
    fn finished(&self);

    /// Resets it, so that the peer learns of it for sure.
    async fn reset(self);
}

/// Where a direction's bytes come from.
trait Source {
    /// The next bytes, `None` at the end of data. Never empty.
    async fn chunk(&mut self) -> Result<Option<Bytes>, SourceCut>;

    /// Resolves when the source is cut, without reading from it. Cancel safe.
    async fn cut(&mut self) -> SourceCut;
}

/// Where a direction's bytes go.
trait Sink {
    /// Takes the whole chunk, waiting for room, and counts what is taken. An error means that nothing more will be.
    async fn write(&mut self, chunk: Bytes, count: &Cell<u64>) -> io::Result<()>;

    /// Signals the end of data.
    async fn finish(&mut self) -> io::Result<()>;
}

fn add(count: &Cell<u64>, bytes: usize) {
    count.set(count.get() + bytes as u64);
}
