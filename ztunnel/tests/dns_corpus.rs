//! Every seed of the fuzz target `dns`, whole and damaged, through the same function. A seed's name says what becomes of
//! it.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;
use std::path::Path;

use dns_checks::{Fate, exchange};
use ztunnel::dns::Transport;

#[path = "../fuzz/fuzz_targets/dns_checks.rs"]
mod dns_checks;

#[test]
fn messages_of_the_corpus_whole_and_damaged_get_what_their_names_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/dns");
    let mut seeds = 0;
    for seed in fs::read_dir(&folder).unwrap() {
        let path = seed.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let octets = fs::read(&path).unwrap();
        let (query, answer) = octets[1..].split_at(usize::from(octets[0]));
        let expected = match name.split('-').next().unwrap() {
            "ignored" => Fate::Ignored,
            "refused" => Fate::Refused,
            "answered" => Fate::Answered,
            "forwarded" => Fate::Forwarded,
            other => panic!("{other}"),
        };
        for transport in [Transport::Udp, Transport::Tcp] {
            assert_eq!(exchange(query, answer, transport), expected, "{name}");
            for at in 0..query.len() {
                exchange(&query[..at], answer, transport);
                for flip in [0x01, 0x15, 0x80, 0xc0, 0xff] {
                    let mut damaged = query.to_vec();
                    damaged[at] ^= flip;
                    exchange(&damaged, answer, transport);
                }
            }
            for at in 0..answer.len() {
                exchange(query, &answer[..at], transport);
                for flip in [0x01, 0x15, 0x80, 0xc0, 0xff] {
                    let mut damaged = answer.to_vec();
                    damaged[at] ^= flip;
                    exchange(query, &damaged, transport);
                }
            }
        }
        seeds += 1;
    }
    assert!(seeds > 8, "{seeds} seeds");
}
