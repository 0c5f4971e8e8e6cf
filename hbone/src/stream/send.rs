//! To the peer: bytes into DATA frames, no faster than the peer reads.

use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::piece::{Piece, Queue};
use super::{Place, StreamError};
use crate::error_code::ErrorCode;

/// Longest payload given to the engine at once, hence the longest DATA frame sent. A receiver has to
/// collect a frame before it can pass it on, so longer ones cost memory there; no size from 16 to 256 KiB
/// was measurably better on CPU.
pub(super) const MAX_PIECE: usize = 64 * 1024;

/// The sending half of a stream.
///
/// Dropping it before [`finish`](SendHalf::finish) resets the stream with CANCEL, unless the peer has
/// already reset it.
pub struct SendHalf {
    engine: h2::SendStream<Piece>,
    queue: Queue,
    /// Nothing more can be sent: END_STREAM or RST_STREAM is on its way.
    finished: bool,
    _place: Rc<Place>,
}

impl SendHalf {
    pub(super) fn new(engine: h2::SendStream<Piece>, place: Rc<Place>) -> Self {
        SendHalf { engine, queue: Queue::default(), finished: false, _place: place }
    }

    /// Queues `data` to be sent, as soon as what is queued already is short enough.
    ///
    /// At most the send buffer of the settings plus 64 KiB are queued per stream. Fails as soon as the
    /// peer resets the stream or the tunnel ends, also while it waits. If the future is dropped, a
    /// prefix of `data` has been queued: all or nothing when it is at most 64 KiB.
    pub async fn send(&mut self, mut data: Bytes) -> Result<(), StreamError> {
        poll_fn(|cx| self.poll_send(cx, &mut data)).await
    }

    /// The same for callers that poll: takes from the front of `data` what could be queued, and is ready when nothing
    /// is left.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<Result<(), StreamError>> {
        while !data.is_empty() {
            ready!(self.poll_ready(cx))?;
            self.push(data.split_to(data.len().min(MAX_PIECE)))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends this direction with END_STREAM; what is queued is still sent, and the other direction goes
    /// on. Does nothing if the stream is over.
    pub fn finish(&mut self) {
        if !self.finished {
            self.finished = true;
            // Fails only if the stream is over.
            let _ = self.engine.send_data(self.queue.piece(Bytes::new()), true);
        }
    }

    /// Waits until all that was sent on this half, END_STREAM included, has left the stream's queue and is
    /// on its way into the tunnel's transport. So a [`reset`](SendHalf::reset) that follows discards nothing.
    ///
    /// Takes as long as the peer keeps its window closed or its transport full: give it a deadline. Fails
    /// if the stream is reset or the tunnel ends, before or after. Dropping the future loses nothing, and
    /// the stream can still be used.
    pub async fn flushed(&mut self) -> Result<(), StreamError> {
        poll_fn(|cx| self.poll_flushed(cx)).await
    }

    /// The same for callers that poll. Shares one waker with [`poll_send`](SendHalf::poll_send) and
    /// [`poll_closed`](SendHalf::poll_closed): poll all of them from the same task.
    pub fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        // First, because a reset empties the queue as well.
        if let Poll::Ready(error) = self.poll_closed(cx) {
            return Poll::Ready(Err(error));
        }
        self.queue.poll_empty(cx).map(Ok)
    }

    /// Ends both directions with RST_STREAM; what is queued is discarded, see
    /// [`flushed`](SendHalf::flushed). Does nothing if the stream is over.
    pub fn reset(&mut self, code: ErrorCode) {
        self.finished = true;
        self.engine.send_reset(code.into());
    }

    /// Waits for the stream to end before its time: by the peer's RST_STREAM or with the tunnel.
    ///
    /// Never completes for a stream that ends by END_STREAM in both directions. Dropping the future
    /// loses nothing.
    pub async fn closed(&mut self) -> StreamError {
        poll_fn(|cx| self.poll_closed(cx)).await
    }

    /// The same for callers that poll. Shares one waker with [`poll_send`](SendHalf::poll_send): poll
    /// both from the same task.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.engine.poll_reset(cx).map(|outcome| match outcome {
            Ok(code) => StreamError::Reset(code.into()),
            Err(error) => error.into(),
        })
    }

    /// Ready when `push` may be called once more, or when the stream is over.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if self.finished {
            return Poll::Ready(Err(StreamError::Finished));
        }
        // One byte of capacity beyond what is queued means that the queue has room and the window is
        // open; the engine then asks for the rest itself and cuts frames to the window.
        self.engine.reserve_capacity(1);
        if self.engine.capacity() > 0 {
            return Poll::Ready(Ok(()));
        }
        match ready!(self.engine.poll_capacity(cx)) {
            Some(Ok(_)) => Poll::Ready(Ok(())),
            Some(Err(error)) => Poll::Ready(Err(error.into())),
            None => Poll::Ready(Err(self.cause(cx))),
        }
    }

    /// Queues one piece of at most `MAX_PIECE` bytes.
    pub(super) fn push(&mut self, piece: Bytes) -> Result<(), StreamError> {
        self.engine
            .send_data(self.queue.piece(piece), false)
            .map_err(|_| self.cause(&mut Context::from_waker(std::task::Waker::noop())))
    }

    /// Why the engine takes no more data.
    fn cause(&mut self, cx: &mut Context<'_>) -> StreamError {
        match self.poll_closed(cx) {
            Poll::Ready(error) => error,
            Poll::Pending => StreamError::Finished,
        }
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if !self.finished {
            self.reset(ErrorCode::CANCEL);
        }
    }
}

impl fmt::Debug for SendHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendHalf")
            .field("stream", &self.engine.stream_id().as_u32())
            .field("finished", &self.finished)
            .finish_non_exhaustive()
    }
}
