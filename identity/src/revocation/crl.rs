//! Certificate revocation lists, read and indexed.

use std::collections::HashMap;
use std::fmt;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::pem::{self, PemObject, SectionKind};
use thiserror::Error;
use webpki::{Cert, CertRevocationList, OwnedCertRevocationList, VerifiedPath};
use x509_parser::asn1_rs::{Any, FromDer as _};
use x509_parser::prelude::X509Certificate;

/// How every PEM block begins (RFC 7468 section 2).
const PEM_BEGIN: &[u8] = b"-----BEGIN ";

/// The lists of one file, by the name of their issuer.
#[derive(Debug, Default)]
pub struct CrlSet {
    by_issuer: HashMap<Vec<u8>, Vec<Crl>>,
}

impl CrlSet {
    /// Reads the contents of a file: one list in DER, or PEM with any number of `X509 CRL` blocks, between other blocks
    /// and text and with white space before the lines. An empty file is a set without lists.
    ///
    /// Lists are of version 2; delta and indirect lists and unknown critical extensions are refused. One bad list spoils
    /// the file. Signatures are not looked at, since the certificates that could prove them come with connections.
    pub fn from_file(contents: &[u8]) -> Result<Self, CrlError> {
        let mut crls = Self::default();
        if is_one_element(contents) {
            crls.insert(contents, 0)?;
        } else if contents.windows(PEM_BEGIN.len()).any(|window| window == PEM_BEGIN) {
            let lines = contents.strip_prefix("\u{feff}".as_bytes()).unwrap_or(contents);
            let lines: Vec<_> = lines.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).collect();
            let mut position = 0;
            for block in <(SectionKind, Vec<u8>)>::pem_slice_iter(&lines.join(&b'\n')) {
                if let (SectionKind::Crl, der) = block.map_err(CrlError::Pem)? {
                    crls.insert(&der, position)?;
                    position += 1;
                }
            }
        } else if !contents.trim_ascii().is_empty() {
            return Err(CrlError::NeitherPemNorDer);
        }
        Ok(crls)
    }

    /// How many lists there are.
    pub fn len(&self) -> usize {
        self.by_issuer.values().map(Vec::len).sum()
    }

    /// Whether there is no list.
    pub fn is_empty(&self) -> bool {
        self.by_issuer.is_empty()
    }

    /// Whether a list of somebody with the name of the issuer lists the certificate. If so, who the issuer really is
    /// remains to be seen ([`Self::revokes`]).
    pub(crate) fn lists(&self, certificate: &Cert<'_>) -> bool {
        self.listing(certificate).next().is_some()
    }

    /// Whether a certificate of the path is revoked by the one above it. The root is nobody's to revoke.
    pub(crate) fn revokes(&self, path: &VerifiedPath<'_>, algorithms: WebPkiSupportedAlgorithms) -> bool {
        let mut issuers = path.intermediate_certificates();
        let mut certificate: &Cert<'_> = path.end_entity();
        loop {
            let issuer = issuers.next();
            if self.listing(certificate).any(|crl| match issuer {
                Some(issuer) => crl.is_issued_by(issuer, algorithms),
                None => crl.is_signed_by(&path.anchor().subject_public_key_info, algorithms),
            }) {
                return true;
            }
            match issuer {
                Some(issuer) => certificate = issuer,
                None => return false,
            }
        }
    }

    /// The lists on which the certificate is, judged by names.
    ///
    /// The scope of a list (issuingDistributionPoint) says what its silence means, and silence means nothing here: a
    /// serial number is unique under its issuer (RFC 5280 section 4.1.2.2), so to be listed is to be revoked.
    fn listing<'a>(&'a self, certificate: &'a Cert<'_>) -> impl Iterator<Item = &'a Crl> {
        let crls = self.by_issuer.get(certificate.issuer()).map_or(&[][..], Vec::as_slice);
        crls.iter()
            .filter(|crl| crl.list.find_serial(certificate.serial()).is_ok_and(|found| found.is_some()))
    }

    fn insert(&mut self, der: &[u8], position: usize) -> Result<(), CrlError> {
        let list = OwnedCertRevocationList::from_der(der)
            .map_err(|source| CrlError::Unusable { position, source })?;
        let signed =
            Signed::from_der(der).ok_or(CrlError::Unusable { position, source: webpki::Error::BadDer })?;
        let list = CertRevocationList::Owned(list);
        self.by_issuer.entry(list.issuer().to_vec()).or_default().push(Crl { list, signed });
        Ok(())
    }
}

/// Why a file of lists is not taken into use. Positions count the lists from zero.
#[derive(Debug, Error)]
pub enum CrlError {
    /// The PEM around a block is damaged; perhaps the file is being written.
    #[error("not valid PEM")]
    Pem(#[source] pem::Error),
    /// There is something in the file, but no PEM block, and it is not one DER element either.
    #[error("neither PEM nor DER")]
    NeitherPemNorDer,
    /// A list is damaged, or of a kind that is not understood.
    #[error("list {position} cannot be used")]
    Unusable {
        /// Which list.
        position: usize,
        /// What is wrong with it.
        #[source]
        source: webpki::Error,
    },
}

/// One list.
struct Crl {
    list: CertRevocationList<'static>,
    signed: Signed,
}

impl Crl {
    /// Whether `issuer` may sign lists (RFC 5280 section 6.3.3 (f)) and has signed this one.
    fn is_issued_by(&self, issuer: &Cert<'_>, algorithms: WebPkiSupportedAlgorithms) -> bool {
        let der = issuer.der();
        let Ok((_, parsed)) = X509Certificate::from_der(&der) else { return false };
        let permitted =
            parsed.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.crl_sign()));
        let key = issuer.subject_public_key_info();
        let key = Any::from_der(&key).map(|(_, sequence)| sequence.data);
        permitted && key.is_ok_and(|key| self.is_signed_by(key, algorithms))
    }

    /// Whether the key, the contents of a SubjectPublicKeyInfo, made the signature.
    fn is_signed_by(&self, key: &[u8], algorithms: WebPkiSupportedAlgorithms) -> bool {
        let Ok((rest, key_algorithm)) = Any::from_der(key) else { return false };
        let Ok((_, key)) = Any::from_der(rest) else { return false };
        let Some(key) = octets(key.data) else { return false };
        algorithms
            .all
            .iter()
            .filter(|algorithm| {
                *algorithm.signature_alg_id() == *self.signed.algorithm
                    && *algorithm.public_key_alg_id() == *key_algorithm.data
            })
            .any(|algorithm| {
                algorithm.verify_signature(key, &self.signed.message, &self.signed.signature).is_ok()
            })
    }
}

impl fmt::Debug for Crl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crl").finish_non_exhaustive()
    }
}

/// The parts of a CertificateList (RFC 5280 section 5.1) of which its signature consists.
struct Signed {
    /// tbsCertList, with its header.
    message: Box<[u8]>,
    /// The contents of signatureAlgorithm.
    algorithm: Box<[u8]>,
    signature: Box<[u8]>,
}

impl Signed {
    fn from_der(der: &[u8]) -> Option<Self> {
        let (_, list) = Any::from_der(der).ok()?;
        let contents: &[u8] = list.data;
        let (rest, _) = Any::from_der(contents).ok()?;
        let message = &contents[..contents.len() - rest.len()];
        let (rest, algorithm) = Any::from_der(rest).ok()?;
        let (_, signature) = Any::from_der(rest).ok()?;
        Some(Self {
            message: message.into(),
            algorithm: algorithm.data.into(),
            signature: octets(signature.data)?.into(),
        })
    }
}

/// The octets of a BIT STRING that has whole octets (X.690 section 8.6).
fn octets(bit_string: &[u8]) -> Option<&[u8]> {
    bit_string.strip_prefix(&[0])
}

/// Whether this is exactly one DER SEQUENCE, as which no PEM text passes.
fn is_one_element(contents: &[u8]) -> bool {
    contents.first() == Some(&0x30) && Any::from_der(contents).is_ok_and(|(rest, _)| rest.is_empty())
}
