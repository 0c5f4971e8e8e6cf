//! Every seed of the fuzz targets, through the same functions. A seed's name says what becomes of it.

use std::fs;
use std::path::Path;

use ztunnel::state::{Mesh, StaticConfig};

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
