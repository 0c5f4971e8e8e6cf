//! Which of a stream's DATA frames have not left yet.
//!
//! RST_STREAM discards what the engine has queued, and the engine does not say when that is nothing. It
//! does drop each payload once its last byte has been taken out to be written, so payloads are counted.
//! Nothing of this shows on the wire: an empty DATA frame as a marker would, and peers may take several
//! of those in a row for a flood.

use std::cell::Cell;
use std::io::IoSlice;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};

/// What is queued on one stream.
#[derive(Default)]
pub(super) struct Queue(Rc<Queued>);

#[derive(Default)]
struct Queued {
    pieces: Cell<usize>,
    /// Of the one who waits for the last piece.
    waiting: Cell<Option<Waker>>,
}

/// A payload given to the engine. Dropped when its last byte has been taken out to be written, after which
/// nothing can hold it back, or when the stream is reset.
pub(crate) struct Piece {
    data: Bytes,
    queued: Rc<Queued>,
}

impl Queue {
    /// Counts `data` as queued until the piece is dropped.
    pub(super) fn piece(&self, data: Bytes) -> Piece {
        self.0.pieces.set(self.0.pieces.get() + 1);
        Piece { data, queued: self.0.clone() }
    }

    /// Ready when nothing is queued. Only the last one to ask is woken.
    pub(super) fn poll_empty(&self, cx: &Context<'_>) -> Poll<()> {
        if self.0.pieces.get() == 0 {
            return Poll::Ready(());
        }
        self.0.waiting.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let pieces = self.queued.pieces.get() - 1;
        self.queued.pieces.set(pieces);
        if pieces == 0
            && let Some(waker) = self.queued.waiting.take()
        {
            waker.wake();
        }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.data.chunks_vectored(slices)
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }
}
