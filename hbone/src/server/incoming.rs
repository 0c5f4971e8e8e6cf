//! A request that waits for its answer.

use std::fmt;
use std::future::poll_fn;

use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, request};

use super::LiveStream;
use crate::authority::{Authority, AuthorityError};
use crate::headers::{self, Baggage, TraceParent};
use crate::stream::{HboneStream, Piece, Place, StreamError};

/// A request on an accepted tunnel, usually a CONNECT. Headers are parsed when they are asked for.
///
/// Dropping it unanswered resets the stream with CANCEL.
pub struct IncomingConnect {
    head: request::Parts,
    recv: h2::RecvStream,
    respond: SendResponse<Piece>,
    live: LiveStream,
}

/// Why a request gets no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 400: not a CONNECT, or not to a destination that is served here.
    BadRequest,
    /// 401: the client may not connect to this destination.
    Unauthorized,
    /// 503: the destination is unknown or does not answer.
    ServiceUnavailable,
}

impl IncomingConnect {
    pub(super) fn new(
        request: Request<h2::RecvStream>,
        respond: SendResponse<Piece>,
        live: LiveStream,
    ) -> Self {
        let (head, recv) = request.into_parts();
        IncomingConnect { head, recv, respond, live }
    }

    /// Whether `:method` is CONNECT.
    pub fn is_connect(&self) -> bool {
        self.head.method == Method::CONNECT
    }

    /// `:method`, whatever it is.
    pub fn method(&self) -> &Method {
        &self.head.method
    }

    /// Where the client wants to go.
    pub fn authority(&self) -> Result<Authority, AuthorityError> {
        self.head.uri.authority().ok_or(AuthorityError::Missing)?.as_str().parse()
    }

    /// The workload that asks, as the peer describes it.
    pub fn baggage(&self) -> Option<Baggage<'_>> {
        Baggage::from_headers(&self.head.headers)
    }

    /// The service that the client dialled, as the peer says.
    pub fn forwarded_host(&self) -> Option<&str> {
        headers::forwarded_host(&self.head.headers)
    }

    /// The network that the client is in, as the peer says.
    pub fn forwarded_network(&self) -> Option<&str> {
        self.head.headers.get(headers::X_FORWARDED_NETWORK)?.to_str().ok()
    }

    /// The trace that the request belongs to.
    pub fn trace_parent(&self) -> Option<TraceParent> {
        TraceParent::from_headers(&self.head.headers)
    }

    /// All headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// Waits for the client to give up: to reset the stream, or to lose the tunnel. For use beside
    /// whatever has to happen before the answer. Dropping the future loses nothing.
    pub async fn abandoned(&mut self) -> StreamError {
        match poll_fn(|cx| self.respond.poll_reset(cx)).await {
            Ok(code) => StreamError::Reset(code.into()),
            Err(error) => error.into(),
        }
    }

    /// Answers `200`, describing the destination's workload if `baggage` is given.
    ///
    /// Fails if the client has given up.
    pub fn accept(mut self, baggage: Option<HeaderValue>) -> Result<HboneStream, StreamError> {
        let mut response = Response::new(());
        if let Some(baggage) = baggage {
            response.headers_mut().insert(headers::BAGGAGE, baggage);
        }
        let send = self.respond.send_response(response, false)?;
        Ok(HboneStream::new(send, self.recv, Place::Accepted { _live: self.live }))
    }

    /// Answers with the refusal's status and nothing else. A request that is still open is then reset
    /// with NO_ERROR (RFC 9113 §8.1). Does nothing if the client has given up.
    pub fn refuse(mut self, refusal: Refusal) {
        let mut response = Response::new(());
        *response.status_mut() = refusal.status();
        // The engine sends the RST_STREAM when the last handle to a half-open stream goes.
        let _ = self.respond.send_response(response, true);
    }
}

impl Refusal {
    /// The refusal's status code.
    pub fn status(self) -> StatusCode {
        match self {
            Refusal::BadRequest => StatusCode::BAD_REQUEST,
            Refusal::Unauthorized => StatusCode::UNAUTHORIZED,
            Refusal::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl fmt::Debug for IncomingConnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IncomingConnect")
            .field("method", &self.head.method)
            .field("authority", &self.head.uri.authority())
            .finish_non_exhaustive()
    }
}
