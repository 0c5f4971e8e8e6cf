//! The packet rules of a pod: what brings its TCP connections and DNS queries to the proxy's listeners, and what
//! brings the application's answers back to a proxy that speaks in the client's name.
//!
//! [`PodRules`] says what is wanted for a pod, `plan` turns it into a list of rules, and a back-end puts them into the
//! pod's namespace: `iptables` or `nftables`, with tables and chains named as Istio's CNI agent names them, so either
//! agent takes over or removes what the other installed. `routing` adds the policy rule and the routes.
//!
//! Everything here is idempotent and blocks the calling thread while external programs run (bounded by a deadline
//! each): call it from a thread that may wait.
//!
//! How the kernel spells a rule back depends on the versions of the program and of the kernel. So rules are never
//! compared with text of ours: the plan is loaded into a scratch namespace, and what the same program lists there is
//! compared with what it lists in the pod.

mod command;
mod iptables;
mod listing;
mod netlink;
mod nftables;
mod plan;
mod pod;
mod routing;

use std::fmt;
use std::str::FromStr;

pub use command::CommandError;
pub use iptables::{Programs, Variant};
pub use listing::Difference;
pub use plan::RuleId;
pub use pod::{
    DnsCapture, Family, InboundCapture, InterfaceName, InvalidInterfaceName, Ipv6Capture, Mark, PodRules,
};
pub use routing::RoutingError;

use crate::netns::{Netns, NetnsError};
use listing::Listing;

/// How rules get into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Through `iptables-restore` and `ip6tables-restore`.
    Iptables(Programs),
    /// Through `nft`, in one transaction for both families.
    Nftables,
}

/// Which back-end an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BackendChoice {
    /// nftables where it works, else iptables.
    #[default]
    Auto,
    /// nftables or nothing.
    Nftables,
    /// iptables, in the variant that the machine uses already.
    Iptables,
    /// iptables, in this variant or not at all.
    IptablesVariant(Variant),
}

/// What a pod's namespace holds, compared with what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing of ours.
    Clean,
    /// Exactly what is wanted. Rules of others are not looked at.
    Applied,
    /// Something of ours, but not what is wanted.
    Drifted {
        /// Every difference, never empty.
        differences: Vec<Difference>,
    },
}

/// Rules could not be installed, examined or removed.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// A program failed.
    #[error("cannot {action}")]
    Command {
        /// What it was run for.
        action: &'static str,
        /// How it failed.
        source: CommandError,
    },
    /// The policy rule or a route could not be set or read.
    #[error(transparent)]
    Routing(#[from] RoutingError),
    /// No scratch namespace to load the plan into for comparison.
    #[error("cannot work out what the rules should look like")]
    Scratch(#[source] NetnsError),
    /// Installing succeeded, but the namespace does not hold what was installed: something else changes it, too.
    #[error("the rules were installed but are not in effect:{}", Lines(.0))]
    NotInEffect(Vec<Difference>),
    /// The chosen back-end does not work on this machine.
    #[error("no usable {wanted} on this machine")]
    NoBackend {
        /// What was looked for.
        wanted: BackendChoice,
        /// How the last attempt failed.
        source: Box<RulesError>,
    },
}

/// Installs the rules and routes of a pod, replacing what is there of ours, and checks that they are in effect.
///
/// Routes come first, since they do nothing by themselves. Then the rules: nftables in one transaction, iptables in
/// one per family and table, so that no packet meets half of them. Connections that exist already keep going where
/// they go.
pub fn apply(netns: &Netns, rules: &PodRules, backend: Backend) -> Result<(), RulesError> {
    routing::apply(netns, rules)?;
    match backend {
        Backend::Iptables(programs) => iptables::apply(netns, rules, programs)?,
        Backend::Nftables => nftables::apply(netns, rules)?,
    }
    match check(netns, rules, backend)? {
        State::Applied => Ok(()),
        State::Clean => Err(RulesError::NotInEffect(Vec::new())),
        State::Drifted { differences } => Err(RulesError::NotInEffect(differences)),
    }
}

/// Compares what is in a pod's namespace with what [`apply`] would put there. Changes nothing.
pub fn check(netns: &Netns, rules: &PodRules, backend: Backend) -> Result<State, RulesError> {
    let (expected, actual) = match backend {
        Backend::Iptables(programs) => {
            (iptables::expected(rules, programs)?, iptables::list(netns, rules.families(), programs)?)
        }
        Backend::Nftables => (nftables::expected(rules)?, nftables::list(netns)?),
    };
    let routing = routing::check(netns, rules)?;
    if actual.is_empty() && routing.is_clean() {
        return Ok(State::Clean);
    }
    let mut differences = expected.differences(&actual);
    differences.extend(routing.missing);
    Ok(if differences.is_empty() { State::Applied } else { State::Drifted { differences } })
}

/// Removes what [`apply`] installs, whatever of it is there. Rules of others stay.
pub fn remove(netns: &Netns, rules: &PodRules, backend: Backend) -> Result<(), RulesError> {
    match backend {
        Backend::Iptables(programs) => iptables::remove(netns, programs)?,
        Backend::Nftables => nftables::remove(netns)?,
    }
    Ok(routing::remove(netns, rules)?)
}

impl BackendChoice {
    /// Finds a back-end that works on this machine for `families`. `host` is the namespace whose existing rules tell
    /// which variant of iptables the machine uses.
    pub fn resolve(self, host: &Netns, families: &[Family]) -> Result<Backend, RulesError> {
        let fails = |source| RulesError::NoBackend { wanted: self, source: Box::new(source) };
        let nftables = || nftables::expected(&PodRules::default()).map(|_works: Listing| Backend::Nftables);
        let iptables = |variant| Programs::find(host, families, variant).map(Backend::Iptables);
        match self {
            BackendChoice::Auto => nftables().or_else(|_| iptables(None)),
            BackendChoice::Nftables => nftables(),
            BackendChoice::Iptables => iptables(None),
            BackendChoice::IptablesVariant(variant) => iptables(Some(variant)),
        }
        .map_err(fails)
    }
}

/// `auto`, `nftables`, `iptables`, `iptables-legacy` or `iptables-nft`.
impl FromStr for BackendChoice {
    type Err = UnknownBackend;

    fn from_str(text: &str) -> Result<BackendChoice, UnknownBackend> {
        Ok(match text {
            "auto" => BackendChoice::Auto,
            "nftables" => BackendChoice::Nftables,
            "iptables" => BackendChoice::Iptables,
            "iptables-legacy" => BackendChoice::IptablesVariant(Variant::Legacy),
            "iptables-nft" => BackendChoice::IptablesVariant(Variant::Nft),
            _ => return Err(UnknownBackend),
        })
    }
}

/// No such back-end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected auto, nftables, iptables, iptables-legacy or iptables-nft")]
pub struct UnknownBackend;

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BackendChoice::Auto => "nftables or iptables",
            BackendChoice::Nftables => "nftables",
            BackendChoice::Iptables => "iptables",
            BackendChoice::IptablesVariant(Variant::Legacy) => "iptables-legacy",
            BackendChoice::IptablesVariant(Variant::Nft) => "iptables-nft",
            BackendChoice::IptablesVariant(Variant::Unnamed) => "iptables",
        })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backend::Iptables(programs) => programs.fmt(f),
            Backend::Nftables => f.write_str("nftables"),
        }
    }
}

/// One word, and for drift one indented line per difference.
impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Clean => f.write_str("clean: no rules of the mesh"),
            State::Applied => f.write_str("applied: the rules are as they should be"),
            State::Drifted { differences } => write!(f, "drifted:{}", Lines(differences)),
        }
    }
}

/// Differences, each on a line of its own.
struct Lines<'a>(&'a [Difference]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|difference| write!(f, "\n  {difference}"))
    }
}
