//! Every seed of the fuzz targets, through the same functions. A seed's name says what becomes of it.

use std::fs;
use std::path::Path;

use xds_client::ResourceType;
use ztunnel::state::{Mesh, StaticConfig};

#[path = "../fuzz/fuzz_targets/checks.rs"]
mod checks;

#[test]
fn resources_of_the_corpus_whole_and_damaged_are_applied_or_rejected() {
    for (folder, kind) in
        [("xds_address", ResourceType::Address), ("xds_authorization", ResourceType::Authorization)]
    {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(folder);
        let seeds: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|seed| fs::read(seed.unwrap().path()).unwrap()).collect();
        assert!(seeds.len() > 3, "{} seeds in {}", seeds.len(), folder.display());
        for seed in seeds {
            checks::apply(kind, &seed);
            for at in 0..seed.len() {
                checks::apply(kind, &seed[..at]);
                let mut damaged = seed.clone();
                damaged[at] ^= 0x15;
                checks::apply(kind, &damaged);
            }
        }
    }
}

#[test]
fn static_files_of_the_corpus_are_judged_as_their_names_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/static_config");
    let mut verdicts = [0, 0];
    for seed in fs::read_dir(&folder).unwrap() {
        let path = seed.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let result = StaticConfig::parse(&name, &fs::read_to_string(&path).unwrap());
        assert_eq!(name.starts_with("valid-"), result.is_ok(), "{name}: {result:?}");
        verdicts[usize::from(result.is_ok())] += 1;
        match result {
            Ok(config) => config.apply(&mut Mesh::new(None)),
            Err(error) => assert!(error.to_string().starts_with(&format!("{name}:"))),
        }
    }
    assert!(verdicts.iter().all(|count| *count > 0), "seeds of both kinds are needed, not {verdicts:?}");
}
