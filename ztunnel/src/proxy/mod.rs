//! A connection is a chain of stages, one file and one value each:
//!
//! ```text
//! accept    -> Accepted       who connected, where to, on which listener
//! classify  -> Route, Arrival where it goes and which identities are expected there; what arrives, and for whom
//! authorize -> Permit         inbound only: the verdict of the policies; a Permit cannot be made elsewhere
//! tunnel    -> Upstream       the open byte stream: a tunnel's stream, or TCP
//! copy      -> Transfer       both directions until closed, counted
//! report    -> log line       exactly one record per connection, on every path
//! ```
//!
//! [`outbound`], [`inbound`] and [`passthrough`] compose them. [`pod`] is whose connection it is; [`run`] starts and
//! stops what is listened on.

mod accept;
mod authorize;
mod classify;
mod copy;
mod error;
mod inbound;
mod outbound;
mod passthrough;
mod pod;
mod proxy_protocol;
mod read_ahead;
mod report;
mod run;
mod tunnel;

pub(crate) use accept::Listener;
pub(crate) use pod::{LocalPod, PodInstance, Stop};
pub(crate) use run::{BoundPod, RunningPod};
