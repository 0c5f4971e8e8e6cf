//! The wire format of every message, against bytes computed by hand from the source APIs.
//!
//! The bytes are written one field per line, as `tag length value` (protobuf encoding guide, "Message
//! Structure"), in order of field numbers. A wrong number, type or presence rule in a proto file shows up here
//! and nowhere else.

use std::collections::BTreeMap;
use std::fmt::Debug;

use proptest::prelude::*;
use xds_client::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status, resource::CacheControl,
};
use xds_client::prost::Message;
use xds_client::prost_types::{Any, Duration, Struct, Value, value::Kind};
use xds_client::security::string_match::MatchType;
use xds_client::security::{
    Action, Authorization, Clause, Match, Rule, Scope, ServiceAccountMatch, StringMatch,
};
use xds_client::workload::{
    Address, AppProtocol, ApplicationTunnel, Extension, GatewayAddress, IpFamilies, LoadBalancing, Locality,
    NamespacedHostname, NetworkAddress, NetworkMode, Port, PortList, Service, TunnelProtocol,
    WeightedWaypoint, Workload, WorkloadStatus, WorkloadType, address, application_tunnel, gateway_address,
    load_balancing, service,
};

#[test]
fn address_is_a_workload_or_a_service() {
    let workload = Workload { name: "n".into(), ..Workload::default() };
    assert_wire(&Address { r#type: Some(address::Type::Workload(workload)) }, &[b"\x0a\x03\x0a\x01n"]);
    let service = Service { name: "n".into(), ..Service::default() };
    assert_wire(&Address { r#type: Some(address::Type::Service(service)) }, &[b"\x12\x03\x0a\x01n"]);
}

#[test]
fn workload_has_the_field_numbers_of_the_istio_workload_api() {
    assert_wire(
        &full_workload(),
        &[
            b"\x0a\x01n",                                                           // 1 name
            b"\x12\x01s",                                                           // 2 namespace
            b"\x1a\x04\x0a\x00\x00\x01",                                            // 3 addresses
            b"\x22\x01w",                                                           // 4 network
            b"\x28\x01",                                                            // 5 tunnel_protocol
            b"\x32\x01t",                                                           // 6 trust_domain
            b"\x3a\x01a",                                                           // 7 service_account
            b"\x42\x0b\x0a\x06\x0a\x01x\x12\x01y\x18\xa0\x75",                      // 8 waypoint
            b"\x4a\x01k",                                                           // 9 node
            b"\x52\x01c",                                                           // 10 canonical_name
            b"\x5a\x01r",                                                           // 11 canonical_revision
            b"\x60\x03",                                                            // 12 workload_type
            b"\x6a\x01d",                                                           // 13 workload_name
            b"\x70\x01",                                                            // 14 native_tunnel
            b"\x82\x01\x03s/p", // 16 authorization_policies
            b"\x88\x01\x01",    // 17 status
            b"\x92\x01\x01K",   // 18 cluster_id
            b"\x9a\x01\x0e\x12\x09\x0a\x01w\x12\x04\x0a\x00\x00\x02\x18\xa0\x75", // 19 network_gateway
            b"\xa2\x01\x01u",   // 20 uid
            b"\xaa\x01\x01h",   // 21 hostname
            b"\xb2\x01\x10\x0a\x03s/v\x12\x09\x0a\x07\x08\x50\x10\x90\x3f\x18\x01", // 22 services
            b"\xba\x01\x05\x08\x01\x10\xf0\x75", // 23 application_tunnel
            b"\xc2\x01\x09\x0a\x01r\x12\x01z\x1a\x01b", // 24 locality
            b"\xc8\x01\x01",    // 25 network_mode
            b"\xd2\x01\x0b\x0a\x01e\x12\x06\x0a\x01t\x12\x01\x07", // 26 extensions
            b"\xda\x01\x02\x08\x05", // 27 capacity
        ],
    );
}

#[test]
fn service_has_the_field_numbers_of_the_istio_workload_api() {
    let service = Service {
        name: "n".into(),
        namespace: "s".into(),
        hostname: "h".into(),
        addresses: vec![NetworkAddress {
            network: "w".into(),
            address: vec![10, 0, 0, 9].into(),
            length: Some(24),
        }],
        ports: vec![Port { service_port: 80, target_port: 8080, app_protocol: 0 }],
        subject_alt_names: vec!["a".into()],
        waypoint: Some(gateway_by_hostname()),
        load_balancing: Some(LoadBalancing {
            routing_preference: vec![
                load_balancing::Scope::Network.into(),
                load_balancing::Scope::Region.into(),
            ],
            mode: load_balancing::Mode::Failover.into(),
            health_policy: load_balancing::HealthPolicy::AllowAll.into(),
        }),
        ip_families: IpFamilies::Dual.into(),
        extensions: vec![Extension { name: "e".into(), config: None }],
        canonical: true,
        ingress_use_waypoint: true,
        weighted_waypoints: vec![WeightedWaypoint { destination: Some(gateway_by_hostname()), weight: 75 }],
        visibility: service::Visibility::Namespace.into(),
    };
    assert_wire(
        &service,
        &[
            b"\x0a\x01n",                                                      // 1 name
            b"\x12\x01s",                                                      // 2 namespace
            b"\x1a\x01h",                                                      // 3 hostname
            b"\x22\x0b\x0a\x01w\x12\x04\x0a\x00\x00\x09\x18\x18",              // 4 addresses
            b"\x2a\x05\x08\x50\x10\x90\x3f",                                   // 5 ports
            b"\x32\x01a",                                                      // 6 subject_alt_names
            b"\x3a\x0b\x0a\x06\x0a\x01x\x12\x01y\x18\xa0\x75",                 // 7 waypoint
            b"\x42\x08\x0a\x02\x06\x01\x10\x02\x18\x01",                       // 8 load_balancing
            b"\x48\x03",                                                       // 9 ip_families
            b"\x52\x03\x0a\x01e",                                              // 10 extensions
            b"\x58\x01",                                                       // 11 canonical
            b"\x60\x01",                                                       // 12 ingress_use_waypoint
            b"\x6a\x0f\x0a\x0b\x0a\x06\x0a\x01x\x12\x01y\x18\xa0\x75\x10\x4b", // 13 weighted_waypoints
            b"\x70\x01",                                                       // 14 visibility
        ],
    );
}

#[test]
fn a_prefix_length_of_zero_differs_from_no_prefix_length() {
    let address = |length| NetworkAddress { network: String::new(), address: vec![0; 4].into(), length };
    assert_wire(&address(None), &[b"\x12\x04\x00\x00\x00\x00"]);
    assert_wire(&address(Some(0)), &[b"\x12\x04\x00\x00\x00\x00", b"\x18\x00"]);
}

#[test]
fn a_capacity_of_zero_differs_from_no_capacity() {
    assert_wire(&Workload { capacity: None, ..Workload::default() }, &[]);
    assert_wire(&Workload { capacity: Some(0), ..Workload::default() }, &[b"\xda\x01\x00"]);
}

#[test]
fn authorization_has_the_field_numbers_of_the_istio_security_api() {
    let authorization = Authorization {
        name: "n".into(),
        namespace: "s".into(),
        scope: Scope::WorkloadSelector.into(),
        action: Action::Deny.into(),
        rules: vec![Rule { clauses: vec![Clause { matches: vec![Match::default()] }] }],
        dry_run: true,
        extensions: vec![Extension { name: "e".into(), config: None }],
    };
    assert_wire(
        &authorization,
        &[
            b"\x0a\x01n",                // 1 name
            b"\x12\x01s",                // 2 namespace
            b"\x18\x02",                 // 3 scope
            b"\x20\x01",                 // 4 action
            b"\x2a\x04\x0a\x02\x12\x00", // 5 rules; a clause's matches are field 2
            b"\x30\x01",                 // 6 dry_run
            b"\x3a\x03\x0a\x01e",        // 7 extensions
        ],
    );
}

#[test]
fn match_has_the_field_numbers_of_the_istio_security_api() {
    let text = |match_type| vec![StringMatch { match_type: Some(match_type) }];
    let block = |address: [u8; 4], length| {
        vec![xds_client::security::Address { address: address.to_vec().into(), length }]
    };
    let account = |namespace: &str| {
        vec![ServiceAccountMatch { namespace: namespace.into(), service_account: "a".into() }]
    };
    let every_kind = Match {
        namespaces: text(MatchType::Exact("a".into())),
        not_namespaces: text(MatchType::Prefix("b".into())),
        principals: text(MatchType::Suffix("c".into())),
        not_principals: text(MatchType::Presence(())),
        source_ips: block([10, 0, 0, 0], 8),
        not_source_ips: block([10, 1, 0, 0], 16),
        destination_ips: block([0, 0, 0, 0], 0),
        not_destination_ips: block([10, 2, 0, 0], 16),
        destination_ports: vec![80, 8080],
        not_destination_ports: vec![15008],
        service_accounts: account("n"),
        not_service_accounts: account("m"),
        extensions: vec![Extension { name: "e".into(), config: None }],
    };
    assert_wire(
        &every_kind,
        &[
            b"\x0a\x03\x0a\x01a",                        // 1 namespaces, exact
            b"\x12\x03\x12\x01b",                        // 2 not_namespaces, prefix
            b"\x1a\x03\x1a\x01c",                        // 3 principals, suffix
            b"\x22\x02\x22\x00",                         // 4 not_principals, presence
            b"\x2a\x08\x0a\x04\x0a\x00\x00\x00\x10\x08", // 5 source_ips
            b"\x32\x08\x0a\x04\x0a\x01\x00\x00\x10\x10", // 6 not_source_ips
            b"\x3a\x06\x0a\x04\x00\x00\x00\x00",         // 7 destination_ips; a plain length of 0 is not sent
            b"\x42\x08\x0a\x04\x0a\x02\x00\x00\x10\x10", // 8 not_destination_ips
            b"\x4a\x03\x50\x90\x3f",                     // 9 destination_ports, packed
            b"\x52\x02\xa0\x75",                         // 10 not_destination_ports
            b"\x5a\x06\x0a\x01n\x12\x01a",               // 11 service_accounts
            b"\x62\x06\x0a\x01m\x12\x01a",               // 12 not_service_accounts
            b"\x6a\x03\x0a\x01e",                        // 13 extensions
        ],
    );
}

#[test]
fn delta_request_has_the_field_numbers_of_the_discovery_api() {
    let request = DeltaDiscoveryRequest {
        node: Some(Node {
            id: "i".into(),
            cluster: "c".into(),
            metadata: Some(object("k", Kind::BoolValue(true))),
        }),
        type_url: "t".into(),
        resource_names_subscribe: vec!["*".into()],
        resource_names_unsubscribe: vec!["-".into()],
        initial_resource_versions: BTreeMap::from([("b".into(), String::new()), ("a".into(), "1".into())]),
        response_nonce: "o".into(),
        error_detail: Some(Status {
            code: 3,
            message: "m".into(),
            details: vec![Any { type_url: "t".into(), value: vec![] }],
        }),
    };
    assert_wire(
        &request,
        &[
            b"\x0a\x11\x0a\x01i\x12\x01c\x1a\x09\x0a\x07\x0a\x01k\x12\x02\x20\x01", // 1 node
            b"\x12\x01t",                                                           // 2 type_url
            b"\x1a\x01*",                                  // 3 resource_names_subscribe
            b"\x22\x01-",                                  // 4 resource_names_unsubscribe
            b"\x2a\x06\x0a\x01a\x12\x011",                 // 5 initial_resource_versions, sorted
            b"\x2a\x03\x0a\x01b",                          //
            b"\x32\x01o",                                  // 6 response_nonce
            b"\x3a\x0a\x08\x03\x12\x01m\x1a\x03\x0a\x01t", // 7 error_detail
        ],
    );
}

#[test]
fn delta_response_has_the_field_numbers_of_the_discovery_api() {
    assert_wire(
        &full_response(),
        &[
            b"\x0a\x01v", // 1 system_version_info
            b"\x12\x19",  // 2 resources
            b"\x0a\x01v\x12\x06\x0a\x01t\x12\x01\x07\x1a\x01n\x22\x01a\x32\x02\x08\x01\x3a\x02\x08\x01",
            b"\x22\x01t", // 4 type_url
            b"\x2a\x01o", // 5 nonce
            b"\x32\x01g", // 6 removed_resources
        ],
    );
}

#[test]
fn unknown_fields_of_every_wire_type_are_skipped() {
    let bytes = [
        b"\x0a\x01n".as_slice(),
        b"\x7a\x01x",                                // 15, reserved, length-delimited
        b"\xa0\x06\x01",                             // 100, varint
        b"\xa1\x06\x01\x02\x03\x04\x05\x06\x07\x08", // 100, 64 bit
        b"\xa5\x06\x01\x02\x03\x04",                 // 100, 32 bit
        b"\xa3\x06\x08\x01\xa4\x06",                 // 100, group
        b"\xa2\x01\x01u",
    ]
    .concat();
    let decoded = Workload::decode(bytes.as_slice()).unwrap();
    assert_eq!(decoded, Workload { name: "n".into(), uid: "u".into(), ..Workload::default() });
}

#[test]
fn unknown_enum_values_arrive_as_numbers_and_unknown_arms_as_nothing() {
    let workload = Workload::decode(b"\x88\x01\x09".as_slice()).unwrap();
    assert_eq!(workload.status, 9);
    assert!(WorkloadStatus::try_from(workload.status).is_err());
    let address = Address::decode(b"\x1a\x03\x0a\x01n".as_slice()).unwrap();
    assert_eq!(address.r#type, None);
}

#[test]
fn malformed_bytes_are_errors() {
    for (bytes, fault) in [
        (b"\x0a\x05ab".as_slice(), "a length beyond the end"),
        (b"\x0a\x02\xff\xfe", "a string that is not UTF-8"),
        (b"\x08\x01", "a string field sent as varint"),
        (b"\x02\x00", "field number 0"),
        (b"\x28\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "a varint of eleven bytes"),
        (b"\xa3\x06\x08\x01", "a group without an end"),
    ] {
        assert!(Workload::decode(bytes).is_err(), "{fault} was accepted");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_decode_to_something_stable_or_to_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..256),
    ) {
        assert_all_stable(&bytes);
    }

    #[test]
    fn damaged_messages_decode_to_something_stable_or_to_an_error(
        at in any::<prop::sample::Index>(),
        xor in 1..=u8::MAX,
        keep in any::<prop::sample::Index>(),
    ) {
        for mut bytes in [full_workload().encode_to_vec(), full_response().encode_to_vec()] {
            let at = at.index(bytes.len());
            bytes[at] ^= xor;
            bytes.truncate(keep.index(bytes.len()) + 1);
            assert_all_stable(&bytes);
        }
    }
}

/// Decodes `bytes` as each message that a peer sends us.
fn assert_all_stable(bytes: &[u8]) {
    assert_stable::<Address>(bytes);
    assert_stable::<Workload>(bytes);
    assert_stable::<Service>(bytes);
    assert_stable::<Authorization>(bytes);
    assert_stable::<DeltaDiscoveryResponse>(bytes);
}

/// What decodes must survive a round trip.
fn assert_stable<M: Message + Default + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        let again = M::decode(message.encode_to_vec().as_slice()).expect("own encoding decodes");
        assert_eq!(again, message);
    }
}

/// `message` encodes to exactly `fields`, and `fields` decode to exactly `message`.
#[track_caller]
fn assert_wire<M: Message + Default + PartialEq + Debug>(message: &M, fields: &[&[u8]]) {
    let expected = fields.concat();
    assert_eq!(
        message.encode_to_vec().escape_ascii().to_string(),
        expected.escape_ascii().to_string(),
        "encoding"
    );
    assert_eq!(&M::decode(expected.as_slice()).expect("expected bytes decode"), message, "decoding");
}

fn full_workload() -> Workload {
    let port = Port { service_port: 80, target_port: 8080, app_protocol: AppProtocol::Http11.into() };
    Workload {
        name: "n".into(),
        namespace: "s".into(),
        addresses: vec![vec![10, 0, 0, 1].into()],
        network: "w".into(),
        tunnel_protocol: TunnelProtocol::Hbone.into(),
        trust_domain: "t".into(),
        service_account: "a".into(),
        waypoint: Some(gateway_by_hostname()),
        node: "k".into(),
        canonical_name: "c".into(),
        canonical_revision: "r".into(),
        workload_type: WorkloadType::Job.into(),
        workload_name: "d".into(),
        native_tunnel: true,
        authorization_policies: vec!["s/p".into()],
        status: WorkloadStatus::Unhealthy.into(),
        cluster_id: "K".into(),
        network_gateway: Some(gateway_by_address()),
        uid: "u".into(),
        hostname: "h".into(),
        services: BTreeMap::from([("s/v".into(), PortList { ports: vec![port] })]),
        application_tunnel: Some(ApplicationTunnel {
            protocol: application_tunnel::Protocol::Proxy.into(),
            port: 15088,
        }),
        locality: Some(Locality { region: "r".into(), zone: "z".into(), subzone: "b".into() }),
        network_mode: NetworkMode::HostNetwork.into(),
        extensions: vec![Extension {
            name: "e".into(),
            config: Some(Any { type_url: "t".into(), value: vec![7] }),
        }],
        capacity: Some(5),
    }
}

fn full_response() -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        system_version_info: "v".into(),
        resources: vec![Resource {
            version: "v".into(),
            resource: Some(Any { type_url: "t".into(), value: vec![7] }),
            name: "n".into(),
            aliases: vec!["a".into()],
            ttl: Some(Duration { seconds: 1, nanos: 0 }),
            cache_control: Some(CacheControl { do_not_cache: true }),
        }],
        type_url: "t".into(),
        nonce: "o".into(),
        removed_resources: vec!["g".into()],
    }
}

fn gateway_by_hostname() -> GatewayAddress {
    let hostname = NamespacedHostname { namespace: "x".into(), hostname: "y".into() };
    GatewayAddress {
        destination: Some(gateway_address::Destination::Hostname(hostname)),
        hbone_mtls_port: 15008,
    }
}

fn gateway_by_address() -> GatewayAddress {
    let address = NetworkAddress { network: "w".into(), address: vec![10, 0, 0, 2].into(), length: None };
    GatewayAddress {
        destination: Some(gateway_address::Destination::Address(address)),
        hbone_mtls_port: 15008,
    }
}

fn object(key: &str, kind: Kind) -> Struct {
    Struct { fields: BTreeMap::from([(key.into(), Value { kind: Some(kind) })]) }
}
