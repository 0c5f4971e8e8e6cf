use proptest::prelude::*;

use super::*;
use crate::state::model::{PortMap, Visibility};

/// A service with the given virtual addresses, exact ones and ranges alike.
fn service(namespace: &str, hostname: &str, addresses: &[&str]) -> Service {
    let exact = addresses.iter().filter_map(|text| text.parse().ok());
    let ranges = addresses.iter().filter_map(|text| text.parse().ok());
    Service {
        name: hostname.into(),
        host: NamespacedHostname { namespace: namespace.into(), hostname: hostname.into() },
        vips: exact.map(|address| NetworkAddress { network: "".into(), address }).collect(),
        cidr_vips: ranges.map(|cidr| NetworkCidr { network: "".into(), cidr }).collect(),
        ..Service::default()
    }
}

fn private(service: Service) -> Service {
    Service { visibility: Visibility::Namespace, ..service }
}

fn canonical(service: Service) -> Service {
    Service { canonical: true, ..service }
}

fn all(list: impl IntoIterator<Item = Service>) -> Services {
    let mut services = Services::default();
    for service in list {
        services.upsert(Arc::new(service));
    }
    services
}

/// `namespace/hostname` of what a client in `client` finds; `-` for a lookup on nobody's behalf, `none` for nothing.
fn vip(services: &Services, address: &str, client: &str) -> String {
    let client = (client != "-").then_some(client);
    let found = services.by_vip("", address.parse().unwrap(), client);
    found.map_or("none".to_owned(), |service| service.host.to_string())
}

fn name(services: &Services, hostname: &str, client: &str) -> String {
    let client = (client != "-").then_some(client);
    let found = services.by_hostname(hostname, client, None);
    found.map_or("none".to_owned(), |service| service.host.to_string())
}

fn assert_is_empty(services: &Services) {
    assert_eq!(services.by_hostname.len(), 0);
    assert_eq!(services.by_vip.len(), 0);
    assert_eq!(services.by_cidr.len(), 0);
    assert!(services.ipv4_lengths.is_empty() && services.ipv6_lengths.is_empty());
}

#[test]
fn a_shared_address_belongs_to_the_clients_namespace() {
    let mut services = all([service("a", "x", &["10.0.0.1"]), service("b", "x", &["10.0.0.1", "10.0.0.2"])]);
    assert_eq!(vip(&services, "10.0.0.1", "a"), "a/x");
    assert_eq!(vip(&services, "10.0.0.1", "b"), "b/x");
    assert_eq!(vip(&services, "10.0.0.1", "c"), "a/x");
    assert_eq!(vip(&services, "10.0.0.2", "a"), "b/x");
    services.remove("a", "x");
    assert_eq!(vip(&services, "10.0.0.1", "a"), "b/x");
    services.remove("b", "x");
    assert_is_empty(&services);
}

#[test]
fn several_services_of_one_namespace_share_an_address_and_all_survive() {
    let services = || [service("a", "one", &["10.0.0.1"]), service("a", "two", &["10.0.0.1"])];
    let other = || service("b", "other", &["10.0.0.1"]);
    for order in [[0, 1], [1, 0]] {
        let mut services = all(order.map(|index| services()[index].clone()).into_iter().chain([other()]));
        assert_eq!(vip(&services, "10.0.0.1", "a"), "a/one", "whatever order they came in");
        assert_eq!(vip(&services, "10.0.0.1", "c"), "a/one");
        services.upsert(Arc::new(service("a", "two", &["10.0.0.1"])));
        assert_eq!(vip(&services, "10.0.0.1", "a"), "a/one", "an update is no reason to change hands");
        services.remove("a", "one");
        assert_eq!(vip(&services, "10.0.0.1", "a"), "a/two");
        services.remove("a", "two");
        assert_eq!(vip(&services, "10.0.0.1", "a"), "b/other");
    }
}

#[test]
fn a_canonical_service_comes_before_the_first() {
    let services = all([
        service("d", "x", &["10.0.0.1"]),
        canonical(service("c", "x", &["10.0.0.1"])),
        canonical(service("b", "x", &["10.0.0.1"])),
        service("a", "x", &["10.0.0.1"]),
    ]);
    for lookup in [vip(&services, "10.0.0.1", "z"), name(&services, "x", "z"), name(&services, "x", "-")] {
        assert_eq!(lookup, "b/x", "of several, the lowest");
    }
    assert_eq!(name(&services, "x", "d"), "d/x");
}

#[test]
fn the_preferred_namespace_comes_after_canonical_and_before_the_first() {
    let of = |services: &Services| {
        services.by_hostname("x", Some("z"), Some("b")).map(|found| found.host.to_string())
    };
    let mut services = all([service("a", "x", &[]), service("b", "x", &[])]);
    assert_eq!(of(&services).as_deref(), Some("b/x"));
    services.upsert(Arc::new(canonical(service("c", "x", &[]))));
    assert_eq!(of(&services).as_deref(), Some("c/x"));
}

#[test]
fn private_services_are_found_from_their_namespace_and_on_nobodys_behalf() {
    let services = all([private(service("a", "x", &["10.0.0.1", "10.1.0.0/16"]))]);
    for (client, expected) in [("a", "a/x"), ("b", "none"), ("-", "a/x")] {
        assert_eq!(vip(&services, "10.0.0.1", client), expected);
        assert_eq!(vip(&services, "10.1.2.3", client), expected);
        assert_eq!(name(&services, "x", client), expected);
    }
}

#[test]
fn a_hidden_service_makes_way_for_a_public_one() {
    let services = all([
        private(service("owner", "x", &["10.0.0.1"])),
        service("public", "y", &["10.0.0.0/24"]),
        service("public", "x", &[]),
    ]);
    assert_eq!(vip(&services, "10.0.0.1", "other"), "public/y");
    assert_eq!(vip(&services, "10.0.0.1", "owner"), "owner/x");
    assert_eq!(name(&services, "x", "other"), "public/x");
    assert_eq!(name(&services, "x", "owner"), "owner/x");
}

#[test]
fn the_longest_range_wins_and_an_exact_address_beats_it() {
    let services = all([
        service("a", "wide", &["10.0.0.0/16", "fd00::/48"]),
        service("a", "narrow", &["10.0.1.7/24", "fd00::1:0/112"]),
        service("a", "exact", &["10.0.1.9", "fd00::1:9"]),
    ]);
    for (address, expected) in [
        ("10.0.1.5", "a/narrow"),
        ("10.0.1.255", "a/narrow"),
        ("10.0.2.0", "a/wide"),
        ("10.1.0.0", "none"),
        ("10.0.1.9", "a/exact"),
        ("fd00::1:5", "a/narrow"),
        ("fd00::1:ffff", "a/narrow"),
        ("fd00::2:0", "a/wide"),
        ("fd00::1:9", "a/exact"),
        ("fd01::", "none"),
    ] {
        assert_eq!(vip(&services, address, "z"), expected, "{address}");
    }
}

#[test]
fn families_never_mix() {
    let services = all([service("a", "x", &["0.0.0.0/0"]), service("a", "y", &["fd00::/8"])]);
    assert_eq!(vip(&services, "fe80::1", "z"), "none");
    assert_eq!(vip(&services, "fd00::1", "z"), "a/y");
    assert_eq!(vip(&services, "1.2.3.4", "z"), "a/x");
}

#[test]
fn a_range_counts_in_its_own_network_only() {
    let mut ranged = service("a", "x", &["10.0.0.0/8"]);
    ranged.cidr_vips[0].network = "net".into();
    let services = all([ranged]);
    assert!(services.by_vip("net", "10.1.1.1".parse().unwrap(), None).is_some());
    assert!(services.by_vip("", "10.1.1.1".parse().unwrap(), None).is_none());
}

#[test]
fn a_range_of_the_clients_namespace_beats_a_longer_one_elsewhere() {
    let services = all([service("a", "x", &["10.0.0.0/16"]), service("b", "x", &["10.0.0.0/24"])]);
    assert_eq!(vip(&services, "10.0.0.1", "a"), "a/x");
    for client in ["b", "c", "-"] {
        assert_eq!(vip(&services, "10.0.0.1", client), "b/x");
    }
}

#[test]
fn the_same_range_in_two_namespaces_is_kept_twice() {
    let mut services =
        all([service("a", "x", &["10.0.0.0/16"]), canonical(service("b", "x", &["10.0.0.0/16"]))]);
    assert_eq!(vip(&services, "10.0.0.1", "a"), "a/x");
    assert_eq!(vip(&services, "10.0.0.1", "c"), "b/x");
    services.remove("b", "x");
    assert_eq!(vip(&services, "10.0.0.1", "c"), "a/x");
    services.remove("a", "x");
    assert_is_empty(&services);
}

#[test]
fn an_update_moves_addresses_and_every_lookup_sees_the_same_version() {
    let mut services = all([service("a", "x", &["10.0.0.1", "10.0.0.2", "10.1.0.0/16"])]);
    let mut update = service("a", "x", &["10.0.0.2", "10.0.0.3", "10.1.0.0/16", "10.2.0.0/16"]);
    update.ports = PortMap::from_iter([(80, 8080)]);
    let update = Arc::new(update);
    services.upsert(update.clone());
    assert_eq!(vip(&services, "10.0.0.1", "-"), "none");
    for address in ["10.0.0.2", "10.0.0.3", "10.1.0.1", "10.2.0.1"] {
        let found = services.by_vip("", address.parse().unwrap(), None).unwrap();
        assert!(Arc::ptr_eq(found, &update), "{address}");
    }
    assert!(Arc::ptr_eq(services.exact("a", "x").unwrap(), &update));
    // The very same value once more changes nothing.
    services.upsert(update.clone());
    assert!(services.by_vip("", "10.0.0.3".parse().unwrap(), None).is_some());
    assert_eq!(services.iter().count(), 1);
    services.remove("a", "x");
    assert_is_empty(&services);
}

#[test]
fn names_that_are_no_service_keys_are_told_apart() {
    assert_eq!(parse_key("ns/host"), Some(("ns", "host")));
    assert_eq!(parse_key("/invalid"), Some(("", "invalid")));
    assert_eq!(parse_key("cluster//Pod/ns/name"), None);
    assert_eq!(parse_key("name"), None);
}

#[derive(Clone, Debug)]
struct Upsert {
    namespace: usize,
    hostname: usize,
    addresses: Vec<usize>,
    is_canonical: bool,
    is_private: bool,
}

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const HOSTNAMES: [&str; 3] = ["x", "y", "z"];
const ADDRESSES: [&str; 7] =
    ["10.0.0.1", "10.0.0.2", "10.0.0.0/24", "10.0.0.9/24", "10.0.0.0/16", "0.0.0.0/0", "10.0.0.1/32"];

fn upsert() -> impl Strategy<Value = Upsert> {
    let addresses = prop::collection::vec(0..ADDRESSES.len(), 0..4);
    (0..3usize, 0..3usize, addresses, any::<bool>(), any::<bool>()).prop_map(
        |(namespace, hostname, addresses, is_canonical, is_private)| Upsert {
            namespace,
            hostname,
            addresses,
            is_canonical,
            is_private,
        },
    )
}

/// A service as a client sees it, larger is better: the order of the rules, without the last.
fn rank(service: &Service, address: IpAddr, client: Option<&str>) -> Option<(bool, bool, u8, bool)> {
    if !service.is_visible_from(client) {
        return None;
    }
    let own = client == Some(&*service.host.namespace);
    if service.vips.iter().any(|vip| vip.address == address) {
        // The client's own namespace decides before everything else does.
        return Some((true, own, 0, !own && service.canonical));
    }
    let ranges = service.cidr_vips.iter().filter(|vip| vip.cidr.contains(&address));
    let longest = ranges.map(|vip| vip.cidr.prefix_len()).max()?;
    Some((false, own, longest, service.canonical))
}

proptest! {
    /// Against a plain list, searched from end to end.
    #[test]
    fn every_index_agrees_with_a_search_of_all_services(
        changes in prop::collection::vec((upsert(), prop::bool::weighted(0.2)), 0..60)
    ) {
        let mut services = Services::default();
        let mut all: Vec<Arc<Service>> = Vec::new();
        for (change, is_removal) in changes {
            let (namespace, hostname) = (NAMESPACES[change.namespace], HOSTNAMES[change.hostname]);
            all.retain(|other| (&*other.host.namespace, &*other.host.hostname) != (namespace, hostname));
            if is_removal {
                services.remove(namespace, hostname);
                continue;
            }
            let addresses: Vec<_> = change.addresses.iter().map(|index| ADDRESSES[*index]).collect();
            let service = Arc::new(Service {
                canonical: change.is_canonical,
                visibility: if change.is_private { Visibility::Namespace } else { Visibility::Public },
                ..service(namespace, hostname, &addresses)
            });
            all.push(service.clone());
            services.upsert(service);
        }
        for client in [None, Some("a"), Some("b"), Some("elsewhere")] {
            for address in ["10.0.0.1", "10.0.0.2", "10.0.0.77", "10.0.9.9", "192.0.2.1"] {
                let address = address.parse().unwrap();
                let best = all.iter().filter_map(|service| rank(service, address, client)).max();
                let found = services.by_vip("", address, client);
                prop_assert_eq!(found.and_then(|found| rank(found, address, client)), best, "{} {:?}", address, client);
                // Of several that are equally good, the lowest by name owns the address, whatever came first.
                if best.is_some() {
                    let equals = all.iter().filter(|service| rank(service, address, client) == best);
                    let lowest = equals.min_by_key(|service| &service.host);
                    prop_assert!(Arc::ptr_eq(found.unwrap(), lowest.unwrap()));
                }
            }
        }
        for service in &all {
            prop_assert!(Arc::ptr_eq(services.exact(&service.host.namespace, &service.host.hostname).unwrap(), service));
            services.remove(&service.host.namespace, &service.host.hostname);
        }
        assert_is_empty(&services);
    }
}
