//! The proxy's listeners are in pods, where others have a hand in them.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::io::Write as _;
use std::time::Duration;

use lab::traffic::{self, Outcome, Server};
use lab::{BackendChoice, PATIENCE, Pod, TwoNodes, hello};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Destroys a listener as any program in the pod can that has the capability NET_ADMIN there. False: the kernel cannot
/// do that (it is built without CONFIG_INET_DIAG_DESTROY).
fn destroy_listener(pod: &Pod, port: u16) -> bool {
    let mut command = pod.command("ss");
    command.args(["-K", "-H", "-tln", &format!("sport = :{port}")]);
    let output = pod.output(command).unwrap();
    // What was destroyed is listed.
    String::from_utf8(output.stdout).unwrap().contains(&format!(":{port}"))
}

#[test]
fn a_listener_that_is_destroyed_is_bound_again_and_keeps_nobody_busy_meanwhile() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let (east, west) = (scene.east_ztunnel().unwrap(), scene.west_ztunnel().unwrap());
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    for (pod, ztunnel, port, from) in [
        (&scene.client, east, 15001, &scene.client),
        (&scene.server, west, 15008, &scene.client),
        (&scene.server, west, 15006, &scene.outsider),
    ] {
        assert_eq!(hello(from, echo.ipv4()).unwrap(), Outcome::answered("hello"));
        let before = ztunnel.process().processor_time().unwrap();
        if !destroy_listener(pod, port) {
            let _ = writeln!(std::io::stderr(), "skipped: this kernel does not destroy sockets on request");
            return;
        }
        std::thread::sleep(Duration::from_secs(1));
        let spent = ztunnel.process().processor_time().unwrap() - before;
        assert!(spent < Duration::from_millis(500), "{port}: {spent:?} in a second of waiting");
        lab::wait_until(|| hello(from, echo.ipv4()).unwrap() == Outcome::answered("hello")).unwrap();
    }
}

/// The proxy connects to the application in the client's name. Did it use a port that the client then uses itself,
/// connection tracking in the pod would take the client's connection for a part of that one, and nobody would answer.
#[test]
fn connections_of_an_outsider_in_quick_succession_are_all_accepted() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let target = echo.ipv4();
    let outcome = scene.outsider.spawn(async move || {
        let (mut held, mut swallowed) = (Vec::new(), 0);
        while held.len() < 2000 && swallowed < 3 {
            match timeout(Duration::from_secs(3), TcpStream::connect(target)).await {
                Ok(stream) => held.push(stream?),
                Err(_) => swallowed += 1,
            }
        }
        Ok((held.len(), swallowed))
    });
    assert_eq!(outcome.join_within(PATIENCE).unwrap(), (2000, 0), "(connected, swallowed)");
}
