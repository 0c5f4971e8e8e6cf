//! Stage 1: a connection arrives on one of a pod's listeners and is given to a worker.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use nix::errno::Errno;
use redirect::socket::original_destination;
use tokio::net::{TcpListener, TcpStream};

use super::pod::{LocalPod, Place};
use super::{inbound, outbound, passthrough};
use crate::worker::WorkerHandle;

/// Which of a pod's listeners.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Listener {
    /// 15001: what the pod's applications opened.
    Outbound,
    /// 15008: tunnels from other proxies.
    Tunnel,
    /// 15006: what arrived for the pod outside a tunnel.
    Plaintext,
}

impl Listener {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Outbound, Self::Tunnel, Self::Plaintext];

    /// The port that the pod's rules redirect to, or that other proxies dial.
    pub(crate) const fn port(self) -> u16 {
        match self {
            Self::Outbound => 15001,
            Self::Tunnel => 15008,
            Self::Plaintext => 15006,
        }
    }

    /// Our ports: a connection to one of them through ourselves would never end.
    pub(crate) const OWN_PORTS: [u16; 3] =
        [Self::Outbound.port(), Self::Tunnel.port(), Self::Plaintext.port()];
}

/// A connection that was accepted, before anything is decided about it.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// The client's connection.
    pub(crate) stream: TcpStream,
    /// Who connected, as the kernel knows it.
    pub(crate) peer: SocketAddr,
    /// Where the client was going before redirection.
    pub(crate) destination: SocketAddr,
    /// Whether the client's address may be used towards the application.
    pub(crate) keep_source: KeepSource,
    /// When it was accepted.
    pub(crate) at: Instant,
}

/// Whether a client's address is used towards the application.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum KeepSource {
    /// It is.
    Yes,
    /// The kernel does not let us, or we were told not to.
    No,
}

impl KeepSource {
    /// The address to connect from, if the client's is kept.
    pub(crate) fn then(self, client: IpAddr) -> Option<IpAddr> {
        match self {
            Self::Yes => Some(client),
            Self::No => None,
        }
    }
}

/// An accepted socket on its way to the worker that will serve it.
struct Arrival {
    listener: Listener,
    stream: TcpStream,
    peer: SocketAddr,
    keep_source: KeepSource,
    at: Instant,
}

/// Pause when the kernel has no descriptor or memory for another connection. Those we serve go on, and end.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the pod drains; then takes what is queued and closes.
pub(crate) async fn listen(
    pod: Rc<LocalPod>,
    listener: Listener,
    socket: std::net::TcpListener,
    keep_source: KeepSource,
    _place: Place,
) {
    let socket = match TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::error!(?listener, %error, "cannot watch a listener"),
    };
    let mut draining = std::pin::pin!(pod.draining());
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut draining => break,
            accepted = socket.accept() => accepted,
        };
        take(&pod, listener, accepted, keep_source).await;
    }
    while let Some(accepted) = socket.accept().now_or_never() {
        take(&pod, listener, accepted, keep_source).await;
    }
}

async fn take(
    pod: &Rc<LocalPod>,
    listener: Listener,
    accepted: io::Result<(TcpStream, SocketAddr)>,
    keep_source: KeepSource,
) {
    match accepted {
        Ok((stream, peer)) => {
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            dispatch(pod, Arrival { listener, stream, peer, keep_source, at: Instant::now() });
        }
        Err(error) if is_exhaustion(&error) => {
            tracing::warn!(?listener, %error, "new connections wait: no descriptors or memory are left");
            tokio::time::sleep(EXHAUSTED_PAUSE).await;
        }
        // The client was gone before we took it (accept(2) reports that as the listener's error).
        Err(error) => tracing::debug!(?listener, %error, "a connection ended before it was accepted"),
    }
}

fn is_exhaustion(error: &io::Error) -> bool {
    let exhausted = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    error.raw_os_error().is_some_and(|code| exhausted.contains(&Errno::from_raw(code)))
}

/// Gives the connection to the worker with the fewest, or keeps it when that one has no room in its queue.
fn dispatch(pod: &Rc<LocalPod>, arrival: Arrival) {
    let Some(slot) = pod.worker.least_loaded().and_then(WorkerHandle::reserve) else {
        return serve(pod, arrival);
    };
    let Arrival { listener, stream, peer, keep_source, at } = arrival;
    // Out of this thread's reactor, so that the other one can take it.
    let stream = match stream.into_std() {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%error, "a connection ended before it was served"),
    };
    let instance = pod.pod.instance;
    slot.run(move |worker| {
        // A pod that has stopped since takes no connections: this one is closed.
        let Some(pod) = worker.pod(instance) else { return };
        match TcpStream::from_std(stream) {
            Ok(stream) => serve(&pod, Arrival { listener, stream, peer, keep_source, at }),
            Err(error) => tracing::debug!(%error, "a connection ended before it was served"),
        }
    });
}

/// Starts the connection's task, on the worker that will keep it.
fn serve(pod: &Rc<LocalPod>, arrival: Arrival) {
    let Arrival { listener, stream, peer, keep_source, at } = arrival;
    let destination = match listener {
        // Tunnels are not redirected.
        Listener::Tunnel => stream.local_addr(),
        Listener::Outbound | Listener::Plaintext => {
            original_destination(&stream, peer).map(|destination| destination.address())
        }
    };
    let destination = match destination {
        Ok(destination) => SocketAddr::new(destination.ip().to_canonical(), destination.port()),
        Err(error) => return tracing::debug!(%error, "a connection ended before it was served"),
    };
    let accepted = Accepted { stream, peer, destination, keep_source, at };
    match listener {
        Listener::Outbound => pod.spawn(|place| outbound::serve(pod.clone(), accepted, place)),
        Listener::Tunnel => pod.spawn(|place| inbound::serve(pod.clone(), accepted, place)),
        Listener::Plaintext => pod.spawn(|place| passthrough::serve(pod.clone(), accepted, place)),
    }
}
