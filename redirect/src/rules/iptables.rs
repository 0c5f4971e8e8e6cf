//! The plan in the language of iptables, loaded table by table with `iptables-restore`.
//!
//! A restore of one table is atomic, and naming one of our chains in it empties that chain first. So the chains are
//! replaced without a gap; only the jumps into them, which stand among the rules of others, need a look at what is
//! there already.

use std::fmt;
use std::net::IpAddr;

use super::RulesError;
use super::command::{CommandError, run};
use super::listing::Listing;
use super::plan::{Chain, Match, Rule, Table, Verdict};
use super::pod::{Family, PodRules};
use crate::netns::Netns;

/// Which flavour of iptables to run, per family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Programs {
    /// For `iptables`.
    pub ipv4: Variant,
    /// For `ip6tables`.
    pub ipv6: Variant,
}

/// Flavours of iptables. They have separate rules in the kernel, so an agent should use the one that the rest of the
/// machine uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// `iptables-legacy`.
    Legacy,
    /// `iptables-nft`.
    Nft,
    /// `iptables`, whatever that is.
    Unnamed,
}

const TABLES: [Table; 3] = [Table::Mangle, Table::Nat, Table::Raw];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Chains that begin so are ours.
const PREFIX: &str = "ISTIO_";

impl Programs {
    /// Finds programs that work, in the variant asked for, or else as Istio's agent does: legacy if the machine has
    /// legacy rules, else nft, else whatever `iptables` is. A family that is not asked for is not looked into.
    pub(super) fn find(
        host: &Netns,
        families: &[Family],
        variant: Option<Variant>,
    ) -> Result<Programs, RulesError> {
        let mut programs = Programs { ipv4: Variant::Unnamed, ipv6: Variant::Unnamed };
        for &family in families {
            let found = match variant {
                Some(variant) => usable(family, variant).map(|()| variant)?,
                None => detect(host, family)?,
            };
            match family {
                Family::V4 => programs.ipv4 = found,
                Family::V6 => programs.ipv6 = found,
            }
        }
        Ok(programs)
    }

    fn variant(self, family: Family) -> Variant {
        match family {
            Family::V4 => self.ipv4,
            Family::V6 => self.ipv6,
        }
    }
}

fn detect(host: &Netns, family: Family) -> Result<Variant, RulesError> {
    let legacy_rules = run(host, &program(family, Variant::Legacy, "-save"), &[], "");
    let in_use = legacy_rules.is_ok_and(|saved| saved.lines().count() >= 3);
    if in_use && usable(family, Variant::Legacy).is_ok() {
        return Ok(Variant::Legacy);
    }
    match usable(family, Variant::Nft) {
        Ok(()) => Ok(Variant::Nft),
        Err(_) => usable(family, Variant::Unnamed).map(|()| Variant::Unnamed),
    }
}

/// Loads a plan into a scratch namespace: more than the presence of the program says.
fn usable(family: Family, variant: Variant) -> Result<(), RulesError> {
    let programs = Programs { ipv4: variant, ipv6: variant };
    expected_family(&PodRules::default(), family, programs).map(|_works| ())
}

pub(super) fn apply(netns: &Netns, rules: &PodRules, programs: Programs) -> Result<(), RulesError> {
    rules.families().iter().try_for_each(|&family| apply_family(netns, rules, family, programs))
}

/// Removes the rules of both families; one whose program does not work has none.
pub(super) fn remove(netns: &Netns, programs: Programs) -> Result<(), RulesError> {
    for family in FAMILIES {
        let there = match save(netns, family, programs) {
            Ok(there) => there,
            Err(_) if family == Family::V6 => continue,
            Err(error) => return Err(error),
        };
        restore(netns, family, programs, &script(&there, &[]), "remove the rules with iptables")?;
    }
    Ok(())
}

/// Our chains, and the jumps to them in others.
pub(super) fn list(netns: &Netns, families: &[Family], programs: Programs) -> Result<Listing, RulesError> {
    let mut listing = Listing::default();
    for &family in families {
        listing.merge(save(netns, family, programs)?.listing(family));
    }
    Ok(listing)
}

/// What [`list`] shows where the plan is in effect.
pub(super) fn expected(rules: &PodRules, programs: Programs) -> Result<Listing, RulesError> {
    let mut listing = Listing::default();
    for &family in rules.families() {
        listing.merge(expected_family(rules, family, programs)?);
    }
    Ok(listing)
}

fn expected_family(rules: &PodRules, family: Family, programs: Programs) -> Result<Listing, RulesError> {
    let scratch = Netns::create().map_err(RulesError::Scratch)?;
    apply_family(&scratch, rules, family, programs)?;
    let mut listing = save(&scratch, family, programs)?.listing(family);
    let plan = plan(rules, family);
    for table in TABLES {
        for chain in [Chain::Prerouting, Chain::Output] {
            let here = plan.iter().filter(|rule| (rule.table, rule.chain) == (table, chain));
            listing.explain(&place(family, table_name(table), chain_name(chain)), here.map(|rule| rule.id));
        }
    }
    Ok(listing)
}

fn apply_family(
    netns: &Netns,
    rules: &PodRules,
    family: Family,
    programs: Programs,
) -> Result<(), RulesError> {
    let there = save(netns, family, programs)?;
    let script = script(&there, &plan(rules, family));
    restore(netns, family, programs, &script, "install the rules with iptables")
}

/// The rules of the plan that concern a family.
fn plan(rules: &PodRules, family: Family) -> Vec<Rule> {
    let mut plan = rules.plan();
    plan.retain(|rule| rule.family.is_none_or(|only| only == family));
    plan
}

/// What of a family's rules concerns us, in the order of `iptables-save`: our chains, the rules in them, and the
/// rules of others that lead into them.
struct Saved(Vec<Entry>);

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    table: String,
    chain: String,
    /// What follows `-A chain`; none for the chain itself.
    rule: Option<String>,
}

fn save(netns: &Netns, family: Family, programs: Programs) -> Result<Saved, RulesError> {
    let saved = run(netns, &program(family, programs.variant(family), "-save"), &[], "");
    let saved =
        saved.map_err(|source| RulesError::Command { action: "list the rules of iptables", source })?;
    Ok(Saved::parse(&saved))
}

impl Saved {
    fn parse(saved: &str) -> Saved {
        let mut entries = Vec::new();
        let mut table = String::new();
        for line in saved.lines() {
            let (chain, rule) = if let Some(name) = line.strip_prefix('*') {
                table = name.to_owned();
                continue;
            } else if let Some(chain) = line.strip_prefix(':') {
                (chain.split(' ').next().unwrap_or_default(), None)
            } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' '))
            {
                (chain, Some(rule))
            } else {
                continue;
            };
            if chain.starts_with(PREFIX) || rule.is_some_and(leads_to_us) {
                let (chain, rule) = (chain.to_owned(), rule.map(str::to_owned));
                entries.push(Entry { table: table.clone(), chain, rule });
            }
        }
        Saved(entries)
    }

    fn listing(&self, family: Family) -> Listing {
        let mut listing = Listing::default();
        for Entry { table, chain, rule } in &self.0 {
            listing.push(&place(family, table, chain), rule.as_deref());
        }
        listing
    }

    fn chains<'a>(&'a self, table: &'a str) -> impl Iterator<Item = &'a str> {
        let entries = self.0.iter().filter(move |entry| entry.table == table && entry.rule.is_none());
        entries.map(|entry| entry.chain.as_str())
    }

    /// Rules of others that lead to us.
    fn jumps<'a>(&'a self, table: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let entries =
            self.0.iter().filter(move |entry| entry.table == table && !entry.chain.starts_with(PREFIX));
        entries.filter_map(|entry| Some((entry.chain.as_str(), entry.rule.as_deref()?)))
    }
}

fn leads_to_us(rule: &str) -> bool {
    let words = rule.split(' ');
    words
        .clone()
        .zip(words.skip(1))
        .any(|(option, target)| matches!(option, "-j" | "-g") && target.starts_with(PREFIX))
}

fn place(family: Family, table: &str, chain: &str) -> String {
    format!("{family} {table} {chain}")
}

/// Input for `iptables-restore --noflush` that turns what is `there` into `rules` and leaves everything else.
fn script(there: &Saved, rules: &[Rule]) -> String {
    let mut tables: Vec<&str> = TABLES.into_iter().map(table_name).collect();
    // Where we install nothing, but somebody's chains with our prefix may be left.
    tables.push("filter");
    tables.into_iter().map(|table| table_script(table, there, rules)).collect()
}

fn table_script(table: &str, there: &Saved, rules: &[Rule]) -> String {
    let rules: Vec<&Rule> = rules.iter().filter(|rule| table_name(rule.table) == table).collect();
    let needed = |chain: &Chain| rules.iter().any(|rule| rule.chain == *chain);
    let chains: Vec<Chain> = [Chain::Prerouting, Chain::Output].into_iter().filter(needed).collect();
    let wanted: Vec<&str> = chains.iter().map(|chain| chain_name(*chain)).collect();
    let stale: Vec<&str> = there.chains(table).filter(|chain| !wanted.contains(chain)).collect();
    if wanted.is_empty() && stale.is_empty() {
        return String::new();
    }
    let mut lines = vec![format!("*{table}")];
    // Creates a chain or empties it.
    lines.extend(wanted.iter().chain(&stale).map(|chain| format!(":{chain} - [0:0]")));
    let jumps: Vec<(&str, String)> =
        chains.iter().map(|&chain| (hook_name(chain), format!("-j {}", chain_name(chain)))).collect();
    let jumps_there: Vec<(&str, String)> =
        there.jumps(table).map(|(hook, rule)| (hook, rule.to_owned())).collect();
    if !same_elements(&jumps, &jumps_there) {
        lines.extend(jumps_there.iter().map(|(hook, rule)| format!("-D {hook} {rule}")));
        lines.extend(jumps.iter().map(|(hook, rule)| format!("-A {hook} {rule}")));
    }
    lines.extend(rules.iter().map(|rule| format!("-A {} {}", chain_name(rule.chain), rule_text(rule))));
    lines.extend(stale.iter().map(|chain| format!("-X {chain}")));
    lines.push("COMMIT\n".to_owned());
    lines.join("\n")
}

fn same_elements<T: Ord + Clone>(one: &[T], other: &[T]) -> bool {
    let sorted = |elements: &[T]| {
        let mut elements = elements.to_vec();
        elements.sort();
        elements
    };
    sorted(one) == sorted(other)
}

fn restore(
    netns: &Netns,
    family: Family,
    programs: Programs,
    script: &str,
    action: &'static str,
) -> Result<(), RulesError> {
    let program = program(family, programs.variant(family), "-restore");
    // The lock of iptables is shared by all namespaces of a machine.
    let restored: Result<_, CommandError> = run(netns, &program, &["--noflush", "--wait=30"], script);
    restored.map(|_silence| ()).map_err(|source| RulesError::Command { action, source })
}

fn program(family: Family, variant: Variant, suffix: &str) -> String {
    let family = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    match variant {
        Variant::Unnamed => format!("{family}{suffix}"),
        Variant::Legacy | Variant::Nft => format!("{family}-{variant}{suffix}"),
    }
}

fn table_name(table: Table) -> &'static str {
    match table {
        Table::Mangle => "mangle",
        Table::Nat => "nat",
        Table::Raw => "raw",
    }
}

fn chain_name(chain: Chain) -> &'static str {
    match chain {
        Chain::Prerouting => "ISTIO_PRERT",
        Chain::Output => "ISTIO_OUTPUT",
    }
}

fn hook_name(chain: Chain) -> &'static str {
    match chain {
        Chain::Prerouting => "PREROUTING",
        Chain::Output => "OUTPUT",
    }
}

fn rule_text(rule: &Rule) -> String {
    let matches = rule.matches.iter().map(match_text);
    matches.chain([verdict_text(rule.verdict)]).collect::<Vec<_>>().join(" ")
}

fn match_text(one: &Match) -> String {
    match one {
        Match::InInterface(name) => format!("-i {}", name.as_str()),
        Match::NotInLoopback => "! -i lo".to_owned(),
        Match::OutLoopback => "-o lo".to_owned(),
        Match::NotOutLoopback => "! -o lo".to_owned(),
        Match::Source(address) => format!("-s {}", network(address)),
        Match::NotSource(address) => format!("! -s {}", network(address)),
        Match::Destination(address) => format!("-d {}", network(address)),
        Match::NotDestination(address) => format!("! -d {}", network(address)),
        Match::Tcp => "-p tcp".to_owned(),
        Match::Udp => "-p udp".to_owned(),
        Match::SourcePort(port) => format!("--sport {port}"),
        Match::DestinationPort(port) => format!("--dport {port}"),
        Match::NotDestinationPort(port) => format!("! --dport {port}"),
        Match::Opening => "--tcp-flags FIN,SYN,RST,ACK SYN".to_owned(),
        Match::Marked(mark) => format!("-m mark --mark {:#x}/{:#x}", mark.value, mark.mask),
        Match::NotMarked(mark) => format!("-m mark ! --mark {:#x}/{:#x}", mark.value, mark.mask),
        Match::ConnectionMarked(mark) => format!("-m connmark --mark {:#x}/{:#x}", mark.value, mark.mask),
        Match::KnownButNotRedirected => "-m conntrack ! --ctstate DNAT --ctstatus CONFIRMED".to_owned(),
    }
}

fn verdict_text(verdict: Verdict) -> String {
    match verdict {
        Verdict::Accept => "-j ACCEPT".to_owned(),
        Verdict::Return => "-j RETURN".to_owned(),
        Verdict::Drop => "-j DROP".to_owned(),
        Verdict::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
        Verdict::MarkConnection(mark) => {
            format!("-j CONNMARK --set-xmark {:#x}/{:#x}", mark.value, mark.mask)
        }
        Verdict::RestoreMark => {
            "-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff".to_owned()
        }
        Verdict::TrackInZone(zone) => format!("-j CT --zone {zone}"),
    }
}

fn network(address: &IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}/32"),
        IpAddr::V6(address) => format!("{address}/128"),
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Variant::Legacy => "legacy",
            Variant::Nft => "nft",
            Variant::Unnamed => "unnamed",
        })
    }
}

/// Such as `iptables (IPv4 nft, IPv6 legacy)`.
impl fmt::Display for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iptables (IPv4 {}, IPv6 {})", self.ipv4, self.ipv6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "# comment\n*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j DROP\nCOMMIT\n\
        *nat\n:OUTPUT ACCEPT [0:0]\n:ISTIO_OUTPUT - [0:0]\n:ISTIO_OLD - [0:0]\n-A OUTPUT -p tcp -j ACCEPT\n\
        -A OUTPUT -p tcp -j ISTIO_OUTPUT\n-A ISTIO_OUTPUT -j RETURN\nCOMMIT\n";

    #[test]
    fn what_others_own_is_not_ours_to_see_except_what_leads_to_us() {
        let mut ours = Listing::default();
        ours.push("IPv4 nat ISTIO_OLD", None);
        ours.push("IPv4 nat ISTIO_OUTPUT", Some("-j RETURN"));
        ours.push("IPv4 nat OUTPUT", Some("-p tcp -j ISTIO_OUTPUT"));
        assert_eq!(Saved::parse(SAVED).listing(Family::V4), ours);
    }

    #[test]
    fn removal_undoes_what_is_there_and_nothing_else() {
        let script = script(&Saved::parse(SAVED), &[]);
        assert_eq!(
            script,
            "*nat\n:ISTIO_OUTPUT - [0:0]\n:ISTIO_OLD - [0:0]\n-D OUTPUT -p tcp -j ISTIO_OUTPUT\n\
             -X ISTIO_OUTPUT\n-X ISTIO_OLD\nCOMMIT\n"
        );
    }

    #[test]
    fn a_changed_jump_is_replaced_and_a_right_one_left() {
        let plan = plan(&PodRules::default(), Family::V4);
        let changed = script(&Saved::parse(SAVED), &plan);
        assert!(changed.contains("\n-D OUTPUT -p tcp -j ISTIO_OUTPUT\n"), "{changed}");
        assert!(changed.contains("\n-A OUTPUT -j ISTIO_OUTPUT\n"), "{changed}");
        let right = "*nat\n:ISTIO_OUTPUT - [0:0]\n:ISTIO_PRERT - [0:0]\n-A PREROUTING -j ISTIO_PRERT\n\
            -A OUTPUT -j ISTIO_OUTPUT\nCOMMIT\n";
        let script = script(&Saved::parse(right), &plan);
        let nat = script.split("*nat").nth(1).unwrap().split("COMMIT").next().unwrap();
        assert!(!nat.contains("OUTPUT -j ISTIO_OUTPUT"), "{nat}");
        assert!(nat.contains("-A ISTIO_OUTPUT "), "{nat}");
    }
}
