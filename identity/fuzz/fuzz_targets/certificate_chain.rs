//! Any answer of an authority: the PEM texts, separated by zero bytes.

#![no_main]

use identity::CertificateChain;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|texts: &str| {
    let elements: Vec<_> = texts.split('\0').collect();
    let _ = CertificateChain::from_pem_elements(&elements);
});
