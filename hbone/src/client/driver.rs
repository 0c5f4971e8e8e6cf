//! Opening a tunnel, and the future that keeps it going.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use h2::client::Connection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};

use super::{Availability, Shared, Tunnel};
use crate::error_code::ErrorCode;
use crate::guard::{Flood, Guarded, Meter};
use crate::keepalive::{PeerIsSilent, Pinger};
use crate::settings::ClientSettings;
use crate::stream::{Piece, StreamError};
use crate::window::connection_window;

/// Stands for "not known yet" in the engine's count of streams that the peer allows. A peer cannot send
/// it: SETTINGS values have 32 bits, and the engine uses `usize::MAX` for "no limit".
const NOT_KNOWN_YET: usize = usize::MAX - 1;

/// Moves a tunnel's bytes. Has to be polled, usually as a task of its own, for anything to happen.
///
/// Completes with `Ok` when either side closed the tunnel or its transport, else with the reason. Dropping
/// it closes the transport at once; all streams end as if the connection had been lost.
#[must_use = "a tunnel only works while its driver is polled"]
pub struct Driver<IO> {
    /// Taken when the tunnel has ended, so that the transport closes then and not when the future goes.
    connection: Option<Connection<Guarded<IO>, Piece>>,
    meter: Rc<Meter>,
    pinger: Option<Pinger>,
    shared: Weak<Shared>,
    stream_window: u32,
    initial_window: u32,
    window: u32,
}

/// Why a tunnel could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The preface could not be sent or received in time.
    #[error("the tunnel's preface took too long")]
    Deadline,
    /// The peer does not speak HTTP/2.
    #[error("the peer violated the protocol: {0}")]
    Violation(ErrorCode),
    /// The byte stream under the tunnel failed or ended.
    #[error("the tunnel's transport failed")]
    Transport(#[source] io::Error),
}

/// Why a tunnel ended.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// No acknowledgement of a PING in time.
    #[error("the peer did not answer a PING in time")]
    Silent,
    /// The peer shut the tunnel down because of an error.
    #[error("the peer shut the tunnel down: {0}")]
    GoAway(ErrorCode),
    /// The peer broke the protocol, so this side shut the tunnel down.
    #[error("the peer violated the protocol: {0}")]
    Violation(ErrorCode),
    /// The peer sent too many frames that carry nothing, so this side shut the tunnel down.
    #[error("the peer sent too many frames that carry nothing: {0:?}")]
    Flood(Flood),
    /// The byte stream under the tunnel failed or ended.
    #[error("the tunnel's transport failed")]
    Transport(#[source] io::Error),
}

impl Tunnel {
    /// Sends the client's preface over `io`. The peer's is not awaited; see [`Tunnel::lease`].
    ///
    /// If the future is dropped or fails, `io` is closed.
    pub async fn handshake<IO>(
        io: IO,
        settings: &ClientSettings,
        deadline: Instant,
    ) -> Result<(Tunnel, Driver<IO>), HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let meter = Rc::new(Meter::new());
        let handshake = engine_settings(settings).handshake::<_, Piece>(Guarded::client(io, &meter));
        let (sender, mut connection) =
            timeout_at(deadline, handshake).await.map_err(|_| HandshakeError::Deadline)??;
        let shared = Rc::new(Shared::new(sender, settings.max_streams));
        let driver = Driver {
            pinger: connection.ping_pong().map(|pings| Pinger::new(settings.keep_alive, pings)),
            connection: Some(connection),
            meter,
            shared: Rc::downgrade(&shared),
            stream_window: settings.stream_window,
            initial_window: settings.connection_window,
            window: settings.connection_window,
        };
        Ok((Tunnel(shared), driver))
    }
}

fn engine_settings(settings: &ClientSettings) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.max_frame_size)
        .max_header_list_size(settings.max_header_list_size)
        .max_send_buffer_size(settings.send_buffer)
        .initial_max_send_streams(NOT_KNOWN_YET);
    builder
}

impl<IO> Driver<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        let Some(connection) = &mut self.connection else {
            return Poll::Ready(Ok(()));
        };
        if let Some(pinger) = &mut self.pinger
            && let Poll::Ready(PeerIsSilent) = pinger.poll_silent(cx)
        {
            return Poll::Ready(Err(TunnelError::Silent));
        }
        if let Some(shared) = self.shared.upgrade() {
            let window = connection_window(self.initial_window, self.stream_window, shared.leases.get());
            if window != self.window {
                self.window = window;
                connection.set_target_window_size(window);
            }
        }
        self.meter.begin_turn();
        let outcome = Pin::new(connection).poll(cx);
        if let Some(shared) = self.shared.upgrade() {
            shared.learn();
        }
        // The engine's client knows no abrupt shutdown: such a peer is told by the end of the transport.
        match self.meter.flood() {
            Some(flood) => Poll::Ready(Err(TunnelError::Flood(flood))),
            None => outcome.map_err(TunnelError::from),
        }
    }
}

impl Shared {
    /// Takes over what the peer has said since the last time: its limit, GOAWAY.
    fn learn(&self) {
        let mut sender = self.sender.borrow_mut();
        let allowed = sender.current_max_send_streams();
        let limit = (allowed != NOT_KNOWN_YET).then_some(allowed);
        let limit_changed = self.peer_max_streams.replace(limit) != limit;
        // Without a queued request this only asks whether another could be sent; it never waits.
        let refuses = sender.poll_ready(&mut Context::from_waker(Waker::noop())).map(|ready| ready.is_err());
        drop(sender);
        if refuses == Poll::Ready(true) && self.availability.get() == Availability::Open {
            self.retire();
        } else if limit_changed {
            self.notify();
        }
    }
}

impl<IO> Future for Driver<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    type Output = Result<(), TunnelError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = self.drive(cx);
        if outcome.is_ready() {
            self.end();
        }
        outcome
    }
}

impl<IO> Driver<IO> {
    fn end(&mut self) {
        self.connection = None;
        if let Some(shared) = self.shared.upgrade() {
            shared.end();
        }
    }
}

impl<IO> Drop for Driver<IO> {
    fn drop(&mut self) {
        self.end();
    }
}

impl<IO> fmt::Debug for Driver<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("window", &self.window).finish_non_exhaustive()
    }
}

impl From<h2::Error> for HandshakeError {
    fn from(error: h2::Error) -> Self {
        match error.reason() {
            Some(code) => HandshakeError::Violation(code.into()),
            None => HandshakeError::Transport(
                error.into_io().unwrap_or_else(|| io::ErrorKind::InvalidInput.into()),
            ),
        }
    }
}

impl From<h2::Error> for TunnelError {
    fn from(error: h2::Error) -> Self {
        match StreamError::from(error) {
            StreamError::Reset(code) | StreamError::GoAway(code) => TunnelError::GoAway(code),
            StreamError::Violation(code) => TunnelError::Violation(code),
            StreamError::Transport(error) => TunnelError::Transport(error),
            StreamError::Finished => TunnelError::Transport(io::ErrorKind::NotConnected.into()),
        }
    }
}
