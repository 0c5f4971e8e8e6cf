//! The channel to the control plane: TLS and HTTP/2 to istiod, and what we say of ourselves there.
//!
//! The two users differ. A stream of xDS gets a connection of its own ([`ControlPlane::open`]), so that each attempt starts
//! from the roots and the token as they are then. Certificate requests share one ([`SharedChannel`]), which is opened by
//! the first of them and anew when it closed or when the roots changed.
//!
//! Nothing here retries: a failed attempt is an error that names its step, and whoever asked decides when to ask again.

mod channel;
mod connect;
mod credentials;
mod endpoint;
mod files;
mod root_watch;
mod roots;
mod shared;
#[cfg(test)]
mod tests;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use identity::Tls;
use rustls_pki_types::ServerName;
use tonic::metadata::MetadataMap;

pub use channel::{ConnectError, H2Channel, Step};
pub(crate) use credentials::ascii;
pub use credentials::{Credentials, ExtraHeader, HeaderError, Token, TokenError, TokenSource};
pub use endpoint::{Endpoint, EndpointError};
pub use root_watch::RootWatch;
use roots::Roots;
pub use roots::{RootError, RootSource};
pub use shared::SharedChannel;

/// Which server, how it proves who it is, and how we do.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Where the server is.
    pub endpoint: Endpoint,
    /// Which authorities may vouch for it.
    pub roots: RootSource,
    /// A name that the server's certificate may carry in place of the endpoint's host.
    pub alternative_name: Option<ServerName<'static>>,
    /// What goes along with every call.
    pub credentials: Credentials,
}

/// A control plane that can be connected to.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    peer: Arc<PeerConfig>,
    tls: Tls,
    deadlines: Deadlines,
}

/// How long each step of an attempt may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Reading a file of ours, and loading the platform's roots.
    pub files: Duration,
    /// Finding the host's addresses.
    pub resolve: Duration,
    /// TCP, all addresses together.
    pub tcp: Duration,
    /// The TLS handshake.
    pub tls: Duration,
    /// The beginning of HTTP/2.
    pub http2: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            files: Duration::from_secs(5),
            resolve: Duration::from_secs(5),
            tcp: Duration::from_secs(5),
            tls: Duration::from_secs(10),
            http2: Duration::from_secs(5),
        }
    }
}

impl ControlPlane {
    /// The server of `peer`, with the versions, suites and groups of `tls`.
    pub fn new(peer: Arc<PeerConfig>, tls: Tls) -> Self {
        Self { peer, tls, deadlines: Deadlines::default() }
    }

    /// The same with other deadlines.
    #[must_use]
    pub fn with_deadlines(self, deadlines: Deadlines) -> Self {
        Self { deadlines, ..self }
    }

    /// How long an attempt can take at most, all steps together.
    pub fn longest_attempt(&self) -> Duration {
        let Deadlines { files, resolve, tcp, tls, http2 } = self.deadlines;
        // The token and the roots are both files.
        2 * files + resolve + tcp + tls + http2
    }

    /// Which server this is, and how both ends prove who they are.
    pub fn peer(&self) -> &PeerConfig {
        &self.peer
    }

    /// A new connection, and the metadata for one call on it.
    ///
    /// Token and roots are read anew. The connection closes when the last clone of the channel is gone and the last
    /// call on it has ended. Dropping the future abandons the attempt.
    pub async fn open(&self) -> Result<(H2Channel, MetadataMap), ConnectError> {
        let metadata = self.metadata().await?;
        Ok((self.connect().await?, metadata))
    }

    /// A new connection. See [`open`](Self::open).
    pub async fn connect(&self) -> Result<H2Channel, ConnectError> {
        let roots = self.roots().await?;
        self.connect_trusting(&roots).await
    }

    /// The metadata for one call: the token is read anew. See [`Credentials::metadata`].
    pub async fn metadata(&self) -> Result<MetadataMap, ConnectError> {
        let credentials = &self.peer.credentials;
        let metadata = Step::Token.within(self.deadlines.files, credentials.metadata()).await?;
        metadata.map_err(ConnectError::Token)
    }

    async fn roots(&self) -> Result<Roots, ConnectError> {
        let roots = Step::Roots.within(self.deadlines.files, self.peer.roots.read()).await?;
        roots.map_err(ConnectError::Roots)
    }

    async fn connect_trusting(&self, roots: &Roots) -> Result<H2Channel, ConnectError> {
        let store = roots.store().map_err(ConnectError::Roots)?;
        let config = verify::client_config(&self.tls, store, self.peer.alternative_name.clone());
        channel::connect(&self.peer.endpoint, config, self.deadlines).await
    }
}
