//! What has to hold for any bytes. Used by the fuzz targets and, on the corpora, by the ordinary tests.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use xds_client::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use xds_client::prost::Message;
use xds_client::security::Authorization;
use xds_client::workload::Address;
use xds_client::{Event, Handler, Mode, Progress, Rejected, ResourceType, Response, Session};

/// The walk finds what decoding finds, whenever that succeeds.
pub(crate) fn response(bytes: &[u8]) {
    let walked = Response::parse(Bytes::copy_from_slice(bytes));
    if let Ok(walked) = &walked {
        // Faults in single resources are for the reader; they must not hide the others.
        let _ = walked.resources().count();
        let _ = walked.removals().count();
    }
    let Ok(decoded) = DeltaDiscoveryResponse::decode(bytes) else { return };
    let Ok(walked) = walked else { panic!("what decodes is refused") };
    assert_eq!(walked.header().type_url, decoded.type_url);
    assert_eq!(walked.header().nonce, decoded.nonce);
    assert!(walked.removals().eq(decoded.removed_resources.iter().map(String::as_str)));
    let mut resources = walked.resources();
    for expected in &decoded.resources {
        let Some(Ok(resource)) = resources.next() else { panic!("a resource is missing") };
        assert_eq!(resource.name, expected.name);
        assert_eq!(resource.version, expected.version);
        assert_eq!(resource.payload, expected.resource.as_ref().map(|any| any.value.as_slice()));
        assert!(resource.aliases().eq(expected.aliases.iter().map(String::as_str)));
    }
    assert!(resources.next().is_none(), "a resource too many");
}

pub(crate) fn address(bytes: &[u8]) {
    stable::<Address>(bytes);
}

pub(crate) fn authorization(bytes: &[u8]) {
    stable::<Authorization>(bytes);
}

/// What decodes survives a round trip.
fn stable<M: Message + Default + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(message) = M::decode(bytes) else { return };
    assert_eq!(M::decode(message.encode_to_vec().as_slice()).as_ref(), Ok(&message));
}

/// Any script for a session: a byte of options, then steps. Each step is a byte that says what it is, and a length of two
/// bytes, and as many bytes.
pub(crate) fn session(script: &[u8]) {
    let Some((options, mut rest)) = script.split_first() else { return };
    let mode = if options & 1 == 0 { Mode::Wildcard } else { Mode::OnDemand };
    let limit = if options & 2 == 0 { xds_client::DEFAULT_REQUEST_LIMIT } else { 150 };
    let mut session = Session::new(Node::default(), mode, limit);
    let mut keeper = Keeper::default();
    while let Some((&[step, high, low], after)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(after.len());
        let (bytes, after) = after.split_at(length);
        rest = after;
        match step % 3 {
            0 => respond(&mut session, &mut keeper, bytes),
            1 => {
                for request in session.open() {
                    assert!(DeltaDiscoveryRequest::decode(request.as_slice()).is_ok());
                }
            }
            _ => {
                if let Ok(name) = std::str::from_utf8(bytes) {
                    let _ = session.demand(&Arc::from(name));
                }
            }
        }
        for kind in ResourceType::ALL {
            assert_eq!(session.retained(kind), keeper.names(kind), "session and handler agree on {kind}");
        }
    }
}

fn respond(session: &mut Session, keeper: &mut Keeper, bytes: &[u8]) {
    match session.receive(Bytes::copy_from_slice(bytes), keeper) {
        Ok(mut transaction) => {
            while transaction.step(keeper, 2) == Progress::More {}
            let reply = transaction.commit(keeper);
            let Ok(request) = DeltaDiscoveryRequest::decode(reply.request.as_slice()) else {
                panic!("the answer is no request")
            };
            assert!(request.node.is_none() && request.resource_names_subscribe.is_empty());
        }
        Err(unreadable) => {
            let header = &unreadable.cause.header;
            let answerable = !header.type_url.is_empty() && !header.nonce.is_empty();
            assert_eq!(unreadable.reply.is_some(), answerable);
        }
    }
    assert!(!keeper.within, "a transaction was left open");
}

/// Keeps names, rejects payloads that begin with a zero, and insists on the order of calls.
#[derive(Default)]
struct Keeper {
    names: BTreeSet<(ResourceType, Arc<str>)>,
    within: bool,
    removing: bool,
}

impl Keeper {
    fn names(&self, kind: ResourceType) -> usize {
        self.names.iter().filter(|(of, _)| *of == kind).count()
    }
}

impl Handler for Keeper {
    fn begin(&mut self, _: ResourceType) {
        assert!(!self.within);
        self.within = true;
        self.removing = false;
    }

    fn update(&mut self, kind: ResourceType, name: &Arc<str>, payload: Bytes) -> Result<(), Rejected> {
        assert!(self.within && !self.removing);
        if payload.first() == Some(&0) {
            return Err(Rejected("begins with a zero".into()));
        }
        self.names.insert((kind, Arc::clone(name)));
        Ok(())
    }

    fn restore(&mut self, _: ResourceType, _: &str) {}

    fn remove(&mut self, kind: ResourceType, name: &str) {
        assert!(self.within);
        self.removing = true;
        self.names.remove(&(kind, Arc::from(name)));
    }

    fn commit(&mut self, _: ResourceType) {
        assert!(self.within);
        self.within = false;
    }

    fn observe(&mut self, _: &Event<'_>) {}
}
