//! The plan in the language of nft, loaded in one transaction.

use std::net::IpAddr;

use super::RulesError;
use super::command::run;
use super::listing::Listing;
use super::plan::{Chain, Match, Rule, Table, Verdict};
use super::pod::{Family, InterfaceName, PodRules};
use crate::netns::Netns;

const TABLES: [Table; 3] = [Table::Mangle, Table::Nat, Table::Raw];

pub(super) fn apply(netns: &Netns, rules: &PodRules) -> Result<(), RulesError> {
    load(netns, &transaction(&rules.plan()), "install the rules with nftables")
}

pub(super) fn remove(netns: &Netns) -> Result<(), RulesError> {
    load(netns, &transaction(&[]), "remove the rules with nftables")
}

/// The chains of our tables.
pub(super) fn list(netns: &Netns) -> Result<Listing, RulesError> {
    // Stateless: without the numbers that counters count.
    let arguments = ["--stateless", "list", "ruleset", "inet"];
    let listed = run(netns, "nft", &arguments, "");
    let listed =
        listed.map_err(|source| RulesError::Command { action: "list the rules of nftables", source })?;
    Ok(parse(&listed))
}

/// What [`list`] shows where the plan is in effect.
pub(super) fn expected(rules: &PodRules) -> Result<Listing, RulesError> {
    let scratch = Netns::create().map_err(RulesError::Scratch)?;
    apply(&scratch, rules)?;
    let mut listing = list(&scratch)?;
    for table in TABLES {
        for chain in [Chain::Prerouting, Chain::Output] {
            let rules = rules.plan().into_iter();
            let here = rules.filter(|rule| (rule.table, rule.chain) == (table, chain)).map(|rule| rule.id);
            listing.explain(&format!("{} {}", table_name(table), chain_name(chain)), here);
        }
    }
    Ok(listing)
}

fn load(netns: &Netns, transaction: &str, action: &'static str) -> Result<(), RulesError> {
    match run(netns, "nft", &["-f", "-"], transaction) {
        Ok(_silence) => Ok(()),
        Err(source) => Err(RulesError::Command { action, source }),
    }
}

/// Replaces all our tables by `rules`; a table without rules is gone afterwards. Adding a table before deleting it
/// keeps the deletion from failing when there is none.
fn transaction(rules: &[Rule]) -> String {
    let mut script = String::new();
    for table in TABLES {
        let name = table_name(table);
        script += &format!("add table inet {name}\ndelete table inet {name}\n");
        if rules.iter().any(|rule| rule.table == table) {
            script += &table_block(table, rules);
        }
    }
    script
}

fn table_block(table: Table, rules: &[Rule]) -> String {
    let mut block = format!("table inet {} {{\n", table_name(table));
    for (chain, hook) in [(Chain::Prerouting, "prerouting"), (Chain::Output, "output")] {
        let rules = rules.iter().filter(|rule| rule.table == table && rule.chain == chain);
        let rules: String = rules.map(|rule| format!("    {}\n", rule_text(rule))).collect();
        let (name, kind) = (chain_name(chain), base_chain(table, chain));
        block += &format!("  chain {name} {{\n{rules}  }}\n");
        block += &format!("  chain {hook} {{\n    {kind} policy accept;\n    jump {name}\n  }}\n");
    }
    block + "}\n"
}

fn table_name(table: Table) -> &'static str {
    match table {
        Table::Mangle => "istio-ambient-mangle",
        Table::Nat => "istio-ambient-nat",
        Table::Raw => "istio-ambient-raw",
    }
}

fn chain_name(chain: Chain) -> &'static str {
    match chain {
        Chain::Prerouting => "istio-prerouting",
        Chain::Output => "istio-output",
    }
}

fn base_chain(table: Table, chain: Chain) -> &'static str {
    match (table, chain) {
        (Table::Mangle, Chain::Prerouting) => "type filter hook prerouting priority -150;",
        // Type route: a changed mark has the packet routed again.
        (Table::Mangle, Chain::Output) => "type route hook output priority -150;",
        (Table::Nat, Chain::Prerouting) => "type nat hook prerouting priority -100;",
        (Table::Nat, Chain::Output) => "type nat hook output priority -100;",
        (Table::Raw, Chain::Prerouting) => "type filter hook prerouting priority -300;",
        (Table::Raw, Chain::Output) => "type filter hook output priority -300;",
    }
}

fn rule_text(rule: &Rule) -> String {
    let mut text = match rule.family {
        None => String::new(),
        Some(Family::V4) => "meta nfproto ipv4 ".to_owned(),
        Some(Family::V6) => "meta nfproto ipv6 ".to_owned(),
    };
    for one in &rule.matches {
        text += &match_text(one);
        text.push(' ');
    }
    text + "counter " + &verdict_text(rule.verdict)
}

fn match_text(one: &Match) -> String {
    match one {
        Match::InInterface(name) => format!("iifname \"{}\"", interface_pattern(name)),
        Match::NotInLoopback => "iifname != \"lo\"".to_owned(),
        Match::OutLoopback => "oifname \"lo\"".to_owned(),
        Match::NotOutLoopback => "oifname != \"lo\"".to_owned(),
        Match::Source(address) => format!("{} saddr {address}", header(address)),
        Match::NotSource(address) => format!("{} saddr != {address}", header(address)),
        Match::Destination(address) => format!("{} daddr {address}", header(address)),
        Match::NotDestination(address) => format!("{} daddr != {address}", header(address)),
        Match::Tcp => "meta l4proto tcp".to_owned(),
        Match::Udp => "meta l4proto udp".to_owned(),
        Match::SourcePort(port) => format!("th sport {port}"),
        Match::DestinationPort(port) => format!("th dport {port}"),
        Match::NotDestinationPort(port) => format!("th dport != {port}"),
        Match::Opening => "tcp flags & (fin | syn | rst | ack) == syn".to_owned(),
        Match::Marked(mark) => format!("meta mark & {:#x} == {:#x}", mark.mask, mark.value),
        Match::NotMarked(mark) => format!("meta mark & {:#x} != {:#x}", mark.mask, mark.value),
        Match::ConnectionMarked(mark) => format!("ct mark & {:#x} == {:#x}", mark.mask, mark.value),
        Match::KnownButNotRedirected => "ct status & (confirmed | dnat) == confirmed".to_owned(),
    }
}

fn verdict_text(verdict: Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Return => "return".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Redirect(port) => format!("redirect to :{port}"),
        Verdict::MarkConnection(mark) => {
            format!("ct mark set ct mark & {:#x} | {:#x}", !mark.mask, mark.value)
        }
        Verdict::RestoreMark => "meta mark set ct mark".to_owned(),
        Verdict::TrackInZone(zone) => format!("ct zone set {zone}"),
    }
}

fn header(address: &IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "ip",
        IpAddr::V6(_) => "ip6",
    }
}

/// nft writes `*` for the `+` of iptables.
fn interface_pattern(name: &InterfaceName) -> String {
    match name.as_str().strip_suffix('+') {
        Some(prefix) => format!("{prefix}*"),
        None => name.as_str().to_owned(),
    }
}

/// Reads what nft lists: tables at the margin, what they consist of indented once, rules twice. Only our tables
/// count. A table appears as a chain of its own name, which holds its flags and keeps one without chains in sight.
fn parse(listed: &str) -> Listing {
    let mut listing = Listing::default();
    let mut table = None;
    let mut chain = String::new();
    for line in listed.lines().filter(|line| !matches!(line.trim(), "" | "}")) {
        let text = line.trim();
        let opened = text.strip_suffix(" {");
        match (line.chars().take_while(|&c| c == '\t').count(), opened, table) {
            (0, _, _) => {
                let name = opened.and_then(|opened| opened.strip_prefix("table inet "));
                table = name.filter(|name| TABLES.iter().any(|table| table_name(*table) == *name));
                table.into_iter().for_each(|table| listing.push(table, None));
            }
            (1, Some(opened), Some(table)) => {
                chain = format!("{table} {}", opened.trim_start_matches("chain "));
                listing.push(&chain, None);
            }
            (1, None, Some(table)) => listing.push(table, Some(text)),
            (_, _, Some(_)) => listing.push(&chain, Some(text)),
            (_, _, None) => {}
        }
    }
    listing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_tables_are_read_with_their_flags_and_empty_chains() {
        let listed = "table inet other {\n\tchain istio-output {\n\t\tdrop\n\t}\n}\n\
            table inet istio-ambient-nat {\n\tflags dormant\n\n\tchain output {\n\t}\n\n\
            \tchain istio-output {\n\t\tmeta mark set 1\n\t\taccept\n\t}\n}\n";
        let mut ours = Listing::default();
        ours.push("istio-ambient-nat", Some("flags dormant"));
        ours.push("istio-ambient-nat output", None);
        ours.push("istio-ambient-nat istio-output", Some("meta mark set 1"));
        ours.push("istio-ambient-nat istio-output", Some("accept"));
        assert_eq!(parse(listed), ours);
    }

    #[test]
    fn a_table_without_rules_is_deleted() {
        let script =
            transaction(&PodRules { dns: crate::rules::DnsCapture::Off, ..PodRules::default() }.plan());
        assert!(script.contains("delete table inet istio-ambient-raw\n"));
        assert!(!script.contains("table inet istio-ambient-raw {"));
    }
}
