//! Resources that cannot be used never widen access, and never keep good ones from being applied.

use std::net::SocketAddr;

use lab::istiod::{from_pod, pod_uid, policy, service_key, service_of, waypoint};
use lab::traffic::{Outcome, Server};
use lab::{Ack, BackendChoice, Driven, DrivenOptions, Pod, hello};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use xds_client::ResourceType::{Address, Authorization};
use xds_client::discovery::DeltaDiscoveryResponse;
use xds_client::security::{Action, Scope};
use xds_client::workload::{ApplicationTunnel, Port, Workload, application_tunnel};

use crate::{VIP, answers, cut, echo};

/// A value that no enum has.
const STRANGE: i32 = 99;

#[test]
fn good_resources_of_a_response_apply_and_the_bad_ones_are_named() {
    let scene = Driven::new().unwrap();
    let late = scene.west.node.pod("late").unwrap();
    assert_eq!(scene.west.agent.enrol(&late, BackendChoice::Nftables).unwrap(), Ack::Accepted);
    let echo = echo(&late);
    scene.istiod.push(|world| {
        world.set_raw(Address, "garbage", Some(vec![0xff; 8]));
        world.set_raw(Address, "hollow", None);
        world.set_raw(Address, "neither", Some(Vec::new()));
        world.enrol(&late);
    });
    for proxy in ["ztunnel-east", "ztunnel-west"] {
        let message = scene.istiod.wait_nacked(proxy, Address).unwrap();
        for name in ["garbage", "hollow", "neither"] {
            assert!(message.contains(&format!("{name}: ")), "{message}");
        }
        assert!(!message.contains(&pod_uid(&late)), "{message}");
    }
    assert!(answers(&scene.client, echo.ipv4()));
    let from_client = |line: &lab::AccessLine| line.text("src.identity") == scene.client.identity();
    scene.west.ztunnel().unwrap().wait_for_access(from_client).unwrap();

    // Corrected, nothing is left of it.
    scene.push(|world| ["garbage", "hollow", "neither"].map(|name| world.remove(Address, name))).unwrap();
}

#[test]
fn a_rejected_update_leaves_the_last_good_version_and_is_sent_again_after_a_reconnect() {
    let scene = Driven::new().unwrap();
    let echo = echo(&scene.server);
    let uid = pod_uid(&scene.server);
    let good = scene.istiod.read(|world| world.version(Address, &uid).unwrap().to_owned());
    let spoil = |workload: &mut Workload| {
        workload.tunnel_protocol = STRANGE;
        workload.addresses = vec![vec![127, 0, 0, 1].into()];
    };
    scene.istiod.push(|world| world.change_workload(&scene.server, spoil)).unwrap();
    for proxy in ["ztunnel-east", "ztunnel-west"] {
        let message = scene.istiod.wait_nacked(proxy, Address).unwrap();
        assert!(message.starts_with(&format!("{uid}: ")), "{message}");
    }
    assert!(answers(&scene.client, echo.ipv4()) && answers(&scene.outsider, echo.ipv4()));

    let nacks = scene.istiod.nacks().len();
    let streams = scene.istiod.streams_so_far();
    scene.istiod.cut();
    scene.istiod.wait_for_streams(streams + 2).unwrap();
    let rejected_again = |answers: &[lab::istiod::Answered]| {
        (answers.iter().filter(|answer| answer.rejection().is_some()).count() >= nacks + 2).then_some(())
    };
    scene.istiod.wait_logged("both proxies to reject it again", rejected_again).unwrap();
    let first = scene.istiod.first_request("ztunnel-east", Address).unwrap();
    assert_eq!(first.request.initial_resource_versions.get(&uid), Some(&good));
    assert!(answers(&scene.client, echo.ipv4()));
    scene.push(|world| world.enrol(&scene.server)).unwrap();
    assert!(answers(&scene.client, echo.ipv4()));
}

#[test]
fn a_rejected_policy_update_leaves_the_policy_in_force() {
    let scene = Driven::new().unwrap();
    let echo = echo(&scene.server);
    let deny = policy("no-neighbour", Scope::Namespace, Action::Deny, vec![from_pod(&scene.neighbour)]);
    scene.push(|world| world.set_policy(&deny)).unwrap();
    assert!(cut(&scene.neighbour, echo.ipv4()));
    let mut strange = deny.clone();
    strange.action = STRANGE;
    strange.rules.clear();
    scene.istiod.push(|world| world.set_policy(&strange));
    for proxy in ["ztunnel-east", "ztunnel-west"] {
        let message = scene.istiod.wait_nacked(proxy, Authorization).unwrap();
        assert!(message.starts_with("default/no-neighbour: "), "{message}");
    }
    assert!(cut(&scene.neighbour, echo.ipv4()));
    assert!(answers(&scene.client, echo.ipv4()));
}

/// Answers as the waypoint, whatever it is asked.
async fn be_waypoint(mut stream: TcpStream, _peer: SocketAddr) -> lab::Result<()> {
    let mut question = Vec::new();
    stream.read_to_end(&mut question).await?;
    stream.write_all(b"by way of the waypoint").await?;
    Ok(stream.shutdown().await?)
}

/// A scene with the service `web` over the server, whose waypoint is the service `way`, which is the neighbour.
fn scene_with_waypoint() -> (Driven, Server) {
    let scene = Driven::new().unwrap();
    let relay = Server::start(&scene.neighbour, 15088, be_waypoint).unwrap();
    scene
        .push(|world| {
            let protocol = application_tunnel::Protocol::Proxy.into();
            let tunnel = ApplicationTunnel { protocol, port: 15088 };
            world.change_workload(&scene.neighbour, |workload| workload.application_tunnel = Some(tunnel))?;
            world.service("way", &[], (15008, 15008), &[&scene.neighbour])?;
            world.service("web", &[VIP], (80, 8080), &[&scene.server])?;
            world.change_service("web", |service| service.waypoint = Some(waypoint("way")))
        })
        .unwrap()
        .unwrap();
    (scene, relay)
}

fn goes_by_waypoint(from: &Pod) -> bool {
    hello(from, (VIP, 80).into()).unwrap() == Outcome::answered("by way of the waypoint")
}

#[test]
fn a_rejected_update_of_a_service_never_lets_traffic_around_its_waypoint() {
    let (scene, relay) = scene_with_waypoint();
    let echo = echo(&scene.server);
    assert!(goes_by_waypoint(&scene.client));
    // The first would drop the waypoint, the others point it nowhere.
    let spoil: [fn(&mut xds_client::workload::Service); 3] = [
        |service| service.waypoint = None,
        |service| service.waypoint = Some(xds_client::workload::GatewayAddress::default()),
        |service| service.addresses.clear(),
    ];
    for (round, change) in spoil.into_iter().enumerate() {
        let nacks = scene.istiod.nacks().len();
        scene
            .istiod
            .push(|world| {
                world.change_service("web", |service| {
                    change(service);
                    service.ip_families = STRANGE;
                })
            })
            .unwrap();
        let both = |answers: &[lab::istiod::Answered]| {
            (answers.iter().filter(|answer| answer.rejection().is_some()).count() >= nacks + 2).then_some(())
        };
        scene.istiod.wait_logged("both proxies to reject it", both).unwrap();
        assert!(scene.istiod.nacks().iter().all(|message| message.contains(&service_key("web"))));
        assert!(goes_by_waypoint(&scene.client), "round {round}");
    }
    assert_eq!(echo.accepted(), 0, "nothing reached the server but by way of the waypoint");
    assert_eq!(relay.accepted(), 4);
}

#[test]
fn a_waypoint_that_cannot_be_found_is_not_gone_around() {
    let scene = Driven::with(&DrivenOptions::default(), |world, server| {
        world.service("web", &[VIP], (80, 8080), &[server])?;
        world.change_service("web", |service| service.waypoint = Some(waypoint("not-there")))
    })
    .unwrap();
    let echo = echo(&scene.server);
    assert!(cut(&scene.client, (VIP, 80).into()));
    // Nor when the waypoint is rejected.
    let mut way = service_of("not-there", &[], &[Port { service_port: 15008, ..Port::default() }]);
    way.ip_families = STRANGE;
    scene.istiod.push(|world| world.set_service(way));
    scene.istiod.wait_nacked("ztunnel-east", Address).unwrap();
    assert!(cut(&scene.client, (VIP, 80).into()));
    assert_eq!(echo.accepted(), 0);
}

#[test]
fn a_service_whose_first_version_is_rejected_is_refused_and_not_passed_through() {
    let scene = Driven::new().unwrap();
    // Somebody outside the mesh has the service's address, so that going there in plaintext would work.
    scene.outsider.ip(&format!("addr add {VIP}/32 dev eth0")).unwrap();
    scene.east.node.ip(&format!("route add {VIP} dev pod3")).unwrap();
    let web = Server::start(&scene.outsider, 80, lab::traffic::echo).unwrap();
    let target = (VIP, 80).into();
    assert!(answers(&scene.client, target), "unknown addresses are passed through");
    let mut service =
        service_of("web", &[VIP], &[Port { service_port: 80, target_port: 8080, ..Port::default() }]);
    service.ip_families = STRANGE;
    scene.istiod.push(|world| world.set_service(service));
    scene.istiod.wait_nacked("ztunnel-east", Address).unwrap();
    assert!(cut(&scene.client, target));
    assert_eq!(web.accepted(), 1);

    // Corrected, it works; removed, its address is an unknown one again.
    scene.push(|world| world.service("web", &[VIP], (80, 8080), &[&scene.server])).unwrap().unwrap();
    let echo = echo(&scene.server);
    assert!(answers(&scene.client, target));
    assert_eq!((echo.accepted(), web.accepted()), (1, 1));
    scene.push(|world| world.remove_service("web")).unwrap();
    assert!(answers(&scene.client, target));
    assert_eq!((echo.accepted(), web.accepted()), (1, 2));
}

#[test]
fn a_response_that_is_no_message_or_of_a_strange_type_changes_nothing() {
    let scene = Driven::new().unwrap();
    let echo = echo(&scene.server);
    let strange = DeltaDiscoveryResponse {
        type_url: "type.googleapis.com/istio.workload.Strange".to_owned(),
        nonce: "a-strange-one".to_owned(),
        removed_resources: vec![pod_uid(&scene.server)],
        ..DeltaDiscoveryResponse::default()
    };
    scene.istiod.send(&strange).unwrap();
    // Field 2 says that more bytes follow than do.
    scene.istiod.send_bytes(vec![0x12, 0x7f]);
    // Whether the stream goes on or is made anew, what is pushed next arrives.
    scene.push(|world| world.service("web", &[VIP], (80, 8080), &[&scene.server])).unwrap().unwrap();
    lab::wait_until(|| answers(&scene.client, (VIP, 80).into())).unwrap();
    assert!(answers(&scene.client, echo.ipv4()));
}
