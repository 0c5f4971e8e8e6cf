//! Sharing tunnels: how many are opened, how long they are kept.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use hbone::{PoolError, PoolSettings};
use support::farm::*;
use support::*;
use tokio::time::{Instant, sleep, sleep_until};

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
        let _never = farm.gate();
        let waiting = connect(&pool, &farm, "b");
        settle().await;
        pool.drain();
        assert!(matches!(waiting.await.unwrap(), Err(PoolError::Drained)));
        assert!(matches!(connect(&pool, &farm, "a").await.unwrap(), Err(PoolError::Drained)));
        eventually("the idle tunnel closes", || farm.live() == 0).await;
        assert_eq!((pool.tunnels(), pool.keys()), (0, 0));
    });
}
