//! The delta ADS client of a node proxy, and the messages that it exchanges with istiod.
//!
//! | File | What it holds |
//! |---|---|
//! | `client.rs` | [`Client`]: one stream at a time to the control plane, for ever |
//! | `grpc.rs` | one call: requests out, messages in, how it ended |
//! | `session.rs` | [`Session`]: what to send when, and what is held. No I/O, no clock |
//! | `transaction.rs` | [`Transaction`]: one response being applied to a [`Handler`] |
//! | `response.rs` | [`Response`]: a message of up to 200 MiB, walked instead of decoded; `fields.rs` is protobuf itself |
//! | `retained.rs` | the names, versions and digests of what was accepted |
//! | `unaccepted.rs` | the names of what was only ever rejected |
//! | `requests.rs` | the requests, encoded |
//! | `asked.rs` | the names that were asked for, in on-demand mode |
//! | `demand.rs` | [`Demand`]: waiting for a single address, from any thread |
//! | `backoff.rs` | how long to wait before the next stream |
//! | `handler.rs` | [`Handler`]: the boundary to whoever keeps the resources |
//!
//! # Messages
//!
//! One module per protobuf package. The messages mirror the wire and promise nothing more: an address may have any number of bytes, an enum field any
//! number, a oneof may be unset. Whoever receives one turns it into a type that cannot be wrong, or rejects it. Decoding
//! ([`prost::Message::decode`]) reports malformed bytes as an error and skips unknown fields.
//!
//! The proto files under `proto/` name the API each was written from. Field numbers are fixed by byte-exact tests.

mod asked;
mod backoff;
mod client;
mod demand;
mod fields;
mod grpc;
mod handler;
mod rejected_names;
mod requests;
mod response;
mod retained;
mod session;
mod transaction;

pub use client::{BoxError, Client, Config, Connect, Connection};
pub use demand::{Demand, Demanded};
pub use fields::Malformed;
pub use handler::{Event, Handler, Rejected, ResourceType, Termination};
pub use response::{Header, MalformedResource, MalformedResponse, Resource, Response};
pub use session::{DEFAULT_REQUEST_LIMIT, Demanding, Mode, Session, Unreadable};
pub use transaction::{Progress, Reply, Transaction};

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
