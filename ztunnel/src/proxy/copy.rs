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
//! - *A sink that takes no more* only ends its own direction. What it still had to say is read by the other one, and
//!   so is the reset that follows.
//! - *The task is dropped*, because the pod or the process ends: both ends are reset.
//!
//! A source is watched also while nothing is read from it: while its pump is blocked, and after its end of data while
//! the other direction goes on. A client that vanishes in the middle of an upload or of a long answer is noticed at
//! once.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use hbone::{CutMark, Ending, ErrorCode, HboneStream, RecvHalf, SendHalf, StreamError};
use redirect::socket::unsent_bytes;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::{sleep, timeout};

/// First size of a read. Most connections never show a need for more.
const FIRST_READ: usize = 1024;

/// Largest read: one system call feeds sixteen TLS records.
const LARGEST_READ: usize = 256 * 1024;

/// How long what came before a reset may take to be delivered.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Between two looks at whether the kernel has delivered everything.
const UNSENT_POLL: Duration = Duration::from_millis(2);

/// The other side of a connection that the pod's application opened.
#[derive(Debug)]
pub(crate) enum Upstream {
    /// A TCP connection to the destination itself.
    Tcp(TcpStream),
    /// A stream in a tunnel, and whether we have cut that tunnel since.
    Hbone(HboneStream, CutMark),
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
}

/// Copies between two TCP connections. Dropping the future resets both.
pub async fn tcp_to_tcp(client: TcpStream, upstream: TcpStream, counts: &Transfer) -> Result<(), CopyError> {
    let (mut client, mut upstream) = (TcpEnd::new(client), TcpEnd::new(upstream));
    let ended = {
        let (client_read, client_write) = client.stream.split();
        let (upstream_read, upstream_write) = upstream.stream.split();
        both(
            (&mut TcpSource::new(client_read), &mut TcpSink(client_write)),
            (&mut TcpSource::new(upstream_read), &mut TcpSink(upstream_write)),
            counts,
        )
        .await
    };
    Box::pin(conclude(ended, client, upstream)).await
}

/// Copies between a TCP connection that opened the conversation and a tunnel's stream. Dropping the future resets both.
pub async fn tcp_to_hbone(
    client: TcpStream,
    upstream: HboneStream,
    counts: &Transfer,
) -> Result<(), CopyError> {
    let (mut client, mut upstream) = (TcpEnd::new(client), HboneEnd::new(upstream));
    let ended = {
        let (read, write) = client.stream.split();
        let (source, sink) = upstream.split();
        both((&mut TcpSource::new(read), &mut TcpSink(write)), (&mut { source }, &mut { sink }), counts).await
    };
    Box::pin(conclude(ended, client, upstream)).await
}

/// Copies between a tunnel's stream that opened the conversation and a TCP connection to the application. Dropping the
/// future resets both.
pub async fn hbone_to_tcp(
    client: HboneStream,
    upstream: TcpStream,
    counts: &Transfer,
) -> Result<(), CopyError> {
    let (mut client, mut upstream) = (HboneEnd::new(client), TcpEnd::new(upstream));
    let ended = {
        let (read, write) = upstream.stream.split();
        let (source, sink) = client.split();
        both((&mut { source }, &mut { sink }), (&mut TcpSource::new(read), &mut TcpSink(write)), counts).await
    };
    Box::pin(conclude(ended, client, upstream)).await
}

/// Ends both ends as the copying did.
async fn conclude(ended: Result<(), Cut>, client: impl End, upstream: impl End) -> Result<(), CopyError> {
    let Err(cut) = ended else {
        client.finished();
        upstream.finished();
        return Ok(());
    };
    // Nothing more can be delivered to the side that was cut.
    let delivered = async {
        match cut.side {
            Side::Client => upstream.delivered().await,
            Side::Upstream => client.delivered().await,
        }
    };
    drop(timeout(LAST_WORDS, delivered).await);
    if cut.manner == Manner::Quiet {
        client.finished();
        upstream.finished();
    }
    cut.into_result()
}

/// Runs both directions until both have ended or either source was cut.
async fn both(
    (client_source, client_sink): (&mut impl Source, &mut impl Sink),
    (upstream_source, upstream_sink): (&mut impl Source, &mut impl Sink),
    counts: &Transfer,
) -> Result<(), Cut> {
    let open = Cell::new(2);
    let up = direction(Side::Client, client_source, upstream_sink, &counts.from_client, &open);
    let down = direction(Side::Upstream, upstream_source, client_sink, &counts.to_client, &open);
    match select(pin!(up), pin!(down)).await {
        Either::Left((ended, _)) | Either::Right((ended, _)) => ended,
    }
}

/// One direction. Ends well only as the last of the two; the first goes on to watch its source.
async fn direction(
    side: Side,
    source: &mut impl Source,
    sink: &mut impl Sink,
    count: &Cell<u64>,
    open: &Cell<u8>,
) -> Result<(), Cut> {
    pump(source, sink, count).await.map_err(|cut| cut.of(side))?;
    open.set(open.get() - 1);
    if open.get() == 0 {
        return Ok(());
    }
    Err(Box::pin(source.cut()).await.of(side))
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
    fn of(self, side: Side) -> Cut {
        Cut { side, manner: self.manner, error: self.error }
    }
}

impl From<io::Error> for SourceCut {
    fn from(error: io::Error) -> Self {
        Self { manner: Manner::Reset, error }
    }
}

/// The source of one side was cut.
struct Cut {
    side: Side,
    manner: Manner,
    error: io::Error,
}

impl Cut {
    /// A peer that goes away is ordinary; what is left is worth reporting.
    fn into_result(self) -> Result<(), CopyError> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
        match (self.error.kind(), self.side) {
            (BrokenPipe | ConnectionReset | NotConnected | UnexpectedEof, _) => Ok(()),
            (_, Side::Client) => Err(CopyError::Receive(self.error)),
            (_, Side::Upstream) => Err(CopyError::Send(self.error)),
        }
    }
}

/// One end of the connection, whole. It is reset when it is dropped, unless it has finished.
trait End {
    /// Resolves when everything that was written has reached the peer, or never will.
    async fn delivered(&self);

    /// The connection came to its end: dropping this closes it.
    fn finished(&self);
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

struct TcpEnd {
    stream: TcpStream,
    finished: Cell<bool>,
}

impl TcpEnd {
    fn new(stream: TcpStream) -> Self {
        Self { stream, finished: Cell::new(false) }
    }
}

impl End for TcpEnd {
    async fn delivered(&self) {
        while unsent_bytes(&self.stream).is_ok_and(|unsent| unsent > 0) {
            sleep(UNSENT_POLL).await;
        }
    }

    fn finished(&self) {
        self.finished.set(true);
    }
}

impl Drop for TcpEnd {
    fn drop(&mut self) {
        if !self.finished.get() {
            // Makes close(2) send RST. Should the option fail, the connection closes all the same, only more politely.
            drop(SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)));
        }
    }
}

struct HboneEnd {
    recv: RecvHalf,
    send: RefCell<SendHalf>,
    finished: Cell<bool>,
}

impl HboneEnd {
    fn new(HboneStream { send, recv }: HboneStream) -> Self {
        Self { recv, send: RefCell::new(send), finished: Cell::new(false) }
    }

    fn split(&mut self) -> (HboneSource<'_>, HboneSink<'_>) {
        let Self { recv, send, .. } = self;
        (HboneSource { recv, send, at_end: false }, HboneSink(send))
    }
}

impl End for HboneEnd {
    async fn delivered(&self) {
        // Fails when the stream is over: nothing is left to deliver.
        drop(poll_fn(|context| self.send.borrow_mut().poll_flushed(context)).await);
    }

    fn finished(&self) {
        self.finished.set(true);
    }
}

impl Drop for HboneEnd {
    fn drop(&mut self) {
        if !self.finished.get() {
            // How a proxy says that the TCP connection behind it was cut (RFC 9113, 8.5).
            self.send.get_mut().reset(ErrorCode::CONNECT_ERROR);
        }
    }
}

struct TcpSource<'a> {
    half: ReadHalf<'a>,
    /// Size of the next read: grows while reads fill it, shrinks when they leave it nearly empty.
    capacity: usize,
}

impl<'a> TcpSource<'a> {
    fn new(half: ReadHalf<'a>) -> Self {
        Self { half, capacity: FIRST_READ }
    }

    /// Fits the next read to this one, and gives back what a small read left unused of a large buffer.
    fn adapt(&mut self, buffer: BytesMut) -> Bytes {
        let (read, capacity) = (buffer.len(), self.capacity);
        if read == capacity {
            self.capacity = (capacity * 4).min(LARGEST_READ);
        } else if read < capacity / 4 {
            self.capacity = (capacity / 2).max(FIRST_READ);
            if capacity > FIRST_READ {
                return Bytes::copy_from_slice(&buffer);
            }
        }
        buffer.freeze()
    }
}

impl Source for TcpSource<'_> {
    async fn chunk(&mut self) -> Result<Option<Bytes>, SourceCut> {
        loop {
            // The buffer is made once there is something to read: a silent connection holds none.
            poll_fn(|context| self.half.as_ref().poll_read_ready(context)).await?;
            let mut buffer = BytesMut::with_capacity(self.capacity);
            let read = poll_fn(|context| match pin!(self.half.read_buf(&mut buffer)).poll(context) {
                Poll::Ready(read) => Poll::Ready(Some(read)),
                Poll::Pending => Poll::Ready(None),
            });
            match read.await.transpose()? {
                Some(0) => return Ok(None),
                Some(_) => return Ok(Some(self.adapt(buffer))),
                None => {}
            }
        }
    }

    async fn cut(&mut self) -> SourceCut {
        let socket: &TcpStream = self.half.as_ref();
        let error = match socket.ready(Interest::ERROR).await {
            Ok(_) => match socket.take_error() {
                Ok(Some(error)) | Err(error) => error,
                Ok(None) => io::ErrorKind::ConnectionReset.into(),
            },
            Err(error) => error,
        };
        error.into()
    }
}

struct TcpSink<'a>(WriteHalf<'a>);

impl Sink for TcpSink<'_> {
    async fn write(&mut self, mut chunk: Bytes, count: &Cell<u64>) -> io::Result<()> {
        while !chunk.is_empty() {
            match self.0.write_buf(&mut chunk).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => add(count, written),
            }
        }
        Ok(())
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }
}

struct HboneSource<'a> {
    recv: &'a mut RecvHalf,
    /// The other half, which is the one that learns of resets. Both are polled by one task, and never held across an
    /// await.
    send: &'a RefCell<SendHalf>,
    /// Nothing more is to be delivered.
    at_end: bool,
}

impl Source for HboneSource<'_> {
    async fn chunk(&mut self) -> Result<Option<Bytes>, SourceCut> {
        let chunk = self.recv.chunk().await.map_err(cut_stream)?;
        self.at_end = chunk.is_none();
        Ok(chunk)
    }

    async fn cut(&mut self) -> SourceCut {
        let error = poll_fn(|context| self.send.borrow_mut().poll_closed(context)).await;
        if error.ending() == Ending::EndOfData && !self.at_end {
            // What came before is still to be delivered; the next chunk tells.
            std::future::pending::<()>().await;
        }
        cut_stream(error)
    }
}

struct HboneSink<'a>(&'a RefCell<SendHalf>);

impl Sink for HboneSink<'_> {
    async fn write(&mut self, mut chunk: Bytes, count: &Cell<u64>) -> io::Result<()> {
        let length = chunk.len();
        let sent = poll_fn(|context| self.0.borrow_mut().poll_send(context, &mut chunk)).await;
        add(count, length - chunk.len());
        Ok(sent?)
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.0.borrow_mut().finish();
        Ok(())
    }
}

/// CONNECT_ERROR is how a proxy says that the TCP connection behind it was reset (RFC 9113, 8.5); NO_ERROR and CANCEL
/// are how peers end a stream of which nothing is missing.
fn cut_stream(error: StreamError) -> SourceCut {
    let manner = match error.ending() {
        Ending::EndOfData => Manner::Quiet,
        Ending::Disconnected | Ending::Failed => Manner::Reset,
    };
    let error = match error {
        StreamError::Reset(ErrorCode::CONNECT_ERROR) => io::Error::new(io::ErrorKind::ConnectionReset, error),
        other => other.into(),
    };
    SourceCut { manner, error }
}
