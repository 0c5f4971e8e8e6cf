//! Certificates as operators see them: in the dump, without their keys, and as expiry metrics.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use identity::{
    CertificateStore, IdentityState, IssueError, IssueFuture, Issuer, LocalCa, SpiffeId, StoreOptions, Tls,
    TlsOptions,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use ztunnel::metrics::certificates::{CertificateNumbers, register};
use ztunnel::metrics::{Format, Registry, encode};

use crate::fixture::{dump, mesh, parsed, sources};
use crate::http_client::run;

/// Issues for one identity, refuses another, and never answers for any other.
struct Moody(LocalCa);

impl Issuer for Moody {
    fn issue<'a>(&'a self, identity: &'a SpiffeId, csr_pem: &'a str) -> IssueFuture<'a> {
        match identity.service_account() {
            "good" => self.0.issue(identity, csr_pem),
            "refused" => Box::pin(async { Err(IssueError::Unauthorized("not on this node".into())) }),
            _ => Box::pin(std::future::pending()),
        }
    }
}

fn identity(service_account: &str) -> SpiffeId {
    SpiffeId::new("corp.example", "shop", service_account).unwrap()
}

/// One identity in each state, and the text of the authority's key.
async fn identities() -> (Vec<(SpiffeId, IdentityState)>, String) {
    let directory = tempfile::tempdir().unwrap();
    let ca = LocalCa::open(directory.path(), std::time::Duration::from_secs(3_600)).unwrap();
    let files = std::fs::read_dir(directory.path()).unwrap();
    let texts = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    let key = texts.into_iter().find(|text| text.contains("PRIVATE KEY")).unwrap();
    let tls = Tls::new(TlsOptions::default());
    let (store, driver) = CertificateStore::new(Arc::new(Moody(ca)), tls, StoreOptions::default());
    let driver = tokio::task::spawn_local(driver.run(std::future::pending()));
    store.certificate(&identity("good")).await.unwrap();
    store.certificate(&identity("refused")).await.unwrap_err();
    store.prefetch(&identity("awaited"));
    let identities = store.identities();
    driver.abort();
    (identities, key)
}

fn der(certificate: &Value) -> Vec<u8> {
    // Base64 of a PEM text: as the body of another PEM text the outer layer comes off.
    let body = certificate["pem"].as_str().unwrap();
    let wrapped = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
    let pem = CertificateDer::from_pem_slice(wrapped.as_bytes()).unwrap();
    CertificateDer::from_pem_slice(&pem).unwrap().to_vec()
}

fn time(text: &Value) -> SystemTime {
    OffsetDateTime::parse(text.as_str().unwrap(), &Rfc3339).unwrap().into()
}

#[test]
fn each_state_has_its_shape_and_no_key_appears() {
    let (identities, ca_key) = run(identities());
    let expected = identities.clone();
    let mut sources = sources(|| Arc::new(mesh()));
    sources.certificates = Box::new(move || identities.clone());
    let text = dump(sources, None);
    let certificates = &parsed(&text)["certificates"];

    let uri = |service_account| identity(service_account).to_string();
    let without =
        |name, state| json!({"certChain": [], "identity": uri(name), "rootCerts": [], "state": state});
    assert_eq!(certificates[0], without("awaited", "Initializing"));
    assert_eq!(certificates[2]["certChain"], json!([]));
    let state = certificates[2]["state"].as_str().unwrap();
    assert!(state.starts_with("Unavailable: ") && state.contains("not on this node"), "{state}");

    let good = &certificates[1];
    assert_eq!((&good["identity"], &good["state"]), (&json!(uri("good")), &json!("Available")));
    let IdentityState::Available(certificate) = &expected[1].1 else { panic!("{:?}", expected[1]) };
    let (leaf, root) = (&good["certChain"][0], &good["rootCerts"][0]);
    assert_eq!(der(leaf), certificate.chain().leaf.der.to_vec());
    assert_eq!(der(root), certificate.chain().roots[0].der.to_vec());
    assert_eq!(time(&leaf["expirationTime"]), certificate.not_after());
    assert_eq!(time(&leaf["validFrom"]), certificate.not_before());
    for certificate in [leaf, root] {
        let serial = certificate["serialNumber"].as_str().unwrap();
        assert!(!serial.is_empty() && serial.bytes().all(|byte| byte.is_ascii_digit()), "{serial}");
    }

    let text = String::from_utf8(text).unwrap();
    let secret = ca_key.lines().nth(1).unwrap();
    assert!(!text.contains(secret) && !text.contains("PRIVATE"));
    // The same, encoded once more as certificates are ("LS0tLS1CRUdJTiBQUklWQVRF" is "-----BEGIN PRIVATE").
    assert!(text.contains("LS0tLS1CRUdJTiBDRVJU") && !text.contains("LS0tLS1CRUdJTiBQUklWQVRF"));
}

#[test]
fn a_certificate_that_is_held_has_an_expiry_metric_and_others_have_none() {
    let (identities, _) = run(identities());
    let IdentityState::Available(certificate) = &identities[1].1 else { panic!("{:?}", identities[1]) };
    let expiry = certificate.not_after().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let numbers = CertificateNumbers { issued: 1, failed: vec![("unauthorized", 1)], failing: 1, identities };
    let mut registry = Registry::default();
    register(&mut registry, move || numbers.clone());
    let mut text = String::new();
    encode(Format::Text, &registry, &mut text).unwrap();
    let lines: Vec<_> =
        text.lines().filter(|line| line.contains("_expiry_") && !line.starts_with('#')).collect();
    let good = identity("good");
    assert_eq!(
        lines,
        [format!("istio_certificate_expiry_timestamp_seconds{{identity=\"{good}\"}} {expiry}")]
    );
    for state in ["available", "initializing", "unavailable"] {
        assert!(text.contains(&format!("istio_certificates{{state=\"{state}\"}} 1\n")), "{text}");
    }
}
