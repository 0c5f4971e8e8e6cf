//! TLS as the mesh speaks it: which versions, cipher suites and groups, and the configurations of both ends of a tunnel.
//!
//! Sessions are never resumed and no data is sent early: every connection proves who both ends are, and a certificate
//! that was rotated or revoked is not kept alive by a ticket.

use std::net::Ipv4Addr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{cipher_suite as suite, default_provider, kx_group as group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion};
use rustls_pki_types::ServerName;

use crate::Revocations;
use crate::verify::{ClientVerifier, ServerVerifier};

/// The protocol inside the mesh's TLS: HTTP/2 (RFC 9113 section 3.2).
const ALPN_H2: &[u8] = b"h2";

static TLS13_ONLY: &[&SupportedProtocolVersion] = &[&TLS13];
static BOTH_VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// What the operator decides about TLS. The default is what the mesh uses when nothing is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// The versions spoken.
    pub versions: TlsVersions,
    /// How keys are agreed on.
    pub key_exchange: KeyExchange,
    /// Which AES key length is offered first.
    pub ciphers: CipherPreference,
}

/// The TLS versions spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersions {
    /// TLS 1.3 only.
    #[default]
    Tls13,
    /// TLS 1.3, and 1.2 with peers that know no better.
    Tls12And13,
}

/// The groups offered for key exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyExchange {
    /// X25519, P-256, P-384, and last the post-quantum hybrid for peers that insist on it.
    #[default]
    ClassicalFirst,
    /// X25519MLKEM768 alone. This group exists in TLS 1.3 only, so TLS 1.2 is not offered whatever the versions say.
    HybridOnly,
}

/// The order of the AES-GCM cipher suites; as a server, the client's order decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CipherPreference {
    /// AES-128 first: 10 rounds instead of 14 for every byte that crosses the node.
    #[default]
    Aes128First,
    /// AES-256 first.
    Aes256First,
    /// AES-256 alone, for rules that forbid the shorter key.
    Aes256Only,
}

/// The cryptography of this process, made once from [`TlsOptions`] and shared by all configurations.
#[derive(Clone, Debug)]
pub struct Tls {
    provider: Arc<CryptoProvider>,
    versions: &'static [&'static SupportedProtocolVersion],
    revocations: Revocations,
}

impl Tls {
    /// Chooses suites, groups and versions.
    pub fn new(options: TlsOptions) -> Self {
        let versions = match (options.versions, options.key_exchange) {
            (TlsVersions::Tls12And13, KeyExchange::ClassicalFirst) => BOTH_VERSIONS,
            _ => TLS13_ONLY,
        };
        let provider = CryptoProvider {
            cipher_suites: cipher_suites(options.ciphers, versions),
            kx_groups: key_exchange_groups(options.key_exchange),
            ..default_provider()
        };
        Self { provider: Arc::new(provider), versions, revocations: Revocations::disabled() }
    }

    /// The same, with peers refused that are revoked. By default none is.
    pub fn with_revocations(self, revocations: Revocations) -> Self {
        Self { revocations, ..self }
    }

    /// Who is revoked, for all certificates that are made with this.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// The provider, for TLS connections that are not of the mesh (those to the control plane).
    pub fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    /// The versions that go with the provider.
    pub fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        self.versions
    }

    /// What a workload's listener uses: a client certificate is demanded and judged by `clients`.
    pub(crate) fn server_config(
        &self,
        credentials: Arc<SingleCertAndKey>,
        clients: Arc<ClientVerifier>,
    ) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(self.versions)
            .expect("the provider has a suite and a group for each of its versions")
            .with_client_cert_verifier(clients)
            .with_cert_resolver(credentials);
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        // No session to resume by identifier (TLS 1.2), and none by ticket (TLS 1.3).
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    /// What a workload uses to open a tunnel to a server that `servers` judges.
    pub(crate) fn client_config(
        &self,
        credentials: Arc<SingleCertAndKey>,
        servers: Arc<ServerVerifier>,
    ) -> Arc<ClientConfig> {
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(self.versions)
            .expect("the provider has a suite and a group for each of its versions")
            .dangerous()
            .with_custom_certificate_verifier(servers)
            .with_client_cert_resolver(credentials);
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Arc::new(config)
    }
}

/// The server name to give a TLS library that insists on one. Mesh certificates name identities, not hosts: it is
/// neither sent nor compared.
pub fn unnamed_server() -> ServerName<'static> {
    ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into())
}

fn cipher_suites(
    preference: CipherPreference,
    versions: &[&'static SupportedProtocolVersion],
) -> Vec<SupportedCipherSuite> {
    const AES_128: [SupportedCipherSuite; 3] = [
        suite::TLS13_AES_128_GCM_SHA256,
        suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ];
    const AES_256: [SupportedCipherSuite; 3] = [
        suite::TLS13_AES_256_GCM_SHA384,
        suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ];
    let mut suites: Vec<_> = match preference {
        CipherPreference::Aes128First => AES_128.into_iter().zip(AES_256).flat_map(|(a, b)| [a, b]).collect(),
        CipherPreference::Aes256First => AES_256.into_iter().zip(AES_128).flat_map(|(a, b)| [a, b]).collect(),
        CipherPreference::Aes256Only => AES_256.to_vec(),
    };
    suites.retain(|suite| versions.contains(&suite.version()));
    suites
}

fn key_exchange_groups(policy: KeyExchange) -> Vec<&'static dyn SupportedKxGroup> {
    match policy {
        // The first is the one a ClientHello carries a share for.
        KeyExchange::ClassicalFirst => {
            vec![group::X25519, group::SECP256R1, group::SECP384R1, group::X25519MLKEM768]
        }
        KeyExchange::HybridOnly => vec![group::X25519MLKEM768],
    }
}

#[cfg(test)]
mod tests {
    use rustls::{CipherSuite, NamedGroup};

    use super::*;

    fn suites(options: TlsOptions) -> Vec<CipherSuite> {
        Tls::new(options).provider.cipher_suites.iter().map(|suite| suite.suite()).collect()
    }

    fn groups(options: TlsOptions) -> Vec<NamedGroup> {
        Tls::new(options).provider.kx_groups.iter().map(|group| group.name()).collect()
    }

    #[test]
    fn by_default_only_the_two_aes_suites_of_tls13_are_offered_the_cheaper_first() {
        let expected = [CipherSuite::TLS13_AES_128_GCM_SHA256, CipherSuite::TLS13_AES_256_GCM_SHA384];
        assert_eq!(suites(TlsOptions::default()), expected);
        assert_eq!(
            groups(TlsOptions::default()),
            [NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1, NamedGroup::X25519MLKEM768]
        );
    }

    #[test]
    fn tls12_adds_the_ecdhe_suites_behind_those_of_tls13() {
        let options = TlsOptions {
            versions: TlsVersions::Tls12And13,
            ciphers: CipherPreference::Aes256First,
            ..Default::default()
        };
        assert_eq!(
            suites(options),
            [
                CipherSuite::TLS13_AES_256_GCM_SHA384,
                CipherSuite::TLS13_AES_128_GCM_SHA256,
                CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
                CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
                CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            ]
        );
    }

    #[test]
    fn the_hybrid_policy_offers_nothing_a_quantum_computer_could_read() {
        let options = TlsOptions {
            versions: TlsVersions::Tls12And13,
            key_exchange: KeyExchange::HybridOnly,
            ..Default::default()
        };
        assert_eq!(groups(options), [NamedGroup::X25519MLKEM768]);
        assert_eq!(Tls::new(options).versions(), [&TLS13]);
    }

    #[test]
    fn every_combination_of_options_makes_a_usable_provider() {
        for versions in [TlsVersions::Tls13, TlsVersions::Tls12And13] {
            for key_exchange in [KeyExchange::ClassicalFirst, KeyExchange::HybridOnly] {
                for ciphers in [
                    CipherPreference::Aes128First,
                    CipherPreference::Aes256First,
                    CipherPreference::Aes256Only,
                ] {
                    let tls = Tls::new(TlsOptions { versions, key_exchange, ciphers });
                    let client = ClientConfig::builder_with_provider(tls.provider.clone());
                    assert!(client.with_protocol_versions(tls.versions).is_ok());
                    let server = ServerConfig::builder_with_provider(tls.provider.clone());
                    assert!(server.with_protocol_versions(tls.versions).is_ok());
                }
            }
        }
    }
}
