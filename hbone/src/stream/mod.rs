//! One tunnelled connection: the bytes of a CONNECT stream in both directions.
//!
//! The halves are independent, so that each direction of a connection can be copied, finished and fail
//! on its own:
//!
//! ```text
//!   SendHalf: send* -- finish ------------> END_STREAM
//!                  \-- reset(code), drop -> RST_STREAM, which ends both directions at once;
//!                                          after `flushed`, nothing sent is lost by it
//!   RecvHalf: chunk* -> None                after END_STREAM, or a reset that means "no more"
//!                   \-> StreamError         see StreamError::ending
//! ```
//!
//! Flow control (RFC 9113 §5.2) is the caller's pace: a chunk's window credit goes back to the peer when
//! the next chunk is asked for, so a slow destination holds the peer back after one window, and
//! [`SendHalf::send`] waits while the peer's window or this stream's share of the send buffer is used up.

mod error;
mod io;
mod piece;
mod recv;
mod send;

use std::rc::Rc;

use crate::client::Lease;
use crate::server::LiveStream;

pub use error::{Ending, StreamError};
pub use io::HboneIo;
pub(crate) use piece::Piece;
pub use recv::RecvHalf;
pub use send::SendHalf;

/// An open stream, to be taken apart into its halves or turned into an `AsyncRead + AsyncWrite`.
///
/// Dropping it before both directions ended resets it with CANCEL.
#[derive(Debug)]
pub struct HboneStream {
    /// Towards the peer.
    pub send: SendHalf,
    /// From the peer.
    pub recv: RecvHalf,
}

impl HboneStream {
    pub(crate) fn new(send: h2::SendStream<Piece>, recv: h2::RecvStream, place: Place) -> Self {
        let place = Rc::new(place);
        HboneStream { send: SendHalf::new(send, place.clone()), recv: RecvHalf::new(recv, place) }
    }

    /// A byte stream for protocols that want one, such as TLS inside the tunnel.
    pub fn into_io(self) -> HboneIo {
        HboneIo::new(self)
    }
}

/// What a stream occupies on its tunnel until both halves are gone.
#[derive(Debug)]
pub(crate) enum Place {
    /// A slot that the dialling side has counted.
    Dialled { _lease: Lease },
    /// A stream that the accepting side has counted.
    Accepted { _live: LiveStream },
}
