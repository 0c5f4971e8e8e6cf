//! Evaluation against one that is nothing but the definition, on random policies and connections.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

use super::*;

/// What can decide, or would: a policy's key and the first of its rules that matches.
type Matched = (String, usize);

/// Policies, and the workload that they are to be judged for.
#[derive(Clone, Debug)]
struct Scene {
    specs: Vec<PolicySpec>,
    namespace: &'static str,
    selected: Vec<String>,
}

/// A connection.
#[derive(Clone, Debug)]
struct Connection {
    source: IpAddr,
    peer: Option<SpiffeId>,
    destination: SocketAddr,
}

impl Connection {
    fn access(&self) -> Access<'_> {
        Access::new(self.source, self.peer.as_ref(), self.destination)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    DeniedByPolicy,
    PolicyUnknown,
    AllowedByPolicy,
    NoneAllowed,
    NothingToSay,
}

/// Everything that can be said about a connection.
#[derive(Debug, PartialEq, Eq)]
struct Judgement {
    verdict: Verdict,
    /// Whichever of these is reported would be right; the first is.
    deciders: BTreeSet<Matched>,
    /// Policies that are not enforced and match.
    dry_run: BTreeSet<Matched>,
    /// Enforcing them would deny the connection, as none allows it.
    dry_run_would_deny: bool,
}

/// Read off the definition: which policies apply, and what decides in which order.
fn naive_judgement(scene: &Scene, connection: &Connection) -> Judgement {
    // The last policy of a name replaces the others.
    let known: BTreeMap<String, &PolicySpec> =
        scene.specs.iter().map(|spec| (format!("{}/{}", spec.namespace, spec.name), spec)).collect();
    let applies = |(key, spec): &(&String, &&PolicySpec)| match spec.scope {
        PolicyScope::Global => true,
        PolicyScope::Namespace => &*spec.namespace == scene.namespace,
        PolicyScope::WorkloadSelector => false,
    } || scene.selected.contains(key);
    let applying: Vec<_> = known.iter().filter(applies).collect();
    let exists = |enforcement, action| {
        applying.iter().any(|(_, spec)| spec.enforcement == enforcement && spec.action == action)
    };
    let matching = |enforcement, action| {
        let of_kind =
            applying.iter().filter(move |(_, spec)| spec.enforcement == enforcement && spec.action == action);
        let matched = of_kind.filter_map(|(key, spec)| Some(((*key).clone(), naive_rule(spec, connection)?)));
        matched.collect::<BTreeSet<Matched>>()
    };
    let denying = matching(Enforcement::Enforced, Action::Deny);
    let allowing = matching(Enforcement::Enforced, Action::Allow);
    let has_unknown = scene.selected.iter().any(|key| !known.contains_key(key));
    let (verdict, deciders) = match () {
        () if !denying.is_empty() => (Verdict::DeniedByPolicy, denying),
        () if has_unknown => (Verdict::PolicyUnknown, BTreeSet::new()),
        () if !exists(Enforcement::Enforced, Action::Allow) => (Verdict::NothingToSay, BTreeSet::new()),
        () if !allowing.is_empty() => (Verdict::AllowedByPolicy, allowing),
        () => (Verdict::NoneAllowed, BTreeSet::new()),
    };
    let dry_allowing = matching(Enforcement::DryRun, Action::Allow);
    let dry_run_would_deny = exists(Enforcement::DryRun, Action::Allow)
        && !exists(Enforcement::Enforced, Action::Allow)
        && dry_allowing.is_empty();
    let dry_run = matching(Enforcement::DryRun, Action::Deny).into_iter().chain(dry_allowing).collect();
    Judgement { verdict, deciders, dry_run, dry_run_would_deny }
}

/// The first rule of `spec` that matches, read off the definition in the module's documentation.
fn naive_rule(spec: &PolicySpec, connection: &Connection) -> Option<usize> {
    spec.rules.iter().position(|rule| {
        rule.iter().all(|clause| {
            clause.is_empty() || clause.iter().any(|given| naive_match(given, spec.action, connection))
        })
    })
}

/// What cannot be read is taken to be what opens least: it does its part for a match that denies, and against one that
/// allows.
fn naive_match(given: &MatchSpec, action: Action, connection: &Connection) -> bool {
    let identity = connection.peer.as_ref();
    let principal = identity.map(|identity| identity.as_str().replacen("spiffe://", "", 1));
    let namespace = identity.map_or("", |identity| identity.namespace());
    let account = identity.map(|identity| (identity.namespace(), identity.service_account()));
    let (source, destination) =
        (connection.source.to_canonical(), connection.destination.ip().to_canonical());
    let fields = [
        naive_field(action, &given.namespaces, &given.not_namespaces, |value| naive_text(value, namespace)),
        naive_field(action, &given.principals, &given.not_principals, |value| {
            principal.as_ref().is_some_and(|principal| naive_text(value, principal))
        }),
        naive_field(action, &given.service_accounts, &given.not_service_accounts, |value| {
            account == Some((&*value.namespace, &*value.service_account))
        }),
        naive_field(action, &given.source_ips, &given.not_source_ips, |range| in_range(range, source)),
        naive_field(action, &given.destination_ips, &given.not_destination_ips, |range| {
            in_range(range, destination)
        }),
        naive_field(action, &given.destination_ports, &given.not_destination_ports, |port| {
            *port == connection.destination.port()
        }),
        (!given.unknown_fields.is_empty()).then_some(action == Action::Deny),
    ];
    fields.iter().any(Option::is_some) && fields.iter().all(|field| *field != Some(false))
}

/// None for a field without values.
fn naive_field<T>(
    action: Action,
    any_of: &[Readable<T>],
    none_of: &[Readable<T>],
    matches: impl Fn(&T) -> bool,
) -> Option<bool> {
    if any_of.is_empty() && none_of.is_empty() {
        return None;
    }
    let applies = |value: &Readable<T>, if_unreadable| value.as_ref().map_or(if_unreadable, &matches);
    let positive = any_of.is_empty() || any_of.iter().any(|value| applies(value, action == Action::Deny));
    let negative = none_of.iter().any(|value| applies(value, action == Action::Allow));
    Some(positive && !negative)
}

fn naive_text(condition: &StringMatch, text: &str) -> bool {
    match condition {
        StringMatch::Exact(expected) => **expected == *text,
        StringMatch::Prefix(prefix) => text.len() >= prefix.len() && text[..prefix.len()] == **prefix,
        StringMatch::Suffix(suffix) => {
            text.len() >= suffix.len() && text[text.len() - suffix.len()..] == **suffix
        }
        StringMatch::Presence => !text.is_empty(),
    }
}

/// Compares bit by bit.
fn in_range(range: &IpNet, address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => format!("{:032b}", u32::from(address)),
        IpAddr::V6(address) => format!("{:0128b}", u128::from(address)),
    };
    let length = usize::from(range.prefix_len());
    range.addr().is_ipv4() == address.is_ipv4() && bits(range.addr())[..length] == bits(address)[..length]
}

/// What evaluation says, in the same terms; checks that of several deciders the first is reported.
fn judgement(scene: &Scene, connection: &Connection) -> Result<Judgement, TestCaseError> {
    let mut policies = Policies::default();
    for spec in &scene.specs {
        policies.upsert(Arc::new(compile(spec.clone()).0));
    }
    let selected: Vec<Arc<str>> = scene.selected.iter().map(|key| key.as_str().into()).collect();
    let set = policies.applying_to(scene.namespace, &selected);
    let access = connection.access();
    let Evaluation { decision, dry_run } = set.evaluate(&access);
    let (verdict, reported) = match &decision {
        Ok(permit) => {
            prop_assert_eq!(permit.destination().ip(), connection.destination.ip().to_canonical());
            match permit.by() {
                Some(by) => (Verdict::AllowedByPolicy, Some(by.clone())),
                None => (Verdict::NothingToSay, None),
            }
        }
        Err(Denied::Explicitly(by)) => (Verdict::DeniedByPolicy, Some(by.clone())),
        Err(Denied::PolicyUnknown(key)) => {
            prop_assert!(scene.selected.iter().any(|selected| **selected == **key));
            (Verdict::PolicyUnknown, None)
        }
        Err(Denied::NotAllowed) => (Verdict::NoneAllowed, None),
    };
    let action = if verdict == Verdict::DeniedByPolicy { Action::Deny } else { Action::Allow };
    let could_decide = set
        .iter()
        .filter(|policy| {
            reported.is_some() && policy.enforcement() == Enforcement::Enforced && policy.action() == action
        })
        .filter_map(|policy| Some((policy.key().to_string(), policy.first_match(&access)?)));
    let deciders: BTreeSet<Matched> = could_decide.collect();
    prop_assert_eq!(reported.as_ref().map(matched), deciders.first().cloned());
    Ok(Judgement {
        verdict,
        deciders,
        dry_run_would_deny: dry_run.contains(&DryRun::NoneAllowed),
        dry_run: dry_run
            .iter()
            .filter_map(|report| match report {
                DryRun::Matched(by) => Some(matched(by)),
                DryRun::NoneAllowed => None,
            })
            .collect(),
    })
}

fn matched(by: &Decider) -> Matched {
    (by.policy.key().to_string(), by.rule)
}

#[test]
fn evaluation_agrees_with_the_definition() {
    /// Each verdict has to come up at least so often, or the policies are too dull to prove anything.
    const LEAST: usize = 500;
    let seen: RefCell<BTreeMap<Verdict, usize>> = RefCell::default();
    let several = RefCell::new(0);
    let config = ProptestConfig::default();
    let mut runner = TestRunner::new(ProptestConfig { cases: config.cases.max(20_000), ..config });
    runner
        .run(&(any_scene(), any_connection()), |(scene, connection)| {
            let expected = naive_judgement(&scene, &connection);
            *seen.borrow_mut().entry(expected.verdict).or_default() += 1;
            *several.borrow_mut() += usize::from(expected.deciders.len() > 1);
            prop_assert_eq!(judgement(&scene, &connection)?, expected);
            Ok(())
        })
        .unwrap();
    let (seen, several) = (seen.into_inner(), several.into_inner());
    assert!(seen.len() == 5 && seen.values().all(|count| *count >= LEAST), "{seen:?}");
    assert!(several >= LEAST, "only {several} connections that several policies could decide about");
}

/// No values, mostly; each of the others cannot be read with this probability.
fn some<T: std::fmt::Debug + Clone>(
    value: impl Strategy<Value = T>,
    unreadable: f64,
) -> impl Strategy<Value = Vec<Readable<T>>> {
    let value = (value, prop::bool::weighted(unreadable))
        .prop_map(|(value, broken)| if broken { Err(Unreadable("broken".into())) } else { Ok(value) });
    prop_oneof![5 => Just(vec![]), 1 => prop::collection::vec(value, 1..3)]
}

fn string_match(text: &'static [&'static str]) -> impl Strategy<Value = StringMatch> {
    (prop::sample::select(text), 0..4).prop_map(|(text, kind)| match kind {
        0 => StringMatch::Exact(text.into()),
        1 => StringMatch::Prefix(text.into()),
        2 => StringMatch::Suffix(text.into()),
        _ => StringMatch::Presence,
    })
}

fn any_match(unreadable: f64) -> impl Strategy<Value = MatchSpec> {
    let namespace = || some(string_match(&["", "a", "ab", "b"]), unreadable);
    let principals = &["", "td/ns/a/sa/x", "td", "/sa/x", "td/ns/ab/sa/y", "spiffe://td/ns/a/sa/x"];
    let principal = || some(string_match(principals), unreadable);
    let account = || {
        let parts = (prop::sample::select(&["a", "ab", ""]), prop::sample::select(&["x", "y"]));
        let account = parts.prop_map(|(namespace, service_account)| ServiceAccountMatch {
            namespace: namespace.into(),
            service_account: service_account.into(),
        });
        some(account, unreadable)
    };
    let range = || {
        // Some with bits beyond the prefix.
        let ranges = [
            "10.0.0.0/8",
            "10.0.0.77/24",
            "10.0.0.1/32",
            "0.0.0.0/0",
            "192.0.2.255/25",
            "fd00::/8",
            "fd00::77/64",
            "fd00::1/128",
            "::/0",
            "::ffff:10.0.0.0/104",
        ];
        some(
            prop::sample::select(ranges.to_vec()).prop_map(|text| text.parse::<IpNet>().unwrap()),
            unreadable,
        )
    };
    let port = || some(prop::sample::select(vec![80u16, 8080, 0]), unreadable);
    (
        (namespace(), namespace(), principal(), principal()),
        (account(), account(), range(), range()),
        (range(), range(), port(), port()),
        prop::bool::weighted(unreadable / 4.0),
    )
        .prop_map(|(strings, middle, rest, unknown)| MatchSpec {
            namespaces: strings.0,
            not_namespaces: strings.1,
            principals: strings.2,
            not_principals: strings.3,
            service_accounts: middle.0,
            not_service_accounts: middle.1,
            source_ips: middle.2,
            not_source_ips: middle.3,
            destination_ips: rest.0,
            not_destination_ips: rest.1,
            destination_ports: rest.2,
            not_destination_ports: rest.3,
            unknown_fields: if unknown { vec![Unreadable("unknown field".into())] } else { vec![] },
        })
}

/// Lists of rules, clauses and matches have `least` or more elements.
fn any_policy(least: usize, unreadable: f64) -> impl Strategy<Value = PolicySpec> {
    let clause = prop::collection::vec(any_match(unreadable), least..3);
    let rule = prop::collection::vec(clause, least..3);
    let rules = prop::collection::vec(rule, least..3);
    let kind = (prop::bool::weighted(0.3), prop::bool::weighted(0.2), 0..3usize);
    (rules, prop::sample::select(POLICY_KEYS), kind).prop_map(
        |(rules, (namespace, name), (is_deny, is_dry, scope))| PolicySpec {
            namespace: namespace.into(),
            scope: [PolicyScope::Global, PolicyScope::Namespace, PolicyScope::WorkloadSelector][scope],
            enforcement: if is_dry { Enforcement::DryRun } else { Enforcement::Enforced },
            ..spec(name, if is_deny { Action::Deny } else { Action::Allow }, rules)
        },
    )
}

const POLICY_KEYS: &[(&str, &str)] =
    &[("ns1", "a"), ("ns1", "b"), ("ns1", "c"), ("ns1", "d"), ("ns2", "a"), ("ns2", "e"), ("root", "f")];

fn any_scene() -> impl Strategy<Value = Scene> {
    let specs = prop::collection::vec(any_policy(0, 0.1), 0..7);
    let key = prop::sample::select(POLICY_KEYS).prop_map(|(namespace, name)| format!("{namespace}/{name}"));
    let selected = prop_oneof![1 => Just(vec![]), 1 => prop::collection::vec(key, 1..4)];
    (specs, prop::sample::select(&["ns1", "ns2"]), selected, prop::bool::weighted(0.9)).prop_map(
        |(specs, namespace, mut selected, only_known)| {
            if only_known {
                selected.retain(|key| {
                    specs.iter().any(|spec| *key == format!("{}/{}", spec.namespace, spec.name))
                });
            }
            Scene { specs, namespace, selected }
        },
    )
}

fn any_connection() -> impl Strategy<Value = Connection> {
    let peers = ["", "td/ns/a/sa/x", "td/ns/ab/sa/y", "other/ns/b/sa/x", "td/ns//sa/x", "other/ns/a/sa/x"];
    let ips = || {
        let ips = [
            "10.0.0.1",
            "10.0.9.1",
            "192.0.2.1",
            "192.0.2.130",
            "fd00::1",
            "fd00:1::1",
            "fe80::1",
            "::ffff:10.0.0.1",
        ];
        prop::sample::select(ips.to_vec())
    };
    let port = prop::sample::select(vec![80u16, 8080]);
    (prop::sample::select(peers.to_vec()), ips(), ips(), port).prop_map(
        |(peer, source, destination, port)| Connection {
            source: source.parse().unwrap(),
            peer: (!peer.is_empty()).then(|| identity(peer)),
            destination: SocketAddr::new(destination.parse().unwrap(), port),
        },
    )
}

proptest! {
    /// Whatever the unreadable value would have been: an ALLOW policy allows no more, and a DENY policy no less is denied.
    #[test]
    fn not_being_able_to_read_a_value_never_widens_access(
        spec in any_policy(1, 0.0),
        field in 0..12usize,
        at in any::<prop::sample::Index>(),
        connection in any_connection(),
    ) {
        let access = connection.access();
        let mut broken = spec.clone();
        let mut matches: Vec<_> = broken.rules.iter_mut().flatten().flatten().collect();
        let position = at.index(matches.len());
        let given = &mut *matches[position];
        prop_assume!((field..field + 12).any(|field| break_first_of(given, field % 12)));
        let action = spec.action;
        let (whole, _) = compile(spec);
        let (broken, warnings) = compile(broken);
        prop_assert_eq!(warnings.len(), 1);
        let (whole, broken) = (whole.first_match(&access).is_some(), broken.first_match(&access).is_some());
        match action {
            Action::Allow => prop_assert!(whole || !broken),
            Action::Deny => prop_assert!(broken || !whole),
        }
    }
}

/// False when that field has no value.
fn break_first_of(given: &mut MatchSpec, field: usize) -> bool {
    match field {
        0 => break_first(&mut given.namespaces),
        1 => break_first(&mut given.not_namespaces),
        2 => break_first(&mut given.principals),
        3 => break_first(&mut given.not_principals),
        4 => break_first(&mut given.service_accounts),
        5 => break_first(&mut given.not_service_accounts),
        6 => break_first(&mut given.source_ips),
        7 => break_first(&mut given.not_source_ips),
        8 => break_first(&mut given.destination_ips),
        9 => break_first(&mut given.not_destination_ips),
        10 => break_first(&mut given.destination_ports),
        _ => break_first(&mut given.not_destination_ports),
    }
}

fn break_first<T>(values: &mut [Readable<T>]) -> bool {
    match values.first_mut() {
        Some(value) => {
            *value = Err(Unreadable("broken".into()));
            true
        }
        None => false,
    }
}
