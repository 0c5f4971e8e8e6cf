//! The workloads behind one service, grouped by everything that load balancing asks of them but their node.
//!
//! A service of 50,000 pods has a handful of groups: one for each locality, network and version of its ports. A choice
//! judges groups, by any of their endpoints, and then draws within them; inside a group endpoints stand by node, so that
//! those of one node are a range.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use super::cow_list::{CowList, Ranked};
use super::model::{Health, PortMap, Workload};
use super::weighted_list::{Sum, Taken, Weighted, WeightedList};

/// The workloads that name one service. A clone shares everything until one of the two changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Endpoints(CowList<Group>);

/// Endpoints of one service among which load balancing tells no difference, except by node and capacity.
#[derive(Clone, Debug)]
pub(crate) struct Group(WeightedList<Endpoint>);

/// A workload as the endpoint of the `service`-th of its services.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    workload: Arc<Workload>,
    service: u32,
    /// As the workload says. Here, so that a draw reads one line of memory and not one workload after another.
    capacity: u32,
}

/// What a service knows of one of its endpoints.
#[derive(Clone, Copy, Debug)]
pub struct EndpointRef<'a> {
    /// The workload behind it.
    pub workload: &'a Arc<Workload>,
    /// Its ports for this service.
    pub ports: &'a PortMap,
    /// Its health for this service.
    pub health: Health,
}

impl Endpoints {
    /// Adds an endpoint, or replaces the same workload's in the same [place](Endpoint::shares_place_with).
    pub(crate) fn put(&mut self, endpoint: Endpoint) {
        let alone = Group(WeightedList::One(endpoint.clone()));
        match self.0.get_mut(&alone) {
            Some(group) => group.0.put(endpoint),
            None => self.0.put(alone),
        }
    }

    /// Takes out the endpoint in the place of `endpoint`, if there is one.
    pub(crate) fn take(&mut self, endpoint: &Endpoint) {
        let alone = Group(WeightedList::One(endpoint.clone()));
        let Some(group) = self.0.get_mut(&alone) else { return };
        if group.0.take(endpoint) == Taken::WouldBeEmpty {
            self.0.take(&alone);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = &Group> {
        self.0.iter()
    }

    /// All endpoints, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = EndpointRef<'_>> {
        self.groups().flat_map(|group| group.0.iter().map(Endpoint::view))
    }
}

impl Group {
    /// One of its endpoints, which stands for all of them.
    pub(crate) fn representative(&self) -> EndpointRef<'_> {
        self.0.first().view()
    }

    /// All of them together.
    pub(crate) fn total(&self) -> Sum {
        self.0.total()
    }

    /// Where the endpoints on `node` stand.
    pub(crate) fn on_node(&self, node: &str) -> Range<Sum> {
        let start = self.0.sum_while(|endpoint| &*endpoint.workload.node < node);
        start..self.0.sum_while(|endpoint| &*endpoint.workload.node <= node)
    }

    /// The endpoint at this position.
    pub(crate) fn at(&self, position: usize) -> Option<EndpointRef<'_>> {
        self.0.at(position).map(Endpoint::view)
    }

    /// The endpoint that owns this share of the total weight.
    pub(crate) fn at_weight(&self, share: u64) -> Option<EndpointRef<'_>> {
        self.0.at_weight(share).map(Endpoint::view)
    }
}

impl Endpoint {
    /// `workload` as the endpoint of the `service`-th of its services, which it must have.
    pub(crate) fn new(workload: &Arc<Workload>, service: u32) -> Self {
        Self { workload: workload.clone(), service, capacity: workload.capacity }
    }

    /// True when putting one of the two replaces the other.
    pub(crate) fn shares_place_with(&self, other: &Self) -> bool {
        compare_classes(self, other) == Ordering::Equal && self.rank(other) == Ordering::Equal
    }

    fn ports(&self) -> &PortMap {
        &self.workload.services[self.service as usize].1
    }

    fn view(&self) -> EndpointRef<'_> {
        EndpointRef { workload: &self.workload, ports: self.ports(), health: self.workload.health }
    }
}

impl Ranked for Endpoint {
    fn rank(&self, other: &Self) -> Ordering {
        fn key(endpoint: &Endpoint) -> impl Ord {
            (&endpoint.workload.node, &endpoint.workload.uid)
        }
        key(self).cmp(&key(other))
    }
}

impl Weighted for Endpoint {
    fn weight(&self) -> u32 {
        self.capacity
    }
}

impl Ranked for Group {
    fn rank(&self, other: &Self) -> Ordering {
        compare_classes(self.0.first(), other.0.first())
    }
}

/// Endpoints that compare equal are the same to load balancing: what may differ are node, capacity, addresses and the
/// numbers of the ports that they serve.
fn compare_classes(one: &Endpoint, other: &Endpoint) -> Ordering {
    fn class(endpoint: &Endpoint) -> impl Ord {
        let workload = &endpoint.workload;
        (
            &workload.network,
            (&workload.locality.region, &workload.locality.zone, &workload.locality.subzone),
            &workload.cluster_id,
            workload.health == Health::Healthy,
            workload.has_address_or_hostname(),
            workload.application_tunnel.is_some(),
            &workload.network_gateway,
        )
    }
    class(one).cmp(&class(other)).then_with(|| {
        let served = one.ports().iter().map(|(service_port, _)| service_port);
        served.cmp(other.ports().iter().map(|(service_port, _)| service_port))
    })
}
