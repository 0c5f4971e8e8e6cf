//! ZDS: the node agent tells the proxy which pods to serve, and hands over their network namespaces.
//!
//! The agent listens on a unix socket of type `SOCK_SEQPACKET`; the proxy dials. One packet is one protobuf message
//! (`proto/zds.proto`), at most 1024 bytes, and the namespace travels as a descriptor in the same packet as the Add.
//! After the proxy's hello the agent speaks, in lock-step: one request, one answer, which belong together by order.
//!
//! ```text
//!             dial, announce
//!                   |
//!                   v                SnapshotSent
//!   +--> Snapshot: Add, Keep, Del  --------------->  Updates: Add, Del  <--+
//!   |        |          |                                   |          |   |
//!   +--------+          +--- end, error: dial again --------+          +---+
//! ```
//!
//! The snapshot names every pod of the node: by Add with its namespace, or by Keep when the agent knows the pod but
//! cannot find its namespace. What the proxy serves and the snapshot does not name is gone. Keep and a second
//! SnapshotSent are fatal in the Updates phase, as is an Add that does not say which pod it is: an agent that does
//! so does not speak this protocol, and the proxy exits rather than serve half of the pods.
//!
//! [`Connection`] is the proxy's end and [`server`] the agent's; the rules are in `session`, without sockets.

mod backoff;
mod connection;
pub mod server;
mod session;
mod transport;
mod wire;

pub use backoff::Backoff;
pub use connection::Connection;
pub use session::{Recovery, Request, ZdsError};
pub use wire::{DecodeError, MAX_PACKET, RequestMessage, WorkloadInfo, decode_request};
