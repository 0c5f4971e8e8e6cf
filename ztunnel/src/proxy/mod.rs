//! A connection is a chain of stages, one file and one value each:
//!
//! ```text
//! accept    -> Accepted       who connected, where to, on which listener
//! classify  -> Route, Arrival where it goes and which identities are expected there; what arrives, and for whom
//! authorize -> Permit         inbound only: the verdict of the policies; a Permit cannot be made elsewhere
//! tunnel    -> Upstream       the open byte stream: a tunnel's stream, or TCP; [`gateway`] for a tunnel inside a tunnel
//! copy      -> Transfer       both directions until closed, counted
//! report    -> log line       exactly one record per connection, on every path
//! ```
//!
//! [`outbound`], [`inbound`] and [`passthrough`] compose them; [`attempts`] goes back from tunnel to classify when an
//! endpoint cannot be reached; [`listen`] gives connections to workers, [`socks5`]
//! asks where they go, and [`inbound_tunnel`] takes them out of tunnels. [`pod`] is whose connection it is; [`run`] starts and stops what is
//! listened on.

mod accept;
mod attempts;
mod authorize;
mod classify;
pub mod copy;
mod cut;
mod error;
mod gateway;
mod handshakes;
mod inbound;
mod inbound_tunnel;
mod listen;
mod open_connections;
mod outbound;
mod passthrough;
mod pod;
pub mod proxy_protocol;
mod read_ahead;
mod reconsider;
mod report;
mod run;
pub mod socks5;
mod task_set;
mod tcp;
mod tunnel;

pub(crate) use accept::Listener;
pub(crate) use handshakes::Handshakes;
pub(crate) use pod::{LocalPod, Pod, PodInstance, Stop};
pub(crate) use reconsider::reconsider;
pub(crate) use run::{BoundPod, RunningPod};

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_task<A, B, C, F>(_: impl FnOnce(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    fn size_of_request<A, B, C, D, F>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// With the runtime's own part a task of this size fits the allocator's size class of 2,048 bytes. Here dependencies have
    /// features for tests, which cost 24 bytes; in the program itself it fits that of 1,792.
    const LIMIT: usize = 1712;

    #[test]
    fn a_connection_costs_little_to_hold() {
        let outbound = size_of_task(outbound::serve);
        let passthrough = size_of_task(passthrough::serve);
        let socks = size_of_task(socks5::serve);
        let inbound = size_of_request(inbound::serve);
        assert!(
            [outbound, passthrough, socks, inbound].into_iter().all(|size| size <= LIMIT),
            "{outbound} {passthrough} {socks} {inbound}"
        );
    }
}
