//! Reading the certificate chain that an authority issued.

use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{self, PemObject, SectionKind};
use thiserror::Error;
use tracing::warn;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use crate::verify::spiffe_name;
use crate::{PeerIdentityError, SpiffeId};

/// An issued chain, decoded but not verified.
#[derive(Clone, Debug)]
pub struct CertificateChain {
    /// The one SPIFFE name of the leaf.
    pub identity: SpiffeId,
    /// The workload's own certificate.
    pub leaf: CertificateInfo,
    /// The certificates between leaf and root, as issued.
    pub intermediates: Vec<CertificateInfo>,
    /// The trust roots.
    pub roots: Vec<CertificateInfo>,
}

/// One certificate and the facts that operators ask about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// The certificate itself.
    pub der: CertificateDer<'static>,
    /// Its serial number, in decimal.
    pub serial_number: String,
    /// The first moment at which it is valid.
    pub not_before: SystemTime,
    /// The last moment at which it is valid.
    pub not_after: SystemTime,
}

impl CertificateChain {
    /// Reads the PEM texts of an [`IssuedChain`](crate::IssuedChain).
    ///
    /// Leaf and intermediates are the first block of their text; the last text is the trust bundle and every block of
    /// it counts. Errors name the text at fault by its position.
    pub fn from_pem_elements(elements: &[impl AsRef<str>]) -> Result<Self, ChainError> {
        let (leaf, intermediates, roots) = match elements {
            [] => return Err(ChainError::Empty),
            [_] => return Err(ChainError::NoRoots),
            [leaf, intermediates @ .., roots] => (leaf, intermediates, roots),
        };
        let (identity, leaf) = leaf_certificate(leaf.as_ref())?;
        let intermediates = intermediates
            .iter()
            .zip(1..)
            .map(|(text, position)| first_certificate(text.as_ref(), position))
            .collect::<Result<_, _>>()?;
        let roots = all_certificates(roots.as_ref(), elements.len() - 1)?;
        if roots.is_empty() {
            return Err(ChainError::NoRoots);
        }
        Ok(Self { identity, leaf, intermediates, roots })
    }

    /// What is presented to a peer: the leaf and the intermediates. A peer has its own roots.
    pub fn presented(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(&self.leaf)
            .chain(&self.intermediates)
            .map(|certificate| certificate.der.clone())
            .collect()
    }

    /// The roots that can anchor a path. One that cannot (for instance because an extension occurs twice) is left out
    /// with a warning, since the others may suffice; none at all is an error.
    pub(crate) fn trust_anchors(&self) -> Result<RootCertStore, ChainError> {
        let mut anchors = RootCertStore::empty();
        for root in &self.roots {
            if let Err(error) = anchors.add(root.der.clone()) {
                warn!(identity = %self.identity, serial = root.serial_number, %error, "leaving out an unusable trust root");
            }
        }
        if anchors.is_empty() { Err(ChainError::NoRoots) } else { Ok(anchors) }
    }
}

impl CertificateInfo {
    fn new(der: CertificateDer<'static>, parsed: &X509Certificate<'_>) -> Self {
        Self {
            serial_number: parsed.serial.to_string(),
            not_before: system_time(parsed.validity.not_before),
            not_after: system_time(parsed.validity.not_after),
            der,
        }
    }
}

/// Why an issued chain cannot be used. Positions count the PEM texts from zero.
#[derive(Debug, Error)]
pub enum ChainError {
    /// The authority sent nothing.
    #[error("the issued chain is empty")]
    Empty,
    /// The authority sent no trust root, or none that can be used.
    #[error("the issued chain has no usable trust root")]
    NoRoots,
    /// A text is not PEM.
    #[error("element {position} of the issued chain is not valid PEM")]
    Pem {
        /// Which text.
        position: usize,
        /// What is wrong with it.
        #[source]
        source: pem::Error,
    },
    /// A text has no PEM block, or one that is no certificate.
    #[error("element {position} of the issued chain is not a certificate")]
    NotACertificate {
        /// Which text.
        position: usize,
    },
    /// A certificate is not valid DER.
    #[error("element {position} of the issued chain cannot be decoded")]
    Encoding {
        /// Which text.
        position: usize,
    },
    /// The leaf does not carry exactly one SPIFFE name.
    #[error("the issued certificate has no usable identity")]
    Identity(#[source] PeerIdentityError),
}

fn leaf_certificate(text: &str) -> Result<(SpiffeId, CertificateInfo), ChainError> {
    let der = first_block(text, 0)?;
    let parsed = decode(&der, 0)?;
    let identity = spiffe_name(&parsed).map_err(ChainError::Identity)?;
    let info = CertificateInfo::new(der.clone(), &parsed);
    Ok((identity, info))
}

fn first_certificate(text: &str, position: usize) -> Result<CertificateInfo, ChainError> {
    let der = first_block(text, position)?;
    let parsed = decode(&der, position)?;
    Ok(CertificateInfo::new(der.clone(), &parsed))
}

fn all_certificates(text: &str, position: usize) -> Result<Vec<CertificateInfo>, ChainError> {
    blocks(text, position)
        .map(|block| {
            let der = block?;
            let parsed = decode(&der, position)?;
            Ok(CertificateInfo::new(der.clone(), &parsed))
        })
        .collect()
}

fn first_block(text: &str, position: usize) -> Result<CertificateDer<'static>, ChainError> {
    blocks(text, position).next().unwrap_or(Err(ChainError::NotACertificate { position }))
}

/// The PEM blocks of `text` (RFC 7468); a block with another label than CERTIFICATE is an error.
fn blocks(text: &str, position: usize) -> impl Iterator<Item = Result<CertificateDer<'static>, ChainError>> {
    <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()).map(move |block| match block {
        Ok((SectionKind::Certificate, der)) => Ok(der.into()),
        Ok(_) => Err(ChainError::NotACertificate { position }),
        Err(source) => Err(ChainError::Pem { position, source }),
    })
}

fn decode<'a>(der: &'a CertificateDer<'_>, position: usize) -> Result<X509Certificate<'a>, ChainError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(ChainError::Encoding { position }),
    }
}

/// Times before 1970 become 1970: both are long past.
pub(crate) fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}
