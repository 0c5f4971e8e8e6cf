//! What the rules of a pod are, independent of how they get into the kernel.
//!
//! The rules do what those of Istio's CNI agent do, under the same names (M3, P2, O6, ...), with two differences that
//! nobody outside the pod sees:
//!
//! - A TCP redirect applies to the opening segment (SYN) only. Connection tracking begins when the first rule needs
//!   it, and takes the next segment of a connection that already exists for the beginning of one; redirecting that
//!   would reset the connection of every client at the moment a pod joins the mesh.
//! - With that, a connection from before the rules is tracked but not redirected, and stays in the table for a while
//!   after the application has reset it. A SYN with the same addresses and ports would join it, past the proxy and its
//!   policy, and so could one after the other. P3 drops such a SYN; the client's retransmission of it is redirected
//!   once the former connection is forgotten (10 seconds, `nf_conntrack_tcp_timeout_close`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::pod::{DnsCapture, Family, InboundCapture, InterfaceName, Ipv6Capture, Mark, PodRules};

/// The proxy's outbound listener.
const OUTBOUND_PORT: u16 = 15001;
/// The proxy's listener for inbound connections from outside the mesh.
const INBOUND_PORT: u16 = 15006;
/// The proxy's listener for tunnels, which is addressed directly.
const HBONE_PORT: u16 = 15008;
/// The proxy's DNS listener.
const DNS_LISTENER_PORT: u16 = 15053;
const DNS_PORT: u16 = 53;
/// The connection-tracking zone of DNS queries that the proxy itself sends.
const DNS_ZONE: u16 = 1;

/// A rule's name and purpose. Numbers follow the order within Istio's chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is described by Display")]
pub enum RuleId {
    M3,
    M4,
    V1,
    V2,
    P1,
    P2,
    P3,
    O1,
    O2,
    O3,
    O4,
    O5,
    O6,
    R3,
    R4,
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let purpose = match self {
            RuleId::M3 => "remember the proxy's connections to the application",
            RuleId::M4 => "mark the application's replies to them",
            RuleId::V1 => "what comes from a virtual interface is outbound",
            RuleId::V2 => "what comes from a virtual interface is not inbound",
            RuleId::P1 => "probes go straight to the application",
            RuleId::P2 => "inbound TCP goes to the proxy",
            RuleId::P3 => "no inbound connection slips past the proxy by joining a former one",
            RuleId::O1 => "replies to probes go straight back",
            RuleId::O2 => "DNS over UDP goes to the proxy",
            RuleId::O3 => "DNS over TCP goes to the proxy",
            RuleId::O4 => "replies to the proxy are left alone",
            RuleId::O5 => "a pod calling its own address is left alone",
            RuleId::O6 => "outbound TCP goes to the proxy",
            RuleId::R3 => "the proxy's own DNS queries are tracked apart",
            RuleId::R4 => "the answers to the proxy's own DNS queries are tracked apart",
        };
        write!(f, "{self:?}: {purpose}")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Mangle,
    Nat,
    Raw,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chain {
    Prerouting,
    Output,
}

/// One rule: the packets that match all of `matches` meet the verdict.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) id: RuleId,
    pub(super) table: Table,
    pub(super) chain: Chain,
    /// For packets of this family only.
    pub(super) family: Option<Family>,
    pub(super) matches: Vec<Match>,
    pub(super) verdict: Verdict,
}

#[derive(Debug, Clone)]
pub(super) enum Match {
    InInterface(InterfaceName),
    NotInLoopback,
    OutLoopback,
    NotOutLoopback,
    Source(IpAddr),
    NotSource(IpAddr),
    Destination(IpAddr),
    NotDestination(IpAddr),
    Tcp,
    Udp,
    SourcePort(u16),
    DestinationPort(u16),
    NotDestinationPort(u16),
    /// SYN without ACK, RST and FIN.
    Opening,
    Marked(Mark),
    NotMarked(Mark),
    ConnectionMarked(Mark),
    /// The connection is in the table of tracked ones already, and its destination was not rewritten.
    KnownButNotRedirected,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Verdict {
    Accept,
    Return,
    Drop,
    Redirect(u16),
    MarkConnection(Mark),
    /// The packet gets the connection's mark, all bits of it.
    RestoreMark,
    TrackInZone(u16),
}

impl PodRules {
    /// The rules, in the order in which they stand in each chain.
    pub(super) fn plan(&self) -> Vec<Rule> {
        [self.mangle(), self.nat_prerouting(), self.nat_output(), self.raw()].concat()
    }

    fn mangle(&self) -> Vec<Rule> {
        use Match::*;
        let prerouting = |id, family, matches: &[Match], verdict| {
            rule(id, Table::Mangle, Chain::Prerouting, family, matches, verdict)
        };
        let mut rules = vec![
            prerouting(
                RuleId::M3,
                self.any_family(),
                &[Marked(self.proxy_mark)],
                Verdict::MarkConnection(self.return_mark),
            ),
            rule(
                RuleId::M4,
                Table::Mangle,
                Chain::Output,
                self.any_family(),
                &[ConnectionMarked(self.return_mark)],
                Verdict::RestoreMark,
            ),
        ];
        if self.inbound == InboundCapture::Capture {
            rules.extend(self.families().iter().map(|&family| {
                let own = [NotInLoopback, NotSource(self.probe(family))];
                let matches = [&own[..], &self.inbound_matches(family), &[KnownButNotRedirected]].concat();
                prerouting(RuleId::P3, Some(family), &matches, Verdict::Drop)
            }));
        }
        rules
    }

    fn nat_prerouting(&self) -> Vec<Rule> {
        use Match::*;
        let nat = |id, family, matches: &[Match], verdict| {
            rule(id, Table::Nat, Chain::Prerouting, family, matches, verdict)
        };
        let mut rules = Vec::new();
        for interface in &self.virtual_interfaces {
            let from = InInterface(interface.clone());
            let opening = [from.clone(), Tcp, Opening];
            rules.push(nat(RuleId::V1, self.any_family(), &opening, Verdict::Redirect(OUTBOUND_PORT)));
            rules.push(nat(RuleId::V2, self.any_family(), &[from, Tcp], Verdict::Return));
        }
        if self.inbound == InboundCapture::Capture {
            for &family in self.families() {
                let probe = [Source(self.probe(family)), Tcp];
                rules.push(nat(RuleId::P1, Some(family), &probe, Verdict::Accept));
            }
            for &family in self.families() {
                let matches = self.inbound_matches(family);
                rules.push(nat(RuleId::P2, Some(family), &matches, Verdict::Redirect(INBOUND_PORT)));
            }
        }
        rules
    }

    /// An inbound connection that the proxy should see.
    fn inbound_matches(&self, family: Family) -> Vec<Match> {
        use Match::*;
        let not_own = NotDestination(loopback(family));
        vec![not_own, Tcp, NotDestinationPort(HBONE_PORT), Opening, NotMarked(self.proxy_mark)]
    }

    fn nat_output(&self) -> Vec<Rule> {
        use Match::*;
        let nat = |id, family, matches: &[Match], verdict| {
            rule(id, Table::Nat, Chain::Output, family, matches, verdict)
        };
        let not_proxy = NotMarked(self.proxy_mark);
        let families = || self.families().iter().copied();
        let mut rules = Vec::new();
        rules.extend(families().map(|family| {
            nat(RuleId::O1, Some(family), &[Destination(self.probe(family)), Tcp], Verdict::Accept)
        }));
        if self.dns == DnsCapture::On {
            let query = [NotOutLoopback, Udp, DestinationPort(DNS_PORT), not_proxy.clone()];
            rules.push(nat(RuleId::O2, self.any_family(), &query, Verdict::Redirect(DNS_LISTENER_PORT)));
            rules.extend(families().map(|family| {
                let abroad = NotDestination(loopback(family));
                let query = [abroad, Tcp, DestinationPort(DNS_PORT), Opening, not_proxy.clone()];
                nat(RuleId::O3, Some(family), &query, Verdict::Redirect(DNS_LISTENER_PORT))
            }));
        }
        rules.push(nat(RuleId::O4, self.any_family(), &[Tcp, Marked(self.return_mark)], Verdict::Accept));
        rules.extend(families().map(|family| {
            nat(RuleId::O5, Some(family), &[OutLoopback, NotDestination(loopback(family))], Verdict::Accept)
        }));
        rules.extend(families().map(|family| {
            let matches = [NotDestination(loopback(family)), Tcp, Opening, not_proxy.clone()];
            nat(RuleId::O6, Some(family), &matches, Verdict::Redirect(OUTBOUND_PORT))
        }));
        rules
    }

    fn raw(&self) -> Vec<Rule> {
        use Match::*;
        if self.dns == DnsCapture::Off {
            return Vec::new();
        }
        let query = [Udp, DestinationPort(DNS_PORT), Marked(self.proxy_mark)];
        let answer = [Udp, SourcePort(DNS_PORT), NotMarked(self.proxy_mark)];
        let zone = Verdict::TrackInZone(DNS_ZONE);
        vec![
            rule(RuleId::R3, Table::Raw, Chain::Output, self.any_family(), &query, zone),
            rule(RuleId::R4, Table::Raw, Chain::Prerouting, self.any_family(), &answer, zone),
        ]
    }

    /// For a rule that does not look at addresses.
    fn any_family(&self) -> Option<Family> {
        match self.ipv6 {
            Ipv6Capture::On => None,
            Ipv6Capture::Off => Some(Family::V4),
        }
    }

    fn probe(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.probe_ipv4.into(),
            Family::V6 => self.probe_ipv6.into(),
        }
    }
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

fn rule(
    id: RuleId,
    table: Table,
    chain: Chain,
    family: Option<Family>,
    matches: &[Match],
    verdict: Verdict,
) -> Rule {
    Rule { id, table, chain, family, matches: matches.to_vec(), verdict }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_ipv6_no_rule_looks_at_ipv6_packets() {
        let rules = PodRules { ipv6: Ipv6Capture::Off, ..PodRules::default() };
        assert!(rules.plan().iter().all(|rule| rule.family == Some(Family::V4)));
    }

    #[test]
    fn every_tcp_redirect_applies_to_opening_segments_only() {
        let rules = PodRules { virtual_interfaces: vec!["tap0".parse().unwrap()], ..PodRules::default() };
        for rule in rules.plan() {
            let has = |wanted: fn(&Match) -> bool| rule.matches.iter().any(wanted);
            if matches!(rule.verdict, Verdict::Redirect(_)) && has(|one| matches!(one, Match::Tcp)) {
                assert!(has(|one| matches!(one, Match::Opening)), "{:?}", rule.id);
            }
        }
    }
}
