//! The wire format of the signing call, against bytes computed by hand from the source API.

use std::collections::BTreeMap;

use identity::proto::{IstioCertificateRequest, IstioCertificateResponse};
use prost::Message;
use prost_types::{Struct, Value, value::Kind};

#[test]
fn certificate_messages_have_the_field_numbers_of_the_istio_ca_api() {
    let identity = Value { kind: Some(Kind::StringValue("i".into())) };
    let request = IstioCertificateRequest {
        csr: "c".into(),
        validity_duration: 86_400,
        metadata: Some(Struct { fields: BTreeMap::from([("ImpersonatedIdentity".into(), identity)]) }),
    };
    assert_wire(
        &request,
        &[
            b"\x0a\x01c",                                                     // 1 csr
            b"\x18\x80\xa3\x05",                                              // 3 validity_duration
            b"\x22\x1d\x0a\x1b\x0a\x14ImpersonatedIdentity\x12\x03\x1a\x01i", // 4 metadata
        ],
    );
    let response = IstioCertificateResponse { cert_chain: vec!["leaf".into(), "root".into()] };
    assert_wire(&response, &[b"\x0a\x04leaf", b"\x0a\x04root"]);
}

/// `message` encodes to exactly `fields`, and `fields` decode to exactly `message`.
#[track_caller]
fn assert_wire<M: Message + Default + PartialEq + std::fmt::Debug>(message: &M, fields: &[&[u8]]) {
    assert_eq!(message.encode_to_vec(), fields.concat());
    assert_eq!(&M::decode(fields.concat().as_slice()).expect("the bytes are a message"), message);
}
