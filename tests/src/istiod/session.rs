//! One ADS stream as istiod sees it: what the client subscribes to, what it has been sent, what it answered.
//!
//! Pure: requests and changes go in, responses come out.

use std::collections::BTreeSet;

use xds_client::ResourceType;
use xds_client::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::world::{Aliases, World};

/// A client's subscriptions on one stream.
pub(super) struct Session {
    /// Unique among all streams, so that no nonce is ever valid on another one.
    stream: u64,
    node: String,
    nonces: u64,
    address: Option<Subscription>,
    authorization: Option<Subscription>,
}

/// The state of one type.
#[derive(Default)]
pub(super) struct Subscription {
    mode: Mode,
    /// What the client is subscribed to by name.
    names: BTreeSet<String>,
    /// The nonce of the newest response.
    pub(super) sent: Option<String>,
    /// The newest nonce that was answered, and how.
    pub(super) answered: Option<(String, Answer)>,
    /// The push that the client has been told of, or that did not concern it.
    pub(super) revision: u64,
}

#[derive(Clone, Copy, Default, Eq, PartialEq)]
enum Mode {
    #[default]
    Wildcard,
    OnDemand,
}

/// What a client says to a response.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// All of it applied.
    Ack,
    /// Some of it rejected, for this reason.
    Nack(String),
}

/// What a request calls for.
#[derive(Debug)]
pub(super) enum Call {
    /// The first request of its type on the stream: always answered.
    First(Box<DeltaDiscoveryRequest>),
    /// Names that were not subscribed yet.
    Demand(Vec<String>),
    /// It answers a response: the newest one, or an older one, which does not count.
    Answer { nonce: String, answer: Answer, newest: bool },
    /// Everything in it is subscribed already. istiod does not answer.
    Nothing,
}

impl Session {
    pub(super) fn new(stream: u64, node: &str) -> Self {
        Self { stream, node: node.to_owned(), nonces: 0, address: None, authorization: None }
    }

    pub(super) fn subscription(&self, kind: ResourceType) -> Option<&Subscription> {
        match kind {
            ResourceType::Address => self.address.as_ref(),
            ResourceType::Authorization => self.authorization.as_ref(),
        }
    }

    fn subscription_mut(&mut self, kind: ResourceType) -> &mut Option<Subscription> {
        match kind {
            ResourceType::Address => &mut self.address,
            ResourceType::Authorization => &mut self.authorization,
        }
    }

    /// Takes a request in.
    pub(super) fn receive(&mut self, kind: ResourceType, request: DeltaDiscoveryRequest) -> Call {
        let Some(subscription) = self.subscription_mut(kind) else {
            *self.subscription_mut(kind) = Some(Subscription::first(&request));
            return Call::First(Box::new(request));
        };
        if !request.response_nonce.is_empty() {
            let answer = match request.error_detail {
                Some(error) => Answer::Nack(error.message),
                None => Answer::Ack,
            };
            let nonce = request.response_nonce;
            let newest = subscription.sent.as_ref() == Some(&nonce);
            if newest {
                subscription.answered = Some((nonce.clone(), answer.clone()));
            }
            return Call::Answer { nonce, answer, newest };
        }
        for name in &request.resource_names_unsubscribe {
            subscription.names.remove(name);
        }
        let subscribe = request.resource_names_subscribe.into_iter();
        let new: Vec<_> = subscribe.filter(|name| subscription.names.insert(name.clone())).collect();
        if new.is_empty() { Call::Nothing } else { Call::Demand(new) }
    }

    /// Answers the first request of a type.
    pub(super) fn first(
        &mut self,
        kind: ResourceType,
        request: &DeltaDiscoveryRequest,
        world: &World,
        revision: u64,
    ) -> DeltaDiscoveryResponse {
        let listed = &request.initial_resource_versions;
        let node = self.node.clone();
        let subscription = self.subscription_mut(kind).get_or_insert_default();
        subscription.revision = revision;
        let (wanted, removed): (BTreeSet<String>, Vec<String>) = match subscription.mode {
            Mode::Wildcard => (
                world.names(kind).cloned().collect(),
                listed.keys().filter(|name| !world.contains(kind, name)).cloned().collect(),
            ),
            Mode::OnDemand => {
                let (mut found, removed) = resolve(world, &subscription.names);
                found.extend(world.on_node(&node));
                (found, removed)
            }
        };
        // Policies carry no version, so that none of them is ever current.
        let stale = wanted.iter().filter(|name| {
            let version = listed.get(*name);
            version.is_none_or(|version| !world.is_current(kind, name, version))
        });
        let stale: BTreeSet<_> = stale.cloned().collect();
        self.response(kind, world, &stale, removed)
    }

    /// Answers names that the client had not asked for before.
    pub(super) fn demanded(
        &mut self,
        kind: ResourceType,
        names: &[String],
        world: &World,
    ) -> DeltaDiscoveryResponse {
        let (found, removed) = resolve(world, names);
        self.response(kind, world, &found, removed)
    }

    /// What a push of `touched` means for this client. None: nothing, or it has not subscribed.
    pub(super) fn push(
        &mut self,
        kind: ResourceType,
        touched: &BTreeSet<String>,
        world: &World,
        revision: u64,
    ) -> Option<DeltaDiscoveryResponse> {
        let node = self.node.clone();
        let subscription = self.subscription_mut(kind).as_mut()?;
        subscription.revision = subscription.revision.max(revision);
        let names = &subscription.names;
        let concerns = |name: &&String| match subscription.mode {
            Mode::Wildcard => true,
            Mode::OnDemand => world.concerns(name, names, &node),
        };
        let concerned = touched.iter().filter(concerns).cloned();
        let (found, removed): (BTreeSet<_>, BTreeSet<_>) =
            concerned.partition(|name| world.contains(kind, name));
        if found.is_empty() && removed.is_empty() {
            return None;
        }
        Some(self.response(kind, world, &found, removed.into_iter().collect()))
    }

    /// The nonce for the next response of the type, which is the newest from then on.
    pub(super) fn next_nonce(&mut self, kind: ResourceType) -> String {
        self.nonces += 1;
        let nonce = format!("{}-{}", self.stream, self.nonces);
        if let Some(subscription) = self.subscription_mut(kind) {
            subscription.sent = Some(nonce.clone());
        }
        nonce
    }

    fn response(
        &mut self,
        kind: ResourceType,
        world: &World,
        names: &BTreeSet<String>,
        removed_resources: Vec<String>,
    ) -> DeltaDiscoveryResponse {
        let subscription = self.subscription_mut(kind).get_or_insert_default();
        let aliases = match subscription.mode {
            Mode::Wildcard => Aliases::Omitted,
            Mode::OnDemand => Aliases::Listed,
        };
        if subscription.mode == Mode::OnDemand {
            // What has been sent is kept up to date.
            subscription.names.extend(names.iter().cloned());
        }
        let nonce = self.next_nonce(kind);
        DeltaDiscoveryResponse {
            resources: names.iter().filter_map(|name| world.resource(kind, name, aliases)).collect(),
            type_url: kind.url().to_owned(),
            nonce,
            removed_resources,
            ..DeltaDiscoveryResponse::default()
        }
    }
}

impl Subscription {
    fn first(request: &DeltaDiscoveryRequest) -> Self {
        let (on, off) = (&request.resource_names_subscribe, &request.resource_names_unsubscribe);
        let star = |names: &[String]| names.iter().any(|name| name == "*");
        let wildcard = on.is_empty() || (star(on) && !star(off));
        let names = on.iter().filter(|name| *name != "*").chain(request.initial_resource_versions.keys());
        Self {
            mode: if wildcard { Mode::Wildcard } else { Mode::OnDemand },
            names: names.cloned().collect(),
            ..Self::default()
        }
    }
}

/// What goes out for the demanded names, and which of them lead nowhere.
fn resolve<'a>(
    world: &World,
    names: impl IntoIterator<Item = &'a String>,
) -> (BTreeSet<String>, Vec<String>) {
    let (mut found, mut missing) = (BTreeSet::new(), Vec::new());
    for name in names {
        let resolved = world.resolve(name);
        if resolved.is_empty() {
            missing.push(name.clone());
        }
        found.extend(resolved);
    }
    (found, missing)
}
