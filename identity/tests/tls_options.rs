//! What the operator decides about TLS, seen by peers.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::sync::Arc;

use identity::{
    CipherPreference, HandshakeFailure, KeyExchange, Tls, TlsOptions, TlsVersions, WorkloadCertificate,
};
use rustls::crypto::aws_lc_rs::{cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, CipherSuite, ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion,
    SupportedCipherSuite, SupportedProtocolVersion,
};
use support::handshake::{Handshake, client_with, connect};
use support::{Authority, CLIENT, SERVER, id};

/// A client of `authority` that speaks one version, and what it is given of suites and groups.
fn client_limited_to(
    authority: &Authority,
    version: &'static SupportedProtocolVersion,
    suites: Vec<SupportedCipherSuite>,
    groups: Vec<&'static dyn SupportedKxGroup>,
) -> Arc<ClientConfig> {
    let provider =
        CryptoProvider { cipher_suites: suites, kx_groups: groups, ..aws_lc_rs::default_provider() };
    Arc::new(client_with(Some(authority.credentials(&[CLIENT], |_| {})), provider, &[version]))
}

fn suites() -> Vec<SupportedCipherSuite> {
    aws_lc_rs::default_provider().cipher_suites
}

fn groups() -> Vec<&'static dyn SupportedKxGroup> {
    aws_lc_rs::default_provider().kx_groups
}

fn workload(authority: &Authority, uri: &str, options: TlsOptions) -> WorkloadCertificate {
    authority.workload_using(uri, &Tls::new(options))
}

fn suite_of(handshake: &Handshake) -> CipherSuite {
    handshake.server.negotiated_cipher_suite().unwrap().suite()
}

#[test]
fn under_the_hybrid_policy_two_workloads_agree_on_the_hybrid_group_at_the_first_attempt() {
    let authority = Authority::root("root");
    for versions in [TlsVersions::Tls13, TlsVersions::Tls12And13] {
        let options = TlsOptions { key_exchange: KeyExchange::HybridOnly, versions, ..Default::default() };
        let [client, server] = [CLIENT, SERVER].map(|uri| workload(&authority, uri, options));
        let handshake = connect(&client, &server, &[SERVER]).succeeded();
        for group in [
            handshake.client.negotiated_key_exchange_group(),
            handshake.server.negotiated_key_exchange_group(),
        ] {
            assert_eq!(group.unwrap().name(), NamedGroup::X25519MLKEM768);
        }
        assert_eq!(handshake.server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(handshake.server.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    }
}

#[test]
fn under_the_hybrid_policy_nobody_without_the_hybrid_group_gets_in_and_no_such_server_is_used() {
    let authority = Authority::root("root");
    let options = TlsOptions {
        key_exchange: KeyExchange::HybridOnly,
        versions: TlsVersions::Tls12And13,
        ..Default::default()
    };
    let server = workload(&authority, SERVER, options).server_config();
    let classical = vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
    let client = client_limited_to(&authority, &TLS13, suites(), classical.clone());
    let error = Handshake::between(client, server.clone()).server_refused(AlertDescription::HandshakeFailure);
    assert_eq!(HandshakeFailure::from(&error), HandshakeFailure::Protocol);
    let client = client_limited_to(&authority, &TLS12, suites(), classical.clone());
    Handshake::between(client, server).server_refused(AlertDescription::ProtocolVersion);

    // A server of classical groups alone finds nothing in what we offer.
    let provider = CryptoProvider { kx_groups: classical, ..aws_lc_rs::default_provider() };
    let builder = rustls::ServerConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_protocol_versions(rustls::ALL_VERSIONS).unwrap().with_no_client_auth();
    let server = Arc::new(builder.with_cert_resolver(authority.credentials(&[SERVER], |_| {})));
    let client = workload(&authority, CLIENT, options).client_config(&id(SERVER).into());
    Handshake::between(client, server).server_refused(AlertDescription::HandshakeFailure);
}

#[test]
fn the_client_decides_between_the_key_lengths_by_its_order() {
    let authority = Authority::root("root");
    let with = |uri, ciphers| workload(&authority, uri, TlsOptions { ciphers, ..Default::default() });
    for (client, suite) in [
        (CipherPreference::Aes128First, CipherSuite::TLS13_AES_128_GCM_SHA256),
        (CipherPreference::Aes256First, CipherSuite::TLS13_AES_256_GCM_SHA384),
        (CipherPreference::Aes256Only, CipherSuite::TLS13_AES_256_GCM_SHA384),
    ] {
        for server in [CipherPreference::Aes128First, CipherPreference::Aes256First] {
            let handshake = connect(&with(CLIENT, client), &with(SERVER, server), &[SERVER]).succeeded();
            assert_eq!(suite_of(&handshake), suite, "{client:?} to {server:?}");
        }
        let strict = with(SERVER, CipherPreference::Aes256Only);
        let handshake = connect(&with(CLIENT, client), &strict, &[SERVER]).succeeded();
        assert_eq!(suite_of(&handshake), CipherSuite::TLS13_AES_256_GCM_SHA384);
    }
}

#[test]
fn where_the_short_key_is_forbidden_a_client_that_has_no_other_is_refused() {
    let authority = Authority::root("root");
    let options = TlsOptions {
        ciphers: CipherPreference::Aes256Only,
        versions: TlsVersions::Tls12And13,
        ..Default::default()
    };
    let server = workload(&authority, SERVER, options).server_config();
    for (version, suite) in [
        (&TLS13, cipher_suite::TLS13_AES_128_GCM_SHA256),
        (&TLS13, cipher_suite::TLS13_CHACHA20_POLY1305_SHA256),
        (&TLS12, cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ] {
        let client = client_limited_to(&authority, version, vec![suite], groups());
        Handshake::between(client, server.clone()).server_refused(AlertDescription::HandshakeFailure);
    }
}

#[test]
fn nobody_is_served_with_chacha20() {
    let authority = Authority::root("root");
    let server = authority.workload(SERVER).server_config();
    let only = vec![cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];
    let client = client_limited_to(&authority, &TLS13, only, groups());
    Handshake::between(client, server).server_refused(AlertDescription::HandshakeFailure);
}

#[test]
fn tls12_is_spoken_with_the_suites_for_our_kind_of_key() {
    let authority = Authority::root("root");
    for (ciphers, expected) in [
        (CipherPreference::Aes128First, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        (CipherPreference::Aes256Only, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ] {
        let options = TlsOptions { versions: TlsVersions::Tls12And13, ciphers, ..Default::default() };
        let server = workload(&authority, SERVER, options).server_config();
        let order = vec![
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        ];
        let client = client_limited_to(&authority, &TLS12, order, groups());
        let handshake = Handshake::between(client, server).succeeded();
        assert_eq!(suite_of(&handshake), expected);
        assert_eq!(handshake.server.protocol_version(), Some(ProtocolVersion::TLSv1_2));
    }
}

#[test]
fn tls12_is_spoken_only_if_the_operator_allows_it_and_judges_peers_alike() {
    let authority = Authority::root("root");
    let client = |name| {
        let credentials = authority.credentials(&[name], |_| {});
        Arc::new(client_with(Some(credentials), aws_lc_rs::default_provider(), &[&rustls::version::TLS12]))
    };
    let strict = authority.workload(SERVER).server_config();
    Handshake::between(client(CLIENT), strict).server_refused(AlertDescription::ProtocolVersion);

    let options = TlsOptions { versions: TlsVersions::Tls12And13, ..Default::default() };
    let lenient = authority.workload_using(SERVER, &Tls::new(options));
    let handshake = Handshake::between(client(CLIENT), lenient.server_config()).succeeded();
    assert_eq!(handshake.server.protocol_version(), Some(ProtocolVersion::TLSv1_2));
    let stranger = client("spiffe://other.domain/ns/default/sa/client");
    Handshake::between(stranger, lenient.server_config())
        .server_refused(AlertDescription::CertificateUnknown);
    connect(&lenient, &authority.workload(CLIENT), &[CLIENT]).succeeded();
}

#[test]
fn peers_limited_to_nist_curves_or_to_the_hybrid_group_are_understood() {
    let authority = Authority::root("root");
    for group in [aws_lc_rs::kx_group::SECP256R1, aws_lc_rs::kx_group::SECP384R1] {
        let provider = CryptoProvider { kx_groups: vec![group], ..aws_lc_rs::default_provider() };
        let credentials = authority.credentials(&[CLIENT], |_| {});
        let client = client_with(Some(credentials), provider, &[&rustls::version::TLS13]);
        let handshake = Handshake::between(Arc::new(client), authority.workload(SERVER).server_config());
        let handshake = handshake.succeeded();
        assert_eq!(handshake.server.negotiated_key_exchange_group().unwrap().name(), group.name());
    }
    let options = TlsOptions { key_exchange: KeyExchange::HybridOnly, ..Default::default() };
    let hybrid = authority.workload_using(SERVER, &Tls::new(options));
    let handshake = connect(&authority.workload(CLIENT), &hybrid, &[SERVER]).succeeded();
    assert_eq!(handshake.client.handshake_kind(), Some(HandshakeKind::FullWithHelloRetryRequest));
    connect(&hybrid, &authority.workload(CLIENT), &[CLIENT]).succeeded();
}
