//! Any text as a SPIFFE name: what is accepted is printed unchanged.

#![no_main]

use identity::SpiffeId;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string(), text);
        let parts = SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account());
        assert_eq!(parts.as_ref(), Ok(&id));
    }
});
