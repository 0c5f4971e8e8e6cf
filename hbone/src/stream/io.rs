//! A stream as `AsyncRead + AsyncWrite`, for protocols that want one (TLS inside a tunnel).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::HboneStream;
use super::send::MAX_PIECE;

/// A byte stream over a CONNECT stream. Made by [`HboneStream::into_io`].
///
/// Reading and writing copy, unlike the halves. Shutdown is END_STREAM; dropping before it is a reset
/// with CANCEL. Use it from one task at a time, as the `Async*` traits require for each direction.
#[derive(Debug)]
pub struct HboneIo {
    stream: HboneStream,
    /// What is left of the chunk being read.
    unread: Bytes,
}

impl HboneIo {
    pub(super) fn new(stream: HboneStream) -> Self {
        HboneIo { stream, unread: Bytes::new() }
    }
}

impl AsyncRead for HboneIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.unread.is_empty() {
            match ready!(this.stream.recv.poll_chunk(cx))? {
                Some(chunk) => this.unread = chunk,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = this.unread.len().min(buf.remaining());
        buf.put_slice(&this.unread[..length]);
        this.unread.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HboneIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    /// Gathers the slices into one DATA frame.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.stream.send.poll_ready(cx))?;
        let length = slices.iter().map(|slice| slice.len()).sum::<usize>().min(MAX_PIECE);
        let mut piece = BytesMut::with_capacity(length);
        for slice in slices {
            piece.extend_from_slice(&slice[..slice.len().min(length - piece.len())]);
        }
        if length != 0 {
            this.stream.send.push(piece.freeze())?;
        }
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing to do: what is queued is sent without being asked.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream.send.finish();
        Poll::Ready(Ok(()))
    }
}
