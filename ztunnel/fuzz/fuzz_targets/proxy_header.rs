//! Whatever a connection's addresses and its peer's name are, an application can read the PROXY protocol header about it.

#![no_main]

mod proxy_header_checks;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| proxy_header_checks::round_trip(bytes));
