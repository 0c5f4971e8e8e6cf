//! What its certificate authority checks and issues.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use identity::proto::IstioCertificateRequest;
use identity::{CertificateChain, PrivateKey, SpiffeId, certificate_request};
use lab::istiod::{CaBehaviour, Caller, Impersonation};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use tonic::{Code, Status};
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::client::{Client, texts};
use crate::{Scene, TOKEN};

/// A request for `identity`, by a node proxy on behalf of a pod.
fn request(identity: &str, csr: String) -> IstioCertificateRequest {
    IstioCertificateRequest {
        csr,
        validity_duration: 3600,
        metadata: Some(texts(&[("ImpersonatedIdentity", identity)])),
    }
}

fn csr(identity: &str) -> String {
    certificate_request(&identity.parse().unwrap(), &PrivateKey::generate().unwrap()).unwrap()
}

fn ask(client: &Client, identity: &str) -> Result<Vec<String>, Status> {
    let response = client.create_certificate(request(identity, csr(identity))).unwrap();
    response.map(|response| response.cert_chain)
}

/// A scene with pod `a` in the mesh, and its identity.
fn scene() -> (Scene, String) {
    let scene = Scene::new();
    scene.istiod.push(|world| world.enrol(&scene.pods[0]));
    let identity = scene.pods[0].identity();
    (scene, identity)
}

#[test]
fn a_certificate_has_the_identity_the_usages_and_the_lifetime_of_istiod() {
    let (scene, identity) = scene();
    for intermediates in [false, true] {
        scene.istiod.ca().use_intermediates(intermediates);
        let before = SystemTime::now();
        let elements = ask(&scene.client, &identity).unwrap();
        assert_eq!(elements.len(), if intermediates { 3 } else { 2 });
        assert!(elements.iter().all(|element| element.ends_with('\n')));
        assert_eq!(elements.last(), Some(&scene.istiod.ca().roots()));
        let chain = CertificateChain::from_pem_elements(&elements).unwrap();
        assert_eq!(chain.identity, identity.parse::<SpiffeId>().unwrap());
        let lifetime = chain.leaf.not_after.duration_since(chain.leaf.not_before).unwrap();
        assert_eq!(lifetime, Duration::from_secs(3600 + 120));
        assert!(chain.leaf.not_before <= before - Duration::from_secs(119));

        let (_, leaf) = x509_parser::parse_x509_certificate(&chain.leaf.der).unwrap();
        assert_eq!(leaf.subject().iter().count(), 0);
        let usages = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usages.server_auth && usages.client_auth);
        let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names.len(), 1);
    }
    let requests = scene.istiod.ca().requests();
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|request| request.identity == identity
        && request.impersonated
        && request.validity == 3600
        && request.caller == Caller::node_proxy(Some("east"))
        && request.outcome == Some(Code::Ok)));
}

#[test]
fn only_identities_of_pods_on_the_callers_node_are_issued() {
    let (scene, identity) = scene();
    scene.istiod.push(|world| world.enrol(&scene.far));
    let far = scene.far.identity();
    let refused = [&*far, "spiffe://cluster.local/ns/default/sa/nobody", "no identity at all", ""];
    for identity in refused {
        let csr = csr(&far);
        let error = scene.client.create_certificate(request(identity, csr)).unwrap().unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated, "{identity}");
    }
    // istiod does not look at the trust domain.
    let other_domain = identity.replace("cluster.local", "example.org");
    assert!(ask(&scene.client, &other_domain).is_ok());

    scene.istiod.ca().allow(Impersonation::Only(BTreeSet::from([far.clone()])));
    assert!(ask(&scene.client, &far).is_ok());
    assert!(ask(&scene.client, &identity).is_err());
    scene.istiod.ca().allow(Impersonation::Anyone);
    assert!(ask(&scene.client, "spiffe://cluster.local/ns/default/sa/nobody").is_ok());
}

#[test]
fn an_account_other_than_the_node_proxys_may_not_speak_for_pods() {
    let (scene, identity) = scene();
    let account = Caller {
        namespace: "default".to_owned(),
        service_account: "a".to_owned(),
        node: Some("east".to_owned()),
    };
    scene.istiod.accept_token("of a pod", account);
    let client = scene.client.clone().without("authorization").and("authorization", "Bearer of a pod");
    assert_eq!(ask(&client, &identity).unwrap_err().code(), Code::Unauthenticated);
    // For itself it may, without impersonation.
    let own = IstioCertificateRequest { metadata: None, ..request(&identity, csr(&identity)) };
    let response = client.create_certificate(own).unwrap().unwrap();
    let chain = CertificateChain::from_pem_elements(&response.cert_chain).unwrap();
    assert_eq!(chain.identity.as_str(), identity);
}

#[test]
fn a_signing_request_that_is_not_exactly_in_order_is_invalid() {
    let (scene, identity) = scene();
    let key = KeyPair::generate().unwrap();
    let uri = || SanType::URI(identity.as_str().try_into().unwrap());
    let named = |names: Vec<SanType>, subject: &[&str]| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.distinguished_name = DistinguishedName::new();
        for name in subject {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.serialize_request(&key).unwrap().pem().unwrap()
    };
    let mut forged = csr(&identity);
    // The signature is the last thing in the text. Its final octets are in the last line but one.
    let line = forged.trim_end().rfind('\n').unwrap() - 8;
    let other = if &forged[line..=line] == "A" { "B" } else { "A" };
    forged.replace_range(line..=line, other);
    let dns = SanType::DnsName("example.org".try_into().unwrap());
    // In order, but for the extension's criticality.
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let length = u8::try_from(identity.len()).unwrap();
    let names = [&[0x30, length + 2, 0x86, length], identity.as_bytes()].concat();
    params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], names)];
    let not_critical = params.serialize_request(&key).unwrap().pem().unwrap();
    let bad = [
        String::new(),
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n".to_owned(),
        forged,
        named(vec![], &[]),
        named(vec![uri(), uri()], &[]),
        named(vec![dns], &[]),
        named(vec![uri()], &["a common name"]),
        not_critical,
    ];
    for (index, csr) in bad.into_iter().enumerate() {
        let error = scene.client.create_certificate(request(&identity, csr)).unwrap().unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "request {index}: {error:?}");
    }
    assert!(ask(&scene.client, &identity).is_ok());
}

#[test]
fn the_lifetime_is_what_was_asked_for_within_bounds_or_what_the_test_says() {
    let (scene, identity) = scene();
    let lifetime = |seconds: i64| {
        let asked =
            IstioCertificateRequest { validity_duration: seconds, ..request(&identity, csr(&identity)) };
        let response = scene.client.create_certificate(asked).unwrap()?;
        let chain = CertificateChain::from_pem_elements(&response.cert_chain).unwrap();
        let whole = chain.leaf.not_after.duration_since(chain.leaf.not_before).unwrap();
        Ok::<_, Status>(whole)
    };
    let backdated = |seconds: u64| Duration::from_secs(seconds + 120);
    assert_eq!(lifetime(7).unwrap(), backdated(7));
    assert_eq!(lifetime(0).unwrap(), backdated(24 * 3600));
    assert_eq!(lifetime(-1).unwrap(), backdated(24 * 3600));
    assert_eq!(lifetime(91 * 24 * 3600).unwrap_err().code(), Code::InvalidArgument);
    scene.istiod.ca().lifetime(Some(Duration::from_secs(3)));
    assert_eq!(lifetime(3600).unwrap(), Duration::from_secs(3));
    let left = scene.istiod.ca().expiry(&identity).unwrap().duration_since(SystemTime::now()).unwrap();
    assert!(left <= Duration::from_secs(3), "{left:?}");
}

#[test]
fn the_authority_fails_in_every_way_that_a_test_asks_for() {
    let (scene, identity) = scene();
    let (ca, client) = (scene.istiod.ca(), &scene.client);
    let chain = |elements: Vec<String>| CertificateChain::from_pem_elements(&elements).unwrap();

    ca.behave(CaBehaviour::Fail(Code::Internal, "not ready".to_owned()));
    assert_eq!(ask(client, &identity).unwrap_err().code(), Code::Internal);
    ca.behave_for(&identity, CaBehaviour::EmptyChain);
    assert!(ask(client, &identity).unwrap().is_empty());
    ca.behave_as_usual_for(&identity);
    assert_eq!(ask(client, &identity).unwrap_err().code(), Code::Internal);

    let other = "spiffe://cluster.local/ns/default/sa/other";
    ca.behave(CaBehaviour::WrongIdentity(other.to_owned()));
    assert_eq!(chain(ask(client, &identity).unwrap()).identity.as_str(), other);

    let day = Duration::from_secs(24 * 3600);
    ca.behave(CaBehaviour::BackDated { age: day, left: Some(Duration::from_secs(60)) });
    assert!(chain(ask(client, &identity).unwrap()).leaf.not_after > SystemTime::now());
    ca.behave(CaBehaviour::BackDated { age: day, left: None });
    assert!(chain(ask(client, &identity).unwrap()).leaf.not_after < SystemTime::now());

    ca.behave(CaBehaviour::WrongKey);
    let (parsed, key) = (identity.parse().unwrap(), PrivateKey::generate().unwrap());
    let asked = request(&identity, certificate_request(&parsed, &key).unwrap());
    let elements = client.create_certificate(asked).unwrap().unwrap().cert_chain;
    let tls = identity::Tls::new(identity::TlsOptions::default());
    let made = identity::WorkloadCertificate::new(&parsed, key, chain(elements), &tls, SystemTime::now());
    assert!(made.is_err(), "the key does not fit");
}

#[test]
fn a_call_that_hangs_is_counted_until_its_client_gives_up() {
    let (scene, identity) = scene();
    let ca = scene.istiod.ca();
    ca.behave_for(&identity, CaBehaviour::Hang);
    scene.istiod.push(|world| world.enrol(&scene.pods[1]));
    let client = scene.client.clone();
    let asked = request(&identity, csr(&identity));
    let hanging = scene.client.start_certificate(asked);
    ca.wait_requests("the request", |requests| (requests.len() == 1).then_some(())).unwrap();
    assert_eq!(ca.in_flight(), 1);
    assert!(ask(&client, &scene.pods[1].identity()).is_ok());
    assert_eq!(ca.most_in_flight(), 2);
    drop(hanging);
    lab::wait_until(|| ca.in_flight() == 0).unwrap();
    assert_eq!(ca.requests()[0].outcome, Some(Code::Cancelled));
}

#[test]
fn roots_are_rotated_in_three_steps_and_istiods_own_certificate_with_them() {
    let (scene, identity) = scene();
    let ca = scene.istiod.ca();
    let count = |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).count();
    let old = ca.roots();
    ca.add_root().unwrap();
    let both = ca.roots();
    assert_eq!(count(&both), 2);
    assert!(both.starts_with(&old), "the one that issues comes first");
    assert_eq!(ask(&scene.client, &identity).unwrap().last(), Some(&both));

    ca.issue_from_newest_root();
    // A client that has only the old root does not trust istiod any more, one with both does.
    assert_eq!(scene.client.stream().end().0, Code::Unavailable);
    let client = Client::new(&scene.east, &scene.istiod, TOKEN);
    assert_eq!(count(ask(&client, &identity).unwrap().last().unwrap()), 2);
    ca.retire_older_roots();
    assert_eq!(count(&ca.roots()), 1);
    assert_ne!(ca.roots(), old);
    assert!(ask(&Client::new(&scene.east, &scene.istiod, TOKEN), &identity).is_ok());
}

#[test]
fn revoked_certificates_are_listed_by_their_issuer() {
    let (scene, identity) = scene();
    let ca = scene.istiod.ca();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca-crl.pem");
    let listed = || {
        ca.write_revocations(&path).unwrap();
        let text = std::fs::read(&path).unwrap();
        let lists = CertificateRevocationListDer::pem_slice_iter(&text);
        lists
            .map(|list| {
                let list = list.unwrap();
                let (_, list) = CertificateRevocationList::from_der(&list).unwrap();
                list.iter_revoked_certificates().map(|revoked| revoked.serial().clone()).collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
    };
    assert!(ca.revoke(&identity).is_err(), "nothing has been issued yet");
    assert_eq!(listed(), [vec![], vec![]], "the root's list and the intermediate's");

    let elements = ask(&scene.client, &identity).unwrap();
    let leaf = CertificateDer::from_pem_slice(elements[0].as_bytes()).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    ca.use_intermediates(true);
    ask(&scene.client, &identity).unwrap();
    ca.revoke(&identity).unwrap();
    let lists = listed();
    assert_eq!(lists[0], std::slice::from_ref(&leaf.serial));
    assert_eq!(lists[1].len(), 1);
    ca.reinstate();
    assert_eq!(listed(), [vec![], vec![]]);
}
