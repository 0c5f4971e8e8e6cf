//! SPIFFE identities, certificates and the TLS configurations made from them.
//!
//! A [`SpiffeId`] names a workload. A [`CertificateStore`] obtains certificates for such names from an [`Issuer`], renews
//! them before they expire, and hands out the current [`WorkloadCertificate`], which owns everything that a TLS
//! connection of that workload needs: the server configuration, and a client configuration for each set of
//! [`ExpectedPeers`].

mod ca;
mod ca_client;
mod ca_files;
mod certificate;
mod chain;
mod client_configs;
mod csr;
mod driver;
mod failure;
mod follow;
mod key;
mod local_ca;
mod peers;
mod revocation;
mod schedule;
mod spiffe;
mod store;
mod tls;
mod verify;

/// `istio.v1.auth`: the messages of the certificate signing call,
/// `/istio.v1.auth.IstioCertificateService/CreateCertificate`.
pub mod proto {
    #![allow(missing_docs, clippy::all)] // Generated code; the proto file carries the documentation.

    include!(concat!(env!("OUT_DIR"), "/istio.v1.auth.rs"));
}

pub use ca::{BoxError, Granted, IssueError, IssueFuture, IssuedChain, Issuer, Retry};
pub use ca_client::{CaChannel, CaClient, CaConnect, CaRefused, OnBehalfOf};
pub use ca_files::LocalCaError;
pub use certificate::{WorkloadCertificate, WorkloadCertificateError};
pub use chain::{CertificateChain, CertificateInfo, ChainError};
pub use csr::{CsrError, certificate_request};
pub use driver::{RequestError, RequestOutcome, StoreDriver};
pub use failure::HandshakeFailure;
pub use follow::{FileFollower, read_bounded};
pub use key::{KeyError, PrivateKey};
pub use local_ca::LocalCa;
pub use peers::ExpectedPeers;
pub use revocation::{
    BySide, CrlError, CrlSet, PeerWatch, RevocationCounts, RevocationDriver, Revocations, Side,
};
pub use spiffe::{SpiffeId, SpiffeIdError};
pub use store::{CertificateError, CertificateStore, IdentityState, StoreOptions};
pub use tls::{CipherPreference, KeyExchange, Tls, TlsOptions, TlsVersions, unnamed_server};
pub use verify::{PeerIdentityError, PeerRefused, peer_identity};
