//! PING at intervals; no acknowledgement in time means the peer is gone (RFC 9113 §6.7).

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep};

use crate::settings::KeepAlive;

/// One tunnel's PING schedule, polled by whoever drives the tunnel.
pub(crate) struct Pinger {
    settings: KeepAlive,
    pings: h2::PingPong,
    waiting_for: WaitingFor,
    timer: Pin<Box<Sleep>>,
}

#[derive(Clone, Copy)]
enum WaitingFor {
    NextPing,
    Acknowledgement,
}

/// The peer did not acknowledge a PING in time.
#[derive(Debug)]
pub(crate) struct PeerIsSilent;

impl Pinger {
    /// The first PING is due one interval from now.
    pub(crate) fn new(settings: KeepAlive, pings: h2::PingPong) -> Self {
        Pinger {
            settings,
            pings,
            waiting_for: WaitingFor::NextPing,
            timer: Box::pin(sleep(settings.interval)),
        }
    }

    /// Ready when the peer is to be given up. Stays pending once the connection itself has ended, since
    /// that is for the connection to report.
    pub(crate) fn poll_silent(&mut self, cx: &mut Context<'_>) -> Poll<PeerIsSilent> {
        loop {
            match self.waiting_for {
                WaitingFor::NextPing => {
                    ready!(self.timer.as_mut().poll(cx));
                    if self.pings.send_ping(h2::Ping::opaque()).is_err() {
                        return Poll::Pending;
                    }
                    self.wait(WaitingFor::Acknowledgement);
                }
                WaitingFor::Acknowledgement => match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => self.wait(WaitingFor::NextPing),
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => {
                        ready!(self.timer.as_mut().poll(cx));
                        return Poll::Ready(PeerIsSilent);
                    }
                },
            }
        }
    }

    fn wait(&mut self, waiting_for: WaitingFor) {
        let pause = match waiting_for {
            WaitingFor::NextPing => self.settings.interval,
            WaitingFor::Acknowledgement => self.settings.timeout,
        };
        self.waiting_for = waiting_for;
        self.timer.as_mut().reset(Instant::now() + pause);
    }
}
