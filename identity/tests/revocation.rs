//! Revocation: handshakes under lists of all kinds, and connections that outlive them.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::{
    BySide, CertificateStore, HandshakeFailure, IssueFuture, IssuedChain, Issuer, RequestOutcome,
    RevocationCounts, Revocations, Side, SpiffeId, StoreOptions, Tls, TlsOptions,
};
use rcgen::KeyUsagePurpose;
use rustls::AlertDescription;
use rustls_pki_types::CertificateDer;
use support::handshake::connect;
use support::lists::{Lists, Warnings, is_revoked, leaf, refused_by_server, watched};
use support::{Authority, CLIENT, SERVER, id, validity};

#[tokio::test(start_paused = true)]
async fn a_revoked_leaf_is_refused_by_either_end_and_each_counts_its_own_refusals() {
    let root = Authority::root("root");
    let (client, server) = (root.workload(CLIENT), root.workload(SERVER));
    let lists = Lists::starting_with(Some(&root.crl(&[leaf(&client), leaf(&server)])));
    let (careful_client, careful_server) =
        (root.workload_using(CLIENT, &lists.tls()), root.workload_using(SERVER, &lists.tls()));
    refused_by_server(&client, &careful_server);
    assert_eq!(lists.counts().refused, BySide { source: 0, destination: 1 });

    let handshake = connect(&careful_client, &server, &[SERVER]);
    let error = handshake.client_refused(AlertDescription::CertificateRevoked);
    assert_eq!(HandshakeFailure::of(&error), Some(HandshakeFailure::Revoked));
    assert_eq!(lists.counts().refused, BySide { source: 1, destination: 1 });
    connect(&careful_client, &careful_server, &[SERVER]).succeeded();
}

#[tokio::test(start_paused = true)]
async fn a_revoked_intermediate_takes_its_leaves_with_it() {
    let root = Authority::root("root");
    let one = root.intermediate("one");
    let two = one.intermediate("two");
    let lists = Lists::starting_with(Some(&root.crl(&[&one.certificate()])));
    let server = root.workload_using(SERVER, &lists.tls());
    refused_by_server(&one.workload(CLIENT), &server);
    refused_by_server(&two.workload(CLIENT), &server);
    connect(&root.workload(CLIENT), &server, &[SERVER]).succeeded();
}

#[tokio::test(start_paused = true)]
async fn what_no_list_mentions_is_good_and_a_list_past_its_next_update_still_counts() {
    let (root, stranger) = (Authority::root("root"), Authority::root("stranger"));
    let (client, other) = (root.workload(CLIENT), root.workload(CLIENT));
    let lists = Lists::starting_with(Some(&[stranger.crl(&[leaf(&client)]), root.crl(&[])].concat()));
    let server = root.workload_using(SERVER, &lists.tls());
    connect(&client, &server, &[SERVER]).succeeded();
    lists.write(&[root.crl(&[leaf(&other)])]);
    lists.settled().await;
    connect(&client, &server, &[SERVER]).succeeded();
    refused_by_server(&other, &server);
}

#[tokio::test(start_paused = true)]
async fn of_several_lists_with_one_issuer_name_the_one_with_the_right_signature_decides() {
    let (old, new) = (Authority::root("root"), Authority::root("root"));
    let roots = [&old.root[..], &new.root];
    let (client, other) = (old.workload_trusting(CLIENT, &roots), new.workload_trusting(CLIENT, &roots));
    for order in [[&new, &old], [&old, &new]] {
        // Both list the client of the old root. Only the old root has a say in it.
        let contents = order.map(|authority| authority.crl(&[leaf(&client)])).concat();
        let lists = Lists::starting_with(Some(&contents));
        let server = new.workload_as(SERVER, &roots, &lists.tls(), |_| {});
        refused_by_server(&client, &server);
        connect(&other, &server, &[SERVER]).succeeded();
    }
    let lists = Lists::starting_with(Some(&new.crl(&[leaf(&client)])));
    let server = new.workload_as(SERVER, &roots, &lists.tls(), |_| {});
    connect(&client, &server, &[SERVER]).succeeded();
}

#[tokio::test(start_paused = true)]
async fn two_lists_of_one_issuer_both_count() {
    let root = Authority::root("root");
    let (one, two) = (root.workload(CLIENT), root.workload(CLIENT));
    let lists = Lists::starting_with(Some(&[root.crl(&[leaf(&one)]), root.crl(&[leaf(&two)])].concat()));
    assert_eq!(lists.revocations.lists(), 2);
    let server = root.workload_using(SERVER, &lists.tls());
    refused_by_server(&one, &server);
    refused_by_server(&two, &server);
}

#[tokio::test(start_paused = true)]
async fn a_list_of_an_authority_that_may_not_sign_lists_is_not_applied() {
    let root = Authority::root("root");
    let mute =
        root.intermediate_with("mute", |params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
    let plain = root.intermediate_with("plain", |params| params.key_usages = vec![]);
    let (of_mute, of_plain) = (mute.workload(CLIENT), plain.workload(CLIENT));
    let contents = [mute.crl(&[leaf(&of_mute)]), plain.crl(&[leaf(&of_plain)])].concat();
    let lists = Lists::starting_with(Some(&contents));
    let server = root.workload_using(SERVER, &lists.tls());
    connect(&of_mute, &server, &[SERVER]).succeeded();
    refused_by_server(&of_plain, &server);
}

#[tokio::test(start_paused = true)]
async fn a_root_that_issues_a_namesake_can_revoke_it() {
    // Issuer and intermediate have one name, so the list is tried for the leaf as well, where it has no say.
    let root = Authority::root("root");
    let namesake = root.intermediate("root");
    let client = namesake.workload(CLIENT);
    let lists = Lists::starting_with(Some(&root.crl(&[&namesake.certificate()])));
    refused_by_server(&client, &root.workload_using(SERVER, &lists.tls()));
}

#[tokio::test(start_paused = true)]
async fn our_own_revoked_certificate_is_known_to_be_so() {
    let root = Authority::root("root");
    let lists = Lists::starting_with(None);
    let (one, two) = (root.workload_using(CLIENT, &lists.tls()), root.workload_using(SERVER, &lists.tls()));
    assert!(!one.is_revoked());
    lists.write(&[root.crl(&[leaf(&one)])]);
    lists.settled().await;
    assert!(one.is_revoked() && !two.is_revoked());
}

/// Issues whatever is asked for.
struct Issuing(Arc<Authority>);

impl Issuer for Issuing {
    fn issue<'a>(&'a self, identity: &'a SpiffeId, csr_pem: &'a str) -> IssueFuture<'a> {
        let request = rcgen::CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        let leaf = self.0.sign(&[identity.as_str()], &request.public_key, |_| {});
        let chain = IssuedChain(self.0.elements(leaf, &[&self.0.root]));
        Box::pin(std::future::ready(Ok(chain)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_our_own_that_is_revoked_is_renewed_once_per_list() {
    let (warnings, _guard) = Warnings::of("our own certificate");
    let root = Arc::new(Authority::root("root"));
    let lists = Lists::starting_with(None);
    let issuer = Arc::new(Issuing(root.clone()));
    let (store, driver) = CertificateStore::new(issuer, lists.tls(), StoreOptions::default());
    let driver = tokio::spawn(driver.run(std::future::pending()));
    let revoked = store.certificate(&id(CLIENT)).await.unwrap();
    store.certificate(&id(SERVER)).await.unwrap();
    assert_eq!(warnings.count(), 0);
    lists.write(&[root.crl(&[leaf(&revoked)])]);
    lists.settled().await;
    assert_eq!(warnings.count(), 1);
    let renewed = store.current(&id(CLIENT)).unwrap();
    assert!(!Arc::ptr_eq(&renewed, &revoked) && !renewed.is_revoked());
    assert_eq!(issued(&store), 3, "the other one is good");
    // The same again revokes nothing that is held.
    lists.write(&[root.crl(&[leaf(&revoked), &root.certificate()])]);
    lists.settled().await;
    assert_eq!((warnings.count(), issued(&store)), (1, 3));
    driver.abort();
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_is_revoked_itself_is_asked_once_per_list_and_we_are_told() {
    let (warnings, _guard) = Warnings::of("our own certificate");
    let root = Authority::root("root");
    let below = Arc::new(root.intermediate("below"));
    let lists = Lists::starting_with(None);
    let issuer = Arc::new(Issuing(below.clone()));
    let (store, driver) = CertificateStore::new(issuer, lists.tls(), StoreOptions::default());
    let driver = tokio::spawn(driver.run(std::future::pending()));
    store.certificate(&id(CLIENT)).await.unwrap();
    for round in 1..=2 {
        let other = root.workload(SERVER);
        lists.write(&[root.crl(&[&below.certificate(), leaf(&other)])]);
        lists.settled().await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        // What was held, and what came instead.
        assert_eq!((warnings.count(), issued(&store)), (2 * round, 1 + round as u64));
    }
    driver.abort();
}

fn issued(store: &CertificateStore) -> u64 {
    store.requests().into_iter().find(|(outcome, _)| *outcome == RequestOutcome::Issued).unwrap().1
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_when_its_peer_is_revoked_and_not_before() {
    let root = Authority::root("root");
    let lists = Lists::starting_with(Some(&root.crl(&[])));
    let (client, other) = (root.workload(CLIENT), root.workload(CLIENT));
    let server = root.workload_using(SERVER, &lists.tls());
    let (mut watch, mut untouched) = (watched(&client, &server), watched(&other, &server));
    lists.write(&[Authority::root("stranger").crl(&[leaf(&client)])]);
    assert!(!is_revoked(&mut watch).await);
    lists.write(&[root.crl(&[leaf(&client)])]);
    assert!(is_revoked(&mut watch).await);
    assert!(is_revoked(&mut watch).await, "it stays revoked");
    assert!(!is_revoked(&mut untouched).await);
    let counts = lists.counts();
    assert_eq!(counts.ended, BySide { source: 0, destination: 1 });
    assert_eq!((counts.refused, counts.untracked), Default::default());
}

#[tokio::test(start_paused = true)]
async fn a_client_watches_its_server_alike() {
    let root = Authority::root("root");
    let lists = Lists::starting_with(None);
    let (client, server) = (root.workload_using(CLIENT, &lists.tls()), root.workload(SERVER));
    let connection = connect(&client, &server, &[SERVER]).succeeded();
    let mut watch = client.watch_peer(Side::Source, connection.client.peer_certificates().unwrap());
    lists.write(&[root.crl(&[leaf(&server)])]);
    assert!(is_revoked(&mut watch).await);
    assert_eq!(lists.counts().ended, BySide { source: 1, destination: 0 });
}

#[tokio::test(start_paused = true)]
async fn a_revoked_intermediate_ends_all_connections_below_it_and_none_of_its_namesake() {
    let root = Authority::root("root");
    let (one, sibling) = (root.intermediate("one"), root.intermediate("one"));
    let below = one.intermediate("two");
    let lists = Lists::starting_with(None);
    let server = root.workload_using(SERVER, &lists.tls());
    let mut ending: Vec<_> = (0..3).map(|_| watched(&one.workload(CLIENT), &server)).collect();
    ending.push(watched(&below.workload(CLIENT), &server));
    let survivor = sibling.workload(CLIENT);
    let mut staying = [watched(&survivor, &server), watched(&root.workload(CLIENT), &server)];
    // The list of `one` names a leaf of its namesake, which is not its to revoke.
    lists.write(&[one.crl(&[leaf(&survivor)]), root.crl(&[&one.certificate()])]);
    for watch in &mut ending {
        assert!(is_revoked(watch).await);
    }
    for watch in &mut staying {
        assert!(!is_revoked(watch).await);
    }
    assert_eq!(lists.counts().ended.destination, 4);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_came_between_handshake_and_watch_is_seen_at_once() {
    let root = Authority::root("root");
    let lists = Lists::starting_with(None);
    let client = root.workload(CLIENT);
    let server = root.workload_using(SERVER, &lists.tls());
    let connection = connect(&client, &server, &[SERVER]).succeeded();
    lists.write(&[root.crl(&[leaf(&client)])]);
    lists.settled().await;
    let mut watch = server.watch_peer(Side::Destination, connection.server.peer_certificates().unwrap());
    let at_once = std::future::poll_fn(|context| {
        let revoked = std::pin::pin!(watch.revoked());
        std::task::Poll::Ready(revoked.poll(context).is_ready())
    });
    assert!(at_once.await);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_has_expired_since_the_handshake_is_still_revoked() {
    let root = Authority::root("root");
    let lists = Lists::starting_with(None);
    let not_after = SystemTime::now() + Duration::from_secs(2);
    let change = |params: &mut rcgen::CertificateParams| {
        validity(params, SystemTime::now() - Duration::from_secs(60), not_after);
    };
    let tls = Tls::new(TlsOptions::default());
    let client = root.workload_as(CLIENT, &[&root.root], &tls, change);
    let server = root.workload_using(SERVER, &lists.tls());
    let mut watch = watched(&client, &server);
    while !client.is_expired(SystemTime::now()) {
        std::thread::sleep(Duration::from_millis(50));
    }
    lists.write(&[root.crl(&[leaf(&client)])]);
    assert!(is_revoked(&mut watch).await);
}

#[tokio::test(start_paused = true)]
async fn certificates_presented_without_need_neither_hide_the_leaf_nor_end_the_connection() {
    let root = Authority::root("root");
    let junk = root.intermediate("junk");
    let lists = Lists::starting_with(None);
    let client = root.workload(CLIENT);
    let server = root.workload_using(SERVER, &lists.tls());
    let presented = [leaf(&client).clone(), junk.certificate(), CertificateDer::from(b"junk".to_vec())];
    let mut watch = server.watch_peer(Side::Destination, &presented);
    lists.write(&[root.crl(&[&junk.certificate()])]);
    assert!(!is_revoked(&mut watch).await);
    lists.write(&[root.crl(&[leaf(&client)])]);
    assert!(is_revoked(&mut watch).await);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_cannot_be_judged_is_counted_and_left_alone() {
    let (root, stranger) = (Authority::root("root"), Authority::root("stranger"));
    let lists = Lists::starting_with(None);
    let server = root.workload_using(SERVER, &lists.tls());
    let garbage = [CertificateDer::from(b"garbage".to_vec())];
    for chain in [&garbage[..], &[]] {
        let mut watch = server.watch_peer(Side::Destination, chain);
        assert!(!is_revoked(&mut watch).await);
    }
    assert_eq!(lists.counts().untracked, BySide { source: 0, destination: 2 });

    // Listed, but under none of our roots.
    let foreign = stranger.workload(CLIENT);
    let mut watch = server.watch_peer(Side::Source, std::slice::from_ref(leaf(&foreign)));
    lists.write(&[stranger.crl(&[leaf(&foreign)])]);
    assert!(!is_revoked(&mut watch).await);
    assert_eq!(lists.counts().untracked, BySide { source: 1, destination: 2 });
}

#[tokio::test(start_paused = true)]
async fn without_revocation_nothing_is_watched_or_counted() {
    let root = Authority::root("root");
    let server = root.workload(SERVER);
    let mut watch = server.watch_peer(Side::Destination, &[]);
    assert!(!is_revoked(&mut watch).await);
    assert_eq!(Revocations::disabled().counts(), RevocationCounts::default());
}
