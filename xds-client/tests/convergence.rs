//! Whatever happens on the way, what is kept in the end is what the control plane has.
//!
//! The control plane is a naive model of istiod's delta generation: it knows all resources, and for a client what it sent
//! on the stream. It shares no code with the client.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use support::{ADDRESS, AUTHORIZATION, BAD, Keeper, alias, apply, node, open, resource, response};
use xds_client::discovery::{DeltaDiscoveryRequest, Resource};
use xds_client::prost::Message;
use xds_client::{Demanding, Mode, Reply, ResourceType, Session};

/// What happens, one after another. Names are few, so that things happen to the same one.
#[derive(Clone, Debug)]
enum Happening {
    /// A resource is created or changed. `bad` ones are rejected.
    Set { kind: ResourceType, name: u8, payload: u8, bad: bool },
    /// A resource is deleted.
    Delete { kind: ResourceType, name: u8 },
    /// A resource is touched without changing, so that it is sent again.
    Touch { kind: ResourceType, name: u8 },
    /// Somebody needs a resource, and asks for it by name or address (on-demand mode).
    Demand { name: u8, by_address: bool },
    /// Everything touched since the last push is sent.
    Push,
    /// The stream ends; what was not pushed is lost with it.
    Reconnect,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Versions {
    Hashed,
    Empty,
}

#[derive(Clone, Debug)]
struct Stored {
    payload: Vec<u8>,
    version: String,
}

/// Everything that there is, and what has been touched since the last push.
struct ControlPlane {
    versions: Versions,
    mode: Mode,
    /// The names of addresses that the stream is subscribed to (on-demand mode).
    subscribed: BTreeSet<String>,
    world: BTreeMap<(ResourceType, String), Stored>,
    touched: BTreeSet<(ResourceType, String)>,
    nonce: u32,
}

impl ControlPlane {
    fn set(&mut self, kind: ResourceType, name: &str, payload: Vec<u8>) {
        // As istiod does it: a hash for addresses, nothing for policies.
        let version = match (kind, self.versions) {
            (ResourceType::Address, Versions::Hashed) => {
                let hash = payload
                    .iter()
                    .fold(7u64, |hash, byte| hash.wrapping_mul(0x0100_0000_01b3) ^ u64::from(*byte));
                format!("{hash:x}")
            }
            _ => String::new(),
        };
        self.world.insert((kind, name.into()), Stored { payload, version });
        self.touch(kind, name);
    }

    fn touch(&mut self, kind: ResourceType, name: &str) {
        self.touched.insert((kind, name.into()));
    }

    fn resource(name: &str, stored: &Stored) -> Resource {
        alias(resource(name, &stored.version, &stored.payload), &address_of(name))
    }

    /// Answers any request. An on-demand subscription that is not changed by it is not answered.
    fn request(
        &mut self,
        request: &DeltaDiscoveryRequest,
        session: &mut Session,
        keeper: &mut Keeper,
    ) -> Option<Reply> {
        if self.mode == Mode::Wildcard || request.type_url != ADDRESS.url() {
            return Some(self.answer(request, session, keeper));
        }
        let held = &request.initial_resource_versions;
        let asked: BTreeSet<String> = held
            .keys()
            .chain(&request.resource_names_subscribe)
            .filter(|name| *name != "*")
            .cloned()
            .collect();
        let before = self.subscribed.clone();
        self.subscribed.extend(asked.iter().cloned());
        for name in &request.resource_names_unsubscribe {
            self.subscribed.remove(name);
        }
        if request.node.is_none() && self.subscribed == before {
            return None;
        }
        let mut resources = BTreeMap::new();
        let mut gone = Vec::new();
        for name in &asked {
            let found = self
                .world
                .iter()
                .find(|((kind, known), _)| *kind == ADDRESS && (known == name || address_of(known) == *name));
            match found {
                Some(((_, known), stored)) => drop(resources.insert(known.clone(), stored.clone())),
                None => gone.push(name.as_str()),
            }
        }
        self.subscribed.extend(resources.keys().cloned());
        resources.retain(|name, stored| stored.version.is_empty() || held.get(name) != Some(&stored.version));
        let resources = resources.iter().map(|(name, stored)| Self::resource(name, stored)).collect();
        let nonce = self.nonce();
        Some(apply(session, keeper, &response(ADDRESS, &nonce, resources, &gone)).1)
    }

    fn nonce(&mut self) -> String {
        self.nonce += 1;
        self.nonce.to_string()
    }

    /// Answers a first request for everything.
    fn answer(
        &mut self,
        request: &DeltaDiscoveryRequest,
        session: &mut Session,
        keeper: &mut Keeper,
    ) -> Reply {
        let kind = ResourceType::from_url(&request.type_url).unwrap();
        let held = &request.initial_resource_versions;
        let of_kind = || self.world.iter().filter(|((of, _), _)| *of == kind);
        let changed = of_kind().filter(|((_, name), stored)| {
            stored.version.is_empty() || held.get(name) != Some(&stored.version)
        });
        let resources = changed.map(|((_, name), stored)| Self::resource(name, stored)).collect();
        let gone: Vec<_> =
            held.keys().filter(|name| !of_kind().any(|((_, known), _)| known == *name)).cloned().collect();
        let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
        let nonce = self.nonce();
        apply(session, keeper, &response(kind, &nonce, resources, &gone)).1
    }

    fn push(&mut self, session: &mut Session, keeper: &mut Keeper) {
        for kind in ResourceType::ALL {
            let touched: Vec<_> =
                self.touched.iter().filter(|key| key.0 == kind && self.is_subscribed(key)).cloned().collect();
            if touched.is_empty() {
                continue;
            }
            let (there, gone): (Vec<_>, Vec<_>) =
                touched.iter().partition(|key| self.world.contains_key(*key));
            let resources = there.iter().map(|key| Self::resource(&key.1, &self.world[*key])).collect();
            let gone: Vec<_> = gone.iter().map(|(_, name)| name.as_str()).collect();
            let nonce = self.nonce();
            apply(session, keeper, &response(kind, &nonce, resources, &gone));
        }
        self.touched.clear();
    }

    fn connect(&mut self, session: &mut Session, keeper: &mut Keeper) {
        self.touched.clear();
        self.subscribed.clear();
        for request in open(session) {
            self.request(&request, session, keeper);
        }
    }

    fn demand(&mut self, name: &str, session: &mut Session, keeper: &mut Keeper) {
        let Demanding::Ask(request) = session.demand(&name.into()) else { return };
        let request = DeltaDiscoveryRequest::decode(request.as_slice()).unwrap();
        let reply = self.request(&request, session, keeper).expect("a request that is answered");
        let answered: Vec<_> = reply.answers.iter().map(|(name, _)| &**name).collect();
        assert!(answered.contains(&name), "{name} was asked for, {answered:?} answered");
    }

    fn is_subscribed(&self, (kind, name): &(ResourceType, String)) -> bool {
        *kind != ADDRESS || self.mode == Mode::Wildcard || self.subscribed.contains(name)
    }

    fn bad(&self) -> impl Iterator<Item = (&(ResourceType, String), &Stored)> {
        self.world.iter().filter(|(_, stored)| stored.payload.starts_with(BAD))
    }

    /// What has to be visible: the payload, or that it is one that is rejected.
    fn assert_shown(&self, keeper: &Keeper) {
        let view = keeper.view();
        for (key, stored) in &self.world {
            let asked_for = self.is_subscribed(key) || view.contains_key(key);
            if asked_for && !stored.payload.starts_with(BAD) {
                assert_eq!(view.get(key), Some(&stored.payload), "{key:?}");
            }
        }
        for key in view.keys() {
            assert!(self.world.contains_key(key), "{key:?} is gone");
        }
        let claims = keeper.claims();
        for (key, claim) in &claims {
            let stored = self.world.get(key).map(|stored| &stored.payload);
            assert_eq!(stored, Some(claim), "{key:?} is not rejected any more");
        }
        for (key, stored) in self.bad() {
            if self.is_subscribed(key) || view.contains_key(key) {
                assert_eq!(claims.get(key), Some(&stored.payload), "{key:?} is rejected");
            }
        }
    }
}

fn happening() -> impl Strategy<Value = Happening> {
    let kind = || prop_oneof![4 => Just(ADDRESS), 1 => Just(AUTHORIZATION)];
    // Mostly the same few, so that versions come back and nothing is pushed in between.
    let name = || prop_oneof![3 => 0..2u8, 1 => 0..12u8];
    prop_oneof![
        6 => (kind(), name(), 0..2u8, prop::bool::weighted(0.3))
            .prop_map(|(kind, name, payload, bad)| Happening::Set { kind, name, payload, bad }),
        3 => (kind(), name()).prop_map(|(kind, name)| Happening::Delete { kind, name }),
        2 => (kind(), name()).prop_map(|(kind, name)| Happening::Touch { kind, name }),
        3 => (name(), any::<bool>()).prop_map(|(name, by_address)| Happening::Demand { name, by_address }),
        4 => Just(Happening::Push),
        2 => Just(Happening::Reconnect),
    ]
}

fn name(number: u8) -> String {
    format!("ns/name-{number}")
}

/// An alias of the address with this name.
fn address_of(name: &str) -> String {
    format!("/{name}")
}

fn converges(happenings: &[Happening], mode: Mode, versions: Versions, request_limit: usize) {
    let mut session = Session::new(node(), mode, request_limit);
    let mut keeper = Keeper::default();
    let mut plane = ControlPlane {
        versions,
        mode,
        subscribed: BTreeSet::new(),
        world: BTreeMap::new(),
        touched: BTreeSet::new(),
        nonce: 0,
    };
    plane.connect(&mut session, &mut keeper);
    for happening in happenings {
        match happening {
            Happening::Set { kind, name: number, payload, bad } => {
                let prefix = if *bad { BAD } else { b"good" };
                plane.set(*kind, &name(*number), [prefix, &[*payload]].concat());
            }
            Happening::Delete { kind, name: number } => {
                plane.world.remove(&(*kind, name(*number)));
                plane.touch(*kind, &name(*number));
            }
            Happening::Demand { name: number, by_address: false } => {
                plane.demand(&name(*number), &mut session, &mut keeper);
            }
            Happening::Demand { name: number, by_address: true } => {
                plane.demand(&address_of(&name(*number)), &mut session, &mut keeper);
            }
            Happening::Touch { kind, name: number } => plane.touch(*kind, &name(*number)),
            Happening::Push => {
                plane.push(&mut session, &mut keeper);
                plane.assert_shown(&keeper);
            }
            Happening::Reconnect => {
                plane.connect(&mut session, &mut keeper);
                plane.assert_shown(&keeper);
            }
        }
    }
    plane.push(&mut session, &mut keeper);
    plane.assert_shown(&keeper);
    for number in 0..12 {
        plane.demand(&address_of(&name(number)), &mut session, &mut keeper);
    }
    let claims = plane.bad().map(|(key, stored)| (key.clone(), stored.payload.clone())).collect();
    assert_eq!(keeper.claims(), claims);

    // Once everything is in order, it is as if that had been all.
    let bad: Vec<_> = plane.bad().map(|(key, _)| key.clone()).collect();
    for (kind, name) in bad {
        plane.set(kind, &name, b"healed".to_vec());
    }
    plane.push(&mut session, &mut keeper);
    for number in 0..12 {
        plane.demand(&address_of(&name(number)), &mut session, &mut keeper);
    }
    let snapshot = plane.world.iter().map(|(key, stored)| (key.clone(), stored.payload.clone())).collect();
    assert_eq!(keeper.view(), snapshot);
    assert_eq!(keeper.claims(), BTreeMap::new());
    let held = |kind| plane.world.keys().filter(|(of, _)| *of == kind).count();
    assert_eq!(
        (session.retained(ADDRESS), session.retained(AUTHORIZATION)),
        (held(ADDRESS), held(AUTHORIZATION))
    );
}

proptest! {
    #[test]
    fn any_history_ends_in_the_state_of_the_final_snapshot(
        happenings in prop::collection::vec(happening(), 0..80),
        hashed in any::<bool>(),
        crowded in any::<bool>(),
        on_demand in any::<bool>(),
    ) {
        let mode = if on_demand { Mode::OnDemand } else { Mode::Wildcard };
        let versions = if hashed { Versions::Hashed } else { Versions::Empty };
        // Room for a handful of names, or for all.
        let limit = if crowded { 260 } else { 1 << 20 };
        converges(&happenings, mode, versions, limit);
    }
}
