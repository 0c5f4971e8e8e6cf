//! Header blocks that are small on the wire and large in memory, or much work.

use lab::raw_peer::{RawPeer, flag, frame, kind};

use crate::Siege;

/// A literal with incremental indexing (RFC 7541 section 6.2.1) of a value shorter than 16 KiB.
fn indexed_literal(name: &str, value: &[u8]) -> Vec<u8> {
    let mut block = vec![0x40, name.len() as u8];
    block.extend_from_slice(name.as_bytes());
    // A length with a prefix of seven bits, RFC 7541 section 5.1.
    match value.len() {
        short @ 0..127 => block.push(short as u8),
        long => {
            let rest = long - 127;
            block.extend([0x7f, (rest & 0x7f) as u8 | 0x80, (rest >> 7) as u8]);
        }
    }
    block.extend_from_slice(value);
    block
}

/// CONNECT, by literals that stay out of the table.
fn request(authority: &str) -> Vec<u8> {
    lab::raw_peer::connect_block(authority)
}

#[test]
fn a_header_list_of_megabytes_from_a_block_of_kilobytes_is_not_kept() {
    let siege = Siege::begin();
    siege.attack(async |target| {
        for round in 0..20 {
            let RawPeer { mut write, mut read } = target.open().await?;
            let mut block = request(&target.authority);
            block.extend(indexed_literal("x", &[b'v'; 3900]));
            // The newest entry of the dynamic table, 12,000 times: 47 MB.
            block.extend([0x80 | 62].repeat(12_000));
            let sent = write.bytes(&frame(kind::HEADERS, flag::END_HEADERS, 1, &block)).await;
            anyhow::ensure!(sent.is_ok(), "round {round}: {sent:?}");
            // Told off by the status, by the stream's reset or by the tunnel's end; in any case not accepted.
            let answer = lab::traffic::bounded("an answer", async {
                loop {
                    match read.frame().await? {
                        Some(frame) if frame.kind == kind::SETTINGS || frame.kind == kind::WINDOW_UPDATE => {}
                        answer => return Ok(answer),
                    }
                }
            });
            let answer = answer.await?;
            let accepted = answer
                .as_ref()
                .is_some_and(|frame| frame.kind == kind::HEADERS && frame.payload.first() == Some(&0x88));
            anyhow::ensure!(!accepted, "round {round}: {answer:?}");
        }
        Ok(())
    });
    assert_eq!(
        siege.victim.peers().iter().filter(|peer| peer.ip() == siege.scene.outsider.ipv4()).count(),
        0
    );
    siege.end();
}

#[test]
fn a_table_that_is_rewritten_with_every_request_stays_small() {
    let siege = Siege::begin();
    siege.attack(async |target| {
        let RawPeer { mut write, mut read } = target.open().await?;
        let reading = tokio::task::spawn_local(async move { read.drain().await });
        for round in 0..200_u32 {
            // A GET, answered with 400, with 300 new entries that push each other out.
            let mut block = vec![0x82, 0x86, 0x84];
            for entry in 0..300 {
                block.extend(indexed_literal(&format!("k{round}-{entry}"), &[b'v'; 20]));
            }
            if write
                .bytes(&frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 2 * round + 1, &block))
                .await
                .is_err()
            {
                break;
            }
        }
        drop(write);
        reading.abort();
        Ok(())
    });
    siege.end();
}
