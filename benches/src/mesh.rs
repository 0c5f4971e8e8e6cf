//! A mesh of any size, in the messages of the control plane.

use bytes::Bytes;
use xds_client::prost::Message as _;
use xds_client::workload::address::Type;
use xds_client::workload::{
    Address, Locality, NetworkAddress, Port, PortList, Service, TunnelProtocol, Workload, WorkloadType,
};

/// Workloads of one service each: what a mesh of 50,000 pods in 2,500 services has.
const REPLICAS: usize = 20;

/// Pods on one node.
const PODS_PER_NODE: usize = 50;

/// One resource: its name and its encoded payload.
pub type Resource = (String, Bytes);

/// All resources of a mesh of `workloads` pods: the services first.
pub fn resources(workloads: usize) -> Vec<Resource> {
    let services = (0..services(workloads)).map(|number| {
        let service = service(number);
        (service_name(number), Address { r#type: Some(Type::Service(service)) }.encode_to_vec().into())
    });
    services.chain((0..workloads).map(|number| pod_resource(number, 0))).collect()
}

/// The number of services in a mesh of `workloads` pods.
pub fn services(workloads: usize) -> usize {
    workloads.div_ceil(REPLICAS)
}

/// The `number`-th pod as a resource, in one of its versions: they differ in the revision.
pub fn pod_resource(number: usize, version: usize) -> Resource {
    let workload = pod(number, version);
    (workload.uid.clone(), Address { r#type: Some(Type::Workload(workload)) }.encode_to_vec().into())
}

/// Address of the `number`-th pod.
pub fn pod_address(number: usize) -> [u8; 4] {
    let [_, high, middle, low] = (number as u32).to_be_bytes();
    [10, high, middle, low]
}

/// The name of the `number`-th service's resource.
pub fn service_name(number: usize) -> String {
    format!("{}/{}", namespace(number), hostname(number))
}

/// The `number`-th service.
pub fn service(number: usize) -> Service {
    let [_, high, middle, low] = (number as u32).to_be_bytes();
    let vip = NetworkAddress {
        network: String::new(),
        address: vec![172, 16 + high, middle, low].into(),
        length: None,
    };
    Service {
        name: format!("service-{number}"),
        namespace: namespace(number),
        hostname: hostname(number),
        addresses: vec![vip],
        ports: vec![port(80, 8080), port(443, 8443)],
        canonical: true,
        ..Service::default()
    }
}

/// The `number`-th pod.
pub fn pod(number: usize, version: usize) -> Workload {
    let service = number / REPLICAS;
    let namespace = namespace(service);
    let name = format!("service-{service}-7d9c5b8f6d-{number:06x}");
    let ports = PortList { ports: vec![port(80, 8080), port(443, 8443)] };
    Workload {
        uid: format!("Kubernetes//Pod/{namespace}/{name}"),
        name,
        services: [(service_name(service), ports)].into(),
        namespace,
        addresses: vec![Bytes::copy_from_slice(&pod_address(number))],
        tunnel_protocol: TunnelProtocol::Hbone as i32,
        service_account: format!("service-{service}"),
        node: format!("ip-10-0-{}-1.eu-central-1.compute.internal", number / PODS_PER_NODE),
        canonical_name: format!("service-{service}"),
        canonical_revision: format!("v{version}"),
        workload_type: WorkloadType::Pod as i32,
        workload_name: format!("service-{service}-7d9c5b8f6d"),
        cluster_id: "Kubernetes".to_owned(),
        locality: Some(Locality {
            region: "eu-central-1".to_owned(),
            zone: format!("eu-central-1{}", ["a", "b", "c"][number % 3]),
            subzone: String::new(),
        }),
        ..Workload::default()
    }
}

fn namespace(service: usize) -> String {
    format!("namespace-{}", service / 10)
}

fn hostname(service: usize) -> String {
    format!("service-{service}.{}.svc.cluster.local", namespace(service))
}

fn port(service_port: u32, target_port: u32) -> Port {
    Port { service_port, target_port, app_protocol: 0 }
}
