//! Handshakes in memory.

use std::io::{Read, Write};
use std::sync::Arc;

use identity::{ExpectedPeers, WorkloadCertificate, unnamed_server};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::sign::SingleCertAndKey;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig,
    ServerConnection, SignatureScheme, SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::id;

/// Both ends after as many flights as they wanted to exchange, with the first error of each.
pub(crate) struct Handshake {
    pub(crate) client: ClientConnection,
    pub(crate) server: ServerConnection,
    pub(crate) client_error: Option<Error>,
    pub(crate) server_error: Option<Error>,
}

impl Handshake {
    pub(crate) fn between(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Self {
        Self::named(unnamed_server(), client, server)
    }

    pub(crate) fn named(
        name: ServerName<'static>,
        client: Arc<ClientConfig>,
        server: Arc<ServerConfig>,
    ) -> Self {
        let mut handshake = Self {
            client: ClientConnection::new(client, name).unwrap(),
            server: ServerConnection::new(server).unwrap(),
            client_error: None,
            server_error: None,
        };
        for _ in 0..8 {
            handshake.exchange_flights();
        }
        handshake
    }

    pub(crate) fn exchange_flights(&mut self) {
        let mut flight = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut flight).unwrap();
        }
        if !flight.is_empty() && self.server_error.is_none() {
            self.server.read_tls(&mut &flight[..]).unwrap();
            self.server_error = self.server.process_new_packets().err();
        }
        let mut flight = Vec::new();
        while self.server.wants_write() {
            self.server.write_tls(&mut flight).unwrap();
        }
        if !flight.is_empty() && self.client_error.is_none() {
            self.client.read_tls(&mut &flight[..]).unwrap();
            self.client_error = self.client.process_new_packets().err();
        }
    }

    /// Asserts that both ends are content and that a byte gets through each way.
    #[track_caller]
    pub(crate) fn succeeded(mut self) -> Self {
        assert_eq!((&self.client_error, &self.server_error), (&None, &None));
        assert!(!self.client.is_handshaking() && !self.server.is_handshaking());
        self.client.writer().write_all(b"?").unwrap();
        self.server.writer().write_all(b"!").unwrap();
        self.exchange_flights();
        let mut byte = [0];
        self.server.reader().read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"?");
        self.client.reader().read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"!");
        self
    }

    /// Asserts that the server refused with the alert, and gives its reason.
    #[track_caller]
    pub(crate) fn server_refused(self, alert: AlertDescription) -> Error {
        assert_eq!(
            self.client_error,
            Some(Error::AlertReceived(alert)),
            "the server: {:?}",
            self.server_error
        );
        self.server_error.unwrap()
    }

    /// Asserts that the client refused with the alert, and gives its reason.
    #[track_caller]
    pub(crate) fn client_refused(self, alert: AlertDescription) -> Error {
        assert_eq!(
            self.server_error,
            Some(Error::AlertReceived(alert)),
            "the client: {:?}",
            self.client_error
        );
        self.client_error.unwrap()
    }
}

pub(crate) fn connect(
    client: &WorkloadCertificate,
    server: &WorkloadCertificate,
    expected: &[&str],
) -> Handshake {
    let expected: ExpectedPeers = expected.iter().map(|uri| id(uri)).collect();
    Handshake::between(client.client_config(&expected), server.server_config())
}
/// A client that trusts anybody and presents what it likes.
pub(crate) fn any_client(credentials: Option<Arc<SingleCertAndKey>>) -> ClientConfig {
    client_with(credentials, aws_lc_rs::default_provider(), rustls::ALL_VERSIONS)
}

pub(crate) fn client_with(
    credentials: Option<Arc<SingleCertAndKey>>,
    provider: CryptoProvider,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAnybody));
    match credentials {
        Some(credentials) => builder.with_client_cert_resolver(credentials),
        None => builder.with_no_client_auth(),
    }
}

/// A server that asks for nothing and presents what it likes.
pub(crate) fn any_server(credentials: Arc<SingleCertAndKey>) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_protocol_versions(rustls::ALL_VERSIONS).unwrap();
    Arc::new(builder.with_no_client_auth().with_cert_resolver(credentials))
}

#[derive(Debug)]
struct TrustAnybody;

impl ServerCertVerifier for TrustAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
