//! When to stop: SIGTERM or SIGINT asks for a graceful end, a second SIGINT for an immediate one.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end the process.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Starts to catch them. From here on they no longer end the process by themselves.
    pub fn catch() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits until a graceful end is asked for, and names what asked.
    pub async fn requested(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Waits until somebody at a terminal loses patience. Further SIGTERMs do not count: the node agent repeats them.
    pub async fn repeated(&mut self) {
        self.interrupt.recv().await;
    }
}
