//! The accept loops: connections come in, and each is given to a worker, which keeps it.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use redirect::Netns;
use redirect::socket::{DEFAULT_BACKLOG, ListenError, ListenOptions, Listening, original_destination};
use tokio::net::{TcpListener, TcpStream};

use super::accept::{Accepted, KeepSource, Listener};
use super::classify::ClassifyError;
use super::pod::{LocalPod, Stop};
use super::report::{Direction, deny_early};
use super::task_set::Place;
use super::{inbound_tunnel, outbound, passthrough, socks5};
use crate::metrics::Limit;
use crate::telemetry::with_causes;
use crate::worker::Occupied;

/// Which socket a listener is, so that it can be bound again.
#[derive(Clone, Debug)]
pub(crate) struct Binding {
    pub(crate) listener: Listener,
    pub(crate) address: SocketAddr,
    pub(crate) options: Arc<ListenOptions>,
}

impl Binding {
    /// Binds the socket in `netns`, or in the process's own namespace.
    pub(crate) fn bind(&self, netns: Option<&Netns>) -> Result<Listening, ListenError> {
        let listening = redirect::socket::listen(netns, self.address, &self.options)?;
        let (address, component, transparent) =
            (self.address, self.listener.component(), listening.transparent);
        tracing::info!(%address, component, transparent, "listener established");
        Ok(listening)
    }
}

/// Pause when the kernel has no descriptor or memory for another connection. Those we serve go on, and end.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Pause before a listener that broke is bound again.
const REBIND_PAUSE: Duration = Duration::from_secs(1);

/// Accepts until the pod ends; then takes what is queued, if that may finish, and closes. A listener that somebody destroys is
/// bound again.
pub(crate) async fn listen(pod: Rc<LocalPod>, binding: Binding, listening: Listening, _place: Place) {
    let mut draining = pin!(pod.draining());
    let mut listening = listening;
    loop {
        let door = Door {
            pod: pod.clone(),
            listener: binding.listener,
            keep_source: keep_source(&listening),
            exhausted: Cell::new(false),
        };
        let broken = match TcpListener::from_std(listening.listener) {
            Ok(socket) => tokio::select! {
                biased;
                () = &mut draining => return door.take_queued(socket),
                broken = door.accept(&socket) => broken,
            },
            Err(error) => error,
        };
        let component = binding.listener.component();
        tracing::error!(component, error = %broken, "a listener broke and is bound again");
        listening = tokio::select! {
            () = &mut draining => return,
            listening = rebind(&pod, &binding) => listening,
        };
    }
}

fn keep_source(listening: &Listening) -> KeepSource {
    if listening.transparent { KeepSource::Yes } else { KeepSource::No }
}

async fn rebind(pod: &LocalPod, binding: &Binding) -> Listening {
    loop {
        tokio::time::sleep(REBIND_PAUSE).await;
        match binding.bind(pod.pod.netns.as_ref()) {
            Ok(listening) => return listening,
            Err(error) => tracing::warn!(error = with_causes(&error), "a listener cannot be bound again"),
        }
    }
}

/// Where connections come in.
struct Door {
    pod: Rc<LocalPod>,
    listener: Listener,
    keep_source: KeepSource,
    /// The last attempt to accept found no room; it has been logged.
    exhausted: Cell<bool>,
}

impl Door {
    /// Accepts until the listener itself fails. Cancel safe.
    async fn accept(&self, socket: &TcpListener) -> io::Error {
        loop {
            match socket.accept().await {
                Ok((stream, peer)) => {
                    if self.exhausted.take() {
                        tracing::info!(
                            component = self.listener.component(),
                            "new connections are accepted again"
                        );
                    }
                    self.dispatch(stream, peer);
                }
                Err(error) => match Trouble::of(&error) {
                    Trouble::Client => tracing::debug!(%error, "a connection ended before it was accepted"),
                    Trouble::Exhausted => {
                        self.pod.worker.shared().counters.limits.count(Limit::Accept);
                        if !self.exhausted.replace(true) {
                            let component = self.listener.component();
                            tracing::warn!(component, %error, "new connections wait: no descriptors or memory are left");
                        }
                        tokio::time::sleep(EXHAUSTED_PAUSE).await;
                    }
                    Trouble::Listener => return error,
                },
            }
        }
    }

    /// Takes what the kernel has queued, so that closing the listener resets nobody who is connected already.
    fn take_queued(&self, socket: TcpListener) {
        let Ok(socket) = socket.into_std() else { return };
        for (stream, peer) in queued(&socket, worth_taking(self.pod.ending())) {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                self.dispatch(stream, peer);
            }
        }
    }

    /// Gives the connection to the worker with the fewest, or keeps it when that one has no room in its queue.
    fn dispatch(&self, stream: TcpStream, peer: SocketAddr) {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let (listener, keep_source, at) = (self.listener, self.keep_source, Instant::now());
        let Some((slot, occupied)) = self.pod.worker.hand_over() else {
            let occupied = self.pod.worker.occupy();
            return serve(&self.pod, Arrival { listener, stream, peer, keep_source, at, occupied });
        };
        // Out of this thread's reactor, so that the other one can take it.
        let stream = match stream.into_std() {
            Ok(stream) => stream,
            Err(error) => return tracing::debug!(%error, "a connection ended before it was served"),
        };
        let instance = self.pod.pod.instance;
        slot.run(move |worker| {
            // A pod that has stopped since takes no connections: this one is closed.
            let Some(pod) = worker.pod(instance) else { return };
            match TcpStream::from_std(stream) {
                Ok(stream) => serve(&pod, Arrival { listener, stream, peer, keep_source, at, occupied }),
                Err(error) => tracing::debug!(%error, "a connection ended before it was served"),
            }
        });
    }
}

/// How many queued connections are taken as a pod ends. As many as there may be, but not without end: others may arrive
/// as fast as they are taken, and this thread has other pods. None at all when they would be cut right away.
fn worth_taking(ending: Option<Stop>) -> usize {
    match ending {
        Some(Stop::Now) => 0,
        Some(Stop::Drain(_)) | None => DEFAULT_BACKLOG as usize,
    }
}

/// The first `most` connections that wait on a socket that does not block. Any error, and above all that none waits, is
/// the end.
fn queued(
    socket: &std::net::TcpListener,
    most: usize,
) -> impl Iterator<Item = (std::net::TcpStream, SocketAddr)> {
    std::iter::from_fn(|| socket.accept().ok()).take(most)
}

/// Whose trouble a failure to accept is.
enum Trouble {
    /// The client was gone before we took it: accept(2) reports the connection's errors as its own.
    Client,
    /// The machine has no room for another connection.
    Exhausted,
    /// The listener is of no use any more.
    Listener,
}

impl Trouble {
    fn of(error: &io::Error) -> Self {
        use Errno::*;
        match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
            EMFILE | ENFILE | ENOBUFS | ENOMEM => Self::Exhausted,
            ECONNABORTED | EPROTO | EPERM | EINTR | EOPNOTSUPP | ENOPROTOOPT | ENETDOWN | ENETUNREACH
            | EHOSTDOWN | EHOSTUNREACH | ENONET | ETIMEDOUT => Self::Client,
            _ => Self::Listener,
        }
    }
}

/// An accepted socket on its way to its task.
struct Arrival {
    listener: Listener,
    stream: TcpStream,
    peer: SocketAddr,
    keep_source: KeepSource,
    at: Instant,
    occupied: Occupied,
}

/// Starts the connection's task, on the worker that will keep it.
fn serve(pod: &Rc<LocalPod>, arrival: Arrival) {
    let Arrival { listener, stream, peer, keep_source, at, occupied } = arrival;
    let (local, destination) = match addresses(listener, &stream, peer) {
        Ok(addresses) => addresses,
        Err(error) => return tracing::debug!(%error, "a connection ended before it was served"),
    };
    // Not redirected: somebody dials our own port, and we would dial it again for them.
    if listener == Listener::Outbound && destination == local && Listener::OWN_PORTS.contains(&local.port()) {
        return deny_early(peer, destination, Direction::Outbound, &ClassifyError::SelfCall);
    }
    let accepted = Box::new(Accepted { listener, stream, peer, destination, keep_source, at });
    match listener {
        Listener::Outbound => pod.spawn(occupied, |place| outbound::serve(pod.clone(), accepted, place)),
        Listener::Tunnel => pod.spawn(occupied, |place| inbound_tunnel::serve(pod.clone(), accepted, place)),
        Listener::Plaintext => {
            pod.spawn(occupied, |place| passthrough::serve(pod.clone(), accepted, place));
        }
        Listener::Socks => pod.spawn(occupied, |place| socks5::serve(pod.clone(), accepted, place)),
    }
}

/// The socket's own address, and where the client was going.
fn addresses(
    listener: Listener,
    stream: &TcpStream,
    peer: SocketAddr,
) -> io::Result<(SocketAddr, SocketAddr)> {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let local = canonical(stream.local_addr()?);
    let destination = match listener {
        // Not redirected. Where a SOCKS client goes, it has yet to say.
        Listener::Tunnel | Listener::Socks => local,
        Listener::Outbound | Listener::Plaintext => canonical(original_destination(stream, peer)?.address()),
    };
    Ok((local, destination))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_closing_listener_takes_a_backlog_and_no_more_and_nothing_that_would_be_cut_at_once() {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let clients = [(); 5].map(|()| TcpStream::connect(socket.local_addr().unwrap()).unwrap());
        assert_eq!(queued(&socket, worth_taking(Some(Stop::Now))).count(), 0);
        assert_eq!(queued(&socket, 3).count(), 3, "others still wait");
        let most = worth_taking(Some(Stop::Drain(Duration::ZERO)));
        assert_eq!(most, DEFAULT_BACKLOG as usize);
        assert_eq!(queued(&socket, most).count(), 2);
        drop(clients);
    }
}
