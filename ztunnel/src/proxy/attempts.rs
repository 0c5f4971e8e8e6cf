//! Another endpoint, when the one that was chosen cannot be reached.
//!
//! The control plane learns late that an endpoint is gone. A connection that was not made has cost its client nothing yet,
//! so it is routed once more by the same rules and the same view of the mesh, past that endpoint: to another endpoint of the
//! same service, or of the same waypoint or gateway. Where the rules have nobody else, that was the end of it. What a
//! peer or a policy refused is never tried again: only what nobody answered.

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::classify::{ClassifyError, Decision};
use super::copy::Upstream;
use super::error::ConnectionError;
use super::outbound::Plan;
use super::pod::LocalPod;
use super::report::OpenRecord;

/// Endpoints that one connection is tried at.
const MOST_ATTEMPTS: usize = 3;

/// No further attempt begins later than this after the first: one that timed out leaves time for one more.
const LATEST_ATTEMPT: Duration = Duration::from_secs(12);

/// Makes the connection as planned, or as planned anew. `record` names where it was tried last. Dropping the future abandons
/// the attempt.
pub(super) async fn connect(
    pod: &Rc<LocalPod>,
    decision: &Decision,
    plan: Plan,
    client: SocketAddr,
    record: &OpenRecord,
) -> Result<Upstream, ConnectionError> {
    let latest = Instant::now() + LATEST_ATTEMPT;
    let mut plan = plan;
    let mut tried = Tried::default();
    loop {
        tried.add(plan.peer());
        let outcome = plan.connect(pod, client, record).await;
        tried.count(pod, &outcome);
        let error = match outcome {
            Ok(upstream) => {
                record.announce();
                return Ok(upstream);
            }
            Err(error) => error,
        };
        if !error.is_out_of_reach() || tried.are_all() {
            return Err(error);
        }
        let Some(next) = another(pod, decision, &plan).await else { return Err(error) };
        if Instant::now() > latest || tried.includes(next.peer()) {
            return Err(error);
        }
        tracing::debug!(peer = %plan.peer(), instead = %next.peer(), "an endpoint cannot be reached");
        record.reached(next.reached());
        plan = next;
    }
}

/// The plan without the endpoint of the one that failed; none if it goes there all the same.
fn another<'a>(
    pod: &'a LocalPod,
    decision: &'a Decision,
    failed: &Plan,
) -> impl Future<Output = Option<Plan>> + use<'a> {
    let avoided = failed.endpoint.as_ref().map(|(uid, port)| {
        let shared = pod.worker.shared();
        shared.avoided.avoid(pod.pod.instance.number(), uid, *port, Instant::now());
    });
    async move {
        avoided?;
        let route = decision.route(pod).map_err(ClassifyError::from).ok()?;
        Plan::make(pod, decision, route).await.ok()
    }
}

/// Where a connection was tried.
#[derive(Default)]
struct Tried {
    peers: [Option<SocketAddr>; MOST_ATTEMPTS],
    count: usize,
}

impl Tried {
    fn add(&mut self, peer: SocketAddr) {
        if let Some(place) = self.peers.get_mut(self.count) {
            *place = Some(peer);
            self.count += 1;
        }
    }

    fn includes(&self, peer: SocketAddr) -> bool {
        self.peers.contains(&Some(peer))
    }

    fn are_all(&self) -> bool {
        self.count == MOST_ATTEMPTS
    }

    /// The first attempt is not counted: it is the connection itself.
    fn count<T>(&self, pod: &LocalPod, outcome: &Result<T, ConnectionError>) {
        let retries = &pod.worker.shared().counters.retries;
        match outcome {
            _ if self.count <= 1 => {}
            Ok(_) => retries.connected(),
            Err(_) => retries.failed(),
        }
    }
}
