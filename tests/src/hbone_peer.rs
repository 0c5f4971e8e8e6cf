//! A scripted HBONE client with any identity, to say to port 15008 what no well-behaved proxy would.

use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Method, Request, StatusCode};
use identity::{
    CertificateChain, ExpectedPeers, Issuer as _, LocalCa, PrivateKey, SpiffeId, Tls, TlsOptions,
    WorkloadCertificate, certificate_request,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

use crate::Result;
use crate::istiod::IssuedFiles;
use crate::traffic::{bounded, connect};

/// What a tunnel can be made over.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> Transport for T {}

/// An HTTP/2 connection over mutual TLS, as one tunnel between two proxies. Dropping it closes the connection.
///
/// All its functions belong in a closure given to [`Namespace::spawn`](crate::Namespace::spawn).
pub struct HbonePeer {
    requests: SendRequest<Bytes>,
    driver: AbortHandle,
}

impl HbonePeer {
    /// Connects to `target`, proving `own` and expecting `server`, with certificates of the authority in
    /// `ca_directory`.
    ///
    /// A server that refuses our certificate may show it here or only in the first request: a TLS 1.3 client is
    /// done with the handshake before the server has checked (RFC 8446 section 4.4.4).
    pub async fn connect(
        target: SocketAddr,
        ca_directory: &Path,
        own: &str,
        server: &str,
    ) -> Result<HbonePeer> {
        let certificate = issue(ca_directory, &own.parse()?).await?;
        Self::authenticated(connect(target).await?, &certificate, server).await
    }

    /// As [`connect`](Self::connect), over any byte stream, with a certificate of a scripted istiod's authority.
    pub async fn over(stream: impl Transport, own: &IssuedFiles, server: &str) -> Result<HbonePeer> {
        Self::authenticated(stream, &own.certificate()?, server).await
    }

    async fn authenticated(
        stream: impl Transport,
        own: &WorkloadCertificate,
        server: &str,
    ) -> Result<HbonePeer> {
        let config = own.client_config(&ExpectedPeers::from(server.parse::<SpiffeId>()?));
        bounded("the HBONE handshake", Self::handshake(stream, TlsConnector::from(config))).await
    }

    async fn handshake(stream: impl Transport, tls: TlsConnector) -> Result<HbonePeer> {
        let stream = tls.connect(identity::unnamed_server(), stream).await.context("TLS handshake")?;
        let (requests, connection) = h2::client::handshake(stream).await.context("HTTP/2 handshake")?;
        // Its errors come out of the requests.
        let driver = tokio::task::spawn_local(async move { drop(connection.await) }).abort_handle();
        Ok(HbonePeer { requests, driver })
    }

    /// Sends a CONNECT for `authority`.
    pub async fn tunnel(&mut self, authority: &str) -> Result<HboneReply> {
        self.request(Request::builder().method(Method::CONNECT).uri(authority).body(())?).await
    }

    /// Sends any request, leaving its body open.
    pub async fn request(&mut self, request: Request<()>) -> Result<HboneReply> {
        bounded("an HBONE request", async {
            let mut ready = self.requests.clone().ready().await?;
            let (response, send) = ready.send_request(request, false)?;
            let response = response.await?;
            Ok(HboneReply { status: response.status(), send, receive: response.into_body() })
        })
        .await
    }
}

impl Drop for HbonePeer {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The answer to a request, and the stream that it opened if the status says so.
pub struct HboneReply {
    /// The status code.
    pub status: StatusCode,
    send: SendStream<Bytes>,
    receive: RecvStream,
}

impl HboneReply {
    /// The stream as bytes, for what is to be inside. Only within [`Namespace::spawn`](crate::Namespace::spawn), whose
    /// end ends it.
    pub fn into_stream(self) -> DuplexStream {
        let (outside, inside) = tokio::io::duplex(64 * 1024);
        let (mut from_inside, mut to_inside) = tokio::io::split(inside);
        let Self { mut send, mut receive, .. } = self;
        // Whatever ends one of the two ends what is inside, which tells.
        tokio::task::spawn_local(async move {
            let mut buffer = vec![0; 16 * 1024];
            loop {
                let read = from_inside.read(&mut buffer).await?;
                send.send_data(Bytes::copy_from_slice(&buffer[..read]), read == 0)?;
                if read == 0 {
                    return Ok::<_, anyhow::Error>(());
                }
            }
        });
        tokio::task::spawn_local(async move {
            while let Some(data) = receive.data().await {
                let data = data?;
                to_inside.write_all(&data).await?;
                receive.flow_control().release_capacity(data.len())?;
            }
            to_inside.shutdown().await.map_err(anyhow::Error::from)
        });
        outside
    }

    /// Sends bytes through the tunnel and reads as many back, which must be the same.
    pub async fn round_trip(&mut self, question: &'static [u8]) -> Result<()> {
        bounded("a round trip through the tunnel", async {
            self.send.send_data(Bytes::from_static(question), false)?;
            let mut answer = Vec::new();
            while answer.len() < question.len() {
                let data = self.receive.data().await.context("the stream ended")??;
                self.receive.flow_control().release_capacity(data.len())?;
                answer.extend_from_slice(&data);
            }
            ensure!(answer == question, "the echo differs");
            Ok(())
        })
        .await
    }
}

/// A certificate for `identity`, issued here and now by the authority in `ca_directory`.
pub async fn issue(ca_directory: &Path, identity: &SpiffeId) -> Result<WorkloadCertificate> {
    let ca = LocalCa::open(ca_directory, LocalCa::DEFAULT_LIFETIME)?;
    let key = PrivateKey::generate()?;
    let issued = ca.issue(identity, &certificate_request(identity, &key)?).await?;
    let chain = CertificateChain::from_pem_elements(&issued.0)?;
    Ok(WorkloadCertificate::new(identity, key, chain, &Tls::new(TlsOptions::default()), SystemTime::now())?)
}
