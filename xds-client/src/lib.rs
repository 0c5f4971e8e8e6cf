//! xDS wire types: what a node proxy exchanges with istiod, one module per protobuf package.
//!
//! The messages mirror the wire and promise nothing more: an address may have any number of bytes, an enum field any
//! number, a oneof may be unset. Whoever receives one turns it into a type that cannot be wrong, or rejects it. Decoding
//! ([`prost::Message::decode`]) reports malformed bytes as an error and skips unknown fields.
//!
//! The proto files under `proto/` name the API each was written from. Field numbers are fixed by byte-exact tests.

mod handler;

pub use handler::{Event, Handler, Rejected, ResourceType, Termination};
pub use prost;
/// Google's well-known types (`Any`, `Struct`, `Duration`) as they appear in the messages.
pub use prost_types;

/// `istio.workload`: workloads and services.
///
/// Delivered as [`Address`](workload::Address) resources, type URL `type.googleapis.com/istio.workload.Address`.
pub mod workload {
    #![allow(missing_docs, clippy::all)] // Generated code; the proto file carries the documentation.

    include!(concat!(env!("OUT_DIR"), "/istio.workload.rs"));
}

/// `istio.security`: layer-4 authorization policies.
///
/// Delivered as [`Authorization`](security::Authorization) resources, type URL
/// `type.googleapis.com/istio.security.Authorization`.
pub mod security {
    #![allow(missing_docs, clippy::all)]

    include!(concat!(env!("OUT_DIR"), "/istio.security.rs"));
}

/// `envoy.service.discovery.v3`: the delta ADS envelope,
/// `/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources`.
pub mod discovery {
    #![allow(missing_docs, clippy::all)]

    include!(concat!(env!("OUT_DIR"), "/envoy.service.discovery.v3.rs"));
}
