//! Frames that cost the sender nothing.

use lab::raw_peer::{connect_request, flag, frame, kind};

use crate::{CALM, Siege, again, flood};

/// Repeats a frame in a tunnel that carries a connection, until the tunnel is ended for that reason.
fn flooded(siege: &Siege, reason: &str, bytes: Vec<u8>) -> usize {
    let (before, warnings) = (siege.faults(reason), siege.warnings());
    let (sent, code) = siege.attack(async move |target| {
        let mut peer = target.open().await?;
        peer.tunnel(1, &target.authority).await?;
        flood(peer, again(bytes)).await
    });
    // A goodbye on its way may be lost when the connection is reset over what nobody read.
    assert!(code.is_none_or(|code| code == CALM), "{reason}: {code:?}");
    lab::wait_until(|| siege.faults(reason) == before + 1).unwrap();
    lab::wait_until(|| siege.warnings() == warnings + 1).unwrap();
    sent
}

#[test]
fn frames_that_carry_nothing_end_the_tunnel_they_come_in() {
    let siege = Siege::begin();
    for (reason, bytes) in [
        ("ping_flood", frame(kind::PING, 0, 0, &[7; 8])),
        ("ping_flood", frame(kind::PING, flag::ACK, 0, &[7; 8])),
        ("settings_flood", frame(kind::SETTINGS, 0, 0, &[])),
        // SETTINGS_INITIAL_WINDOW_SIZE, which applies to all streams.
        ("settings_flood", frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])),
        ("priority_flood", frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 3, 16])),
        ("window_update_flood", frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])),
        ("window_update_flood", frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("other_flood", frame(0xfa, 0, 0, b"grease")),
        ("too_much", frame(kind::DATA, 0, 1, &[])),
        ("too_much", frame(kind::DATA, flag::PADDED, 1, &[3, 0, 0, 0])),
    ] {
        flooded(&siege, reason, bytes);
    }
    siege.end();
}

#[test]
fn data_in_single_bytes_that_nobody_can_deliver_ends_the_tunnel_and_memory_is_bounded() {
    let siege = Siege::begin();
    // The echo does not come through, since the attacker's window is never opened again, so the application stops reading.
    flooded(&siege, "too_much", frame(kind::DATA, 0, 1, b"x"));
    siege.end();
}

#[test]
fn a_request_whose_header_block_never_ends_ends_the_tunnel() {
    let siege = Siege::begin();
    for payload in [&[][..], b"x"] {
        let mut started = false;
        let (_, code) = siege.attack({
            let more = frame(kind::CONTINUATION, 0, 1, payload);
            async move |target| {
                let peer = target.open().await?;
                let mut rest = again(more);
                // A literal that announces more than will ever come.
                let head = frame(kind::HEADERS, 0, 1, &[0x00, 0x01, b'a', 0x7f, 0xff, 0xff, 0x03]);
                let next =
                    move || if std::mem::replace(&mut started, true) { rest() } else { Some(head.clone()) };
                flood(peer, next).await
            }
        });
        assert!(code.is_none_or(|code| code == CALM), "{code:?}");
    }
    lab::wait_until(|| siege.faults("too_much") + siege.faults("continuation_flood") == 2).unwrap();
    siege.end();
}

/// Opens streams without end, and lets the frame that `after` makes follow each request. The reasons are those under which the end
/// of the tunnel may be counted, which happens once; the peer is told `codes` if anything.
fn open_without_end(after: impl Fn(u32) -> Vec<u8> + Send + 'static, codes: &[u32], reasons: &[&str]) {
    let siege = Siege::begin();
    let (sent, code) = siege.attack(async move |target| {
        let peer = target.open().await?;
        let mut stream = 1_u32;
        let next = move || {
            let request = connect_request(stream, &target.authority);
            let then = after(stream);
            stream += 2;
            (stream < 400_000).then(|| [request, then].concat())
        };
        flood(peer, next).await
    });
    assert!(code.is_none_or(|code| codes.contains(&code)), "{code:?} after {sent} bytes");
    let ended = || reasons.iter().map(|reason| siege.faults(reason)).sum::<usize>();
    lab::wait_until(|| ended() == 1).unwrap();
    siege.end();
}

/// CVE-2023-44487, "rapid reset".
#[test]
fn requests_that_are_reset_at_once_end_the_tunnel() {
    let reset = |stream| frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    open_without_end(reset, &[CALM], &["too_much", "reset_flood"]);
}

/// CVE-2025-8671, "MadeYouReset": frames that have the server reset its own streams.
#[test]
fn requests_that_we_are_made_to_reset_end_the_tunnel() {
    // No increment, RFC 9113 section 6.9: an error of the stream.
    let provocation = |stream| frame(kind::WINDOW_UPDATE, 0, stream, &[0; 4]);
    open_without_end(provocation, &[CALM, 1], &["too_much", "protocol", "headers_flood"]);
}

#[test]
fn requests_beyond_what_may_be_open_are_refused_and_their_flood_ends_the_tunnel() {
    open_without_end(|_| Vec::new(), &[CALM], &["headers_flood", "too_much"]);
}
