//! An authority that issues what a test asks for, right or wrong.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]
#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod handshake;
pub(crate) mod lists;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::{
    CertificateChain, PrivateKey, SpiffeId, Tls, TlsOptions, WorkloadCertificate, WorkloadCertificateError,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, CustomExtension,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PublicKeyData, RevokedCertParams, SanType, SerialNumber,
};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

pub(crate) const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
pub(crate) const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";

pub(crate) fn id(uri: &str) -> SpiffeId {
    uri.parse().unwrap()
}

/// A root, or an intermediate with the texts that lead to its root.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// The same name and key, to sign lists with whatever the certificate says about that.
    crl_issuer: Issuer<'static, KeyPair>,
    /// The intermediates that a leaf of this authority needs, nearest first.
    intermediates: Vec<String>,
    pub(crate) root: String,
}

impl Authority {
    pub(crate) fn root(name: &str) -> Self {
        Self::root_with(ca_params(name), name)
    }

    /// A root with two basicConstraints; RFC 5280 section 4.2 allows one.
    pub(crate) fn unusable_root(name: &str) -> Self {
        let mut params = ca_params(name);
        let authority = vec![0x30, 3, 1, 1, 0xff];
        params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 19], authority));
        Self::root_with(params, name)
    }

    fn root_with(params: CertificateParams, name: &str) -> Self {
        let (key, crl_issuer) = keys(name);
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        Self { root: issuer.pem(), issuer, crl_issuer, intermediates: Vec::new() }
    }

    pub(crate) fn intermediate(&self, name: &str) -> Self {
        self.intermediate_with(name, |_| {})
    }

    pub(crate) fn intermediate_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (key, crl_issuer) = keys(name);
        let mut params = ca_params(name);
        change(&mut params);
        let issuer = CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap();
        let intermediates = [vec![issuer.pem()], self.intermediates.clone()].concat();
        Self { issuer, crl_issuer, intermediates, root: self.root.clone() }
    }

    /// The certificate of this authority.
    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// A list of the given certificates, as PEM. Its nextUpdate is long past, which is to make no difference.
    pub(crate) fn crl(&self, revoked: &[&CertificateDer<'_>]) -> String {
        let now = SystemTime::now();
        let revoked_certs = revoked.iter().map(|der| RevokedCertParams {
            serial_number: serial(der),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: (now - 60 * MINUTE).into(),
            next_update: (now - 30 * MINUTE).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.crl_issuer).unwrap().pem().unwrap()
    }

    /// A leaf with the usual usages and the given URIs, after `change`.
    pub(crate) fn sign(
        &self,
        uris: &[&str],
        key: &impl PublicKeyData,
        change: impl FnOnce(&mut CertificateParams),
    ) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        validity(&mut params, SystemTime::now() - MINUTE, SystemTime::now() + 60 * MINUTE);
        change(&mut params);
        params.signed_by(key, &self.issuer).unwrap().pem()
    }

    /// The PEM texts around a leaf.
    pub(crate) fn elements(&self, leaf: String, roots: &[&str]) -> Vec<String> {
        [vec![leaf], self.intermediates.clone(), vec![roots.concat()]].concat()
    }

    /// A workload's certificate that trusts `roots`.
    pub(crate) fn workload_trusting(&self, uri: &str, roots: &[&str]) -> WorkloadCertificate {
        self.try_workload(uri, uri, roots, |_| {}, SystemTime::now()).unwrap()
    }

    pub(crate) fn workload(&self, uri: &str) -> WorkloadCertificate {
        self.workload_trusting(uri, &[&self.root])
    }

    pub(crate) fn try_workload(
        &self,
        requested: &str,
        issued: &str,
        roots: &[&str],
        change: impl FnOnce(&mut CertificateParams),
        now: SystemTime,
    ) -> Result<WorkloadCertificate, WorkloadCertificateError> {
        let key = PrivateKey::generate().unwrap();
        let elements = self.elements(self.sign(&[issued], &key, change), roots);
        let chain = CertificateChain::from_pem_elements(&elements).unwrap();
        WorkloadCertificate::new(&id(requested), key, chain, &Tls::new(TlsOptions::default()), now)
    }

    /// A workload's certificate made with other options than usual.
    pub(crate) fn workload_using(&self, uri: &str, tls: &Tls) -> WorkloadCertificate {
        self.workload_as(uri, &[&self.root], tls, |_| {})
    }

    pub(crate) fn workload_as(
        &self,
        uri: &str,
        roots: &[&str],
        tls: &Tls,
        change: impl FnOnce(&mut CertificateParams),
    ) -> WorkloadCertificate {
        let key = PrivateKey::generate().unwrap();
        let elements = self.elements(self.sign(&[uri], &key, change), roots);
        let chain = CertificateChain::from_pem_elements(&elements).unwrap();
        WorkloadCertificate::new(&id(uri), key, chain, tls, SystemTime::now()).unwrap()
    }

    /// Credentials that no correct peer would use.
    pub(crate) fn credentials(
        &self,
        uris: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Arc<SingleCertAndKey> {
        let key = PrivateKey::generate().unwrap();
        let leaf = self.sign(uris, &key, change);
        let chain = [vec![leaf], self.intermediates.clone()].concat();
        let chain = chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).collect();
        Arc::new(CertifiedKey::new(chain, Arc::new(key)).into())
    }
}

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

pub(crate) fn validity(params: &mut CertificateParams, not_before: SystemTime, not_after: SystemTime) {
    params.not_before = not_before.into();
    params.not_after = not_after.into();
}

/// A new key, and the authority `name` that signs lists with it.
fn keys(name: &str) -> (KeyPair, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let copy = KeyPair::from_pem(&key.serialize_pem()).unwrap();
    (key, Issuer::new(ca_params(name), copy))
}

fn serial(der: &[u8]) -> SerialNumber {
    SerialNumber::from_slice(x509_parser::parse_x509_certificate(der).unwrap().1.raw_serial())
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
