//! The decision about one connection.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use identity::SpiffeId;
use ipnet::IpNet;
use thiserror::Error;

use super::compile::{Clause, Conditions, Field, Match, Policy, Rule};
use super::spec::{Action, Enforcement, ServiceAccountMatch};
use super::store::PolicySet;

/// What a policy can know of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    source: IpAddr,
    identity: Option<&'a SpiffeId>,
    destination: SocketAddr,
}

impl<'a> Access<'a> {
    /// A connection from `source`, which proved `identity` (None for plain TCP), to `destination`: the address and port
    /// at which the workload will be connected to, not the tunnel's.
    pub fn new(source: IpAddr, identity: Option<&'a SpiffeId>, destination: SocketAddr) -> Self {
        Self {
            source: source.to_canonical(),
            identity,
            destination: SocketAddr::new(destination.ip().to_canonical(), destination.port()),
        }
    }
}

/// Everything that the policies say about one connection.
#[derive(Debug)]
pub struct Evaluation {
    /// The decision.
    pub decision: Result<Permit, Denied>,
    /// What policies that do not decide would have said. Empty, and not allocated, where there are none.
    pub dry_run: Vec<DryRun>,
}

/// Proof that the policies allow a connection, and to where. Only an evaluation makes one.
#[derive(Debug)]
pub struct Permit {
    by: Option<Decider>,
    destination: SocketAddr,
}

impl Permit {
    /// Where the connection may go.
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// The policy that allows the connection; None when no policy is needed for that.
    pub fn by(&self) -> Option<&Decider> {
        self.by.as_ref()
    }
}

/// A policy, and the first of its rules that matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decider {
    /// The policy.
    pub policy: Arc<Policy>,
    /// The rule's index, from 0.
    pub rule: usize,
}

impl fmt::Display for Decider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.policy.key().fmt(f)
    }
}

/// Why a connection is not allowed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Denied {
    /// A DENY policy matches it. Of several, the first by key.
    #[error("explicitly denied by: {0}")]
    Explicitly(Decider),
    /// The workload names a policy that is not known. It might deny, or be the only one that allows, so nothing is
    /// allowed until it arrives. Of several, the first by key.
    #[error("policy not known yet: {0}")]
    PolicyUnknown(Arc<str>),
    /// There are ALLOW policies, and none of them matches it.
    #[error("allow policies exist, but none allowed")]
    NotAllowed,
}

/// What a policy would have said, had it been enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// It matches.
    Matched(Decider),
    /// There are ALLOW policies, none of them enforced, and none matches: enforcing them would deny the connection.
    NoneAllowed,
}

impl PolicySet<'_> {
    /// Decides about one connection.
    ///
    /// 1. An enforced DENY policy that matches denies.
    /// 2. A policy that the workload names but that is not known denies.
    /// 3. Without enforced ALLOW policies the connection is allowed.
    /// 4. An enforced ALLOW policy that matches allows; otherwise the connection is denied.
    ///
    /// Of several policies that match, the first by key is reported, so that the same connection always gets the same
    /// answer. Allocates only to report policies that are not enforced.
    pub fn evaluate(&self, access: &Access<'_>) -> Evaluation {
        let mut deny = None;
        let mut allow = None;
        let mut allow_exists = false;
        let mut dry_allow = DryAllow::Absent;
        let mut dry_run = Vec::new();
        for policy in self.iter() {
            let matched = || policy.first_match(access);
            match (policy.enforcement(), policy.action()) {
                (Enforcement::Enforced, Action::Deny) => keep_first(&mut deny, policy, matched),
                (Enforcement::Enforced, Action::Allow) => {
                    allow_exists = true;
                    keep_first(&mut allow, policy, matched);
                }
                (Enforcement::DryRun, action) => {
                    let matched = matched();
                    if action == Action::Allow {
                        dry_allow = dry_allow.max(if matched.is_some() {
                            DryAllow::Matched
                        } else {
                            DryAllow::Unmatched
                        });
                    }
                    dry_run.extend(matched.map(|rule| DryRun::Matched(decider(policy, rule))));
                }
            }
        }
        if !allow_exists && dry_allow == DryAllow::Unmatched {
            dry_run.push(DryRun::NoneAllowed);
        }
        let decision = if let Some(by) = deny {
            Err(Denied::Explicitly(by))
        } else if let Some(key) = self.missing().min() {
            Err(Denied::PolicyUnknown(key.clone()))
        } else if allow_exists && allow.is_none() {
            Err(Denied::NotAllowed)
        } else {
            Ok(Permit { by: allow, destination: access.destination })
        };
        Evaluation { decision, dry_run }
    }
}

/// What the ALLOW policies that are not enforced say together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum DryAllow {
    Absent,
    Unmatched,
    Matched,
}

/// Keeps the matching policy with the lowest key; does not even evaluate those that could not be it.
fn keep_first(found: &mut Option<Decider>, policy: &Arc<Policy>, matched: impl FnOnce() -> Option<usize>) {
    if found.as_ref().is_none_or(|found| policy.cmp(&found.policy) == Ordering::Less)
        && let Some(rule) = matched()
    {
        *found = Some(decider(policy, rule));
    }
}

fn decider(policy: &Arc<Policy>, rule: usize) -> Decider {
    Decider { policy: policy.clone(), rule }
}

impl Policy {
    /// The index of the first rule that matches the connection.
    pub fn first_match(&self, access: &Access<'_>) -> Option<usize> {
        self.rules.iter().position(|rule| rule.matches(access))
    }
}

impl Rule {
    fn matches(&self, access: &Access<'_>) -> bool {
        self.0.iter().all(|clause| clause.matches(access))
    }
}

impl Clause {
    fn matches(&self, access: &Access<'_>) -> bool {
        self.0.is_empty() || self.0.iter().any(|alternative| alternative.matches(access))
    }
}

impl Match {
    fn matches(&self, access: &Access<'_>) -> bool {
        match self {
            Self::When(conditions) => conditions.hold(access),
            Self::Never => false,
        }
    }
}

impl Conditions {
    fn hold(&self, access: &Access<'_>) -> bool {
        let identity = access.identity;
        let namespace = identity.map_or("", SpiffeId::namespace);
        // Cheapest first.
        self.destination_ports.holds(|port| *port == access.destination.port())
            && self.destination_ips.holds(|range: &IpNet| range.contains(&access.destination.ip()))
            && self.source_ips.holds(|range| range.contains(&access.source))
            && self.namespaces.holds(|condition| condition.matches(namespace))
            && self
                .service_accounts
                .holds(|account| identity.is_some_and(|identity| account.matches(identity)))
            && self
                .principals
                .holds(|condition| identity.is_some_and(|identity| condition.matches(identity.principal())))
    }
}

impl<T> Field<T> {
    fn holds(&self, matches: impl Fn(&T) -> bool) -> bool {
        (self.any_of.is_empty() || self.any_of.iter().any(&matches)) && !self.none_of.iter().any(&matches)
    }
}

impl ServiceAccountMatch {
    /// True for the identity of this service account, in any trust domain.
    pub fn matches(&self, identity: &SpiffeId) -> bool {
        identity.service_account() == &*self.service_account && identity.namespace() == &*self.namespace
    }
}

#[cfg(test)]
mod tests;
