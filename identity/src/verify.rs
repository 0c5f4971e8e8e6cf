//! Judging the certificate that a peer presents.
//!
//! Both directions do the same in the same order: the chain must reach one of our trust roots and be fit for the
//! peer's role, then the leaf must carry exactly one SPIFFE name, then that name must be one we accept. What a server
//! accepts is any name of its own trust domain; what a client accepts is a set it was told. Host names play no part.
//!
//! The name that passes here is the name that authorization sees: [`peer_identity`] is used for both, and a leaf with
//! two SPIFFE names has no identity at all.
//!
//! Revocation is judged with the chain, by the lists that are in force at that moment ([`crate::Revocations`]).

use std::cell::Cell;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use thiserror::Error;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::revocation::{CrlSet, Standing};
use crate::{ExpectedPeers, Revocations, Side, SpiffeId, SpiffeIdError};

/// The identity in a peer's certificate chain, leaf first, as a TLS library hands it over after the handshake.
///
/// Names that are not of the `spiffe` scheme are ignored (X.509-SVID asks for one URI; Istio's issuers give only one).
/// This reads the name and does not verify the chain: the handshake did.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, PeerIdentityError> {
    let leaf = chain.first().ok_or(PeerIdentityError::NoCertificate)?;
    let (rest, leaf) = X509Certificate::from_der(leaf).map_err(|_| PeerIdentityError::Encoding)?;
    if !rest.is_empty() {
        return Err(PeerIdentityError::Encoding);
    }
    spiffe_name(&leaf)
}

/// The one SPIFFE name of `leaf`.
pub(crate) fn spiffe_name(leaf: &X509Certificate<'_>) -> Result<SpiffeId, PeerIdentityError> {
    let names = leaf.subject_alternative_name().map_err(|_| PeerIdentityError::Encoding)?;
    let names = names.map_or(&[][..], |extension| &extension.value.general_names);
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(PeerIdentityError::Encoding);
    }
    let mut spiffe = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) if is_spiffe(uri) => Some(uri),
        _ => None,
    });
    let name = spiffe.next().ok_or(PeerIdentityError::NoName)?;
    if spiffe.next().is_some() {
        return Err(PeerIdentityError::SeveralNames);
    }
    name.parse().map_err(PeerIdentityError::Name)
}

/// A scheme is compared without regard to case (RFC 3986 section 3.1), so that no spelling escapes the count of names.
fn is_spiffe(uri: &str) -> bool {
    uri.split_once(':').is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("spiffe"))
}

/// Why a certificate identifies nobody.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PeerIdentityError {
    /// There is no certificate.
    #[error("no certificate presented")]
    NoCertificate,
    /// The certificate or its names are not valid DER.
    #[error("the certificate cannot be decoded")]
    Encoding,
    /// No URI of the `spiffe` scheme among the names.
    #[error("the certificate carries no SPIFFE name")]
    NoName,
    /// More than one URI of the `spiffe` scheme: it would be open which of them was meant.
    #[error("the certificate carries more than one SPIFFE name")]
    SeveralNames,
    /// The SPIFFE name is not an Istio identity.
    #[error("the SPIFFE name is not an Istio identity")]
    Name(#[source] SpiffeIdError),
}

/// Why a peer with a valid chain is refused. Found inside [`CertificateError::Other`]; the peer sees the alert
/// `certificate_unknown`.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PeerRefused {
    /// The certificate identifies nobody.
    #[error("the peer has no identity")]
    NoIdentity(#[source] PeerIdentityError),
    /// The peer belongs to another trust domain than ours.
    #[error("the peer {peer} is not of the trust domain {ours}")]
    TrustDomain {
        /// Who the peer is.
        peer: SpiffeId,
        /// The trust domain of our own certificate.
        ours: String,
    },
    /// The server is none of those we wanted to reach.
    #[error("the peer {peer} is not one of those expected")]
    Unexpected {
        /// Who the peer is.
        peer: SpiffeId,
    },
}

/// Trust roots of one workload, with which it judges peers in both directions.
#[derive(Debug)]
pub(crate) struct TrustRoots {
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
    revocations: Revocations,
}

impl TrustRoots {
    pub(crate) fn new(
        roots: RootCertStore,
        algorithms: WebPkiSupportedAlgorithms,
        revocations: Revocations,
    ) -> Self {
        Self { roots, algorithms, revocations }
    }

    /// Checks the chain of a peer, seen from our side, then reads the leaf's name.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        now: UnixTime,
    ) -> Result<SpiffeId, TlsError> {
        let crls = self.revocations.current();
        self.verify_chain(leaf, intermediates, side, now, crls.as_deref()).map_err(|error| {
            if matches!(error, webpki::Error::CertRevoked) {
                self.revocations.count_refusal(side);
            }
            chain_error(error)
        })?;
        peer_identity(std::slice::from_ref(leaf)).map_err(|error| refused(PeerRefused::NoIdentity(error)))
    }

    /// What the chain, which was accepted at the time `at`, is worth by the lists of today.
    pub(crate) fn standing(
        &self,
        chain: &[CertificateDer<'_>],
        side: Side,
        at: UnixTime,
        crls: &CrlSet,
    ) -> Standing {
        let Some((leaf, intermediates)) = chain.split_first() else { return Standing::Unknown };
        match self.verify_chain(leaf, intermediates, side, at, Some(crls)) {
            Ok(()) => Standing::Good,
            Err(webpki::Error::CertRevoked) => Standing::Revoked,
            Err(_) => Standing::Unknown,
        }
    }

    /// Looks for a path to a root that is fit for the peer's role (an absent extendedKeyUsage permits every role) and on
    /// which nothing is revoked. If there are only paths with something revoked on them, that is the error, whatever
    /// was wrong with others.
    fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        at: UnixTime,
        crls: Option<&CrlSet>,
    ) -> Result<(), webpki::Error> {
        let usage = match side {
            Side::Source => KeyUsage::server_auth(),
            Side::Destination => KeyUsage::client_auth(),
        };
        let revoked = Cell::new(false);
        let check_path = |path: &VerifiedPath<'_>| match crls {
            Some(crls) if crls.revokes(path, self.algorithms) => {
                revoked.set(true);
                Err(webpki::Error::CertRevoked)
            }
            _ => Ok(()),
        };
        let parsed = EndEntityCert::try_from(leaf)?;
        let roots = &self.roots.roots;
        parsed
            .verify_for_usage(self.algorithms.all, roots, intermediates, at, usage, None, Some(&check_path))
            .map_err(|error| if revoked.get() { webpki::Error::CertRevoked } else { error })?;
        Ok(())
    }
}

/// Accepts clients of our own trust domain.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    trust: Arc<TrustRoots>,
    /// Ourselves: any identity of the same trust domain may connect.
    own: SpiffeId,
    root_subjects: Vec<DistinguishedName>,
}

impl ClientVerifier {
    pub(crate) fn new(trust: Arc<TrustRoots>, own: SpiffeId) -> Self {
        let root_subjects = trust.roots.subjects();
        Self { trust, own, root_subjects }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.root_subjects
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        let peer = self.trust.verify(leaf, intermediates, Side::Destination, now)?;
        if peer.trust_domain() != self.own.trust_domain() {
            let ours = self.own.trust_domain().to_owned();
            return Err(refused(PeerRefused::TrustDomain { peer, ours }));
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, leaf, signed, &self.trust.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, leaf, signed, &self.trust.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}

/// Accepts servers that are one of an expected set.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    trust: Arc<TrustRoots>,
    expected: ExpectedPeers,
}

impl ServerVerifier {
    pub(crate) fn new(trust: Arc<TrustRoots>, expected: ExpectedPeers) -> Self {
        Self { trust, expected }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let peer = self.trust.verify(leaf, intermediates, Side::Source, now)?;
        if !self.expected.contains(&peer) {
            return Err(refused(PeerRefused::Unexpected { peer }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, leaf, signed, &self.trust.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, leaf, signed, &self.trust.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}

fn refused(reason: PeerRefused) -> TlsError {
    CertificateError::Other(OtherError(Arc::new(reason))).into()
}

/// Translates what is wrong with a chain into the terms from which rustls chooses the alert (RFC 8446 section 6.2).
fn chain_error(error: webpki::Error) -> TlsError {
    use webpki::Error::*;
    let error = match error {
        BadDer | BadDerTime | TrailingData(_) => CertificateError::BadEncoding,
        CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext { time, not_before },
        CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        InvalidCertValidity => CertificateError::Expired,
        UnknownIssuer => CertificateError::UnknownIssuer,
        CertRevoked => CertificateError::Revoked,
        InvalidSignatureForPublicKey => CertificateError::BadSignature,
        RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    };
    error.into()
}
