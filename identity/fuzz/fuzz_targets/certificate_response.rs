//! Any bytes as the answer to the signing call.

#![no_main]

use identity::CertificateChain;
use identity::proto::IstioCertificateResponse;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|message: &[u8]| {
    if let Ok(response) = IstioCertificateResponse::decode(message) {
        let _ = CertificateChain::from_pem_elements(&response.cert_chain);
    }
});
