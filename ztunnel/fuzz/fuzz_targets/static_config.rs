//! Any text is either a mesh or an error that says where and why; neither takes long, and neither panics.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ztunnel::state::{Mesh, StaticConfig};

fuzz_target!(|text: &str| {
    match StaticConfig::parse("fuzz", text) {
        Ok(config) => config.apply(&mut Mesh::new(None)),
        Err(error) => assert!(error.to_string().starts_with("fuzz:")),
    }
});
