//! SPIFFE names in the form Istio gives them: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//!
//! This is the only kind of identity in the mesh. Istio neither escapes nor validates the three parts beyond what
//! keeps the structure unambiguous, so neither do we: a name is equal to another exactly when the bytes are.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

const SCHEME: &str = "spiffe://";

/// A workload's identity.
///
/// One shared string and three offsets: cloning is a reference count, the accessors and [`fmt::Display`] allocate
/// nothing. Order is that of the URI's bytes.
#[derive(Clone)]
pub struct SpiffeId {
    /// The whole URI, scheme included.
    uri: Arc<str>,
    trust_domain_end: usize,
    namespace_end: usize,
}

impl SpiffeId {
    /// Makes the identity of `service_account` in `namespace` of `trust_domain`.
    ///
    /// Errors: a part that contains `/` could not be told apart from the structure around it, and is refused.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, SpiffeIdError> {
        if [trust_domain, namespace, service_account].iter().any(|part| part.contains('/')) {
            return Err(SpiffeIdError::SlashInPart);
        }
        Ok(Self {
            uri: format!("{SCHEME}{trust_domain}{NS}{namespace}{SA}{service_account}").into(),
            trust_domain_end: SCHEME.len() + trust_domain.len(),
            namespace_end: SCHEME.len() + trust_domain.len() + NS.len() + namespace.len(),
        })
    }

    /// The trust domain, such as `cluster.local`. May be empty.
    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..self.trust_domain_end]
    }

    /// The Kubernetes namespace. May be empty.
    pub fn namespace(&self) -> &str {
        &self.uri[self.trust_domain_end + NS.len()..self.namespace_end]
    }

    /// The Kubernetes service account. May be empty.
    pub fn service_account(&self) -> &str {
        &self.uri[self.namespace_end + SA.len()..]
    }

    /// The URI without its scheme: the form in which Istio's authorization policies name a principal.
    pub fn principal(&self) -> &str {
        &self.uri[SCHEME.len()..]
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }
}

const NS: &str = "/ns/";
const SA: &str = "/sa/";

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    /// Accepts exactly the five segments that Istio produces. Parts may be empty; nothing is decoded.
    fn from_str(uri: &str) -> Result<Self, SpiffeIdError> {
        let path = uri.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let mut segments = path.split('/');
        let mut next = || segments.next().ok_or(SpiffeIdError::Segments);
        let (trust_domain, ns, namespace, sa, service_account) =
            (next()?, next()?, next()?, next()?, next()?);
        if segments.next().is_some() {
            return Err(SpiffeIdError::Segments);
        }
        if ns != "ns" || sa != "sa" {
            return Err(SpiffeIdError::Keyword);
        }
        Self::new(trust_domain, namespace, service_account)
    }
}

/// Why a string is not a [`SpiffeId`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SpiffeIdError {
    /// It does not begin with `spiffe://` in lower case.
    #[error("a SPIFFE identity begins with spiffe://")]
    Scheme,
    /// It has more or fewer than five segments; a trailing slash counts as one.
    #[error("a SPIFFE identity has the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Segments,
    /// The second segment is not `ns`, or the fourth is not `sa`.
    #[error("a SPIFFE identity names its parts ns and sa")]
    Keyword,
    /// A part given on its own contains a slash.
    #[error("no part of a SPIFFE identity contains a slash")]
    SlashInPart,
}

// The offsets follow from the URI: its trust domain and namespace contain no slash.
impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.uri, &other.uri) || self.uri == other.uri
    }
}

impl Eq for SpiffeId {}

impl Hash for SpiffeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.uri.hash(state);
    }
}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.uri.cmp(&other.uri)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.uri, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(uri: &str) -> Result<SpiffeId, SpiffeIdError> {
        uri.parse()
    }

    #[test]
    fn an_istio_identity_has_three_parts() {
        let id = parse("spiffe://cluster.local/ns/default/sa/my.account").unwrap();
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.namespace(), "default");
        assert_eq!(id.service_account(), "my.account");
        assert_eq!(id.principal(), "cluster.local/ns/default/sa/my.account");
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/default/sa/my.account");
    }

    #[test]
    fn parts_may_be_empty_or_spelt_like_keywords() {
        let id = parse("spiffe:///ns//sa/").unwrap();
        assert_eq!((id.trust_domain(), id.namespace(), id.service_account()), ("", "", ""));
        let id = parse("spiffe://td/ns/sa/sa/ns").unwrap();
        assert_eq!((id.namespace(), id.service_account()), ("sa", "ns"));
    }

    #[test]
    fn anything_but_five_segments_with_the_keywords_is_refused() {
        for (uri, error) in [
            ("", SpiffeIdError::Scheme),
            ("td/ns/ns/sa/sa", SpiffeIdError::Scheme),
            ("SPIFFE://td/ns/ns/sa/sa", SpiffeIdError::Scheme),
            ("spiffe:/td/ns/ns/sa/sa", SpiffeIdError::Scheme),
            ("spiffe://", SpiffeIdError::Segments),
            ("spiffe://td/ns/ns/sa", SpiffeIdError::Segments),
            ("spiffe://td/ns/ns/sa/sa/", SpiffeIdError::Segments),
            ("spiffe://td/ns/ns/sa/sa/x", SpiffeIdError::Segments),
            ("spiffe://td/ns/ns/account/sa", SpiffeIdError::Keyword),
            ("spiffe://td/namespace/ns/sa/sa", SpiffeIdError::Keyword),
            ("spiffe://td//ns/ns/sa", SpiffeIdError::Keyword),
        ] {
            assert_eq!(parse(uri), Err(error), "{uri}");
        }
    }

    #[test]
    fn a_part_with_a_slash_cannot_shift_the_structure() {
        assert_eq!(SpiffeId::new("td/ns/x/sa/y", "n", "s"), Err(SpiffeIdError::SlashInPart));
        assert_eq!(SpiffeId::new("td", "n/sa/admin", "s"), Err(SpiffeIdError::SlashInPart));
        assert_eq!(SpiffeId::new("td", "n", "s/"), Err(SpiffeIdError::SlashInPart));
    }

    proptest! {
        #[test]
        fn parts_survive_the_uri(td in "[^/]{0,20}", ns in "[^/]{0,20}", sa in "[^/]{0,20}") {
            let made = SpiffeId::new(&td, &ns, &sa).unwrap();
            let parsed = parse(&made.to_string()).unwrap();
            prop_assert_eq!(&made, &parsed);
            prop_assert_eq!(parsed.trust_domain(), td);
            prop_assert_eq!(parsed.namespace(), ns);
            prop_assert_eq!(parsed.service_account(), sa);
        }

        #[test]
        fn whatever_parses_is_printed_unchanged(text in "(spiffe://)?(/|ns|sa|[a-zé.]){0,9}") {
            if let Ok(id) = parse(&text) {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
