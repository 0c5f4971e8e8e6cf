//! Between a tunnel's transport and the HTTP/2 engine: ends the tunnels of peers who keep us busy with nothing.
//!
//! HTTP/2 lets a peer send frames for which it neither needs credit nor waits for an answer: PING, SETTINGS, PRIORITY,
//! WINDOW_UPDATE, RST_STREAM, requests beyond the limit, empty DATA. The engine handles each, for as long as they come. [`Guarded`]
//! reads the headers of the frames that pass (nine bytes each, RFC 9113 §4.1; payloads are skipped, never copied), and
//! charges each to a [`Meter`]. When its budget is spent, nothing more is read, and whoever drives the tunnel ends it.
//!
//! The budget is refilled by time and by useful bytes in either direction, so that a peer who has much to carry may also
//! have much to say about it. `budget.rs` has the figures.
//!
//! It also has the driver make way for others after some frames: the engine goes on for as long as there is something to
//! read, and meanwhile nobody who reads those streams gets to run.

mod budget;
mod frames;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub use budget::Flood;
pub(crate) use budget::Meter;
use frames::Scanner;

/// A client's preface before its first frame, RFC 9113 §3.4.
const PREFACE: u32 = 24;

/// A transport whose incoming frames are charged to a meter.
pub(crate) struct Guarded<IO> {
    io: IO,
    frames: Scanner,
    meter: Rc<Meter>,
}

impl<IO> Guarded<IO> {
    /// For the side that accepts.
    pub(crate) fn server(io: IO, meter: &Rc<Meter>) -> Self {
        Guarded { io, frames: Scanner::after(PREFACE), meter: meter.clone() }
    }

    /// For the side that dials.
    pub(crate) fn client(io: IO, meter: &Rc<Meter>) -> Self {
        Guarded { io, frames: Scanner::after(0), meter: meter.clone() }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guarded<IO> {
    /// Pending for good once the budget is spent: the driver looks at the meter whenever the engine waits.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.meter.flood().is_some() {
            return Poll::Pending;
        }
        if this.meter.turn_is_over() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let fresh = buf.filled().get(before..).unwrap_or_default();
        this.frames.scan(fresh, |head| this.meter.charge(head));
        // What was read is withheld from an engine that would begin to work on it.
        if this.meter.flood().is_some() {
            buf.set_filled(before);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guarded<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, bytes))?;
        this.meter.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, slices))?;
        this.meter.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
