//! Frames that break the rules.

use lab::raw_peer::{connect_request, flag, frame, kind};

use crate::{Siege, Target};

/// Sends this after a stream was opened, and gives the code of the GOAWAY that must follow, if it arrives.
async fn told(target: Target, bytes: Vec<u8>) -> lab::Result<Option<u32>> {
    let mut peer = target.open().await?;
    peer.tunnel(5, &target.authority).await?;
    // The other side may have hung up before the end.
    drop(peer.write.bytes(&bytes).await);
    peer.read.goodbye().await
}

#[test]
fn frames_that_break_the_rules_of_the_connection_end_the_tunnel() {
    let siege = Siege::begin();
    let authority = siege.target().authority;
    let most = (1_u32 << 31) - 1;
    let oversized = [&[0x20, 0, 0, kind::DATA, 0, 0, 0, 0, 5][..], &[0; 64]].concat();
    for (what, reason, bytes) in [
        (
            "more credit than there can be",
            "flow_control",
            frame(kind::WINDOW_UPDATE, 0, 0, &most.to_be_bytes()),
        ),
        ("a frame longer than allowed", "frame_size", oversized),
        ("a request on stream 0", "protocol", connect_request(0, &authority)),
        ("a stream number that goes backwards", "protocol", connect_request(3, &authority)),
        ("a stream number of the server's", "protocol", connect_request(6, &authority)),
        ("data on stream 0", "protocol", frame(kind::DATA, 0, 0, b"x")),
        ("a reset of stream 0", "protocol", frame(kind::RST_STREAM, 0, 0, &[0; 4])),
        ("data on a stream that nobody opened", "protocol", frame(kind::DATA, 0, 99, b"x")),
        ("a PING of another length", "any", frame(kind::PING, 0, 0, &[0; 7])),
        ("SETTINGS that are none", "any", frame(kind::SETTINGS, 0, 0, &[0; 5])),
        ("a CONTINUATION of nothing", "protocol", frame(kind::CONTINUATION, 0, 5, &[])),
        (
            "a header's name in capitals",
            "protocol",
            frame(kind::HEADERS, flag::END_HEADERS, 7, b"\x00\x01X\x01y"),
        ),
        (
            "a pseudo-header that there is not",
            "protocol",
            frame(kind::HEADERS, flag::END_HEADERS, 7, b"\x00\x02:x\x01y"),
        ),
        ("a header block that is none", "any", frame(kind::HEADERS, flag::END_HEADERS, 7, &[0xff; 40])),
        ("padding longer than the frame", "protocol", frame(kind::DATA, flag::PADDED, 5, &[200, 0, 0])),
    ] {
        let label = if reason == "any" { "" } else { reason };
        let faults = |label: &str| match label {
            "" => siege.ztunnel().metric(crate::FAULTS, "destination").unwrap() as usize,
            label => siege.faults(label),
        };
        let (before, warnings) = (faults(label), siege.warnings());
        let code = siege.attack(async move |target| told(target, bytes).await);
        assert_ne!(code, Some(0), "{what}");
        lab::wait_until(|| faults(label) == before + 1).unwrap_or_else(|error| panic!("{what}: {error}"));
        lab::wait_until(|| siege.warnings() == warnings + 1).unwrap();
    }
    siege.end();
}

#[test]
fn requests_with_the_wrong_pseudo_headers_are_refused_and_the_tunnel_goes_on() {
    let siege = Siege::begin();
    siege.attack(async |target| {
        let authority = &target.authority;
        let literal = |name: &str, value: &str| {
            [&[0x00, name.len() as u8][..], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
        };
        let connect = || literal(":method", "CONNECT");
        let mut peer = target.open().await?;
        let blocks = [
            connect(),
            [connect(), literal(":authority", "")].concat(),
            [connect(), connect(), literal(":authority", authority)].concat(),
            [connect(), literal(":authority", authority), literal(":path", "/")].concat(),
            [connect(), literal("x", "y"), literal(":authority", authority)].concat(),
            [connect(), literal(":authority", authority), literal("connection", "close")].concat(),
            [connect(), literal(":authority", authority), literal(":status", "200")].concat(),
        ];
        for (at, block) in blocks.iter().enumerate() {
            let stream = 2 * at as u32 + 1;
            peer.write.bytes(&frame(kind::HEADERS, flag::END_HEADERS, stream, block)).await?;
            lab::traffic::bounded("a refusal", async {
                loop {
                    let answer =
                        peer.read.frame().await?.ok_or_else(|| anyhow::anyhow!("{at}: the tunnel ended"))?;
                    let refused = answer.kind == kind::RST_STREAM
                        || answer.kind == kind::HEADERS && answer.payload.first() != Some(&0x88);
                    if answer.stream == stream && (refused || answer.kind == kind::HEADERS) {
                        anyhow::ensure!(refused, "{at}: accepted");
                        return Ok(());
                    }
                }
            })
            .await?;
        }
        peer.tunnel(101, authority).await
    });
    assert_eq!(siege.warnings(), 0);
    siege.end();
}
