//! The proxy's side of the protocol as a state machine: packets in, requests out.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::transport::Packet;
use super::wire::{DecodeError, RequestMessage, WorkloadInfo, decode_request};
use crate::netns::{Netns, NetnsError};
use crate::sys::message::Truncated;

/// What the agent wants. Every request is owed one answer, [`super::Connection::respond`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Serve a pod: open its listeners, then answer. Answering with success means they are open.
    Add {
        /// The pod's UID: the key under which it is kept and deleted later.
        uid: String,
        /// Which pod it is.
        workload: WorkloadInfo,
        /// The pod's network namespace, checked to be one.
        netns: Netns,
    },
    /// Go on serving a pod if it is served; counts as named in the snapshot. Never after the snapshot.
    Keep {
        /// The pod's UID.
        uid: String,
    },
    /// Stop serving a pod.
    Delete {
        /// The pod's UID.
        uid: String,
    },
    /// Every pod of the node has been named: stop serving the others. Once per connection.
    SnapshotSent,
}

/// What went wrong on the connection with the agent.
#[derive(Debug, thiserror::Error)]
pub enum ZdsError {
    /// The agent is not there.
    #[error("cannot reach the node agent at {}", path.display())]
    Dial {
        /// Its socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke while sending.
    #[error("cannot send to the node agent")]
    Send(#[source] io::Error),
    /// The connection broke while receiving.
    #[error("cannot receive from the node agent")]
    Receive(#[source] io::Error),
    /// A packet longer than [`super::MAX_PACKET`].
    #[error("the node agent sent a packet that is too long")]
    PacketTooLong,
    /// More descriptors than one.
    #[error("the node agent sent more than one descriptor, or this process has no room for any")]
    TooManyDescriptors,
    /// Not a request.
    #[error("the node agent sent what is not a request")]
    Malformed(#[from] DecodeError),
    /// An Add without its namespace.
    #[error("the node agent added pod {uid} without a network namespace")]
    MissingDescriptor {
        /// The pod's UID.
        uid: String,
    },
    /// A descriptor with something other than Add.
    #[error("the node agent sent a descriptor where none belongs")]
    UnexpectedDescriptor,
    /// The descriptor that came with an Add is not a network namespace.
    #[error("the node agent added pod {uid} with something that is not its network namespace")]
    WrongDescriptor {
        /// The pod's UID.
        uid: String,
        /// What was found.
        source: NetnsError,
    },
    /// An Add that does not say which pod it is.
    #[error("the node agent added pod {uid} without its name")]
    MissingWorkloadInfo {
        /// The pod's UID.
        uid: String,
    },
    /// Keep after SnapshotSent.
    #[error("the node agent sent Keep for pod {uid} after the snapshot")]
    KeepAfterSnapshot {
        /// The pod's UID.
        uid: String,
    },
    /// A second SnapshotSent.
    #[error("the node agent ended its snapshot twice")]
    RepeatedSnapshot,
}

/// How to go on after a [`ZdsError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Answer with the error and read on: it concerns one pod only.
    Continue,
    /// Answer with the error if it was a request that was wrong, drop the connection and dial again. Pods are
    /// served meanwhile.
    Reconnect,
    /// Answer with the error and end the process: the agent does not speak this protocol.
    Exit,
}

impl ZdsError {
    /// How to go on.
    pub fn recovery(&self) -> Recovery {
        match self {
            ZdsError::WrongDescriptor { .. } => Recovery::Continue,
            ZdsError::Dial { .. }
            | ZdsError::Send(_)
            | ZdsError::Receive(_)
            | ZdsError::PacketTooLong
            | ZdsError::TooManyDescriptors
            | ZdsError::Malformed(_)
            | ZdsError::MissingDescriptor { .. }
            | ZdsError::UnexpectedDescriptor => Recovery::Reconnect,
            ZdsError::MissingWorkloadInfo { .. }
            | ZdsError::KeepAfterSnapshot { .. }
            | ZdsError::RepeatedSnapshot => Recovery::Exit,
        }
    }
}

/// What has been said on one connection so far.
#[derive(Debug)]
pub(super) enum Session {
    /// The agent is naming the pods of the node.
    Snapshot,
    /// The agent has named them and reports changes.
    Updates,
}

impl Session {
    /// Understands the next packet; `None` is the end of the connection. The packet's descriptors are closed unless
    /// they are part of the returned request.
    pub(super) fn receive(&mut self, packet: Packet) -> Result<Option<Request>, ZdsError> {
        match packet.truncated {
            Some(Truncated::Payload) => return Err(ZdsError::PacketTooLong),
            Some(Truncated::Control) => return Err(ZdsError::TooManyDescriptors),
            None if packet.descriptors.len() > 1 => return Err(ZdsError::TooManyDescriptors),
            None if packet.bytes.is_empty() => return Ok(None),
            None => {}
        }
        let descriptor = packet.descriptors.into_iter().next();
        let request = match (decode_request(&packet.bytes)?, descriptor) {
            (RequestMessage::Add { uid, workload }, descriptor) => add(uid, workload, descriptor)?,
            (_, Some(_)) => return Err(ZdsError::UnexpectedDescriptor),
            (RequestMessage::Keep { uid }, None) => Request::Keep { uid },
            (RequestMessage::Delete { uid }, None) => Request::Delete { uid },
            (RequestMessage::SnapshotSent, None) => Request::SnapshotSent,
        };
        match (&self, &request) {
            (Session::Updates, Request::Keep { uid }) => {
                return Err(ZdsError::KeepAfterSnapshot { uid: uid.clone() });
            }
            (Session::Updates, Request::SnapshotSent) => return Err(ZdsError::RepeatedSnapshot),
            (Session::Snapshot, Request::SnapshotSent) => *self = Session::Updates,
            _ => {}
        }
        Ok(Some(request))
    }
}

fn add(
    uid: String,
    workload: Option<WorkloadInfo>,
    descriptor: Option<OwnedFd>,
) -> Result<Request, ZdsError> {
    let Some(descriptor) = descriptor else { return Err(ZdsError::MissingDescriptor { uid }) };
    let Some(workload) = workload else { return Err(ZdsError::MissingWorkloadInfo { uid }) };
    match Netns::from_fd(descriptor) {
        Ok(netns) => Ok(Request::Add { uid, workload, netns }),
        Err(source) => Err(ZdsError::WrongDescriptor { uid, source }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::wire::encode_request;
    use super::*;

    fn uid() -> String {
        "u1".to_owned()
    }

    fn info() -> WorkloadInfo {
        let [name, namespace, service_account] = ["p", "n", "s"].map(str::to_owned);
        WorkloadInfo { name, namespace, service_account }
    }

    fn add_message() -> RequestMessage {
        RequestMessage::Add { uid: uid(), workload: Some(info()) }
    }

    fn namespace(kind: &str) -> OwnedFd {
        File::open(format!("/proc/thread-self/ns/{kind}")).unwrap().into()
    }

    fn packet(message: &RequestMessage, descriptors: Vec<OwnedFd>) -> Packet {
        Packet { bytes: encode_request(message), descriptors, truncated: None }
    }

    #[test]
    fn an_add_with_one_namespace_carries_uid_and_pod() {
        let request = Session::Snapshot.receive(packet(&add_message(), vec![namespace("net")])).unwrap();
        let netns = Netns::current().unwrap();
        assert_eq!(request, Some(Request::Add { uid: uid(), workload: info(), netns }));
    }

    #[test]
    fn delete_keep_and_snapshot_come_without_a_descriptor() {
        for message in [
            RequestMessage::Delete { uid: uid() },
            RequestMessage::Keep { uid: uid() },
            RequestMessage::SnapshotSent,
        ] {
            assert!(Session::Snapshot.receive(packet(&message, vec![])).unwrap().is_some());
            let error = Session::Snapshot.receive(packet(&message, vec![namespace("net")])).unwrap_err();
            assert!(matches!(error, ZdsError::UnexpectedDescriptor), "{message:?}");
            assert_eq!(error.recovery(), Recovery::Reconnect);
        }
    }

    #[test]
    fn an_add_without_descriptor_or_with_two_is_refused() {
        let error = Session::Snapshot.receive(packet(&add_message(), vec![])).unwrap_err();
        assert!(matches!(error, ZdsError::MissingDescriptor { .. }));
        let two = vec![namespace("net"), namespace("net")];
        let error = Session::Snapshot.receive(packet(&add_message(), two)).unwrap_err();
        assert!(matches!(error, ZdsError::TooManyDescriptors));
        assert_eq!(error.recovery(), Recovery::Reconnect);
    }

    #[test]
    fn a_descriptor_that_is_no_network_namespace_concerns_one_pod_only() {
        for wrong in [namespace("mnt"), File::open("/dev/null").unwrap().into()] {
            let error = Session::Updates.receive(packet(&add_message(), vec![wrong])).unwrap_err();
            assert!(matches!(error, ZdsError::WrongDescriptor { .. }));
            assert_eq!(error.recovery(), Recovery::Continue);
        }
    }

    #[test]
    fn an_add_that_does_not_name_its_pod_ends_the_process() {
        let message = RequestMessage::Add { uid: uid(), workload: None };
        let error = Session::Snapshot.receive(packet(&message, vec![namespace("net")])).unwrap_err();
        assert!(matches!(error, ZdsError::MissingWorkloadInfo { .. }));
        assert_eq!(error.recovery(), Recovery::Exit);
    }

    #[test]
    fn keep_or_a_second_snapshot_after_the_snapshot_ends_the_process() {
        let mut session = Session::Snapshot;
        assert_eq!(
            session.receive(packet(&RequestMessage::SnapshotSent, vec![])).unwrap(),
            Some(Request::SnapshotSent)
        );
        let error = session.receive(packet(&RequestMessage::Keep { uid: uid() }, vec![])).unwrap_err();
        assert!(matches!(&error, ZdsError::KeepAfterSnapshot { uid } if uid == "u1"));
        assert_eq!(error.recovery(), Recovery::Exit);
        let error = session.receive(packet(&RequestMessage::SnapshotSent, vec![])).unwrap_err();
        assert!(matches!(error, ZdsError::RepeatedSnapshot));
        assert_eq!(error.recovery(), Recovery::Exit);
        // Adds and deletes go on.
        assert!(session.receive(packet(&RequestMessage::Delete { uid: uid() }, vec![])).unwrap().is_some());
        assert!(session.receive(packet(&add_message(), vec![namespace("net")])).unwrap().is_some());
    }

    #[test]
    fn an_empty_packet_is_the_end_but_one_with_an_unknown_payload_is_an_error() {
        let bytes = |bytes: &[u8]| Packet { bytes: bytes.to_vec(), descriptors: vec![], truncated: None };
        assert_eq!(Session::Snapshot.receive(bytes(b"")).unwrap(), None);
        let error = Session::Snapshot.receive(bytes(b"\x7a\x00")).unwrap_err();
        assert!(matches!(error, ZdsError::Malformed(DecodeError::NoPayload)));
        assert_eq!(error.recovery(), Recovery::Reconnect);
    }

    #[test]
    fn cut_off_packets_are_refused_however_well_they_read() {
        for truncated in [Truncated::Payload, Truncated::Control] {
            let mut packet = packet(&add_message(), vec![namespace("net")]);
            packet.truncated = Some(truncated);
            assert_eq!(Session::Snapshot.receive(packet).unwrap_err().recovery(), Recovery::Reconnect);
        }
    }
}
