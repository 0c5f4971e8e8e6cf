//! A remote certificate authority that speaks Istio's API: istiod, or whatever else serves the same call.
//!
//! One unary gRPC call over HTTP/2, `/istio.v1.auth.IstioCertificateService/CreateCertificate`. How the authority is
//! reached, trusted and told who we are is the connector's business ([`CaConnect`]); this module knows the messages.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::ca::Granted;
use crate::proto::{IstioCertificateRequest, IstioCertificateResponse};
use crate::{BoxError, IssueError, IssueFuture, IssuedChain, Issuer, SpiffeId};

/// The call, as `package.Service/Method`.
const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// The key under which a node proxy names the workload that it asks for.
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// The longest answer read. The reference has the same limit, so no authority sends more.
const LONGEST_ANSWER: usize = 4 << 20;

/// The longest excerpt of an authority's explanation that is kept, in characters.
const LONGEST_EXPLANATION: usize = 256;

/// Reaches the authority.
///
/// Asked before every call, so that each call carries the token that is current. An implementation keeps one connection
/// and hands out handles to it.
pub trait CaConnect: Send + Sync + 'static {
    /// Carries one gRPC call. The request's URI is a path; the service adds scheme and authority.
    type Service: GrpcService<
            Body,
            Future: Send,
            ResponseBody: tonic::codegen::Body<Error: Into<BoxError>> + Send + 'static,
        > + Send;

    /// A way to the authority, with what identifies us to it. An error is reported as the authority being unavailable.
    fn channel(&self) -> impl Future<Output = Result<CaChannel<Self::Service>, BoxError>> + Send;
}

/// A way to the authority for one call.
#[derive(Debug)]
pub struct CaChannel<S> {
    /// Carries the call.
    pub service: S,
    /// What goes with it: `authorization`, `clusterid` and what the operator added.
    pub metadata: MetadataMap,
}

/// Whose certificates are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBehalfOf {
    /// Those of the workloads on the node, which the request names. The certificate must be theirs.
    Workloads,
    /// That of the account whose token goes with the call. The authority reads the identity from the token, and what it
    /// reads is ours.
    Ourselves,
}

/// An [`Issuer`] that asks a remote authority.
#[derive(Clone, Debug)]
pub struct CaClient<C> {
    connect: C,
    lifetime: Duration,
    on_behalf_of: OnBehalfOf,
}

impl<C: CaConnect> CaClient<C> {
    /// An issuer that reaches its authority by `connect` and asks for certificates of `lifetime` (in whole seconds; the
    /// authority may give less). Nothing is sent before the first request.
    pub fn new(connect: C, lifetime: Duration, on_behalf_of: OnBehalfOf) -> Self {
        Self { connect, lifetime, on_behalf_of }
    }

    async fn create_certificate(&self, identity: &SpiffeId, csr: &str) -> Result<IssuedChain, IssueError> {
        let CaChannel { service, metadata } =
            self.connect.channel().await.map_err(IssueError::Unavailable)?;
        let mut client = Grpc::new(service).max_decoding_message_size(LONGEST_ANSWER);
        client.ready().await.map_err(|error| IssueError::Unavailable(error.into()))?;

        let mut request = Request::new(self.request(identity, csr));
        *request.metadata_mut() = metadata;
        let path = PathAndQuery::from_static(CREATE_CERTIFICATE);
        let codec = ProstCodec::<_, IstioCertificateResponse>::default();
        let response = client.unary(request, path, codec).await.map_err(issue_error)?;
        Ok(IssuedChain(response.into_inner().cert_chain))
    }

    fn request(&self, identity: &SpiffeId, csr: &str) -> IstioCertificateRequest {
        let impersonated = Value { kind: Some(Kind::StringValue(identity.to_string())) };
        let metadata = match self.on_behalf_of {
            OnBehalfOf::Workloads => {
                Some(Struct { fields: [(IMPERSONATED_IDENTITY.to_owned(), impersonated)].into() })
            }
            OnBehalfOf::Ourselves => None,
        };
        IstioCertificateRequest {
            csr: csr.to_owned(),
            validity_duration: self.lifetime.as_secs().try_into().unwrap_or(i64::MAX),
            metadata,
        }
    }
}

impl<C: CaConnect> Issuer for CaClient<C> {
    fn issue<'a>(&'a self, identity: &'a SpiffeId, csr_pem: &'a str) -> IssueFuture<'a> {
        Box::pin(self.create_certificate(identity, csr_pem))
    }

    fn granted(&self) -> Granted {
        match self.on_behalf_of {
            OnBehalfOf::Workloads => Granted::Requested,
            OnBehalfOf::Ourselves => Granted::ByAuthority,
        }
    }
}

/// Sorts the statuses that istiod answers with. UNAUTHENTICATED is also what it says while it has not heard of the pod
/// yet; INVALID_ARGUMENT is a request that it will never like, or a lifetime above its limit.
fn issue_error(status: Status) -> IssueError {
    let refused = CaRefused(status);
    match refused.code() {
        Code::Unauthenticated | Code::PermissionDenied => IssueError::Unauthorized(refused.into()),
        Code::InvalidArgument => IssueError::Invalid(refused.into()),
        _ => IssueError::Unavailable(refused.into()),
    }
}

/// As much of an authority's explanation as fits into a line of the log.
fn excerpt(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_EXPLANATION).collect()
}

/// The call ended with a status that is not OK. Found as the source of an [`IssueError`].
///
/// Prints code and explanation and nothing of the metadata, which an authority could use to have our token logged.
pub struct CaRefused(Status);

impl fmt::Display for CaRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code(), excerpt(self.0.message()))
    }
}

impl StdError for CaRefused {
    /// What the transport had to say. The status itself is what this error prints.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

impl CaRefused {
    /// The status code, from the authority or from the transport below.
    pub fn code(&self) -> Code {
        self.0.code()
    }
}

impl fmt::Debug for CaRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CaRefused").field(&self.code()).field(&excerpt(self.0.message())).finish()
    }
}
