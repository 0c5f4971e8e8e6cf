//! What is tried, and what has to be true of it.
//!
//! Every fact that is printed is taken from curl, from the servers' answers, from the proxies' access logs or from
//! captured packets, after a check that it is what it should be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use lab::{AccessLine, Capture, Pod};

use crate::request::{Answer, Request};
use crate::scene::{Scene, WEB};
use crate::screen::{Fact, Screen};
use crate::wire::{self, Traffic};

/// Where a ztunnel accepts tunnels, by Istio's convention.
const HBONE: u16 = 15008;

/// Tries everything and prints it. Returns how many stories turned out otherwise than they should.
pub(crate) fn tell_all(scene: &Scene, screen: &mut Screen) -> Result<usize> {
    // Short enough to read, random enough not to turn up in ciphertext.
    let nonce = fastrand::u64(..);
    let (secret, open) = (format!("secret-{nonce:016x}"), format!("open-{nonce:016x}"));
    let capture = Capture::start(scene.wire())?;
    let stories: [Story<'_>; 5] = [
        Story {
            title: "client calls the service",
            from: &scene.client,
            arguments: &["-4", "-d", &secret, "http://server"],
            check: replicas_answer,
        },
        Story {
            title: "client calls the service over IPv6",
            from: &scene.client,
            arguments: &["-6", "-d", &secret, "http://server"],
            check: replicas_answer,
        },
        Story {
            title: "intruder calls the service: denied",
            from: &scene.intruder,
            arguments: &["-4", "http://server"],
            check: intruder_is_denied,
        },
        Story {
            title: "outsider, which has no identity, calls a replica: denied",
            from: &scene.outsider,
            arguments: &["-4", "http://server-2:8080"],
            check: plaintext_is_denied,
        },
        Story {
            title: "client calls outsider: passed through",
            from: &scene.client,
            arguments: &["-4", "-d", &open, "http://outsider:8080"],
            check: outsider_answers,
        },
    ];
    let mut surprises = 0;
    for story in stories {
        let request = Request { scene, from: story.from, arguments: story.arguments };
        let command = format!("{}$ {}", story.from.name(), request.command_line());
        screen.progress(story.title)?;
        surprises += report(screen, story.title, &command, (story.check)(request))?;
    }
    // What the wire has to show depends on what has been said.
    if surprises == 0 {
        let title = "what could be read on the wire between the nodes";
        let facts = wire_shows_no_secret(capture, &secret, &open);
        surprises += report(screen, title, "a capture of every packet since the first request", facts)?;
    }
    Ok(surprises)
}

struct Story<'a> {
    title: &'a str,
    from: &'a Pod,
    arguments: &'a [&'a str],
    check: fn(Request<'_>) -> Result<Vec<Fact>>,
}

fn report(screen: &mut Screen, title: &str, command: &str, facts: Result<Vec<Fact>>) -> Result<usize> {
    match facts {
        Ok(facts) => screen.success(title, command, &facts)?,
        Err(error) => {
            screen.failure(title, command, &format!("{error:#}"))?;
            return Ok(1);
        }
    }
    Ok(0)
}

/// The label for a line of the log of the pod's ztunnel.
fn log_of(pod: &Pod) -> String {
    format!("{} log", pod.node().name())
}

fn fact(label: &str, value: impl Into<String>) -> Fact {
    (label.to_owned(), value.into())
}

/// Requests to the service, at least: to see them shared out.
const FEWEST: usize = 6;

/// Requests to the service, at most. With a fair choice between two replicas, all go to one in one run of 2^63.
const MOST: usize = 64;

/// Both replicas answer, each in a tunnel between the right identities, and see the client's own address.
fn replicas_answer(request: Request<'_>) -> Result<Vec<Fact>> {
    let mut answers: BTreeMap<String, Vec<Tunnelled>> = BTreeMap::new();
    let mut count = 0;
    while count < FEWEST || answers.len() < request.scene.replicas.len() {
        ensure!(count < MOST, "{MOST} requests, all answered by {:?}", answers.keys());
        let answer = Tunnelled::send(request)?;
        answers.entry(answer.server.clone()).or_default().push(answer);
        count += 1;
    }
    let one = answers.values().flatten().next().context("there were answers")?;
    let mut facts = vec![
        fact("from", format!("{} at {}", one.client_identity, one.seen_address)),
        fact("to", one.server_identity.clone()),
    ];
    facts.extend(answers.iter().map(|(server, answers)| {
        let last = &answers[answers.len() - 1];
        let times = match answers.len() {
            1 => "once".to_owned(),
            count => format!("{count} times"),
        };
        fact(
            server,
            format!("on {} answered {times}, by HBONE over mutual TLS to {}", last.node, last.tunnel),
        )
    }));
    facts.push(fact("seen", format!("both replicas saw {}, the address of client itself", one.seen_address)));
    Ok(facts)
}

/// The facts of one answered request to the service.
struct Tunnelled {
    server: String,
    node: String,
    tunnel: SocketAddr,
    client_identity: String,
    server_identity: String,
    seen_address: String,
}

impl Tunnelled {
    fn send(request: Request<'_>) -> Result<Self> {
        let answer = request.send()?;
        let greeting = answer.greeting()?;
        // So it has crossed the wire both ways, if the server is on the other node.
        expect("the body that the server sent back", answer.echo(), request.body())?;
        let server = request.scene.replica(&greeting.server)?;
        expect("the answer's status", answer.status, 200)?;
        expect("the address that the server saw", &*greeting.peer, &*answer.client_address().to_string())?;
        let (outbound, inbound) = (answer.outbound()?, answer.inbound(server)?);
        for (line, side) in [(&outbound, "client"), (&inbound, "server")] {
            ensure!(line.get("error").is_none(), "the {side}'s ztunnel reports {:?}", line.text("error"));
            expect("the client's identity", line.text("src.identity"), &*request.from.identity())?;
            expect("the server's identity", line.text("dst.identity"), &*server.identity())?;
        }
        expect("the workload in the log", outbound.text("dst.workload"), server.name())?;
        let tunnel: SocketAddr = outbound.text("dst.addr").parse().context("dst.addr in the log")?;
        expect("the tunnel's port", tunnel.port(), HBONE)?;
        Ok(Self {
            server: greeting.server,
            node: greeting.node,
            tunnel,
            client_identity: inbound.text("src.identity").to_owned(),
            server_identity: outbound.text("dst.identity").to_owned(),
            seen_address: greeting.peer,
        })
    }
}

/// The server's proxy knows who intruder is and refuses; the client's gets 401; curl gets nothing.
fn intruder_is_denied(request: Request<'_>) -> Result<Vec<Fact>> {
    let answer = request.send()?;
    let failure = denied(&answer)?;
    let outbound = answer.outbound()?;
    let server = request.scene.replica(outbound.text("dst.workload"))?;
    let inbound = answer.inbound(server)?;
    expect("the client's identity", inbound.text("src.identity"), &*request.from.identity())?;
    ensure!(rejection(&inbound)?.ends_with("allow policies exist, but none allowed"), "{inbound:?}");
    ensure!(outbound.text("error").contains("401"), "the client's ztunnel got no 401: {outbound:?}");
    Ok(vec![
        fact("from", inbound.text("src.identity")),
        fact("to", format!("{}, whose only allow policy is allow-client", outbound.text("dst.identity"))),
        fact(&log_of(server), inbound.text("error")),
        fact(&log_of(request.from), outbound.text("error")),
        fact("curl", failure),
    ])
}

/// A caller without identity is refused, by the policy that says so.
fn plaintext_is_denied(request: Request<'_>) -> Result<Vec<Fact>> {
    let answer = request.send()?;
    let failure = denied(&answer)?;
    let server = request.scene.replica("server-2")?;
    let inbound = answer.inbound(server)?;
    expect("the connection in the log", inbound.text("src.addr"), &*answer.local.to_string())?;
    ensure!(inbound.get("src.identity").is_none(), "plaintext with an identity: {inbound:?}");
    ensure!(rejection(&inbound)?.ends_with("explicitly denied by: default/strict"), "{inbound:?}");
    Ok(vec![
        fact("from", format!("{}, in plaintext", answer.local.ip())),
        fact("to", format!("{} at {}", inbound.text("dst.workload"), inbound.text("dst.addr"))),
        fact(&log_of(server), inbound.text("error")),
        fact("curl", failure),
    ])
}

/// What is not in the mesh is reached as if there were no mesh.
fn outsider_answers(request: Request<'_>) -> Result<Vec<Fact>> {
    let answer = request.send()?;
    let greeting = answer.greeting()?;
    let outsider = &request.scene.outsider;
    expect("the server", &*greeting.server, outsider.name())?;
    expect("the address that the server saw", &*greeting.peer, &*answer.client_address().to_string())?;
    let outbound = answer.outbound()?;
    ensure!(outbound.get("error").is_none(), "{outbound:?}");
    ensure!(outbound.get("dst.identity").is_none(), "an identity outside the mesh: {outbound:?}");
    expect("the connection's end", outbound.text("dst.addr"), &*outsider.at(WEB).to_string())?;
    let (server, node) = (&greeting.server, &greeting.node);
    Ok(vec![
        fact(server, format!("on {node} answered, by plain TCP to {}", outbound.text("dst.addr"))),
        fact("seen", format!("{server} saw {}, the address of client itself", greeting.peer)),
    ])
}

/// The request came to nothing. Returns curl's words.
fn denied(answer: &Answer<'_>) -> Result<String> {
    let reply = || format!("it was answered: {} {:?}", answer.status, answer.body);
    answer.failure.clone().with_context(reply)
}

/// The error of a line, which has to be a policy's.
fn rejection(line: &AccessLine) -> Result<&str> {
    let error = line.text("error");
    ensure!(error.starts_with("connection closed due to policy rejection: "), "no rejection: {line:?}");
    Ok(error)
}

/// Of what client said to the service nothing can be read; of what it said to outsider, everything can.
fn wire_shows_no_secret(capture: Capture, secret: &str, open: &str) -> Result<Vec<Fact>> {
    capture.wait_for(open.as_bytes()).context("the capture misses what crossed in plaintext")?;
    let traffic = Traffic::read(&capture.stop()?.packets)?;
    expect("the ports of the connections", traffic.ports(), BTreeSet::from([HBONE, WEB]))?;
    let tunnel = traffic.port(HBONE);
    let records = tunnel.streams.iter().map(|stream| wire::tls_records(&stream.bytes));
    let (records, outside) = records.fold((0, 0), |sum, (count, rest)| (sum.0 + count, sum.1 + rest));
    ensure!(records > 0, "no tunnel crossed the wire");
    expect("bytes in tunnels outside TLS records", outside, 0)?;
    let (secrets, controls) = (traffic.count(secret), traffic.count(open));
    expect("appearances of the secret", secrets, 0)?;
    // Once on its way to outsider, once in its answer.
    expect("appearances of the open word", controls, 2)?;
    let plain = traffic.port(WEB);
    let elsewhere = traffic.packets - tunnel.packets - plain.packets;
    Ok(vec![
        fact("port 15008", format!("{tunnel}: {records} TLS records and nothing else")),
        fact("port 8080", format!("{plain}: outsider's calls and client's to outsider")),
        fact("other", format!("{elsewhere} packets, none of them TCP")),
        fact("to server", format!("{secret} appears {secrets} times")),
        fact("to outsider", format!("{open} appears {controls} times: the capture does see plaintext")),
    ])
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, actual: T, expected: T) -> Result<()> {
    ensure!(actual == expected, "{what} is {actual:?} and should be {expected:?}");
    Ok(())
}
