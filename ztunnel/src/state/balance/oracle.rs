//! The choice against a naive evaluator, written down the way the rules are told, on random meshes and their histories.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use fastrand::Rng;
use proptest::prelude::*;

use super::*;
use crate::state::avoided::Avoided;
use crate::state::model::{
    ApplicationTunnel, ApplicationTunnelProtocol, Destination, ExplicitEndpoint, Locality,
    NamespacedHostname, PortMap,
};

const PORT: u16 = 80;
const POD: u64 = 7;

fn host() -> NamespacedHostname {
    NamespacedHostname { namespace: "ns".into(), hostname: "svc".into() }
}

fn one_of<T: Clone>(rng: &mut Rng, values: &[T]) -> T {
    values[rng.usize(..values.len())].clone()
}

/// A workload of few kinds, so that many are alike.
fn workload(uid: u16, rng: &mut Rng) -> Workload {
    let gateway = |port| GatewayAddress { destination: Destination::Hostname(host()), hbone_mtls_port: port };
    let tunnel = |port| ApplicationTunnel { protocol: ApplicationTunnelProtocol::None, port };
    let ports: PortMap =
        one_of(rng, &[vec![(80, 8080)], vec![(80, 8080)], vec![(80, 9090), (81, 1)], vec![(81, 1)], vec![]])
            .into_iter()
            .collect();
    Workload {
        uid: uid.to_string().into(),
        namespace: "ns".into(),
        network: one_of(rng, &["", "", "far"]).into(),
        node: one_of(rng, &["a", "b", "c"]).into(),
        cluster_id: one_of(rng, &["k", "k", "l"]).into(),
        locality: Locality {
            region: one_of(rng, &["r", "r", "s"]).into(),
            zone: one_of(rng, &["y", "z"]).into(),
            subzone: "".into(),
        },
        addresses: one_of(rng, &[vec![[10, 0, 0, 1].into()], vec![[10, 0, 0, 1].into()], vec![]]).into(),
        hostname: one_of(rng, &["", "", "name"]).into(),
        health: one_of(rng, &[Health::Healthy, Health::Healthy, Health::Unhealthy]),
        capacity: one_of(rng, &[0, 1, 1, 1, 3, u32::MAX]),
        application_tunnel: one_of(rng, &[None, None, Some(tunnel(None)), Some(tunnel(Some(15088)))]),
        network_gateway: one_of(rng, &[None, Some(gateway(1)), Some(gateway(2))]).map(Arc::new),
        services: if rng.u8(..8) == 0 { Arc::default() } else { [(host(), ports)].into() },
        ..Workload::default()
    }
}

fn service(rng: &mut Rng) -> Service {
    let scopes = [Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node, Scope::Cluster];
    let length = rng.usize(..5);
    let mut preferences = rng.choose_multiple(scopes, length);
    rng.shuffle(&mut preferences);
    let explicit = |uid: u16| ExplicitEndpoint {
        workload_uid: uid.to_string().into(),
        ports: [(80, 7070)].into_iter().collect(),
        health: if uid.is_multiple_of(2) { Health::Healthy } else { Health::Unhealthy },
    };
    let explicit_count = one_of(rng, &[0, 0, 3]);
    Service {
        host: host(),
        ports: one_of(rng, &[vec![(80, 8080)], vec![(80, 8080)], vec![(80, 0)], vec![]])
            .into_iter()
            .collect(),
        load_balancer: LoadBalancer {
            mode: one_of(
                rng,
                &[BalanceMode::Standard, BalanceMode::Strict, BalanceMode::Failover, BalanceMode::Failover],
            ),
            preferences: preferences.into(),
            health_policy: one_of(rng, &[HealthPolicy::OnlyHealthy, HealthPolicy::AllowAll]),
        },
        endpoints: (0..explicit_count).map(explicit).collect(),
        ..Service::default()
    }
}

/// One endpoint that may be chosen.
#[derive(Debug)]
struct Allowed {
    uid: String,
    port: Option<u16>,
    weight: u32,
    rank: usize,
}

/// Every endpoint that passes the filters, with the rank that its service's load balancer gives it for the client.
fn allowed(
    all: &BTreeMap<u16, Workload>,
    service: &Service,
    client: &Workload,
    resolution: Resolution,
) -> Vec<Allowed> {
    let declared = service.ports.get(PORT);
    if resolution == Resolution::Standard && declared.is_none() {
        return vec![];
    }
    let mut found = vec![];
    for workload in all.values() {
        let own = workload.services.iter().find(|(name, _)| *name == service.host);
        let named = service.endpoints.iter().find(|endpoint| endpoint.workload_uid == workload.uid);
        let (ports, health) = match (own, named) {
            (Some((_, ports)), _) => (ports, workload.health),
            (None, Some(endpoint)) => (&endpoint.ports, endpoint.health),
            (None, None) => continue,
        };
        if health == Health::Unhealthy && service.load_balancer.health_policy == HealthPolicy::OnlyHealthy {
            continue;
        }
        let is_elsewhere = workload.network != client.network && workload.network_gateway.is_some();
        if workload.addresses.is_empty() && workload.hostname.is_empty() && !is_elsewhere {
            continue;
        }
        let tunnel = workload.application_tunnel;
        match (resolution, declared) {
            (Resolution::Standard, Some(0)) if ports.get(PORT).is_none() => continue,
            (Resolution::Waypoint, None) if tunnel.is_none() => continue,
            _ => {}
        }
        let port = match (ports.get(PORT), declared, tunnel) {
            (Some(port), _, _) => Some(port),
            (None, Some(target), _) if target > 0 => Some(target),
            (None, _, Some(ApplicationTunnel { port: Some(_), .. })) => Some(PORT),
            _ => None,
        };
        let Some(rank) = rank(&service.load_balancer, workload, client) else { continue };
        found.push(Allowed { uid: workload.uid.to_string(), port, weight: workload.capacity, rank });
    }
    found
}

fn rank(balancer: &LoadBalancer, workload: &Workload, client: &Workload) -> Option<usize> {
    if balancer.mode == BalanceMode::Standard {
        return Some(0);
    }
    let matches: Vec<bool> = balancer
        .preferences
        .iter()
        .map(|scope| match scope {
            Scope::Region => workload.locality.region == client.locality.region,
            Scope::Zone => workload.locality.zone == client.locality.zone,
            Scope::Subzone => workload.locality.subzone == client.locality.subzone,
            Scope::Node => workload.node == client.node,
            Scope::Cluster => workload.cluster_id == client.cluster_id,
            Scope::Network => workload.network == client.network,
        })
        .collect();
    let is_network_first = balancer.preferences.first() == Some(&Scope::Network);
    let leading = |matches: &[bool]| matches.iter().take_while(|is_met| **is_met).count();
    let met = match &*matches {
        // Not met, but not the end either.
        [false, rest @ ..] if is_network_first => leading(rest),
        all => leading(all),
    };
    if balancer.mode == BalanceMode::Strict && met < matches.len() {
        return None;
    }
    let bonus = if is_network_first && matches[0] { matches.len() - 1 } else { 0 };
    Some(met + bonus)
}

type Outcome = Option<(String, u16)>;

fn outcome(endpoint: &Allowed) -> Outcome {
    Some((endpoint.uid.clone(), endpoint.port?))
}

/// Everything that the choice may come to.
fn outcomes(allowed: &[Allowed], avoided: &BTreeSet<(String, u16)>) -> BTreeSet<Outcome> {
    let ranks: BTreeSet<usize> = allowed.iter().map(|endpoint| endpoint.rank).collect();
    let drawable = |rank: usize| -> BTreeSet<Outcome> {
        allowed.iter().filter(|endpoint| endpoint.rank == rank && endpoint.weight > 0).map(outcome).collect()
    };
    let Some(highest) = ranks.last().map(|rank| drawable(*rank)).filter(|best| !best.is_empty()) else {
        return [None].into();
    };
    let is_avoided = |outcome: &Outcome| outcome.as_ref().is_some_and(|endpoint| avoided.contains(endpoint));
    let (left, right): (BTreeSet<_>, BTreeSet<_>) = highest.into_iter().partition(is_avoided);
    if left.is_empty() {
        return right;
    }
    // Instead of one that is avoided: another, as near as there is one.
    let instead =
        ranks.iter().rev().map(|rank| drawable(*rank)).take_while(|others| !others.is_empty()).find_map(
            |others| {
                let welcome: BTreeSet<_> =
                    others.into_iter().filter(|other| other.is_some() && !is_avoided(other)).collect();
                (!welcome.is_empty()).then_some(welcome)
            },
        );
    right.into_iter().chain(instead.unwrap_or(left)).collect()
}

proptest! {
    #[test]
    fn a_choice_is_one_of_those_that_the_rules_allow(
        changes in prop_oneof![1..8u16, 150..200u16].prop_flat_map(|uids| {
            prop::collection::vec((0..uids, any::<u64>(), prop::bool::weighted(0.25)), 1..500)
        }),
        seeds in prop::collection::vec(any::<u64>(), 12),
    ) {
        let mut mesh = Mesh::new(None);
        let mut all = BTreeMap::new();
        for (uid, seed, is_removal) in changes {
            if is_removal {
                mesh.remove_address(&uid.to_string());
                all.remove(&uid);
            } else {
                let workload = workload(uid, &mut Rng::with_seed(seed));
                mesh.upsert_workload(Arc::new(workload.clone()));
                all.insert(uid, workload);
            }
        }
        for seed in seeds {
            let mut rng = Rng::with_seed(seed);
            let (service, client) = (service(&mut rng), workload(u16::MAX, &mut rng));
            let resolution = one_of(&mut rng, &[Resolution::Standard, Resolution::Standard, Resolution::Waypoint]);
            let allowed = allowed(&all, &service, &client, resolution);
            let now = Instant::now();
            let memory = Avoided::new(now);
            let mut avoided = BTreeSet::new();
            // Few enough that all are remembered.
            let share = one_of(&mut rng, &[0, 2, 5]);
            for endpoint in allowed.iter().filter_map(outcome).filter(|_| rng.u8(..6) < share).take(100) {
                memory.avoid(POD, &endpoint.0, endpoint.1, now);
                avoided.insert(endpoint);
            }
            let avoiding = memory.at(POD, now);
            avoided.retain(|(uid, port)| avoiding.contains(uid, *port));
            let outcomes = outcomes(&allowed, &avoided);
            for _ in 0..10 {
                let chosen = choose(&mesh, &service, PORT, &client, resolution, avoiding, &mut rng)
                    .map(|choice| (choice.workload.uid.to_string(), choice.port));
                prop_assert!(outcomes.contains(&chosen), "{chosen:?} not in {outcomes:?}");
            }
        }
    }
}

/// Every endpoint gets its share of 100,000 draws, within five standard deviations.
#[test]
fn endpoints_are_drawn_in_proportion_to_their_capacity_among_those_of_the_highest_rank() {
    const DRAWS: u32 = 100_000;
    for seed in 0..12 {
        let mut rng = Rng::with_seed(seed);
        let mut mesh = Mesh::new(None);
        let mut all = BTreeMap::new();
        for uid in 0..300 {
            let mut workload = workload(uid, &mut rng);
            workload.capacity = workload.capacity.min(9);
            mesh.upsert_workload(Arc::new(workload.clone()));
            all.insert(uid, workload);
        }
        let (service, client) = (service(&mut rng), workload(u16::MAX, &mut rng));
        let allowed = allowed(&all, &service, &client, Resolution::Standard);
        let highest = allowed.iter().map(|endpoint| endpoint.rank).max();
        let best: Vec<_> = allowed.iter().filter(|endpoint| Some(endpoint.rank) == highest).collect();
        let total: u32 = best.iter().map(|endpoint| endpoint.weight).sum();
        let mut counts = BTreeMap::<String, u32>::new();
        for _ in 0..DRAWS {
            let nobody = Avoiding::NOBODY;
            let chosen = choose(&mesh, &service, PORT, &client, Resolution::Standard, nobody, &mut rng);
            assert_eq!(chosen.is_some(), total > 0);
            if let Some(choice) = chosen {
                *counts.entry(choice.workload.uid.to_string()).or_default() += 1;
            }
        }
        for endpoint in best {
            let share = f64::from(endpoint.weight) / f64::from(total.max(1));
            let (expected, deviation) =
                (f64::from(DRAWS) * share, (f64::from(DRAWS) * share * (1.0 - share)).sqrt());
            let count = f64::from(counts.remove(&endpoint.uid).unwrap_or_default());
            assert!(
                (count - expected).abs() <= 5.0 * deviation,
                "{seed} {endpoint:?}: {count}, not {expected}"
            );
        }
        assert_eq!(counts, BTreeMap::new(), "others were drawn too");
    }
}
