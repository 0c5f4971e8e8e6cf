//! The choice of an endpoint of a service, and of one of its waypoints.

use std::cmp::Ordering;
use std::sync::Arc;

use fastrand::Rng;

use super::mesh::{EndpointRef, Mesh};
use super::model::{
    BalanceMode, GatewayAddress, Health, HealthPolicy, LoadBalancer, Scope, Service, Workload,
};

/// What an endpoint is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// A client's connection, or a network gateway: the service must declare the port.
    Standard,
    /// A waypoint: a port that the service does not declare is served by captured waypoints.
    Waypoint,
}

/// The endpoint that receives a connection.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The workload.
    pub workload: &'a Arc<Workload>,
    /// The port on it that serves the service port. 0 where the workload is only reached through a gateway.
    pub port: u16,
}

/// Draws an endpoint of `service` for a connection from `client` to the service's `port`.
///
/// Endpoints that cannot serve the port, cannot be reached or may not be used are passed over; of the rest, those that
/// the load balancer ranks highest are drawn from in proportion to their capacity. None when nothing is left. One pass
/// over the endpoints, without allocation.
pub fn choose<'a>(
    mesh: &'a Mesh,
    service: &'a Service,
    port: u16,
    client: &Workload,
    resolution: Resolution,
    rng: &mut Rng,
) -> Option<Choice<'a>> {
    if resolution == Resolution::Standard && service.ports.get(port).is_none() {
        return None;
    }
    let usable = |endpoint: &EndpointRef<'_>| {
        may_be_used(service, endpoint)
            && is_reachable(endpoint.workload, client)
            && serves(service, port, resolution, endpoint)
    };
    let mut chosen = None;
    let mut highest = 0;
    let mut total: u64 = 0;
    for endpoint in mesh.endpoints(service).filter(usable) {
        let Some(rank) = rank(&service.load_balancer, client, endpoint.workload) else {
            continue;
        };
        match rank.cmp(&highest) {
            Ordering::Less => continue,
            Ordering::Equal => {}
            Ordering::Greater => (highest, total, chosen) = (rank, 0, None),
        }
        // Reservoir sampling: the latest of the endpoints seen replaces the earlier choice with its share of the total.
        let weight = u64::from(endpoint.workload.capacity);
        total += weight;
        if weight > 0 && (weight == total || rng.u64(..total) < weight) {
            chosen = Some(endpoint);
        }
    }
    let endpoint = chosen?;
    Some(Choice { workload: endpoint.workload, port: target_port(service, port, &endpoint)? })
}

/// Draws the waypoint for one connection to `service`: from the weighted ones if any has a weight, else the plain one.
pub fn choose_waypoint<'a>(service: &'a Service, rng: &mut Rng) -> Option<&'a GatewayAddress> {
    let waypoints = &service.weighted_waypoints;
    let total: u64 = waypoints.iter().map(|waypoint| u64::from(waypoint.weight)).sum();
    if total == 0 {
        return service.waypoint.as_deref();
    }
    let mut drawn = rng.u64(..total);
    for waypoint in waypoints {
        let weight = u64::from(waypoint.weight);
        if drawn < weight {
            return Some(&waypoint.destination);
        }
        drawn -= weight;
    }
    None
}

fn may_be_used(service: &Service, endpoint: &EndpointRef<'_>) -> bool {
    endpoint.health == Health::Healthy || service.load_balancer.health_policy == HealthPolicy::AllowAll
}

/// A workload with neither address nor hostname stands for something behind another network's gateway.
fn is_reachable(workload: &Workload, client: &Workload) -> bool {
    !workload.addresses.is_empty()
        || !workload.hostname.is_empty()
        || (workload.network_gateway.is_some() && workload.network != client.network)
}

fn serves(service: &Service, port: u16, resolution: Resolution, endpoint: &EndpointRef<'_>) -> bool {
    match (resolution, service.ports.get(port)) {
        // A named port: only the endpoint knows its number.
        (Resolution::Standard, Some(0)) => endpoint.ports.get(port).is_some(),
        (Resolution::Standard, declared) => declared.is_some(),
        (Resolution::Waypoint, None) => endpoint.workload.application_tunnel.is_some(),
        (Resolution::Waypoint, Some(_)) => true,
    }
}

fn target_port(service: &Service, port: u16, endpoint: &EndpointRef<'_>) -> Option<u16> {
    let of_service = || service.ports.get(port).filter(|target| *target > 0);
    let of_tunnel = || endpoint.workload.application_tunnel?.port.map(|_| port);
    endpoint.ports.get(port).or_else(of_service).or_else(of_tunnel)
}

/// How well `workload` suits `client`, larger is better; None when it may not be chosen at all.
///
/// The number of leading preferences that it meets. The network as first preference is special: not meeting it does not
/// end the count, but meeting it outweighs all the others together. So a client stays on its network whenever it can,
/// and still gets the nearest endpoint when it cannot.
fn rank(balancer: &LoadBalancer, client: &Workload, workload: &Workload) -> Option<usize> {
    let preferences = &balancer.preferences;
    if balancer.mode == BalanceMode::Standard {
        return Some(0);
    }
    let mut met = 0;
    let mut bonus = 0;
    for (position, scope) in preferences.iter().enumerate() {
        let network_first = position == 0 && *scope == Scope::Network;
        if shares(*scope, client, workload) {
            met += 1;
            if network_first {
                bonus = preferences.len() - 1;
            }
        } else if !network_first {
            break;
        }
    }
    match balancer.mode {
        BalanceMode::Strict if met < preferences.len() => None,
        _ => Some(met + bonus),
    }
}

fn shares(scope: Scope, client: &Workload, workload: &Workload) -> bool {
    match scope {
        Scope::Region => client.locality.region == workload.locality.region,
        Scope::Zone => client.locality.zone == workload.locality.zone,
        Scope::Subzone => client.locality.subzone == workload.locality.subzone,
        Scope::Node => client.node == workload.node,
        Scope::Cluster => client.cluster_id == workload.cluster_id,
        Scope::Network => client.network == workload.network,
    }
}

#[cfg(test)]
mod tests;
