//! A connection that the pod's application opened.

use std::rc::Rc;
use std::sync::Arc;

use hbone::{Authority, ConnectRequest, HostName, headers};
use redirect::socket::connect;

use super::accept::Accepted;
use super::classify::{self, ClassifyError};
use super::copy::{self, Transfer};
use super::error::{ConnectionError, os_error};
use super::pod::LocalPod;
use super::report::{Direction, Party, Record, deny_early};
use super::tunnel::{self, TunnelKey};
use crate::state::model::{Service, Workload};
use crate::state::route::{HboneRoute, PlainRoute, Route, RouteAuthority, RouteError};

/// Serves one connection, from classification to its report.
pub(crate) async fn serve(pod: Rc<LocalPod>, accepted: Accepted) {
    match decide(&pod, &accepted).await {
        Ok(plan) => {
            let record = plan.record(&accepted).open();
            let result = plan.carry_out(&pod, accepted, record.transfer()).await;
            record.finish(result);
        }
        Err(error) => deny_early(accepted.peer, accepted.destination, Direction::Outbound, &error),
    }
}

/// Everything that was decided about a connection.
struct Plan {
    source: Arc<Workload>,
    destination: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
    way: Way,
}

enum Way {
    /// TCP to this address.
    Plain(std::net::SocketAddr),
    /// A stream to this authority in such a tunnel.
    Hbone(Box<TunnelKey>, Authority),
}

async fn decide(pod: &LocalPod, accepted: &Accepted) -> Result<Plan, ClassifyError> {
    let source = classify::local_workload(pod).await?;
    match classify::outbound(pod, &source, accepted)? {
        Route::Plain(PlainRoute { target, workload, service }) => {
            let address = classify::resolve(&target, &mut pod.worker.rng()).await?;
            Ok(Plan { source, destination: workload, service, way: Way::Plain(address) })
        }
        Route::Hbone(HboneRoute { target, authority, identities, workload, service, .. }) => {
            let peer = classify::resolve(&target, &mut pod.worker.rng()).await?;
            let authority = match authority {
                RouteAuthority::Address(address) => Authority::from(address),
                RouteAuthority::Resolved(port) => Authority::from(std::net::SocketAddr::new(peer.ip(), port)),
                RouteAuthority::Hostname(name, port) => named(&name, port)?,
            };
            let identity = pod.identity(&source)?;
            let key = TunnelKey { source: identity, expected: identities.iter().cloned().collect(), peer };
            Ok(Plan {
                source,
                destination: Some(workload),
                service,
                way: Way::Hbone(Box::new(key), authority),
            })
        }
        // Refused rather than sent another way: what is behind a gateway must be reached through it.
        Route::DoubleHbone(route) => Err(RouteError::UnknownNetworkGateway(format!(
            "{} (other networks are not reached yet)",
            route.gateway.uid
        ))
        .into()),
    }
}

fn named(name: &Arc<str>, port: u16) -> Result<Authority, ClassifyError> {
    let name = HostName::new(name).map_err(|_| ClassifyError::Unresolved(name.clone()))?;
    Ok(Authority::Name(name, port))
}

impl Plan {
    fn record(&self, accepted: &Accepted) -> Record {
        let (address, authority, source_identity, identity) = match &self.way {
            Way::Plain(address) => (*address, None, None, None),
            Way::Hbone(key, authority) => {
                let identity = self.destination.as_ref().and_then(|workload| workload.identity());
                (key.peer, Some(authority.clone()), Some(key.source.clone()), identity)
            }
        };
        Record {
            direction: Direction::Outbound,
            since: accepted.at,
            source: Party {
                address: accepted.peer,
                workload: Some(self.source.clone()),
                identity: source_identity,
            },
            destination: Party { address, workload: self.destination.clone(), identity },
            hbone_authority: authority,
            service: self.service.clone(),
            transfer: Transfer::default(),
        }
    }

    async fn carry_out(
        self,
        pod: &Rc<LocalPod>,
        accepted: Accepted,
        transfer: &Transfer,
    ) -> Result<(), ConnectionError> {
        match self.way {
            Way::Plain(address) => {
                let upstream = connect(pod.pod.netns.as_ref(), None, address, &pod.pod.connect)
                    .await
                    .map_err(|error| ConnectionError::Destination(os_error(error)))?;
                copy::tcp_to_tcp(accepted.stream, upstream, transfer).await?;
            }
            Way::Hbone(key, authority) => {
                let service =
                    self.service.as_ref().and_then(|service| HostName::new(&service.host.hostname).ok());
                let request = ConnectRequest {
                    baggage: Some(pod.baggage(&self.source)),
                    forwarded: Some(headers::forwarded(accepted.peer, service.as_ref())),
                    traceparent: Some(headers::TraceParent::generate().encode()),
                    ..ConnectRequest::new(authority)
                };
                let upstream = tunnel::open_stream(pod, *key, &request).await?;
                copy::tcp_to_hbone(accepted.stream, upstream, transfer).await?;
            }
        }
        Ok(())
    }
}
