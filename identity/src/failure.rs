//! Why a handshake failed, in few enough words for the label of a metric.

use std::error::Error as StdError;
use std::io;

use rustls::{AlertDescription, CertificateError, Error as TlsError};

use crate::PeerRefused;

/// Why there is no TLS connection. Found in whatever error the handshake ended with, see [`Self::of`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HandshakeFailure {
    /// The peer's certificate, or one above it, is revoked.
    Revoked,
    /// None of our roots leads to the peer's certificate, or its signature is not that of the root it names.
    UnknownIssuer,
    /// The peer's certificate has expired.
    Expired,
    /// The peer's certificate is not valid yet: clocks differ.
    NotYetValid,
    /// The client belongs to another trust domain.
    TrustDomain,
    /// The server is none of those we wanted to reach.
    UnexpectedIdentity,
    /// The peer's certificate does not carry one SPIFFE name.
    NoIdentity,
    /// The client presented no certificate.
    NoCertificate,
    /// The peer's certificate is not fit for its role.
    Usage,
    /// The peer's certificate cannot be used for some other reason.
    BadCertificate,
    /// The peer says that our certificate is revoked.
    OurRevoked,
    /// The peer does not accept our certificate for another reason.
    OurRefused,
    /// The two ends do not speak the same: version, suite, group, application protocol, or no TLS at all.
    Protocol,
    /// The connection ended before the handshake did.
    Closed,
    /// The peer did not finish the handshake in time.
    TimedOut,
    /// We are at fault, or the system is.
    Internal,
}

impl HandshakeFailure {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Revoked,
        Self::UnknownIssuer,
        Self::Expired,
        Self::NotYetValid,
        Self::TrustDomain,
        Self::UnexpectedIdentity,
        Self::NoIdentity,
        Self::NoCertificate,
        Self::Usage,
        Self::BadCertificate,
        Self::OurRevoked,
        Self::OurRefused,
        Self::Protocol,
        Self::Closed,
        Self::TimedOut,
        Self::Internal,
    ];

    /// The reason inside `error`: a TLS error, or an I/O error of a TLS stream, or one that has such a source. None if there
    /// is neither.
    pub fn of(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<TlsError>() {
                return Some(error.into());
            }
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return Some(error.into());
            }
            next = error.source();
        }
        None
    }

    /// A label, in the style of the other metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::TrustDomain => "trust_domain",
            Self::UnexpectedIdentity => "unexpected_identity",
            Self::NoIdentity => "no_identity",
            Self::NoCertificate => "no_certificate",
            Self::Usage => "usage",
            Self::BadCertificate => "bad_certificate",
            Self::OurRevoked => "our_certificate_revoked",
            Self::OurRefused => "our_certificate_refused",
            Self::Protocol => "protocol",
            Self::Closed => "closed",
            Self::TimedOut => "timed_out",
            Self::Internal => "internal",
        }
    }
}

impl From<&TlsError> for HandshakeFailure {
    fn from(error: &TlsError) -> Self {
        match error {
            TlsError::InvalidCertificate(error) => Self::of_certificate(error),
            TlsError::NoCertificatesPresented => Self::NoCertificate,
            TlsError::AlertReceived(alert) => Self::of_alert(*alert),
            TlsError::General(_)
            | TlsError::FailedToGetCurrentTime
            | TlsError::FailedToGetRandomBytes
            | TlsError::HandshakeNotComplete
            | TlsError::InconsistentKeys(_)
            | TlsError::Other(_) => Self::Internal,
            // Misbehaved or incompatible peers, damaged messages, no common protocol.
            _ => Self::Protocol,
        }
    }
}

impl From<&io::Error> for HandshakeFailure {
    fn from(error: &io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| Self::of(inner));
        inner.unwrap_or(match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Closed,
            io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Internal,
        })
    }
}

impl HandshakeFailure {
    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Revoked => Self::Revoked,
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownIssuer,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Self::Usage,
            CertificateError::Other(other) => match other.0.downcast_ref() {
                Some(PeerRefused::NoIdentity(_)) => Self::NoIdentity,
                Some(PeerRefused::TrustDomain { .. }) => Self::TrustDomain,
                Some(PeerRefused::Unexpected { .. }) => Self::UnexpectedIdentity,
                None => Self::BadCertificate,
            },
            _ => Self::BadCertificate,
        }
    }

    /// What the peer thinks of us (RFC 8446 section 6.2).
    fn of_alert(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::CertificateRevoked => Self::OurRevoked,
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            // How rustls answers a certificate whose issuer only has the name of one of its roots.
            | AlertDescription::DecryptError => Self::OurRefused,
            AlertDescription::CloseNotify | AlertDescription::UserCanceled => Self::Closed,
            _ => Self::Protocol,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_found_through_io_errors_and_sources() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] io::Error);
        let tls = TlsError::InvalidCertificate(CertificateError::Revoked);
        let io = io::Error::new(io::ErrorKind::InvalidData, tls.clone());
        assert_eq!(HandshakeFailure::of(&tls), Some(HandshakeFailure::Revoked));
        assert_eq!(HandshakeFailure::from(&io), HandshakeFailure::Revoked);
        assert_eq!(HandshakeFailure::of(&Outer(io)), Some(HandshakeFailure::Revoked));
        assert_eq!(HandshakeFailure::of(&std::fmt::Error), None);
    }

    #[test]
    fn all_reasons_stand_at_their_numbers_under_names_of_their_own() {
        let all = HandshakeFailure::ALL;
        assert!(all.iter().enumerate().all(|(number, reason)| *reason as usize == number));
        let names: std::collections::HashSet<_> = all.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), all.len());
    }

    #[test]
    fn a_connection_that_just_ends_is_not_taken_for_a_refusal() {
        for kind in [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset] {
            assert_eq!(HandshakeFailure::from(&io::Error::from(kind)), HandshakeFailure::Closed);
        }
        let late = io::Error::from(io::ErrorKind::TimedOut);
        assert_eq!(HandshakeFailure::from(&late), HandshakeFailure::TimedOut);
    }
}
