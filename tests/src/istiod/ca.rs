//! `CreateCertificate`: istiod's checks, and the ways in which the script makes it fail.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use identity::SpiffeId;
use identity::proto::{IstioCertificateRequest, IstioCertificateResponse};
use rcgen::{CertificateSigningRequestParams, KeyPair};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;
use tonic::{Code, Request, Response, Status};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use xds_client::prost::Message as _;
use xds_client::prost_types::value::Kind;

use super::admission::Caller;
use super::authority::{BACKDATE, Wanted};
use super::shared::{Refusal, Shared, State};

/// The path of the call.
pub(super) const PATH: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// istiod's own, for requests that name none.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// istiod's own limit.
const MAX_LIFETIME: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// What the authority does with requests that have passed its checks.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum CaBehaviour {
    /// Issues what was asked for.
    #[default]
    Issue,
    /// Fails with this code and message.
    Fail(Code, String),
    /// Never answers.
    Hang,
    /// Issues certificates that began so long ago, and end when they would have: past half of their life, or expired.
    BackDated {
        /// Time from the beginning until now.
        age: Duration,
        /// Time from now to the end, or none if it has expired already.
        left: Option<Duration>,
    },
    /// Issues a certificate for another identity.
    WrongIdentity(String),
    /// Issues a certificate for another key.
    WrongKey,
    /// Answers without any certificate.
    EmptyChain,
}

/// Which identities a proxy may ask for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Impersonation {
    /// Those of the workloads on its node, as istiod knows them.
    #[default]
    PodsOnNode,
    /// Any.
    Anyone,
    /// These.
    Only(BTreeSet<String>),
}

/// A request for a certificate that came with a good token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CaRequest {
    /// The identity asked for: in the metadata, otherwise in the signing request.
    pub identity: String,
    /// Whether the metadata named it.
    pub impersonated: bool,
    /// The lifetime asked for, in seconds.
    pub validity: i64,
    /// Who asked.
    pub caller: Caller,
    /// How it ended. None: not yet.
    pub outcome: Option<Code>,
}

/// What the test has decided, and what has happened.
#[derive(Default)]
pub(super) struct CaScript {
    pub(super) behaviour: CaBehaviour,
    pub(super) exceptions: BTreeMap<String, CaBehaviour>,
    pub(super) impersonation: Impersonation,
    /// Instead of the lifetime asked for, and from now: certificates of a few seconds would be past half of their life
    /// from the beginning otherwise.
    pub(super) lifetime: Option<Duration>,
    pub(super) requests: Vec<CaRequest>,
    pub(super) in_flight: usize,
    pub(super) most_in_flight: usize,
}

/// The service, for one call.
pub(super) struct CertificateService(pub(super) Arc<Shared>);

type Signed = Result<Response<Bytes>, Status>;

impl tonic::server::UnaryService<Bytes> for CertificateService {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Signed> + Send>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let signed = create(&shared, request).await;
            if let Err(status) = signed.as_ref() {
                shared.change(|state| state.log.refusals.push(Refusal::new(PATH, status)));
            }
            signed
        })
    }
}

async fn create(shared: &Arc<Shared>, request: Request<Bytes>) -> Signed {
    let headers = request.metadata().clone().into_headers();
    let caller = shared.state().admission.authenticate(&headers)?;
    let message = IstioCertificateRequest::decode(request.into_inner())
        .map_err(|error| Status::internal(error.to_string()))?;
    let csr = Csr::check(&message.csr);
    let impersonated = impersonated(&message);
    let asked = impersonated.clone().or_else(|| Some(csr.as_ref().ok()?.identity.clone()));
    let identity = asked.unwrap_or_default();
    let call = CallGuard::begin(
        shared,
        CaRequest {
            identity: identity.clone(),
            impersonated: impersonated.is_some(),
            validity: message.validity_duration,
            caller: caller.clone(),
            outcome: None,
        },
    );
    let result = match csr {
        Ok(csr) => answer(shared, &caller, &identity, impersonated.is_some(), &message, &csr).await,
        Err(status) => Err(status),
    };
    call.end(result.as_ref().map_or_else(Status::code, |_| Code::Ok));
    let cert_chain = result?;
    Ok(Response::new(IstioCertificateResponse { cert_chain }.encode_to_vec().into()))
}

/// What the caller gets for a request that is well formed.
async fn answer(
    shared: &Arc<Shared>,
    caller: &Caller,
    identity: &str,
    impersonates: bool,
    message: &IstioCertificateRequest,
    csr: &Csr,
) -> Result<Vec<String>, Status> {
    if impersonates {
        authorize(&shared.state(), caller, identity)?;
    }
    let behaviour = {
        let state = shared.state();
        state.ca.exceptions.get(identity).unwrap_or(&state.ca.behaviour).clone()
    };
    match behaviour {
        CaBehaviour::Hang => std::future::pending().await,
        CaBehaviour::Fail(code, message) => Err(Status::new(code, message)),
        CaBehaviour::EmptyChain => Ok(Vec::new()),
        CaBehaviour::Issue | CaBehaviour::BackDated { .. } => {
            issue(shared, &behaviour, identity, &csr.request.public_key, message)
        }
        CaBehaviour::WrongIdentity(ref other) => {
            issue(shared, &behaviour, other, &csr.request.public_key, message)
        }
        CaBehaviour::WrongKey => {
            let other = KeyPair::generate().map_err(|error| Status::internal(error.to_string()))?;
            issue(shared, &behaviour, identity, &other, message)
        }
    }
}

/// Whether the caller may have a certificate for this identity. istiod tells nobody why not.
fn authorize(state: &State, caller: &Caller, identity: &str) -> Result<(), Status> {
    let failure = || Status::unauthenticated("request impersonation authentication failure");
    let parsed: SpiffeId = identity.parse().map_err(|_| failure())?;
    let allowed = caller.is_node_proxy()
        && match &state.ca.impersonation {
            Impersonation::Anyone => true,
            Impersonation::Only(identities) => identities.contains(identity),
            // istiod does not look at the trust domain.
            Impersonation::PodsOnNode => {
                state.world.runs(parsed.namespace(), parsed.service_account(), caller.node.as_deref())
            }
        };
    if allowed { Ok(()) } else { Err(failure()) }
}

fn issue<K: rcgen::PublicKeyData>(
    shared: &Shared,
    behaviour: &CaBehaviour,
    identity: &str,
    key: &K,
    message: &IstioCertificateRequest,
) -> Result<Vec<String>, Status> {
    let asked = u64::try_from(message.validity_duration).ok().filter(|seconds| *seconds > 0);
    let asked = asked.map_or(DEFAULT_LIFETIME, Duration::from_secs);
    if asked > MAX_LIFETIME {
        return Err(Status::invalid_argument("the requested lifetime is above the limit"));
    }
    let now = SystemTime::now();
    shared.change(|state| {
        let (not_before, not_after) = match behaviour {
            CaBehaviour::BackDated { age, left: Some(left) } => (now - *age, now + *left),
            CaBehaviour::BackDated { age, left: None } => (now - *age, now - *age / 2),
            _ => match state.ca.lifetime {
                Some(lifetime) => (now, now + lifetime),
                None => (now - BACKDATE, now + asked),
            },
        };
        let wanted = Wanted { identity, key, not_before, not_after };
        state.authority.issue(&wanted).map_err(|error| Status::internal(format!("{error:#}")))
    })
}

/// The `ImpersonatedIdentity` of a request's metadata.
fn impersonated(message: &IstioCertificateRequest) -> Option<String> {
    let fields = &message.metadata.as_ref()?.fields;
    match &fields.get("ImpersonatedIdentity")?.kind {
        Some(Kind::StringValue(identity)) => Some(identity.clone()),
        _ => None,
    }
}

/// A signing request in order: signed by its own key, with an empty subject and one critical extension that names one
/// URI.
struct Csr {
    identity: String,
    request: CertificateSigningRequestParams,
}

impl Csr {
    fn check(pem: &str) -> Result<Self, Status> {
        let invalid = |reason: &str| Status::invalid_argument(format!("CSR: {reason}"));
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| invalid(&error.to_string()))?;
        // This verifies the signature.
        let request =
            CertificateSigningRequestParams::from_der(&der).map_err(|error| invalid(&error.to_string()))?;
        let (_, parsed) =
            X509CertificationRequest::from_der(&der).map_err(|error| invalid(&error.to_string()))?;
        let info = &parsed.certification_request_info;
        if info.subject.iter().next().is_some() {
            return Err(invalid("the subject is not empty"));
        }
        let requested = info.iter_attributes().filter_map(|attribute| match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(request) => Some(&request.extensions),
            _ => None,
        });
        let extensions: Vec<_> = requested.flatten().collect();
        let [extension] = extensions[..] else {
            return Err(invalid("it does not ask for exactly one extension"));
        };
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
            return Err(invalid("it asks for another extension than subject alternative names"));
        };
        if !extension.critical {
            return Err(invalid("the subject alternative name is not critical"));
        }
        match names.general_names[..] {
            [GeneralName::URI(identity)] => Ok(Self { identity: identity.to_owned(), request }),
            _ => Err(invalid("it does not name exactly one URI")),
        }
    }
}

/// A call that is being answered. However it ends, it is counted.
struct CallGuard<'a> {
    shared: &'a Shared,
    index: usize,
}

impl<'a> CallGuard<'a> {
    fn begin(shared: &'a Shared, request: CaRequest) -> Self {
        let index = shared.change(|state| {
            state.ca.requests.push(request);
            state.ca.in_flight += 1;
            state.ca.most_in_flight = state.ca.most_in_flight.max(state.ca.in_flight);
            state.ca.requests.len() - 1
        });
        Self { shared, index }
    }

    fn end(&self, outcome: Code) {
        self.shared.change(|state| {
            if let Some(request) = state.ca.requests.get_mut(self.index) {
                request.outcome = Some(outcome);
            }
        });
    }
}

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.ca.in_flight -= 1;
            if let Some(request) = state.ca.requests.get_mut(self.index) {
                // The client gave up.
                request.outcome.get_or_insert(Code::Cancelled);
            }
        });
    }
}
