//! The two files of a [local authority](crate::LocalCa): finding them fit for use, or making them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::chain::system_time;
use crate::local_ca::{BACKDATE, random_serial};
use crate::{KeyError, PrivateKey};

const CERTIFICATE_FILE: &str = "ca-cert.pem";
const KEY_FILE: &str = "ca-key.pem";

/// How long a new authority is good for: ten years, leap days included.
const LIFETIME: Duration = Duration::from_secs(3652 * 24 * 60 * 60);

/// Read, and found to belong together.
pub(crate) struct CaFiles {
    pub(crate) key: PrivateKey,
    /// The issuing certificate.
    pub(crate) certificate: CertificateDer<'static>,
    /// The whole of the certificate file.
    pub(crate) certificate_pem: String,
    pub(crate) certificate_path: PathBuf,
    pub(crate) not_after: SystemTime,
}

impl CaFiles {
    /// The files in `dir`; made there, directory included, if neither exists.
    ///
    /// Makers exclude one another by a lock on the directory. The key is put in place before the certificate, and each
    /// in one step, so a certificate is never seen without its key; a key alone is what an interrupted maker left
    /// behind, and the next one goes on from there.
    pub(crate) fn open_or_create(dir: &Path) -> Result<Self, LocalCaError> {
        if let Some(files) = Self::read(dir)? {
            return Ok(files);
        }
        let failed = |source| LocalCaError::Create { path: dir.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let directory = File::open(dir).map_err(failed)?;
        directory.lock().map_err(failed)?;
        if let Some(files) = Self::read(dir)? {
            return Ok(files);
        }
        let key = match read_key(dir)? {
            Some(left_behind) => left_behind,
            None => create_key(dir).map_err(failed)?,
        };
        create_certificate(dir, &key)?;
        directory.sync_all().map_err(failed)?;
        Self::read(dir)?.ok_or_else(|| failed(ErrorKind::NotFound.into()))
    }

    /// The files in `dir`, unless there is no certificate and hence no complete authority.
    fn read(dir: &Path) -> Result<Option<Self>, LocalCaError> {
        let path = dir.join(CERTIFICATE_FILE);
        let certificate_pem = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LocalCaError::Read { path, source }),
        };
        let key = read_key(dir)?.ok_or_else(|| LocalCaError::KeyMissing { path: dir.join(KEY_FILE) })?;
        let unreadable = || LocalCaError::Certificate { path: path.clone(), source: None };
        let certificate =
            CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|_| unreadable())?;
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|_| unreadable())?;
        if !parsed.is_ca() {
            return Err(LocalCaError::NotAnAuthority { path });
        }
        if parsed.public_key().raw != key.public_key_info().as_ref() {
            return Err(LocalCaError::Mismatch { path });
        }
        let not_after = system_time(parsed.validity.not_after);
        if SystemTime::now() > not_after {
            return Err(LocalCaError::Expired);
        }
        let certificate = certificate.clone();
        Ok(Some(Self { key, certificate, certificate_pem, certificate_path: path, not_after }))
    }
}

/// Why there is no local authority. Each has to be put right by the operator.
#[derive(Debug, Error)]
pub enum LocalCaError {
    /// A file is there but cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The directory or a file in it cannot be made.
    #[error("cannot create a certificate authority in {}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others than the owner can read or change the key.
    #[error("the key {} is open to others than its owner (mode {mode:03o}); make it 600", path.display())]
    KeyPermissions {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// There is a certificate without its key.
    #[error("the key {} is missing beside its certificate", path.display())]
    KeyMissing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The key file does not hold a P-256 key.
    #[error("cannot use the key {}", path.display())]
    Key {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KeyError,
    },
    /// The certificate file does not begin with a certificate that can be decoded.
    #[error("cannot use the certificate {}", path.display())]
    Certificate {
        /// The certificate file.
        path: PathBuf,
        /// What is wrong with it, if more is known.
        #[source]
        source: Option<rcgen::Error>,
    },
    /// The certificate must not issue others (RFC 5280 section 4.2.1.9).
    #[error("the certificate {} is not that of a certificate authority", path.display())]
    NotAnAuthority {
        /// The certificate file.
        path: PathBuf,
    },
    /// Certificate and key do not belong together.
    #[error("the certificate {} does not fit the key beside it", path.display())]
    Mismatch {
        /// The certificate file.
        path: PathBuf,
    },
    /// The authority's own certificate has expired.
    #[error("the certificate of the certificate authority has expired")]
    Expired,
    /// Making the authority's certificate failed.
    #[error("cannot sign the certificate of a new certificate authority")]
    Sign(#[source] rcgen::Error),
}

/// The key in `dir`, if there is one. The permissions are those of the file that is read, whatever its name points to
/// a moment later.
fn read_key(dir: &Path) -> Result<Option<PrivateKey>, LocalCaError> {
    let path = dir.join(KEY_FILE);
    let mut text = Zeroizing::new(Vec::new());
    let mode = match read_with_mode(&path, &mut text) {
        Ok(mode) => mode,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LocalCaError::Read { path, source }),
    };
    if mode & 0o077 != 0 {
        return Err(LocalCaError::KeyPermissions { path, mode });
    }
    PrivateKey::from_pkcs8_pem(&text).map(Some).map_err(|source| LocalCaError::Key { path, source })
}

fn read_with_mode(path: &Path, contents: &mut Vec<u8>) -> io::Result<u32> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    // Room for all of it at once, lest growth leave copies behind.
    contents.reserve_exact(usize::try_from(metadata.len()).unwrap_or(0) + 1);
    file.read_to_end(contents)?;
    Ok(metadata.permissions().mode() & 0o777)
}

fn create_key(dir: &Path) -> io::Result<PrivateKey> {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(io::Error::other)?;
    let text = Zeroizing::new(pair.serialize_pem());
    put_in_place(dir, KEY_FILE, 0o600, text.as_bytes())?;
    PrivateKey::from_pkcs8_pem(text.as_bytes()).map_err(io::Error::other)
}

fn create_certificate(dir: &Path, key: &PrivateKey) -> Result<(), LocalCaError> {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + LIFETIME).into();
    params.serial_number = Some(random_serial().map_err(LocalCaError::Sign)?);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Mesh");
    params.distinguished_name.push(DnType::CommonName, "Local mesh certificate authority");
    // It issues to workloads and to no further authority.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(key).map_err(LocalCaError::Sign)?;
    put_in_place(dir, CERTIFICATE_FILE, 0o644, certificate.pem().as_bytes())
        .map_err(|source| LocalCaError::Create { path: dir.to_owned(), source })
}

/// Makes the file appear with all of its contents. The caller holds the directory's lock, so a temporary file that is
/// already there belongs to nobody.
fn put_in_place(dir: &Path, name: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}.new"));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_second_opening_finds_what_the_first_made() {
        let dir = tempfile::tempdir().unwrap();
        let made = CaFiles::open_or_create(&dir.path().join("new/ca")).unwrap();
        let found = CaFiles::open_or_create(&dir.path().join("new/ca")).unwrap();
        assert_eq!(made.certificate, found.certificate);
        let mode = |name: &str| fs::metadata(dir.path().join("new").join(name)).unwrap().permissions().mode();
        assert_eq!(mode("ca") & 0o777, 0o700);
        assert_eq!(mode("ca/ca-key.pem") & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path().join("new/ca")).unwrap().count(), 2, "nothing temporary is left");
    }

    #[test]
    fn many_that_open_at_once_get_one_authority() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let start = Barrier::new(16);
            let certificates: Vec<_> = thread::scope(|scope| {
                let open = || {
                    start.wait();
                    CaFiles::open_or_create(dir.path()).unwrap().certificate
                };
                let threads: Vec<_> = (0..16).map(|_| scope.spawn(open)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(certificates.windows(2).all(|pair| pair[0] == pair[1]));
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        CaFiles::open_or_create(dir.path()).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o666] {
            set_mode(&dir.path().join(KEY_FILE), mode);
            match CaFiles::open_or_create(dir.path()).err() {
                Some(LocalCaError::KeyPermissions { mode: found, .. }) => assert_eq!(found, mode),
                other => panic!("{other:?}"),
            }
        }
        set_mode(&dir.path().join(KEY_FILE), 0o400);
        assert!(CaFiles::open_or_create(dir.path()).is_ok());
    }

    #[test]
    fn a_certificate_without_its_key_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        CaFiles::open_or_create(dir.path()).unwrap();
        fs::remove_file(dir.path().join(KEY_FILE)).unwrap();
        let error = CaFiles::open_or_create(dir.path()).err();
        assert!(matches!(error, Some(LocalCaError::KeyMissing { .. })), "{error:?}");
    }

    #[test]
    fn an_interrupted_creation_is_completed_with_the_key_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let key = CaFiles::open_or_create(dir.path()).unwrap().key.public_key_info();
        fs::remove_file(dir.path().join(CERTIFICATE_FILE)).unwrap();
        fs::write(dir.path().join(".ca-cert.pem.new"), "half a certif").unwrap();
        let completed = CaFiles::open_or_create(dir.path()).unwrap();
        assert_eq!(completed.key.public_key_info(), key);
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        CaFiles::open_or_create(one.path()).unwrap();
        CaFiles::open_or_create(other.path()).unwrap();
        fs::copy(other.path().join(KEY_FILE), one.path().join(KEY_FILE)).unwrap();
        let error = CaFiles::open_or_create(one.path()).err();
        assert!(matches!(error, Some(LocalCaError::Mismatch { .. })), "{error:?}");
    }

    #[test]
    fn files_that_are_not_what_they_should_be_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let key = CaFiles::open_or_create(dir.path()).unwrap().key;
        let leaf = CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap();
        fs::write(dir.path().join(CERTIFICATE_FILE), leaf.pem()).unwrap();
        let error = CaFiles::open_or_create(dir.path()).err();
        assert!(matches!(error, Some(LocalCaError::NotAnAuthority { .. })), "{error:?}");

        fs::write(dir.path().join(CERTIFICATE_FILE), "no certificate").unwrap();
        let error = CaFiles::open_or_create(dir.path()).err();
        assert!(matches!(error, Some(LocalCaError::Certificate { .. })), "{error:?}");

        fs::write(dir.path().join(KEY_FILE), "no key").unwrap();
        let error = CaFiles::open_or_create(dir.path()).err();
        assert!(matches!(error, Some(LocalCaError::Key { .. })), "{error:?}");
    }
}
