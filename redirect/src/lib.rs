//! Pods' network namespaces: sockets inside them, ZDS, and the packet rules that redirect their traffic.
//!
//! One process serves every pod of a node. What makes that possible is that a socket belongs to the network
//! namespace it was created in for as long as it lives, whatever thread uses it later:
//!
//! - [`netns`]: a handle on a namespace, and [`Netns::run`] to make something inside it;
//! - [`socket`]: listening, connecting and datagram sockets made there, and where a redirected connection was going;
//! - [`privileges`]: what the process must be allowed to do, checked once at start;
//! - [`zds`]: how the node agent tells the proxy which pods to serve, both ends of it;
//! - [`rules`]: the packet rules and routes that bring a pod's traffic to those listeners.

pub mod netns;
pub mod privileges;
pub mod rules;
pub mod socket;
mod sys;
pub mod zds;

pub use netns::{Netns, NetnsError, NetnsId};
