//! Whatever happens on the way, what is kept in the end is what the control plane has.
//!
//! The control plane is a naive model of istiod's delta generation: it knows all resources, and for a client what it sent
//! on the stream. It shares no code with the client.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use support::{ADDRESS, AUTHORIZATION, Answer, BAD, Keeper, apply, node, open, resource, response};
use xds_client::discovery::{DeltaDiscoveryRequest, Resource};
use xds_client::{Mode, ResourceType, Session};

/// What happens, one after another. Names are few, so that things happen to the same one.
#[derive(Clone, Debug)]
enum Happening {
    /// A resource is created or changed. `bad` ones are rejected.
    Set { kind: ResourceType, name: u8, payload: u8, bad: bool },
    /// A resource is deleted.
    Delete { kind: ResourceType, name: u8 },
    /// A resource is touched without changing, so that it is sent again.
    Touch { kind: ResourceType, name: u8 },
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
        resource(name, &stored.version, &stored.payload)
    }

    fn nonce(&mut self) -> String {
        self.nonce += 1;
        self.nonce.to_string()
    }

    /// Answers a first request.
    fn answer(
        &mut self,
        request: &DeltaDiscoveryRequest,
        session: &mut Session,
        keeper: &mut Keeper,
    ) -> Answer {
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
        apply(session, keeper, &response(kind, &nonce, resources, &gone)).0
    }

    fn push(&mut self, session: &mut Session, keeper: &mut Keeper) {
        for kind in ResourceType::ALL {
            let touched: Vec<_> = self.touched.iter().filter(|(of, _)| *of == kind).cloned().collect();
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
        for request in open(session) {
            self.answer(&request, session, keeper);
        }
    }

    /// What has to be visible: the payload, or that it is one that is rejected.
    fn assert_shown(&self, keeper: &Keeper) {
        let view = keeper.view();
        for (key, stored) in &self.world {
            if !stored.payload.starts_with(BAD) {
                assert_eq!(view.get(key), Some(&stored.payload), "{key:?}");
            }
        }
        for key in view.keys() {
            assert!(self.world.contains_key(key), "{key:?} is gone");
        }
    }
}

fn happening() -> impl Strategy<Value = Happening> {
    let kind = || prop_oneof![4 => Just(ADDRESS), 1 => Just(AUTHORIZATION)];
    let name = || 0..12u8;
    prop_oneof![
        6 => (kind(), name(), 0..4u8, prop::bool::weighted(0.2))
            .prop_map(|(kind, name, payload, bad)| Happening::Set { kind, name, payload, bad }),
        3 => (kind(), name()).prop_map(|(kind, name)| Happening::Delete { kind, name }),
        2 => (kind(), name()).prop_map(|(kind, name)| Happening::Touch { kind, name }),
        4 => Just(Happening::Push),
        1 => Just(Happening::Reconnect),
    ]
}

fn name(number: u8) -> String {
    format!("ns/name-{number}")
}

fn converges(happenings: &[Happening], versions: Versions, request_limit: usize) {
    let mut session = Session::new(node(), Mode::Wildcard, request_limit);
    let mut keeper = Keeper::default();
    let mut plane = ControlPlane { versions, world: BTreeMap::new(), touched: BTreeSet::new(), nonce: 0 };
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

    // Once everything is in order, it is as if that had been all.
    let bad: Vec<_> = plane
        .world
        .iter()
        .filter(|(_, stored)| stored.payload.starts_with(BAD))
        .map(|(key, _)| key.clone())
        .collect();
    for (kind, name) in bad {
        plane.set(kind, &name, b"healed".to_vec());
    }
    plane.push(&mut session, &mut keeper);
    let snapshot = plane.world.iter().map(|(key, stored)| (key.clone(), stored.payload.clone())).collect();
    assert_eq!(keeper.view(), snapshot);
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
    ) {
        let versions = if hashed { Versions::Hashed } else { Versions::Empty };
        // Room for a handful of names, or for all.
        let limit = if crowded { 260 } else { 1 << 20 };
        converges(&happenings, versions, limit);
    }
}
