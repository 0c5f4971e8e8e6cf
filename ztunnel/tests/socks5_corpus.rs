//! Every seed of the SOCKS5 fuzz target, whole and damaged, through the same function.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;
use std::path::Path;

use proptest::prelude::*;

#[path = "../fuzz/fuzz_targets/socks5_checks.rs"]
mod checks;

#[test]
fn messages_of_the_corpus_are_read_in_exact_steps() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/socks5");
    let seeds: Vec<_> =
        fs::read_dir(folder).unwrap().map(|seed| fs::read(seed.unwrap().path()).unwrap()).collect();
    assert!(seeds.len() > 3);
    for seed in seeds {
        checks::messages(&seed);
        for at in 0..seed.len() {
            let mut damaged = seed.clone();
            damaged[at] ^= 0x15;
            checks::messages(&damaged);
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_in_exact_steps(
        start in prop_oneof![Just(vec![]), Just(vec![5]), Just(vec![5, 1, 0, 3]), Just(vec![5, 1, 0, 1])],
        rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        checks::messages(&[start, rest].concat());
    }
}
