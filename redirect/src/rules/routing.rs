//! The way back for connections that the proxy opens in a client's name.
//!
//! The application answers to the client's address, so its packets would leave the pod. The rules mark them; a policy
//! rule sends marked packets to a routing table of their own, whose only route says that every address is local. So
//! they arrive at the proxy's transparent socket.

use std::io;

use super::listing::Difference;
use super::netlink::{Message, Netlink};
use super::pod::{Family, PodRules};
use crate::netns::{Netns, NetnsError};

/// The routing table of replies to the proxy, as Istio's agent numbers it.
const TABLE: u8 = 100;
/// Before the main table's policy rule (32766).
const PRIORITY: u32 = 32764;
/// The loopback interface is the first of every namespace; the kernel insists on it.
const LOOPBACK_INDEX: u32 = 1;

/// Size of `struct fib_rule_hdr` and of `struct rtmsg`.
const FIXED_BYTES: usize = 12;
/// From `linux/fib_rules.h`; the libc crate lacks them.
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FR_ACT_TO_TBL: u8 = 1;

/// Policy rules or routes could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RoutingError {
    /// No conversation with the kernel about this namespace.
    #[error("cannot ask the kernel for the routes of the network namespace")]
    Open(#[source] io::Error),
    /// Whether the namespace has IPv6 is unknown.
    #[error("cannot enter the network namespace to see whether it has IPv6")]
    Namespace(#[source] io::Error),
    /// Nothing can be redirected without the loopback interface.
    #[error("cannot bring up the loopback interface of the network namespace")]
    Loopback(#[source] io::Error),
    /// A request failed.
    #[error("cannot {action} ({family})")]
    Request {
        /// What was tried.
        action: &'static str,
        /// For which packets.
        family: Family,
        /// What the kernel said.
        source: io::Error,
    },
    /// No namespace to work in.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

/// What there is of the way back.
pub(super) struct Routing {
    pub(super) missing: Vec<Difference>,
    present: usize,
}

impl Routing {
    /// Nothing of ours is there.
    pub(super) fn is_clean(&self) -> bool {
        self.present == 0
    }
}

pub(super) fn apply(netns: &Netns, rules: &PodRules) -> Result<(), RoutingError> {
    let netlink = Netlink::open(netns).map_err(RoutingError::Open)?;
    bring_up_loopback(&netlink).map_err(RoutingError::Loopback)?;
    for part in parts(netns, rules)? {
        if !part.exists(&netlink)? {
            part.change(&netlink, Change::Add)?;
        }
    }
    Ok(())
}

/// Redirected connections and the proxy's own to the application pass through the loopback interface. A pod's is up; that
/// of a namespace made by hand may not be. Not undone by [`remove`].
fn bring_up_loopback(netlink: &Netlink) -> io::Result<()> {
    const UP: u32 = libc::IFF_UP as u32;
    // struct ifinfomsg: family and type, of no interest; then index, flags, and which flags to change.
    let fixed = [0, LOOPBACK_INDEX, UP, UP].map(u32::to_ne_bytes).concat();
    netlink.request(&Message::new(libc::RTM_NEWLINK, &fixed), 0)
}

pub(super) fn check(netns: &Netns, rules: &PodRules) -> Result<Routing, RoutingError> {
    let netlink = Netlink::open(netns).map_err(RoutingError::Open)?;
    let mut routing = Routing { missing: Vec::new(), present: 0 };
    for part in parts(netns, rules)? {
        match part.exists(&netlink)? {
            true => routing.present += 1,
            false => routing.missing.push(part.difference()),
        }
    }
    Ok(routing)
}

pub(super) fn remove(netns: &Netns, rules: &PodRules) -> Result<(), RoutingError> {
    let netlink = Netlink::open(netns).map_err(RoutingError::Open)?;
    for part in parts(netns, rules)? {
        // More than once, should another have added it in a variant of their own; but not for ever.
        for _ in 0..8 {
            if !part.exists(&netlink)? {
                break;
            }
            part.change(&netlink, Change::Delete)?;
        }
    }
    Ok(())
}

/// The parts of the way back, routes first. Where the loopback interface has no IPv6 it takes no such route.
fn parts(netns: &Netns, rules: &PodRules) -> Result<Vec<Part>, RoutingError> {
    let mut parts = Vec::new();
    for &family in rules.families() {
        if family == Family::V4 || netns.loopback_has_ipv6().map_err(RoutingError::Namespace)? {
            parts.push(Part { family, kind: PartKind::Route });
        }
        let (mark, mask) = (rules.return_mark.value, rules.return_mark.mask);
        parts.push(Part { family, kind: PartKind::PolicyRule { mark, mask } });
    }
    Ok(parts)
}

struct Part {
    family: Family,
    kind: PartKind,
}

enum PartKind {
    /// `local default dev lo table 100`.
    Route,
    /// `fwmark <mark>/<mask> lookup 100`.
    PolicyRule { mark: u32, mask: u32 },
}

#[derive(Clone, Copy)]
enum Change {
    Add,
    Delete,
}

impl Part {
    fn exists(&self, netlink: &Netlink) -> Result<bool, RoutingError> {
        let (kind, action) = match self.kind {
            PartKind::Route => (libc::RTM_GETROUTE, "list the routes"),
            PartKind::PolicyRule { .. } => (libc::RTM_GETRULE, "list the policy rules"),
        };
        let mut fixed = [0; FIXED_BYTES];
        fixed[0] = self.family_byte();
        let all = netlink.dump(&Message::new(kind, &fixed));
        let all = all.map_err(|source| RoutingError::Request { action, family: self.family, source })?;
        Ok(all.iter().any(|one| self.is(one)))
    }

    fn change(&self, netlink: &Netlink, change: Change) -> Result<(), RoutingError> {
        let (kind, flags, action) = match (&self.kind, change) {
            (PartKind::Route, Change::Add) => {
                (libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, "add the route for replies")
            }
            (PartKind::Route, Change::Delete) => (libc::RTM_DELROUTE, 0, "delete the route for replies"),
            (PartKind::PolicyRule { .. }, Change::Add) => {
                (libc::RTM_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, "add the policy rule for replies")
            }
            (PartKind::PolicyRule { .. }, Change::Delete) => {
                (libc::RTM_DELRULE, 0, "delete the policy rule for replies")
            }
        };
        match (netlink.request(&self.message(kind, change), flags), change) {
            // Another was faster; what is wanted is there.
            (Err(error), Change::Add) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            (outcome, _) => {
                outcome.map_err(|source| RoutingError::Request { action, family: self.family, source })
            }
        }
    }

    fn message(&self, kind: u16, change: Change) -> Message {
        let family = self.family_byte();
        match self.kind {
            PartKind::PolicyRule { mark, mask } => {
                // struct fib_rule_hdr: family, three of addresses and service, table, two unused, action, flags.
                let fixed = [family, 0, 0, 0, TABLE, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
                Message::new(kind, &fixed)
                    .with(FRA_PRIORITY, PRIORITY)
                    .with(FRA_FWMARK, mark)
                    .with(FRA_FWMASK, mask)
                    .with(FRA_TABLE, TABLE.into())
            }
            PartKind::Route => {
                // struct rtmsg: family, prefix lengths, service, table, protocol, scope, type, flags.
                let (protocol, scope) = match change {
                    Change::Add => (libc::RTPROT_BOOT, libc::RT_SCOPE_HOST),
                    // Whoever has added it, and of whatever scope.
                    Change::Delete => (libc::RTPROT_UNSPEC, libc::RT_SCOPE_NOWHERE),
                };
                let fixed = [family, 0, 0, 0, TABLE, protocol, scope, libc::RTN_LOCAL, 0, 0, 0, 0];
                Message::new(kind, &fixed)
                    .with(libc::RTA_TABLE, TABLE.into())
                    .with(libc::RTA_OIF, LOOPBACK_INDEX)
            }
        }
    }

    /// Whether an object of the kernel's list is this one.
    fn is(&self, listed: &Message) -> bool {
        let has = |attribute, value| listed.attribute(FIXED_BYTES, attribute) == Some(value);
        let fixed = |at: usize| listed.body.get(at).copied();
        let any_address = fixed(0) == Some(self.family_byte()) && fixed(1) == Some(0) && fixed(2) == Some(0);
        any_address
            && match self.kind {
                PartKind::PolicyRule { mark, mask } => {
                    fixed(7) == Some(FR_ACT_TO_TBL)
                        && has(FRA_PRIORITY, PRIORITY)
                        && has(FRA_FWMARK, mark)
                        && has(FRA_FWMASK, mask)
                        && has(FRA_TABLE, TABLE.into())
                }
                PartKind::Route => {
                    fixed(7) == Some(libc::RTN_LOCAL)
                        && has(libc::RTA_TABLE, TABLE.into())
                        && has(libc::RTA_OIF, LOOPBACK_INDEX)
                }
            }
    }

    fn difference(&self) -> Difference {
        match self.kind {
            PartKind::Route => Difference::MissingRoute { family: self.family },
            PartKind::PolicyRule { .. } => Difference::MissingPolicyRule { family: self.family },
        }
    }

    fn family_byte(&self) -> u8 {
        match self.family {
            Family::V4 => libc::AF_INET as u8,
            Family::V6 => libc::AF_INET6 as u8,
        }
    }
}
