//! Which identities this node needs certificates for, and why. Pure: the caller asks for them.
//!
//! An identity has holders: workloads of this node that the control plane describes as reachable through HBONE, as
//! istiod expects of a node proxy, and pods that are served. The first holder is when to ask for the certificate, and
//! the end of the last one when to forget it.

use std::collections::HashMap;
use std::sync::Arc;

use identity::SpiffeId;

use crate::proxy::PodInstance;
use crate::state::model::{TunnelProtocol, Workload};

/// Who needs an identity. Each holds one at a time.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Holder {
    /// A workload of this node, by its uid.
    Workload(Arc<str>),
    /// A pod that is served.
    Pod(PodInstance),
}

/// What a step changed: no identity is in both lists.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Changes {
    /// Held now and not before: ask for their certificates.
    pub(crate) wanted: Vec<SpiffeId>,
    /// Held before and not now: forget them.
    pub(crate) unwanted: Vec<SpiffeId>,
}

/// The holders and what they hold.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    held: HashMap<Holder, SpiffeId>,
    holders: HashMap<SpiffeId, usize>,
    /// The workloads as they were seen last, and in which round.
    workloads: HashMap<Arc<str>, (Arc<Workload>, u64)>,
    round: u64,
}

impl Identities {
    /// These are the workloads of the node now, all of them.
    ///
    /// Costs a look-up per workload; more only for those that changed.
    pub(crate) fn follow<'a>(&mut self, local: impl Iterator<Item = &'a Arc<Workload>>) -> Changes {
        let mut changes = Changes::default();
        self.round += 1;
        let round = self.round;
        for workload in local {
            match self.workloads.get_mut(&workload.uid) {
                Some((known, seen)) if Arc::ptr_eq(known, workload) => *seen = round,
                _ => {
                    self.workloads.insert(workload.uid.clone(), (workload.clone(), round));
                    self.describe(workload, &mut changes);
                }
            }
        }
        let gone: Vec<_> = self.workloads.extract_if(|_, (_, seen)| *seen != round).collect();
        for (uid, _) in gone {
            self.set(Holder::Workload(uid), None, &mut changes);
        }
        changes.settle()
    }

    /// A pod that is served has this identity now; none when it is not known.
    pub(crate) fn pod(&mut self, pod: PodInstance, identity: Option<SpiffeId>) -> Changes {
        let mut changes = Changes::default();
        self.set(Holder::Pod(pod), identity, &mut changes);
        changes.settle()
    }

    /// A pod's proxy has ended, and its last connection with it. `asked` are the identities that connections of the pod
    /// may have asked for: among them those that were given up before, and asked for again by a connection that did not
    /// know. Whatever of them nobody holds is given up.
    pub(crate) fn ended(&mut self, pod: PodInstance, asked: impl Iterator<Item = SpiffeId>) -> Changes {
        let mut changes = self.pod(pod, None);
        for identity in asked {
            if !self.holders.contains_key(&identity) && !changes.unwanted.contains(&identity) {
                changes.unwanted.push(identity);
            }
        }
        changes
    }

    /// A workload is new or has changed.
    fn describe(&mut self, workload: &Workload, changes: &mut Changes) {
        let holder = Holder::Workload(workload.uid.clone());
        let identity = workload.identity();
        let tunnelled = workload.native_tunnel || workload.tunnel_protocol == TunnelProtocol::Hbone;
        // Leaving HBONE for a while gives up no certificate: only the end of the workload, or of its identity, does.
        if !tunnelled && self.held.get(&holder) == identity.as_ref() {
            return;
        }
        self.set(holder, identity.filter(|_| tunnelled), changes);
    }

    fn set(&mut self, holder: Holder, identity: Option<SpiffeId>, changes: &mut Changes) {
        let before = match &identity {
            Some(identity) => self.held.insert(holder, identity.clone()),
            None => self.held.remove(&holder),
        };
        if before == identity {
            return;
        }
        if let Some(identity) = identity {
            let holders = self.holders.entry(identity.clone()).or_default();
            *holders += 1;
            if *holders == 1 {
                changes.wanted.push(identity);
            }
        }
        if let Some(identity) = before
            && let Some(holders) = self.holders.get_mut(&identity)
        {
            *holders -= 1;
            if *holders == 0 {
                self.holders.remove(&identity);
                changes.unwanted.push(identity);
            }
        }
    }
}

impl Changes {
    /// Takes out what was given up by one holder and taken up by another within the step.
    fn settle(mut self) -> Changes {
        let Changes { wanted, unwanted } = &mut self;
        unwanted.retain(|identity| match wanted.iter().position(|wanted| wanted == identity) {
            Some(at) => {
                wanted.swap_remove(at);
                false
            }
            None => true,
        });
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn workload(uid: &str, account: &str, domain: &str) -> Arc<Workload> {
        Arc::new(Workload {
            uid: uid.into(),
            namespace: "ns".into(),
            service_account: account.into(),
            trust_domain: domain.into(),
            tunnel_protocol: TunnelProtocol::Hbone,
            ..Workload::default()
        })
    }

    fn id(account: &str, domain: &str) -> SpiffeId {
        SpiffeId::new(domain, "ns", account).unwrap()
    }

    fn changes(wanted: &[SpiffeId], unwanted: &[SpiffeId]) -> Changes {
        Changes { wanted: wanted.to_vec(), unwanted: unwanted.to_vec() }
    }

    #[test]
    fn an_identity_is_wanted_once_and_unwanted_with_its_last_workload() {
        let (one, two) = (workload("1", "a", "td"), workload("2", "a", "td"));
        let mut identities = Identities::default();
        assert_eq!(identities.follow([&one, &two].into_iter()), changes(&[id("a", "td")], &[]));
        assert_eq!(identities.follow([&one, &two].into_iter()), Changes::default());
        assert_eq!(identities.follow([&two].into_iter()), Changes::default());
        assert_eq!(identities.follow([].into_iter()), changes(&[], &[id("a", "td")]));
    }

    #[test]
    fn a_workload_that_takes_no_tunnel_is_not_asked_for() {
        let tcp = Workload { tunnel_protocol: TunnelProtocol::Tcp, ..(*workload("1", "a", "td")).clone() };
        let native = Workload { native_tunnel: true, ..tcp.clone() };
        let mut identities = Identities::default();
        assert_eq!(identities.follow([&Arc::new(tcp.clone())].into_iter()), Changes::default());
        assert_eq!(identities.follow([&Arc::new(native)].into_iter()), changes(&[id("a", "td")], &[]));
        assert_eq!(
            identities.follow([&Arc::new(tcp)].into_iter()),
            Changes::default(),
            "kept while it lives"
        );
        assert_eq!(identities.follow([].into_iter()), changes(&[], &[id("a", "td")]));
    }

    #[test]
    fn a_changed_trust_domain_is_a_new_identity_and_the_end_of_the_old_one() {
        let mut identities = Identities::default();
        identities.follow([&workload("1", "a", "old")].into_iter());
        let step = identities.follow([&workload("1", "a", "new")].into_iter());
        assert_eq!(step, changes(&[id("a", "new")], &[id("a", "old")]));
    }

    #[test]
    fn two_workloads_that_trade_identities_change_nothing() {
        let mut identities = Identities::default();
        identities.follow([&workload("1", "a", "td"), &workload("2", "b", "td")].into_iter());
        let step = identities.follow([&workload("1", "b", "td"), &workload("2", "a", "td")].into_iter());
        assert_eq!(step, Changes::default());
        let step = identities.follow([&workload("2", "b", "td"), &workload("3", "a", "td")].into_iter());
        assert_eq!(step, Changes::default());
    }

    #[test]
    fn a_served_pod_keeps_its_identity_after_its_workload_is_gone_and_the_other_way_round() {
        let mut identities = Identities::default();
        let pod = PodInstance::next();
        assert_eq!(identities.pod(pod, Some(id("a", "td"))), changes(&[id("a", "td")], &[]));
        assert_eq!(identities.follow([&workload("1", "a", "td")].into_iter()), Changes::default());
        assert_eq!(identities.pod(pod, None), Changes::default());
        let replaced = PodInstance::next();
        assert_eq!(identities.pod(replaced, Some(id("a", "td"))), Changes::default());
        assert_eq!(identities.follow([].into_iter()), Changes::default());
        assert_eq!(identities.pod(replaced, None), changes(&[], &[id("a", "td")]));
        assert_eq!(identities.pod(replaced, None), Changes::default());
    }

    #[test]
    fn with_a_pod_goes_every_identity_that_it_asked_for_and_nobody_else_holds() {
        let mut identities = Identities::default();
        let [pod, neighbour] = [PodInstance::next(), PodInstance::next()];
        identities.pod(pod, Some(id("a", "old")));
        identities.pod(pod, Some(id("a", "new")));
        identities.pod(neighbour, Some(id("a", "held")));
        let asked = ["old", "new", "held"].map(|domain| id("a", domain));
        let step = identities.ended(pod, asked.into_iter());
        assert_eq!(step, changes(&[], &[id("a", "new"), id("a", "old")]));
    }

    proptest! {
        /// The lists lead from what was held to what is, whatever happens in between.
        #[test]
        fn changes_add_up_to_what_is_held(
            steps in proptest::collection::vec(proptest::collection::btree_map(0_u8..6, 0_u8..4, 0..6), 1..12),
        ) {
            let mut identities = Identities::default();
            let mut asked: HashSet<SpiffeId> = HashSet::new();
            for step in steps {
                let account = |number: &u8| format!("sa{number}");
                let local: Vec<_> =
                    step.iter().map(|(uid, number)| workload(&uid.to_string(), &account(number), "td")).collect();
                let Changes { wanted, unwanted } = identities.follow(local.iter());
                for identity in unwanted {
                    prop_assert!(asked.remove(&identity));
                }
                for identity in wanted {
                    prop_assert!(asked.insert(identity));
                }
                let expected: HashSet<_> = step.values().map(|number| id(&account(number), "td")).collect();
                prop_assert_eq!(&asked, &expected);
            }
        }
    }
}
