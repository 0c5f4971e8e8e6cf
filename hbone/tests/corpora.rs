//! The fuzz targets' corpora, run once as ordinary tests.

#[path = "../fuzz/checks.rs"]
mod checks;

use std::path::Path;

fn run_corpus(name: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut inputs = 0;
    for entry in std::fs::read_dir(&folder).expect("the corpus is part of the repository") {
        let path = entry.expect("a readable folder").path();
        check(&std::fs::read(&path).expect("a readable file"));
        inputs += 1;
    }
    assert_ne!(inputs, 0, "{} is empty", folder.display());
}

#[test]
fn the_authority_corpus_passes() {
    run_corpus("authority", checks::authority);
}

#[test]
fn the_baggage_corpus_passes() {
    run_corpus("baggage", checks::baggage);
}

#[test]
fn the_forwarded_corpus_passes() {
    run_corpus("forwarded", checks::forwarded_header);
}

#[test]
fn the_traceparent_corpus_passes() {
    run_corpus("traceparent", checks::traceparent);
}
