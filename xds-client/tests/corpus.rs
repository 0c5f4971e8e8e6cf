//! The fuzz targets' corpora, run once as ordinary tests, as they are and damaged.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../fuzz/checks.rs"]
mod checks;

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use xds_client::Response;
use xds_client::prost::Message;
use xds_client::security::Authorization;
use xds_client::workload::Address;

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let read = |seed: fs::DirEntry| (seed.file_name().into_string().unwrap(), fs::read(seed.path()).unwrap());
    let mut seeds: Vec<_> = fs::read_dir(&folder).unwrap().map(|seed| read(seed.unwrap())).collect();
    assert!(seeds.len() > 3, "{} holds too little", folder.display());
    seeds.sort();
    seeds
}

/// Runs `check` on each seed, and `accepts`: those called `valid-*` are to be accepted, those called `invalid-*` are not.
fn run(target: &str, check: fn(&[u8]), accepts: impl Fn(&[u8]) -> bool) {
    let mut verdicts = [0, 0];
    for (name, seed) in seeds(target) {
        check(&seed);
        let accepted = accepts(&seed);
        assert_eq!(name.starts_with("valid-"), accepted, "{target}/{name}");
        verdicts[usize::from(accepted)] += 1;
    }
    assert!(verdicts.iter().all(|count| *count > 0), "{target}: seeds of both kinds are needed");
}

#[test]
fn responses_of_the_corpus_are_judged_as_their_names_say() {
    run("response", checks::response, |seed| Response::parse(seed.to_vec().into()).is_ok());
}

#[test]
fn addresses_of_the_corpus_are_judged_as_their_names_say() {
    run("address", checks::address, |seed| Address::decode(seed).is_ok());
}

#[test]
fn policies_of_the_corpus_are_judged_as_their_names_say() {
    run("authorization", checks::authorization, |seed| Authorization::decode(seed).is_ok());
}

#[test]
fn scripts_of_the_corpus_leave_session_and_handler_in_agreement() {
    for (_, seed) in seeds("session") {
        checks::session(&seed);
    }
}

proptest! {
    #[test]
    fn damaged_seeds_do_no_harm(
        target in 0..4usize,
        seed in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        keep in any::<prop::sample::Index>(),
    ) {
        let (name, check): (&str, fn(&[u8])) = [
            ("response", checks::response as fn(&[u8])),
            ("address", checks::address),
            ("authorization", checks::authorization),
            ("session", checks::session),
        ][target];
        let seeds = seeds(name);
        let mut bytes = seeds[seed.index(seeds.len())].1.clone();
        if !bytes.is_empty() {
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(bytes.len() - keep.index(bytes.len()) / 4);
        }
        check(&bytes);
    }
}
