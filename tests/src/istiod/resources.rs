//! Wire messages for the pods and services of a laboratory, to begin with and bend.

use std::net::IpAddr;

use xds_client::security::string_match::MatchType;
use xds_client::security::{Action, Authorization, Clause, Match, Rule, Scope, StringMatch};
use xds_client::workload::gateway_address::Destination;
use xds_client::workload::{
    GatewayAddress, NamespacedHostname, NetworkAddress, Port, Service, TunnelProtocol, Workload, WorkloadType,
};

use crate::Pod;

/// The cluster of a laboratory, as proxies and resources name it.
pub const CLUSTER: &str = "Kubernetes";

/// The workload of a pod that is in the mesh, as istiod describes it.
pub fn workload_of(pod: &Pod) -> Workload {
    Workload {
        uid: pod_uid(pod),
        name: pod.name().to_owned(),
        namespace: Pod::NAMESPACE.to_owned(),
        addresses: pod.addresses().iter().map(|address| octets(*address).into()).collect(),
        tunnel_protocol: TunnelProtocol::Hbone.into(),
        // No trust domain: istiod leaves it out where it is `cluster.local`.
        service_account: pod.service_account().to_owned(),
        node: pod.node().name().to_owned(),
        canonical_name: pod.name().to_owned(),
        canonical_revision: "latest".to_owned(),
        workload_type: WorkloadType::Pod.into(),
        workload_name: pod.name().to_owned(),
        cluster_id: CLUSTER.to_owned(),
        ..Workload::default()
    }
}

/// The name under which a pod's workload goes out.
pub fn pod_uid(pod: &Pod) -> String {
    format!("{CLUSTER}//Pod/{}/{}", Pod::NAMESPACE, pod.name())
}

/// A service of the laboratory's namespace, as istiod describes a Kubernetes service.
pub fn service_of(name: &str, vips: &[IpAddr], ports: &[Port]) -> Service {
    let at = |vip: &IpAddr| NetworkAddress { address: octets(*vip).into(), ..NetworkAddress::default() };
    Service {
        name: name.to_owned(),
        namespace: Pod::NAMESPACE.to_owned(),
        hostname: hostname(name),
        addresses: vips.iter().map(at).collect(),
        ports: ports.to_vec(),
        canonical: true,
        ..Service::default()
    }
}

/// The host name of a service of the laboratory's namespace.
pub fn hostname(service: &str) -> String {
    format!("{service}.{}.svc.cluster.local", Pod::NAMESPACE)
}

/// The name under which a service of the laboratory's namespace goes out.
pub fn service_key(service: &str) -> String {
    format!("{}/{}", Pod::NAMESPACE, hostname(service))
}

/// A waypoint that is a service of the laboratory's namespace.
pub fn waypoint(service: &str) -> GatewayAddress {
    let hostname = NamespacedHostname { namespace: Pod::NAMESPACE.to_owned(), hostname: hostname(service) };
    GatewayAddress { destination: Some(Destination::Hostname(hostname)), hbone_mtls_port: 15008 }
}

/// A policy of the laboratory's namespace with one rule of one clause, which holds when any of `matches` does. With
/// [`Scope::WorkloadSelector`] it applies to the workloads that list `default/<name>`.
pub fn policy(name: &str, scope: Scope, action: Action, matches: Vec<Match>) -> Authorization {
    Authorization {
        name: name.to_owned(),
        namespace: Pod::NAMESPACE.to_owned(),
        scope: scope.into(),
        action: action.into(),
        rules: vec![Rule { clauses: vec![Clause { matches }] }],
        ..Authorization::default()
    }
}

/// Matches connections of a pod's identity.
pub fn from_pod(pod: &Pod) -> Match {
    let principal = pod.identity().trim_start_matches("spiffe://").to_owned();
    let exactly = StringMatch { match_type: Some(MatchType::Exact(principal)) };
    Match { principals: vec![exactly], ..Match::default() }
}

/// Matches connections without an identity, as the policies made from a strict PeerAuthentication do.
pub fn without_identity() -> Match {
    let any = StringMatch { match_type: Some(MatchType::Presence(())) };
    Match { not_principals: vec![any], ..Match::default() }
}

/// `network/address`, the name by which clients demand what is at an address. None if the bytes are no address.
pub(super) fn network_address(network: &str, octets: &[u8]) -> Option<String> {
    let address: IpAddr = match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok()?.into(),
        16 => <[u8; 16]>::try_from(octets).ok()?.into(),
        _ => return None,
    };
    Some(format!("{network}/{address}"))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
