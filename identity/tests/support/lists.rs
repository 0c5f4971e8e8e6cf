//! A file of revocation lists, and what follows from it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use identity::{
    HandshakeFailure, PeerWatch, RevocationCounts, Revocations, Side, Tls, TlsOptions, WorkloadCertificate,
};
use rustls::{AlertDescription, CertificateError};
use rustls_pki_types::CertificateDer;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::SERVER;
use super::handshake::connect;

/// A file of lists that is followed. Time is virtual, so nobody waits for the next look.
pub(crate) struct Lists {
    _dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
    pub(crate) revocations: Revocations,
    driver: JoinHandle<()>,
}

impl Lists {
    pub(crate) fn starting_with(contents: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca-crl.pem");
        if let Some(contents) = contents {
            fs::write(&path, contents).unwrap();
        }
        let (revocations, driver) = Revocations::watch_file(&path);
        let driver = tokio::spawn(driver.run(std::future::pending()));
        Self { _dir: dir, path, revocations, driver }
    }

    pub(crate) fn write(&self, lists: &[String]) {
        fs::write(&self.path, lists.concat()).unwrap();
    }

    pub(crate) fn tls(&self) -> Tls {
        Tls::new(TlsOptions::default()).with_revocations(self.revocations.clone())
    }

    pub(crate) fn counts(&self) -> RevocationCounts {
        self.revocations.counts()
    }

    /// Waits until what is in the file is in force: a peer that the file revokes is found to be.
    pub(crate) async fn settled(&self) {
        // Three looks at the file, of two seconds each.
        tokio::time::sleep(Duration::from_secs(7)).await;
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

pub(crate) async fn is_revoked(watch: &mut PeerWatch) -> bool {
    timeout(Duration::from_secs(20), watch.revoked()).await.is_ok()
}

pub(crate) fn leaf(certificate: &WorkloadCertificate) -> &CertificateDer<'static> {
    &certificate.chain().leaf.der
}

/// Connects the two and has `server` watch its client.
#[track_caller]
pub(crate) fn watched(client: &WorkloadCertificate, server: &WorkloadCertificate) -> PeerWatch {
    let expected = server.identity().as_str().to_owned();
    let connection = connect(client, server, &[&expected]).succeeded();
    server.watch_peer(Side::Destination, connection.server.peer_certificates().unwrap())
}

#[track_caller]
pub(crate) fn refused_by_server(client: &WorkloadCertificate, server: &WorkloadCertificate) {
    let error = connect(client, server, &[SERVER]).server_refused(AlertDescription::CertificateRevoked);
    assert_eq!(error, CertificateError::Revoked.into());
    assert_eq!(HandshakeFailure::from(&error), HandshakeFailure::Revoked);
}

/// Counts the warnings that mention a text.
#[derive(Clone)]
pub(crate) struct Warnings {
    text: &'static str,
    count: Arc<AtomicUsize>,
}

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut |_: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            if format!("{value:?}").contains(self.text) {
                self.count.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

impl Warnings {
    pub(crate) fn of(text: &'static str) -> (Self, tracing::subscriber::DefaultGuard) {
        let warnings = Self { text, count: Arc::default() };
        let guard = tracing::subscriber::set_default(warnings.clone());
        (warnings, guard)
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}
