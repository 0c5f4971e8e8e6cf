//! A connection that the pod's application opened.

use std::cell::{OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use hbone::{Authority, ConnectRequest, HostName, headers};
use tokio::net::TcpStream;

use super::accept::Accepted;
use super::attempts;
use super::classify::{self, ClassifyError, Decision};
use super::copy::{self, Transfer, TunnelPeer, Upstream};
use super::error::{ConnectionError, os_error};
use super::gateway::{self, InnerKey};
use super::pod::LocalPod;
use super::report::{Direction, OpenRecord, Party, Reached, Record, deny_early};
use super::task_set::Place;
use super::tcp;
use super::tunnel::{self, TunnelKey, unless_reset};
use crate::state::model::{Service, Workload};
use crate::state::route::{HboneRoute, Hop, PlainRoute, Route, RouteAuthority};

/// Serves one connection, from classification to its report.
pub(crate) async fn serve(pod: Rc<LocalPod>, accepted: Box<Accepted>, _place: Place) {
    // What happens before the bytes flow is boxed, so that a long-lived connection does not keep room for it.
    let Some((record, connected)) = Box::pin(begin(&pod, *accepted)).await else { return };
    let result = match connected {
        Ok((client, Upstream::Tcp(upstream))) => {
            copy::tcp_to_tcp(client, upstream, record.transfer(), record.limits()).await.map_err(Into::into)
        }
        Ok((client, Upstream::Hbone(upstream, peer, cut))) => {
            let (counts, limits) = (record.transfer(), record.limits());
            let result = copy::tcp_to_hbone(client, upstream, peer, counts, limits).await;
            // Tunnels are cut for one reason only, and it goes before whatever that looked like from inside.
            if cut.is_set() { Err(ConnectionError::Revoked) } else { result.map_err(Into::into) }
        }
        Err(error) => Err(error),
    };
    record.finish(result);
}

type Connected = Result<(TcpStream, Upstream), ConnectionError>;

/// Everything up to the first byte. Nothing: the connection was refused before it was known where it goes.
async fn begin(pod: &Rc<LocalPod>, accepted: Accepted) -> Option<(OpenRecord, Connected)> {
    let (decision, plan) = match decide(pod, &accepted).await {
        Ok(decided) => decided,
        Err(error) => {
            deny_early(accepted.peer, accepted.destination, Direction::Outbound, &error);
            return None;
        }
    };
    let record = plan.record(&decision, &accepted).prepare(&pod.open);
    let Accepted { stream: client, peer, .. } = accepted;
    let connecting = unless_reset(&client, attempts::connect(pod, &decision, plan, peer, &record));
    let connected = record.cutter().unless_cut(connecting).await;
    Some((record, connected.map(|upstream| (client, upstream))))
}

/// How a connection is to be made.
pub(super) struct Plan {
    source: Arc<Workload>,
    destination: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
    tunnel_peer: TunnelPeer,
    way: Way,
    /// Who is to be avoided when the connection cannot be made: a workload's uid, and the port it was chosen for.
    pub(super) endpoint: Option<(Arc<str>, u16)>,
}

enum Way {
    /// TCP to this address.
    Plain(SocketAddr),
    /// A stream to this authority in such a tunnel.
    Hbone(Box<TunnelKey>, Authority),
    /// A stream in such a tunnel inside a tunnel.
    Gateway(Box<InnerKey>),
}

async fn decide(pod: &LocalPod, accepted: &Accepted) -> Result<(Box<Decision>, Plan), ClassifyError> {
    let decision = Box::new(classify::outbound(pod, accepted).await?);
    let route = decision.route(pod)?;
    let plan = Plan::make(pod, &decision, route).await?;
    Ok((decision, plan))
}

/// What a tunnel to `peer` is asked for.
fn asked(authority: &RouteAuthority, peer: SocketAddr) -> Result<Authority, ClassifyError> {
    match authority {
        RouteAuthority::Address(address) => Ok(Authority::from(*address)),
        RouteAuthority::Resolved(port) => Ok(Authority::from(SocketAddr::new(peer.ip(), *port))),
        RouteAuthority::Hostname(name, port) => {
            let host = HostName::new(name).map_err(|_| ClassifyError::Unresolved(name.clone()))?;
            Ok(Authority::Name(host, *port))
        }
    }
}

impl Plan {
    /// The plan for a route: names are resolved, and the identity of the pod is found.
    pub(super) async fn make(
        pod: &LocalPod,
        decision: &Decision,
        route: Route,
    ) -> Result<Self, ClassifyError> {
        let (source, listener) = (decision.source.clone(), decision.listener);
        let endpoint = route.endpoint().map(|(workload, port)| (workload.uid.clone(), port));
        let mut tunnel_peer = TunnelPeer::NodeProxy;
        let (way, destination, service) = match route {
            Route::Plain(PlainRoute { target, workload, service }) => {
                (Way::Plain(classify::resolve(pod, &source, &target).await?), workload, service)
            }
            Route::Hbone(HboneRoute { target, authority, identities, workload, service, hop }) => {
                if hop == Hop::Waypoint {
                    tunnel_peer = TunnelPeer::Waypoint;
                }
                let peer = classify::resolve(pod, &source, &target).await?;
                let key = TunnelKey { listener, source: pod.identity(&source)?, expected: identities, peer };
                (Way::Hbone(Box::new(key), asked(&authority, peer)?), Some(workload), service)
            }
            Route::DoubleHbone(route) => {
                // It may be one: that is up to the other network.
                tunnel_peer = TunnelPeer::Waypoint;
                let peer = classify::resolve(pod, &source, &route.target).await?;
                let expected = route.gateway_identities;
                let outer = TunnelKey { listener, source: pod.identity(&source)?, expected, peer };
                let key = InnerKey::new(outer, asked(&route.authority, peer)?, route.inner_identities);
                // Who is behind the gateway is not known before they answer.
                (Way::Gateway(Box::new(key)), None, Some(route.service))
            }
        };
        Ok(Self { source, destination, service, tunnel_peer, way, endpoint })
    }

    /// Where the first connection of the plan leads.
    pub(super) fn peer(&self) -> SocketAddr {
        match &self.way {
            Way::Plain(address) => *address,
            Way::Hbone(key, _) => key.peer,
            Way::Gateway(key) => key.gateway(),
        }
    }

    /// The far end, as far as the plan knows it.
    pub(super) fn reached(&self) -> Reached {
        let (hbone_authority, identity) = match &self.way {
            Way::Plain(_) => (None, None),
            Way::Hbone(_, authority) => {
                let identity = self.destination.as_ref().and_then(|workload| workload.identity());
                (Some(authority.clone()), identity)
            }
            Way::Gateway(key) => (Some(key.authority.clone()), None),
        };
        let destination = Party { address: self.peer(), workload: self.destination.clone(), identity };
        Reached { destination, hbone_authority }
    }

    fn record(&self, decision: &Decision, accepted: &Accepted) -> Record {
        let identity = match &self.way {
            Way::Plain(_) => None,
            Way::Hbone(key, _) => Some(key.source.clone()),
            Way::Gateway(key) => Some(key.outer.source.clone()),
        };
        let Reached { destination, hbone_authority } = self.reached();
        Record {
            direction: Direction::Outbound,
            since: accepted.at,
            source: Party { address: accepted.peer, workload: Some(decision.source.clone()), identity },
            destination,
            target: accepted.destination,
            hbone_authority,
            service: self.service.clone(),
            transfer: Transfer::default(),
            permitted_by: OnceCell::new(),
            reached: RefCell::default(),
        }
    }

    /// Makes the connection. What only shows with it is noted in `record`.
    pub(super) async fn connect(
        &self,
        pod: &Rc<LocalPod>,
        client: SocketAddr,
        record: &OpenRecord,
    ) -> Result<Upstream, ConnectionError> {
        match &self.way {
            Way::Plain(address) => {
                let connected = tcp::connect(pod, None, *address).await;
                connected.map(Upstream::Tcp).map_err(|error| ConnectionError::Destination(os_error(error)))
            }
            Way::Hbone(key, authority) => {
                let request = self.request(pod, client, authority.clone());
                let opened = tunnel::open_stream(pod, TunnelKey::clone(key), &request).await?;
                Ok(Upstream::Hbone(opened.stream, self.tunnel_peer, opened.cut))
            }
            Way::Gateway(key) => {
                let request = self.request(pod, client, key.authority.clone());
                let opened = gateway::open_stream(pod, key, request).await?;
                let mut reached = self.reached();
                (reached.destination.workload, reached.destination.identity) = gateway::far_end(&opened);
                record.reached(reached);
                Ok(Upstream::Hbone(opened.stream, self.tunnel_peer, opened.cut))
            }
        }
    }

    fn request(&self, pod: &LocalPod, client: SocketAddr, authority: Authority) -> ConnectRequest {
        let service = self.service.as_ref().and_then(|service| HostName::new(&service.host.hostname).ok());
        ConnectRequest {
            baggage: Some(pod.baggage(&self.source)),
            forwarded: Some(headers::forwarded(client, service.as_ref())),
            traceparent: Some(headers::TraceParent::generate().encode()),
            ..ConnectRequest::new(authority)
        }
    }
}
