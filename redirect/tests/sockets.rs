//! Namespaces and sockets inside them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod lab;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use lab::{
    CLIENT, ELSEWHERE, MARK, POD, accept, assert_connected, canonical, dial, mark_of, namespace, serve,
};
use redirect::socket::{
    ConnectFailure, ConnectOptions, Keepalive, ListenErrorKind, ListenOptions, ListenStep,
    OriginalDestination, PortSharing, Transparency, bind_udp, connect, listen, original_destination,
    unsent_bytes,
};
use redirect::{Netns, NetnsError, privileges};
use socket2::SockRef;

fn any(port: u16) -> SocketAddr {
    format!("[::]:{port}").parse().unwrap()
}

fn in_pod() -> ListenOptions {
    ListenOptions { mark: Some(MARK), port_sharing: PortSharing::ReusePort, ..ListenOptions::default() }
}

#[test]
fn a_thread_is_home_again_after_a_visit_even_one_that_panics() {
    let Some(abroad) = namespace() else { return };
    let home = Netns::current().unwrap();
    assert_ne!(abroad, home);
    assert_eq!(abroad.run(|| Netns::current().unwrap()).unwrap(), abroad);
    assert_eq!(Netns::current().unwrap(), home);

    let panicked = std::panic::catch_unwind(|| abroad.run(|| panic!("on purpose")));
    assert!(panicked.is_err());
    assert_eq!(Netns::current().unwrap(), home);
    assert_eq!(abroad.run(|| Netns::current().unwrap()).unwrap(), abroad);
}

#[test]
fn a_visit_within_a_visit_returns_to_the_outer_one() {
    let (Some(outer), Some(inner)) = (namespace(), namespace()) else { return };
    let home = Netns::current().unwrap();
    outer
        .run(|| {
            assert_eq!(inner.run(|| Netns::current().unwrap()).unwrap(), inner);
            assert_eq!(Netns::current().unwrap(), outer);
        })
        .unwrap();
    assert_eq!(Netns::current().unwrap(), home);
}

#[test]
fn a_namespace_is_the_same_however_it_was_opened() {
    let Some(netns) = namespace() else { return };
    let opened = netns.run(|| Netns::open("/proc/thread-self/ns/net").unwrap()).unwrap();
    assert_eq!(opened, netns);
    assert_eq!(netns.to_string(), format!("net:[{}]", netns.id().inode));
    assert_eq!(std::collections::HashSet::from([netns.clone(), opened]).len(), 1);
}

#[test]
fn what_is_not_a_network_namespace_is_told_apart_from_what_has_vanished() {
    assert!(matches!(Netns::open("/proc/4194305/ns/net"), Err(NetnsError::Vanished { .. })));
    assert!(matches!(Netns::open("/proc/self/ns/mnt"), Err(NetnsError::NotANetworkNamespace)));
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(Netns::from_fd(file.into()), Err(NetnsError::NotANetworkNamespace)));
    let directory = File::open("/proc/self/ns").unwrap();
    assert!(matches!(Netns::from_fd(directory.into()), Err(NetnsError::NotANetworkNamespace)));
}

#[test]
fn ipv6_on_loopback_is_seen_per_namespace() {
    let Some(netns) = namespace() else { return };
    assert!(netns.loopback_has_ipv6().unwrap());
    netns.run(|| std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap()).unwrap();
    assert!(!netns.loopback_has_ipv6().unwrap());
    assert!(Netns::current().unwrap().loopback_has_ipv6().is_ok());
}

#[test]
fn the_privileges_of_these_tests_are_those_of_the_proxy() {
    let Some(netns) = namespace() else { return };
    privileges::preflight().unwrap();
    drop(netns);
    let limit = privileges::raise_descriptor_limit().unwrap();
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
    assert_eq!(line.split_whitespace().nth(3).unwrap(), limit.to_string(), "{line}");
}

#[test]
fn listeners_have_the_mark_and_share_ports_exactly_as_asked() {
    let Some(pod) = namespace() else { return };
    for port_sharing in [PortSharing::ReusePort, PortSharing::ReuseAddress] {
        let options = ListenOptions { port_sharing, ..in_pod() };
        let listening = listen(Some(&pod), any(0), &options).unwrap();
        let udp = bind_udp(Some(&pod), any(0), Some(MARK), Some(port_sharing)).unwrap();
        for socket in [SockRef::from(&listening.listener), SockRef::from(&udp)] {
            assert_eq!(socket.mark().unwrap(), MARK);
            assert_eq!(socket.reuse_port().unwrap(), port_sharing == PortSharing::ReusePort);
            assert_eq!(socket.reuse_address().unwrap(), port_sharing == PortSharing::ReuseAddress);
            assert!(socket.nonblocking().unwrap());
        }
        assert!(!listening.transparent);
    }
    let unmarked = bind_udp(Some(&pod), any(0), None, None).unwrap();
    assert_eq!(mark_of(&unmarked), 0);
    assert!(!SockRef::from(&unmarked).reuse_port().unwrap());
}

#[test]
fn two_proxies_share_a_port_only_if_both_mean_to() {
    let Some(pod) = namespace() else { return };
    let shared = listen(Some(&pod), any(15008), &in_pod()).unwrap();
    listen(Some(&pod), any(15008), &in_pod()).unwrap();
    let alone = ListenOptions { port_sharing: PortSharing::ReuseAddress, ..in_pod() };
    let error = listen(Some(&pod), any(15008), &alone).unwrap_err();
    assert_eq!(error.kind, ListenErrorKind::PortTaken);
    assert_eq!(
        error.to_string(),
        "cannot listen on [::]:15008: the port is already taken by another process in the pod"
    );
    // The same port of another pod is another port.
    listen(namespace().as_ref(), any(15008), &alone).unwrap();
    drop(shared);
}

#[test]
fn an_address_that_the_pod_does_not_have_is_named() {
    let Some(pod) = namespace() else { return };
    let address = SocketAddr::new(POD[0], 15008);
    let error = listen(Some(&pod), address, &in_pod()).unwrap_err();
    assert_eq!((error.address, error.kind), (address, ListenErrorKind::NoSuchAddress));
}

#[test]
fn accepted_connections_inherit_what_the_listener_was_set_to() {
    let Some(pod) = namespace() else { return };
    let keepalive =
        Keepalive { idle: Duration::from_secs(11), interval: Duration::from_secs(12), retries: 3 };
    let options = ListenOptions {
        keepalive: Some(keepalive),
        user_timeout: Some(Duration::from_millis(4500)),
        transparent: Transparency::Require,
        ..in_pod()
    };
    let listening = listen(Some(&pod), any(15001), &options).unwrap();
    assert!(listening.transparent);
    for address in lab::LOOPBACK {
        let _client = dial(&pod, address, 15001);
        let (accepted, _) = accept(&listening.listener, lab::PATIENCE).unwrap();
        let accepted = SockRef::from(&accepted);
        assert_eq!(accepted.mark().unwrap(), MARK);
        assert!(accepted.tcp_nodelay().unwrap());
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), keepalive.idle);
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), keepalive.interval);
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), keepalive.retries);
        assert_eq!(accepted.tcp_user_timeout().unwrap(), options.user_timeout);
    }
    let plain = listen(Some(&pod), any(15002), &in_pod()).unwrap();
    let _client = dial(&pod, lab::LOOPBACK[0], 15002);
    let (accepted, _) = accept(&plain.listener, lab::PATIENCE).unwrap();
    assert!(!SockRef::from(&accepted).keepalive().unwrap());
    assert!(SockRef::from(&accepted).tcp_nodelay().unwrap());
}

#[test]
fn a_wildcard_listener_serves_both_families_whatever_the_pod_prefers() {
    let Some(pod) = namespace() else { return };
    pod.run(|| std::fs::write("/proc/sys/net/ipv6/bindv6only", "1").unwrap()).unwrap();
    let listening = listen(Some(&pod), any(15006), &in_pod()).unwrap();
    for address in lab::LOOPBACK {
        let client = dial(&pod, address, 15006);
        let (accepted, peer) = accept(&listening.listener, lab::PATIENCE).unwrap();
        assert_eq!(peer.ip(), address);
        assert_connected(&client, &accepted);
    }
}

#[test]
fn a_connection_that_was_not_redirected_was_going_where_it_arrived() {
    let lab = lab!();
    let listening = listen(Some(&lab.pod), any(15008), &in_pod()).unwrap();
    for (client, pod) in CLIENT.into_iter().zip(POD) {
        let _stream = dial(&lab.client, pod, 15008);
        let (accepted, peer) = accept(&listening.listener, lab::PATIENCE).unwrap();
        assert_eq!(peer.ip(), client);
        let destination = original_destination(&accepted, peer).unwrap();
        assert_eq!(destination, OriginalDestination::Local(SocketAddr::new(pod, 15008)));
    }
}

#[tokio::test]
async fn outgoing_connections_have_the_mark_and_options_and_do_not_share_ports() {
    let lab = lab!();
    let server = serve(&lab.client, 8080);
    let user_timeout = Some(Duration::from_millis(4500));
    let options = ConnectOptions { mark: Some(MARK), user_timeout, ..ConnectOptions::default() };
    for (client, pod) in CLIENT.into_iter().zip(POD) {
        let stream = connect(Some(&lab.pod), None, SocketAddr::new(client, 8080), &options).await.unwrap();
        let socket = SockRef::from(&stream);
        assert_eq!(socket.mark().unwrap(), MARK);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(!socket.reuse_port().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(180));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(180));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 9);
        assert_eq!(socket.tcp_user_timeout().unwrap(), user_timeout);
        let (_, peer) = accept(&server, lab::PATIENCE).unwrap();
        assert_eq!(peer.ip(), pod);
    }
}

#[tokio::test]
async fn an_ipv4_destination_written_as_ipv6_is_connected_to_as_ipv4() {
    let lab = lab!();
    let _server = serve(&lab.client, 8080);
    let IpAddr::V4(client) = CLIENT[0] else { panic!() };
    let mapped = SocketAddr::new(client.to_ipv6_mapped().into(), 8080);
    let stream = connect(Some(&lab.pod), Some(POD[0]), mapped, &ConnectOptions::default()).await.unwrap();
    assert_eq!(stream.peer_addr().unwrap(), SocketAddr::new(CLIENT[0], 8080));
}

#[tokio::test]
async fn a_source_that_is_not_local_is_used_and_one_of_the_wrong_family_is_not() {
    let lab = lab!();
    let server = serve(&lab.client, 8080);
    // The client knows no way back to a foreign source unless it is told one.
    for (family, (client, pod)) in CLIENT.into_iter().zip(POD).enumerate() {
        let foreign = ELSEWHERE[family];
        lab::ip(&lab.client, &format!("route add {foreign} via {pod}"));
        lab::ip(&lab.pod, &format!("route add local {foreign} dev lo"));
        let destination = SocketAddr::new(client, 8080);
        let options = ConnectOptions::default();
        let stream = connect(Some(&lab.pod), Some(foreign), destination, &options).await.unwrap();
        assert_eq!(stream.local_addr().unwrap().ip(), foreign);
        assert_eq!(accept(&server, lab::PATIENCE).unwrap().1.ip(), foreign);

        let other_family = ELSEWHERE[1 - family];
        connect(Some(&lab.pod), Some(other_family), destination, &options).await.unwrap();
        assert_eq!(accept(&server, lab::PATIENCE).unwrap().1.ip(), pod);
    }
}

#[tokio::test]
async fn connections_in_anothers_name_keep_out_of_the_way_of_its_own() {
    let lab = lab!();
    let server = serve(&lab.client, 8080);
    let own: std::ops::RangeInclusive<u16> = 32768..=60999;
    let mut streams = Vec::new();
    for _ in 0..50 {
        let source = Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)));
        let destination = SocketAddr::new(CLIENT[0], 8080);
        let stream = connect(Some(&lab.pod), source, destination, &ConnectOptions::default()).await.unwrap();
        let port = stream.local_addr().unwrap().port();
        assert!(port >= 1024 && !own.contains(&port), "{port}");
        streams.push(stream);
    }
    drop(server);
}

#[tokio::test]
async fn a_failed_connection_says_whose_fault_it_is() {
    let lab = lab!();
    let refused = SocketAddr::new(CLIENT[0], 9);
    let options = ConnectOptions::default();
    let error = connect(Some(&lab.pod), None, refused, &options).await.unwrap_err();
    assert_eq!((error.destination, error.reason), (refused, ConnectFailure::Refused));

    let Some(island) = namespace() else { return };
    let error = connect(Some(&island), None, refused, &options).await.unwrap_err();
    assert_eq!(error.reason, ConnectFailure::Unreachable);

    lab::ip(&lab.client, &format!("route add blackhole {}", ELSEWHERE[0]));
    lab.client.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap()).unwrap();
    lab::ip(&lab.pod, &format!("neighbour replace {} lladdr 02:00:00:00:00:99 dev eth0", CLIENT[0]));
    let patience = ConnectOptions { timeout: Duration::from_millis(200), ..options };
    let silent = SocketAddr::new(ELSEWHERE[0], 80);
    let error = connect(Some(&lab.pod), None, silent, &patience).await.unwrap_err();
    assert_eq!(error.reason, ConnectFailure::TimedOut);
    assert_eq!(error.source.kind(), std::io::ErrorKind::TimedOut);
    assert_eq!(error.to_string(), "cannot connect to 192.0.2.7:80: timed out");
}

#[test]
fn bytes_are_unsent_until_the_peer_has_taken_them() {
    let Some(netns) = namespace() else { return };
    let listener = serve(&netns, 8080);
    let mut near = dial(&netns, lab::LOOPBACK[0], 8080);
    let (mut far, _) = accept(&listener, lab::PATIENCE).unwrap();
    assert_eq!(unsent_bytes(&near).unwrap(), 0);

    near.set_nonblocking(true).unwrap();
    let mut written = 0;
    while let Ok(count) = near.write(&[7; 64 * 1024]) {
        written += count;
    }
    let unsent = unsent_bytes(&near).unwrap();
    assert!((1..=written).contains(&unsent), "{unsent} of {written}");
    assert_eq!(unsent_bytes(&far).unwrap(), 0, "the other direction is another queue");

    far.set_read_timeout(Some(lab::PATIENCE)).unwrap();
    far.read_exact(&mut vec![0; written]).unwrap();
    // The last acknowledgement may be delayed.
    let deadline = Instant::now() + lab::PATIENCE;
    while unsent_bytes(&near).unwrap() != 0 {
        assert!(Instant::now() < deadline, "{} bytes are left", unsent_bytes(&near).unwrap());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn only_a_connected_tcp_socket_has_unsent_bytes() {
    let Some(netns) = namespace() else { return };
    let invalid = std::io::ErrorKind::InvalidInput;
    assert_eq!(unsent_bytes(&serve(&netns, 8080)).unwrap_err().kind(), invalid);
    let udp = bind_udp(Some(&netns), any(0), None, None).unwrap();
    assert_eq!(unsent_bytes(&udp).unwrap_err().kind(), invalid);
    let file = tempfile::tempfile().unwrap();
    assert_eq!(unsent_bytes(&file).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
}

#[test]
fn a_process_without_capabilities_is_told_which_one_is_missing() {
    let mut stripped = Command::new("setpriv");
    stripped.args(["--inh-caps=-all", "--bounding-set=-all"]).arg(std::env::current_exe().unwrap());
    stripped.args(["--ignored", "--exact", "without_capabilities"]);
    let output = stripped.output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
}

#[test]
#[ignore = "run by the test above in a process without capabilities"]
fn without_capabilities() {
    let preflight = privileges::preflight().unwrap_err().to_string();
    assert!(preflight.contains("CAP_SYS_ADMIN is missing"), "{preflight}");
    let here = Netns::current().unwrap();
    let unmarked = ListenOptions { mark: None, ..in_pod() };
    let required = ListenOptions { transparent: Transparency::Require, ..unmarked.clone() };
    for (namespace, options, step, capability) in [
        (Some(&here), &unmarked, ListenStep::Create, "CAP_SYS_ADMIN"),
        (None, &in_pod(), ListenStep::Mark, "CAP_NET_ADMIN"),
        (None, &required, ListenStep::Transparent, "CAP_NET_RAW"),
    ] {
        let error = listen(namespace, any(0), options).unwrap_err();
        assert_eq!(error.kind, ListenErrorKind::MissingCapability { step, capability });
    }
    let best_effort = ListenOptions { transparent: Transparency::BestEffort, ..unmarked };
    assert!(!listen(None, any(0), &best_effort).unwrap().transparent);
}

#[test]
fn without_a_namespace_sockets_are_the_threads_own() {
    let Some(here) = namespace() else { return };
    let (listening, client) = here
        .run(|| {
            let any_port = SocketAddr::new(lab::LOOPBACK[0], 0);
            let listening = listen(None, any_port, &ListenOptions::default()).unwrap();
            let client = TcpStream::connect(listening.listener.local_addr().unwrap()).unwrap();
            (listening, client)
        })
        .unwrap();
    let (accepted, peer) = accept(&listening.listener, lab::PATIENCE).unwrap();
    assert_eq!(peer, canonical(client.local_addr().unwrap()));
    assert_connected(&client, &accepted);
}
