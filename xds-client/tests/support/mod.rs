//! A keeper of resources that remembers what it was told, and responses to tell it.

#![allow(dead_code, reason = "each test uses its part")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::watch;
use xds_client::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};
use xds_client::prost::Message;
use xds_client::prost_types::Any;
use xds_client::{Event, Handler, Progress, Rejected, Reply, ResourceType, Session, Termination};

pub(crate) const ADDRESS: ResourceType = ResourceType::Address;
pub(crate) const AUTHORIZATION: ResourceType = ResourceType::Authorization;

/// Payloads that begin so are rejected.
pub(crate) const BAD: &[u8] = b"bad";

/// What is visible: payloads by type and name.
pub(crate) type View = BTreeMap<(ResourceType, String), Vec<u8>>;

/// Keeps resources, transaction by transaction. Clones share.
#[derive(Clone, Default)]
pub(crate) struct Keeper {
    kept: Arc<Mutex<Kept>>,
    /// Counts changes, for those who wait for one.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) view: View,
    /// What is remembered of rejected resources.
    pub(crate) claims: View,
    pub(crate) calls: Vec<String>,
    pub(crate) events: Vec<String>,
    pub(crate) terminations: Vec<Termination>,
    staged: Option<(View, View)>,
}

impl Keeper {
    pub(crate) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap()
    }

    pub(crate) fn view(&self) -> View {
        self.kept().view.clone()
    }

    pub(crate) fn claims(&self) -> View {
        self.kept().claims.clone()
    }

    /// Names of a type that are visible.
    pub(crate) fn names(&self, kind: ResourceType) -> Vec<String> {
        self.view().into_keys().filter(|(of, _)| *of == kind).map(|(_, name)| name).collect()
    }

    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.kept().calls)
    }

    pub(crate) fn take_events(&self) -> Vec<String> {
        std::mem::take(&mut self.kept().events)
    }

    /// Waits until what has been kept satisfies `condition`.
    pub(crate) async fn until(&self, condition: impl Fn(&Kept) -> bool) {
        let mut changes = self.changes.subscribe();
        while !condition(&self.kept()) {
            changes.changed().await.unwrap();
        }
    }

    fn record(&self, call: String) {
        self.kept().calls.push(call);
    }
}

impl Handler for Keeper {
    fn begin(&mut self, kind: ResourceType) {
        let mut kept = self.kept();
        assert!(kept.staged.is_none(), "begin of {kind} within a transaction");
        kept.staged = Some((kept.view.clone(), kept.claims.clone()));
        kept.calls.push("begin".into());
    }

    fn update(&mut self, kind: ResourceType, name: &Arc<str>, payload: Bytes) -> Result<(), Rejected> {
        self.record(format!("update {name}"));
        let mut kept = self.kept();
        let (view, claims) = kept.staged.as_mut().expect("an update belongs to a transaction");
        let key = (kind, name.to_string());
        if payload.starts_with(BAD) {
            claims.insert(key, payload.to_vec());
            return Err(Rejected("bad payload".into()));
        }
        claims.remove(&key);
        view.insert(key, payload.to_vec());
        Ok(())
    }

    fn restore(&mut self, kind: ResourceType, name: &str) {
        self.record(format!("restore {name}"));
        let mut kept = self.kept();
        let (_, claims) = kept.staged.as_mut().expect("a restoration belongs to a transaction");
        claims.remove(&(kind, name.to_owned()));
    }

    fn remove(&mut self, kind: ResourceType, name: &str) {
        self.record(format!("remove {name}"));
        let mut kept = self.kept();
        let (view, claims) = kept.staged.as_mut().expect("a removal belongs to a transaction");
        view.remove(&(kind, name.to_owned()));
        claims.remove(&(kind, name.to_owned()));
    }

    fn commit(&mut self, _: ResourceType) {
        self.record("commit".into());
        let mut kept = self.kept();
        (kept.view, kept.claims) = kept.staged.take().expect("a commit ends a transaction");
        drop(kept);
        self.changes.send_modify(|count| *count += 1);
    }

    fn observe(&mut self, event: &Event<'_>) {
        let mut kept = self.kept();
        kept.events.push(format!("{event:?}"));
        if let Event::Terminated(termination) = event {
            kept.terminations.push(*termination);
        }
        drop(kept);
        self.changes.send_modify(|count| *count += 1);
    }
}

pub(crate) fn node() -> Node {
    Node { id: "ztunnel~10.0.0.1~z.istio-system~istio-system.svc.cluster.local".into(), ..Node::default() }
}

pub(crate) fn resource(name: &str, version: &str, payload: &[u8]) -> Resource {
    Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(Any { type_url: "ignored".into(), value: payload.to_vec() }),
        ..Resource::default()
    }
}

pub(crate) fn alias(mut resource: Resource, alias: &str) -> Resource {
    resource.aliases.push(alias.into());
    resource
}

pub(crate) fn response(
    kind: ResourceType,
    nonce: &str,
    resources: Vec<Resource>,
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: kind.url().into(),
        nonce: nonce.into(),
        resources,
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

/// Applies a response in steps of three, and checks the answer's type and nonce.
pub(crate) fn apply(
    session: &mut Session,
    keeper: &mut Keeper,
    response: &DeltaDiscoveryResponse,
) -> (Answer, Reply) {
    let mut transaction = session.receive(response.encode_to_vec().into(), keeper).unwrap();
    while transaction.step(keeper, 3) == Progress::More {}
    let reply = transaction.commit(keeper);
    let request = DeltaDiscoveryRequest::decode(reply.request.as_slice()).unwrap();
    let expected = DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        error_detail: request.error_detail.clone(),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(request, expected, "an answer has type, nonce and possibly an error");
    (request.error_detail.map_or(Answer::Ack, |status| Answer::Nack(status.message)), reply)
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Ack,
    Nack(String),
}

/// The requests that a stream begins with, decoded.
pub(crate) fn open(session: &mut Session) -> Vec<DeltaDiscoveryRequest> {
    session.open().iter().map(|bytes| DeltaDiscoveryRequest::decode(bytes.as_slice()).unwrap()).collect()
}
