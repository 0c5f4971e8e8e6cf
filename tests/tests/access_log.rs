//! The access log: which fields, in which order, and one line per connection.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::collections::BTreeMap;

use lab::traffic::{self, Outcome, Server};
use lab::{AccessLine, BackendChoice, Pod, TwoNodes, Ztunnel, ZtunnelOptions, hello};

const BYTES_AND_DURATION: [&str; 3] = ["bytes_sent", "bytes_recv", "duration"];

/// The only line of the proxy for connections from `pod`, after it is there.
fn only_line(ztunnel: &Ztunnel, pod: &Pod) -> AccessLine {
    let from = format!("{}:", pod.ipv4());
    ztunnel.wait_for_access(|line| line.text("src.addr").starts_with(&from)).unwrap();
    let mut lines = ztunnel.access_lines();
    lines.retain(|line| line.text("src.addr").starts_with(&from));
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

/// Expected fields in order. What cannot be known in advance, ports of clients and durations, is checked for its form.
fn assert_fields(line: &AccessLine, expected: &[(&str, String)]) {
    let keys: Vec<_> = expected.iter().map(|(key, _)| *key).chain(BYTES_AND_DURATION).collect();
    assert_eq!(line.keys(), keys, "{line:?}");
    for (key, value) in expected {
        assert_eq!(line.text(key), value, "{key} of {line:?}");
    }
    let milliseconds = line.text("duration").strip_suffix("ms");
    assert!(milliseconds.is_some_and(|number| number.parse::<u64>().is_ok()), "{line:?}");
}

/// Text is in quotes; addresses and numbers are not.
fn assert_quoting(line: &AccessLine) {
    for (key, value) in &line.fields {
        let bare =
            ["src.addr", "dst.addr", "dst.hbone_addr", "bytes_sent", "bytes_recv"].contains(&key.as_str());
        let written = if bare { format!("{key}={value}") } else { format!("{key}=\"{value}\"") };
        assert!(line.raw_fields.contains(&written), "{written} in {line:?}");
    }
}

fn described(side: &str, pod: &Pod, identity: bool) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::from([
        (format!("{side}.workload"), pod.name().to_owned()),
        (format!("{side}.namespace"), "default".to_owned()),
        (format!("{side}.cluster"), "Kubernetes".to_owned()),
    ]);
    if identity {
        fields.insert(format!("{side}.identity"), pod.identity());
    }
    fields
}

/// Puts the known values of a line in the order of the log.
fn in_order<'a>(order: &[&'a str], values: BTreeMap<String, String>) -> Vec<(&'a str, String)> {
    let known: Vec<_> =
        order.iter().filter_map(|key| values.get(*key).map(|value| (*key, value.clone()))).collect();
    assert_eq!(known.len(), values.len(), "every value has its place");
    known
}

const ORDER: [&str; 13] = [
    "src.addr",
    "src.workload",
    "src.namespace",
    "src.identity",
    "src.cluster",
    "dst.addr",
    "dst.hbone_addr",
    "dst.service",
    "dst.workload",
    "dst.namespace",
    "dst.identity",
    "dst.cluster",
    "direction",
];

#[test]
fn a_tunnelled_connection_has_one_line_on_each_side_with_every_fact_about_it() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let server = Server::start(&scene.server, 8080, traffic::echo_twice).unwrap();
    let target = server.ipv4();
    let answer = scene.client.run(async move || traffic::ask(target, b"hello world").await).unwrap();
    assert_eq!(answer, b"hello worldhello world");

    let east = only_line(scene.east_ztunnel().unwrap(), &scene.client);
    let west = only_line(scene.west_ztunnel().unwrap(), &scene.client);
    for (line, direction, sent, received) in [(&east, "outbound", "11", "22"), (&west, "inbound", "22", "11")]
    {
        let mut values = described("src", &scene.client, true);
        values.extend(described("dst", &scene.server, true));
        // The port is the application's on one side and the tunnel's on the other.
        values.insert("src.addr".into(), line.text("src.addr").into());
        values.insert("dst.addr".into(), format!("{}:15008", scene.server.ipv4()));
        values.insert("dst.hbone_addr".into(), target.to_string());
        values.insert("direction".into(), direction.into());
        assert_fields(line, &in_order(&ORDER, values));
        assert_quoting(line);
        assert_eq!((line.level.as_str(), line.message.as_str()), ("info", "connection complete"));
        assert_eq!((line.text("bytes_sent"), line.text("bytes_recv")), (sent, received), "{line:?}");
    }
    assert_ne!(east.text("src.addr"), west.text("src.addr"), "the tunnel has a port of its own");
}

#[test]
fn a_connection_passed_through_has_one_line_without_identities() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let server = Server::start(&scene.server, 8080, traffic::echo_twice).unwrap();
    let target = server.ipv4();
    scene.outsider.run(async move || traffic::ask(target, b"hello world").await).unwrap();
    let line = only_line(scene.west_ztunnel().unwrap(), &scene.outsider);
    let mut values = described("src", &scene.outsider, false);
    values.extend(described("dst", &scene.server, false));
    values.insert("src.addr".into(), line.text("src.addr").into());
    values.insert("dst.addr".into(), target.to_string());
    values.insert("direction".into(), "inbound".into());
    assert_fields(&line, &in_order(&ORDER, values));
    assert_quoting(&line);
    assert_eq!((line.text("bytes_sent"), line.text("bytes_recv")), ("22", "11"), "{line:?}");
}

#[test]
fn a_connection_out_of_the_mesh_has_one_line_without_identities() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let server = Server::start(&scene.outsider, 8080, traffic::echo_twice).unwrap();
    let target = server.ipv4();
    scene.client.run(async move || traffic::ask(target, b"hello world").await).unwrap();
    let line = only_line(scene.east_ztunnel().unwrap(), &scene.client);
    let mut values = described("src", &scene.client, false);
    values.extend(described("dst", &scene.outsider, false));
    values.insert("src.addr".into(), line.text("src.addr").into());
    values.insert("dst.addr".into(), target.to_string());
    values.insert("direction".into(), "outbound".into());
    assert_fields(&line, &in_order(&ORDER, values));
    assert_quoting(&line);
    assert_eq!((line.text("bytes_sent"), line.text("bytes_recv")), ("11", "22"), "{line:?}");
}

#[test]
fn a_service_is_named_on_the_side_that_addressed_it() {
    let vip: std::net::IpAddr = "10.96.0.1".parse().unwrap();
    let scene = TwoNodes::with(BackendChoice::Nftables, &ZtunnelOptions::default(), |file, server| {
        file.service("web", &[vip], (80, 8080), &[server])
    })
    .unwrap();
    let _echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    assert_eq!(hello(&scene.client, (vip, 80).into()).unwrap(), Outcome::answered("hello"));
    let line = only_line(scene.east_ztunnel().unwrap(), &scene.client);
    let mut values = described("src", &scene.client, true);
    values.extend(described("dst", &scene.server, true));
    values.insert("src.addr".into(), line.text("src.addr").into());
    values.insert("dst.addr".into(), format!("{}:15008", scene.server.ipv4()));
    values.insert("dst.hbone_addr".into(), format!("{}:8080", scene.server.ipv4()));
    values.insert("dst.service".into(), "web.default.svc.cluster.local".into());
    values.insert("direction".into(), "outbound".into());
    assert_fields(&line, &in_order(&ORDER, values));
}

#[test]
fn a_connection_refused_before_anything_is_known_of_it_has_four_fields() {
    let vip: std::net::IpAddr = "10.96.0.9".parse().unwrap();
    let scene = TwoNodes::with(BackendChoice::Nftables, &ZtunnelOptions::default(), |file, _| {
        file.service("empty", &[vip], (80, 8080), &[])
    })
    .unwrap();
    assert_eq!(hello(&scene.client, (vip, 80).into()).unwrap(), Outcome::Cut);
    let line = only_line(scene.east_ztunnel().unwrap(), &scene.client);
    assert_eq!((line.level.as_str(), line.message.as_str()), ("warn", "connection failed"));
    assert_eq!(line.keys(), ["src.addr", "dst.addr", "direction", "error"]);
    assert_eq!(line.text("dst.addr"), "10.96.0.9:80");
    assert_eq!(line.text("direction"), "outbound");
    assert_quoting(&line);
}

#[test]
fn every_connection_has_exactly_one_line_on_each_side() {
    const CONNECTIONS: usize = 40;
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    for number in 0..CONNECTIONS {
        // Some succeed and some fail.
        let port = if number % 4 == 3 { 9999 } else { echo.ipv4().port() };
        hello(&scene.client, scene.server.at(port)).unwrap();
    }
    for ztunnel in [scene.east_ztunnel().unwrap(), scene.west_ztunnel().unwrap()] {
        lab::wait_until(|| ztunnel.access_lines().len() >= CONNECTIONS).unwrap();
        // Its end comes after all its lines.
        ztunnel.terminate(lab::PATIENCE).unwrap();
        let lines = ztunnel.access_lines();
        assert_eq!(lines.len(), CONNECTIONS);
        assert_eq!(lines.iter().filter(|line| line.get("error").is_some()).count(), CONNECTIONS / 4);
    }
}

#[test]
fn as_json_a_line_is_an_object_with_the_same_facts() {
    let options = ZtunnelOptions::default().variable("LOG_FORMAT", "json");
    let scene = TwoNodes::with(BackendChoice::Nftables, &options, |_, _| Ok(())).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    assert_eq!(hello(&scene.client, echo.ipv4()).unwrap(), Outcome::answered("hello"));
    let line = scene.west_ztunnel().unwrap().wait_for_log("connection complete").unwrap();
    // JSON is YAML.
    let object: serde_yaml_ng::Value = serde_yaml_ng::from_str(&line).unwrap();
    let text = |key: &str| object[key].as_str().unwrap_or_else(|| panic!("{key} in {line}"));
    assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    assert_eq!((text("level"), text("scope"), text("message")), ("info", "access", "connection complete"));
    assert_eq!(text("src.identity"), scene.client.identity());
    assert_eq!(text("dst.hbone_addr"), echo.ipv4().to_string());
    assert_eq!(text("direction"), "inbound");
    assert_eq!((object["bytes_sent"].as_u64(), object["bytes_recv"].as_u64()), (Some(5), Some(5)), "{line}");
    assert!(text("time").ends_with('Z'), "{line}");
}
