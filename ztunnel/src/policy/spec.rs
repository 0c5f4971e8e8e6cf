//! Policies as the control plane describes them (message `istio.security.Authorization`).

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

/// One policy, not compiled yet.
#[derive(Clone, Debug)]
pub struct PolicySpec {
    /// The namespace that defines it; with [`PolicyScope::Namespace`] also the one it applies to.
    pub namespace: Arc<str>,
    /// Its name there.
    pub name: Arc<str>,
    /// Which workloads it applies to.
    pub scope: PolicyScope,
    /// What a match means.
    pub action: Action,
    /// Whether it decides anything.
    pub enforcement: Enforcement,
    /// Rules of clauses of matches; see the [module](super) for how they combine.
    pub rules: Vec<Vec<Vec<MatchSpec>>>,
}

/// Which workloads a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyScope {
    /// All.
    Global,
    /// Those of the policy's namespace.
    Namespace,
    /// Those that name the policy.
    WorkloadSelector,
}

/// What it means that a policy matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The connection is allowed. While any such policy applies, what none of them matches is denied.
    Allow,
    /// The connection is denied, whatever else allows it.
    Deny,
}

/// Whether a policy decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcement {
    /// It does.
    Enforced,
    /// It is evaluated and reported only.
    DryRun,
}

/// One match: for each field, values one of which must apply, and values none of which may.
#[derive(Clone, Debug, Default)]
pub struct MatchSpec {
    /// The namespace of the peer's identity; empty without an identity.
    pub namespaces: Vec<Readable<StringMatch>>,
    /// Negation of `namespaces`.
    pub not_namespaces: Vec<Readable<StringMatch>>,
    /// The peer's identity without `spiffe://`.
    pub principals: Vec<Readable<StringMatch>>,
    /// Negation of `principals`.
    pub not_principals: Vec<Readable<StringMatch>>,
    /// Namespace and service account of the peer's identity, in any trust domain.
    pub service_accounts: Vec<Readable<ServiceAccountMatch>>,
    /// Negation of `service_accounts`.
    pub not_service_accounts: Vec<Readable<ServiceAccountMatch>>,
    /// The peer's address.
    pub source_ips: Vec<Readable<IpNet>>,
    /// Negation of `source_ips`.
    pub not_source_ips: Vec<Readable<IpNet>>,
    /// The address that the workload is reached under.
    pub destination_ips: Vec<Readable<IpNet>>,
    /// Negation of `destination_ips`.
    pub not_destination_ips: Vec<Readable<IpNet>>,
    /// The application's port.
    pub destination_ports: Vec<Readable<u16>>,
    /// Negation of `destination_ports`.
    pub not_destination_ports: Vec<Readable<u16>>,
    /// Fields that the match has but that we do not know.
    pub unknown_fields: Vec<Unreadable>,
}

/// A value of a match, or why it could not be understood.
pub type Readable<T> = Result<T, Unreadable>;

/// A value or field of a match that could not be understood, as it can be shown to an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable(
    /// Such as `sourceIps: 5 bytes are no address`.
    pub String,
);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A condition on a string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    /// Equal to this.
    Exact(Box<str>),
    /// Begins with this.
    Prefix(Box<str>),
    /// Ends with this.
    Suffix(Box<str>),
    /// Not empty.
    Presence,
}

impl StringMatch {
    /// True when `text` meets the condition.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(expected) => text == &**expected,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Presence => !text.is_empty(),
        }
    }
}

/// A condition on an identity; its trust domain is not considered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccountMatch {
    /// The namespace, exactly.
    pub namespace: Box<str>,
    /// The service account, exactly.
    pub service_account: Box<str>,
}
