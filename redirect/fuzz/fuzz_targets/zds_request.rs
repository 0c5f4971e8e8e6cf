//! Whatever the agent sends is a request or an error: `cargo +nightly fuzz run zds_request`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|packet: &[u8]| {
    let _ = redirect::zds::decode_request(packet);
});
