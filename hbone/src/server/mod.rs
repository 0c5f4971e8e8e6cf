//! The accepting side: one tunnel from its preface to its end.
//!
//! ```text
//!   handshake -- accept* ----------------------------> None: closed in order
//!                 |  \-- drain: GOAWAY(2^31-1), PING,
//!                 |       then GOAWAY(last stream) ---> None, when the last stream has ended
//!                 \----- abort: GOAWAY, all streams end -> None
//! ```

mod incoming;

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};

use crate::client::{HandshakeError, TunnelError};
use crate::error_code::ErrorCode;
use crate::guard::{Guarded, Meter};
use crate::keepalive::{PeerIsSilent, Pinger};
use crate::settings::ServerSettings;
use crate::stream::Piece;
use crate::window::connection_window;

pub use incoming::{IncomingConnect, Refusal};

/// Why [`Server::accept`] ended other than in order.
pub type AcceptError = TunnelError;

/// Streams that ended for the peer may still occupy their handlers here. A peer that resets faster than
/// handlers can end is refused at this many times the streams that it may have open.
const MOST_HANDLERS: usize = 2;

/// An accepted tunnel. Dropping it closes the transport; all streams end as if the connection had been
/// lost.
pub struct Server<IO> {
    connection: h2::server::Connection<Guarded<IO>, Piece>,
    meter: Rc<Meter>,
    pinger: Option<Pinger>,
    streams: Rc<Cell<usize>>,
    most_streams: usize,
    stream_window: u32,
    initial_window: u32,
    window: u32,
    ended: bool,
}

impl<IO> Server<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    /// Sends our SETTINGS over `io` and waits for the client's preface (RFC 9113 §3.4).
    ///
    /// If the future is dropped or fails, `io` is closed.
    pub async fn handshake(
        io: IO,
        settings: &ServerSettings,
        deadline: Instant,
    ) -> Result<Self, HandshakeError> {
        let meter = Rc::new(Meter::new());
        let handshake = engine_settings(settings).handshake::<_, Piece>(Guarded::server(io, &meter));
        let mut connection =
            timeout_at(deadline, handshake).await.map_err(|_| HandshakeError::Deadline)??;
        Ok(Server {
            pinger: connection.ping_pong().map(|pings| Pinger::new(settings.keep_alive, pings)),
            connection,
            meter,
            streams: Rc::new(Cell::new(0)),
            most_streams: MOST_HANDLERS * settings.max_streams as usize,
            stream_window: settings.stream_window,
            initial_window: settings.connection_window,
            window: settings.connection_window,
            ended: false,
        })
    }

    /// The next request; `None` once the tunnel has ended, after at most one error.
    ///
    /// This also moves the bytes of all streams, so it has to be called again and again for as long as
    /// the tunnel lives: answer requests in tasks of their own. Dropping the future loses nothing.
    pub async fn accept(&mut self) -> Option<Result<IncomingConnect, AcceptError>> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Begins a graceful end (RFC 9113 §6.8): tells the client to open no more streams, answers those
    /// that are under way, and ends the tunnel after its last stream. Keep calling
    /// [`accept`](Server::accept), which goes on to give requests that the client sent before it knew.
    pub fn drain(&mut self) {
        self.connection.graceful_shutdown();
    }

    /// Ends the tunnel and all its streams with GOAWAY(NO_ERROR). Call [`accept`](Server::accept) until
    /// it gives `None`, within a time limit, to have the frame sent.
    pub fn abort(&mut self) {
        self.connection.abrupt_shutdown(ErrorCode::NO_ERROR.into());
    }

    /// Streams that exist: requests not answered yet, and connections of which a half is left.
    pub fn streams(&self) -> usize {
        self.streams.get()
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<IncomingConnect, AcceptError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(pinger) = &mut self.pinger
            && let Poll::Ready(PeerIsSilent) = pinger.poll_silent(cx)
        {
            return self.give_up(cx, ErrorCode::NO_ERROR, TunnelError::Silent);
        }
        self.meter.begin_turn();
        loop {
            self.fit_window();
            let accepted = self.connection.poll_accept(cx);
            if let Some(flood) = self.meter.flood() {
                return self.give_up(cx, ErrorCode::ENHANCE_YOUR_CALM, TunnelError::Flood(flood));
            }
            match ready!(accepted) {
                Some(Ok((_, mut respond))) if self.streams.get() >= self.most_streams => {
                    respond.send_reset(ErrorCode::REFUSED_STREAM.into());
                }
                Some(Ok((request, respond))) => {
                    self.meter.served();
                    let live = LiveStream::new(&self.streams);
                    return Poll::Ready(Some(Ok(IncomingConnect::new(request, respond, live))));
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => {
                    self.ended = true;
                    return Poll::Ready(None);
                }
            }
        }
    }

    /// Ends the tunnel because of its peer.
    fn give_up(
        &mut self,
        cx: &mut Context<'_>,
        code: ErrorCode,
        error: TunnelError,
    ) -> Poll<Option<Result<IncomingConnect, AcceptError>>> {
        self.connection.abrupt_shutdown(code.into());
        // One attempt to send the GOAWAY; nobody may be there to take it.
        let _ = self.connection.poll_accept(cx);
        self.ended = true;
        Poll::Ready(Some(Err(error)))
    }

    fn fit_window(&mut self) {
        let window = connection_window(self.initial_window, self.stream_window, self.streams.get());
        if window != self.window {
            self.window = window;
            self.connection.set_target_window_size(window);
        }
    }
}

fn engine_settings(settings: &ServerSettings) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.max_frame_size)
        .max_header_list_size(settings.max_header_list_size)
        .max_send_buffer_size(settings.send_buffer)
        .max_concurrent_streams(settings.max_streams)
        // As many as may be open may also be reset at once, by either side, without the tunnel being at fault: an
        // application that closes all its connections does that. Floods of resets are for the guard.
        .max_pending_accept_reset_streams(settings.max_streams as usize)
        .max_concurrent_reset_streams(settings.max_streams as usize);
    builder
}

impl<IO> fmt::Debug for Server<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("streams", &self.streams.get())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// Counts one stream of a server for as long as it exists.
#[derive(Debug)]
pub(crate) struct LiveStream(Rc<Cell<usize>>);

impl LiveStream {
    fn new(streams: &Rc<Cell<usize>>) -> Self {
        streams.set(streams.get() + 1);
        LiveStream(streams.clone())
    }
}

impl Drop for LiveStream {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
