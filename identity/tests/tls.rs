//! Handshakes in memory between workloads, and between workloads and peers that are not what they should be.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::sync::Arc;
use std::time::SystemTime;

use identity::{
    CertificateChain, ChainError, ExpectedPeers, HandshakeFailure, PeerIdentityError, PeerRefused,
    PrivateKey, Tls, TlsOptions, WorkloadCertificate, WorkloadCertificateError, peer_identity,
};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    AlertDescription, CertificateError, CipherSuite, Error, HandshakeKind, NamedGroup, ProtocolVersion,
};
use rustls_pki_types::{CertificateDer, ServerName};
use support::handshake::{Handshake, any_client, any_server, connect};
use support::{Authority, CLIENT, MINUTE, SERVER, id, validity};

fn refusal(error: &Error) -> &PeerRefused {
    let Error::InvalidCertificate(CertificateError::Other(reason)) = error else { panic!("{error:?}") };
    reason.0.downcast_ref().unwrap()
}

#[test]
fn two_workloads_speak_tls13_with_aes128_and_http2_and_know_each_other() {
    let authority = Authority::root("root");
    let handshake = connect(&authority.workload(CLIENT), &authority.workload(SERVER), &[SERVER]).succeeded();
    assert_eq!(handshake.client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(
        handshake.client.negotiated_cipher_suite().unwrap().suite(),
        CipherSuite::TLS13_AES_128_GCM_SHA256
    );
    assert_eq!(handshake.client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519);
    assert_eq!(handshake.client.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(handshake.server.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(peer_identity(handshake.client.peer_certificates().unwrap()), Ok(id(SERVER)));
    assert_eq!(peer_identity(handshake.server.peer_certificates().unwrap()), Ok(id(CLIENT)));
}

#[test]
fn a_server_name_that_is_given_all_the_same_is_neither_sent_nor_compared() {
    let authority = Authority::root("root");
    let client = authority.workload(CLIENT).client_config(&id(SERVER).into());
    let name = ServerName::try_from("example.org").unwrap();
    let handshake = Handshake::named(name, client, authority.workload(SERVER).server_config()).succeeded();
    assert_eq!(handshake.server.server_name(), None);
}

#[test]
fn no_session_is_resumed_and_no_ticket_is_sent() {
    let authority = Authority::root("root");
    let (client, server) = (authority.workload(CLIENT), authority.workload(SERVER));
    for _ in 0..3 {
        let handshake = connect(&client, &server, &[SERVER]).succeeded();
        assert_eq!(handshake.server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(handshake.client.tls13_tickets_received(), 0);
    }
}

#[test]
fn a_client_that_keeps_tickets_gets_a_full_handshake_every_time() {
    let authority = Authority::root("root");
    let server = authority.workload(SERVER);
    let client = Arc::new(any_client(Some(authority.credentials(&[CLIENT], |_| {}))));
    for _ in 0..2 {
        let handshake = Handshake::between(client.clone(), server.server_config()).succeeded();
        assert_eq!(handshake.server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(handshake.client.tls13_tickets_received(), 0);
    }
}

#[test]
fn any_one_of_several_expected_peers_will_do() {
    let authority = Authority::root("root");
    let other = "spiffe://cluster.local/ns/default/sa/other";
    connect(&authority.workload(CLIENT), &authority.workload(SERVER), &[other, SERVER]).succeeded();
}

#[test]
fn a_server_that_was_not_expected_is_refused() {
    let authority = Authority::root("root");
    for expected in
        ["spiffe://cluster.local/ns/default/sa/other", "spiffe://other.domain/ns/default/sa/server"]
    {
        let handshake = connect(&authority.workload(CLIENT), &authority.workload(SERVER), &[expected]);
        let error = handshake.client_refused(AlertDescription::CertificateUnknown);
        assert_eq!(refusal(&error), &PeerRefused::Unexpected { peer: id(SERVER) });
        assert_eq!(HandshakeFailure::from(&error), HandshakeFailure::UnexpectedIdentity);
    }
}

#[test]
fn nobody_satisfies_an_empty_expectation() {
    let authority = Authority::root("root");
    let handshake = connect(&authority.workload(CLIENT), &authority.workload(SERVER), &[]);
    let error = handshake.client_refused(AlertDescription::CertificateUnknown);
    assert_eq!(refusal(&error), &PeerRefused::Unexpected { peer: id(SERVER) });
}

#[test]
fn a_client_of_another_trust_domain_is_refused() {
    let authority = Authority::root("root");
    let stranger = "spiffe://other.domain/ns/default/sa/client";
    let handshake = connect(&authority.workload(stranger), &authority.workload(SERVER), &[SERVER]);
    let error = handshake.server_refused(AlertDescription::CertificateUnknown);
    let ours = "cluster.local".to_owned();
    assert_eq!(refusal(&error), &PeerRefused::TrustDomain { peer: id(stranger), ours });
    assert_eq!(HandshakeFailure::from(&error), HandshakeFailure::TrustDomain);
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let server = Authority::root("root").workload(SERVER);
    let handshake = Handshake::between(Arc::new(any_client(None)), server.server_config());
    let error = handshake.server_refused(AlertDescription::CertificateRequired);
    assert_eq!(error, Error::NoCertificatesPresented);
    assert_eq!(HandshakeFailure::from(&error), HandshakeFailure::NoCertificate);
}

/// What each leaf is refused for, as a client and as a server alike.
fn refused_in_both_roles(
    credentials: impl Fn(&Authority) -> Arc<SingleCertAndKey>,
    alert: AlertDescription,
    reason: HandshakeFailure,
    check: impl Fn(&Error),
) {
    let check = |error: Error| {
        assert_eq!(HandshakeFailure::from(&error), reason);
        let told = HandshakeFailure::from(&Error::AlertReceived(alert));
        assert_eq!(told, HandshakeFailure::OurRefused, "as the peer sees it");
        check(&error);
    };
    let authority = Authority::root("root");
    let client = Arc::new(any_client(Some(credentials(&authority))));
    let handshake = Handshake::between(client, authority.workload(SERVER).server_config());
    check(handshake.server_refused(alert));

    let client = authority.workload(CLIENT).client_config(&id(SERVER).into());
    let handshake = Handshake::between(client, any_server(credentials(&authority)));
    check(handshake.client_refused(alert));
}

#[test]
fn a_leaf_with_two_spiffe_names_is_refused() {
    for names in [[CLIENT, SERVER], [SERVER, CLIENT], [SERVER, SERVER], [SERVER, "SPIFFE://cluster.local/x"]]
    {
        refused_in_both_roles(
            |authority| authority.credentials(&names, |_| {}),
            AlertDescription::CertificateUnknown,
            HandshakeFailure::NoIdentity,
            |error| assert_eq!(refusal(error), &PeerRefused::NoIdentity(PeerIdentityError::SeveralNames)),
        );
    }
}

#[test]
fn a_leaf_without_a_spiffe_name_is_refused() {
    refused_in_both_roles(
        |authority| authority.credentials(&["https://cluster.local/ns/default/sa/server"], |_| {}),
        AlertDescription::CertificateUnknown,
        HandshakeFailure::NoIdentity,
        |error| assert_eq!(refusal(error), &PeerRefused::NoIdentity(PeerIdentityError::NoName)),
    );
}

#[test]
fn a_spiffe_name_that_is_no_istio_identity_is_refused() {
    refused_in_both_roles(
        |authority| authority.credentials(&["spiffe://cluster.local/workload/server"], |_| {}),
        AlertDescription::CertificateUnknown,
        HandshakeFailure::NoIdentity,
        |error| assert!(matches!(refusal(error), PeerRefused::NoIdentity(PeerIdentityError::Name(_)))),
    );
}

#[test]
fn an_expired_leaf_is_refused() {
    refused_in_both_roles(
        |authority| {
            let now = SystemTime::now();
            authority.credentials(&[SERVER], |params| validity(params, now - 2 * MINUTE, now - MINUTE))
        },
        AlertDescription::CertificateExpired,
        HandshakeFailure::Expired,
        |error| {
            let Error::InvalidCertificate(error) = error else { panic!("{error:?}") };
            assert!(matches!(error, CertificateError::ExpiredContext { .. }), "{error:?}");
        },
    );
}

#[test]
fn a_leaf_that_is_not_valid_yet_is_refused() {
    refused_in_both_roles(
        |authority| {
            let now = SystemTime::now();
            authority.credentials(&[SERVER], |params| validity(params, now + MINUTE, now + 2 * MINUTE))
        },
        AlertDescription::CertificateExpired,
        HandshakeFailure::NotYetValid,
        |error| {
            let Error::InvalidCertificate(error) = error else { panic!("{error:?}") };
            assert!(matches!(error, CertificateError::NotValidYetContext { .. }), "{error:?}");
        },
    );
}

#[test]
fn a_leaf_of_an_unknown_authority_is_refused_even_if_the_authority_has_the_name_of_ours() {
    refused_in_both_roles(
        |_| Authority::root("root").credentials(&[SERVER], |_| {}),
        AlertDescription::DecryptError,
        HandshakeFailure::UnknownIssuer,
        |error| assert_eq!(*error, CertificateError::BadSignature.into()),
    );
    refused_in_both_roles(
        |_| Authority::root("stranger").credentials(&[SERVER], |_| {}),
        AlertDescription::UnknownCA,
        HandshakeFailure::UnknownIssuer,
        |error| assert_eq!(*error, CertificateError::UnknownIssuer.into()),
    );
}

#[test]
fn a_leaf_for_another_usage_is_refused() {
    refused_in_both_roles(
        |authority| {
            authority.credentials(&[SERVER], |params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
            })
        },
        AlertDescription::UnsupportedCertificate,
        HandshakeFailure::Usage,
        |error| assert_eq!(*error, CertificateError::InvalidPurpose.into()),
    );
}

#[test]
fn a_leaf_that_cannot_be_decoded_is_refused() {
    refused_in_both_roles(
        |_| {
            let garbage = CertificateDer::from(b"\x30\x03garbage".to_vec());
            Arc::new(CertifiedKey::new(vec![garbage], Arc::new(PrivateKey::generate().unwrap())).into())
        },
        AlertDescription::BadCertificate,
        HandshakeFailure::BadCertificate,
        |error| assert_eq!(*error, CertificateError::BadEncoding.into()),
    );
}

#[test]
fn usages_limited_to_the_other_role_are_refused() {
    let authority = Authority::root("root");
    let server_only = authority.credentials(&[CLIENT], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let server = authority.workload(SERVER).server_config();
    let handshake = Handshake::between(Arc::new(any_client(Some(server_only))), server);
    handshake.server_refused(AlertDescription::UnsupportedCertificate);

    let client_only = authority.credentials(&[SERVER], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let client = authority.workload(CLIENT).client_config(&id(SERVER).into());
    Handshake::between(client, any_server(client_only))
        .client_refused(AlertDescription::UnsupportedCertificate);
}

#[test]
fn a_leaf_without_usages_may_be_used_in_both_roles_and_other_names_beside_the_spiffe_one_do_not_count() {
    let authority = Authority::root("root");
    let credentials = |name| {
        authority.credentials(&["https://example.org/", name], |params| params.extended_key_usages.clear())
    };
    let client = Arc::new(any_client(Some(credentials(CLIENT))));
    Handshake::between(client, authority.workload(SERVER).server_config()).succeeded();
    let client = authority.workload(CLIENT).client_config(&id(SERVER).into());
    Handshake::between(client, any_server(credentials(SERVER))).succeeded();
}

#[test]
fn leaves_of_different_roots_are_accepted_while_both_roots_are_in_the_bundle() {
    let (old, new) = (Authority::root("root"), Authority::root("root"));
    let bundle = [&old.root[..], &new.root];
    let (client, server) = (old.workload_trusting(CLIENT, &bundle), new.workload_trusting(SERVER, &bundle));
    connect(&client, &server, &[SERVER]).succeeded();
    connect(&server, &client, &[CLIENT]).succeeded();
    connect(&old.workload(CLIENT), &server, &[SERVER]).client_refused(AlertDescription::DecryptError);
}

#[test]
fn a_root_that_cannot_be_used_does_not_spoil_the_others_but_cannot_stand_alone() {
    let (good, bad) = (Authority::root("good"), Authority::unusable_root("bad"));
    let client = good.workload_trusting(CLIENT, &[&bad.root, &good.root]);
    connect(&client, &good.workload(SERVER), &[SERVER]).succeeded();
    let alone = good.try_workload(CLIENT, CLIENT, &[&bad.root], |_| {}, SystemTime::now());
    assert!(matches!(alone, Err(WorkloadCertificateError::Chain(ChainError::NoRoots))), "{alone:?}");
}

#[test]
fn a_chain_is_presented_with_its_intermediates() {
    let root = Authority::root("root");
    let below = root.intermediate("one").intermediate("two");
    let handshake = connect(&below.workload(CLIENT), &root.workload(SERVER), &[SERVER]).succeeded();
    assert_eq!(handshake.server.peer_certificates().unwrap().len(), 3, "the root is not among them");
    connect(&root.workload(CLIENT), &below.workload(SERVER), &[SERVER]).succeeded();
}

#[test]
fn a_client_must_offer_http2_if_it_offers_any_protocol() {
    let authority = Authority::root("root");
    let connect = |protocols: &[&[u8]]| {
        let mut client = any_client(Some(authority.credentials(&[CLIENT], |_| {})));
        client.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Handshake::between(Arc::new(client), authority.workload(SERVER).server_config())
    };
    let error = connect(&[b"http/1.1"]).server_refused(AlertDescription::NoApplicationProtocol);
    assert_eq!(error, Error::NoApplicationProtocol);
    assert_eq!(HandshakeFailure::from(&error), HandshakeFailure::Protocol);
    assert_eq!(connect(&[b"http/1.1", b"h2"]).succeeded().server.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(connect(&[]).succeeded().server.alpn_protocol(), None);
}

#[test]
fn one_configuration_serves_all_connections_with_the_same_expectation() {
    let client = Authority::root("root").workload(CLIENT);
    let expected = |uris: &[&str]| uris.iter().map(|uri| id(uri)).collect::<ExpectedPeers>();
    let first = client.client_config(&expected(&[SERVER, CLIENT]));
    assert!(Arc::ptr_eq(&first, &client.client_config(&expected(&[CLIENT, SERVER]))));
    assert!(!Arc::ptr_eq(&first, &client.client_config(&expected(&[SERVER]))));
    assert!(Arc::ptr_eq(&client.server_config(), &client.server_config()));
}

#[test]
fn a_certificate_for_somebody_else_is_not_taken_into_use() {
    let authority = Authority::root("root");
    let result = authority.try_workload(CLIENT, SERVER, &[&authority.root], |_| {}, SystemTime::now());
    match result {
        Err(WorkloadCertificateError::Identity { issued }) => assert_eq!(issued, id(SERVER)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_expired_certificate_is_not_taken_into_use_and_a_future_one_is() {
    let authority = Authority::root("root");
    let at = |now| authority.try_workload(CLIENT, CLIENT, &[&authority.root], |_| {}, now);
    let now = SystemTime::now();
    assert!(matches!(at(now + 61 * MINUTE), Err(WorkloadCertificateError::Expired)));
    assert!(at(now - 10 * MINUTE).is_ok());
}

#[test]
fn a_certificate_for_another_key_is_not_taken_into_use() {
    let authority = Authority::root("root");
    let (key, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let elements = authority.elements(authority.sign(&[CLIENT], &other, |_| {}), &[&authority.root]);
    let chain = CertificateChain::from_pem_elements(&elements).unwrap();
    let tls = Tls::new(TlsOptions::default());
    let result = WorkloadCertificate::new(&id(CLIENT), key, chain, &tls, SystemTime::now());
    assert!(matches!(result, Err(WorkloadCertificateError::Key(_))), "{result:?}");
}
