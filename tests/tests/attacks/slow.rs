//! Peers that take their time.

use std::time::Duration;

use lab::raw_peer::PREFACE;
use lab::traffic::{bounded, connect};
use tokio::io::AsyncWriteExt as _;
use tokio::time::sleep;

use crate::Siege;

/// The beginning of a TLS record of the longest kind, and of a ClientHello in it.
const HELLO: &[u8] = &[0x16, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb, 3, 3];

#[test]
fn a_peer_that_says_nothing_or_little_gets_ten_seconds() {
    let siege = Siege::begin();
    let timed_out = || {
        let labels = r#"reporter="destination",reason="timed_out""#;
        siege.ztunnel().metric("istio_handshake_failures_total", labels).unwrap() as usize
    };
    let before = timed_out();
    siege.attack(async |target| {
        let mut silent = connect(target.tunnel).await?;
        let mut dripping = connect(target.tunnel).await?;
        let mut without_preface = target.connect().await?;
        let mut with_half_a_preface = target.connect().await?;
        let bytes = HELLO.iter().copied().chain(std::iter::repeat(0));
        let (mut half, mut sent) = (PREFACE[..23].iter(), 0);
        let all_ended = async {
            lab::traffic::ending(&mut silent).await?;
            without_preface.read.drain().await;
            Ok(())
        };
        let dripping_on = async {
            for byte in bytes {
                if dripping.write_all(&[byte]).await.is_err() {
                    break;
                }
                if let Some(byte) = half.next() {
                    drop(with_half_a_preface.write.bytes(&[*byte]).await);
                }
                sent += 1;
                sleep(Duration::from_millis(100)).await;
            }
            with_half_a_preface.read.drain().await;
            Ok(sent)
        };
        bounded("the end of slow handshakes", async { tokio::try_join!(all_ended, dripping_on) }).await
    });
    lab::wait_until(|| timed_out() == before + 4).unwrap();
    siege.end();
}

#[test]
fn silent_peers_in_great_numbers_make_way_for_those_who_speak() {
    let siege = Siege::begin();
    let displaced =
        || siege.ztunnel().metric("istio_limits_reached_total", "pod_handshakes").unwrap() as usize;
    assert_eq!(displaced(), 0);
    let descriptors = siege.ztunnel().process().descriptors().unwrap();
    siege.attack(async |target| {
        let mut silent = Vec::new();
        for _ in 0..700 {
            silent.push(connect(target.tunnel).await?);
        }
        // Somebody who means it.
        let mut peer = target.open().await?;
        peer.tunnel(1, &target.authority).await
    });
    lab::wait_until(|| displaced() >= 700 - 512).unwrap();
    lab::wait_until(|| siege.ztunnel().process().descriptors().unwrap() <= descriptors + 20).unwrap();
    siege.end();
}
