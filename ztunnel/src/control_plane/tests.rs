//! The channel against real TLS servers on loopback.

use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::HeaderValue;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use identity::{Tls, TlsOptions, TlsVersions};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;

use super::*;

/// No test waits longer than this for something that should happen.
const PATIENCE: Duration = Duration::from_secs(20);

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        let name = format!("authority {}", fastrand::u64(..));
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// What a server for `names` uses, after `change` of its certificate.
    fn server(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> ServerConfig {
        self.server_of(names, change, &[&rustls::version::TLS13], b"h2")
    }

    fn server_of(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
        versions: &[&'static rustls::SupportedProtocolVersion],
        alpn: &[u8],
    ) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
        params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![alpn.to_vec()];
        config
    }
}

/// A server that tells of each call and answers it with its own name and the request's address.
struct Server {
    port: u16,
    calls: mpsc::Receiver<http::HeaderMap>,
    /// One message per connection that came through TLS; dropping it ends the connection.
    connections: mpsc::Receiver<tokio::task::AbortHandle>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(config: ServerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (told, calls) = mpsc::channel(64);
        let (opened, connections) = mpsc::channel(64);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(socket).await else { continue };
                let told = told.clone();
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let told = told.clone();
                    async move {
                        let address = request.uri().to_string();
                        told.send(request.headers().clone()).await.unwrap();
                        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(address))))
                    }
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let serving = server.serve_connection(TokioIo::new(stream), service);
                let connection = tokio::spawn(async move { drop(serving.await) });
                opened.send(connection.abort_handle()).await.unwrap();
            }
        });
        Self { port, calls, connections, task }
    }

    /// How many connections came through TLS since the last question.
    fn opened(&mut self) -> Vec<tokio::task::AbortHandle> {
        std::iter::from_fn(|| self.connections.try_recv().ok()).collect()
    }

    fn address(&self) -> String {
        format!("localhost:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn peer(address: &str, roots: RootSource) -> PeerConfig {
    PeerConfig {
        endpoint: address.parse().unwrap(),
        roots,
        alternative_name: None,
        credentials: Credentials {
            token: TokenSource::None,
            cluster_id: HeaderValue::from_static("west"),
            headers: Vec::new(),
        },
    }
}

fn tls(versions: TlsVersions) -> Tls {
    Tls::new(TlsOptions { versions, ..TlsOptions::default() })
}

fn control_plane(peer: PeerConfig) -> ControlPlane {
    ControlPlane::new(Arc::new(peer), tls(TlsVersions::Tls13))
}

async fn call(channel: &mut H2Channel, metadata: MetadataMap) -> String {
    let mut request = Request::post("/some.Service/Method").body(tonic::body::Body::empty()).unwrap();
    *request.headers_mut() = metadata.into_headers();
    let response = tokio::time::timeout(PATIENCE, channel.call(request)).await.unwrap().unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

fn replace(path: &Path, content: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, content).unwrap();
    std::fs::rename(beside, path).unwrap();
}

fn refusal(error: &ConnectError) -> rustls::Error {
    let ConnectError::Tls { source, .. } = error else { panic!("{error:?}") };
    source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).unwrap().clone()
}

fn certificate_refusal(error: &ConnectError) -> rustls::CertificateError {
    match refusal(error) {
        rustls::Error::InvalidCertificate(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_call_carries_the_configured_address_and_reaches_the_server() {
    let authority = Authority::new();
    let server = Server::start(authority.server(&["localhost"], |_| {})).await;
    let plane = control_plane(peer(&server.address(), RootSource::Pem(authority.pem())));
    let (mut channel, metadata) = plane.open().await.unwrap();
    let address = call(&mut channel, metadata).await;
    assert_eq!(address, format!("https://localhost:{}/some.Service/Method", server.port));
}

#[tokio::test]
async fn roots_replaced_between_attempts_are_the_ones_that_count() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root-cert.pem");
    let (old, new) = (Authority::new(), Authority::new());
    let server = Server::start(new.server(&["localhost"], |_| {})).await;
    let plane = control_plane(peer(&server.address(), RootSource::File(path.clone())));
    let missing = plane.connect().await.unwrap_err();
    assert!(matches!(missing, ConnectError::Roots(RootError::File { .. })) && missing.is_ours());
    replace(&path, &old.pem());
    let error = plane.connect().await.unwrap_err();
    assert_eq!(certificate_refusal(&error), rustls::CertificateError::UnknownIssuer);
    assert!(!error.is_ours());
    replace(&path, &format!("# two of them\n{}{}", old.pem(), new.pem()));
    plane.connect().await.unwrap();
}

#[tokio::test]
async fn the_alternative_name_suffices_and_a_wrong_one_does_not() {
    let authority = Authority::new();
    let server = Server::start(authority.server(&["istiod.istio-system.svc"], |_| {})).await;
    let connect = async |alternative: Option<&str>| {
        let mut peer = peer(&server.address(), RootSource::Pem(authority.pem()));
        peer.alternative_name = alternative.map(|name| ServerName::try_from(name.to_owned()).unwrap());
        control_plane(peer).connect().await
    };
    connect(Some("istiod.istio-system.svc")).await.unwrap();
    for wrong in [None, Some("istiod.other.svc")] {
        let error = connect(wrong).await.unwrap_err();
        let why = certificate_refusal(&error);
        assert!(matches!(why, rustls::CertificateError::NotValidForNameContext { .. }), "{why:?}");
    }
}

#[tokio::test]
async fn the_host_of_the_address_suffices_when_there_is_an_alternative() {
    let authority = Authority::new();
    let server = Server::start(authority.server(&["localhost"], |_| {})).await;
    let mut peer = peer(&server.address(), RootSource::Pem(authority.pem()));
    peer.alternative_name = Some(ServerName::try_from("istiod.istio-system.svc").unwrap());
    control_plane(peer).connect().await.unwrap();
}

#[tokio::test]
async fn an_ip_address_is_verified_as_one() {
    let authority = Authority::new();
    let server = Server::start(authority.server(&["127.0.0.1"], |_| {})).await;
    let address = format!("127.0.0.1:{}", server.port);
    control_plane(peer(&address, RootSource::Pem(authority.pem()))).connect().await.unwrap();
}

#[tokio::test]
async fn an_alternative_name_does_not_excuse_an_expired_certificate_or_a_foreign_authority() {
    let authority = Authority::new();
    let expired = authority.server(&["alternative"], |params| {
        params.not_before = (SystemTime::now() - Duration::from_secs(7200)).into();
        params.not_after = (SystemTime::now() - Duration::from_secs(3600)).into();
    });
    let expired = Server::start(expired).await;
    let foreign = Server::start(Authority::new().server(&["alternative"], |_| {})).await;
    let connect = async |server: &Server| {
        let mut peer = peer(&server.address(), RootSource::Pem(authority.pem()));
        peer.alternative_name = Some(ServerName::try_from("alternative").unwrap());
        certificate_refusal(&control_plane(peer).connect().await.unwrap_err())
    };
    let why = connect(&expired).await;
    assert!(matches!(why, rustls::CertificateError::ExpiredContext { .. }), "{why:?}");
    assert_eq!(connect(&foreign).await, rustls::CertificateError::UnknownIssuer);
}

#[tokio::test]
async fn a_server_of_tls12_is_accepted_only_where_the_operator_said_so() {
    let authority = Authority::new();
    let config = authority.server_of(&["localhost"], |_| {}, &[&rustls::version::TLS12], b"h2");
    let server = Server::start(config).await;
    let peer = Arc::new(peer(&server.address(), RootSource::Pem(authority.pem())));
    let strict = ControlPlane::new(peer.clone(), tls(TlsVersions::Tls13));
    let why = refusal(&strict.connect().await.unwrap_err());
    assert_eq!(why, rustls::Error::AlertReceived(rustls::AlertDescription::ProtocolVersion));
    let lenient = ControlPlane::new(peer, tls(TlsVersions::Tls12And13));
    let (mut channel, metadata) = lenient.open().await.unwrap();
    call(&mut channel, metadata).await;
}

#[tokio::test]
async fn a_server_that_chooses_no_protocol_is_not_spoken_to() {
    let authority = Authority::new();
    let mut config = authority.server(&["localhost"], |_| {});
    config.alpn_protocols.clear();
    let server = Server::start(config).await;
    let plane = control_plane(peer(&server.address(), RootSource::Pem(authority.pem())));
    assert!(matches!(plane.connect().await, Err(ConnectError::NotHttp2 { .. })));
}

#[tokio::test]
async fn a_rotated_token_is_in_the_next_call_on_the_same_connection() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("istio-token");
    replace(&path, "first\n");
    let authority = Authority::new();
    let mut server = Server::start(authority.server(&["localhost"], |_| {})).await;
    let mut peer = peer(&server.address(), RootSource::Pem(authority.pem()));
    peer.credentials.token = TokenSource::File(path.clone());
    peer.credentials.headers = vec![ExtraHeader::new("X-Tenant", "blue").unwrap()];
    let shared = SharedChannel::new(control_plane(peer));
    for token in ["first", "second"] {
        replace(&path, &format!("{token}\n"));
        let (mut channel, metadata) = shared.open().await.unwrap();
        call(&mut channel, metadata).await;
        let headers = server.calls.recv().await.unwrap();
        assert_eq!(headers["authorization"], format!("Bearer {token}"));
        assert_eq!(
            (&headers["clusterid"], &headers["x-tenant"]),
            (&"west".parse().unwrap(), &"blue".parse().unwrap())
        );
    }
    assert_eq!(server.opened().len(), 1);
    replace(&path, "");
    let error = shared.open().await.unwrap_err();
    assert!(matches!(*error, ConnectError::Token(TokenError::Empty)));
}

#[tokio::test]
async fn a_server_that_never_answers_the_handshake_costs_one_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("localhost:{}", listener.local_addr().unwrap().port());
    let authority = Authority::new();
    let deadlines = Deadlines { tls: Duration::from_millis(200), ..Deadlines::default() };
    let plane = control_plane(peer(&address, RootSource::Pem(authority.pem()))).with_deadlines(deadlines);
    let shared = SharedChannel::new(plane);
    let calls = futures_util::future::join_all((0..8).map(|_| shared.open()));
    let outcomes = tokio::time::timeout(PATIENCE, calls).await.unwrap();
    for outcome in &outcomes {
        let error = outcome.as_ref().unwrap_err();
        assert!(matches!(**error, ConnectError::TimedOut { step: Step::Tls, .. }), "{error:?}");
        assert!(!error.is_ours());
    }
    // All eight waited for one attempt: a second connection would be in the queue behind the first.
    listener.accept().await.unwrap();
    let second = futures_util::FutureExt::now_or_never(listener.accept());
    assert!(second.is_none(), "{second:?}");
}

#[tokio::test]
async fn a_port_nobody_listens_on_and_a_name_nobody_has_are_told_apart() {
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let error = async |address: &str| {
        control_plane(peer(address, RootSource::Pem(authority.pem()))).connect().await.unwrap_err()
    };
    assert!(matches!(error(&format!("127.0.0.1:{port}")).await, ConnectError::Tcp { .. }));
    let unknown = error("istiod.invalid:15012").await;
    assert!(matches!(
        unknown,
        ConnectError::Resolve { .. } | ConnectError::TimedOut { step: Step::Resolve, .. }
    ));
}

#[tokio::test]
async fn each_stream_has_a_connection_of_its_own_and_calls_share_one() {
    let authority = Authority::new();
    let mut server = Server::start(authority.server(&["localhost"], |_| {})).await;
    let plane = control_plane(peer(&server.address(), RootSource::Pem(authority.pem())));
    for _ in 0..2 {
        let (mut channel, metadata) = plane.open().await.unwrap();
        call(&mut channel, metadata).await;
    }
    assert_eq!(server.opened().len(), 2);
    let shared = SharedChannel::new(plane);
    // From tasks of their own, as the requests of a store are.
    let task = |_| {
        let shared = shared.clone();
        tokio::spawn(async move { shared.open().await })
    };
    for opened in futures_util::future::join_all((0..8).map(task)).await {
        let (mut channel, metadata) = opened.unwrap().unwrap();
        call(&mut channel, metadata).await;
    }
    assert_eq!(server.opened().len(), 1);
}

#[tokio::test]
async fn a_shared_connection_that_broke_is_opened_anew() {
    let authority = Authority::new();
    let mut server = Server::start(authority.server(&["localhost"], |_| {})).await;
    let shared = SharedChannel::new(control_plane(peer(&server.address(), RootSource::Pem(authority.pem()))));
    let (mut channel, metadata) = shared.open().await.unwrap();
    call(&mut channel, metadata).await;
    server.opened().iter().for_each(tokio::task::AbortHandle::abort);
    let closed = async {
        while !channel.is_closed() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.unwrap();
    let (mut channel, metadata) = shared.open().await.unwrap();
    call(&mut channel, metadata).await;
    assert_eq!(server.opened().len(), 1);
}

#[tokio::test]
async fn changed_roots_open_the_shared_connection_anew_and_unreadable_ones_leave_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root-cert.pem");
    let authority = Authority::new();
    replace(&path, &authority.pem());
    let mut server = Server::start(authority.server(&["localhost"], |_| {})).await;
    let shared = SharedChannel::new(control_plane(peer(&server.address(), RootSource::File(path.clone()))));
    let mut call_once = async || {
        let (mut channel, metadata) = shared.open().await?;
        call(&mut channel, metadata).await;
        Ok::<_, Arc<ConnectError>>(server.opened().len())
    };
    assert_eq!(call_once().await.unwrap(), 1);
    for unusable in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n"] {
        replace(&path, unusable);
        assert_eq!(call_once().await.unwrap(), 0, "{unusable:?}");
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(call_once().await.unwrap(), 0);
    replace(&path, &authority.pem());
    assert_eq!(call_once().await.unwrap(), 0);
    replace(&path, &format!("{}{}", authority.pem(), Authority::new().pem()));
    assert_eq!(call_once().await.unwrap(), 1);
    // The server's authority is trusted no longer: its open connection is not used either.
    replace(&path, &Authority::new().pem());
    let error = call_once().await.unwrap_err();
    assert_eq!(certificate_refusal(&error), rustls::CertificateError::UnknownIssuer);
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_is_being_rewritten_is_not_told_of_until_it_rests() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root-cert.pem");
    let (kept, dropped) = (Authority::new().pem(), Authority::new().pem());
    let both = format!("{kept}{dropped}");
    replace(&path, &both);
    let mut watch = RootWatch::new(&RootSource::File(path.clone()));
    // Cut between its certificates, and written to the end before the second look.
    for _ in 0..10 {
        for content in [&kept, &both] {
            std::fs::write(&path, content).unwrap();
            let told = tokio::time::timeout(Duration::from_millis(3500), watch.changed()).await;
            assert!(told.is_err(), "one interval is not enough");
        }
    }
    std::fs::write(&path, &kept).unwrap();
    tokio::time::timeout(Duration::from_secs(30), watch.changed()).await.unwrap();
}

#[tokio::test]
async fn a_root_watch_tells_of_new_content_and_of_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root-cert.pem");
    let (old, new) = (Authority::new().pem(), Authority::new().pem());
    let mut watch = RootWatch::new(&RootSource::File(path.clone())).every(Duration::from_millis(5));
    let changed = async |watch: &mut RootWatch| tokio::time::timeout(PATIENCE, watch.changed()).await.is_ok();
    replace(&path, &old);
    assert!(changed(&mut watch).await, "a file that appears");
    // A rewrite with the same content, a broken one and a missing file pass unnoticed: what is told next is `new`.
    for content in [&old, "", "no certificate"] {
        replace(&path, content);
        let quiet = tokio::time::timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(quiet.is_err(), "{content:?}");
    }
    std::fs::remove_file(&path).unwrap();
    let told = tokio::spawn(async move {
        watch.changed().await;
        watch
    });
    replace(&path, &new);
    let mut watch = tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
    replace(&path, &old);
    assert!(changed(&mut watch).await, "back again");
}
