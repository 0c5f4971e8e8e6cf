//! A workload's private key.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rustls::sign::{Signer, SigningKey, public_key_to_spki};
use rustls::{Error as TlsError, SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, alg_id};
use thiserror::Error;
use zeroize::Zeroizing;

/// An ECDSA P-256 key that signs and does nothing else.
///
/// The secret stays inside the cryptographic library, which wipes it when the last clone is dropped: this type cannot
/// be printed, compared or turned back into bytes. Clones share the key.
#[derive(Clone)]
pub struct PrivateKey(Arc<EcdsaKeyPair>);

impl PrivateKey {
    /// Makes a new key. Its secret has never been outside the cryptographic library.
    pub fn generate() -> Result<Self, KeyError> {
        let pair =
            EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| KeyError::Generation)?;
        Ok(Self(Arc::new(pair)))
    }

    /// Loads an unencrypted PKCS#8 document (RFC 5958). Errors: not PKCS#8, or not a P-256 key.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der).map_err(|_| KeyError::NotP256)?;
        Ok(Self(Arc::new(pair)))
    }

    /// Loads the first `PRIVATE KEY` block of `pem`. Errors: no such block, or as [`Self::from_pkcs8_der`].
    pub fn from_pkcs8_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| KeyError::NotPkcs8Pem)?;
        let der = Zeroizing::new(der);
        Self::from_pkcs8_der(der.secret_pkcs8_der())
    }

    /// The SubjectPublicKeyInfo (RFC 5280 section 4.1) of the public half, in DER.
    pub fn public_key_info(&self) -> SubjectPublicKeyInfoDer<'static> {
        public_key_to_spki(&alg_id::ECDSA_P256, self.0.public_key())
    }

    fn sign_message(&self, message: &[u8]) -> Option<Vec<u8>> {
        let signature = self.0.sign(&SystemRandom::new(), message).ok()?;
        Some(signature.as_ref().to_vec())
    }
}

/// Why there is no key.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum KeyError {
    /// The cryptographic library failed, which it does only without randomness or memory.
    #[error("generating a P-256 key failed")]
    Generation,
    /// The text has no `PRIVATE KEY` block, or it is damaged.
    #[error("no PKCS#8 private key in the PEM text")]
    NotPkcs8Pem,
    /// The bytes are not an ECDSA P-256 key in PKCS#8 form.
    #[error("not an ECDSA P-256 key in PKCS#8 form")]
    NotP256,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(P-256, redacted)")
    }
}

/// Signs TLS handshakes.
impl SigningKey for PrivateKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let offered = offered.contains(&SignatureScheme::ECDSA_NISTP256_SHA256);
        offered.then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.public_key_info())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TlsError> {
        self.sign_message(message).ok_or_else(|| TlsError::General("signing failed".into()))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

/// Signs certificates and requests for them.
impl rcgen::SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.sign_message(message).ok_or(rcgen::Error::RemoteKeyError)
    }
}

impl rcgen::PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData};

    use super::*;

    #[test]
    fn a_loaded_key_has_the_public_half_of_the_one_that_was_saved() {
        let saved = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let loaded = PrivateKey::from_pkcs8_pem(saved.serialize_pem().as_bytes()).unwrap();
        assert_eq!(loaded.public_key_info().as_ref(), saved.subject_public_key_info());
    }

    #[test]
    fn two_generated_keys_differ() {
        let (one, two) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        assert_ne!(one.public_key_info(), two.public_key_info());
    }

    #[test]
    fn debug_output_does_not_depend_on_the_key() {
        let key = PrivateKey::generate().unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(P-256, redacted)");
    }

    #[test]
    fn other_curves_and_other_encodings_are_refused() {
        let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        assert_eq!(PrivateKey::from_pkcs8_der(p384.serialized_der()).unwrap_err(), KeyError::NotP256);
        let sec1 = b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n";
        assert_eq!(PrivateKey::from_pkcs8_pem(sec1).unwrap_err(), KeyError::NotPkcs8Pem);
        assert_eq!(PrivateKey::from_pkcs8_pem(b"").unwrap_err(), KeyError::NotPkcs8Pem);
    }
}
