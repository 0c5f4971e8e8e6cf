//! A peer with a certificate of the mesh that says to port 15008 whatever it likes, frame by frame (RFC 9113 section 4.1).

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use identity::{ExpectedPeers, SpiffeId};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Result;
use crate::hbone_peer::issue;
use crate::traffic::{bounded, connect};

/// Frame types, RFC 9113 section 6.
pub mod kind {
    #![allow(missing_docs, reason = "they are the specification's")]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags, RFC 9113 section 6.
pub mod flag {
    #![allow(missing_docs, reason = "they are the specification's")]
    pub const END_STREAM: u8 = 0x1;
    pub const ACK: u8 = 0x1;
    pub const END_HEADERS: u8 = 0x4;
    pub const PADDED: u8 = 0x8;
}

/// A client's preface before its first frame.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A tunnel's TLS connection, and nothing that would keep its user from anything. All its functions belong in a closure
/// given to [`Namespace::spawn`](crate::Namespace::spawn).
pub struct RawPeer {
    /// Where frames go.
    pub write: RawWriter,
    /// Where frames come from.
    pub read: RawReader,
}

/// The sending half.
pub struct RawWriter(WriteHalf<TlsStream<TcpStream>>);

/// The receiving half.
pub struct RawReader(ReadHalf<TlsStream<TcpStream>>);

/// A frame that came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RawFrame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// The rest.
    pub payload: Vec<u8>,
}

impl RawPeer {
    /// Mutual TLS with `target`, proving `own` and expecting `server`, with certificates of the authority in `ca_directory`.
    /// Nothing of HTTP/2 has been said.
    pub async fn connect(target: SocketAddr, ca_directory: &Path, own: &str, server: &str) -> Result<Self> {
        let certificate = issue(ca_directory, &own.parse()?).await?;
        let config = certificate.client_config(&ExpectedPeers::from(server.parse::<SpiffeId>()?));
        let tcp = connect(target).await?;
        let tls = bounded("the TLS handshake", async {
            Ok(TlsConnector::from(config).connect(identity::unnamed_server(), tcp).await?)
        });
        let (read, write) = tokio::io::split(tls.await?);
        Ok(Self { write: RawWriter(write), read: RawReader(read) })
    }

    /// As [`connect`](Self::connect), with the preface and empty SETTINGS sent, and the server's acknowledged.
    pub async fn open(target: SocketAddr, ca_directory: &Path, own: &str, server: &str) -> Result<Self> {
        let mut peer = Self::connect(target, ca_directory, own, server).await?;
        peer.write.bytes(&[PREFACE, &frame(kind::SETTINGS, 0, 0, &[])].concat()).await?;
        let first = bounded("the server's preface", async { Ok(peer.read.frame().await?) }).await?;
        ensure!(first.is_some_and(|frame| frame.kind == kind::SETTINGS), "no SETTINGS came first");
        peer.write.bytes(&frame(kind::SETTINGS, flag::ACK, 0, &[])).await?;
        Ok(peer)
    }

    /// Opens a stream with a CONNECT, which must be answered with 200.
    pub async fn tunnel(&mut self, stream: u32, authority: &str) -> Result<()> {
        self.write.bytes(&connect_request(stream, authority)).await?;
        bounded("the answer to a CONNECT", async {
            loop {
                let frame = self.read.frame().await?.context("the tunnel ended")?;
                if frame.kind == kind::HEADERS && frame.stream == stream {
                    ensure!(frame.payload.first() == Some(&STATUS_200), "refused: {frame:?}");
                    return Ok(());
                }
            }
        })
        .await
    }
}

/// `:status: 200` in HPACK's static table (RFC 7541 appendix A).
const STATUS_200: u8 = 0x88;

impl RawWriter {
    /// Sends bytes. Fails when the other side has hung up, or takes nothing for a while.
    pub async fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        const A_WHILE: Duration = Duration::from_secs(5);
        tokio::time::timeout(A_WHILE, async {
            self.0.write_all(bytes).await?;
            self.0.flush().await
        })
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Sends what `next` makes, in portions of several KiB, until that fails or there is nothing more. Gives the number of
    /// bytes sent.
    pub async fn flood(&mut self, mut next: impl FnMut() -> Option<Vec<u8>>) -> usize {
        let mut sent = 0;
        loop {
            let mut portion = Vec::new();
            while portion.len() < 8 * 1024
                && let Some(more) = next()
            {
                portion.extend(more);
            }
            if portion.is_empty() || self.bytes(&portion).await.is_err() {
                return sent;
            }
            sent += portion.len();
        }
    }
}

impl RawReader {
    /// The next frame; none at the connection's end, in order or not.
    pub async fn frame(&mut self) -> io::Result<Option<RawFrame>> {
        let mut head = [0; 9];
        if self.0.read_exact(&mut head).await.is_err() {
            return Ok(None);
        }
        let [high, middle, low, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
        if self.0.read_exact(&mut payload).await.is_err() {
            return Ok(None);
        }
        Ok(Some(RawFrame { kind, flags, stream: u32::from_be_bytes(stream), payload }))
    }

    /// Reads to the connection's end, which must come, and gives the error code of the GOAWAY before it, if there was one.
    pub async fn goodbye(&mut self) -> Result<Option<u32>> {
        bounded("the end of a tunnel", async {
            let mut code = None;
            while let Some(frame) = self.frame().await? {
                if let (kind::GOAWAY, Some(last)) = (frame.kind, frame.payload.get(4..8)) {
                    code = Some(u32::from_be_bytes(last.try_into()?));
                }
            }
            Ok(code)
        })
        .await
    }

    /// Reads and discards, to the connection's end.
    pub async fn drain(&mut self) {
        let mut buffer = vec![0; 16 * 1024];
        while matches!(self.0.read(&mut buffer).await, Ok(1..)) {}
    }
}

impl AsyncRead for RawReader {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

/// A frame as it is sent.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = (payload.len() as u32).to_be_bytes();
    let mut bytes = vec![high, middle, low, kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// `CONNECT <authority>` in literals without indexing (RFC 7541 section 6.2.2), as a HEADERS frame.
pub fn connect_request(stream: u32, authority: &str) -> Vec<u8> {
    frame(kind::HEADERS, flag::END_HEADERS, stream, &connect_block(authority))
}

/// The header block of a CONNECT, for an authority of fewer than 127 bytes.
pub fn connect_block(authority: &str) -> Vec<u8> {
    [&[0x02, 7][..], b"CONNECT", &[0x01, authority.len() as u8], authority.as_bytes()].concat()
}
