//! A control plane over real HTTP/2, scripted step by step, and a connector to it. Pipes take the place of the network.

#![allow(dead_code, reason = "each test uses its part")]

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};
use tonic::body::Body;
use xds_client::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use xds_client::prost::Message;
use xds_client::{BoxError, Connect, Connection};

/// Bounds every wait for an event. On the paused clock of these tests it passes as soon as nothing can happen any more.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What becomes of the next attempt to connect.
pub(crate) enum Attempt {
    Succeed,
    Fail,
    Hang,
}

/// Connects by pipes.
pub(crate) struct Pipes {
    servers: mpsc::UnboundedSender<DuplexStream>,
    attempts: std::sync::Mutex<std::collections::VecDeque<Attempt>>,
}

/// Where the server's ends of the pipes come out.
pub(crate) struct Listener(mpsc::UnboundedReceiver<DuplexStream>);

/// The first attempts go as `attempts` says, all further ones succeed.
pub(crate) fn pipes<const N: usize>(attempts: [Attempt; N]) -> (Pipes, Listener) {
    let (servers, listener) = mpsc::unbounded_channel();
    (Pipes { servers, attempts: std::sync::Mutex::new(attempts.into()) }, Listener(listener))
}

impl Connect for Pipes {
    type Service = Http2;

    async fn connect(&self) -> Result<Connection<Http2>, BoxError> {
        let attempt = self.attempts.lock().unwrap().pop_front();
        match attempt.unwrap_or(Attempt::Succeed) {
            Attempt::Succeed => {}
            Attempt::Fail => return Err("refused".into()),
            Attempt::Hang => std::future::pending().await,
        }
        let (client, server) = tokio::io::duplex(1 << 16);
        self.servers.send(server)?;
        let (service, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await?;
        tokio::spawn(connection);
        let mut metadata = tonic::metadata::MetadataMap::new();
        metadata.insert("authorization", "Bearer token".parse()?);
        metadata.insert("clusterid", "Kubernetes".parse()?);
        Ok(Connection { service: Http2(service), metadata })
    }
}

/// hyper's client, completing URIs.
pub(crate) struct Http2(SendRequest<Body>);

impl tower_service::Service<Request<Body>> for Http2 {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(http::uri::Scheme::HTTP);
        parts.authority = Some(http::uri::Authority::from_static("istiod"));
        *request.uri_mut() = http::Uri::from_parts(parts).unwrap();
        Box::pin(self.0.send_request(request))
    }
}

impl Listener {
    /// The next stream, as soon as its headers are there. Nothing is answered yet.
    pub(crate) async fn stream(&mut self) -> Stream {
        bounded("a connection", async {
            let pipe = self.0.recv().await.expect("the client goes on");
            let mut connection = h2::server::handshake(pipe).await.unwrap();
            let (request, respond) = connection.accept().await.unwrap().unwrap();
            let (head, requests) = request.into_parts();
            let (close, mut closing) = oneshot::channel();
            tokio::spawn(async move {
                let how = tokio::select! {
                    how = &mut closing => how.unwrap_or(Close::Await),
                    _ = connection.accept() => return,
                };
                match how {
                    Close::Cut => return,
                    Close::GoAway => connection.graceful_shutdown(),
                    Close::Await => {}
                }
                while connection.accept().await.is_some() {}
            });
            let received = BytesMut::new();
            Stream { head, requests, received, respond, responses: None, close: Some(close) }
        })
        .await
    }
}

enum Close {
    Cut,
    GoAway,
    Await,
}

/// A stream, seen by the server.
pub(crate) struct Stream {
    pub(crate) head: http::request::Parts,
    requests: RecvStream,
    received: BytesMut,
    respond: SendResponse<Bytes>,
    /// Headers are sent with the first response, as istiod does.
    responses: Option<SendStream<Bytes>>,
    close: Option<oneshot::Sender<Close>>,
}

impl Stream {
    /// The next request; `None` when the client has ended its side in order.
    pub(crate) async fn try_request(&mut self) -> Option<Bytes> {
        bounded("a request", async {
            loop {
                if let Some(prefix) = self.received.first_chunk::<5>() {
                    let length = u32::from_be_bytes(*prefix.last_chunk().unwrap()) as usize;
                    if self.received.len() >= 5 + length {
                        self.received.advance(5);
                        return Some(self.received.split_to(length).freeze());
                    }
                }
                let data = self.requests.data().await?.expect("the client does not reset");
                self.requests.flow_control().release_capacity(data.len()).unwrap();
                self.received.extend_from_slice(&data);
            }
        })
        .await
    }

    pub(crate) async fn request(&mut self) -> DeltaDiscoveryRequest {
        let bytes = self.try_request().await.expect("a request");
        DeltaDiscoveryRequest::decode(bytes).unwrap()
    }

    /// The first two requests, and empty answers to them, acknowledged.
    pub(crate) async fn greet(&mut self) -> [DeltaDiscoveryRequest; 2] {
        let requests = [self.request().await, self.request().await];
        for request in &requests {
            let empty = DeltaDiscoveryResponse {
                type_url: request.type_url.clone(),
                nonce: "empty".into(),
                ..DeltaDiscoveryResponse::default()
            };
            self.respond(&empty);
            assert_eq!(self.request().await.response_nonce, "empty");
        }
        requests
    }

    pub(crate) fn respond(&mut self, response: &DeltaDiscoveryResponse) {
        self.respond_with(&response.encode_to_vec());
    }

    pub(crate) fn respond_with(&mut self, message: &[u8]) {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        self.write([&[0], length.as_slice(), message].concat().into());
    }

    /// Raw bytes of the response's body.
    pub(crate) fn write(&mut self, bytes: Bytes) {
        let responses = self.responses.get_or_insert_with(|| {
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            self.respond.send_response(head, false).unwrap()
        });
        responses.send_data(bytes, false).unwrap();
    }

    /// Ends the stream by a gRPC status: in trailers, or, if nothing was sent, in the headers.
    pub(crate) fn end(&mut self, status: u8, message: &str) {
        let mut fields = HeaderMap::new();
        fields.insert("grpc-status", status.to_string().parse().unwrap());
        fields.insert("grpc-message", message.parse().unwrap());
        if let Some(responses) = &mut self.responses {
            responses.send_trailers(fields).unwrap();
            return;
        }
        let mut head = Response::new(());
        fields.insert("content-type", "application/grpc".parse().unwrap());
        *head.headers_mut() = fields;
        self.respond.send_response(head, true).unwrap();
    }

    pub(crate) fn reset(&mut self, reason: h2::Reason) {
        self.respond.send_reset(reason);
    }

    /// Closes the connection without a word.
    pub(crate) fn cut(mut self) {
        let _ = self.close.take().unwrap().send(Close::Cut);
    }

    /// Says that no more streams are taken on the connection; this one goes on.
    pub(crate) fn go_away(&mut self) {
        let _ = self.close.take().unwrap().send(Close::GoAway);
    }
}

pub(crate) async fn bounded<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}
