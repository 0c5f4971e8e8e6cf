//! The port: TLS, HTTP/2, and both services behind their paths.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use bytes::{Buf as _, BufMut as _, Bytes};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::Grpc;

use super::ads::{self, AggregatedDiscovery};
use super::ca::{self, CertificateService};
use super::shared::{Ending, Shared};
use crate::Result;
use crate::traffic::bounded;

/// `ISTIO_GPRC_MAXRECVMSGSIZE`, its default.
const MAX_REQUEST: usize = 4 * 1024 * 1024;

/// Serves until it is dropped, which cuts all connections.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        let shared = Arc::clone(&shared);
        // A handshake that fails is the client's to tell of.
        connections.spawn_local(async move { drop(connection(stream, &shared).await) });
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, shared: &Arc<Shared>) -> Result<()> {
    stream.set_nodelay(true)?;
    let config = shared.state().authority.server_config()?;
    let handshake = async { Ok(TlsAcceptor::from(config).accept(stream).await?) };
    let stream = bounded("the handshake of a client of istiod", handshake).await?;
    ensure!(stream.get_ref().1.alpn_protocol() == Some(b"h2"), "it does not ask for HTTP/2");
    let _counted = Counted::new(shared);
    serve(stream, shared).await
}

async fn serve(stream: TlsStream<TcpStream>, shared: &Arc<Shared>) -> Result<()> {
    let mut ending = shared.ending.subscribe();
    let service = hyper::service::service_fn({
        let shared = Arc::clone(shared);
        move |request| handle(Arc::clone(&shared), request)
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let told = tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        told = ending.changed() => told,
    };
    told.context("the server is gone")?;
    let Ending::GoAway(grace) = *ending.borrow_and_update() else { return Ok(()) };
    connection.as_mut().graceful_shutdown();
    // What is still open after that is cut.
    Ok(tokio::time::timeout(grace, connection).await??)
}

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let mut grpc = Grpc::new(Messages).max_decoding_message_size(MAX_REQUEST);
    Ok(match request.uri().path() {
        ads::PATH => grpc.streaming(AggregatedDiscovery(shared), request).await,
        ca::PATH => grpc.unary(CertificateService(shared), request).await,
        path => Status::unimplemented(format!("istiod has no {path}")).into_http(),
    })
}

/// An open connection.
struct Counted<'a>(&'a Shared);

impl<'a> Counted<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.change(|state| {
            state.connections.open += 1;
            state.connections.total += 1;
        });
        Self(shared)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.connections.open -= 1);
    }
}

/// Messages as bytes, so that a test can send any.
struct Messages;

impl Codec for Messages {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Messages {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Messages {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
