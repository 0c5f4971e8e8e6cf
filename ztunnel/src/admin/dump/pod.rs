//! The pods that are served, and their open connections.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::json::{Object, object};
use crate::config::WorkloadName;

/// A pod that the node agent wants served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodState {
    /// What the agent calls it.
    pub uid: Arc<str>,
    /// Whose identity it has.
    pub workload: WorkloadName,
    /// Whether it is served.
    pub state: ProxyState,
    /// Its connections, when they are known.
    pub connections: Option<PodConnections>,
}

/// Whether a pod is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ProxyState {
    /// Not yet; it is tried again.
    Pending,
    /// It is.
    Up,
}

/// The open connections of a pod, in no particular order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PodConnections {
    /// To the pod.
    pub inbound: Vec<InboundConnection>,
    /// From the pod.
    pub outbound: Vec<OutboundConnection>,
}

/// A connection to a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InboundConnection {
    /// Where in the pod it goes.
    #[serde(serialize_with = "canonical")]
    pub actual_dst: SocketAddr,
    /// The hostname of the service that the client addressed, if it told.
    pub original_dst: Option<Arc<str>>,
    /// How it arrived.
    pub protocol: ConnectionProtocol,
    /// The peer; that of the tunnel, if it came through one.
    #[serde(serialize_with = "canonical")]
    pub src: SocketAddr,
}

/// A connection from a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutboundConnection {
    /// The next hop.
    #[serde(serialize_with = "canonical")]
    pub actual_dst: SocketAddr,
    /// What the application dialled.
    #[serde(serialize_with = "canonical")]
    pub original_dst: SocketAddr,
    /// How it travels.
    pub protocol: ConnectionProtocol,
    /// The application's end.
    #[serde(serialize_with = "canonical")]
    pub src: SocketAddr,
}

/// How a connection travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ConnectionProtocol {
    /// As it is.
    Tcp,
    /// In a tunnel.
    Hbone,
    /// In a tunnel inside a tunnel.
    DoubleHbone,
}

/// All pods, by uid.
pub(super) fn all(pods: &[PodState]) -> impl Serialize {
    let mut pods: Vec<_> = pods.iter().collect();
    pods.sort_unstable_by(|one, other| one.uid.cmp(&other.uid));
    object(pods.into_iter().map(|pod| (&*pod.uid, PodView(pod))))
}

struct PodView<'a>(&'a PodState);

impl Serialize for PodView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let PodState { uid: _, workload, state, connections } = self.0;
        let WorkloadName { namespace, name, service_account } = workload;
        let info = [("name", name), ("namespace", namespace), ("serviceAccount", service_account)];
        let mut object = Object::begin(serializer)?;
        object.put_some("connections", connections.as_ref())?;
        object.put("info", &super::json::object(info.into_iter()))?;
        object.put("state", state)?;
        object.end()
    }
}

/// Without IPv4 in the form of IPv6.
fn canonical<S: Serializer>(address: &SocketAddr, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&SocketAddr::new(address.ip().to_canonical(), address.port()))
}
