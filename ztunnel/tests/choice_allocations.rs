//! An endpoint is chosen for every connection, so the choice takes nothing from the allocator.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;

use fastrand::Rng;
use ztunnel::state::Mesh;
use ztunnel::state::avoided::Avoiding;
use ztunnel::state::balance::{Resolution, choose};
use ztunnel::state::model::{
    BalanceMode, LoadBalancer, Locality, NamespacedHostname, PortMap, Scope, Service, Workload,
};

fn host() -> NamespacedHostname {
    NamespacedHostname { namespace: "shop".into(), hostname: "server.shop.svc".into() }
}

/// Endpoints on many nodes in some zones, with weights.
fn mesh(mode: BalanceMode, preferences: &[Scope]) -> Mesh {
    let mut mesh = Mesh::new(None);
    mesh.upsert_service(Arc::new(Service {
        host: host(),
        ports: PortMap::from_iter([(80, 8080)]),
        load_balancer: LoadBalancer { mode, preferences: preferences.into(), ..LoadBalancer::default() },
        ..Service::default()
    }));
    for index in 0..800_u16 {
        mesh.upsert_workload(Arc::new(Workload {
            uid: format!("c//Pod/shop/server-{index}").into(),
            namespace: "shop".into(),
            node: format!("node-{}", index % 50).into(),
            locality: Locality { zone: format!("zone-{}", index % 5).into(), ..Locality::default() },
            capacity: u32::from(index % 3),
            addresses: [[10, 0, (index / 200) as u8, (index % 200) as u8].into()].into(),
            services: [(host(), PortMap::from_iter([(80, 8080)]))].into_iter().collect(),
            ..Workload::default()
        }));
    }
    mesh
}

#[test]
fn no_choice_costs_an_allocation() {
    for (mode, preferences) in [
        (BalanceMode::Standard, &[][..]),
        (BalanceMode::Failover, &[Scope::Network, Scope::Zone, Scope::Node]),
        (BalanceMode::Strict, &[Scope::Zone, Scope::Node]),
    ] {
        let mesh = mesh(mode, preferences);
        let service = mesh.service("shop", "server.shop.svc").unwrap();
        let client = mesh.workload("c//Pod/shop/server-7").unwrap();
        let mut rng = Rng::with_seed(7);
        let mut chosen = 0;
        let counted = allocation_counter::measure(|| {
            for _ in 0..1_000 {
                let choice =
                    choose(&mesh, service, 80, client, Resolution::Standard, Avoiding::NOBODY, &mut rng);
                chosen += usize::from(choice.is_some_and(|choice| choice.port == 8080));
            }
        });
        assert_eq!((chosen, counted.count_total), (1_000, 0), "{mode:?}");
    }
}
