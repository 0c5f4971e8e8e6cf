//! Files of revocation lists: their forms, and how they come and go.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::LazyLock;
use std::time::Duration;

use identity::{CrlSet, Revocations, Tls, TlsOptions, WorkloadCertificate};
use proptest::prelude::*;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use support::handshake::connect;
use support::lists::{Lists, Warnings, is_revoked, leaf, refused_by_server, watched};
use support::{Authority, CLIENT, SERVER};

#[tokio::test(start_paused = true)]
async fn a_file_that_appears_late_counts_from_then_on_and_one_that_goes_counts_on() {
    let root = Authority::root("root");
    let client = root.workload(CLIENT);
    let lists = Lists::starting_with(None);
    let server = root.workload_using(SERVER, &lists.tls());
    lists.settled().await;
    connect(&client, &server, &[SERVER]).succeeded();
    lists.write(&[root.crl(&[leaf(&client)])]);
    lists.settled().await;
    refused_by_server(&client, &server);
    fs::remove_file(&lists.path).unwrap();
    lists.settled().await;
    refused_by_server(&client, &server);
    lists.write(&[]);
    lists.settled().await;
    connect(&client, &server, &[SERVER]).succeeded();
}

#[tokio::test(start_paused = true)]
async fn a_bad_file_changes_nothing_and_a_good_one_later_does() {
    let root = Authority::root("root");
    let (client, other) = (root.workload(CLIENT), root.workload(CLIENT));
    let lists = Lists::starting_with(Some("nonsense"));
    let server = root.workload_using(SERVER, &lists.tls());
    connect(&client, &server, &[SERVER]).succeeded();
    lists.write(&[root.crl(&[leaf(&client)])]);
    lists.settled().await;
    refused_by_server(&client, &server);
    let cut = root.crl(&[leaf(&other)]);
    fs::write(&lists.path, &cut[..cut.len() / 2]).unwrap();
    lists.settled().await;
    refused_by_server(&client, &server);
    connect(&other, &server, &[SERVER]).succeeded();
    fs::write(&lists.path, &cut).unwrap();
    lists.settled().await;
    refused_by_server(&other, &server);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_being_rewritten_unrevokes_nobody_meanwhile() {
    let root = Authority::root("root");
    let client = root.workload(CLIENT);
    let list = root.crl(&[leaf(&client)]);
    let lists = Lists::starting_with(Some(&list));
    let server = root.workload_using(SERVER, &lists.tls());
    lists.settled().await;
    // Truncated, and cut where one list ends: both are whole files of lists, and neither names the client.
    for step in 0..20 {
        let cut = if step % 2 == 0 { String::new() } else { root.crl(&[]) };
        fs::write(&lists.path, cut).unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        refused_by_server(&client, &server);
    }
    fs::write(&lists.path, &list).unwrap();
    lists.settled().await;
    refused_by_server(&client, &server);
    lists.write(&[]);
    lists.settled().await;
    connect(&client, &server, &[SERVER]).succeeded();
}

#[tokio::test(start_paused = true)]
async fn a_mounted_config_map_that_is_turned_again_and_again_counts_when_it_rests() {
    let root = Authority::root("root");
    let client = root.workload(CLIENT);
    let mount = tempfile::tempdir().unwrap();
    for (name, contents) in [("..full", root.crl(&[leaf(&client)])), ("..bare", String::new())] {
        fs::create_dir(mount.path().join(name)).unwrap();
        fs::write(mount.path().join(name).join("ca-crl.pem"), contents).unwrap();
    }
    let turn = |name: &str| {
        symlink(name, mount.path().join("..data_tmp")).unwrap();
        fs::rename(mount.path().join("..data_tmp"), mount.path().join("..data")).unwrap();
    };
    turn("..full");
    symlink("..data/ca-crl.pem", mount.path().join("ca-crl.pem")).unwrap();
    let (revocations, driver) = Revocations::watch_file(mount.path().join("ca-crl.pem"));
    let driver = tokio::spawn(driver.run(std::future::pending()));
    let server = root.workload_using(SERVER, &Tls::new(TlsOptions::default()).with_revocations(revocations));
    for step in 0..20 {
        turn(if step % 2 == 0 { "..bare" } else { "..full" });
        tokio::time::sleep(Duration::from_secs(2)).await;
        refused_by_server(&client, &server);
    }
    turn("..bare");
    tokio::time::sleep(Duration::from_secs(7)).await;
    connect(&client, &server, &[SERVER]).succeeded();
    driver.abort();
}

#[tokio::test(start_paused = true)]
async fn a_mounted_config_map_is_followed_through_its_links() {
    let root = Authority::root("root");
    let client = root.workload(CLIENT);
    let mount = tempfile::tempdir().unwrap();
    let version = |name: &str, contents: String| {
        fs::create_dir(mount.path().join(name)).unwrap();
        fs::write(mount.path().join(name).join("ca-crl.pem"), contents).unwrap();
        // As the kubelet does it: a new link, renamed over the old one.
        symlink(name, mount.path().join("..data_tmp")).unwrap();
        fs::rename(mount.path().join("..data_tmp"), mount.path().join("..data")).unwrap();
    };
    version("..1", root.crl(&[]));
    symlink("..data/ca-crl.pem", mount.path().join("ca-crl.pem")).unwrap();
    let (revocations, driver) = Revocations::watch_file(mount.path().join("ca-crl.pem"));
    let driver = tokio::spawn(driver.run(std::future::pending()));
    let tls = Tls::new(TlsOptions::default()).with_revocations(revocations);
    let mut watch = watched(&client, &root.workload_using(SERVER, &tls));
    version("..2", root.crl(&[leaf(&client)]));
    fs::remove_dir_all(mount.path().join("..1")).unwrap();
    assert!(is_revoked(&mut watch).await);
    driver.abort();
}

#[tokio::test(start_paused = true)]
async fn a_missing_or_bad_file_is_complained_about_once() {
    let (warnings, _guard) = Warnings::of("stays in force");
    let lists = Lists::starting_with(None);
    for _ in 0..5 {
        lists.settled().await;
        assert_eq!(warnings.count(), 1);
    }
    fs::write(&lists.path, "nonsense").unwrap();
    for _ in 0..5 {
        lists.settled().await;
        assert_eq!(warnings.count(), 2);
    }
    fs::remove_file(&lists.path).unwrap();
    lists.settled().await;
    lists.settled().await;
    assert_eq!(warnings.count(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_path_that_is_no_file_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [pipe.as_path(), dir.path()] {
        let (revocations, _driver) = Revocations::watch_file(path);
        assert!(revocations.is_enabled());
        assert_eq!(revocations.lists(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_driver_ends_at_shutdown_and_what_was_read_stays_in_force() {
    let root = Authority::root("root");
    let client = root.workload(CLIENT);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("crl.pem");
    fs::write(&path, root.crl(&[leaf(&client)])).unwrap();
    let (revocations, driver) = Revocations::watch_file(&path);
    driver.run(std::future::ready(())).await;
    let tls = Tls::new(TlsOptions::default()).with_revocations(revocations);
    refused_by_server(&client, &root.workload_using(SERVER, &tls));
}

#[test]
fn lists_are_read_as_der_as_pem_and_as_pem_in_all_kinds_of_wrapping() {
    let root = Authority::root("root");
    let list = root.crl(&[leaf(&root.workload(CLIENT))]);
    let indented: String = list.lines().map(|line| format!("  {line}\r\n")).collect();
    let der = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).unwrap();
    for (contents, lists) in [
        (list.clone(), 1),
        (format!("\n\n  \n{list}"), 1),
        (format!("\u{feff}{list}"), 1),
        (format!("Revoked by the cluster's administrators:\n{list}{list}the end"), 2),
        (format!("{}{list}{}", root.root, root.root), 1),
        (indented, 1),
        (root.root.clone(), 0),
        (String::new(), 0),
        (" \n\t\n".to_owned(), 0),
    ] {
        assert_eq!(CrlSet::from_file(contents.as_bytes()).unwrap().len(), lists, "{contents}");
    }
    assert_eq!(CrlSet::from_file(&der).unwrap().len(), 1);
    for bad in [&der[..der.len() - 1], b"nonsense", &[&der[..], b"\n"].concat()] {
        assert!(CrlSet::from_file(bad).is_err());
    }
}

/// A list in DER, the client it names, and a server's authority.
struct Listed {
    root: Authority,
    client: WorkloadCertificate,
    der: Vec<u8>,
}

static LISTED: LazyLock<Listed> = LazyLock::new(|| {
    let root = Authority::root("root");
    let client = root.workload(CLIENT);
    let list = root.crl(&[leaf(&client)]);
    let der = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).unwrap();
    Listed { root, client, der: der.to_vec() }
});

proptest! {
    #[test]
    fn a_damaged_list_is_refused_or_revokes_nobody(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let Listed { root, client, der } = &*LISTED;
        let mut damaged = der.clone();
        for (position, value) in damage {
            let position = position.index(damaged.len());
            damaged[position] = value;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("crl"), &damaged).unwrap();
        let (revocations, _driver) = Revocations::watch_file(dir.path().join("crl"));
        let tls = Tls::new(TlsOptions::default()).with_revocations(revocations);
        let server = root.workload_using(SERVER, &tls);
        if damaged == *der {
            refused_by_server(client, &server);
        } else {
            connect(client, &server, &[SERVER]).succeeded();
        }
    }

    #[test]
    fn invented_files_are_read_or_refused(contents in prop::collection::vec(any::<u8>(), 0..300)) {
        let text = contents.trim_ascii();
        let read = CrlSet::from_file(&contents).map(|crls| crls.len());
        prop_assert!(read.is_err() || text.is_empty());
    }
}
