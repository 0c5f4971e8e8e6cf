//! A certificate authority on the node itself, for meshes that run from static configuration without a control plane.
//!
//! The directory holds `ca-cert.pem` and `ca-key.pem`. Proxies that share the directory share the trust: whichever starts
//! first makes the two files, the others use them.

use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose,
    KeyUsagePurpose, SanType, SerialNumber,
};
use thiserror::Error;

use crate::ca_files::CaFiles;
use crate::{IssueError, IssueFuture, IssuedChain, Issuer, LocalCaError, PrivateKey, SpiffeId};

/// How far a certificate's validity reaches back, for peers whose clock is behind.
pub(crate) const BACKDATE: Duration = Duration::from_secs(120);

/// Issues certificates in this process, from a key and certificate kept in a directory.
#[derive(Debug)]
pub struct LocalCa {
    authority: rcgen::Issuer<'static, PrivateKey>,
    /// The text of `ca-cert.pem`: the issuing certificate, then any other roots to trust.
    roots_pem: String,
    /// When the issuing certificate expires. Nothing that is issued outlives it.
    not_after: SystemTime,
    lifetime: Duration,
}

impl LocalCa {
    /// The lifetime that istiod gives a workload's certificate.
    pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

    /// Opens the authority in `dir`, and makes it if there is none: a self-signed P-256 certificate of ten years, its key
    /// readable by the owner alone. Certificates will be issued for `lifetime`.
    ///
    /// Safe against other processes that do the same at the same time; all end with one authority. Blocks for file
    /// access. Further certificates in `ca-cert.pem` behind the first are trusted but do not issue, which is how an
    /// authority is replaced without a gap.
    pub fn open(dir: &std::path::Path, lifetime: Duration) -> Result<Self, LocalCaError> {
        let files = CaFiles::open_or_create(dir)?;
        let authority = rcgen::Issuer::from_ca_cert_der(&files.certificate, files.key).map_err(|source| {
            LocalCaError::Certificate { path: files.certificate_path, source: Some(source) }
        })?;
        Ok(Self { authority, roots_pem: files.certificate_pem, not_after: files.not_after, lifetime })
    }

    /// Checks the request and signs a certificate that begins two minutes before `now`.
    fn issue_at(
        &self,
        identity: &SpiffeId,
        csr_pem: &str,
        now: SystemTime,
    ) -> Result<IssuedChain, IssueError> {
        let invalid = |error: RequestRefused| IssueError::Invalid(error.into());
        let request = check_request(identity, csr_pem).map_err(invalid)?;
        if now > self.not_after {
            return Err(IssueError::Unavailable(LocalCaError::Expired.into()));
        }
        let leaf = self.sign(request, now).map_err(|error| IssueError::Unavailable(error.into()))?;
        Ok(IssuedChain(vec![leaf.pem(), self.roots_pem.clone()]))
    }

    fn sign(
        &self,
        request: CertificateSigningRequestParams,
        now: SystemTime,
    ) -> Result<rcgen::Certificate, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + self.lifetime).min(self.not_after).into();
        params.serial_number = Some(random_serial()?);
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = request.params.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.signed_by(&request.public_key, &self.authority)
    }
}

impl Issuer for LocalCa {
    fn issue<'a>(&'a self, identity: &'a SpiffeId, csr_pem: &'a str) -> IssueFuture<'a> {
        Box::pin(std::future::ready(self.issue_at(identity, csr_pem, SystemTime::now())))
    }
}

/// The request must be signed by the key it names, and ask for `identity` and no other name.
fn check_request(
    identity: &SpiffeId,
    csr_pem: &str,
) -> Result<CertificateSigningRequestParams, RequestRefused> {
    let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(RequestRefused::Unreadable)?;
    let uri = Ia5String::try_from(identity.as_str()).map_err(RequestRefused::Unreadable)?;
    if request.params.subject_alt_names != [SanType::URI(uri)] {
        return Err(RequestRefused::OtherNames);
    }
    if request.public_key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err(RequestRefused::KeyType);
    }
    Ok(request)
}

/// Why a request is not granted.
#[derive(Debug, Error)]
enum RequestRefused {
    #[error("the certificate signing request is damaged or its signature does not verify")]
    Unreadable(#[source] rcgen::Error),
    #[error("the certificate signing request asks for other names than the identity")]
    OtherNames,
    #[error("the certificate signing request is not for an ECDSA P-256 key")]
    KeyType,
}

/// 127 random bits: positive, and within the 20 octets of RFC 5280 section 4.1.2.2.
pub(crate) fn random_serial() -> Result<SerialNumber, rcgen::Error> {
    let mut octets = [0; 16];
    aws_lc_rs::rand::fill(&mut octets).map_err(|_| rcgen::Error::RingUnspecified)?;
    octets[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&octets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CertificateChain, certificate_request};

    const DAY: Duration = LocalCa::DEFAULT_LIFETIME;

    fn id() -> SpiffeId {
        "spiffe://cluster.local/ns/default/sa/client".parse().unwrap()
    }

    fn authority() -> (tempfile::TempDir, LocalCa) {
        let dir = tempfile::tempdir().unwrap();
        let authority = LocalCa::open(dir.path(), DAY).unwrap();
        (dir, authority)
    }

    fn request(identity: &SpiffeId) -> String {
        certificate_request(identity, &PrivateKey::generate().unwrap()).unwrap()
    }

    fn leaf(chain: &IssuedChain) -> CertificateChain {
        CertificateChain::from_pem_elements(&chain.0).unwrap()
    }

    #[test]
    fn a_certificate_has_the_name_the_usages_and_the_lifetime_of_istiod() {
        let (_dir, authority) = authority();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
        let chain = leaf(&authority.issue_at(&id(), &request(&id()), now).unwrap());
        assert_eq!(chain.identity, id());
        assert_eq!(chain.leaf.not_before, now - BACKDATE);
        assert_eq!(chain.leaf.not_after, now + DAY);

        let (_, parsed) = x509_parser::parse_x509_certificate(&chain.leaf.der).unwrap();
        assert_eq!(parsed.subject().iter().count(), 0);
        assert!(parsed.basic_constraints().unwrap().is_none_or(|extension| !extension.value.ca));
        let usage = parsed.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
        let extended = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && extended.client_auth && !extended.any);
        let names = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names.len(), 1);
    }

    #[test]
    fn no_two_certificates_share_a_serial_number() {
        let (_dir, authority) = authority();
        let request = request(&id());
        let serial =
            || leaf(&authority.issue_at(&id(), &request, SystemTime::now()).unwrap()).leaf.serial_number;
        assert_ne!(serial(), serial());
    }

    #[test]
    fn a_certificate_does_not_outlive_the_authority() {
        let (_dir, authority) = authority();
        let now = authority.not_after - DAY / 2;
        let chain = leaf(&authority.issue_at(&id(), &request(&id()), now).unwrap());
        assert_eq!(chain.leaf.not_after, authority.not_after);
        let later = authority.not_after + DAY;
        let error = authority.issue_at(&id(), &request(&id()), later).unwrap_err();
        assert!(matches!(error, IssueError::Unavailable(_)), "{error:?}");
    }

    #[test]
    fn a_request_for_another_name_is_refused() {
        let (_dir, authority) = authority();
        let other: SpiffeId = "spiffe://cluster.local/ns/default/sa/admin".parse().unwrap();
        let error = authority.issue_at(&id(), &request(&other), SystemTime::now()).unwrap_err();
        assert!(matches!(error, IssueError::Invalid(_)), "{error:?}");
    }

    #[test]
    fn a_request_for_an_additional_name_is_refused() {
        let (_dir, authority) = authority();
        let mut params = CertificateParams::new(["example.org".to_owned()]).unwrap();
        params.subject_alt_names.insert(0, SanType::URI(id().as_str().try_into().unwrap()));
        let request = params.serialize_request(&PrivateKey::generate().unwrap()).unwrap().pem().unwrap();
        let error = authority.issue_at(&id(), &request, SystemTime::now()).unwrap_err();
        assert!(matches!(error, IssueError::Invalid(_)), "{error:?}");
    }

    #[test]
    fn a_request_not_signed_by_its_own_key_is_refused() {
        let (_dir, authority) = authority();
        let mut forged = request(&id());
        // The signature is the last thing in the text. Its final octets are in the last line but one.
        let line = forged.trim_end().rfind('\n').unwrap() - 8;
        let other = if &forged[line..=line] == "A" { "B" } else { "A" };
        forged.replace_range(line..=line, other);
        let error = authority.issue_at(&id(), &forged, SystemTime::now()).unwrap_err();
        assert!(matches!(error, IssueError::Invalid(_)), "{error:?}");
        for garbage in ["", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"]
        {
            assert!(authority.issue_at(&id(), garbage, SystemTime::now()).is_err());
        }
    }
}
