//! Every seed of the fuzz targets, through the same functions. A seed's name says what becomes of it.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;
use std::path::Path;

use identity::proto::IstioCertificateResponse;
use identity::{CertificateChain, CrlSet, SpiffeId, peer_identity};
use prost::Message;
use rustls_pki_types::CertificateDer;

/// Runs `accepts` on each seed of `target`: those called `valid-*` are to be accepted, those called `invalid-*` are not.
fn run(target: &str, accepts: impl Fn(&[u8]) -> bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut verdicts = [0, 0];
    for seed in fs::read_dir(&folder).unwrap() {
        let seed = seed.unwrap();
        let name = seed.file_name().into_string().unwrap();
        let accepted = accepts(&fs::read(seed.path()).unwrap());
        assert_eq!(name.starts_with("valid-"), accepted, "{target}/{name}");
        verdicts[usize::from(accepted)] += 1;
    }
    assert!(
        verdicts.iter().all(|count| *count > 0),
        "{target}: seeds of both kinds are needed, not {verdicts:?}"
    );
}

#[test]
fn spiffe_names_of_the_corpus_are_judged_as_their_names_say() {
    run("spiffe_id", |seed| str::from_utf8(seed).is_ok_and(|text| text.parse::<SpiffeId>().is_ok()));
}

#[test]
fn chains_of_the_corpus_are_judged_as_their_names_say() {
    run("certificate_chain", |seed| {
        let text = str::from_utf8(seed).unwrap();
        CertificateChain::from_pem_elements(&text.split('\0').collect::<Vec<_>>()).is_ok()
    });
}

#[test]
fn leaves_of_the_corpus_are_judged_as_their_names_say() {
    run("peer_identity", |seed| peer_identity(&[CertificateDer::from(seed)]).is_ok());
}

#[test]
fn answers_of_the_corpus_are_judged_as_their_names_say() {
    run("certificate_response", |seed| {
        IstioCertificateResponse::decode(seed)
            .is_ok_and(|response| CertificateChain::from_pem_elements(&response.cert_chain).is_ok())
    });
}

#[test]
fn revocation_lists_of_the_corpus_are_judged_as_their_names_say() {
    run("crl_file", |seed| CrlSet::from_file(seed).is_ok());
}
