//! The headers that travel with a CONNECT request and its answer.
//!
//! What a peer says of itself in them is a claim, not a fact: a caller may use it for labels, and for
//! decisions only where the peer's certificate makes it a party that is trusted to forward claims.

mod baggage;
mod forwarded;
mod traceparent;

use http::header::HeaderName;

pub use baggage::{Baggage, WorkloadKind};
pub use forwarded::{forwarded, forwarded_host};
pub use traceparent::TraceParent;

/// `baggage`: the workload at the sender's end, see [`Baggage`].
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// `forwarded` (RFC 7239): the original client, and the service it dialled, see [`forwarded()`].
pub const FORWARDED: HeaderName = HeaderName::from_static("forwarded");

/// `traceparent` (W3C Trace Context), see [`TraceParent`].
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// `x-forwarded-network`: the network that the request came from, in the inner CONNECT of a tunnel
/// through an east-west gateway.
pub const X_FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");
