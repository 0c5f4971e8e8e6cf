//! Every seed of the fuzz target for PROXY protocol headers, and names around the longest that fits one.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::path::Path;

#[path = "../fuzz/fuzz_targets/proxy_header_checks.rs"]
mod proxy_header_checks;

use proxy_header_checks::round_trip;

#[test]
fn headers_of_the_corpus_whole_and_damaged_are_read_as_they_were_meant() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/proxy_header");
    let mut seeds = 0;
    for seed in std::fs::read_dir(folder).unwrap() {
        let seed = std::fs::read(seed.unwrap().path()).unwrap();
        round_trip(&seed);
        for at in 0..seed.len() {
            round_trip(&seed[..at]);
            let mut damaged = seed.clone();
            damaged[at] ^= 0x15;
            round_trip(&damaged);
        }
        seeds += 1;
    }
    assert!(seeds > 3, "{seeds} seeds");
}

#[test]
fn a_name_too_long_for_the_header_is_left_out_and_not_cut() {
    let fixed = "td/ns/n/sa/".len();
    for length in [u16::MAX as usize / 2, u16::MAX as usize] {
        for name_length in length - "spiffe://".len() - 2..length + 2 {
            let mut bytes = vec![0; 1 + 2 * 18];
            bytes.extend_from_slice(b"td/ns/n/sa/");
            bytes.resize(bytes.len() + name_length - fixed, b'x');
            round_trip(&bytes);
        }
    }
}
