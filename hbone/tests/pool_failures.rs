//! Who fails when a dial, a tunnel or a request does, and what is tried again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use hbone::{ClientSettings, ConnectError, ErrorCode, IncomingConnect, PoolError, Refusal, Tunnel};
use support::farm::*;
use support::raw::{self, Raw};
use support::*;
use tokio::io::duplex;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::Instant;

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

/// Notes when it is dropped.
struct Dropped(Rc<Cell<usize>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

/// A dial that never ends, and counts how often it was dropped.
fn endless(dropped: &Rc<Cell<usize>>) -> impl AsyncFnOnce() -> Result<Tunnel, Rc<str>> + Clone + 'static {
    let dropped = dropped.clone();
    move || async move {
        let _guard = Dropped(dropped);
        std::future::pending().await
    }
}

#[test]
fn a_drained_pool_drops_its_dials_and_turns_away_everyone_who_waits_for_them() {
    run_simulated(async {
        let (pool, dropped) = (pool(1), Rc::new(Cell::new(0)));
        let start = Instant::now();
        let tasks: Vec<_> = (0..3)
            .map(|_| {
                let (pool, dial) = (pool.clone(), endless(&dropped));
                spawn_local(async move { pool.acquire(&"a", soon(), dial).await })
            })
            .collect();
        settle().await;
        assert_eq!((pool.keys(), dropped.get()), (1, 0));
        pool.drain();
        for task in tasks {
            let outcome = task.await.unwrap();
            assert!(matches!(outcome, Err(PoolError::Drained)), "{outcome:?}");
        }
        settle().await;
        assert_eq!((pool.keys(), dropped.get()), (0, 3));
        assert!(start.elapsed().is_zero(), "nobody waited for a deadline");
    });
}

#[test]
fn a_dial_that_nobody_waits_for_any_more_is_dropped_with_the_pool() {
    run(async {
        let (pool, dropped) = (pool(1), Rc::new(Cell::new(0)));
        let caller = {
            let (pool, dial) = (pool.clone(), endless(&dropped));
            spawn_local(async move { pool.acquire(&"a", soon(), dial).await })
        };
        settle().await;
        caller.abort();
        settle().await;
        assert_eq!(dropped.get(), 0);
        drop(pool);
        settle().await;
        assert_eq!(dropped.get(), 1);
    });
}

#[test]
fn a_turn_to_dial_that_is_taken_after_the_pool_was_drained_is_not_used() {
    run_simulated(async {
        let (pool, dials, gate, dialled) =
            (pool(2), Rc::new(Cell::new(0)), Rc::new(Notify::new()), Rc::new(Notify::new()));
        let useless = {
            let (dials, gate, dialled) = (dials.clone(), gate.clone(), dialled.clone());
            move || async move {
                dials.set(dials.get() + 1);
                gate.notified().await;
                let (tunnel, _server) = pair().await;
                tunnel.retire();
                // Tasks run in the order in which they are woken: this one before the second caller, who
                // is given the next dial because this one was of no use.
                dialled.notify_one();
                Ok(tunnel)
            }
        };
        let tasks = [(); 2].map(|()| {
            let (pool, dial) = (pool.clone(), useless.clone());
            spawn_local(async move { pool.acquire(&"a", soon(), dial).await })
        });
        let drain = spawn_local({
            let pool = pool.clone();
            async move {
                dialled.notified().await;
                pool.drain();
            }
        });
        settle().await;
        let start = Instant::now();
        gate.notify_one();
        drain.await.unwrap();
        for task in tasks {
            assert!(matches!(task.await.unwrap(), Err(PoolError::Drained)));
        }
        assert_eq!(dials.get(), 1);
        assert!(start.elapsed().is_zero(), "nobody waited for a deadline");
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
