//! Traffic that goes on while something else happens, and tells afterwards what went wrong.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::traffic::{self, Outcome};
use crate::{Pod, Result, Task};

/// Between two connections, or two round trips, of one of the clients.
const PACE: Duration = Duration::from_millis(10);

/// Clients in a pod that talk to an echo server until they are [stopped](Flow::stop): some open a connection after the
/// other, others make round trips on connections that stay open.
pub struct Flow {
    stop: watch::Sender<bool>,
    task: Task<Flowed>,
}

/// What the clients of a [`Flow`] have seen.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Flowed {
    /// Connections opened, used and closed.
    pub connections: usize,
    /// Round trips on connections that stayed open.
    pub round_trips: usize,
    /// What went wrong, in words.
    pub failures: Vec<String>,
}

impl Flow {
    /// Starts two clients of each kind, and returns when all of them have succeeded once.
    pub fn start(from: &Pod, target: SocketAddr) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let (started, all_started) = std::sync::mpsc::channel();
        let task = from.spawn(async move || {
            let mut clients: JoinSet<Flowed> = JoinSet::new();
            let started = Rc::new(started);
            for _ in 0..2 {
                clients.spawn_local(connect_again(target, stopped.clone(), Rc::clone(&started)));
                clients.spawn_local(stay_open(target, stopped.clone(), Rc::clone(&started)));
            }
            drop(started);
            let mut flowed = Flowed::default();
            while let Some(client) = clients.join_next().await {
                let client = client?;
                flowed.connections += client.connections;
                flowed.round_trips += client.round_trips;
                flowed.failures.extend(client.failures);
            }
            Ok(flowed)
        });
        let flow = Self { stop, task };
        for _ in 0..4 {
            if all_started.recv_timeout(crate::PATIENCE).is_err() {
                let flowed = flow.stop()?;
                anyhow::bail!("the traffic did not begin: {flowed:?}");
            }
        }
        Ok(flow)
    }

    /// Stops the clients and gives what they have seen.
    pub fn stop(self) -> Result<Flowed> {
        self.stop.send_replace(true);
        self.task.join()
    }

    /// Stops the clients, all of which must have got all they asked for.
    pub fn stop_whole(self) -> Result<Flowed> {
        let flowed = self.stop()?;
        ensure!(flowed.failures.is_empty(), "{flowed:?}");
        ensure!(flowed.connections > 2 && flowed.round_trips > 2, "hardly anything happened: {flowed:?}");
        Ok(flowed)
    }
}

async fn connect_again(
    target: SocketAddr,
    stopped: watch::Receiver<bool>,
    started: Rc<std::sync::mpsc::Sender<()>>,
) -> Flowed {
    let mut flowed = Flowed::default();
    loop {
        // Everybody has a last word, so that what happened right before the stop does not go unnoticed.
        let is_last = *stopped.borrow();
        match traffic::outcome(target, b"hello").await {
            Ok(outcome) if outcome == Outcome::answered("hello") => {
                flowed.connections += 1;
                if flowed.connections == 1 {
                    // Whoever started this may not wait for it any more.
                    let _ = started.send(());
                }
            }
            Ok(other) => flowed.failures.push(format!("connection {}: {other:?}", flowed.connections)),
            Err(error) => flowed.failures.push(format!("connection {}: {error:#}", flowed.connections)),
        }
        if is_last {
            return flowed;
        }
        tokio::time::sleep(PACE).await;
    }
}

async fn stay_open(
    target: SocketAddr,
    stopped: watch::Receiver<bool>,
    started: Rc<std::sync::mpsc::Sender<()>>,
) -> Flowed {
    let mut flowed = Flowed::default();
    let talk = async {
        let mut stream = traffic::connect(target).await?;
        loop {
            let is_last = *stopped.borrow();
            traffic::round_trip(&mut stream, b"still there?").await?;
            flowed.round_trips += 1;
            if flowed.round_trips == 1 {
                let _ = started.send(());
            }
            if is_last {
                return Ok::<_, anyhow::Error>(());
            }
            tokio::time::sleep(PACE).await;
        }
    };
    if let Err(error) = talk.await {
        flowed.failures.push(format!("round trip {} of an open connection: {error:#}", flowed.round_trips));
    }
    flowed
}

/// A connection that stays open, and makes a round trip when asked to.
pub struct OpenConnection {
    asks: mpsc::UnboundedSender<oneshot::Sender<io::Result<()>>>,
    _task: Task<()>,
}

impl OpenConnection {
    /// Connects to an echo server and makes a first round trip.
    pub fn open(from: &Pod, target: SocketAddr) -> Result<Self> {
        let (asks, mut asked) = mpsc::unbounded_channel::<oneshot::Sender<io::Result<()>>>();
        let task = from.spawn(async move || {
            let mut stream = traffic::connect(target).await?;
            while let Some(answer) = asked.recv().await {
                let outcome = traffic::round_trip(&mut stream, b"still there?").await;
                // Whoever asked may have given up.
                let _ = answer.send(outcome.map_err(|error| match error.downcast() {
                    Ok(error) => error,
                    Err(error) => io::Error::other(error),
                }));
            }
            Ok(())
        });
        let connection = Self { asks, _task: task };
        ensure!(connection.works(), "a new connection from {} to {target} does not work", from.name());
        Ok(connection)
    }

    /// Whether a round trip succeeds.
    pub fn works(&self) -> bool {
        self.round_trip().is_ok()
    }

    fn round_trip(&self) -> io::Result<()> {
        let (answer, answered) = oneshot::channel();
        let nobody = || io::Error::other("the connection's task has ended");
        self.asks.send(answer).map_err(|_| nobody())?;
        answered.blocking_recv().map_err(|_| nobody())?
    }

    /// Waits, at most [`PATIENCE`](crate::PATIENCE), until round trips fail, and says how.
    pub fn wait_until_over(&self) -> Result<io::ErrorKind> {
        let mut end = None;
        crate::wait_until(|| {
            end = self.round_trip().err().map(|error| error.kind());
            end.is_some()
        })
        .context("the connection goes on")?;
        end.context("the connection goes on")
    }

    /// As [`wait_until_over`](Self::wait_until_over), by a reset: what looks like an end of data is taken for the whole.
    pub fn wait_until_cut(&self) -> Result<()> {
        let end = self.wait_until_over()?;
        ensure!(
            end == io::ErrorKind::ConnectionReset,
            "the connection ended otherwise than by a reset: {end:?}"
        );
        Ok(())
    }
}
