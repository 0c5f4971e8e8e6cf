//! The node proxy's own pod as a member of the mesh.
//!
//! It has no applications of its own to redirect, but it serves metrics, which somebody in the mesh may want to scrape through a
//! tunnel like those of any other pod. So there is one more listener for tunnels, in the process's own namespace and for its
//! own identity, once `POD_NAME`, `POD_NAMESPACE` and `SERVICE_ACCOUNT` say which that is. What arrives there is served as
//! for any pod: the same policies, the same records, the same end.

use std::pin::pin;
use std::sync::Arc;

use redirect::socket::ListenError;

use crate::config::Config;
use crate::dns::DnsHandle;
use crate::proxy::{BoundPod, Stop};
use crate::worker::WorkerHandle;

/// Takes the port, if it is known who we are.
pub(super) fn bind(config: &Config) -> Result<Option<BoundPod>, ListenError> {
    let own = config.own_workload.clone();
    own.map(|workload| BoundPod::bind_own(workload, &config.sockets)).transpose()
}

/// Serves what arrives from when the mesh is known, since policies would be missing before, until `stop` says how to end. Returns
/// when all has ended.
pub(super) async fn serve(
    bound: Option<BoundPod>,
    workers: &Arc<[WorkerHandle]>,
    dns: &DnsHandle,
    mesh_known: impl Future<Output = ()>,
    stop: impl Future<Output = Stop>,
) {
    let Some(bound) = bound else { return };
    let mut stop = pin!(stop);
    tokio::select! {
        biased;
        _ = &mut stop => return,
        () = mesh_known => {}
    }
    let pod = bound.serve(workers, dns).await;
    pod.stop(stop.await).await;
}
