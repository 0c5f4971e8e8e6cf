//! A `DeltaDiscoveryResponse` as it was received: one buffer, walked instead of decoded.
//!
//! The first push of a large mesh is a single message of up to 200 MiB. Decoding it would build a second copy of every
//! name, version and payload before the first of them is used. Here everything is a slice of the message.
//!
//! The walk has two levels. [`Response::parse`] checks the outer message, so that whatever comes later can count on it
//! and nothing has been applied when a fault is found. Each resource is checked as it is reached; a fault in one
//! concerns nobody else.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;

use crate::fields::{Fields, Malformed};

/// The field numbers of `DeltaDiscoveryResponse`.
mod response_field {
    pub(super) const RESOURCES: u32 = 2;
    pub(super) const TYPE_URL: u32 = 4;
    pub(super) const NONCE: u32 = 5;
    pub(super) const REMOVED_RESOURCES: u32 = 6;
}

/// The field numbers of `Resource`.
mod resource_field {
    pub(super) const VERSION: u32 = 1;
    pub(super) const RESOURCE: u32 = 2;
    pub(super) const NAME: u32 = 3;
    pub(super) const ALIASES: u32 = 4;
}

/// The field numbers of `google.protobuf.Any`.
mod any_field {
    pub(super) const TYPE_URL: u32 = 1;
    pub(super) const VALUE: u32 = 2;
}

/// A response whose outer message is sound. Shares the buffer that it was parsed from.
#[derive(Clone)]
pub struct Response {
    message: Bytes,
    header: Header,
    /// Where the records begin that are resources, and those that are removals.
    resources: Range<usize>,
    removals: Range<usize>,
}

/// What a response is about and what answers it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// `type_url`.
    pub type_url: String,
    /// `nonce`, to be echoed.
    pub nonce: String,
}

/// Why a response cannot be read, and as much of its header as came before the fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed response")]
pub struct MalformedResponse {
    /// Fields after the fault are empty.
    pub header: Header,
    /// The fault.
    #[source]
    pub cause: Malformed,
}

impl Response {
    /// Checks the outer message. Fields may come in any order, unknown ones are skipped, and the last of a field that
    /// should come once counts, as protobuf has it.
    pub fn parse(message: Bytes) -> Result<Self, MalformedResponse> {
        let mut header = Header::default();
        match scan(&message, &mut header) {
            Ok((resources, removals)) => Ok(Self { message, header, resources, removals }),
            Err(cause) => Err(MalformedResponse { header, cause }),
        }
    }

    /// The type of its resources, and the nonce.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The resources, in the order of the message.
    pub fn resources(&self) -> impl Iterator<Item = Result<Resource<'_>, MalformedResource<'_>>> {
        let mut at = Position::default();
        std::iter::from_fn(move || self.next_resource(&mut at))
    }

    /// The names of resources that are gone, in the order of the message.
    pub fn removals(&self) -> impl Iterator<Item = &str> {
        let mut at = Position::default();
        std::iter::from_fn(move || self.next_removal(&mut at))
    }

    /// The resource at or after a position, which moves behind it.
    pub(crate) fn next_resource(
        &self,
        at: &mut Position,
    ) -> Option<Result<Resource<'_>, MalformedResource<'_>>> {
        let bytes = self.next_field(response_field::RESOURCES, &self.resources, at)?;
        Some(Resource::parse(bytes))
    }

    /// The removal at or after a position, which moves behind it.
    pub(crate) fn next_removal(&self, at: &mut Position) -> Option<&str> {
        let bytes = self.next_field(response_field::REMOVED_RESOURCES, &self.removals, at)?;
        // Never empty for another reason: `scan` has checked it.
        Some(str::from_utf8(bytes).unwrap_or_default())
    }

    /// A payload as a share of the message instead of a copy.
    pub(crate) fn share(&self, payload: &[u8]) -> Bytes {
        self.message.slice_ref(payload)
    }

    fn next_field(&self, number: u32, within: &Range<usize>, at: &mut Position) -> Option<&[u8]> {
        let start = at.0.max(within.start);
        let mut fields = Fields::new(self.message.get(start..within.end)?);
        let found = fields.by_ref().map_while(Result::ok).find(|field| field.number == number);
        at.0 = within.end - fields.remaining();
        found?.bytes().ok()
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("header", &self.header)
            .field("bytes", &self.message.len())
            .finish_non_exhaustive()
    }
}

/// How far the resources or the removals of a response have been walked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Position(usize);

/// Reads the header and finds the ranges that hold all resources and all removals.
fn scan(message: &[u8], header: &mut Header) -> Result<(Range<usize>, Range<usize>), Malformed> {
    let mut resources = 0..0;
    let mut removals = 0..0;
    let mut fields = Fields::new(message);
    let mut start = 0;
    while let Some(field) = fields.next() {
        let field = field?;
        let end = message.len() - fields.remaining();
        match field.number {
            response_field::RESOURCES => {
                field.bytes()?;
                extend(&mut resources, start..end);
            }
            response_field::TYPE_URL => field.text()?.clone_into(&mut header.type_url),
            response_field::NONCE => field.text()?.clone_into(&mut header.nonce),
            response_field::REMOVED_RESOURCES => {
                field.text()?;
                extend(&mut removals, start..end);
            }
            _ => {}
        }
        start = end;
    }
    Ok((resources, removals))
}

fn extend(range: &mut Range<usize>, record: Range<usize>) {
    if range.start == range.end {
        range.start = record.start;
    }
    range.end = record.end;
}

/// A resource of a [`Response`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource<'a> {
    /// Its name, unique within the type.
    pub name: &'a str,
    /// Opaque; may be empty.
    pub version: &'a str,
    /// The value of the `Any`: the encoded message. `None` if there is no `Any`.
    pub payload: Option<&'a [u8]>,
    /// All of it, for the aliases.
    encoded: &'a [u8],
}

/// Why a resource cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed resource")]
pub struct MalformedResource<'a> {
    /// Its name, if that came before the fault.
    pub name: Option<&'a str>,
    /// The fault.
    #[source]
    pub cause: Malformed,
}

impl<'a> Resource<'a> {
    fn parse(encoded: &'a [u8]) -> Result<Self, MalformedResource<'a>> {
        let mut resource = Self { name: "", version: "", payload: None, encoded };
        match resource.read() {
            Ok(()) => Ok(resource),
            Err(cause) => {
                let name = Some(resource.name).filter(|name| !name.is_empty());
                Err(MalformedResource { name, cause })
            }
        }
    }

    fn read(&mut self) -> Result<(), Malformed> {
        for field in Fields::new(self.encoded) {
            let field = field?;
            match field.number {
                resource_field::VERSION => self.version = field.text()?,
                resource_field::RESOURCE => {
                    // A message field that comes twice is merged.
                    let merged = self.payload.unwrap_or_default();
                    self.payload = Some(any_value(field.bytes()?)?.unwrap_or(merged));
                }
                resource_field::NAME => self.name = field.text()?,
                resource_field::ALIASES => drop(field.text()?),
                _ => {}
            }
        }
        Ok(())
    }

    /// Other names for it. Filled in for clients that ask for single names.
    pub fn aliases(&self) -> impl Iterator<Item = &'a str> + Clone + use<'a> {
        Fields::new(self.encoded)
            .map_while(Result::ok)
            .filter(|field| field.number == resource_field::ALIASES)
            .filter_map(|field| field.text().ok())
    }
}

fn any_value(any: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let mut value = None;
    for field in Fields::new(any) {
        let field = field?;
        match field.number {
            // Not compared: the type of the response decides.
            any_field::TYPE_URL => drop(field.bytes()?),
            any_field::VALUE => value = Some(field.bytes()?),
            _ => {}
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use prost_types::Any;

    use super::*;
    use crate::discovery;

    #[test]
    fn fields_in_any_order_are_the_same_response() {
        let bytes =
            b"\x32\x01g\x2a\x01o\x12\x0a\x1a\x01n\x12\x05\x12\x03pay\x22\x01t\x32\x01h\x12\x03\x1a\x01m";
        let response = Response::parse(Bytes::from_static(bytes)).unwrap();
        assert_eq!(response.header(), &Header { type_url: "t".into(), nonce: "o".into() });
        let resources: Vec<_> = response.resources().map(Result::unwrap).collect();
        assert_eq!((resources[0].name, resources[0].payload), ("n", Some(b"pay".as_slice())));
        assert_eq!((resources[1].name, resources[1].payload), ("m", None));
        assert_eq!(response.removals().collect::<Vec<_>>(), ["g", "h"]);
    }

    #[test]
    fn a_payload_is_a_share_of_the_message() {
        let message = Bytes::from_static(b"\x12\x0a\x1a\x01n\x12\x05\x12\x03pay");
        let response = Response::parse(message.clone()).unwrap();
        let payload = response.resources().next().unwrap().unwrap().payload.unwrap();
        assert_eq!(response.share(payload).as_ptr(), message[9..].as_ptr());
    }

    #[test]
    fn a_malformed_resource_concerns_nobody_else() {
        let bytes = b"\x12\x05\x1a\x01n\x12\x09\x12\x03\x1a\x01m";
        let response = Response::parse(Bytes::from_static(bytes)).unwrap();
        let resources: Vec<_> = response.resources().collect();
        assert_eq!(resources[0].unwrap_err().name, Some("n"));
        assert_eq!(resources[1].unwrap().name, "m");
    }

    #[test]
    fn a_malformed_response_tells_what_came_before_the_fault() {
        let bytes = b"\x22\x01t\x2a\x01o\x32\x05gone";
        let error = Response::parse(Bytes::from_static(bytes)).unwrap_err();
        assert_eq!(error.header, Header { type_url: "t".into(), nonce: "o".into() });
        assert_eq!(error.cause, Malformed("cut off"));
    }

    fn any_response() -> impl Strategy<Value = discovery::DeltaDiscoveryResponse> {
        let payload = prop::option::of(prop::collection::vec(any::<u8>(), 0..200));
        let resource = ("[a-z/]{0,8}", "[0-9a-f]{0,3}", payload, prop::collection::vec("[a-z]{0,3}", 0..3))
            .prop_map(|(name, version, payload, aliases)| discovery::Resource {
                name,
                version,
                aliases,
                resource: payload.map(|value| Any { type_url: "t".into(), value }),
                ..Default::default()
            });
        let removed = prop::collection::vec("[a-z]{0,5}", 0..5);
        (prop::collection::vec(resource, 0..6), removed, "[a-z]{0,4}", "[a-z]{0,4}").prop_map(
            |(resources, removed_resources, type_url, nonce)| discovery::DeltaDiscoveryResponse {
                system_version_info: "v".into(),
                resources,
                type_url,
                nonce,
                removed_resources,
            },
        )
    }

    /// What prost decodes, the walk finds too.
    fn assert_agrees(bytes: &[u8]) {
        let Ok(decoded) = discovery::DeltaDiscoveryResponse::decode(bytes) else { return };
        let response = Response::parse(Bytes::copy_from_slice(bytes)).unwrap();
        assert_eq!(response.header().type_url, decoded.type_url);
        assert_eq!(response.header().nonce, decoded.nonce);
        assert_eq!(response.removals().collect::<Vec<_>>(), decoded.removed_resources);
        let walked: Vec<_> = response.resources().map(Result::unwrap).collect();
        assert_eq!(walked.len(), decoded.resources.len());
        for (walked, decoded) in walked.iter().zip(&decoded.resources) {
            assert_eq!((walked.name, walked.version), (decoded.name.as_str(), decoded.version.as_str()));
            assert_eq!(walked.payload, decoded.resource.as_ref().map(|any| any.value.as_slice()));
            assert_eq!(walked.aliases().collect::<Vec<_>>(), decoded.aliases);
        }
    }

    proptest! {
        #[test]
        fn the_walk_finds_what_decoding_finds(
            response in any_response(),
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let mut bytes = response.encode_to_vec();
            assert_agrees(&bytes);
            if let Some((at, byte)) = damage && !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
                assert_agrees(&bytes);
            }
        }
    }
}
