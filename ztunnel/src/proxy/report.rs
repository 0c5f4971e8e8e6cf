//! Stage 6: exactly one record for each connection, on every path.
//!
//! A [`Record`] is made when it is known where a connection goes. It reports itself when it is finished, and, if it
//! never is because the task was cut, when it is dropped. A connection that is refused before that is an
//! [early denial](deny_early).

use std::cell::{OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use hbone::Authority;
use identity::SpiffeId;

use super::authorize::{Decider, Denied};
use super::copy::{Limits, Transfer};
use super::cut::Cutter;
use super::error::ConnectionError;
use super::open_connections::{Entry, OpenConnections};
use crate::state::model::{Service, Workload};
use crate::telemetry::with_causes;

/// Which end of the conversation this proxy is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Direction {
    /// The client's.
    Outbound,
    /// The server's.
    Inbound,
}

impl Direction {
    fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// One end of a connection, as it is reported.
#[derive(Debug)]
pub(crate) struct Party {
    /// Where it is.
    pub(crate) address: SocketAddr,
    /// Which workload it is, if that is known.
    pub(crate) workload: Option<Arc<Workload>>,
    /// Who it is, where mutual TLS vouches for it.
    pub(crate) identity: Option<SpiffeId>,
}

impl Party {
    fn name(&self) -> Option<&str> {
        self.workload.as_ref().map(|workload| &*workload.name).filter(|name| !name.is_empty())
    }

    fn namespace(&self) -> Option<&str> {
        let of_workload = self.workload.as_ref().map(|workload| &*workload.namespace);
        of_workload
            .or_else(|| self.identity.as_ref().map(SpiffeId::namespace))
            .filter(|name| !name.is_empty())
    }

    fn cluster(&self) -> Option<&str> {
        self.workload.as_ref().map(|workload| &*workload.cluster_id).filter(|name| !name.is_empty())
    }
}

/// Everything that is reported of one connection.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) direction: Direction,
    pub(crate) since: Instant,
    pub(crate) source: Party,
    pub(crate) destination: Party,
    /// What is behind the tunnels: the address that the pod's application dialled or, towards a pod, the one of its
    /// application that policies are asked about.
    pub(crate) target: SocketAddr,
    /// `:authority` of the CONNECT request, where there is one.
    pub(crate) hbone_authority: Option<Authority>,
    pub(crate) service: Option<Arc<Service>>,
    pub(crate) transfer: Transfer,
    /// The policy that let it in, if it took one.
    pub(crate) permitted_by: OnceCell<Decider>,
    /// The end that was connected to instead of `destination`, or that is known only since.
    pub(crate) reached: RefCell<Option<Box<Reached>>>,
}

/// Where a connection went at last.
#[derive(Debug)]
pub(crate) struct Reached {
    pub(crate) destination: Party,
    pub(crate) hbone_authority: Option<Authority>,
}

/// The record of a connection that is among the open ones, and that will report its end.
#[derive(Debug)]
pub(crate) struct OpenRecord(Entry);

/// Writes the log line of a connection's event, with the fields in the order that log readers expect.
macro_rules! access {
    ($level:expr, $message:literal, $record:expr $(, $name:literal = $value:expr)*) => {{
        let record: &Record = $record;
        let reached = record.reached.borrow();
        let (destination, authority) = match reached.as_deref() {
            Some(reached) => (&reached.destination, &reached.hbone_authority),
            None => (&record.destination, &record.hbone_authority),
        };
        tracing::event!(
            target: "access",
            $level,
            "src.addr" = display(record.source.address),
            "src.workload" = record.source.name(),
            "src.namespace" = record.source.namespace(),
            "src.identity" = record.source.identity.as_ref().map(SpiffeId::as_str),
            "src.cluster" = record.source.cluster(),
            "dst.addr" = display(destination.address),
            "dst.hbone_addr" = authority.as_ref().map(display),
            "dst.service" = record.service.as_ref().map(|service| &*service.host.hostname),
            "dst.workload" = destination.name(),
            "dst.namespace" = destination.namespace(),
            "dst.identity" = destination.identity.as_ref().map(SpiffeId::as_str),
            "dst.cluster" = destination.cluster(),
            "direction" = record.direction.as_str(),
            $($name = $value,)*
            $message
        )
    }};
}

impl Record {
    /// Announces the connection, which is among the open ones of its pod from now on.
    pub(crate) fn open(self, among: &Rc<OpenConnections>) -> OpenRecord {
        let open = self.prepare(among);
        open.announce();
        open
    }

    /// For a connection that is announced once it is known where it goes, or that it goes nowhere. It is among the open ones
    /// of its pod from now on.
    pub(crate) fn prepare(self, among: &Rc<OpenConnections>) -> OpenRecord {
        OpenRecord(among.add(self))
    }

    /// Whether the connection came in the tunnel between `peer` and our address `local`.
    pub(crate) fn is_in_tunnel(&self, peer: SocketAddr, local: SocketAddr) -> bool {
        self.direction == Direction::Inbound
            && self.hbone_authority.is_some()
            && (self.source.address, self.destination.address) == (peer, local)
    }

    /// Bytes that the local workload sent and received.
    fn bytes_sent_and_received(&self) -> (u64, u64) {
        let (from_client, to_client) = (self.transfer.from_client.get(), self.transfer.to_client.get());
        match self.direction {
            Direction::Outbound => (from_client, to_client),
            Direction::Inbound => (to_client, from_client),
        }
    }

    /// The policy that decided about the connection at last, if one did.
    fn decider<'a>(&'a self, result: Result<(), &'a ConnectionError>) -> Option<&'a Decider> {
        match result {
            Err(ConnectionError::Denied(Denied::Explicitly(by))) => Some(by),
            Err(ConnectionError::Denied(_)) => None,
            _ => self.permitted_by.get(),
        }
    }

    fn close(&self, result: Result<(), &ConnectionError>) {
        let decider = self.decider(result);
        let (policy, rule) = (decider.map(|by| &**by.policy.key()), decider.map(|by| by.rule));
        let (sent, received) = self.bytes_sent_and_received();
        let duration = format!("{}ms", self.since.elapsed().as_millis());
        match result {
            Ok(()) => access!(
                tracing::Level::INFO,
                "connection complete",
                self,
                "bytes_sent" = sent,
                "bytes_recv" = received,
                "duration" = duration,
                "authz.policy" = policy,
                "authz.rule" = rule
            ),
            Err(error) => {
                tracing::debug!(flag = ?error.flag(), "connection failed");
                let error = with_causes(error);
                access!(
                    tracing::Level::ERROR,
                    "connection complete",
                    self,
                    "bytes_sent" = sent,
                    "bytes_recv" = received,
                    "duration" = duration,
                    "error" = error,
                    "authz.policy" = policy,
                    "authz.rule" = rule
                );
            }
        }
    }
}

impl OpenRecord {
    /// Where the bytes are counted.
    pub(crate) fn transfer(&self) -> &Transfer {
        &self.record().transfer
    }

    /// Announces the connection, if that has not happened yet.
    pub(crate) fn announce(&self) {
        if !self.0.announced.replace(true) {
            access!(tracing::Level::DEBUG, "connection opened", self.record());
        }
    }

    /// Notes where the connection goes, other than was said at first.
    pub(crate) fn reached(&self, reached: Reached) {
        self.record().reached.replace(Some(Box::new(reached)));
    }

    /// When the connection is to end.
    pub(crate) fn limits(&self) -> &impl Limits {
        &*self.0
    }

    /// By which the connection is cut.
    pub(crate) fn cutter(&self) -> &Cutter {
        &self.0.cutter
    }

    /// Notes the policy that let the connection in, if it took one.
    pub(crate) fn permitted_by(&self, decider: Option<&Decider>) {
        if let Some(decider) = decider {
            // A connection is let in once.
            drop(self.record().permitted_by.set(decider.clone()));
        }
    }

    /// Reports the end. That the connection was cut goes before whatever that looked like from inside.
    pub(crate) fn finish(self, result: Result<(), ConnectionError>) {
        self.0.finished.set(true);
        self.announce();
        let result = match self.cutter().reason() {
            Some(reason) => Err(reason.clone().into()),
            None => result,
        };
        self.record().close(result.as_ref().copied());
    }

    fn record(&self) -> &Record {
        &self.0.record
    }
}

impl Drop for OpenRecord {
    fn drop(&mut self) {
        if !self.0.finished.get() {
            self.announce();
            self.record().close(Err(&ConnectionError::Drained));
        }
    }
}

/// Reports a connection that was refused before it was known where it goes.
pub(crate) fn deny_early(
    source: SocketAddr,
    destination: SocketAddr,
    direction: Direction,
    error: &(dyn std::error::Error + 'static),
) {
    tracing::event!(
        target: "access",
        tracing::Level::WARN,
        "src.addr" = display(source),
        "dst.addr" = display(destination),
        "direction" = direction.as_str(),
        "error" = with_causes(error),
        "connection failed"
    );
}
