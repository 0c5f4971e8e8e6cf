//! Any bytes are either a workload or service of the mesh, or rejected with a reason; nothing panics.

#![no_main]

mod checks;

use libfuzzer_sys::fuzz_target;
use xds_client::ResourceType;

fuzz_target!(|payload: &[u8]| checks::apply(ResourceType::Address, payload));
