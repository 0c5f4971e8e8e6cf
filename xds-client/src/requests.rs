//! The requests that a client sends, encoded.

use std::sync::Arc;

use prost::Message;

use crate::ResourceType;
use crate::discovery::{DeltaDiscoveryRequest, Node, Status};
use crate::fields::append;

/// `DeltaDiscoveryRequest.resource_names_subscribe`.
const RESOURCE_NAMES_SUBSCRIBE: u32 = 3;
/// `DeltaDiscoveryRequest.initial_resource_versions`, and the fields of its entries.
const INITIAL_RESOURCE_VERSIONS: u32 = 5;
const ENTRY_KEY: u32 = 1;
const ENTRY_VALUE: u32 = 2;

/// "Everything", where names are expected.
const WILDCARD: &str = "*";

/// Confirms a response.
pub(crate) fn acknowledgement(type_url: &str, nonce: &str) -> Vec<u8> {
    let request = DeltaDiscoveryRequest {
        type_url: type_url.into(),
        response_nonce: nonce.into(),
        ..DeltaDiscoveryRequest::default()
    };
    request.encode_to_vec()
}

/// Confirms a response except for what `message` says. The code stays 0, as istiod is used to.
pub(crate) fn rejection(type_url: &str, nonce: &str, message: String) -> Vec<u8> {
    let request = DeltaDiscoveryRequest {
        type_url: type_url.into(),
        response_nonce: nonce.into(),
        error_detail: Some(Status { message, ..Status::default() }),
        ..DeltaDiscoveryRequest::default()
    };
    request.encode_to_vec()
}

/// What becomes of a name's subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// It is not subscribed: subscribe to it.
    Subscribe,
    /// It is subscribed already, and subscribing again would not be answered. Subscribing and unsubscribing in one
    /// request is: the name is looked up, and not subscribed afterwards.
    Once,
    /// Subscribe to it, and unsubscribe from this other name.
    InsteadOf(Arc<str>),
}

/// Asks for one name.
pub(crate) fn demand(kind: ResourceType, name: &str, ask: &Ask) -> Vec<u8> {
    let request = DeltaDiscoveryRequest {
        type_url: kind.url().into(),
        resource_names_subscribe: vec![name.into()],
        resource_names_unsubscribe: match ask {
            Ask::Subscribe => Vec::new(),
            Ask::Once => vec![name.into()],
            Ask::InsteadOf(other) => vec![other.to_string()],
        },
        ..DeltaDiscoveryRequest::default()
    };
    request.encode_to_vec()
}

/// The first request for a type on a stream, without names.
pub(crate) fn first(kind: ResourceType, node: &Node, subscription: Subscription) -> Vec<u8> {
    let names = match subscription {
        Subscription::Wildcard => Vec::new(),
        Subscription::OnDemand => vec![WILDCARD.to_owned()],
    };
    let request = DeltaDiscoveryRequest {
        node: Some(node.clone()),
        type_url: kind.url().into(),
        resource_names_subscribe: names.clone(),
        resource_names_unsubscribe: names,
        ..DeltaDiscoveryRequest::default()
    };
    request.encode_to_vec()
}

/// What a type is subscribed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subscription {
    /// Everything: nothing is named.
    Wildcard,
    /// What is asked for by name. It begins with nothing: everything, subscribed and unsubscribed in one request.
    OnDemand,
}

/// Appends a name and its version to a first request, unless that would make it larger than `limit`.
pub(crate) fn append_version(request: &mut Vec<u8>, name: &str, version: &str, limit: usize) -> Fit {
    let mut entry = Vec::with_capacity(name.len() + version.len() + 8);
    append(&mut entry, ENTRY_KEY, name.as_bytes());
    // An empty field is not written in proto3.
    if !version.is_empty() {
        append(&mut entry, ENTRY_VALUE, version.as_bytes());
    }
    append_within(request, INITIAL_RESOURCE_VERSIONS, &entry, limit)
}

/// A request that subscribes to nothing yet.
pub(crate) fn subscribe(kind: ResourceType) -> Vec<u8> {
    DeltaDiscoveryRequest { type_url: kind.url().into(), ..DeltaDiscoveryRequest::default() }.encode_to_vec()
}

/// Appends a name to what [`subscribe`] made, unless that would make it larger than `limit`.
pub(crate) fn append_name(request: &mut Vec<u8>, name: &str, limit: usize) -> Fit {
    append_within(request, RESOURCE_NAMES_SUBSCRIBE, name.as_bytes(), limit)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    Appended,
    TooLarge,
}

fn append_within(request: &mut Vec<u8>, number: u32, value: &[u8], limit: usize) -> Fit {
    let before = request.len();
    append(request, number, value);
    if request.len() <= limit {
        return Fit::Appended;
    }
    request.truncate(before);
    Fit::TooLarge
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_bytes(request: &[u8], expected: &[&[u8]]) {
        assert_eq!(request.escape_ascii().to_string(), expected.concat().escape_ascii().to_string());
        DeltaDiscoveryRequest::decode(request).expect("a request");
    }

    const ADDRESS: &[u8] = b"\x12\x2atype.googleapis.com/istio.workload.Address";

    fn node() -> Node {
        Node { id: "i".into(), ..Node::default() }
    }

    #[test]
    fn a_wildcard_names_nothing_and_lists_versions() {
        let mut request = first(ResourceType::Address, &node(), Subscription::Wildcard);
        append_version(&mut request, "a", "9f", 1000);
        append_version(&mut request, "b", "", 1000);
        let versions = b"\x2a\x07\x0a\x01a\x12\x029f\x2a\x03\x0a\x01b";
        assert_bytes(&request, &[b"\x0a\x03\x0a\x01i", ADDRESS, versions]);
    }

    #[test]
    fn on_demand_begins_with_everything_and_nothing() {
        let request = first(ResourceType::Address, &node(), Subscription::OnDemand);
        assert_bytes(&request, &[b"\x0a\x03\x0a\x01i", ADDRESS, b"\x1a\x01*", b"\x22\x01*"]);
    }

    #[test]
    fn an_ack_carries_type_and_nonce_alone() {
        assert_bytes(&acknowledgement(ResourceType::Address.url(), "N1"), &[ADDRESS, b"\x32\x02N1"]);
    }

    #[test]
    fn a_nack_is_an_ack_with_a_message_and_code_0() {
        let request = rejection(ResourceType::Address.url(), "N1", "a: bad".into());
        assert_bytes(&request, &[ADDRESS, b"\x32\x02N1", b"\x3a\x08\x12\x06a: bad"]);
    }

    #[test]
    fn a_demand_carries_neither_node_nor_nonce() {
        let request = demand(ResourceType::Address, "/10.0.0.1", &Ask::Subscribe);
        assert_bytes(&request, &[ADDRESS, b"\x1a\x09/10.0.0.1"]);
        let request = demand(ResourceType::Address, "n", &Ask::Once);
        assert_bytes(&request, &[ADDRESS, b"\x1a\x01n\x22\x01n"]);
        let request = demand(ResourceType::Address, "n", &Ask::InsteadOf("o".into()));
        assert_bytes(&request, &[ADDRESS, b"\x1a\x01n\x22\x01o"]);
    }

    #[test]
    fn what_does_not_fit_leaves_the_request_as_it_was() {
        let mut request = subscribe(ResourceType::Address);
        let limit = request.len() + 3;
        assert_eq!(append_name(&mut request, "toolong", limit), Fit::TooLarge);
        assert_eq!(append_name(&mut request, "a", limit), Fit::Appended);
        assert_bytes(&request, &[ADDRESS, b"\x1a\x01a"]);
    }
}
