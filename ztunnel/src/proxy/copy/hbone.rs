//! The end of a connection that is a stream in a tunnel.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;

use bytes::Bytes;
use hbone::{Ending, ErrorCode, HboneStream, RecvHalf, SendHalf, StreamError};

use super::{End, Manner, Sink, Source, SourceCut, TunnelPeer, add};

/// A stream that is reset when it is dropped, unless it has finished.
pub(super) struct HboneEnd {
    recv: RecvHalf,
    send: RefCell<SendHalf>,
    peer: TunnelPeer,
    finished: Cell<bool>,
}

impl HboneEnd {
    pub(super) fn new(HboneStream { send, recv }: HboneStream, peer: TunnelPeer) -> Self {
        Self { recv, send: RefCell::new(send), peer, finished: Cell::new(false) }
    }

    pub(super) fn split(&mut self) -> (HboneSource<'_>, HboneSink<'_>) {
        let Self { recv, send, peer, .. } = self;
        (HboneSource { recv, send, peer: *peer, at_end: false }, HboneSink(send))
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

    async fn reset(self) {}
}

impl Drop for HboneEnd {
    fn drop(&mut self) {
        if !self.finished.get() {
            // How a proxy says that the TCP connection behind it was cut (RFC 9113, 8.5).
            self.send.get_mut().reset(ErrorCode::CONNECT_ERROR);
        }
    }
}

/// The half that is read.
pub(super) struct HboneSource<'a> {
    recv: &'a mut RecvHalf,
    /// The other half, which is the one that learns of resets. Both are polled by one task, and never held across an
    /// await.
    send: &'a RefCell<SendHalf>,
    peer: TunnelPeer,
    /// Nothing more is to be delivered.
    at_end: bool,
}

impl Source for HboneSource<'_> {
    async fn chunk(&mut self) -> Result<Option<Bytes>, SourceCut> {
        let chunk = self.recv.chunk().await.map_err(|error| cut_stream(error, self.peer))?;
        self.at_end = chunk.is_none();
        Ok(chunk)
    }

    async fn cut(&mut self) -> SourceCut {
        let error = poll_fn(|context| self.send.borrow_mut().poll_closed(context)).await;
        let cut = cut_stream(error, self.peer);
        if cut.manner == Manner::Quiet && !self.at_end {
            // What came before is still to be delivered; the next chunk tells.
            std::future::pending::<()>().await;
        }
        cut
    }
}

/// The half that is written.
pub(super) struct HboneSink<'a>(&'a RefCell<SendHalf>);

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

/// CONNECT_ERROR is how a node proxy says that the TCP connection behind it was reset (RFC 9113, 8.5); NO_ERROR and CANCEL
/// are how peers end a stream of which nothing is missing, and CONNECT_ERROR is too if they are waypoints.
fn cut_stream(error: StreamError, peer: TunnelPeer) -> SourceCut {
    let manner = match (error.ending(), &error, peer) {
        (Ending::EndOfData, ..) | (_, StreamError::Reset(ErrorCode::CONNECT_ERROR), TunnelPeer::Waypoint) => {
            Manner::Quiet
        }
        (Ending::Disconnected | Ending::Failed, ..) => Manner::Reset,
    };
    let error = match error {
        StreamError::Reset(ErrorCode::CONNECT_ERROR) => io::Error::new(io::ErrorKind::ConnectionReset, error),
        other => other.into(),
    };
    SourceCut { manner, error }
}
