//! Judging the server: chain and validity always, then its name or the alternative one.

use std::sync::Arc;

use identity::Tls;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// HTTP/2 and nothing else (RFC 9113 section 3.2).
pub(super) const ALPN_H2: &[u8] = b"h2";

/// What a connection that trusts `roots` uses. No certificate of ours: the token says who we are.
pub(super) fn client_config(
    tls: &Tls,
    roots: RootCertStore,
    alternative: Option<ServerName<'static>>,
) -> Arc<ClientConfig> {
    let algorithms = tls.provider().signature_verification_algorithms;
    let verifier = Verifier { roots, alternative, algorithms };
    let mut config = ClientConfig::builder_with_provider(tls.provider().clone())
        .with_protocol_versions(tls.versions())
        .expect("the provider has a suite and a group for each of its versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // The roots may have changed since the session to resume was made.
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

#[derive(Debug)]
struct Verifier {
    roots: RootCertStore,
    alternative: Option<ServerName<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        verify_server_name(&certificate, name).or_else(|of_host| match &self.alternative {
            // The host's own failure is the one to tell: it says which names the certificate has.
            Some(alternative) => verify_server_name(&certificate, alternative).map_err(|_| of_host),
            None => Err(of_host),
        })?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
