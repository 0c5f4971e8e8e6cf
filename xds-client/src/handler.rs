//! The boundary to whoever keeps the resources.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// The kinds of resources that a node proxy subscribes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// Workloads and services (`istio.workload.Address`).
    Address,
    /// Authorization policies (`istio.security.Authorization`).
    Authorization,
}

impl ResourceType {
    /// All of them, in the order in which they are asked for and pushed.
    pub const ALL: [Self; 2] = [Self::Address, Self::Authorization];

    /// The type URL on the wire.
    pub const fn url(self) -> &'static str {
        match self {
            Self::Address => "type.googleapis.com/istio.workload.Address",
            Self::Authorization => "type.googleapis.com/istio.security.Authorization",
        }
    }

    /// The type with this URL.
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url())
    }
}

/// Keeps the resources. All calls come from the client's one task, so they never overlap.
///
/// Each response is one transaction: [`begin`](Self::begin), then every update in the order of the response, then every
/// removal, then [`commit`](Self::commit), upon which all of it becomes visible at once. Between two updates the client
/// may let other tasks run; if it is dropped there, `commit` never comes, and nothing may have become visible.
pub trait Handler {
    /// A response begins.
    fn begin(&mut self, kind: ResourceType);

    /// A resource that is new, or whose bytes differ from those that were last accepted under its name. `payload` is the
    /// encoded message (the value of the `Any`).
    ///
    /// An error rejects the resource: the previous version stays, the reason goes to the control plane, and the rest of
    /// the response is applied nevertheless. What is remembered of a rejected resource holds until the next call for its
    /// name, which comes with the next version, also if that has the bytes that were last accepted, with its removal, or
    /// with its [restoration](Self::restore).
    fn update(&mut self, kind: ResourceType, name: &Arc<str>, payload: Bytes) -> Result<(), Rejected>;

    /// The version of a resource before the rejected one is in force again: that was heard on a new stream, which does not
    /// send it once more.
    fn restore(&mut self, kind: ResourceType, name: &str);

    /// A resource is gone. The name may never have been heard of, or only in a rejected resource. In on-demand mode, also
    /// a resource that was only ever rejected and that a new stream does not tell about: it is asked for when needed.
    fn remove(&mut self, kind: ResourceType, name: &str);

    /// The response is complete.
    fn commit(&mut self, kind: ResourceType);

    /// Something happened on the connection that is worth a metric.
    fn observe(&mut self, event: &Event<'_>);
}

/// Why a resource cannot be used, in words for the control plane's operators. Names the field at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejected(pub String);

/// What happens on the connection to the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The first response of a stream has come: the control plane accepts us.
    Connected,
    /// A response has come.
    Received {
        /// Its type, as the control plane wrote it.
        type_url: &'a str,
        /// Bytes of all payloads in it.
        payload_bytes: u64,
    },
    /// A response was answered.
    Answered {
        /// What it was about.
        kind: ResourceType,
        /// How many of its resources were rejected; 0 is an ACK.
        rejected: usize,
    },
    /// A response of every kind that is waited for has been applied: the mesh is known. Once.
    Synchronized,
    /// The stream has ended, or could not be opened.
    Terminated(Termination),
}

/// How a stream to the control plane ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Termination {
    /// There was no answer at all: no connection, no trust, or no authorization.
    ConnectionError,
    /// The transport went away, as it does when the control plane restarts or sheds connections.
    Reconnect,
    /// The control plane reported an error.
    Error,
    /// The control plane closed the stream in order.
    Complete,
}

impl Termination {
    /// The metric label.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::ConnectionError => "ConnectionError",
            Self::Reconnect => "Reconnect",
            Self::Error => "Error",
            Self::Complete => "Complete",
        }
    }
}
