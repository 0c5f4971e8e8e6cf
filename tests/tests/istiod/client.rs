//! A gRPC client that says to the scripted istiod whatever it is told to, with the blocking calls that tests like.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll};

use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use identity::proto::{IstioCertificateRequest, IstioCertificateResponse};
use lab::istiod::{CLUSTER, HOST};
use lab::{Namespace, PATIENCE, Result, ScriptedIstiod, Task};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::metadata::{AsciiMetadataKey, MetadataMap};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use xds_client::ResourceType;
use xds_client::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status as Rejection};
use xds_client::prost_types::{Struct, Value, value::Kind};

const ADS: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// A client in a namespace of the laboratory.
#[derive(Clone)]
pub(crate) struct Client {
    namespace: Namespace,
    address: SocketAddr,
    roots: String,
    headers: Vec<(String, String)>,
}

impl Client {
    /// Trusts istiod's roots, and has a token and the cluster id in its headers.
    pub(crate) fn new(namespace: &Namespace, istiod: &ScriptedIstiod, token: &str) -> Self {
        let headers = [("authorization", format!("Bearer {token}")), ("clusterid", CLUSTER.to_owned())];
        Self {
            namespace: namespace.clone(),
            address: istiod.address(),
            roots: istiod.ca().roots(),
            headers: headers.map(|(key, value)| (key.to_owned(), value)).to_vec(),
        }
    }

    /// With another header, beside those of the same name.
    pub(crate) fn and(mut self, key: &str, value: &str) -> Self {
        self.headers.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Without a header.
    pub(crate) fn without(mut self, key: &str) -> Self {
        self.headers.retain(|(name, _)| name != key);
        self
    }

    /// Opens a stream, whose first request is still to be sent.
    pub(crate) fn stream(&self) -> Stream {
        let (requests, queue) = mpsc::unbounded_channel();
        let (events, received) = channel();
        let client = self.clone();
        let task = self.namespace.spawn(async move || {
            let end = match client.run_stream(queue, &events).await {
                Ok(()) => Status::ok(""),
                Err(status) => status,
            };
            // The test may have seen enough.
            let _ = events.send(Event::End(end.code(), end.message().to_owned()));
            Ok(())
        });
        Stream { requests, received, _task: task }
    }

    async fn run_stream(
        &self,
        mut queue: mpsc::UnboundedReceiver<DeltaDiscoveryRequest>,
        events: &Sender<Event>,
    ) -> Result<(), Status> {
        let mut grpc = self.connect().await.map_err(|error| Status::unavailable(format!("{error:#}")))?;
        let requests = futures_util::stream::poll_fn(move |context| queue.poll_recv(context));
        let mut request = Request::new(requests);
        *request.metadata_mut() = self.metadata();
        let codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default();
        let response = grpc.streaming(request, PathAndQuery::from_static(ADS), codec).await?;
        let _ = events.send(Event::Headers);
        let mut responses = response.into_inner();
        while let Some(response) = responses.message().await? {
            let _ = events.send(Event::Response(response));
        }
        Ok(())
    }

    /// Asks for a certificate.
    pub(crate) fn create_certificate(
        &self,
        message: IstioCertificateRequest,
    ) -> Result<Result<IstioCertificateResponse, Status>> {
        self.start_certificate(message).join()
    }

    /// Asks for a certificate without waiting for it. Dropping the task cancels the call.
    pub(crate) fn start_certificate(
        &self,
        message: IstioCertificateRequest,
    ) -> Task<Result<IstioCertificateResponse, Status>> {
        let client = self.clone();
        self.namespace.spawn(async move || {
            let mut grpc = client.connect().await?;
            let mut request = Request::new(message);
            *request.metadata_mut() = client.metadata();
            let codec = ProstCodec::default();
            let response = grpc.unary(request, PathAndQuery::from_static(CREATE_CERTIFICATE), codec).await;
            Ok(response.map(tonic::Response::into_inner))
        })
    }

    fn metadata(&self) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for (key, value) in &self.headers {
            metadata.append(AsciiMetadataKey::from_bytes(key.as_bytes()).unwrap(), value.parse().unwrap());
        }
        metadata
    }

    async fn connect(&self) -> Result<Grpc<Channel>> {
        let mut roots = rustls::RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(self.roots.as_bytes()) {
            roots.add(root?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tcp = TcpStream::connect(self.address).await?;
        let tls = TlsConnector::from(Arc::new(config)).connect(HOST.try_into()?, tcp).await?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await?;
        // Its errors come out of the calls.
        tokio::task::spawn_local(async move { drop(connection.await) });
        let origin = format!("https://{HOST}:{}", ScriptedIstiod::PORT).parse()?;
        Ok(Grpc::with_origin(Channel(sender), origin).max_decoding_message_size(200 << 20))
    }
}

/// An HTTP/2 connection as tonic wants it.
struct Channel(SendRequest<Body>);

impl tower_service::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// A stream of delta xDS.
pub(crate) struct Stream {
    requests: mpsc::UnboundedSender<DeltaDiscoveryRequest>,
    received: Receiver<Event>,
    _task: Task<()>,
}

#[derive(Debug, PartialEq)]
enum Event {
    Headers,
    Response(DeltaDiscoveryResponse),
    End(Code, String),
}

impl Stream {
    pub(crate) fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).unwrap();
    }

    pub(crate) fn ack(&self, response: &DeltaDiscoveryResponse) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        });
    }

    pub(crate) fn nack(&self, response: &DeltaDiscoveryResponse, reason: &str) {
        let message = reason.to_owned();
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: Some(Rejection { message, ..Rejection::default() }),
            ..DeltaDiscoveryRequest::default()
        });
    }

    pub(crate) fn demand(&self, name: &str) {
        self.send(DeltaDiscoveryRequest {
            type_url: ResourceType::Address.url().to_owned(),
            resource_names_subscribe: vec![name.to_owned()],
            ..DeltaDiscoveryRequest::default()
        });
    }

    /// The next response.
    pub(crate) fn next(&self) -> DeltaDiscoveryResponse {
        loop {
            match self.received.recv_timeout(PATIENCE).unwrap() {
                Event::Headers => {}
                Event::Response(response) => return response,
                Event::End(code, message) => panic!("the stream ended with {code:?}: {message}"),
            }
        }
    }

    /// The next response, acknowledged: the names of its resources, and what is removed.
    pub(crate) fn next_names(&self) -> (Vec<String>, Vec<String>) {
        let response = self.next();
        self.ack(&response);
        (names(&response), response.removed_resources)
    }

    /// Waits for the end of the stream. Nothing but headers may come before.
    pub(crate) fn end(&self) -> (Code, String) {
        loop {
            match self.received.recv_timeout(PATIENCE).unwrap() {
                Event::Headers => {}
                Event::Response(response) => panic!("not the end, but {response:?}"),
                Event::End(code, message) => return (code, message),
            }
        }
    }

    /// Whether anything has come, headers included.
    pub(crate) fn is_silent(&self) -> bool {
        self.received.try_recv().is_err()
    }
}

pub(crate) fn names(response: &DeltaDiscoveryResponse) -> Vec<String> {
    response.resources.iter().map(|resource| resource.name.clone()).collect()
}

/// The first request of a type, by the proxy of `east`, for everything.
pub(crate) fn wildcard(kind: ResourceType) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(node()),
        type_url: kind.url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// The first request for addresses, by the proxy of `east`, for nothing but what it will demand.
pub(crate) fn on_demand() -> DeltaDiscoveryRequest {
    let star = || vec!["*".to_owned()];
    DeltaDiscoveryRequest {
        resource_names_subscribe: star(),
        resource_names_unsubscribe: star(),
        ..wildcard(ResourceType::Address)
    }
}

/// Adds what the client still has.
pub(crate) fn holding(mut request: DeltaDiscoveryRequest, held: &[(&str, &str)]) -> DeltaDiscoveryRequest {
    let held = held.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned()));
    request.initial_resource_versions = held.collect();
    request
}

/// The node of the proxy of `east`.
pub(crate) fn node() -> Node {
    let metadata = [("NAMESPACE", "istio-system"), ("INSTANCE_IPS", "172.30.0.2"), ("NODE_NAME", "east")];
    Node {
        id: "ztunnel~172.30.0.2~ztunnel-east.istio-system~istio-system.svc.cluster.local".to_owned(),
        metadata: Some(texts(&metadata)),
        ..Node::default()
    }
}

/// A struct of texts.
pub(crate) fn texts(entries: &[(&str, &str)]) -> Struct {
    let value = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    Struct { fields: entries.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect() }
}
