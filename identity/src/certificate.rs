//! A workload's certificate, ready for use.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, UnixTime};
use thiserror::Error;

use crate::client_configs::ClientConfigs;
use crate::revocation::Standing;
use crate::verify::{ClientVerifier, ServerVerifier, TrustRoots};
use crate::{CertificateChain, ChainError, ExpectedPeers, PeerWatch, PrivateKey, Side, SpiffeId, Tls};

/// A certificate, its key, the roots that came with it, and the TLS configurations made from them.
///
/// Never changes: a renewal makes another one. Built once per issue, so that a connection costs a pointer and not a
/// parse. The roots are those the workload trusts, in both directions.
pub struct WorkloadCertificate {
    chain: CertificateChain,
    tls: Tls,
    credentials: Arc<SingleCertAndKey>,
    trust: Arc<TrustRoots>,
    server: Arc<ServerConfig>,
    clients: ClientConfigs,
}

impl WorkloadCertificate {
    /// Checks what was issued against what was asked for: the leaf names `requested`, fits `key`, and has not expired
    /// at `now`. A leaf that is not valid yet is accepted, since clocks differ and time heals it.
    pub fn new(
        requested: &SpiffeId,
        key: PrivateKey,
        chain: CertificateChain,
        tls: &Tls,
        now: SystemTime,
    ) -> Result<Self, WorkloadCertificateError> {
        if chain.identity != *requested {
            return Err(WorkloadCertificateError::Identity { issued: chain.identity });
        }
        if now > chain.leaf.not_after {
            return Err(WorkloadCertificateError::Expired);
        }
        let certified = CertifiedKey::new(chain.presented(), Arc::new(key));
        certified.keys_match().map_err(WorkloadCertificateError::Key)?;
        let roots = chain.trust_anchors().map_err(WorkloadCertificateError::Chain)?;

        let credentials = Arc::new(SingleCertAndKey::from(certified));
        let algorithms = tls.provider().signature_verification_algorithms;
        let trust = Arc::new(TrustRoots::new(roots, algorithms, tls.revocations().clone()));
        let clients = ClientVerifier::new(trust.clone(), chain.identity.clone());
        Ok(Self {
            server: tls.server_config(credentials.clone(), Arc::new(clients)),
            clients: ClientConfigs::default(),
            tls: tls.clone(),
            chain,
            credentials,
            trust,
        })
    }

    /// Who this certificate says we are.
    pub fn identity(&self) -> &SpiffeId {
        &self.chain.identity
    }

    /// Leaf, intermediates and roots, with the facts about each.
    pub fn chain(&self) -> &CertificateChain {
        &self.chain
    }

    /// The first moment of validity.
    pub fn not_before(&self) -> SystemTime {
        self.chain.leaf.not_before
    }

    /// The last moment of validity.
    pub fn not_after(&self) -> SystemTime {
        self.chain.leaf.not_after
    }

    /// Whether the leaf is no longer valid at `now`.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now > self.not_after()
    }

    /// For accepting tunnels: clients of our trust domain, HTTP/2.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// For opening a tunnel to a server that is one of `expected`.
    ///
    /// Made at the first use of a set and then found by one hash lookup.
    pub fn client_config(&self, expected: &ExpectedPeers) -> Arc<ClientConfig> {
        self.clients.get_or_make(expected, || {
            let servers = ServerVerifier::new(self.trust.clone(), expected.clone());
            self.tls.client_config(self.credentials.clone(), Arc::new(servers))
        })
    }

    /// Watches for the revocation of a peer that this certificate's configurations have just accepted.
    ///
    /// `chain` is what the peer presented, leaf first, as the TLS library hands it over. To be called right after the
    /// handshake: its time is taken from the clock. While revocation is disabled, nothing is copied or counted.
    pub fn watch_peer(&self, side: Side, chain: &[CertificateDer<'_>]) -> PeerWatch {
        PeerWatch::new(self.tls.revocations(), &self.trust, side, chain)
    }

    /// Whether this certificate itself, or one between it and its root, is revoked by the lists in force. Peers that have
    /// the same lists refuse it.
    pub fn is_revoked(&self) -> bool {
        self.tls.revocations().current().is_some_and(|crls| {
            let chain = self.chain.presented();
            self.trust.standing(&chain, Side::Source, UnixTime::now(), &crls) == Standing::Revoked
        })
    }
}

/// Why an issued certificate is not taken into use.
#[derive(Debug, Error)]
pub enum WorkloadCertificateError {
    /// The authority issued a certificate for somebody else.
    #[error("the certificate was issued for {issued}")]
    Identity {
        /// For whom.
        issued: SpiffeId,
    },
    /// The certificate had expired when it arrived.
    #[error("the certificate has already expired")]
    Expired,
    /// The certificate is for another key than the one the request was signed with.
    #[error("the certificate does not fit the private key")]
    Key(#[source] rustls::Error),
    /// The chain cannot be used.
    #[error("the certificate chain cannot be used")]
    Chain(#[source] ChainError),
}

impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate")
            .field("identity", self.identity())
            .field("serial_number", &self.chain.leaf.serial_number)
            .field("not_after", &self.not_after())
            .finish_non_exhaustive()
    }
}
