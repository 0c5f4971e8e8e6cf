//! Any bytes as the certificate of a peer.

#![no_main]

use identity::peer_identity;
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;

fuzz_target!(|der: &[u8]| {
    let _ = peer_identity(&[CertificateDer::from(der)]);
});
