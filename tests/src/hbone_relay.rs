//! A scripted end of HBONE tunnels, under any identity: a waypoint, another network's gateway, or a destination.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::traffic::{Server, bounded};
use crate::{Pod, Result, issue};

/// Terminates tunnels on a port of a pod and passes the bytes of every stream on to one address. Dropping it closes all.
pub struct HboneRelay {
    server: Server,
    heard: Arc<Mutex<Vec<Heard>>>,
    end: watch::Sender<Option<Ending>>,
}

/// One CONNECT request.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The request's `:authority`.
    pub authority: String,
    /// Its headers.
    pub headers: HeaderMap,
}

/// How a relay ends what it relays.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// As if everything had been said: END_STREAM on every stream.
    EndStream,
    /// By closing the TCP connections of its tunnels.
    Close,
}

/// What every tunnel of a relay needs.
struct Script {
    identity: String,
    ca: std::path::PathBuf,
    onward: SocketAddr,
    baggage: Option<&'static str>,
    heard: Arc<Mutex<Vec<Heard>>>,
    ending: watch::Receiver<Option<Ending>>,
}

impl HboneRelay {
    /// Listens on `port` of `pod` as `identity`, whoever that is, and passes on to `onward`. Its answers carry `baggage`.
    pub fn start(
        pod: &Pod,
        port: u16,
        identity: &str,
        onward: SocketAddr,
        baggage: Option<&'static str>,
    ) -> Result<Self> {
        let heard = Arc::<Mutex<Vec<Heard>>>::default();
        let (end, ending) = watch::channel(None);
        let (identity, ca) = (identity.to_owned(), pod.node().ca_directory().to_owned());
        let script = Arc::new(Script { identity, ca, onward, baggage, heard: Arc::clone(&heard), ending });
        let server = Server::start(pod, port, async move |stream, _| terminate(stream, &script).await)?;
        Ok(Self { server, heard, end })
    }

    /// All requests so far.
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many TCP connections were made to it so far.
    pub fn accepted(&self) -> usize {
        self.server.accepted()
    }

    /// Ends everything that is being relayed, and everything that will be.
    pub fn end(&self, ending: Ending) {
        self.end.send_replace(Some(ending));
    }
}

async fn terminate(stream: TcpStream, script: &Script) -> Result<()> {
    let certificate = issue(&script.ca, &script.identity.parse()?).await?;
    let tls = TlsAcceptor::from(certificate.server_config()).accept(stream);
    let tls = bounded("a TLS handshake", async { Ok(tls.await?) }).await?;
    let mut connection = h2::server::handshake(tls).await?;
    let mut ending = script.ending.clone();
    let mut streams = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            _ = ending.wait_for(|ending| *ending == Some(Ending::Close)) => bail!("told to close"),
        };
        let Some(accepted) = accepted else { return Ok(()) };
        let (request, mut respond) = accepted?;
        let authority = request.uri().authority().context("no authority")?.to_string();
        let heard = Heard { authority, headers: request.headers().clone() };
        script.heard.lock().unwrap_or_else(PoisonError::into_inner).push(heard);
        let mut response = Response::builder();
        if let Some(baggage) = script.baggage {
            response = response.header("baggage", baggage);
        }
        let (response, onward, ending) = (response.body(())?, script.onward, script.ending.clone());
        streams.spawn_local(async move {
            // What goes wrong shows at the client, where the test looks.
            let Ok(upstream) = TcpStream::connect(onward).await else { return };
            if let Ok(send) = respond.send_response(response, false) {
                let _ = relay(request.into_body(), send, upstream, ending).await;
            }
        });
    }
}

async fn relay(
    mut receive: RecvStream,
    mut send: SendStream<Bytes>,
    upstream: TcpStream,
    mut ending: watch::Receiver<Option<Ending>>,
) -> Result<()> {
    let (mut read, mut write) = upstream.into_split();
    let up = async move {
        while let Some(data) = receive.data().await {
            let data = data?;
            receive.flow_control().release_capacity(data.len())?;
            write.write_all(&data).await?;
        }
        Ok::<_, anyhow::Error>(write.shutdown().await?)
    };
    let down = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let length = tokio::select! {
                length = read.read(&mut buffer) => length?,
                _ = ending.wait_for(Option::is_some) => 0,
            };
            send.send_data(Bytes::copy_from_slice(&buffer[..length]), length == 0)?;
            if length == 0 {
                return Ok(());
            }
        }
    };
    tokio::try_join!(up, down)?;
    Ok(())
}
