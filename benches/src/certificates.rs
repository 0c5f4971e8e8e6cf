//! Certificates for the proxies that are not ours: the same kind of key and chain as a workload has in the mesh.

use std::fs;
use std::path::{Path, PathBuf};

use lab::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// The name in the certificate of the server's side, which the client's side insists on.
pub(crate) const SERVER_NAME: &str = "server.bench";

/// The name in the certificate of the client's side.
const CLIENT_NAME: &str = "client.bench";

/// PEM files. They are in the laboratory's directory, and go with it.
pub(crate) struct Certificates {
    /// The authority that both sides trust, and no other.
    pub(crate) authority: PathBuf,
    /// Certificate and key of the client's side.
    pub(crate) client: PathBuf,
    /// Certificate and key of the server's side.
    pub(crate) server: PathBuf,
}

impl Certificates {
    /// Makes an authority, and has it issue two certificates: ECDSA on P-256, one level deep.
    pub(crate) fn create(directory: &Path) -> Result<Self> {
        let files = Self {
            authority: directory.join("authority.pem"),
            client: directory.join("client.pem"),
            server: directory.join("server.pem"),
        };
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "bench authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate()?;
        fs::write(&files.authority, authority.self_signed(&key)?.pem())?;
        let issuer = Issuer::new(authority, key);
        for (name, file) in [(CLIENT_NAME, &files.client), (SERVER_NAME, &files.server)] {
            let key = KeyPair::generate()?;
            let mut leaf = CertificateParams::new([name.to_owned()])?;
            leaf.distinguished_name.push(DnType::CommonName, name);
            leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            leaf.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let certificate = leaf.signed_by(&key, &issuer)?.pem();
            fs::write(file, certificate + &key.serialize_pem())?;
        }
        Ok(files)
    }
}
