//! TCP connections on a pod's behalf.

use std::net::{IpAddr, SocketAddr};

use redirect::socket::{self, ConnectError, ConnectFailure};
use tokio::net::TcpStream;

use super::pod::LocalPod;
use crate::metrics::Limit;

/// Connects in the pod's namespace, from `source` if given, as [`socket::connect`] does. Counts when this machine has no
/// room for the connection; those that exist are not affected, so the next attempt is up to the client.
pub(super) async fn connect(
    pod: &LocalPod,
    source: Option<IpAddr>,
    destination: SocketAddr,
) -> Result<TcpStream, ConnectError> {
    let connected = socket::connect(pod.pod.netns.as_ref(), source, destination, &pod.pod.connect).await;
    if connected.as_ref().is_err_and(|error| error.reason == ConnectFailure::Local) {
        pod.worker.shared().counters.limits.count(Limit::Connect);
    }
    connected
}
