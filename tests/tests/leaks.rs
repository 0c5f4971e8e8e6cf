//! What connections leave behind when they have ended, however they did: nothing.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::net::SocketAddr;
use std::time::Duration;

use lab::traffic::{self, Server};
use lab::{BackendChoice, PATIENCE, Pod, TwoNodes, Ztunnel, ZtunnelOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

/// Connections of a kind that exist at once.
const AT_ONCE: usize = 50;

/// How a connection that is broken off has got on until then.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Nothing was sent: the tunnel's stream may not be open yet.
    Connected,
    /// A request was sent, and the answer not waited for.
    Asked,
    /// In the middle of a transfer that is more than all buffers hold.
    Flooding,
    /// All was said and read.
    Answered,
}

const STAGES: [Stage; 4] = [Stage::Connected, Stage::Asked, Stage::Flooding, Stage::Answered];

/// What the two proxies occupy.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Held {
    descriptors: [usize; 2],
    /// On all threads that carry bytes or answer DNS.
    tasks: [usize; 2],
    memory: [u64; 2],
}

fn proxies(scene: &TwoNodes) -> [&Ztunnel; 2] {
    [scene.east_ztunnel().unwrap(), scene.west_ztunnel().unwrap()]
}

fn held(scene: &TwoNodes) -> Held {
    Held {
        descriptors: proxies(scene).map(|proxy| proxy.process().descriptors().unwrap()),
        tasks: proxies(scene).map(|proxy| proxy.metric("istio_thread_tasks", "").unwrap() as usize),
        memory: proxies(scene).map(|proxy| proxy.process().resident_memory().unwrap()),
    }
}

/// Makes `count` connections of a kind, a few at once.
fn crowd<F>(from: &Pod, count: usize, connection: impl Fn(usize) -> F + Send + 'static)
where
    F: Future<Output = lab::Result<()>> + 'static,
{
    let task = from.spawn(async move || {
        let mut open = JoinSet::new();
        for number in 0..count {
            if open.len() == AT_ONCE
                && let Some(ended) = open.join_next().await
            {
                ended??;
            }
            open.spawn_local(connection(number));
        }
        while let Some(ended) = open.join_next().await {
            ended??;
        }
        Ok(())
    });
    task.join_within(4 * PATIENCE).unwrap();
}

async fn short(target: SocketAddr) -> lab::Result<()> {
    let answer = traffic::ask(target, b"hello").await?;
    anyhow::ensure!(answer == b"hello", "the echo differs");
    Ok(())
}

async fn broken_off(target: SocketAddr, stage: Stage) -> lab::Result<()> {
    let mut stream = traffic::connect(target).await?;
    match stage {
        Stage::Connected => {}
        Stage::Asked => stream.write_all(b"hello").await?,
        Stage::Flooding => {
            // Nothing is read, so the echo blocks, and then this does.
            let block = vec![b'x'; 64 * 1024];
            let fill = async {
                loop {
                    stream.write_all(&block).await?;
                }
            };
            let filled: Result<std::io::Result<()>, _> =
                tokio::time::timeout(Duration::from_millis(20), fill).await;
            anyhow::ensure!(filled.is_err(), "it ended early: {filled:?}");
        }
        Stage::Answered => traffic::round_trip(&mut stream, b"hello").await?,
    }
    traffic::reset(stream)
}

/// Finishes one direction, and lets the other end a little later: the echo answers to the end.
async fn half_closed(target: SocketAddr) -> lab::Result<()> {
    let mut stream = traffic::connect(target).await?;
    stream.write_all(b"hello").await?;
    stream.shutdown().await?;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let mut answer = Vec::new();
    traffic::bounded("the rest", async { Ok(stream.read_to_end(&mut answer).await?) }).await?;
    anyhow::ensure!(answer == b"hello", "the echo differs");
    Ok(())
}

fn everything(scene: &TwoNodes, target: SocketAddr, share: usize) {
    crowd(&scene.client, 20_000 / share, move |_| short(target));
    crowd(&scene.client, 2_000 / share, move |number| broken_off(target, STAGES[number % STAGES.len()]));
    crowd(&scene.client, 500 / share, move |_| half_closed(target));
}

#[test]
fn after_twenty_thousand_connections_the_proxies_hold_what_they_held_before() {
    // The log is kept by the laboratory, not by the proxies; less of it makes this quicker.
    let options = ZtunnelOptions { log: "warn,access=off".to_owned(), ..ZtunnelOptions::default() };
    let scene = TwoNodes::with(BackendChoice::Nftables, &options, |_, _| Ok(())).unwrap();
    let echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    let target = echo.ipv4();
    // Of the same kind: tunnels of both workers, buffers, the allocator's arenas and tables at their size.
    everything(&scene, target, 4);
    lab::wait_until(|| echo.open() == 0).unwrap();
    let settled = settle(&scene);
    everything(&scene, target, 1);
    // The applications' connections end with those of the clients.
    lab::wait_until(|| echo.open() == 0).unwrap();
    let end = || held(&scene);
    // A tunnel more or less for each worker, since which of them has one is up to chance.
    let few = ZtunnelOptions::default().threads;
    let returned = |after: &Held| {
        let descriptors =
            after.descriptors.iter().zip(settled.descriptors).all(|(after, before)| *after <= before + few);
        // Such a tunnel has one task at either end.
        let tasks = after.tasks.iter().zip(settled.tasks).all(|(after, before)| *after <= before + few);
        // Memory by a twentieth, and two buffers.
        let memory = after
            .memory
            .iter()
            .zip(settled.memory)
            .all(|(after, before)| *after <= before + before / 20 + (512 << 10));
        descriptors && tasks && memory
    };
    lab::wait_until(|| returned(&end())).unwrap_or_else(|_| panic!("before {settled:?}, after {:?}", end()));
    assert!(echo.accepted() > 25_000, "{}", echo.accepted());
}

/// What is held once that does not change any more for two seconds.
fn settle(scene: &TwoNodes) -> Held {
    let mut last = held(scene);
    let mut same = 0;
    lab::wait_until(|| {
        std::thread::sleep(Duration::from_millis(200));
        let now = held(scene);
        same = if now.descriptors == last.descriptors { same + 1 } else { 0 };
        last = now;
        same == 10
    })
    .unwrap();
    last
}
