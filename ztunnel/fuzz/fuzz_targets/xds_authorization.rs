//! Any bytes are either a policy that can be evaluated, or rejected with a reason; nothing panics.

#![no_main]

mod checks;

use libfuzzer_sys::fuzz_target;
use xds_client::ResourceType;

fuzz_target!(|payload: &[u8]| checks::apply(ResourceType::Authorization, payload));
