//! Peers that open what they may and then read nothing.

use std::time::Duration;

use lab::raw_peer::{connect_request, flag, frame, kind};
use lab::traffic::Server;
use tokio::io::AsyncWriteExt as _;

use crate::Siege;

/// An application that sends without end.
fn source(siege: &Siege) -> Server {
    Server::start(&siege.scene.neighbour, 9090, async |mut stream, _| {
        let block = vec![b'x'; 64 * 1024];
        loop {
            stream.write_all(&block).await?;
        }
    })
    .unwrap()
}

#[test]
fn two_hundred_downloads_that_nobody_reads_cost_a_bounded_amount_of_memory() {
    let siege = Siege::begin();
    let endless = source(&siege);
    let authority = endless.ipv4().to_string();
    siege.attack(async move |target| {
        let mut peer = target.open().await?;
        let most = (1_u32 << 31) - 1;
        // All the credit there can be.
        let mut opening = frame(kind::SETTINGS, 0, 0, &[&[0, 4][..], &most.to_be_bytes()].concat());
        opening.extend(frame(kind::WINDOW_UPDATE, 0, 0, &(most - 65_535).to_be_bytes()));
        for stream in 0..200 {
            opening.extend(connect_request(2 * stream + 1, &authority));
        }
        peer.write.bytes(&opening).await?;
        // Until it is full everywhere.
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok(())
    });
    assert_eq!(endless.accepted(), 200);
    // The attacker is gone, and its connections with it.
    lab::wait_until(|| endless.open() == 0).unwrap();
    siege.end();
}

#[test]
fn a_dozen_readers_without_credit_do_not_stop_another_in_the_same_tunnel() {
    let siege = Siege::begin();
    let endless = source(&siege);
    let authority = endless.ipv4().to_string();
    siege.attack(async move |target| {
        let mut peer = target.open().await?;
        peer.write.bytes(&frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await?;
        for stream in 0..12 {
            peer.tunnel(2 * stream + 1, &authority).await?;
        }
        for stream in [101, 103, 105] {
            peer.tunnel(stream, &target.authority).await?;
            peer.write.bytes(&frame(kind::WINDOW_UPDATE, 0, stream, &[0, 0, 4, 0])).await?;
            peer.write.bytes(&frame(kind::DATA, 0, stream, b"hello")).await?;
            lab::traffic::bounded("an echo", async {
                loop {
                    let frame =
                        peer.read.frame().await?.ok_or_else(|| anyhow::anyhow!("the tunnel ended"))?;
                    if frame.kind == kind::DATA {
                        anyhow::ensure!(
                            (frame.stream, &frame.payload[..]) == (stream, b"hello"),
                            "{frame:?}"
                        );
                        return Ok(());
                    }
                }
            })
            .await?;
            peer.write.bytes(&frame(kind::DATA, flag::END_STREAM, stream, &[])).await?;
        }
        Ok(())
    });
    assert_eq!(siege.warnings(), 0);
    siege.end();
}
