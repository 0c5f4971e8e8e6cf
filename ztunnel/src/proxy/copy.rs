//! Stage 5: both directions until closed.
//!
//! Each direction is a pump: take a chunk from the source, write it to the sink, count it. The two run in one task.
//!
//! How a connection can end:
//!
//! - *End of data* in one direction (FIN, END_STREAM) closes the sink's side and leaves the other direction alone.
//! - *A reset of the source* (RST, RST_STREAM, the tunnel died) ends both directions at once and resets both ends:
//!   an application must be able to tell a connection that was cut from one that was finished (RFC 9113, 8.5).
//! - *A sink that takes no more* only ends its own direction. What it still had to say is read by the other one, and
//!   so is the reset that follows.
//!
//! While a pump is blocked on its sink it still watches its source, so a client that vanished in the middle of an
//! upload is noticed at once.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use hbone::{Ending, ErrorCode, HboneStream, RecvHalf, SendHalf, StreamError};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// First size of a read. Most connections never show a need for more.
const FIRST_READ: usize = 1024;

/// Largest read: one system call feeds sixteen TLS records.
const LARGEST_READ: usize = 256 * 1024;

/// The other side of a connection that the pod's application opened.
#[derive(Debug)]
pub(crate) enum Upstream {
    /// A TCP connection to the destination itself.
    Tcp(TcpStream),
    /// A stream in a tunnel.
    Hbone(HboneStream),
}

/// Bytes of application data carried so far.
#[derive(Debug, Default)]
pub(crate) struct Transfer {
    /// From the side that opened the connection.
    pub(crate) from_client: Cell<u64>,
    /// To the side that opened the connection.
    pub(crate) to_client: Cell<u64>,
}

/// Copying ended with an error that is not simply a peer going away.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// Reading from the side that opened the connection.
    #[error("receive")]
    Receive(#[source] io::Error),
    /// Reading from the side we connected to.
    #[error("send")]
    Send(#[source] io::Error),
}

/// Copies between two TCP connections.
pub(crate) async fn tcp_to_tcp(
    mut client: TcpStream,
    mut upstream: TcpStream,
    counts: &Transfer,
) -> Result<(), CopyError> {
    let ended = {
        let (client_read, client_write) = client.split();
        let (upstream_read, upstream_write) = upstream.split();
        both(
            (&mut TcpSource::new(client_read), &mut TcpSink(client_write)),
            (&mut TcpSource::new(upstream_read), &mut TcpSink(upstream_write)),
            counts,
        )
        .await
    };
    ended.or_else(|cut| {
        reset_tcp(client);
        reset_tcp(upstream);
        cut.into_result()
    })
}

/// Copies between a TCP connection that opened the conversation and a tunnel's stream.
pub(crate) async fn tcp_to_hbone(
    mut client: TcpStream,
    upstream: HboneStream,
    counts: &Transfer,
) -> Result<(), CopyError> {
    let HboneStream { send, mut recv } = upstream;
    let send = RefCell::new(send);
    let ended = {
        let (read, write) = client.split();
        both(
            (&mut TcpSource::new(read), &mut TcpSink(write)),
            (&mut HboneSource { recv: &mut recv, send: &send }, &mut HboneSink(&send)),
            counts,
        )
        .await
    };
    ended.or_else(|cut| {
        reset_tcp(client);
        send.into_inner().reset(ErrorCode::CONNECT_ERROR);
        cut.into_result()
    })
}

/// Copies between a tunnel's stream that opened the conversation and a TCP connection to the application.
pub(crate) async fn hbone_to_tcp(
    client: HboneStream,
    mut upstream: TcpStream,
    counts: &Transfer,
) -> Result<(), CopyError> {
    let HboneStream { send, mut recv } = client;
    let send = RefCell::new(send);
    let ended = {
        let (read, write) = upstream.split();
        both(
            (&mut HboneSource { recv: &mut recv, send: &send }, &mut HboneSink(&send)),
            (&mut TcpSource::new(read), &mut TcpSink(write)),
            counts,
        )
        .await
    };
    ended.or_else(|cut| {
        reset_tcp(upstream);
        send.into_inner().reset(ErrorCode::CONNECT_ERROR);
        cut.into_result()
    })
}

/// Runs both directions until both have ended or either source was cut.
async fn both(
    (client_source, client_sink): (&mut impl Source, &mut impl Sink),
    (upstream_source, upstream_sink): (&mut impl Source, &mut impl Sink),
    counts: &Transfer,
) -> Result<(), Cut> {
    tokio::try_join!(
        pump(Side::Client, client_source, upstream_sink, &counts.from_client),
        pump(Side::Upstream, upstream_source, client_sink, &counts.to_client),
    )?;
    Ok(())
}

#[derive(Clone, Copy)]
enum Side {
    Client,
    Upstream,
}

/// A source ended in any way but end of data.
struct Cut {
    side: Side,
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

/// One direction, to its end. `Err`: the source was cut.
async fn pump(
    side: Side,
    source: &mut impl Source,
    sink: &mut impl Sink,
    count: &Cell<u64>,
) -> Result<(), Cut> {
    while let Some(chunk) = source.chunk().await.map_err(|error| Cut { side, error })? {
        let length = chunk.len();
        let mut writing = pin!(sink.write(chunk));
        let written = match poll_fn(|context| Poll::Ready(writing.as_mut().poll(context))).await {
            Poll::Ready(written) => written,
            // Boxed, because most connections are never blocked.
            Poll::Pending => match select(writing, Box::pin(source.cut())).await {
                Either::Left((written, _)) => written,
                Either::Right((error, _)) => return Err(Cut { side, error }),
            },
        };
        if written.is_err() {
            return Ok(());
        }
        count.set(count.get() + length as u64);
    }
    // An error here means that the sink is gone, which the other direction reads.
    drop(sink.finish().await);
    Ok(())
}

/// Where a direction's bytes come from.
trait Source {
    /// The next bytes, `None` at the end of data. Never empty.
    async fn chunk(&mut self) -> io::Result<Option<Bytes>>;

    /// Resolves when the source is cut, without reading from it. Cancel safe.
    async fn cut(&mut self) -> io::Error;
}

/// Where a direction's bytes go.
trait Sink {
    /// Takes the whole chunk, waiting for room. An error means that nothing more will be taken.
    async fn write(&mut self, chunk: Bytes) -> io::Result<()>;

    /// Signals the end of data.
    async fn finish(&mut self) -> io::Result<()>;
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
    async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
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

    async fn cut(&mut self) -> io::Error {
        let socket: &TcpStream = self.half.as_ref();
        match socket.ready(Interest::ERROR).await {
            Ok(_) => match socket.take_error() {
                Ok(Some(error)) | Err(error) => error,
                Ok(None) => io::ErrorKind::ConnectionReset.into(),
            },
            Err(error) => error,
        }
    }
}

struct TcpSink<'a>(WriteHalf<'a>);

impl Sink for TcpSink<'_> {
    async fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        self.0.write_all(&chunk).await
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
}

impl Source for HboneSource<'_> {
    async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        self.recv.chunk().await.map_err(cut_stream)
    }

    async fn cut(&mut self) -> io::Error {
        let error = poll_fn(|context| self.send.borrow_mut().poll_closed(context)).await;
        if error.ending() == Ending::EndOfData {
            // What came before is still to be delivered; the next chunk tells.
            std::future::pending::<()>().await;
        }
        cut_stream(error)
    }
}

struct HboneSink<'a>(&'a RefCell<SendHalf>);

impl Sink for HboneSink<'_> {
    async fn write(&mut self, mut chunk: Bytes) -> io::Result<()> {
        poll_fn(|context| self.0.borrow_mut().poll_send(context, &mut chunk)).await.map_err(cut_stream)
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.0.borrow_mut().finish();
        Ok(())
    }
}

/// CONNECT_ERROR is how a proxy says that the TCP connection behind it was reset (RFC 9113, 8.5).
fn cut_stream(error: StreamError) -> io::Error {
    match error {
        StreamError::Reset(ErrorCode::CONNECT_ERROR) => io::Error::new(io::ErrorKind::ConnectionReset, error),
        other => other.into(),
    }
}

/// Closes with a TCP reset instead of a FIN.
fn reset_tcp(stream: TcpStream) {
    // Should the option fail the connection still closes, only more politely.
    drop(SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
}
