//! What a namespace tells about itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod lab;

use std::net::IpAddr;

fn addresses(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|address| address.parse().unwrap()).collect()
}

#[test]
fn a_namespace_has_the_addresses_of_its_interfaces_but_for_those_that_all_have() {
    let Some(netns) = lab::namespace() else { return };
    assert_eq!(netns.addresses().unwrap(), addresses(&[]), "loopback is no evidence");
    lab::ip(&netns, "link add eth0 type veth peer name eth1");
    lab::ip(&netns, "link set eth0 up");
    lab::ip(&netns, "addr add 10.9.0.7/32 dev eth0");
    lab::ip(&netns, "addr add fd00:9::7/128 dev eth0 nodad");
    // Some network plugins put a pod's address on the loopback interface.
    lab::ip(&netns, "addr add 10.9.0.8/32 dev lo");
    assert_eq!(netns.addresses().unwrap(), addresses(&["10.9.0.7", "10.9.0.8", "fd00:9::7"]));
    lab::ip(&netns, "addr del 10.9.0.7/32 dev eth0");
    assert_eq!(netns.addresses().unwrap(), addresses(&["10.9.0.8", "fd00:9::7"]), "read anew each time");
}

#[test]
fn of_a_namespace_that_gave_itself_addresses_by_the_hundred_only_the_first_are_kept() {
    let Some(netns) = lab::namespace() else { return };
    for last in 0..100 {
        lab::ip(&netns, &format!("addr add 10.9.1.{last}/32 dev lo"));
    }
    let kept = netns.addresses().unwrap();
    assert_eq!(kept.len(), redirect::netns::MOST_ADDRESSES);
    assert!(kept.contains(&IpAddr::from([10, 9, 1, 0])), "{kept:?}");
}

#[test]
fn the_addresses_of_one_namespace_are_not_those_of_another() {
    let (Some(one), Some(other)) = (lab::namespace(), lab::namespace()) else { return };
    lab::ip(&one, "addr add 10.9.0.7/32 dev lo");
    lab::ip(&other, "addr add 10.9.0.8/32 dev lo");
    assert_eq!(one.addresses().unwrap(), addresses(&["10.9.0.7"]));
    assert_eq!(other.addresses().unwrap(), addresses(&["10.9.0.8"]));
}

#[test]
fn taking_over_waiting_connections_is_switched_on_in_one_namespace_only() {
    let (Some(one), Some(other)) = (lab::namespace(), lab::namespace()) else { return };
    one.migrate_waiting_connections().unwrap();
    let value = |netns: &redirect::Netns| {
        netns.run(|| std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").unwrap()).unwrap()
    };
    assert_eq!((value(&one).trim(), value(&other).trim()), ("1", "0"));
}
