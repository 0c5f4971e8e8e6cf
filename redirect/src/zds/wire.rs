//! Messages and their bytes.

use prost::Message;

mod generated {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/istio.workload.zds.rs"));
}
use generated::{workload_request::Payload, workload_response};

/// Both ends read into a buffer of this size and refuse what is longer.
pub const MAX_PACKET: usize = 1024;

/// Which pod a namespace belongs to, as the control plane names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkloadInfo {
    /// The pod's name.
    pub name: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
}

/// What the agent asks for, without the descriptor that comes with an Add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestMessage {
    /// Serve a pod.
    Add {
        /// The pod's UID, a key and nothing more.
        uid: String,
        /// Which pod it is. Agents of old left it out; today that is an error.
        workload: Option<WorkloadInfo>,
    },
    /// Go on serving a pod, if it is served.
    Keep {
        /// The pod's UID.
        uid: String,
    },
    /// Stop serving a pod.
    Delete {
        /// The pod's UID.
        uid: String,
    },
    /// All pods of the node have been named.
    SnapshotSent,
}

/// A packet is not a message.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not the protobuf message expected here.
    #[error("malformed message")]
    Malformed(#[from] prost::DecodeError),
    /// A message that says nothing, or nothing known to this version.
    #[error("message without a known payload")]
    NoPayload,
}

/// Reads one packet of the agent.
pub fn decode_request(packet: &[u8]) -> Result<RequestMessage, DecodeError> {
    let request = generated::WorkloadRequest::decode(packet)?;
    Ok(match request.payload.ok_or(DecodeError::NoPayload)? {
        Payload::Add(add) => RequestMessage::Add {
            uid: add.uid,
            workload: add.workload_info.map(|info| WorkloadInfo {
                name: info.name,
                namespace: info.namespace,
                service_account: info.service_account,
            }),
        },
        Payload::Keep(keep) => RequestMessage::Keep { uid: keep.uid },
        Payload::Del(del) => RequestMessage::Delete { uid: del.uid },
        Payload::SnapshotSent(_) => RequestMessage::SnapshotSent,
    })
}

pub(super) fn encode_request(request: &RequestMessage) -> Vec<u8> {
    let payload = match request.clone() {
        RequestMessage::Add { uid, workload } => Payload::Add(generated::AddWorkload {
            uid,
            workload_info: workload.map(|info| generated::WorkloadInfo {
                name: info.name,
                namespace: info.namespace,
                service_account: info.service_account,
            }),
        }),
        RequestMessage::Keep { uid } => Payload::Keep(generated::KeepWorkload { uid }),
        RequestMessage::Delete { uid } => Payload::Del(generated::DelWorkload { uid }),
        RequestMessage::SnapshotSent => Payload::SnapshotSent(generated::SnapshotSent {}),
    };
    generated::WorkloadRequest { payload: Some(payload) }.encode_to_vec()
}

/// The proxy's first packet.
pub(super) fn encode_hello() -> Vec<u8> {
    generated::ZdsHello { version: generated::Version::V1.into() }.encode_to_vec()
}

/// The version number a hello carries. Versions are not negotiated.
pub(super) fn decode_hello(packet: &[u8]) -> Result<i32, DecodeError> {
    Ok(generated::ZdsHello::decode(packet)?.version)
}

/// The answer to a request. An error text is cut so that the agent can read the packet.
pub(super) fn encode_response(outcome: Result<(), &str>) -> Vec<u8> {
    let error = match outcome {
        Ok(()) => String::new(),
        Err("") => "unspecified error".to_owned(),
        Err(text) => shortened(text, MAX_ERROR).to_owned(),
    };
    let payload = workload_response::Payload::Ack(generated::Ack { error });
    generated::WorkloadResponse { payload: Some(payload) }.encode_to_vec()
}

/// `Ok(Err(text))` when the proxy refused the request.
pub(super) fn decode_response(packet: &[u8]) -> Result<Result<(), String>, DecodeError> {
    let response = generated::WorkloadResponse::decode(packet)?;
    let workload_response::Payload::Ack(ack) = response.payload.ok_or(DecodeError::NoPayload)?;
    Ok(if ack.error.is_empty() { Ok(()) } else { Err(ack.error) })
}

/// Two nested fields, each a tag and a length of two bytes, leave this much of a packet; and one byte is not used, so
/// that a reader who takes a full buffer for a cut-off packet is content.
const MAX_ERROR: usize = MAX_PACKET - 1 - 2 * 3;

/// The longest beginning of `text` of at most `limit` bytes that does not end within a character.
fn shortened(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn add(uid: &str) -> RequestMessage {
        let [name, namespace, service_account] = ["p", "n", "s"].map(str::to_owned);
        let workload = Some(WorkloadInfo { name, namespace, service_account });
        RequestMessage::Add { uid: uid.to_owned(), workload }
    }

    #[test]
    fn every_request_has_the_bytes_that_istio_sends() {
        let uid = || "u1".to_owned();
        let table: [(RequestMessage, &[u8]); 4] = [
            (add("u1"), b"\x0a\x0f\x0a\x02u1\x12\x09\x0a\x01p\x12\x01n\x1a\x01s"),
            (RequestMessage::Keep { uid: uid() }, b"\x2a\x04\x0a\x02u1"),
            (RequestMessage::Delete { uid: uid() }, b"\x12\x04\x12\x02u1"),
            (RequestMessage::SnapshotSent, b"\x1a\x00"),
        ];
        for (request, bytes) in table {
            assert_eq!(encode_request(&request), bytes, "{request:?}");
            assert_eq!(decode_request(bytes).unwrap(), request);
        }
    }

    #[test]
    fn hello_and_answers_have_the_bytes_that_istio_expects() {
        assert_eq!(encode_hello(), b"\x08\x01");
        assert_eq!(decode_hello(b"\x08\x01").unwrap(), 1);
        assert_eq!(encode_response(Ok(())), b"\x0a\x00");
        assert_eq!(encode_response(Err("x")), b"\x0a\x03\x0a\x01x");
        assert_eq!(decode_response(b"\x0a\x00").unwrap(), Ok(()));
        assert_eq!(decode_response(b"\x0a\x03\x0a\x01x").unwrap(), Err("x".to_owned()));
    }

    #[test]
    fn a_refusal_without_words_is_not_taken_for_success() {
        assert!(decode_response(&encode_response(Err(""))).unwrap().is_err());
    }

    #[test]
    fn an_unset_or_unknown_payload_is_an_error() {
        // Field 4 was never given out, field 15 is from the future.
        for packet in [b"\x22\x00".as_slice(), b"\x7a\x00", b""] {
            assert!(matches!(decode_request(packet), Err(DecodeError::NoPayload)), "{packet:?}");
        }
        assert!(matches!(decode_request(b"\x0a\xff"), Err(DecodeError::Malformed(_))));
        assert!(matches!(decode_response(b""), Err(DecodeError::NoPayload)));
    }

    #[test]
    fn a_long_error_text_still_fits_a_packet() {
        let ack = encode_response(Err(&"e".repeat(5000)));
        assert_eq!(ack.len(), MAX_PACKET - 1);
        assert_eq!(decode_response(&ack).unwrap().unwrap_err().len(), MAX_ERROR);
        // 1017 is not a multiple of 4, so a cut by bytes would end within a character.
        let crabs = decode_response(&encode_response(Err(&"🦀".repeat(500)))).unwrap().unwrap_err();
        assert_eq!(crabs, "🦀".repeat(MAX_ERROR / 4));
    }

    proptest! {
        #[test]
        fn any_error_text_fits_a_packet(text in ".{0,2000}") {
            prop_assert!(encode_response(Err(&text)).len() < MAX_PACKET);
        }

        #[test]
        fn any_bytes_are_a_request_or_an_error(packet in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(request) = decode_request(&packet) {
                prop_assert_eq!(decode_request(&encode_request(&request)).unwrap(), request);
            }
        }
    }
}
