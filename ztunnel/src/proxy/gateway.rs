//! A tunnel inside a tunnel: what is on another network is reached through that network's gateway.
//!
//! ```text
//!   node proxy ==== outer tunnel, mutual TLS with the gateway, CONNECT hostname:port ====> gateway
//!        `---------- inner tunnel in that stream, mutual TLS with the destination -----------'---> its node proxy
//!                    CONNECT hostname:port, x-forwarded-network
//! ```
//!
//! The gateway chooses an endpoint of the service by the outer authority and forwards bytes that it cannot read. Who
//! answers inside is judged by the service's own identities alone: without any, nobody is accepted.
//!
//! Inner tunnels are shared by connections of the same identity to the same service and gateway, as outer ones are. Since
//! each leads to the endpoint that the gateway chose for it, connections take one of a few at random.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use hbone::headers::{Baggage, WorkloadKind};
use hbone::{Authority, ConnectRequest, Connected, Tunnel};
use http::HeaderValue;
use identity::{ExpectedPeers, SpiffeId};
use tokio::time::Instant;

use super::error::ConnectionError;
use super::pod::LocalPod;
use super::tunnel::{self, ANSWER_DEADLINE, DialError, HANDSHAKE_DEADLINE, TunnelKey, Way};
use crate::state::model::Workload;

/// What two connections of a pod must have in common to share an inner tunnel.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct InnerKey {
    /// To the gateway.
    pub(crate) outer: TunnelKey,
    /// What both tunnels ask for: hostname and port of the service.
    pub(crate) authority: Authority,
    /// Who may answer inside.
    pub(crate) expected: ExpectedPeers,
    /// Which of the [`LANES`].
    lane: u8,
}

/// Inner tunnels of a worker to one service, as long as none of them is full: the endpoints that its connections are spread
/// over.
const LANES: u8 = 4;

impl InnerKey {
    /// In a lane drawn at random.
    pub(crate) fn new(outer: TunnelKey, authority: Authority, expected: ExpectedPeers) -> Self {
        Self { outer, authority, expected, lane: fastrand::u8(..LANES) }
    }

    /// Where the outer tunnel leads.
    pub(crate) fn gateway(&self) -> SocketAddr {
        self.outer.peer
    }
}

/// Opens a stream for a client's connection, inside a stream through a gateway. `request` asks the gateway; what is asked
/// inside differs in naming our network.
pub(crate) async fn open_stream(
    pod: &Rc<LocalPod>,
    key: &InnerKey,
    request: ConnectRequest,
) -> Result<Connected, ConnectionError> {
    let network = HeaderValue::from_bytes(pod.config().network.as_bytes()).ok();
    let inner = ConnectRequest { forwarded_network: network, ..request.clone() };
    let outer_deadline = pod.pod.connect.timeout + HANDSHAKE_DEADLINE + ANSWER_DEADLINE;
    let deadline = Instant::now() + outer_deadline + HANDSHAKE_DEADLINE + ANSWER_DEADLINE;
    let dial = {
        let (pod, key) = (pod.clone(), key.clone());
        async move || {
            let dialled = dial(&pod, &key, &request).await;
            tunnel::count_failure(&pod, &dialled);
            dialled
        }
    };
    Ok(pod.inner_pool.connect(key, &inner, deadline, dial).await?)
}

/// A stream through the gateway; in it TLS, with the certificate that the gateway has seen too, and HTTP/2.
async fn dial(pod: &Rc<LocalPod>, key: &InnerKey, request: &ConnectRequest) -> Result<Tunnel, DialError> {
    let outer = tunnel::open_stream(pod, key.outer.clone(), request);
    let Connected { stream, cut, .. } = outer.await.map_err(|error| DialError::Gateway(Rc::new(error)))?;
    let certificate = tunnel::certificate(pod, &key.outer.source)
        .await
        .map_err(|error| DialError::Identity(Rc::new(error)))?;
    let way = Way::Through(key.gateway(), cut);
    tunnel::secure(pod, stream.into_io(), &certificate, &key.expected, way).await
}

/// Who answered inside: the identity that its certificate proves, and what it says of itself. Everything but the identity is
/// a label. It comes from one that the service vouches for.
pub(crate) fn far_end(connected: &Connected) -> (Option<Arc<Workload>>, Option<SpiffeId>) {
    let identity = connected.peer_name.as_ref().and_then(|name| name.parse().ok());
    let workload = connected.response.baggage().map(|baggage| Arc::new(described(&baggage)));
    (workload, identity)
}

fn described(baggage: &Baggage<'_>) -> Workload {
    let text = |text: Option<&str>| text.unwrap_or_default().into();
    let (kind, name) = baggage.workload.unzip();
    let kind = match kind {
        Some(WorkloadKind::Deployment) => "deployment",
        Some(WorkloadKind::CronJob) => "cronjob",
        Some(WorkloadKind::Pod) => "pod",
        Some(WorkloadKind::Job) => "job",
        None => "",
    };
    let mut workload = Workload {
        // The pod's own name is not told.
        name: text(name),
        workload_name: text(name),
        workload_type: kind.into(),
        namespace: text(baggage.namespace),
        cluster_id: text(baggage.cluster),
        canonical_name: text(baggage.service),
        canonical_revision: text(baggage.version),
        ..Workload::default()
    };
    workload.locality.region = text(baggage.region);
    workload.locality.zone = text(baggage.zone);
    workload
}
