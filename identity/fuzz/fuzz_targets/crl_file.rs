//! Any bytes as the file of revocation lists.

#![no_main]

use identity::CrlSet;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|contents: &[u8]| {
    if let Ok(crls) = CrlSet::from_file(contents) {
        assert_eq!(crls.is_empty(), crls.len() == 0);
    }
});
