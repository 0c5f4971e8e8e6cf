//! One call of `DeltaAggregatedResources`: requests out, messages in, and how it ended.
//!
//! gRPC over HTTP/2 ("gRPC over HTTP2", length-prefixed messages). It is done here rather than by tonic's `Streaming`
//! because that keeps one buffer for the life of a stream: after a first push of 200 MiB it would hold 200 MiB until the
//! stream ends. Here a message has a buffer of its own, which goes when the message does.

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use tokio::time::{Instant, timeout_at};
use tonic::client::GrpcService;
use tonic::codegen::Body as HttpBody;
use tonic::{Code, Status};

use crate::backoff::Answered;
use crate::{BoxError, Connection, Termination};

const PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// Requests that wait for the transport at once. Beyond it, no response is read and no name is taken up.
const MAX_QUEUED: usize = 100;

/// How a call ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("the control plane cannot be reached")]
    Connect(#[source] BoxError),
    #[error("no connection to the control plane within {0:?}")]
    ConnectDeadline(Duration),
    #[error("the call to the control plane failed")]
    Call(#[source] BoxError),
    #[error("the control plane answered with HTTP status {0}")]
    Http(StatusCode),
    #[error("the control plane ended the stream with {code:?}: {message}")]
    Status { code: Code, message: String },
    #[error("the control plane closed the stream")]
    Complete,
    #[error("the connection to the control plane broke")]
    Broken(#[source] BoxError),
    #[error("the stream was cut without a status")]
    Cut,
    #[error("the control plane has not gone on for {0:?}")]
    Stalled(Duration),
    #[error("a message of {length} bytes is larger than the {limit} allowed")]
    TooLarge { length: usize, limit: usize },
    #[error("a message is compressed, which was not offered")]
    Compressed,
    #[error("{0}")]
    Unreadable(#[source] crate::session::Unreadable),
}

impl End {
    /// What it counts as, for a stream on which responses came.
    pub(crate) fn termination(&self) -> Termination {
        match self {
            Self::Connect(_) | Self::ConnectDeadline(_) | Self::Call(_) | Self::Http(_) => {
                Termination::ConnectionError
            }
            Self::Complete => Termination::Complete,
            Self::Broken(_) | Self::Cut | Self::Stalled(_) => Termination::Reconnect,
            Self::Status { code: Code::Unknown | Code::Cancelled | Code::DeadlineExceeded, .. } => {
                Termination::Reconnect
            }
            // What gRPC servers write themselves into this when they go away.
            Self::Status { code: Code::Unavailable, message }
                if message.contains("transport is closing") || message.contains("received prior goaway") =>
            {
                Termination::Reconnect
            }
            Self::Status { .. } | Self::TooLarge { .. } | Self::Compressed | Self::Unreadable(_) => {
                Termination::Error
            }
        }
    }

    /// Whether the control plane does not accept our token.
    pub(crate) fn is_refusal(&self) -> bool {
        let unauthorized = matches!(self, Self::Http(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN));
        unauthorized
            || matches!(self, Self::Status { code: Code::Unauthenticated | Code::PermissionDenied, .. })
    }
}

/// A call that has been made.
pub(crate) struct Call<S: GrpcService<tonic::body::Body>> {
    pub(crate) requests: Requests,
    pub(crate) messages: Messages<S::Future, S::ResponseBody>,
    /// Closing it might end the connection.
    _service: S,
}

/// The limits of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Of one message, in bytes.
    pub(crate) message: usize,
    /// For the peer to go on, whenever it has to.
    pub(crate) stall: Duration,
}

impl<S> Call<S>
where
    S: GrpcService<tonic::body::Body, ResponseBody: HttpBody<Data = Bytes, Error: Into<BoxError>>>,
{
    /// Calls. Nothing is awaited but the service's readiness: the server sends no headers before the first request.
    pub(crate) async fn start(connection: Connection<S>, limits: Limits) -> Result<Self, End> {
        let Connection { mut service, metadata } = connection;
        poll_fn(|cx| service.poll_ready(cx)).await.map_err(|error| End::Call(error.into()))?;
        // Two, so that the transport has one to go on with while it writes.
        let (sender, body) = Channel::<Bytes>::new(2);
        let mut request = http::Request::new(tonic::body::Body::new(body));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static(PATH);
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = metadata.into_headers();
        request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let response = Box::pin(service.call(request));
        Ok(Self {
            requests: Requests { sender, queue: Vec::new().into(), deadline: Instant::now(), limits },
            messages: Messages {
                state: Receiving::Head(response),
                assembly: Assembly::new(limits.message),
                answered: Answered::No,
                deadline: Instant::now() + limits.stall,
                limits,
            },
            _service: service,
        })
    }

    /// Sends what is queued and says that nothing more will come; then waits until the server ends the stream too. The
    /// caller sets the deadline.
    pub(crate) async fn finish(mut self) {
        while !self.requests.queue.is_empty() {
            if self.requests.send().await.is_err() {
                return;
            }
        }
        drop(self.requests);
        while self.messages.next().await.is_ok() {}
    }
}

/// The requests on their way to the transport.
pub(crate) struct Requests {
    sender: Sender<Bytes>,
    queue: std::collections::VecDeque<Bytes>,
    /// When the transport must have taken the first of the queue.
    deadline: Instant,
    limits: Limits,
}

impl Requests {
    pub(crate) fn push(&mut self, request: &[u8]) {
        if self.queue.is_empty() {
            self.deadline = Instant::now() + self.limits.stall;
        }
        self.queue.push_back(framed(request));
    }

    pub(crate) fn has_room(&self) -> bool {
        self.queue.len() < MAX_QUEUED
    }

    /// Gives the next request to the transport, and completes with that; never if there is none. Dropping the future
    /// loses nothing.
    pub(crate) async fn send(&mut self) -> Result<(), End> {
        let Some(request) = self.queue.front().cloned() else { return pending().await };
        match timeout_at(self.deadline, self.sender.send_data(request)).await {
            Ok(Ok(())) => {
                self.queue.pop_front();
                self.deadline = Instant::now() + self.limits.stall;
                Ok(())
            }
            // The transport takes no more. Why, the other direction knows, and if it does not say, its end will come.
            Ok(Err(_)) => timeout_at(self.deadline, pending()).await.unwrap_or(Err(End::Cut)),
            Err(_) => Err(End::Stalled(self.limits.stall)),
        }
    }
}

/// A message with its prefix.
fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(Assembly::PREFIX + message.len());
    framed.extend_from_slice(&[0]);
    // Our requests have a limit far below 4 GiB.
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(message);
    framed.freeze()
}

/// The messages as they come.
pub(crate) struct Messages<F, B> {
    state: Receiving<F, B>,
    assembly: Assembly,
    /// Whether a message has come. Headers are no answer.
    answered: Answered,
    /// When the server must have gone on, if it is its turn.
    deadline: Instant,
    limits: Limits,
}

enum Receiving<F, B> {
    Head(Pin<Box<F>>),
    Body(Pin<Box<B>>),
}

impl<F, B, E> Messages<F, B>
where
    F: Future<Output = Result<http::Response<B>, E>>,
    B: HttpBody<Data = Bytes, Error: Into<BoxError>>,
    E: Into<BoxError>,
{
    /// The next message. Waits without a limit between messages, and for as long as a stall may last before the first
    /// and within one. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Bytes, End> {
        loop {
            if let Some(message) = self.assembly.message()? {
                self.answered = Answered::Yes;
                return Ok(message);
            }
            if self.answered == Answered::Yes && self.assembly.is_between() {
                self.receive().await?;
            } else {
                let stalled = End::Stalled(self.limits.stall);
                timeout_at(self.deadline, self.receive()).await.map_err(|_| stalled)??;
            }
            // Headers and empty frames do not go on with anything.
            if !self.assembly.piece.is_empty() {
                self.deadline = Instant::now() + self.limits.stall;
            }
        }
    }

    async fn receive(&mut self) -> Result<(), End> {
        match &mut self.state {
            Receiving::Head(response) => {
                let response = response.await.map_err(|error| End::Call(error.into()))?;
                let (head, body) = response.into_parts();
                accept_head(&head)?;
                self.state = Receiving::Body(Box::pin(body));
            }
            Receiving::Body(body) => match body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.assembly.push(data),
                    Err(frame) => return Err(end_of(frame.trailers_ref())),
                },
                Some(Err(error)) => return Err(End::Broken(error.into())),
                None => return Err(End::Cut),
            },
        }
        Ok(())
    }
}

/// A stream that is refused has its status among the first headers ("Trailers-Only").
fn accept_head(head: &http::response::Parts) -> Result<(), End> {
    if let Some(status) = Status::from_header_map(&head.headers) {
        return Err(end_with(&status));
    }
    if head.status == StatusCode::OK { Ok(()) } else { Err(End::Http(head.status)) }
}

fn end_of(trailers: Option<&HeaderMap>) -> End {
    trailers.and_then(Status::from_header_map).as_ref().map_or(End::Cut, end_with)
}

fn end_with(status: &Status) -> End {
    match status.code() {
        Code::Ok => End::Complete,
        code => End::Status { code, message: status.message().to_owned() },
    }
}

/// Puts messages together from pieces.
struct Assembly {
    limit: usize,
    prefix: [u8; Assembly::PREFIX],
    prefix_bytes: usize,
    /// The message whose prefix is complete, and how long it will be.
    message: Option<(BytesMut, usize)>,
    piece: Bytes,
}

impl Assembly {
    /// A flag for compression, and four bytes of length.
    const PREFIX: usize = 5;

    fn new(limit: usize) -> Self {
        Self { limit, prefix: [0; Self::PREFIX], prefix_bytes: 0, message: None, piece: Bytes::new() }
    }

    /// Adds what came next. The previous piece has been used up: `message` has returned `None`.
    fn push(&mut self, piece: Bytes) {
        self.piece = piece;
    }

    fn is_between(&self) -> bool {
        self.prefix_bytes == 0 && self.message.is_none()
    }

    fn message(&mut self) -> Result<Option<Bytes>, End> {
        if self.message.is_none() {
            if !self.complete_prefix() {
                return Ok(None);
            }
            self.message = Some((BytesMut::new(), self.length()?));
        }
        let Some((buffer, length)) = &mut self.message else { return Ok(None) };
        // All at once: growing would copy, and need both copies. Memory that nothing was written to costs nothing.
        buffer.reserve(*length - buffer.len());
        let taken = self.piece.split_to(self.piece.len().min(*length - buffer.len()));
        buffer.extend_from_slice(&taken);
        if buffer.len() < *length {
            return Ok(None);
        }
        self.prefix_bytes = 0;
        Ok(self.message.take().map(|(buffer, _)| buffer.freeze()))
    }

    fn complete_prefix(&mut self) -> bool {
        let missing = Self::PREFIX - self.prefix_bytes;
        let taken = self.piece.len().min(missing);
        self.piece.copy_to_slice(&mut self.prefix[self.prefix_bytes..][..taken]);
        self.prefix_bytes += taken;
        self.prefix_bytes == Self::PREFIX
    }

    fn length(&self) -> Result<usize, End> {
        let [compressed, length @ ..] = self.prefix;
        if compressed != 0 {
            return Err(End::Compressed);
        }
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > self.limit { Err(End::TooLarge { length, limit: self.limit }) } else { Ok(length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_put_together_however_they_were_cut() {
        let messages = [b"".as_slice(), b"first", b"", b"the second"];
        let wire: Vec<u8> = messages.iter().flat_map(|message| framed(message)).collect();
        for size in 1..=wire.len() {
            let mut assembly = Assembly::new(100);
            let mut received = Vec::new();
            for piece in wire.chunks(size) {
                assembly.push(Bytes::copy_from_slice(piece));
                while let Some(message) = assembly.message().unwrap() {
                    received.push(message);
                }
            }
            assert_eq!(received, messages, "in pieces of {size}");
            assert!(assembly.is_between());
        }
    }

    #[test]
    fn a_message_beyond_the_limit_or_compressed_ends_the_stream() {
        let mut assembly = Assembly::new(10);
        assembly.push(Bytes::from_static(b"\0\0\0\0\x0b"));
        assert!(matches!(assembly.message(), Err(End::TooLarge { length: 11, limit: 10 })));
        let mut assembly = Assembly::new(10);
        assembly.push(Bytes::from_static(b"\x01\0\0\0\x01x"));
        assert!(matches!(assembly.message(), Err(End::Compressed)));
    }

    #[test]
    fn ends_count_as_what_the_reference_counts_them() {
        let status = |code, message: &str| End::Status { code, message: message.into() }.termination();
        for code in [Code::Unknown, Code::Cancelled, Code::DeadlineExceeded] {
            assert_eq!(status(code, ""), Termination::Reconnect);
        }
        assert_eq!(status(Code::Unavailable, "transport is closing"), Termination::Reconnect);
        assert_eq!(status(Code::Unavailable, "closed: received prior goaway: code"), Termination::Reconnect);
        assert_eq!(status(Code::Unavailable, "no healthy upstream"), Termination::Error);
        assert_eq!(status(Code::Aborted, "transport is closing"), Termination::Error);
        assert_eq!(End::Complete.termination(), Termination::Complete);
        assert_eq!(End::Cut.termination(), Termination::Reconnect);
    }
}
