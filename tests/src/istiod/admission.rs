//! Whom the scripted istiod lets in, and what it demands of a client's description of itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use http::HeaderMap;
use tonic::Status;
use xds_client::discovery::Node;
use xds_client::prost_types::value::Kind;

use super::resources::CLUSTER;

/// Tokens and the cluster that they are good for.
pub(super) struct Admission {
    callers: BTreeMap<String, Caller>,
}

/// Whom a token belongs to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Caller {
    /// The caller's Kubernetes namespace.
    pub namespace: String,
    /// The caller's service account.
    pub service_account: String,
    /// The node that the caller's pod is on. None: the caller may act for pods on any.
    pub node: Option<String>,
}

impl Caller {
    /// The node proxy's own account in a stock installation.
    pub fn node_proxy(node: Option<&str>) -> Self {
        Self {
            namespace: "istio-system".to_owned(),
            service_account: "ztunnel".to_owned(),
            node: node.map(str::to_owned),
        }
    }

    /// Whether this is the account that may ask for the certificates of pods.
    pub(super) fn is_node_proxy(&self) -> bool {
        self.namespace == "istio-system" && self.service_account == "ztunnel"
    }
}

impl Admission {
    pub(super) fn new() -> Self {
        Self { callers: BTreeMap::new() }
    }

    pub(super) fn accept(&mut self, token: &str, caller: Caller) {
        self.callers.insert(token.to_owned(), caller);
    }

    pub(super) fn refuse(&mut self, token: &str) {
        self.callers.remove(token);
    }

    /// The caller behind a call's headers: one good bearer token, and `clusterid` exactly once.
    pub(super) fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, Status> {
        let failure = || Status::unauthenticated("authentication failure");
        let cluster = only(headers, "clusterid").ok_or_else(failure)?;
        // istiod takes the empty one for its own.
        if !cluster.is_empty() && cluster != CLUSTER {
            return Err(failure());
        }
        let token = only(headers, "authorization").and_then(|value| value.strip_prefix("Bearer "));
        token.and_then(|token| self.callers.get(token)).cloned().ok_or_else(failure)
    }
}

/// The value of a header that occurs exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Who a stream's client says it is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct ProxyName {
    /// The name of its pod, from the third part of the node id.
    pub(super) pod: String,
    /// Metadata `NODE_NAME`.
    pub(super) node: String,
}

/// Checks the node of a stream's first request as istiod does.
pub(super) fn check_node(node: Option<&Node>, caller: &Caller) -> Result<ProxyName, Status> {
    let invalid = |reason: &str| Status::invalid_argument(reason.to_owned());
    let node = node.filter(|node| !node.id.is_empty()).ok_or_else(|| invalid("missing node information"))?;
    let parts: Vec<_> = node.id.split('~').collect();
    let [kind, address, proxy, domain] = parts[..] else {
        return Err(invalid("missing parts in the service node"));
    };
    if kind != "ztunnel" {
        return Err(invalid("invalid node type"));
    }
    let addresses = text(node, "INSTANCE_IPS")?.unwrap_or(address);
    if !addresses.split(',').any(|address| address.parse::<IpAddr>().is_ok()) {
        return Err(invalid("no valid IP address in the node id or metadata"));
    }
    let namespace = text(node, "NAMESPACE")?.unwrap_or_else(|| domain.split('.').next().unwrap_or_default());
    let account = text(node, "SERVICE_ACCOUNT")?;
    if namespace != caller.namespace || account.is_some_and(|account| account != caller.service_account) {
        return Err(Status::permission_denied("the token belongs to another namespace or account"));
    }
    for flag in ["DNS_CAPTURE", "ENABLE_HBONE"] {
        if !matches!(text(node, flag)?, None | Some("true" | "false")) {
            return Err(invalid("a flag in the metadata is neither \"true\" nor \"false\""));
        }
    }
    let pod = proxy.split('.').next().unwrap_or_default().to_owned();
    Ok(ProxyName { pod, node: text(node, "NODE_NAME")?.unwrap_or_default().to_owned() })
}

/// A text in the node's metadata. istiod's own types leave no room for another kind of value there.
fn text<'a>(node: &'a Node, key: &str) -> Result<Option<&'a str>, Status> {
    let field = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(key));
    match field.and_then(|value| value.kind.as_ref()) {
        None => Ok(None),
        Some(Kind::StringValue(text)) => Ok(Some(text)),
        Some(_) => Err(Status::invalid_argument(format!("metadata {key} is not a string"))),
    }
}
