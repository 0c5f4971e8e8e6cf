//! Sharing tunnels: how many are opened, who gets a slot, who fails and when.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hbone::{
    ClientSettings, ConnectError, Connected, ErrorCode, HboneStream, IncomingConnect, Pool, PoolError,
    PoolSettings, Refusal, Server, ServerSettings, Tunnel,
};
use proptest::prelude::*;
use support::raw::{self, Raw};
use support::*;
use tokio::io::duplex;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, sleep_until};

type TestPool = Pool<&'static str, Rc<str>>;

/// Destinations that count what is dialled.
#[derive(Clone, Default)]
struct Farm(Rc<FarmState>);

#[derive(Default)]
struct FarmState {
    settings: RefCell<(ClientSettings, ServerSettings)>,
    dials: Cell<usize>,
    /// Servers whose tunnel has not ended.
    live: Cell<usize>,
    /// Tells servers to drain.
    drain: Notify,
    /// While set, dials wait for it.
    gate: RefCell<Option<Rc<Notify>>>,
    /// While set, dials fail with it.
    failure: RefCell<Option<Rc<str>>>,
}

impl Farm {
    fn with_peer_limit(max_streams: u32) -> Farm {
        let farm = Farm::default();
        farm.0.settings.borrow_mut().1.max_streams = max_streams;
        farm
    }

    /// What a pool is given to open a tunnel with.
    fn dial(&self) -> impl AsyncFnOnce() -> Result<Tunnel, Rc<str>> + Clone + 'static {
        let farm = self.clone();
        move || async move {
            farm.0.dials.set(farm.0.dials.get() + 1);
            let gate = farm.0.gate.borrow().clone();
            if let Some(gate) = gate {
                gate.notified().await;
            }
            if let Some(failure) = &*farm.0.failure.borrow() {
                return Err(failure.clone());
            }
            let (near, far) = duplex(TRANSPORT);
            let settings = farm.0.settings.borrow().clone();
            spawn_local(farm.clone().serve(far, settings.1));
            let (tunnel, _driver) = tunnel(near, &settings.0).await;
            Ok(tunnel)
        }
    }

    async fn serve(self, io: tokio::io::DuplexStream, settings: ServerSettings) {
        self.0.live.set(self.0.live.get() + 1);
        let mut server = Server::handshake(io, &settings, soon()).await.unwrap();
        loop {
            tokio::select! {
                incoming = server.accept() => match incoming {
                    Some(Ok(incoming)) => drop(spawn_local(echo(incoming))),
                    _ => break,
                },
                () = self.0.drain.notified() => server.drain(),
            }
        }
        self.0.live.set(self.0.live.get() - 1);
    }

    fn dials(&self) -> usize {
        self.0.dials.get()
    }

    fn live(&self) -> usize {
        self.0.live.get()
    }

    fn fail(&self, failure: Option<&str>) {
        *self.0.failure.borrow_mut() = failure.map(Rc::from);
    }

    /// Holds up dials until the gate is notified.
    fn gate(&self) -> Rc<Notify> {
        let gate = Rc::new(Notify::new());
        *self.0.gate.borrow_mut() = Some(gate.clone());
        gate
    }
}

fn pool(max_streams: usize) -> Rc<TestPool> {
    pool_with(PoolSettings { max_streams, ..PoolSettings::default() })
}

fn pool_with(settings: PoolSettings) -> Rc<TestPool> {
    Rc::new(Pool::new(settings))
}

type Outcome = Result<Connected, PoolError<Rc<str>>>;

fn connect(pool: &Rc<TestPool>, farm: &Farm, key: &'static str) -> JoinHandle<Outcome> {
    connect_until(pool, farm, key, soon())
}

fn connect_until(
    pool: &Rc<TestPool>,
    farm: &Farm,
    key: &'static str,
    deadline: Instant,
) -> JoinHandle<Outcome> {
    let (pool, dial) = (pool.clone(), farm.dial());
    spawn_local(async move { pool.connect(&key, &request("10.0.0.1:80"), deadline, dial).await })
}

async fn connect_many(pool: &Rc<TestPool>, farm: &Farm, key: &'static str, count: usize) -> Vec<HboneStream> {
    let tasks: Vec<_> = (0..count).map(|_| connect(pool, farm, key)).collect();
    let mut streams = Vec::new();
    for task in tasks {
        streams.push(task.await.unwrap().unwrap().stream);
    }
    streams
}

async fn assert_echoes(stream: &mut HboneStream) {
    stream.send.send(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(stream.recv.chunk().await.unwrap().unwrap(), "hello");
}

#[test]
fn streams_one_after_another_and_together_share_one_tunnel_which_closes_with_the_pool() {
    run(async {
        let (pool, farm) = (pool(3), Farm::default());
        for _ in 0..2 {
            let mut streams = connect_many(&pool, &farm, "a", 2).await;
            assert_echoes(&mut streams[0]).await;
            assert_echoes(&mut streams[1]).await;
        }
        assert_eq!((farm.dials(), pool.tunnels()), (1, 1));
        drop(pool);
        eventually("the tunnel closes", || farm.live() == 0).await;
    });
}

#[test]
fn a_stream_outlives_the_pool_and_closes_the_tunnel_when_it_ends() {
    run(async {
        let (pool, farm) = (pool(3), Farm::default());
        let mut stream = connect_many(&pool, &farm, "a", 1).await.remove(0);
        drop(pool);
        settle().await;
        assert_echoes(&mut stream).await;
        assert_eq!(farm.live(), 1);
        drop(stream);
        eventually("the tunnel closes", || farm.live() == 0).await;
    });
}

#[test]
fn different_keys_use_different_tunnels() {
    run(async {
        let (pool, farm) = (pool(100), Farm::default());
        let a = connect_many(&pool, &farm, "a", 1).await;
        let b = connect_many(&pool, &farm, "b", 1).await;
        assert_eq!((farm.dials(), pool.keys()), (2, 2));
        drop((a, b));
    });
}

#[test]
fn a_hundred_streams_at_once_share_one_tunnel() {
    run(async {
        let (pool, farm) = (pool(101), Farm::default());
        farm.0.settings.borrow_mut().0.max_streams = 101;
        let streams = connect_many(&pool, &farm, "a", 100).await;
        assert_eq!((farm.dials(), streams.len()), (1, 100));
    });
}

#[test]
fn three_hundred_streams_over_three_keys_use_three_tunnels() {
    run(async {
        let (pool, farm) = (pool(100), Farm::default());
        let mut streams = Vec::new();
        let tasks: Vec<_> = (0..300).map(|n| connect(&pool, &farm, ["a", "b", "c"][n % 3])).collect();
        for task in tasks {
            streams.push(task.await.unwrap().unwrap());
        }
        assert_eq!((farm.dials(), pool.tunnels()), (3, 3));
    });
}

#[test]
fn more_streams_than_a_tunnel_carries_open_further_ones_and_no_tunnel_carries_more() {
    run(async {
        for (max, streams, tunnels) in [(2, 4, 2), (1, 2, 2), (2, 5, 3), (10, 100, 10)] {
            let (pool, farm) = (pool(max), Farm::default());
            farm.0.settings.borrow_mut().0.max_streams = max;
            // More than the maximum on one tunnel would be refused by its server.
            farm.0.settings.borrow_mut().1.max_streams = max as u32;
            let streams = connect_many(&pool, &farm, "a", streams).await;
            assert_eq!(farm.dials(), tunnels);
            drop((streams, pool));
            eventually("all tunnels close", || farm.live() == 0).await;
        }
    });
}

#[test]
fn a_tunnel_that_was_full_is_used_again_when_streams_have_ended() {
    run(async {
        let (pool, farm) = (pool(2), Farm::default());
        farm.0.settings.borrow_mut().0.max_streams = 2;
        for _ in 0..5 {
            let streams = connect_many(&pool, &farm, "a", 2).await;
            drop(streams);
        }
        assert_eq!(farm.dials(), 1);
    });
}

#[test]
fn a_peer_that_allows_one_stream_gets_one_tunnel_for_each_and_nobody_waits_in_vain() {
    run(async {
        let (pool, farm) = (pool(100), Farm::with_peer_limit(1));
        let mut streams = connect_many(&pool, &farm, "a", 10).await;
        assert_eq!(farm.dials(), 10);
        for stream in &mut streams {
            assert_echoes(stream).await;
        }
    });
}

#[test]
fn one_dial_serves_everyone_who_came_while_it_was_under_way() {
    run(async {
        let (pool, farm) = (pool(100), Farm::default());
        let gate = farm.gate();
        let tasks: Vec<_> = (0..50).map(|_| connect(&pool, &farm, "a")).collect();
        settle().await;
        assert_eq!(farm.dials(), 1);
        gate.notify_one();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert_eq!(farm.dials(), 1);
    });
}

#[test]
fn a_failed_dial_fails_everyone_who_waited_for_it_and_the_next_caller_tries_again() {
    run(async {
        let (pool, farm) = (pool(100), Farm::default());
        let gate = farm.gate();
        farm.fail(Some("no route"));
        let tasks: Vec<_> = (0..50).map(|_| connect(&pool, &farm, "a")).collect();
        settle().await;
        gate.notify_one();
        for task in tasks {
            let error = task.await.unwrap().unwrap_err();
            assert!(matches!(&error, PoolError::Dial(cause) if &**cause == "no route"), "{error:?}");
        }
        assert_eq!((farm.dials(), pool.keys()), (1, 0), "nothing is remembered");
        farm.fail(None);
        gate.notify_one();
        connect(&pool, &farm, "a").await.unwrap().unwrap();
        assert_eq!(farm.dials(), 2);
    });
}

#[test]
fn when_one_of_two_dials_fails_only_those_fail_whom_the_other_cannot_serve() {
    run(async {
        let (pool, farm) = (pool(4), Farm::default());
        farm.0.settings.borrow_mut().0.max_streams = 4;
        let gate = farm.gate();
        let tasks: Vec<_> = (0..6).map(|_| connect(&pool, &farm, "a")).collect();
        settle().await;
        assert_eq!(farm.dials(), 2, "six do not fit on one tunnel of four");
        farm.fail(Some("no route"));
        gate.notify_one();
        settle().await;
        assert_eq!(tasks.iter().filter(|task| task.is_finished()).count(), 2);
        farm.fail(None);
        gate.notify_one();
        let mut served = Vec::new();
        for task in tasks {
            served.extend(task.await.unwrap());
        }
        assert_eq!(served.len(), 4);
    });
}

#[test]
fn everyone_who_waits_for_a_black_hole_fails_at_their_own_deadline() {
    run_simulated(async {
        let (pool, farm) = (pool(100), Farm::default());
        let _never = farm.gate();
        let start = Instant::now();
        let tasks: Vec<_> = (1..=10)
            .map(|seconds| {
                let task = connect_until(&pool, &farm, "a", start + Duration::from_secs(seconds));
                (seconds, task)
            })
            .collect();
        for (seconds, task) in tasks {
            assert!(matches!(task.await.unwrap(), Err(PoolError::Deadline)));
            assert_eq!(start.elapsed().as_secs(), seconds);
        }
        assert_eq!(farm.dials(), 1);
    });
}

#[test]
fn a_peer_that_takes_the_connection_and_says_nothing_holds_nobody_beyond_the_deadline() {
    run_simulated(async {
        let pool = pool(100);
        let held = Rc::new(RefCell::new(Vec::new()));
        let dial = {
            let held = held.clone();
            move || async move {
                let (near, far) = duplex(TRANSPORT);
                held.borrow_mut().push(far);
                Ok(tunnel(near, &ClientSettings::default()).await.0)
            }
        };
        let start = Instant::now();
        let tasks: Vec<_> = (0..10)
            .map(|_| {
                let (pool, dial) = (pool.clone(), dial.clone());
                spawn_local(async move { pool.connect(&"a", &request("10.0.0.1:80"), soon(), dial).await })
            })
            .collect();
        for task in tasks {
            let error = task.await.unwrap().unwrap_err();
            assert!(
                matches!(error, PoolError::Deadline | PoolError::Connect(ConnectError::Deadline)),
                "{error:?}"
            );
        }
        assert_eq!(start.elapsed().as_secs(), 5);
    });
}

#[test]
fn a_caller_that_goes_away_takes_nothing_from_those_who_share_its_dial() {
    run(async {
        let (pool, farm) = (pool(100), Farm::default());
        let gate = farm.gate();
        let first = connect(&pool, &farm, "a");
        settle().await;
        let second = connect(&pool, &farm, "a");
        settle().await;
        first.abort();
        settle().await;
        gate.notify_one();
        second.await.unwrap().unwrap();
        assert_eq!(farm.dials(), 1);
    });
}

#[test]
fn callers_that_gave_up_leave_no_trace() {
    run(async {
        let (pool, farm) = (pool(1), Farm::default());
        let gate = farm.gate();
        farm.fail(Some("no route"));
        let tasks: Vec<_> = (0..20).map(|_| connect(&pool, &farm, "a")).collect();
        settle().await;
        tasks.iter().for_each(JoinHandle::abort);
        settle().await;
        for _ in 0..farm.dials() {
            gate.notify_one();
            settle().await;
        }
        assert_eq!((pool.keys(), pool.tunnels()), (0, 0));
    });
}

#[test]
fn a_slot_that_comes_free_goes_to_one_who_waits_for_a_dial() {
    run(async {
        let (pool, farm) = (pool(1), Farm::default());
        farm.0.settings.borrow_mut().0.max_streams = 1;
        let held = connect_many(&pool, &farm, "a", 1).await;
        let _never = farm.gate();
        let waiting = connect(&pool, &farm, "a");
        settle().await;
        assert_eq!(farm.dials(), 2);
        drop(held);
        waiting.await.unwrap().unwrap();
    });
}

#[test]
fn after_goaway_the_next_stream_goes_to_a_new_tunnel_and_running_ones_go_on() {
    run(async {
        let (pool, farm) = (pool(100), Farm::default());
        let mut old = connect_many(&pool, &farm, "a", 1).await.remove(0);
        assert_echoes(&mut old).await;
        farm.0.drain.notify_one();
        eventually("the tunnel leaves the pool", || pool.tunnels() == 0).await;
        let mut new = connect_many(&pool, &farm, "a", 1).await.remove(0);
        assert_eq!((farm.dials(), pool.tunnels()), (2, 1));
        assert_echoes(&mut old).await;
        assert_echoes(&mut new).await;
        drop(old);
        eventually("the old tunnel closes", || farm.live() == 1).await;
    });
}

#[test]
fn a_tunnel_that_ends_leaves_the_pool_and_its_key_is_forgotten() {
    run(async {
        let (pool, farm) = (pool(100), Farm::default());
        drop(connect_many(&pool, &farm, "a", 1).await);
        assert_eq!((pool.keys(), pool.tunnels()), (1, 1));
        farm.0.drain.notify_one();
        eventually("the tunnel is gone", || farm.live() == 0).await;
        eventually("the key is gone", || (pool.keys(), pool.tunnels()) == (0, 0)).await;
    });
}

#[test]
fn idle_tunnels_are_released_in_time_and_used_ones_are_not() {
    run_simulated(async {
        let idle_timeout = Duration::from_secs(300);
        let pool = pool_with(PoolSettings { max_streams: 1, idle_timeout, ..PoolSettings::default() });
        let farm = Farm::default();
        farm.0.settings.borrow_mut().0.max_streams = 1;
        let mut streams = connect_many(&pool, &farm, "a", 2).await;
        let start = Instant::now();
        drop(streams.pop());
        sleep_until(start + Duration::from_secs(299)).await;
        assert_eq!((farm.live(), pool.tunnels()), (2, 2));
        sleep_until(start + Duration::from_secs(301)).await;
        settle().await;
        assert_eq!((farm.live(), pool.tunnels()), (1, 1), "the overflow tunnel goes first");

        sleep(Duration::from_secs(3600)).await;
        assert_echoes(&mut streams[0]).await;
        assert_eq!(pool.tunnels(), 1, "a tunnel with a stream is not idle");
        drop(streams);
        sleep(Duration::from_secs(299)).await;
        assert_eq!(pool.tunnels(), 1);
        sleep(Duration::from_secs(2)).await;
        settle().await;
        assert_eq!((farm.live(), pool.tunnels(), pool.keys()), (0, 0, 0));

        // And the timer starts again with the next tunnel.
        drop(connect_many(&pool, &farm, "a", 1).await);
        sleep(Duration::from_secs(301)).await;
        settle().await;
        assert_eq!((farm.live(), pool.tunnels()), (0, 0));
    });
}

#[test]
fn beyond_the_limit_the_least_recently_used_idle_tunnels_go() {
    run_simulated(async {
        let pool = pool_with(PoolSettings { max_tunnels: 2, ..PoolSettings::default() });
        let farm = Farm::default();
        let a = connect_many(&pool, &farm, "a", 1).await;
        let b = connect_many(&pool, &farm, "b", 1).await;
        let c = connect_many(&pool, &farm, "c", 1).await;
        assert_eq!(pool.tunnels(), 3, "tunnels in use stay");
        for streams in [b, a, c] {
            sleep(Duration::from_secs(1)).await;
            drop(streams);
            settle().await;
        }
        assert_eq!(pool.tunnels(), 2);
        for (key, dials) in [("a", 3), ("c", 3), ("b", 4)] {
            drop(connect_many(&pool, &farm, key, 1).await);
            assert_eq!(farm.dials(), dials, "{key}");
        }
    });
}

#[test]
fn a_drained_pool_turns_callers_away_and_closes_what_is_idle() {
    run(async {
        let (pool, farm) = (pool(100), Farm::default());
        drop(connect_many(&pool, &farm, "a", 1).await);
        let gate = farm.gate();
        let waiting = connect(&pool, &farm, "b");
        settle().await;
        pool.drain();
        assert!(matches!(waiting.await.unwrap(), Err(PoolError::Drained)));
        assert!(matches!(connect(&pool, &farm, "a").await.unwrap(), Err(PoolError::Drained)));
        eventually("the idle tunnel closes", || farm.live() == 0).await;
        // The dial that was under way opens a tunnel that nobody wants.
        gate.notify_one();
        settle().await;
        eventually("the late tunnel closes", || farm.live() == 0).await;
        assert_eq!((pool.tunnels(), pool.keys()), (0, 0));
    });
}

/// Dials peers from a list of scripts, in order.
fn scripted<F>(scripts: Vec<fn(Raw) -> F>) -> impl AsyncFnOnce() -> Result<Tunnel, Rc<str>> + Clone + 'static
where
    F: Future<Output = ()> + 'static,
{
    let scripts = Rc::new(RefCell::new(scripts.into_iter()));
    move || async move {
        let script = scripts.borrow_mut().next().ok_or("no more peers")?;
        let (near, far) = duplex(TRANSPORT);
        spawn_local(async move { script(Raw::server(far, &[]).await).await });
        Ok(tunnel(near, &ClientSettings::default()).await.0)
    }
}

type Script = std::pin::Pin<Box<dyn Future<Output = ()>>>;

fn refuses(mut peer: Raw) -> Script {
    Box::pin(async move {
        let stream = peer.expect(raw::HEADERS).await.stream;
        peer.reset(stream, ErrorCode::REFUSED_STREAM.into()).await;
        while peer.next().await.is_some() {}
    })
}

fn goes_away(mut peer: Raw) -> Script {
    Box::pin(async move {
        peer.expect(raw::HEADERS).await;
        peer.goaway(0, 0).await;
        while peer.next().await.is_some() {}
    })
}

fn breaks(mut peer: Raw) -> Script {
    Box::pin(async move {
        let stream = peer.expect(raw::HEADERS).await.stream;
        peer.reset(stream, ErrorCode::INTERNAL_ERROR.into()).await;
        while peer.next().await.is_some() {}
    })
}

fn accepts(mut peer: Raw) -> Script {
    Box::pin(async move {
        let stream = peer.expect(raw::HEADERS).await.stream;
        peer.accept(stream).await;
        peer.write(raw::DATA, 0, stream, b"welcome").await;
        while peer.next().await.is_some() {}
    })
}

#[test]
fn a_request_that_the_peer_has_not_looked_at_is_sent_again_once_on_another_tunnel() {
    run(async {
        for first in [refuses, goes_away] {
            let pool = pool(100);
            let dial = scripted(vec![first, accepts]);
            let mut connected = pool.connect(&"a", &request("10.0.0.1:80"), soon(), dial).await.unwrap();
            assert_eq!(connected.stream.recv.chunk().await.unwrap().unwrap(), "welcome");
            assert_eq!(pool.tunnels(), 1, "the first tunnel is not offered again");
        }
        for first in [refuses, goes_away] {
            let dial = scripted(vec![first, refuses, accepts]);
            let error = pool(100).connect(&"a", &request("10.0.0.1:80"), soon(), dial).await.unwrap_err();
            let refused = ErrorCode::REFUSED_STREAM;
            assert!(
                matches!(error, PoolError::Connect(ConnectError::Reset(code)) if code == refused),
                "a second time is enough: {error:?}"
            );
        }
    });
}

#[test]
fn a_request_that_the_peer_may_have_acted_on_is_not_sent_again() {
    run(async {
        let pool = pool(100);
        let dial = scripted(vec![breaks, accepts]);
        let error = pool.connect(&"a", &request("10.0.0.1:80"), soon(), dial).await.unwrap_err();
        let broken = ErrorCode::INTERNAL_ERROR;
        assert!(
            matches!(error, PoolError::Connect(ConnectError::Reset(code)) if code == broken),
            "{error:?}"
        );
    });
}

#[test]
fn a_refusal_by_status_is_not_retried_and_keeps_the_tunnel() {
    run(async {
        let pool = pool(100);
        let dials = Rc::new(Cell::new(0));
        let dial = {
            let dials = dials.clone();
            move || async move {
                dials.set(dials.get() + 1);
                let (tunnel, server) = pair().await;
                serve(
                    server,
                    |incoming: IncomingConnect| async move { incoming.refuse(Refusal::Unauthorized) },
                );
                Ok(tunnel)
            }
        };
        for _ in 0..3 {
            let outcome = pool.connect(&"a", &request("10.0.0.1:80"), soon(), dial.clone()).await;
            let refused =
                matches!(outcome, Err(PoolError::Connect(ConnectError::Refused(status))) if status == 401);
            assert!(refused);
        }
        assert_eq!(dials.get(), 1);
    });
}

/// One step of a random history.
#[derive(Clone, Copy, Debug)]
enum Step {
    Acquire,
    Release(usize),
    Abort(usize),
    LetOneDialPass { fails: bool },
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Acquire),
        4 => (0usize..64).prop_map(Step::Release),
        2 => (0usize..64).prop_map(Step::Abort),
        4 => any::<bool>().prop_map(|fails| Step::LetOneDialPass { fails }),
        1 => Just(Step::Drain),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happens in which order: no tunnel carries more than it may, nobody waits without a dial
    /// to wait for, and in the end nothing is left.
    #[test]
    fn any_history_keeps_the_limits_and_strands_nobody(
        limit in 1u32..4,
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        run_simulated(async move {
            let (pool, farm) = (pool(3), Farm::with_peer_limit(limit));
            farm.0.settings.borrow_mut().0.max_streams = 3;
            let gate = farm.gate();
            let mut passed = 0;
            let mut held: Vec<Connected> = Vec::new();
            let mut waiting: Vec<JoinHandle<Outcome>> = Vec::new();
            for step in steps {
                match step {
                    Step::Acquire => {
                        let (pool, dial) = (pool.clone(), farm.dial());
                        let far_off = Instant::now() + Duration::from_secs(3600);
                        waiting.push(spawn_local(async move {
                            let lease = pool.acquire(&"a", far_off, dial).await?;
                            lease.connect(&request("10.0.0.1:80"), far_off).await.map_err(PoolError::Connect)
                        }));
                    }
                    Step::Release(index) if !held.is_empty() => drop(held.swap_remove(index % held.len())),
                    Step::Abort(index) if !waiting.is_empty() => waiting.swap_remove(index % waiting.len()).abort(),
                    Step::LetOneDialPass { fails } if passed < farm.dials() => {
                        farm.fail(fails.then_some("no route"));
                        gate.notify_one();
                        passed += 1;
                    }
                    Step::Drain => farm.0.drain.notify_one(),
                    Step::Release(_) | Step::Abort(_) | Step::LetOneDialPass { .. } => {}
                }
                settle().await;
                let (done, still): (Vec<_>, Vec<_>) = waiting.drain(..).partition(JoinHandle::is_finished);
                waiting = still;
                for task in done {
                    let outcome = task.await.unwrap();
                    // Servers refuse streams beyond their limit.
                    let overrun = matches!(
                        outcome,
                        Err(PoolError::Connect(ConnectError::Reset(ErrorCode::REFUSED_STREAM)))
                    );
                    assert!(!overrun);
                    held.extend(outcome);
                }
                assert!(waiting.is_empty() || passed < farm.dials(), "{} wait for nothing", waiting.len());
            }
            drop(held);
            for task in waiting {
                task.abort();
            }
            drop(pool);
            farm.fail(Some("no route"));
            for _ in passed..farm.dials() {
                gate.notify_one();
                settle().await;
            }
            eventually("all tunnels close", || farm.live() == 0).await;
        });
    }
}
