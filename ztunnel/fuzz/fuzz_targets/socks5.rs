//! Any bytes are a message of SOCKS5, the beginning of one, or a violation that is named; nothing panics.

#![no_main]

mod socks5_checks;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| socks5_checks::messages(bytes));
