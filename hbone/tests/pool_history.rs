//! The pool under random histories.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use hbone::{ConnectError, Connected, ErrorCode, PoolError};
use proptest::prelude::*;
use support::farm::*;
use support::*;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::Instant;

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
