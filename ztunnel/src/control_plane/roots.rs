//! The authorities that may vouch for a server.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use thiserror::Error;

use super::files::{blocking, read_bounded};

/// Where the trusted authorities come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RootSource {
    /// A PEM file, read for every connection. It may appear later than we do.
    File(PathBuf),
    /// The platform's trust store.
    System,
    /// PEM text.
    Pem(String),
}

/// There is nothing to verify a server with. Ours or the operator's fault, never the peer's.
#[derive(Debug, Error)]
pub enum RootError {
    /// The file cannot be read.
    #[error("cannot read the root certificates in {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The text is not PEM.
    #[error("the root certificates are not in PEM")]
    Pem(#[source] rustls_pki_types::pem::Error),
    /// There is no certificate, or none that can be read.
    #[error("there is no usable root certificate")]
    Empty,
    /// The platform's trust store cannot be read, or is empty.
    #[error("the platform has no usable root certificate")]
    System(#[source] Option<rustls_native_certs::Error>),
}

impl RootSource {
    /// What a setting's text means: the path of an existing file, else the word `SYSTEM`, else PEM text, else the path
    /// of a file that is to appear. `None`: nothing, or text of several lines that is not PEM.
    pub fn parse(text: &str, exists: impl FnOnce(&Path) -> bool) -> Option<Self> {
        if text.is_empty() {
            return None;
        }
        if exists(Path::new(text)) {
            return Some(Self::File(text.into()));
        }
        match text {
            "SYSTEM" => Some(Self::System),
            _ if text.contains("-----BEGIN") => Some(Self::Pem(text.to_owned())),
            _ => (!text.contains('\n')).then(|| Self::File(text.into())),
        }
    }

    /// Whether PEM text given in place of a path holds a certificate. What the other sources hold is known when they are
    /// read.
    pub fn check(&self) -> Result<(), RootError> {
        match self {
            Self::Pem(text) => Roots::Pem(text.as_bytes().into()).store().map(drop),
            Self::File(_) | Self::System => Ok(()),
        }
    }

    /// The roots as they are now, not yet looked into. Blocks no other task. Dropping the future lets the reading end
    /// by itself.
    pub(super) async fn read(&self) -> Result<Roots, RootError> {
        match self.clone() {
            Self::Pem(text) => Ok(Roots::Pem(text.into_bytes().into())),
            Self::File(path) => {
                let content = blocking({
                    let path = path.clone();
                    move || read_bounded(&path)
                });
                let content = content.await.map_err(|source| RootError::File { path, source })?;
                Ok(Roots::Pem(content.into()))
            }
            Self::System => {
                let loaded = blocking(|| Ok(rustls_native_certs::load_native_certs()));
                let loaded = loaded.await.map_err(|_| RootError::System(None))?;
                match loaded.certs.is_empty() {
                    false => Ok(Roots::System(loaded.certs.into())),
                    true => Err(RootError::System(loaded.errors.into_iter().next())),
                }
            }
        }
    }
}

/// Roots as read at one time. Two are equal when they hold the same bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Roots {
    Pem(Arc<[u8]>),
    System(Arc<[CertificateDer<'static>]>),
}

impl Roots {
    /// The certificates to trust. Those that cannot be read are left out, as long as one remains: authorities that a
    /// platform ships are of all kinds.
    pub(super) fn store(&self) -> Result<RootCertStore, RootError> {
        let certificates = match self {
            Self::Pem(text) => {
                let parsed = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
                parsed.map_err(RootError::Pem)?
            }
            Self::System(certificates) => certificates.to_vec(),
        };
        let mut store = RootCertStore::empty();
        let (added, ignored) = store.add_parsable_certificates(certificates);
        if ignored > 0 {
            tracing::debug!(ignored, "root certificates that cannot be read are left out");
        }
        match added {
            0 => Err(RootError::Empty),
            _ => Ok(store),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_whose_file_is_missing_is_a_file_that_appears_later() {
        let parse = |text: &str| RootSource::parse(text, |path| path == Path::new("SYSTEM/here.pem"));
        assert_eq!(parse("SYSTEM/here.pem"), Some(RootSource::File("SYSTEM/here.pem".into())));
        assert_eq!(parse("./later.pem"), Some(RootSource::File("./later.pem".into())));
        assert_eq!(parse("SYSTEM"), Some(RootSource::System));
        let pem = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
        assert_eq!(parse(pem), Some(RootSource::Pem(pem.to_owned())));
        assert_eq!([parse(""), parse("neither\nnor")], [None, None]);
    }

    #[test]
    fn an_existing_file_named_system_goes_before_the_platform() {
        assert_eq!(RootSource::parse("SYSTEM", |_| true), Some(RootSource::File("SYSTEM".into())));
    }

    #[test]
    fn a_bundle_without_a_usable_certificate_is_an_error() {
        let store = |text: &str| Roots::Pem(text.as_bytes().into()).store();
        assert!(matches!(store(""), Err(RootError::Empty)));
        let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(store(junk), Err(RootError::Empty)));
        assert!(matches!(store("-----BEGIN CERTIFICATE-----\nAAAA\n"), Err(RootError::Pem(_))));
    }
}
