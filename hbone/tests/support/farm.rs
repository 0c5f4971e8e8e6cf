//! A pool, and destinations for it that count what is dialled.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use hbone::{
    ClientSettings, Connected, HboneStream, Pool, PoolError, PoolSettings, Server, ServerSettings, Tunnel,
};
use tokio::io::duplex;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::Instant;

use super::{TRANSPORT, echo, request, soon, tunnel};

pub(crate) type TestPool = Pool<&'static str, Rc<str>>;

/// Destinations that count what is dialled.
#[derive(Clone, Default)]
pub(crate) struct Farm(pub(crate) Rc<FarmState>);

#[derive(Default)]
pub(crate) struct FarmState {
    pub(crate) settings: RefCell<(ClientSettings, ServerSettings)>,
    pub(crate) dials: Cell<usize>,
    /// Servers whose tunnel has not ended.
    pub(crate) live: Cell<usize>,
    /// Tells servers to drain.
    pub(crate) drain: Notify,
    /// While set, dials wait for it.
    pub(crate) gate: RefCell<Option<Rc<Notify>>>,
    /// While set, dials fail with it.
    pub(crate) failure: RefCell<Option<Rc<str>>>,
}

impl Farm {
    pub(crate) fn with_peer_limit(max_streams: u32) -> Farm {
        let farm = Farm::default();
        farm.0.settings.borrow_mut().1.max_streams = max_streams;
        farm
    }

    /// What a pool is given to open a tunnel with.
    pub(crate) fn dial(&self) -> impl AsyncFnOnce() -> Result<Tunnel, Rc<str>> + Clone + 'static {
        let farm = self.clone();
        move || async move {
            farm.0.dials.set(farm.0.dials.get() + 1);
            let gate = farm.0.gate.borrow().clone();
            if let Some(gate) = gate {
                gate.notified().await;
            }
            if let Some(failure) = &*farm.0.failure.borrow() {
                return Err(failure.clone());
            }
            let (near, far) = duplex(TRANSPORT);
            let settings = farm.0.settings.borrow().clone();
            spawn_local(farm.clone().serve(far, settings.1));
            let (tunnel, _driver) = tunnel(near, &settings.0).await;
            Ok(tunnel)
        }
    }

    pub(crate) async fn serve(self, io: tokio::io::DuplexStream, settings: ServerSettings) {
        self.0.live.set(self.0.live.get() + 1);
        let mut server = Server::handshake(io, &settings, soon()).await.unwrap();
        loop {
            tokio::select! {
                incoming = server.accept() => match incoming {
                    Some(Ok(incoming)) => drop(spawn_local(echo(incoming))),
                    _ => break,
                },
                () = self.0.drain.notified() => server.drain(),
            }
        }
        self.0.live.set(self.0.live.get() - 1);
    }

    pub(crate) fn dials(&self) -> usize {
        self.0.dials.get()
    }

    pub(crate) fn live(&self) -> usize {
        self.0.live.get()
    }

    pub(crate) fn fail(&self, failure: Option<&str>) {
        *self.0.failure.borrow_mut() = failure.map(Rc::from);
    }

    /// Holds up dials until the gate is notified.
    pub(crate) fn gate(&self) -> Rc<Notify> {
        let gate = Rc::new(Notify::new());
        *self.0.gate.borrow_mut() = Some(gate.clone());
        gate
    }
}

pub(crate) fn pool(max_streams: usize) -> Rc<TestPool> {
    pool_with(PoolSettings { max_streams, ..PoolSettings::default() })
}

pub(crate) fn pool_with(settings: PoolSettings) -> Rc<TestPool> {
    Rc::new(Pool::new(settings))
}

pub(crate) type Outcome = Result<Connected, PoolError<Rc<str>>>;

pub(crate) fn connect(pool: &Rc<TestPool>, farm: &Farm, key: &'static str) -> JoinHandle<Outcome> {
    connect_until(pool, farm, key, soon())
}

pub(crate) fn connect_until(
    pool: &Rc<TestPool>,
    farm: &Farm,
    key: &'static str,
    deadline: Instant,
) -> JoinHandle<Outcome> {
    let (pool, dial) = (pool.clone(), farm.dial());
    spawn_local(async move { pool.connect(&key, &request("10.0.0.1:80"), deadline, dial).await })
}

pub(crate) async fn connect_many(
    pool: &Rc<TestPool>,
    farm: &Farm,
    key: &'static str,
    count: usize,
) -> Vec<HboneStream> {
    let tasks: Vec<_> = (0..count).map(|_| connect(pool, farm, key)).collect();
    let mut streams = Vec::new();
    for task in tasks {
        streams.push(task.await.unwrap().unwrap().stream);
    }
    streams
}

pub(crate) async fn assert_echoes(stream: &mut HboneStream) {
    stream.send.send(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(stream.recv.chunk().await.unwrap().unwrap(), "hello");
}
