//! A connection that the pod's application opened.

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use hbone::{Authority, ConnectRequest, Connected, HostName, headers};
use redirect::socket::connect;

use super::accept::Accepted;
use super::classify::{self, ClassifyError};
use super::copy::{self, Transfer, TunnelPeer, Upstream};
use super::error::{ConnectionError, os_error};
use super::pod::LocalPod;
use super::report::{Direction, Party, Record, deny_early};
use super::task_set::Place;
use super::tunnel::{self, TunnelKey, unless_reset};
use crate::state::model::{Service, Workload};
use crate::state::route::{HboneRoute, Hop, PlainRoute, Route, RouteAuthority};

/// Serves one connection, from classification to its report.
pub(crate) async fn serve(pod: Rc<LocalPod>, accepted: Box<Accepted>, _place: Place) {
    // What happens before the bytes flow is boxed, so that a long-lived connection does not keep room for it.
    let plan = match Box::pin(decide(&pod, &accepted)).await {
        Ok(plan) => plan,
        Err(error) => {
            return deny_early(accepted.peer, accepted.destination, Direction::Outbound, &error);
        }
    };
    let record = plan.record(&accepted).open(&pod.open);
    let Accepted { stream: client, peer, .. } = *accepted;
    let tunnel_peer = plan.tunnel_peer;
    let connecting = unless_reset(&client, plan.connect(&pod, peer));
    let connected = Box::pin(record.cutter().unless_cut(connecting)).await;
    let result = match connected {
        Ok(Upstream::Tcp(upstream)) => {
            copy::tcp_to_tcp(client, upstream, record.transfer(), record.limits()).await.map_err(Into::into)
        }
        Ok(Upstream::Hbone(upstream, cut)) => {
            let (counts, limits) = (record.transfer(), record.limits());
            let result = copy::tcp_to_hbone(client, upstream, tunnel_peer, counts, limits).await;
            // Tunnels are cut for one reason only, and it goes before whatever that looked like from inside.
            if cut.is_set() { Err(ConnectionError::Revoked) } else { result.map_err(Into::into) }
        }
        Err(error) => Err(error),
    };
    record.finish(result);
}

/// Everything that was decided about a connection.
struct Plan {
    source: Arc<Workload>,
    destination: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
    tunnel_peer: TunnelPeer,
    way: Way,
}

enum Way {
    /// TCP to this address.
    Plain(SocketAddr),
    /// A stream to this authority in such a tunnel.
    Hbone(Box<TunnelKey>, Authority),
}

async fn decide(pod: &LocalPod, accepted: &Accepted) -> Result<Plan, ClassifyError> {
    let source = classify::local_workload(pod).await?;
    match classify::outbound(pod, &source, accepted).await? {
        Route::Plain(PlainRoute { target, workload, service }) => {
            let address = classify::resolve(pod, &source, &target).await?;
            let tunnel_peer = TunnelPeer::NodeProxy;
            Ok(Plan { source, destination: workload, service, tunnel_peer, way: Way::Plain(address) })
        }
        Route::Hbone(HboneRoute { target, authority, identities, workload, service, hop }) => {
            let peer = classify::resolve(pod, &source, &target).await?;
            let authority = match authority {
                RouteAuthority::Address(address) => Authority::from(address),
                RouteAuthority::Resolved(port) => Authority::from(SocketAddr::new(peer.ip(), port)),
                RouteAuthority::Hostname(name, port) => named(&name, port)?,
            };
            let identity = pod.identity(&source)?;
            let key = TunnelKey { source: identity, expected: identities, peer };
            Ok(Plan {
                source,
                destination: Some(workload),
                service,
                tunnel_peer: match hop {
                    Hop::Destination => TunnelPeer::NodeProxy,
                    Hop::Waypoint => TunnelPeer::Waypoint,
                },
                way: Way::Hbone(Box::new(key), authority),
            })
        }
        // Refused rather than sent another way: what is behind a gateway must be reached through it.
        Route::DoubleHbone(route) => Err(ClassifyError::OtherNetwork(route.gateway.uid.clone())),
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
            target: accepted.destination,
            service: self.service.clone(),
            transfer: Transfer::default(),
            permitted_by: OnceCell::new(),
        }
    }

    async fn connect(self, pod: &Rc<LocalPod>, client: SocketAddr) -> Result<Upstream, ConnectionError> {
        match self.way {
            Way::Plain(address) => {
                let connected = connect(pod.pod.netns.as_ref(), None, address, &pod.pod.connect).await;
                connected.map(Upstream::Tcp).map_err(|error| ConnectionError::Destination(os_error(error)))
            }
            Way::Hbone(key, authority) => {
                let service = self.service.and_then(|service| HostName::new(&service.host.hostname).ok());
                let request = ConnectRequest {
                    baggage: Some(pod.baggage(&self.source)),
                    forwarded: Some(headers::forwarded(client, service.as_ref())),
                    traceparent: Some(headers::TraceParent::generate().encode()),
                    ..ConnectRequest::new(authority)
                };
                let Connected { stream, cut, .. } = tunnel::open_stream(pod, *key, &request).await?;
                Ok(Upstream::Hbone(stream, cut))
            }
        }
    }
}
