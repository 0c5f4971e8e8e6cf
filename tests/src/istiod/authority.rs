//! The keys of the scripted istiod: roots that can be rotated, what they sign, and what they revoke.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::Result;

/// How far a leaf's validity reaches back, as at istiod.
pub(super) const BACKDATE: Duration = Duration::from_secs(120);

/// How long what is not a leaf lives.
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The name for which istiod's own certificate is, unless a proxy dials its address.
pub const HOST: &str = "istiod.istio-system.svc";

/// Roots, of which one issues.
pub(super) struct Authority {
    address: IpAddr,
    roots: Vec<Root>,
    /// The index of the root that issues.
    issuing: usize,
    /// Roots before this one are no longer in the bundle.
    oldest_trusted: usize,
    /// Whether leaves are signed by an intermediate certificate instead of the root itself.
    pub(super) intermediates: bool,
    serials: u64,
    issued: Vec<Issued>,
    crl_number: u64,
}

struct Root {
    own: Signer,
    intermediate: Signer,
}

/// A certificate that signs others, and what it has revoked.
struct Signer {
    issuer: CertifiedIssuer<'static, KeyPair>,
    revoked: Vec<u64>,
}

struct Issued {
    identity: String,
    serial: u64,
    root: usize,
    by_intermediate: bool,
    not_after: SystemTime,
}

/// A leaf to be issued.
pub(super) struct Wanted<'a, K> {
    pub(super) identity: &'a str,
    pub(super) key: &'a K,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Authority {
    /// One root. istiod itself is at `address`.
    pub(super) fn new(address: IpAddr) -> Result<Self> {
        let mut authority = Self {
            address,
            roots: Vec::new(),
            issuing: 0,
            oldest_trusted: 0,
            intermediates: false,
            // Large enough for serial numbers of several octets.
            serials: 0x1000_0000,
            issued: Vec::new(),
            crl_number: 0,
        };
        authority.add_root()?;
        Ok(authority)
    }

    /// A further root, trusted from now on and issuing nothing yet.
    pub(super) fn add_root(&mut self) -> Result<()> {
        // All have one name, as Istio's roots usually do.
        let own = CertifiedIssuer::self_signed(self.signing("Laboratory root"), KeyPair::generate()?)?;
        let params = self.signing("Laboratory intermediate");
        let intermediate = CertifiedIssuer::signed_by(params, KeyPair::generate()?, &own)?;
        let signer = |issuer| Signer { issuer, revoked: Vec::new() };
        self.roots.push(Root { own: signer(own), intermediate: signer(intermediate) });
        Ok(())
    }

    /// From now on the newest root issues.
    pub(super) fn issue_from_newest(&mut self) {
        self.issuing = self.roots.len() - 1;
    }

    /// Roots older than the one that issues leave the bundle.
    pub(super) fn retire_older(&mut self) {
        self.oldest_trusted = self.issuing;
    }

    /// All trusted roots, PEM, the one that issues first.
    pub(super) fn bundle(&self) -> String {
        let trusted = (self.oldest_trusted..self.roots.len()).filter(|index| *index != self.issuing);
        let order = std::iter::once(self.issuing).chain(trusted);
        order.filter_map(|index| self.roots.get(index)).map(|root| root.own.issuer.pem()).collect()
    }

    /// A leaf in the form of the CA's answer: leaf, intermediates, bundle.
    pub(super) fn issue<K: PublicKeyData>(&mut self, wanted: &Wanted<'_, K>) -> Result<Vec<String>> {
        let serial = self.next_serial();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = wanted.not_before.into();
        params.not_after = wanted.not_after.into();
        params.serial_number = Some(SerialNumber::from(serial));
        params.subject_alt_names = vec![SanType::URI(wanted.identity.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let (root, by_intermediate) = (self.issuing, self.intermediates);
        let signing = self.roots.get(root).context("there is always a root that issues")?;
        let signer = if by_intermediate { &signing.intermediate } else { &signing.own };
        let leaf = params.signed_by(wanted.key, &signer.issuer)?;
        let mut chain = vec![leaf.pem()];
        if by_intermediate {
            chain.push(signing.intermediate.issuer.pem());
        }
        chain.push(self.bundle());
        let not_after = wanted.not_after;
        let identity = wanted.identity.to_owned();
        self.issued.push(Issued { identity, serial, root, by_intermediate, not_after });
        Ok(chain)
    }

    /// When the newest leaf of the identity expires.
    pub(super) fn expiry(&self, identity: &str) -> Option<SystemTime> {
        let newest = self.issued.iter().rev().find(|issued| issued.identity == identity);
        newest.map(|issued| issued.not_after)
    }

    /// Revokes every certificate issued to the identity so far. Says how many.
    pub(super) fn revoke(&mut self, identity: &str) -> usize {
        let mut count = 0;
        for issued in self.issued.iter().filter(|issued| issued.identity == identity) {
            let Some(root) = self.roots.get_mut(issued.root) else { continue };
            let signer = if issued.by_intermediate { &mut root.intermediate } else { &mut root.own };
            if !signer.revoked.contains(&issued.serial) {
                signer.revoked.push(issued.serial);
                count += 1;
            }
        }
        count
    }

    /// Forgets all revocations.
    pub(super) fn reinstate(&mut self) {
        for root in &mut self.roots {
            root.own.revoked.clear();
            root.intermediate.revoked.clear();
        }
    }

    /// The revocation lists of all issuers, PEM.
    pub(super) fn revocation_lists(&mut self) -> Result<String> {
        self.crl_number += 1;
        let now = SystemTime::now();
        let mut text = String::new();
        for signer in self.roots.iter().flat_map(|root| [&root.own, &root.intermediate]) {
            let revoked = |serial: &u64| RevokedCertParams {
                serial_number: SerialNumber::from(*serial),
                revocation_time: (now - BACKDATE).into(),
                reason_code: None,
                invalidity_date: None,
            };
            let list = CertificateRevocationListParams {
                this_update: (now - BACKDATE).into(),
                next_update: (now + YEAR).into(),
                crl_number: SerialNumber::from(self.crl_number),
                issuing_distribution_point: None,
                revoked_certs: signer.revoked.iter().map(revoked).collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            text += &list.signed_by(&signer.issuer)?.pem()?;
        }
        Ok(text)
    }

    /// The configuration of istiod's own port, with a certificate of the root that issues: TLS 1.2 and 1.3, HTTP/2.
    pub(super) fn server_config(&mut self) -> Result<Arc<ServerConfig>> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![HOST.to_owned()])?;
        params.subject_alt_names.push(SanType::IpAddress(self.address));
        params.distinguished_name = DistinguishedName::new();
        params.not_before = (SystemTime::now() - BACKDATE).into();
        params.not_after = (SystemTime::now() + YEAR).into();
        params.serial_number = Some(SerialNumber::from(self.next_serial()));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let root = self.roots.get(self.issuing).context("there is always a root that issues")?;
        let certificate: CertificateDer<'static> = params.signed_by(&key, &root.own.issuer)?.der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    fn signing(&mut self, name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, name);
        params.not_before = (SystemTime::now() - BACKDATE).into();
        params.not_after = (SystemTime::now() + YEAR).into();
        params.serial_number = Some(SerialNumber::from(self.next_serial()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        params
    }

    fn next_serial(&mut self) -> u64 {
        self.serials += 1;
        self.serials
    }
}
