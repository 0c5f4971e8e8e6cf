//! The choice of an endpoint of a service, and of one of its waypoints.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use fastrand::Rng;

use super::avoided::{self, Avoiding};
use super::endpoints::{EndpointRef, Group};
use super::mesh::Mesh;
use super::model::{
    BalanceMode, GatewayAddress, Health, HealthPolicy, LoadBalancer, Scope, Service, Workload,
};
use super::weighted_list::Sum;

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
/// the load balancer ranks highest are drawn from in proportion to their capacity. None when nothing is left.
///
/// Who is to be avoided counts as if it might not be used, unless nobody else is left.
///
/// Costs one look at each group of endpoints and a few bisections in one of them, without allocation. Explicit endpoints,
/// which only a file written by hand has, cost a look each.
pub fn choose<'a>(
    mesh: &'a Mesh,
    service: &'a Service,
    port: u16,
    client: &Workload,
    resolution: Resolution,
    avoid: Avoiding<'_>,
    rng: &mut Rng,
) -> Option<Choice<'a>> {
    if resolution == Resolution::Standard && service.ports.get(port).is_none() {
        return None;
    }
    let candidates = Candidates { mesh, service, port, client, resolution };
    let (_, drawn) = candidates.draw(usize::MAX, rng)?;
    let choice = candidates.choice(&drawn);
    match choice {
        Some(first) if avoid.contains(&first.workload.uid, first.port) => {
            candidates.other(avoid, rng).or(choice)
        }
        _ => choice,
    }
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

/// Who may be chosen.
struct Candidates<'a, 'c> {
    mesh: &'a Mesh,
    service: &'a Service,
    port: u16,
    client: &'c Workload,
    resolution: Resolution,
}

/// Draws before the endpoints that are not avoided are searched for one by one.
const REDRAWS: usize = 8;

/// Endpoints looked at in such a search. No more can be avoided, and as many may have no capacity.
const LONGEST_SEARCH: usize = 2 * avoided::CAPACITY;

impl<'a> Candidates<'a, '_> {
    /// The best endpoint by rank, drawn by weight, of those that rank below `ceiling`; and its rank.
    fn draw(&self, ceiling: usize, rng: &mut Rng) -> Option<(usize, EndpointRef<'a>)> {
        let mut chosen = None;
        let mut highest = 0;
        let mut total: u64 = 0;
        for (rank, part) in self.parts().filter(|(rank, _)| *rank < ceiling) {
            match rank.cmp(&highest) {
                Ordering::Less => continue,
                Ordering::Equal => {}
                Ordering::Greater => (highest, total, chosen) = (rank, 0, None),
            }
            // Reservoir sampling: the latest of the parts seen replaces the earlier choice with its share of the total.
            let weight = part.total().weight;
            total += weight;
            if weight > 0 && (weight == total || rng.u64(..total) < weight) {
                chosen = Some(part);
            }
        }
        let part: Part<'a> = chosen?;
        let weight = part.total().weight;
        let share = if weight > 1 { rng.u64(..weight) } else { 0 };
        Some((highest, part.at_weight(share)?))
    }

    /// An endpoint that is not avoided, of the highest rank that has one.
    fn other(&self, avoid: Avoiding<'_>, rng: &mut Rng) -> Option<Choice<'a>> {
        let mut budget = LONGEST_SEARCH;
        let mut ceiling = usize::MAX;
        let welcome = |endpoint: &EndpointRef<'a>| {
            self.choice(endpoint).filter(|choice| !avoid.contains(&choice.workload.uid, choice.port))
        };
        loop {
            let mut rank = 0;
            for _ in 0..REDRAWS {
                let (drawn_rank, endpoint) = self.draw(ceiling, rng)?;
                if let Some(choice) = welcome(&endpoint) {
                    return Some(choice);
                }
                rank = drawn_rank;
            }
            for (_, part) in self.parts().filter(|(other, _)| *other == rank) {
                let found = part
                    .from(rng.usize(..part.total().items), &mut budget)
                    .find_map(|endpoint| welcome(&endpoint).filter(|choice| choice.workload.capacity > 0));
                if found.is_some() {
                    return found;
                }
            }
            ceiling = rank;
        }
    }

    fn choice(&self, endpoint: &EndpointRef<'a>) -> Option<Choice<'a>> {
        Some(Choice { workload: endpoint.workload, port: target_port(self.service, self.port, endpoint)? })
    }

    /// Everybody who may be chosen, in parts of equal rank.
    fn parts(&self) -> impl Iterator<Item = (usize, Part<'a>)> {
        let groups = self.mesh.endpoint_groups(self.service);
        let groups = groups.filter(|group| self.is_usable(&group.representative()));
        let explicit = self.mesh.explicit_endpoints(self.service);
        let explicit = explicit.filter(|endpoint| self.is_usable(endpoint));
        let explicit = explicit.filter_map(|endpoint| {
            let nodes = if self.client.node == endpoint.workload.node { Nodes::Same } else { Nodes::Other };
            Some((self.rank(endpoint.workload, nodes)?, Part::Explicit(endpoint)))
        });
        groups.flat_map(|group| self.split(group)).flatten().chain(explicit)
    }

    /// The endpoints of a group on the client's node and the others, or all of them where nobody asks for the node.
    fn split(&self, group: &'a Group) -> [Option<(usize, Part<'a>)>; 2] {
        let workload = group.representative().workload;
        let balancer = &self.service.load_balancer;
        if balancer.mode == BalanceMode::Standard || !balancer.preferences.contains(&Scope::Node) {
            let all = Part::Without(group, Sum::default()..Sum::default());
            return [self.rank(workload, Nodes::Other).map(|rank| (rank, all)), None];
        }
        let on_node = group.on_node(&self.client.node);
        let near = (self.rank(workload, Nodes::Same), Part::Within(group, on_node.clone()));
        let far = (self.rank(workload, Nodes::Other), Part::Without(group, on_node));
        [near, far].map(|(rank, part)| rank.filter(|_| part.total().items > 0).map(|rank| (rank, part)))
    }

    fn is_usable(&self, endpoint: &EndpointRef<'_>) -> bool {
        may_be_used(self.service, endpoint)
            && is_reachable(endpoint.workload, self.client)
            && serves(self.service, self.port, self.resolution, endpoint)
    }

    /// How well `workload` suits the client, larger is better; None when it may not be chosen at all.
    ///
    /// The number of leading preferences that it meets. The network as first preference is special: not meeting it does
    /// not end the count, but meeting it outweighs all the others together. So a client stays on its network whenever
    /// it can, and still gets the nearest endpoint when it cannot.
    fn rank(&self, workload: &Workload, nodes: Nodes) -> Option<usize> {
        let LoadBalancer { mode, preferences, .. } = &self.service.load_balancer;
        if *mode == BalanceMode::Standard {
            return Some(0);
        }
        let mut met = 0;
        let mut bonus = 0;
        for (position, scope) in preferences.iter().enumerate() {
            let network_first = position == 0 && *scope == Scope::Network;
            if shares(*scope, self.client, workload, nodes) {
                met += 1;
                if network_first {
                    bonus = preferences.len() - 1;
                }
            } else if !network_first {
                break;
            }
        }
        match mode {
            BalanceMode::Strict if met < preferences.len() => None,
            _ => Some(met + bonus),
        }
    }
}

/// Whether an endpoint is on the client's node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nodes {
    Same,
    Other,
}

/// Some endpoints that are alike to the load balancer; there may be none.
enum Part<'a> {
    /// These of a group.
    Within(&'a Group, Range<Sum>),
    /// All but these of a group.
    Without(&'a Group, Range<Sum>),
    /// One that the service names.
    Explicit(EndpointRef<'a>),
}

impl<'a> Part<'a> {
    fn total(&self) -> Sum {
        match self {
            Self::Within(_, range) => range.end.since(range.start),
            Self::Without(group, range) => group.total().since(range.end.since(range.start)),
            Self::Explicit(endpoint) => Sum { items: 1, weight: endpoint.workload.capacity.into() },
        }
    }

    /// The endpoint that owns this share of the part's weight.
    fn at_weight(&self, share: u64) -> Option<EndpointRef<'a>> {
        match self {
            Self::Within(group, range) => group.at_weight(range.start.weight + share),
            Self::Without(group, range) if share < range.start.weight => group.at_weight(share),
            Self::Without(group, range) => group.at_weight(share + range.end.weight - range.start.weight),
            Self::Explicit(endpoint) => Some(*endpoint),
        }
    }

    fn at(&self, position: usize) -> Option<EndpointRef<'a>> {
        match self {
            Self::Within(group, range) => group.at(range.start.items + position),
            Self::Without(group, range) if position < range.start.items => group.at(position),
            Self::Without(group, range) => group.at(position + range.end.items - range.start.items),
            Self::Explicit(endpoint) => Some(*endpoint),
        }
    }

    /// All endpoints, beginning at a position, as far as the `budget` reaches.
    fn from<'p>(&'p self, start: usize, budget: &'p mut usize) -> impl Iterator<Item = EndpointRef<'a>> + 'p {
        let length = self.total().items;
        (start..length).chain(0..start).map_while(move |position| {
            *budget = budget.checked_sub(1)?;
            self.at(position)
        })
    }
}

fn may_be_used(service: &Service, endpoint: &EndpointRef<'_>) -> bool {
    endpoint.health == Health::Healthy || service.load_balancer.health_policy == HealthPolicy::AllowAll
}

/// A workload with neither address nor hostname stands for something behind another network's gateway.
fn is_reachable(workload: &Workload, client: &Workload) -> bool {
    workload.has_address_or_hostname()
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

fn shares(scope: Scope, client: &Workload, workload: &Workload, nodes: Nodes) -> bool {
    match scope {
        Scope::Region => client.locality.region == workload.locality.region,
        Scope::Zone => client.locality.zone == workload.locality.zone,
        Scope::Subzone => client.locality.subzone == workload.locality.subzone,
        Scope::Node => nodes == Nodes::Same,
        Scope::Cluster => client.cluster_id == workload.cluster_id,
        Scope::Network => client.network == workload.network,
    }
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
