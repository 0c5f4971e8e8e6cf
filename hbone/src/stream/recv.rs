//! From the peer: DATA payloads as they come.

use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::{Ending, Place, StreamError};

/// The receiving half of a stream.
///
/// Dropping it while the peer still sends makes the peer stop after one window; the connection's window
/// is not affected.
pub struct RecvHalf {
    engine: h2::RecvStream,
    /// Length of the chunk that was handed out last, still to be credited to the peer.
    uncredited: usize,
    ended: bool,
    _place: Rc<Place>,
}

impl RecvHalf {
    pub(super) fn new(engine: h2::RecvStream, place: Rc<Place>) -> Self {
        RecvHalf { engine, uncredited: 0, ended: false, _place: place }
    }

    /// The payload of the next DATA frame, not copied and not empty; `None` after the peer's last one,
    /// whether it said so by END_STREAM or by a reset with NO_ERROR or CANCEL.
    ///
    /// Asking says that the previous chunk has been dealt with: its window credit goes back to the peer.
    /// Bytes that came before an error are delivered before the error is. Dropping the future loses
    /// nothing.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, StreamError> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// The same for callers that poll.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        self.return_credit();
        while !self.ended {
            match ready!(self.engine.poll_data(cx)) {
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) => {
                    self.uncredited = chunk.len();
                    return Poll::Ready(Ok(Some(chunk)));
                }
                Some(Err(error)) => {
                    self.ended = true;
                    let error = StreamError::from(error);
                    if error.ending() != Ending::EndOfData {
                        return Poll::Ready(Err(error));
                    }
                }
                None => self.ended = true,
            }
        }
        Poll::Ready(Ok(None))
    }

    fn return_credit(&mut self) {
        if self.uncredited != 0 {
            // Fails only if the stream is gone, and its credit with it.
            let _ = self.engine.flow_control().release_capacity(self.uncredited);
            self.uncredited = 0;
        }
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        self.return_credit();
    }
}

impl fmt::Debug for RecvHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvHalf").field("stream", &self.engine.stream_id().as_u32()).finish_non_exhaustive()
    }
}
