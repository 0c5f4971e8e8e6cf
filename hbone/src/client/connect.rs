//! One CONNECT: what is asked, what comes back.

use std::io;
use std::rc::Rc;

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};
use tokio::time::{Instant, timeout_at};

use super::{CutMark, Lease};
use crate::authority::Authority;
use crate::error_code::ErrorCode;
use crate::headers::{self, Baggage};
use crate::stream::{HboneStream, Place, StreamError};

/// A CONNECT request (RFC 9113 §8.5): `:method`, `:authority` and the headers of HBONE.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    /// Where the peer should connect to.
    pub authority: Authority,
    /// Who asks, see [`Baggage::encode`].
    pub baggage: Option<HeaderValue>,
    /// For which client, see [`headers::forwarded()`].
    pub forwarded: Option<HeaderValue>,
    /// See [`headers::TraceParent::encode`].
    pub traceparent: Option<HeaderValue>,
    /// The network that the client is in; only for a tunnel inside a tunnel.
    pub forwarded_network: Option<HeaderValue>,
}

/// A stream that the peer has accepted with `200`.
#[derive(Debug)]
pub struct Connected {
    /// The connection's bytes.
    pub stream: HboneStream,
    /// What came with the `200`.
    pub response: ConnectResponse,
    /// Whether this side has cut the stream's tunnel since.
    pub cut: CutMark,
    /// Who the tunnel's peer is, if that was [noted](super::Tunnel::name_peer).
    pub peer_name: Option<Rc<str>>,
}

/// The head of a `200` answer.
#[derive(Clone, Debug)]
pub struct ConnectResponse {
    headers: HeaderMap,
}

/// Why a CONNECT did not give a stream.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The tunnel has no slot for another stream. Nothing was sent.
    #[error("the tunnel carries as many streams as it may")]
    Full,
    /// The tunnel takes no more streams. Nothing was sent.
    #[error("the tunnel takes no more streams")]
    NotSent(#[source] StreamError),
    /// The peer answered with another status than 200.
    #[error("the peer refused the connection with status {}", .0.as_u16())]
    Refused(StatusCode),
    /// The peer reset the stream instead of answering.
    #[error("the peer reset the request: {0}")]
    Reset(ErrorCode),
    /// The peer shut the tunnel down and has not looked at the request (RFC 9113 §6.8).
    #[error("the peer shut the tunnel down before the request: {0}")]
    GoAway(ErrorCode),
    /// The peer broke the protocol.
    #[error("the peer violated the protocol: {0}")]
    Violation(ErrorCode),
    /// The byte stream under the tunnel failed or ended.
    #[error("the tunnel's transport failed")]
    Transport(#[source] io::Error),
    /// No answer in time.
    #[error("the peer did not answer in time")]
    Deadline,
    /// This side cut the tunnel; see [`CutMark`].
    #[error("the tunnel was cut")]
    Cut,
}

impl ConnectRequest {
    /// A request without optional headers.
    pub fn new(authority: Authority) -> Self {
        ConnectRequest {
            authority,
            baggage: None,
            forwarded: None,
            traceparent: None,
            forwarded_network: None,
        }
    }

    fn to_http(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = Uri::from(self.authority.to_uri_authority());
        let headers = request.headers_mut();
        for (name, value) in [
            (headers::BAGGAGE, &self.baggage),
            (headers::FORWARDED, &self.forwarded),
            (headers::TRACEPARENT, &self.traceparent),
            (headers::X_FORWARDED_NETWORK, &self.forwarded_network),
        ] {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        }
        request
    }
}

impl ConnectResponse {
    /// The workload at the far end, as the peer describes it.
    pub fn baggage(&self) -> Option<Baggage<'_>> {
        Baggage::from_headers(&self.headers)
    }

    /// All headers of the answer.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }
}

impl ConnectError {
    /// Whether the peer certainly has not acted on the request, so that it may be sent again on
    /// another tunnel (RFC 9113 §8.7).
    pub fn is_safe_to_retry(&self) -> bool {
        match self {
            ConnectError::Full | ConnectError::NotSent(_) | ConnectError::GoAway(_) => true,
            ConnectError::Reset(code) => *code == ErrorCode::REFUSED_STREAM,
            ConnectError::Refused(_)
            | ConnectError::Violation(_)
            | ConnectError::Transport(_)
            | ConnectError::Deadline
            | ConnectError::Cut => false,
        }
    }
}

impl From<StreamError> for ConnectError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Reset(code) => ConnectError::Reset(code),
            StreamError::GoAway(code) => ConnectError::GoAway(code),
            StreamError::Violation(code) => ConnectError::Violation(code),
            StreamError::Transport(error) => ConnectError::Transport(error),
            StreamError::Finished => ConnectError::NotSent(error),
        }
    }
}

impl Lease {
    /// Sends the CONNECT and waits for the answer until `deadline`.
    ///
    /// A stream that fails, runs into the deadline, or whose future is dropped is reset with CANCEL and
    /// gives its slot back. A tunnel whose peer answers REFUSED_STREAM is retired: the peer has less
    /// room than it said.
    pub async fn connect(
        self,
        request: &ConnectRequest,
        deadline: Instant,
    ) -> Result<Connected, ConnectError> {
        let cut = self.0.cut.clone();
        // Why this side cut the tunnel goes before what that looked like from inside.
        self.open(request, deadline)
            .await
            .map_err(|error| if cut.is_set() { ConnectError::Cut } else { error })
    }

    async fn open(self, request: &ConnectRequest, deadline: Instant) -> Result<Connected, ConnectError> {
        // A clone, because the engine ties a queued request to the handle that queued it.
        let mut sender = self.0.sender.borrow().clone();
        let (response, send) = sender
            .send_request(request.to_http(), false)
            .map_err(|error| ConnectError::NotSent(error.into()))?;
        drop(sender);
        let (head, recv) = match timeout_at(deadline, response).await {
            Ok(Ok(response)) => response.into_parts(),
            Ok(Err(error)) => {
                let error = ConnectError::from(StreamError::from(error));
                if matches!(error, ConnectError::Reset(ErrorCode::REFUSED_STREAM)) {
                    self.0.retire();
                }
                return Err(error);
            }
            Err(_) => return Err(ConnectError::Deadline),
        };
        if head.status != StatusCode::OK {
            return Err(ConnectError::Refused(head.status));
        }
        Ok(Connected {
            cut: self.0.cut.clone(),
            peer_name: self.0.peer_name.get().cloned(),
            stream: HboneStream::new(send, recv, Place::Dialled { _lease: self }),
            response: ConnectResponse { headers: head.headers },
        })
    }
}
