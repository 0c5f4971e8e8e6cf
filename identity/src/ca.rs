//! The boundary to whoever issues certificates: a remote authority, or the [local one](crate::LocalCa).

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;

use thiserror::Error;

use crate::SpiffeId;

/// Turns a certificate signing request into a certificate chain.
pub trait Issuer: Send + Sync + 'static {
    /// Requests a certificate for `identity`; `csr_pem` is a PKCS #10 request that names it.
    ///
    /// The caller sets the deadline: it drops the future, and the issuer keeps nothing of the request.
    fn issue<'a>(&'a self, identity: &'a SpiffeId, csr_pem: &'a str) -> IssueFuture<'a>;

    /// Whose name the certificates bear.
    fn granted(&self) -> Granted {
        Granted::Requested
    }
}

/// Whose name an issued certificate bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granted {
    /// The requested one. A certificate for anybody else is not taken into use.
    Requested,
    /// The one that the authority found out by its own means; it is right by definition.
    ByAuthority,
}

/// The answer of an [`Issuer`], in the making.
pub type IssueFuture<'a> = Pin<Box<dyn Future<Output = Result<IssuedChain, IssueError>> + Send + 'a>>;

/// What Istio's CreateCertificate answers with: a list of PEM texts, of which the first is the leaf, the last the trust
/// roots, and those between the intermediates in order. Not yet looked at.
#[derive(Clone, Debug)]
pub struct IssuedChain(pub Vec<String>);

/// Why the issuer gave no certificate.
#[derive(Debug, Error)]
pub enum IssueError {
    /// It cannot be reached, or cannot issue at the moment.
    #[error("the certificate authority is not available")]
    Unavailable(#[source] BoxError),
    /// It does not let us have this identity. That may pass: istiod refuses in this way until it has seen the pod.
    #[error("the certificate authority does not authorize the request")]
    Unauthorized(#[source] BoxError),
    /// It finds the request itself wrong. The same settings will make the same request.
    #[error("the certificate authority finds the request invalid")]
    Invalid(#[source] BoxError),
}

impl IssueError {
    /// Whether the same request may succeed before long.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Unavailable(_) | Self::Unauthorized(_) => Retry::Soon,
            Self::Invalid(_) => Retry::Rarely,
        }
    }
}

/// How a failed request is to be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// With a delay that grows from a second.
    Soon,
    /// With the longest delay from the start: only a change elsewhere can make it succeed.
    Rarely,
}

/// A cause whose type belongs to the issuer.
pub type BoxError = Box<dyn StdError + Send + Sync>;
