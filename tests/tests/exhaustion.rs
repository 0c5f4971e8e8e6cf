//! A proxy without a descriptor left: what is open goes on, what is new waits or fails, and all is well afterwards.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::sync::mpsc::channel;
use std::time::Duration;

use lab::traffic::{self, Outcome, Server};
use lab::{BackendChoice, OpenConnection, PATIENCE, TwoNodes, Ztunnel, ZtunnelOptions, apply_rules, hello};
use tokio::sync::watch;

/// Lets the process have so many descriptors more than it has.
fn limit(scene: &TwoNodes, proxy: &Ztunnel, more: usize) {
    let limit = proxy.process().descriptors().unwrap() + more;
    let mut command = scene.west.command("prlimit");
    command.args(["--pid", &proxy.process().id().to_string(), &format!("--nofile={limit}:")]);
    assert!(scene.west.output(command).unwrap().status.success());
}

#[test]
fn open_connections_go_on_without_descriptors_and_pods_that_came_meanwhile_are_served_afterwards() {
    let mut late = None;
    let scene = TwoNodes::with(BackendChoice::Nftables, &ZtunnelOptions::default(), |file, server| {
        let pod = server.node().pod("late")?;
        file.enrol(&pod);
        late = Some(pod);
        Ok(())
    })
    .unwrap();
    let late = late.unwrap();
    apply_rules(&late, BackendChoice::Nftables).unwrap();
    let (proxy, agent) = (scene.west_ztunnel().unwrap(), scene.mesh.agent(&scene.west).unwrap());
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let late_echo = Server::start(&late, 8080, traffic::echo).unwrap();
    let target = echo.ipv4();
    let old = OpenConnection::open(&scene.client, target).unwrap();

    limit(&scene, proxy, 8);
    let (connected, all_connected) = channel();
    let (leave, mut may_leave) = watch::channel(());
    let crowd = scene.outsider.spawn(async move || {
        let mut held = Vec::new();
        for _ in 0..50 {
            held.push(traffic::connect(target).await?);
        }
        connected.send(())?;
        // The sender is dropped.
        drop(may_leave.changed().await);
        Ok(())
    });
    all_connected.recv_timeout(PATIENCE).unwrap();
    proxy.wait_for_log("new connections wait: no descriptors or memory are left").unwrap();

    // The tunnel is there, the application's side of a new connection in it is not, or not for many: those from outside take two
    // descriptors each, and may have left one.
    let mut more = Vec::new();
    let is_cut = |_| OpenConnection::open(&scene.client, target).map(|open| more.push(open)).is_err();
    assert!((0..10).any(is_cut), "all of them work");
    assert!(old.works());
    // The namespace's descriptor does not arrive, or the listeners cannot be opened. Both are the agent's to hear.
    drop(agent.add(&late));
    let before = proxy.process().processor_time().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let spent = proxy.process().processor_time().unwrap() - before;
    assert!(spent < Duration::from_secs(1), "{spent:?} in two seconds of waiting");
    assert!(old.works());

    drop((leave, more));
    crowd.join().unwrap();
    let answered = Outcome::answered("hello");
    lab::wait_until(|| hello(&scene.client, target).unwrap() == answered).unwrap();
    lab::wait_until(|| hello(&scene.outsider, target).unwrap() == answered).unwrap();
    // Now there is room for its listeners too.
    limit(&scene, proxy, 200);
    lab::wait_until(|| hello(&scene.client, late_echo.ipv4()).unwrap() == answered).unwrap();
    assert!(old.works());
    for limit in ["accept_resources", "connect_resources"] {
        assert!(proxy.metric("istio_limits_reached_total", limit).unwrap() > 0.0, "{limit}");
    }
}
