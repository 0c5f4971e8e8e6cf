#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code, reason = "one of four")]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::response(bytes));
