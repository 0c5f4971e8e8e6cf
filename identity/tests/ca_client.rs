//! The client of a remote authority against a real HTTP/2 server that speaks gRPC by hand.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use identity::proto::{IstioCertificateRequest, IstioCertificateResponse};
use identity::{
    BoxError, CaChannel, CaClient, CaConnect, CaRefused, CertificateError, CertificateStore, IssueError,
    Issuer, OnBehalfOf, RequestError, Retry, StoreOptions, Tls, TlsOptions, WorkloadCertificateError,
};
use prost::Message;
use prost_types::value::Kind;
use support::{Authority, CLIENT, SERVER, id};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tonic::Code;
use tonic::body::Body;
use tonic::metadata::MetadataMap;

/// What the server saw of one call.
#[derive(Clone, Debug)]
struct Seen {
    path: String,
    headers: http::HeaderMap,
    request: IstioCertificateRequest,
}

/// What the server does with a call.
enum Reply {
    Chain(Vec<String>),
    Status(Code, &'static str),
    Bytes(Vec<u8>),
    Hang,
}

type Script = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

struct Server {
    address: std::net::SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Told when the client gives up on a call.
    abandoned: Arc<Notify>,
}

impl Server {
    async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server =
            Self { address: listener.local_addr().unwrap(), seen: Arc::default(), abandoned: Arc::default() };
        let (script, seen, abandoned): (Script, _, _) =
            (Arc::new(script), server.seen.clone(), server.abandoned.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, seen, abandoned) = (script.clone(), seen.clone(), abandoned.clone());
                let service = service_fn(move |request| {
                    answer(request, script.clone(), seen.clone(), abandoned.clone())
                });
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        server
    }

    /// A server that issues whatever is asked for, and a client of it.
    async fn issuing(authority: Authority, named: Option<&'static str>) -> Self {
        Self::start(move |seen| {
            let request = rcgen::CertificateSigningRequestParams::from_pem(&seen.request.csr).unwrap();
            let name = named.map_or_else(|| impersonated(&seen.request).unwrap(), str::to_owned);
            let leaf = authority.sign(&[&name], &request.public_key, |_| {});
            Reply::Chain(authority.elements(leaf, &[&authority.root]))
        })
        .await
    }

    async fn client(&self, on_behalf_of: OnBehalfOf) -> CaClient<Connector> {
        CaClient::new(Connector::to(self.address).await, Duration::from_secs(3600), on_behalf_of)
    }

    fn only_call(&self) -> Seen {
        let seen = self.seen.lock().unwrap();
        assert_eq!(seen.len(), 1);
        seen[0].clone()
    }
}

async fn answer(
    request: http::Request<Incoming>,
    script: Script,
    seen: Arc<Mutex<Vec<Seen>>>,
    abandoned: Arc<Notify>,
) -> Result<http::Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let length = u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize;
    assert_eq!((body[0], body.len()), (0, 5 + length), "one message, not compressed");
    let request = IstioCertificateRequest::decode(&body[5..]).unwrap();
    let call = Seen { path: parts.uri.path().to_owned(), headers: parts.headers, request };
    let reply = script(&call);
    seen.lock().unwrap().push(call);
    let (message, code, explanation) = match reply {
        Reply::Chain(cert_chain) => (IstioCertificateResponse { cert_chain }.encode_to_vec(), Code::Ok, ""),
        Reply::Status(code, explanation) => (Vec::new(), code, explanation),
        Reply::Bytes(bytes) => (bytes, Code::Ok, ""),
        Reply::Hang => {
            let _told = OnDrop(abandoned);
            future::pending().await
        }
    };
    let mut framed = BytesMut::new();
    if code == Code::Ok {
        framed.put_u8(0);
        framed.put_u32(message.len().try_into().unwrap());
        framed.put_slice(&message);
    }
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", i32::from(code).into());
    trailers.insert("grpc-message", explanation.parse().unwrap());
    let body = Full::new(framed.freeze()).with_trailers(future::ready(Some(Ok(trailers))));
    let response = http::Response::builder().header("content-type", "application/grpc").body(body.boxed());
    Ok(response.unwrap())
}

struct OnDrop(Arc<Notify>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

fn impersonated(request: &IstioCertificateRequest) -> Option<String> {
    match request.metadata.as_ref()?.fields.get("ImpersonatedIdentity")?.kind.as_ref()? {
        Kind::StringValue(identity) => Some(identity.clone()),
        other => panic!("{other:?}"),
    }
}

/// One HTTP/2 connection, a new token for each call.
struct Connector {
    connection: hyper::client::conn::http2::SendRequest<Body>,
    tokens: AtomicUsize,
}

impl Connector {
    async fn to(address: std::net::SocketAddr) -> Self {
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (connection, driver) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(driver);
        Self { connection, tokens: AtomicUsize::new(0) }
    }
}

impl CaConnect for Connector {
    type Service = ToServer;

    async fn channel(&self) -> Result<CaChannel<ToServer>, BoxError> {
        let mut metadata = MetadataMap::new();
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        metadata.insert("authorization", format!("Bearer token-{token}").parse()?);
        metadata.insert("clusterid", "Kubernetes".parse()?);
        Ok(CaChannel { service: ToServer(self.connection.clone()), metadata })
    }
}

/// Adds what a path lacks to be a URI.
struct ToServer(hyper::client::conn::http2::SendRequest<Body>);

impl tonic::codegen::Service<http::Request<Body>> for ToServer {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = tonic::codegen::BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.scheme = Some(http::uri::Scheme::HTTPS);
        uri.authority = Some("istiod.istio-system.svc:15012".parse().unwrap());
        *request.uri_mut() = uri.try_into().unwrap();
        Box::pin(self.0.send_request(request))
    }
}

/// An authority that cannot be reached.
struct Unreachable;

impl CaConnect for Unreachable {
    type Service = ToServer;

    async fn channel(&self) -> Result<CaChannel<ToServer>, BoxError> {
        Err("the token file is empty".into())
    }
}

async fn refusal(code: Code) -> IssueError {
    let server = Server::start(move |_| Reply::Status(code, "so%0Athere")).await;
    let client = server.client(OnBehalfOf::Workloads).await;
    client.issue(&id(CLIENT), "csr").await.unwrap_err()
}

#[tokio::test]
async fn a_call_names_the_workload_the_lifetime_and_us() {
    let server = Server::start(|_| Reply::Chain(vec!["leaf".into(), "root".into()])).await;
    let client = server.client(OnBehalfOf::Workloads).await;
    let chain = client.issue(&id(CLIENT), "csr").await.unwrap();
    assert_eq!(chain.0, ["leaf", "root"]);
    let call = server.only_call();
    assert_eq!(call.path, "/istio.v1.auth.IstioCertificateService/CreateCertificate");
    assert_eq!(call.request.csr, "csr");
    assert_eq!(call.request.validity_duration, 3600);
    assert_eq!(impersonated(&call.request).as_deref(), Some(CLIENT));
    assert_eq!(call.request.metadata.unwrap().fields.len(), 1);
    assert_eq!(call.headers["authorization"], "Bearer token-0");
    assert_eq!(call.headers["clusterid"], "Kubernetes");
    assert_eq!(call.headers["content-type"], "application/grpc");
    assert_eq!(call.headers["te"], "trailers");
}

#[tokio::test]
async fn every_call_carries_the_token_of_its_time() {
    let server = Server::start(|_| Reply::Chain(vec![])).await;
    let client = server.client(OnBehalfOf::Workloads).await;
    for number in 0..3 {
        client.issue(&id(CLIENT), "csr").await.unwrap();
        let seen = server.seen.lock().unwrap();
        assert_eq!(seen.last().unwrap().headers["authorization"], format!("Bearer token-{number}"));
    }
}

#[tokio::test]
async fn a_proxy_that_asks_for_itself_names_nobody() {
    let server = Server::start(|_| Reply::Chain(vec![])).await;
    let client = server.client(OnBehalfOf::Ourselves).await;
    client.issue(&id(CLIENT), "csr").await.unwrap();
    assert_eq!(server.only_call().request.metadata, None);
}

#[tokio::test]
async fn only_an_invalid_request_is_repeated_rarely() {
    for code in (0..=16).map(Code::from).filter(|code| *code != Code::Ok) {
        let error = refusal(code).await;
        let retry = if code == Code::InvalidArgument { Retry::Rarely } else { Retry::Soon };
        assert_eq!(error.retry(), retry, "{code:?}");
        assert_eq!(matches!(error, IssueError::Invalid(_)), code == Code::InvalidArgument);
        let unauthorized = [Code::Unauthenticated, Code::PermissionDenied].contains(&code);
        assert_eq!(matches!(error, IssueError::Unauthorized(_)), unauthorized, "{code:?}");
    }
}

#[tokio::test]
async fn a_refusal_tells_code_and_explanation_in_one_line_and_nothing_else() {
    let error = refusal(Code::Unauthenticated).await;
    let source = std::error::Error::source(&error).unwrap();
    let refused: &CaRefused = source.downcast_ref().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(refused.to_string(), "Unauthenticated: so there");
    assert!(!format!("{error:?}").contains("token"), "{error:?}");
}

#[tokio::test]
async fn an_answer_that_is_no_message_or_too_long_makes_the_authority_unavailable() {
    let garbage = Server::start(|_| Reply::Bytes(b"\x0a\xff\xff\xff\xff\x01".to_vec())).await;
    let long = Server::start(|_| Reply::Chain(vec!["x".repeat((4 << 20) + 1)])).await;
    for server in [garbage, long] {
        let client = server.client(OnBehalfOf::Workloads).await;
        let error = client.issue(&id(CLIENT), "csr").await.unwrap_err();
        assert!(matches!(error, IssueError::Unavailable(_)), "{error:?}");
    }
}

#[tokio::test]
async fn an_answer_just_below_the_limit_is_read() {
    let server = Server::start(|_| Reply::Chain(vec!["x".repeat((4 << 20) - 64)])).await;
    let client = server.client(OnBehalfOf::Workloads).await;
    assert_eq!(client.issue(&id(CLIENT), "csr").await.unwrap().0[0].len(), (4 << 20) - 64);
}

#[tokio::test]
async fn an_authority_that_cannot_be_reached_is_unavailable_and_the_reason_is_kept() {
    let client = CaClient::new(Unreachable, Duration::from_secs(60), OnBehalfOf::Workloads);
    let error = client.issue(&id(CLIENT), "csr").await.unwrap_err();
    let IssueError::Unavailable(reason) = error else { panic!("{error:?}") };
    assert_eq!(reason.to_string(), "the token file is empty");
}

#[tokio::test]
async fn a_connection_that_breaks_during_the_call_makes_the_authority_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = tokio::spawn(async move {
        let client =
            CaClient::new(Connector::to(address).await, Duration::from_secs(60), OnBehalfOf::Workloads);
        client.issue(&id(CLIENT), "csr").await.unwrap_err()
    });
    let (stream, _) = listener.accept().await.unwrap();
    stream.readable().await.unwrap();
    drop(stream);
    assert!(matches!(client.await.unwrap(), IssueError::Unavailable(_)));
}

fn store(issuer: impl Issuer, options: StoreOptions) -> CertificateStore {
    let (store, driver) = CertificateStore::new(Arc::new(issuer), Tls::new(TlsOptions::default()), options);
    tokio::spawn(driver.run(future::pending()));
    store
}

#[tokio::test]
async fn the_store_obtains_a_certificate_from_the_authority() {
    let server = Server::issuing(Authority::root("root").intermediate("one"), None).await;
    let store = store(server.client(OnBehalfOf::Workloads).await, StoreOptions::default());
    let certificate = store.certificate(&id(CLIENT)).await.unwrap();
    assert_eq!(certificate.identity(), &id(CLIENT));
    assert_eq!(certificate.chain().intermediates.len(), 1);
}

#[tokio::test]
async fn a_certificate_for_another_workload_is_used_only_by_a_proxy_that_asks_for_itself() {
    let server = Server::issuing(Authority::root("root"), Some(SERVER)).await;
    let shared = store(server.client(OnBehalfOf::Workloads).await, StoreOptions::default());
    let error = shared.certificate(&id(CLIENT)).await.unwrap_err();
    let CertificateError::Unavailable(error) = error else { panic!("{error:?}") };
    let RequestError::Certificate(WorkloadCertificateError::Identity { issued }) = &*error else {
        panic!("{error:?}")
    };
    assert_eq!(issued, &id(SERVER));

    let dedicated = store(server.client(OnBehalfOf::Ourselves).await, StoreOptions::default());
    assert_eq!(dedicated.certificate(&id(CLIENT)).await.unwrap().identity(), &id(SERVER));
    assert_eq!(dedicated.current(&id(CLIENT)).unwrap().identity(), &id(SERVER));
}

#[tokio::test]
async fn a_call_that_hangs_ends_at_the_deadline_also_for_the_authority() {
    let server = Server::start(|_| Reply::Hang).await;
    let options = StoreOptions { request_deadline: Duration::from_millis(200), ..StoreOptions::default() };
    let store = store(server.client(OnBehalfOf::Workloads).await, options);
    let error = store.certificate(&id(CLIENT)).await.unwrap_err();
    let CertificateError::Unavailable(error) = error else { panic!("{error:?}") };
    assert!(matches!(*error, RequestError::Deadline), "{error:?}");
    let gave_up = tokio::time::timeout(Duration::from_secs(30), server.abandoned.notified()).await;
    gave_up.expect("the stream is reset");
}

#[tokio::test]
async fn a_pod_that_the_authority_has_not_heard_of_gets_its_certificate_a_little_later() {
    let authority = Authority::root("root");
    let calls = Mutex::new(BTreeMap::<String, usize>::new());
    let server = Server::start(move |seen| {
        let name = impersonated(&seen.request).unwrap();
        let mut calls = calls.lock().unwrap();
        let count = calls.entry(name.clone()).or_default();
        *count += 1;
        if *count == 1 {
            return Reply::Status(Code::Unauthenticated, "request authenticate failure");
        }
        let request = rcgen::CertificateSigningRequestParams::from_pem(&seen.request.csr).unwrap();
        let leaf = authority.sign(&[&name], &request.public_key, |_| {});
        Reply::Chain(authority.elements(leaf, &[&authority.root]))
    })
    .await;
    let store = store(server.client(OnBehalfOf::Workloads).await, StoreOptions::default());
    assert!(store.certificate(&id(CLIENT)).await.is_err());
    let obtained = async {
        while store.current(&id(CLIENT)).is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), obtained).await.expect("the retry succeeds");
}
