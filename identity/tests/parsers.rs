//! What authorities and peers send, correct, damaged and invented.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::sync::LazyLock;

use identity::{CertificateChain, ChainError, PeerIdentityError, PrivateKey, peer_identity};
use proptest::prelude::*;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use support::{Authority, CLIENT, SERVER, id};

struct Issued {
    root: String,
    intermediate: String,
    leaf: String,
    /// Of the same root, without any name.
    nameless: String,
}

static ISSUED: LazyLock<Issued> = LazyLock::new(|| {
    let root = Authority::root("root");
    let below = root.intermediate("intermediate");
    let key = PrivateKey::generate().unwrap();
    let elements = below.elements(below.sign(&[CLIENT], &key, |_| {}), &[&root.root]);
    let [leaf, intermediate, root_pem] = <[String; 3]>::try_from(elements).unwrap();
    Issued { root: root_pem, intermediate, leaf, nameless: root.sign(&[], &key, |_| {}) }
});

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn parse(elements: &[&str]) -> Result<CertificateChain, ChainError> {
    CertificateChain::from_pem_elements(elements)
}

#[test]
fn the_first_element_is_the_leaf_the_last_the_roots_and_the_rest_intermediates() {
    let Issued { root, intermediate, leaf, .. } = &*ISSUED;
    let chain = parse(&[leaf, intermediate, intermediate, root]).unwrap();
    assert_eq!(chain.identity, id(CLIENT));
    assert_eq!(chain.leaf.der, der(leaf));
    assert_eq!(chain.intermediates.len(), 2);
    assert_eq!(chain.roots.len(), 1);
    assert_eq!(chain.presented(), [der(leaf), der(intermediate), der(intermediate)]);
}

#[test]
fn every_certificate_of_the_last_element_is_a_root_and_only_the_first_of_the_others_counts() {
    let Issued { root, intermediate, leaf, .. } = &*ISSUED;
    let (bundle, several) = ([&root[..], root].concat(), [&leaf[..], intermediate].concat());
    let chain = parse(&[&several, &bundle]).unwrap();
    assert_eq!(chain.leaf.der, der(leaf));
    assert_eq!(chain.intermediates.len(), 0);
    assert_eq!(chain.roots.len(), 2);
}

#[test]
fn serial_numbers_are_decimal_and_times_those_of_the_certificate() {
    let authority = Authority::root("root");
    let leaf = authority.sign(&[CLIENT], &PrivateKey::generate().unwrap(), |params| {
        params.serial_number = Some(0x0102_0304_u64.into());
        params.not_before = rcgen::date_time_ymd(2030, 1, 2);
        params.not_after = rcgen::date_time_ymd(2030, 1, 3);
    });
    let leaf = parse(&[&leaf, &authority.root]).unwrap().leaf;
    assert_eq!(leaf.serial_number, "16909060");
    assert_eq!(leaf.not_before, rcgen::date_time_ymd(2030, 1, 2));
    assert_eq!(leaf.not_after, rcgen::date_time_ymd(2030, 1, 3));
}

#[test]
fn a_chain_without_leaf_or_root_is_refused() {
    let Issued { root, leaf, .. } = &*ISSUED;
    assert!(matches!(parse(&[]), Err(ChainError::Empty)));
    assert!(matches!(parse(&[leaf]), Err(ChainError::NoRoots)));
    assert!(matches!(parse(&[leaf, ""]), Err(ChainError::NoRoots)));
    assert!(matches!(parse(&["", root]), Err(ChainError::NotACertificate { position: 0 })));
    assert!(matches!(parse(&[leaf, "text", root]), Err(ChainError::NotACertificate { position: 1 })));
}

#[test]
fn the_element_at_fault_is_named() {
    let Issued { root, intermediate, leaf, .. } = &*ISSUED;
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let with_key = [&root[..], key].concat();
    assert!(matches!(
        parse(&[leaf, intermediate, &with_key]),
        Err(ChainError::NotACertificate { position: 2 })
    ));
    let not_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(parse(&[leaf, not_der, root]), Err(ChainError::Encoding { position: 1 })));
    let not_base64 = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    assert!(matches!(parse(&[leaf, intermediate, not_base64]), Err(ChainError::Pem { position: 2, .. })));
}

#[test]
fn a_leaf_must_have_one_identity() {
    let Issued { root, nameless, .. } = &*ISSUED;
    let error = parse(&[nameless, root]).unwrap_err();
    assert!(matches!(error, ChainError::Identity(PeerIdentityError::NoName)), "{error:?}");
    let authority = Authority::root("root");
    let two = authority.sign(&[CLIENT, SERVER], &PrivateKey::generate().unwrap(), |_| {});
    let error = parse(&[&two, root]).unwrap_err();
    assert!(matches!(error, ChainError::Identity(PeerIdentityError::SeveralNames)), "{error:?}");
}

#[test]
fn a_peer_without_certificates_has_no_identity() {
    assert_eq!(peer_identity(&[]), Err(PeerIdentityError::NoCertificate));
}

#[test]
fn bytes_behind_a_certificate_are_not_overlooked() {
    let mut longer = der(&ISSUED.leaf).to_vec();
    assert_eq!(peer_identity(&[longer.clone().into()]), Ok(id(CLIENT)));
    longer.push(0);
    assert_eq!(peer_identity(&[longer.into()]), Err(PeerIdentityError::Encoding));
}

/// Changes to a byte string: where, and what to put there.
fn damage() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
}

proptest! {
    #[test]
    fn a_damaged_leaf_is_read_or_refused_and_never_read_as_what_it_does_not_say(
        damage in damage(),
        length in any::<prop::sample::Index>(),
        truncate in prop::bool::weighted(0.2),
    ) {
        let mut bytes = der(&ISSUED.leaf).to_vec();
        for (position, value) in damage {
            let position = position.index(bytes.len());
            bytes[position] = value;
        }
        if truncate {
            bytes.truncate(length.index(bytes.len()));
        }
        if let Ok(identity) = peer_identity(&[bytes.clone().into()]) {
            let name = identity.as_str().as_bytes();
            prop_assert!(bytes.windows(name.len()).any(|window| window == name));
        }
    }

    #[test]
    fn invented_bytes_identify_nobody(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(peer_identity(&[bytes.into()]).is_err());
    }

    #[test]
    fn a_damaged_chain_is_read_or_refused(damage in damage(), element in 0usize..3) {
        let Issued { root, intermediate, leaf, .. } = &*ISSUED;
        let mut elements = [leaf.clone(), intermediate.clone(), root.clone()].map(String::into_bytes);
        for (position, value) in damage {
            let position = position.index(elements[element].len());
            elements[element][position] = value & 0x7f;
        }
        let elements = elements.map(|element| String::from_utf8(element).unwrap());
        if let Ok(chain) = CertificateChain::from_pem_elements(&elements) {
            prop_assert_eq!(chain.intermediates.len(), 1);
            prop_assert!(!chain.roots.is_empty());
        }
    }

    #[test]
    fn invented_chains_are_refused(elements in prop::collection::vec(".{0,200}", 0..4)) {
        prop_assert!(CertificateChain::from_pem_elements(&elements).is_err());
    }
}
