//! The end of a connection that is a TCP socket.

use std::cell::Cell;
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use redirect::socket::{bytes_in_flight, unsent_bytes};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::{sleep, timeout};

use super::{End, Sink, Source, SourceCut, add};

/// First size of a read. Most connections never show a need for more.
const FIRST_READ: usize = 1024;

/// Largest read: one system call feeds sixteen TLS records.
const LARGEST_READ: usize = 256 * 1024;

/// How long what is under way to a peer may take to arrive before the peer is reset.
const IN_FLIGHT: Duration = Duration::from_millis(500);

/// Between two looks at whether the kernel has delivered everything.
const UNSENT_POLL: Duration = Duration::from_millis(2);

/// A socket that is reset when it is dropped, unless it has finished.
pub(super) struct TcpEnd {
    pub(super) stream: TcpStream,
    finished: Cell<bool>,
}

impl TcpEnd {
    pub(super) fn new(stream: TcpStream) -> Self {
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

    /// A peer takes a reset only if it is what comes next. One that overtakes data on its way, or that follows data that
    /// was lost, is questioned (RFC 5961, 3.2), and nobody would answer: the socket is gone by then, and the kernel does
    /// not speak in the name of another host. So what is under way comes first, if that does not take long.
    async fn reset(self) {
        let arrived = async {
            while bytes_in_flight(&self.stream).is_ok_and(|bytes| bytes > 0) {
                sleep(UNSENT_POLL).await;
            }
        };
        drop(timeout(IN_FLIGHT, arrived).await);
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

/// The half that is read.
pub(super) struct TcpSource<'a> {
    half: ReadHalf<'a>,
    /// Size of the next read: grows while reads fill it, shrinks when they leave it nearly empty.
    capacity: usize,
}

impl<'a> TcpSource<'a> {
    pub(super) fn new(half: ReadHalf<'a>) -> Self {
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

/// The half that is written.
pub(super) struct TcpSink<'a>(pub(super) WriteHalf<'a>);

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
