//! Fewer system calls under TLS.
//!
//! The TLS library asks the kernel for four kilobytes at a time, a quarter of a record. [`ReadAhead`] asks for as much
//! as there is, up to 256 KiB, and serves the library from that. The buffer is borrowed from the thread while it holds
//! something, so an idle tunnel costs nothing and a worker's traffic shares the few buffers that stay in its cache.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// One system call's worth: sixteen full TLS records.
const BUFFER: usize = 256 * 1024;

/// Buffers that a thread keeps for the next one who needs one.
const KEPT: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A TCP connection that is read in large pieces.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    stream: TcpStream,
    /// There while something in it has not been handed out.
    ahead: Option<Ahead>,
}

#[derive(Debug)]
struct Ahead {
    buffer: Box<[u8]>,
    /// What has not been handed out.
    unread: std::ops::Range<usize>,
}

impl ReadAhead {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, ahead: None }
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_none() {
            if out.remaining() >= BUFFER {
                return Pin::new(&mut this.stream).poll_read(context, out);
            }
            // Not before there is something to read: many tunnels wait, few read.
            ready!(this.stream.poll_read_ready(context))?;
            let mut buffer = take();
            let mut piece = ReadBuf::new(&mut buffer);
            let read = Pin::new(&mut this.stream).poll_read(context, &mut piece);
            let length = piece.filled().len();
            if length == 0 || !matches!(read, Poll::Ready(Ok(()))) {
                give_back(buffer);
                return read;
            }
            this.ahead = Some(Ahead { buffer, unread: 0..length });
        }
        if let Some(ahead) = &mut this.ahead {
            let piece = &ahead.buffer[ahead.unread.clone()];
            let length = piece.len().min(out.remaining());
            out.put_slice(&piece[..length]);
            ahead.unread.start += length;
        }
        if let Some(ahead) = this.ahead.take_if(|ahead| ahead.unread.is_empty()) {
            give_back(ahead.buffer);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

fn take() -> Box<[u8]> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER].into())
}

fn give_back(buffer: Box<[u8]>) {
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < KEPT {
            spare.push(buffer);
        }
    });
}
