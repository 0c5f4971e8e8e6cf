//! The packet rules in real namespaces, with every back-end: what they do to packets, and that they can be applied,
//! checked, repaired and removed at any time.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod lab;

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use lab::{
    BRIEFLY, CLIENT, Dial, ELSEWHERE, LOOPBACK, Lab, MARK, PATIENCE, POD, PROBE, accept, assert_connected,
    cable, dial, ip, namespace, run, serve, serve_udp,
};
use redirect::Netns;
use redirect::rules::{
    Backend, BackendChoice, DnsCapture, Family, InboundCapture, Ipv6Capture, PodRules, State, Variant, apply,
    check, remove,
};
use redirect::socket::{
    ConnectError, ConnectOptions, ListenOptions, OriginalDestination, PortSharing, Transparency, bind_udp,
    connect, listen, original_destination,
};
use socket2::SockRef;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Each scenario once per back-end.
macro_rules! with_every_backend {
    ($($scenario:ident,)*) => {
        mod nftables {
            $(#[test] fn $scenario() { super::$scenario(super::BackendChoice::Nftables) })*
        }
        mod iptables_nft {
            use super::{BackendChoice, Variant};
            $(#[test] fn $scenario() { super::$scenario(BackendChoice::IptablesVariant(Variant::Nft)) })*
        }
        mod iptables_legacy {
            use super::{BackendChoice, Variant};
            $(#[test] fn $scenario() { super::$scenario(BackendChoice::IptablesVariant(Variant::Legacy)) })*
        }
    };
}

with_every_backend! {
    applying_checking_and_removing_can_be_repeated,
    drift_is_reported_in_words_and_repaired,
    rules_of_others_are_neither_drift_nor_removed,
    switching_dns_capture_off_leaves_nothing_of_it,
    outbound_connections_reach_the_proxy,
    inbound_connections_reach_the_proxy_but_tunnels_and_probes_do_not,
    a_pod_that_bypasses_inbound_capture_is_reached_directly,
    a_pod_talks_to_itself_directly,
    packets_of_the_proxy_are_left_alone,
    dns_queries_reach_the_proxy_and_answers_come_back,
    without_dns_capture_queries_go_where_they_are_sent,
    what_comes_from_a_virtual_interface_is_outbound,
    the_proxy_reaches_the_application_in_the_clients_name,
    connections_that_exist_survive_the_arrival_of_the_rules,
    a_former_connection_opens_no_way_past_the_proxy,
    without_ipv6_capture_ipv6_is_left_alone,
    a_pod_without_ipv6_on_loopback_has_no_ipv6_route,
}

fn backend(choice: BackendChoice) -> Backend {
    choice.resolve(&Netns::current().unwrap(), &FAMILIES).unwrap()
}

/// A pod with default rules, and the proxy's listeners in it.
struct Captured {
    lab: Lab,
    outbound: TcpListener,
    inbound: TcpListener,
    tunnels: TcpListener,
    dns: [UdpSocket; 2],
    dns_tcp: TcpListener,
}

impl Captured {
    fn new(choice: BackendChoice, rules: &PodRules) -> Option<Captured> {
        let lab = Lab::new()?;
        apply(&lab.pod, rules, backend(choice)).unwrap();
        Some(Captured::serving(lab))
    }

    fn serving(lab: Lab) -> Captured {
        let options = ListenOptions {
            mark: Some(MARK),
            port_sharing: PortSharing::ReusePort,
            transparent: Transparency::Require,
            ..ListenOptions::default()
        };
        let open = |port: u16| {
            listen(Some(&lab.pod), SocketAddr::new(IpAddr::from([0; 16]), port), &options).unwrap().listener
        };
        let dns = LOOPBACK.map(|address| {
            let socket = bind_udp(Some(&lab.pod), SocketAddr::new(address, 15053), Some(MARK), None).unwrap();
            socket.set_nonblocking(false).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        });
        let [outbound, inbound, tunnels, dns_tcp] = [15001, 15006, 15008, 15053].map(open);
        Captured { outbound, inbound, tunnels, dns, dns_tcp, lab }
    }
}

/// Asserts that the connection has arrived at a listener by redirection, and where it was going.
fn assert_redirected(client: &TcpStream, listener: &TcpListener, destination: (IpAddr, u16)) {
    let (accepted, peer) = accept(listener, PATIENCE).expect("nothing arrived at the proxy");
    let original = original_destination(&accepted, peer).unwrap();
    assert_eq!(original, OriginalDestination::Tracked(destination.into()));
    assert_eq!(peer.ip(), client.local_addr().unwrap().ip(), "the source changed");
    assert_connected(client, &accepted);
}

fn assert_direct(client: &TcpStream, server: &TcpListener) {
    let (accepted, _) = accept(server, PATIENCE).expect("nothing arrived at the server");
    assert_connected(client, &accepted);
}

fn assert_state(netns: &Netns, rules: &PodRules, backend: Backend, expected: State) {
    assert_eq!(check(netns, rules, backend).unwrap(), expected);
}

/// The rules as the kernel has them, without counts.
fn ruleset(netns: &Netns, backend: Backend) -> String {
    let mut all = run(netns, "ip", &["-4", "rule"]) + &run(netns, "ip", &["-6", "rule"]);
    for family in ["-4", "-6"] {
        all += &run(netns, "ip", &[family, "route", "show", "table", "all"]);
    }
    match backend {
        Backend::Nftables => all += &run(netns, "nft", &["--stateless", "list", "ruleset"]),
        Backend::Iptables(programs) => {
            for program in ["iptables", "ip6tables"] {
                let saved = run(netns, &format!("{program}-{}-save", programs.ipv4), &[]);
                all.extend(
                    saved.lines().filter(|line| line.starts_with("-A")).map(|line| line.to_owned() + "\n"),
                );
            }
        }
    }
    all
}

fn applying_checking_and_removing_can_be_repeated(choice: BackendChoice) {
    let Some(pod) = namespace() else { return };
    let backend = backend(choice);
    let rules = PodRules {
        virtual_interfaces: ["k6t-eth0", "tap+"].map(|name| name.parse().unwrap()).to_vec(),
        ..PodRules::default()
    };
    let untouched = ruleset(&pod, backend);
    assert_state(&pod, &rules, backend, State::Clean);
    remove(&pod, &rules, backend).unwrap();
    apply(&pod, &rules, backend).unwrap();
    assert_state(&pod, &rules, backend, State::Applied);
    let once = ruleset(&pod, backend);
    apply(&pod, &rules, backend).unwrap();
    assert_eq!(ruleset(&pod, backend), once);
    remove(&pod, &rules, backend).unwrap();
    assert_state(&pod, &rules, backend, State::Clean);
    assert_eq!(ruleset(&pod, backend), untouched, "removal left something or took too much");
    remove(&pod, &rules, backend).unwrap();
    apply(&pod, &rules, backend).unwrap();
    assert_state(&pod, &rules, backend, State::Applied);
    assert_eq!(ruleset(&pod, backend), once);
}

fn drift_is_reported_in_words_and_repaired(choice: BackendChoice) {
    let Some(pod) = namespace() else { return };
    let (backend, rules) = (backend(choice), PodRules::default());
    let commands = match backend {
        Backend::Nftables => [
            ("nft flush chain inet istio-ambient-nat istio-output", "O6: outbound TCP goes to the proxy"),
            ("nft delete table inet istio-ambient-raw", "R3: the proxy's own DNS queries are tracked apart"),
            (
                "nft insert rule inet istio-ambient-nat istio-prerouting accept",
                "unexpected in istio-ambient-nat",
            ),
            ("nft add chain inet istio-ambient-nat foreign", "unexpected chain istio-ambient-nat foreign"),
            ("nft add table inet istio-ambient-nat { flags dormant; }", "flags dormant"),
            ("ip rule delete fwmark 0x111/0xfff table 100", "missing IPv4 policy rule"),
            ("ip -6 route flush table 100", "missing IPv6 route"),
        ],
        Backend::Iptables(programs) => {
            let flavour = programs.ipv4;
            [
                ("iptables-X -w -t nat -F ISTIO_OUTPUT", "O6: outbound TCP goes to the proxy"),
                ("ip6tables-X -w -t raw -D OUTPUT -j ISTIO_OUTPUT", "missing in IPv6 raw OUTPUT"),
                ("iptables-X -w -t nat -I ISTIO_PRERT -j ACCEPT", "unexpected in IPv4 nat ISTIO_PRERT"),
                ("iptables-X -w -t nat -N ISTIO_FOREIGN", "unexpected chain IPv4 nat ISTIO_FOREIGN"),
                ("ip6tables-X -w -t nat -A PREROUTING -j ISTIO_PRERT", "unexpected in IPv6 nat PREROUTING"),
                ("ip rule delete fwmark 0x111/0xfff table 100", "missing IPv4 policy rule"),
                ("ip -6 route flush table 100", "missing IPv6 route"),
            ]
            .map(|(command, words)| (&*command.replace("-X", &format!("-{flavour}")).leak(), words))
        }
    };
    for (command, words) in commands {
        apply(&pod, &rules, backend).unwrap();
        let arguments: Vec<_> = command.split(' ').collect();
        run(&pod, arguments[0], &arguments[1..]);
        let state = check(&pod, &rules, backend).unwrap();
        assert!(matches!(state, State::Drifted { .. }), "{command}: {state}");
        assert!(state.to_string().contains(words), "{command}: {state}");
        apply(&pod, &rules, backend).unwrap();
        assert_state(&pod, &rules, backend, State::Applied);
    }
    // Rules for another wish are drift, too.
    let bypass = PodRules { inbound: InboundCapture::Bypass, ..PodRules::default() };
    assert!(matches!(check(&pod, &bypass, backend).unwrap(), State::Drifted { .. }));
}

fn rules_of_others_are_neither_drift_nor_removed(choice: BackendChoice) {
    let Some(pod) = namespace() else { return };
    let (backend, rules) = (backend(choice), PodRules::default());
    let foreign: Vec<String> = match backend {
        Backend::Nftables => vec![
            "nft add table inet firewall".to_owned(),
            "nft add chain inet firewall input { type filter hook input priority 0; }".to_owned(),
            "nft add rule inet firewall input tcp dport 23 drop".to_owned(),
        ],
        Backend::Iptables(programs) => vec![
            format!("iptables-{} -w -A INPUT -p tcp --dport 23 -j DROP", programs.ipv4),
            format!("iptables-{} -w -t nat -A OUTPUT -p sctp -j ACCEPT", programs.ipv4),
        ],
    };
    for command in &foreign {
        let arguments: Vec<_> = command.split(' ').collect();
        run(&pod, arguments[0], &arguments[1..]);
    }
    ip(&pod, "rule add priority 5000 lookup 200");
    let before = ruleset(&pod, backend);
    assert_state(&pod, &rules, backend, State::Clean);
    apply(&pod, &rules, backend).unwrap();
    assert_state(&pod, &rules, backend, State::Applied);
    remove(&pod, &rules, backend).unwrap();
    assert_eq!(ruleset(&pod, backend), before);
}

fn switching_dns_capture_off_leaves_nothing_of_it(choice: BackendChoice) {
    let Some(pod) = namespace() else { return };
    let backend = backend(choice);
    let without = PodRules { dns: DnsCapture::Off, ..PodRules::default() };
    apply(&pod, &without, backend).unwrap();
    let never = ruleset(&pod, backend);
    apply(&pod, &PodRules::default(), backend).unwrap();
    assert_ne!(ruleset(&pod, backend), never);
    apply(&pod, &without, backend).unwrap();
    assert_state(&pod, &without, backend, State::Applied);
    assert_eq!(ruleset(&pod, backend), never);
}

fn outbound_connections_reach_the_proxy(choice: BackendChoice) {
    let Some(pod) = Captured::new(choice, &PodRules::default()) else { return };
    for address in ELSEWHERE {
        for port in [80, 15001, 15008] {
            let client = dial(&pod.lab.pod, address, port);
            assert_redirected(&client, &pod.outbound, (address, port));
        }
    }
}

fn inbound_connections_reach_the_proxy_but_tunnels_and_probes_do_not(choice: BackendChoice) {
    let Some(pod) = Captured::new(choice, &PodRules::default()) else { return };
    let application = serve(&pod.lab.pod, 8080);
    for (address, probe) in POD.into_iter().zip(PROBE) {
        for port in [8080, 9999] {
            let client = dial(&pod.lab.client, address, port);
            assert_redirected(&client, &pod.inbound, (address, port));
        }
        let client = dial(&pod.lab.client, address, 15008);
        let (accepted, peer) = accept(&pod.tunnels, PATIENCE).unwrap();
        let destination = original_destination(&accepted, peer).unwrap().address();
        assert_eq!(destination, SocketAddr::new(address, 15008));
        assert_connected(&client, &accepted);

        let source = Some(SocketAddr::new(probe, 0));
        let dial = Dial { source, ..Dial::default() };
        assert_direct(&dial.to(&pod.lab.client, (address, 8080).into()).unwrap(), &application);
    }
}

fn a_pod_that_bypasses_inbound_capture_is_reached_directly(choice: BackendChoice) {
    let rules = PodRules { inbound: InboundCapture::Bypass, ..PodRules::default() };
    let Some(pod) = Captured::new(choice, &rules) else { return };
    let application = serve(&pod.lab.pod, 8080);
    for (address, elsewhere) in POD.into_iter().zip(ELSEWHERE) {
        assert_direct(&dial(&pod.lab.client, address, 8080), &application);
        let client = dial(&pod.lab.pod, elsewhere, 80);
        assert_redirected(&client, &pod.outbound, (elsewhere, 80));
    }
}

fn a_pod_talks_to_itself_directly(choice: BackendChoice) {
    let Some(pod) = Captured::new(choice, &PodRules::default()) else { return };
    let application = serve(&pod.lab.pod, 8080);
    for address in POD.into_iter().chain(LOOPBACK) {
        assert_direct(&dial(&pod.lab.pod, address, 8080), &application);
    }
}

fn packets_of_the_proxy_are_left_alone(choice: BackendChoice) {
    let Some(pod) = Captured::new(choice, &PodRules::default()) else { return };
    let server = serve(&pod.lab.client, 8080);
    for address in CLIENT {
        let marked = Dial { mark: Some(MARK), ..Dial::default() };
        assert_direct(&marked.to(&pod.lab.pod, (address, 8080).into()).unwrap(), &server);
        // Without the mark the same connection is redirected.
        let client = dial(&pod.lab.pod, address, 8080);
        assert_redirected(&client, &pod.outbound, (address, 8080));
    }
}

fn ask(client: &UdpSocket, server: &UdpSocket) {
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 16];
    client.send(b"question").unwrap();
    let (length, asker) = server.recv_from(&mut buffer).expect("the question did not arrive");
    assert_eq!(&buffer[..length], b"question");
    server.send_to(b"answer", asker).unwrap();
    let length = client.recv(&mut buffer).expect("the answer did not arrive");
    assert_eq!(&buffer[..length], b"answer");
}

fn resolver(netns: &Netns, server: IpAddr, mark: Option<u32>) -> UdpSocket {
    let unspecified = if server.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let socket = bind_udp(Some(netns), (unspecified, 0).into(), mark, None).unwrap();
    socket.set_nonblocking(false).unwrap();
    socket.connect((server, 53)).unwrap();
    socket
}

fn dns_queries_reach_the_proxy_and_answers_come_back(choice: BackendChoice) {
    let Some(pod) = Captured::new(choice, &PodRules::default()) else { return };
    for (family, (elsewhere, client)) in ELSEWHERE.into_iter().zip(CLIENT).enumerate() {
        // A connected socket takes answers only from where it asked: the source is rewritten back.
        ask(&resolver(&pod.lab.pod, elsewhere, None), &pod.dns[family]);
        let stream = dial(&pod.lab.pod, elsewhere, 53);
        assert_redirected(&stream, &pod.dns_tcp, (elsewhere, 53));
        // What the proxy asks itself goes out, from the same port as a redirected question, too.
        let upstream = serve_udp(&pod.lab.client, (client, 53).into());
        ask(&resolver(&pod.lab.pod, client, Some(MARK)), &upstream);
    }
    // A resolver of the pod's own is left alone.
    let local = serve_udp(&pod.lab.pod, "127.0.0.53:53".parse().unwrap());
    ask(&resolver(&pod.lab.pod, "127.0.0.53".parse().unwrap(), None), &local);
}

fn without_dns_capture_queries_go_where_they_are_sent(choice: BackendChoice) {
    let rules = PodRules { dns: DnsCapture::Off, ..PodRules::default() };
    let Some(pod) = Captured::new(choice, &rules) else { return };
    for (client, elsewhere) in CLIENT.into_iter().zip(ELSEWHERE) {
        let upstream = serve_udp(&pod.lab.client, (client, 53).into());
        ask(&resolver(&pod.lab.pod, client, None), &upstream);
        let stream = dial(&pod.lab.pod, elsewhere, 53);
        assert_redirected(&stream, &pod.outbound, (elsewhere, 53));
    }
}

fn what_comes_from_a_virtual_interface_is_outbound(choice: BackendChoice) {
    let rules = PodRules { virtual_interfaces: vec!["tap+".parse().unwrap()], ..PodRules::default() };
    let Some(pod) = Captured::new(choice, &rules) else { return };
    let Some(machine) = namespace() else { return };
    cable(&machine, "eth0", &pod.lab.pod, "tap7");
    for (machine_address, pod_address) in [("10.9.0.2/24", "10.9.0.1"), ("fd09::2/64", "fd09::1")] {
        let nodad = if pod_address.contains(':') { " nodad" } else { "" };
        ip(&machine, &format!("address add {machine_address} dev eth0{nodad}"));
        let prefix = machine_address.split('/').nth(1).unwrap();
        ip(&pod.lab.pod, &format!("address add {pod_address}/{prefix} dev tap7{nodad}"));
        ip(&machine, &format!("route add default via {pod_address}"));
    }
    for elsewhere in ELSEWHERE {
        let client = dial(&machine, elsewhere, 80);
        assert_redirected(&client, &pod.outbound, (elsewhere, 80));
    }
    // Elsewhere the same is inbound.
    let client = dial(&pod.lab.client, POD[0], 80);
    assert_redirected(&client, &pod.inbound, (POD[0], 80));
}

fn the_proxy_reaches_the_application_in_the_clients_name(choice: BackendChoice) {
    let lab = lab!();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let application = serve(&lab.pod, 8080);
    let connect_as = |source, destination, timeout| {
        let options = ConnectOptions { mark: Some(MARK), timeout, ..ConnectOptions::default() };
        let destination = SocketAddr::new(destination, 8080);
        let connected = runtime.block_on(connect(Some(&lab.pod), Some(source), destination, &options))?;
        let stream = connected.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Ok::<_, ConnectError>(stream)
    };
    for (client, pod) in CLIENT.into_iter().zip(POD) {
        // Without the rules the application's answer goes to the client, who refuses it.
        assert!(connect_as(client, pod, BRIEFLY).is_err());
    }
    apply(&lab.pod, &PodRules::default(), backend(choice)).unwrap();
    while accept(&application, BRIEFLY).is_some() {}
    for (client, pod) in CLIENT.into_iter().zip(POD) {
        let stream = connect_as(client, pod, PATIENCE).unwrap();
        let (accepted, peer) = accept(&application, PATIENCE).unwrap();
        assert_eq!(peer.ip(), client);
        assert_connected(&stream, &accepted);
        assert_connected(&accepted, &stream);
    }
}

fn connections_that_exist_survive_the_arrival_of_the_rules(choice: BackendChoice) {
    let lab = lab!();
    let (application, server) = (serve(&lab.pod, 8080), serve(&lab.client, 8080));
    let mut existing = Vec::new();
    for (client, pod) in CLIENT.into_iter().zip(POD) {
        for (from, to, listener) in [(&lab.client, pod, &application), (&lab.pod, client, &server)] {
            let stream = dial(from, to, 8080);
            existing.push((accept(listener, PATIENCE).unwrap().0, stream));
        }
    }
    apply(&lab.pod, &PodRules::default(), backend(choice)).unwrap();
    let pod = Captured::serving(lab);
    for (accepted, stream) in &existing {
        assert_connected(stream, accepted);
        assert_connected(accepted, stream);
    }
    let client = dial(&pod.lab.client, POD[0], 8080);
    assert_redirected(&client, &pod.inbound, (POD[0], 8080));
    // Removing and applying again disturbs neither those nor a redirected connection.
    remove(&pod.lab.pod, &PodRules::default(), backend(choice)).unwrap();
    apply(&pod.lab.pod, &PodRules::default(), backend(choice)).unwrap();
    for (accepted, stream) in &existing {
        assert_connected(stream, accepted);
    }
}

/// A client that was connected before the rules came could otherwise keep a way past the proxy open for ever: let the
/// application reset the connection, and connect again from the same port before tracking has forgotten the former.
fn a_former_connection_opens_no_way_past_the_proxy(choice: BackendChoice) {
    let lab = lab!();
    let application = serve(&lab.pod, 8080);
    let mut former = Vec::new();
    for (port, (client, pod)) in (40000..).zip(CLIENT.into_iter().zip(POD)) {
        let (source, destination) = (SocketAddr::new(client, port), SocketAddr::new(pod, 8080));
        let dial = Dial { source: Some(source), ..Dial::default() };
        let stream = dial.to(&lab.client, destination).unwrap();
        former.push((dial, destination, stream, accept(&application, PATIENCE).unwrap().0));
    }
    apply(&lab.pod, &PodRules::default(), backend(choice)).unwrap();
    let pod = Captured::serving(lab);
    for (dial, destination, mut stream, accepted) in former {
        assert_connected(&stream, &accepted);
        SockRef::from(&accepted).set_linger(Some(Duration::ZERO)).unwrap();
        drop(accepted);
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        drop(stream);
        let again = Dial { patience: Some(BRIEFLY), ..dial }.to(&pod.lab.client, destination);
        assert!(accept(&application, BRIEFLY).is_none(), "the application was reached past the proxy");
        assert_eq!(again.unwrap_err().kind(), ErrorKind::TimedOut);
        // Once the former connection is forgotten, the same addresses and ports are a connection like any other.
        run(&pod.lab.pod, "conntrack", &["-F"]);
        let client = dial.to(&pod.lab.client, destination).unwrap();
        assert_redirected(&client, &pod.inbound, (destination.ip(), destination.port()));
    }
}

fn without_ipv6_capture_ipv6_is_left_alone(choice: BackendChoice) {
    let rules = PodRules { ipv6: Ipv6Capture::Off, ..PodRules::default() };
    let Some(pod) = Captured::new(choice, &rules) else { return };
    assert_state(&pod.lab.pod, &rules, backend(choice), State::Applied);
    let (application, server) = (serve(&pod.lab.pod, 8080), serve(&pod.lab.client, 8080));
    assert_direct(&dial(&pod.lab.client, POD[1], 8080), &application);
    assert_direct(&dial(&pod.lab.pod, CLIENT[1], 8080), &server);
    let upstream = serve_udp(&pod.lab.client, (CLIENT[1], 53).into());
    ask(&resolver(&pod.lab.pod, CLIENT[1], None), &upstream);
    let client = dial(&pod.lab.client, POD[0], 8080);
    assert_redirected(&client, &pod.inbound, (POD[0], 8080));
}

fn a_pod_without_ipv6_on_loopback_has_no_ipv6_route(choice: BackendChoice) {
    let Some(pod) = namespace() else { return };
    pod.run(|| std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap()).unwrap();
    let backend = backend(choice);
    apply(&pod, &PodRules::default(), backend).unwrap();
    assert_state(&pod, &PodRules::default(), backend, State::Applied);
    assert_eq!(run(&pod, "ip", &["-6", "route", "show", "table", "100"]), "");
    assert!(run(&pod, "ip", &["-6", "rule"]).contains("lookup 100"));
    remove(&pod, &PodRules::default(), backend).unwrap();
    assert_state(&pod, &PodRules::default(), backend, State::Clean);
}

#[test]
fn auto_prefers_nftables() {
    let Some(_root) = namespace() else { return };
    assert_eq!(backend(BackendChoice::Auto), Backend::Nftables);
}

#[test]
fn a_loopback_interface_that_is_down_is_brought_up() {
    let Some(pod) = namespace() else { return };
    ip(&pod, "link set lo down");
    apply(&pod, &PodRules::default(), Backend::Nftables).unwrap();
    assert_state(&pod, &PodRules::default(), Backend::Nftables, State::Applied);
    let proxy = serve(&pod, 15001);
    assert_direct(&dial(&pod, LOOPBACK[0], 15001), &proxy);
}
