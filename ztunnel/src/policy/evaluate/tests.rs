mod oracle;

use std::sync::Arc;

use super::*;
use crate::policy::{
    MatchSpec, Policies, PolicyScope, PolicySpec, Readable, ServiceAccountMatch, StringMatch, Unreadable,
    compile,
};

const NAMESPACE: &str = "ns1";

fn spec(name: &str, action: Action, rules: Vec<Vec<Vec<MatchSpec>>>) -> PolicySpec {
    PolicySpec {
        namespace: NAMESPACE.into(),
        name: name.into(),
        scope: PolicyScope::Namespace,
        action,
        enforcement: Enforcement::Enforced,
        rules,
    }
}

fn dry_run(spec: PolicySpec) -> PolicySpec {
    PolicySpec { enforcement: Enforcement::DryRun, ..spec }
}

fn identity(principal: &str) -> SpiffeId {
    format!("spiffe://{principal}").parse().unwrap()
}

fn access(identity: Option<&SpiffeId>) -> Access<'_> {
    Access::new([10, 0, 0, 1].into(), identity, "10.1.0.1:8080".parse().unwrap())
}

fn matches(rules: Vec<Vec<Vec<MatchSpec>>>, access: &Access<'_>) -> bool {
    let (policy, warnings) = compile(spec("p", Action::Allow, rules));
    assert_eq!(warnings, []);
    policy.first_match(access).is_some()
}

fn evaluate(specs: Vec<PolicySpec>, selected: &[&str], access: &Access<'_>) -> Evaluation {
    let mut policies = Policies::default();
    for spec in specs {
        policies.upsert(Arc::new(compile(spec).0));
    }
    let selected: Vec<Arc<str>> = selected.iter().map(|key| (*key).into()).collect();
    policies.applying_to(NAMESPACE, &selected).evaluate(access)
}

/// `allowed`, `allowed by <policy>#<rule>`, or the reason of the denial.
fn decision(specs: Vec<PolicySpec>, access: &Access<'_>) -> String {
    describe(&evaluate(specs, &[], access))
}

fn describe(evaluation: &Evaluation) -> String {
    match &evaluation.decision {
        Ok(permit) => match permit.by() {
            Some(by) => format!("allowed by {by}#{}", by.rule),
            None => "allowed".into(),
        },
        Err(denied) => denied.to_string(),
    }
}

fn from_namespace(namespace: &str) -> MatchSpec {
    MatchSpec { namespaces: vec![Ok(StringMatch::Exact(namespace.into()))], ..MatchSpec::default() }
}

fn to_port(port: u16) -> MatchSpec {
    MatchSpec { destination_ports: vec![Ok(port)], ..MatchSpec::default() }
}

fn anything() -> Vec<Vec<Vec<MatchSpec>>> {
    vec![vec![]]
}

// Matching.

#[test]
fn empty_policies_rules_clauses_and_matches_mean_what_they_should() {
    let access = access(None);
    assert!(!matches(vec![], &access), "no rules");
    assert!(matches(vec![vec![]], &access), "no clauses");
    assert!(matches(vec![vec![vec![]]], &access), "no matches");
    assert!(!matches(vec![vec![vec![MatchSpec::default()]]], &access), "no fields");
}

#[test]
fn rules_are_alternatives_clauses_are_not_and_matches_are() {
    let rule = || vec![vec![from_namespace("a"), from_namespace("b")], vec![to_port(80)]];
    let access =
        |identity, port| Access::new([10, 0, 0, 1].into(), identity, SocketAddr::from(([10, 1, 0, 1], port)));
    let (a, b, c) = (identity("td/ns/a/sa/x"), identity("td/ns/b/sa/x"), identity("td/ns/c/sa/x"));
    assert!(matches(vec![rule()], &access(Some(&a), 80)));
    assert!(matches(vec![rule()], &access(Some(&b), 80)));
    assert!(!matches(vec![rule()], &access(Some(&c), 80)));
    assert!(!matches(vec![rule()], &access(Some(&a), 81)));
    assert!(matches(vec![rule(), vec![vec![to_port(81)]]], &access(Some(&c), 81)));
}

/// Each field with one value, and its negation, against plain TCP, a peer that the value means, and another one.
#[test]
fn every_field_and_its_negation_decide_as_the_peer_is() {
    let exact = |text: &str| vec![Ok(StringMatch::Exact(text.into()))];
    let account = || vec![Ok(ServiceAccountMatch { namespace: "a".into(), service_account: "x".into() })];
    let range = |text: &str| vec![Ok(text.parse::<IpNet>().unwrap())];
    let spec = MatchSpec::default;
    let cases: [(&str, MatchSpec, [bool; 3]); 12] = [
        ("namespaces", MatchSpec { namespaces: exact("a"), ..spec() }, [false, true, false]),
        ("notNamespaces", MatchSpec { not_namespaces: exact("a"), ..spec() }, [true, false, true]),
        ("principals", MatchSpec { principals: exact("td/ns/a/sa/x"), ..spec() }, [false, true, false]),
        ("notPrincipals", MatchSpec { not_principals: exact("td/ns/a/sa/x"), ..spec() }, [true, false, true]),
        ("serviceAccounts", MatchSpec { service_accounts: account(), ..spec() }, [false, true, false]),
        ("notServiceAccounts", MatchSpec { not_service_accounts: account(), ..spec() }, [true, false, true]),
        ("sourceIps", MatchSpec { source_ips: range("10.0.0.9/24"), ..spec() }, [true, true, false]),
        ("notSourceIps", MatchSpec { not_source_ips: range("10.0.0.9/24"), ..spec() }, [false, false, true]),
        (
            "destinationIps",
            MatchSpec { destination_ips: range("10.1.0.1/32"), ..spec() },
            [true, true, false],
        ),
        (
            "notDestinationIps",
            MatchSpec { not_destination_ips: range("10.1.0.1/32"), ..spec() },
            [false, false, true],
        ),
        ("destinationPorts", to_port(8080), [true, true, false]),
        (
            "notDestinationPorts",
            MatchSpec { not_destination_ports: vec![Ok(8080)], ..spec() },
            [false, false, true],
        ),
    ];
    let (named, other) = (identity("td/ns/a/sa/x"), identity("td/ns/b/sa/x"));
    let stranger = Access::new([192, 0, 2, 1].into(), Some(&other), "10.1.0.2:9090".parse().unwrap());
    for (field, spec, expected) in cases {
        let results = [access(None), access(Some(&named)), stranger]
            .map(|access| matches(vec![vec![vec![spec.clone()]]], &access));
        assert_eq!(results, expected, "{field}");
    }
}

#[test]
fn service_accounts_are_the_same_in_every_trust_domain_and_principals_are_not() {
    let peer = identity("other-td/ns/a/sa/x");
    let account = ServiceAccountMatch { namespace: "a".into(), service_account: "x".into() };
    let by_account = MatchSpec { service_accounts: vec![Ok(account)], ..MatchSpec::default() };
    assert!(matches(vec![vec![vec![by_account]]], &access(Some(&peer))));
    for (condition, expected) in [
        (StringMatch::Exact("td/ns/a/sa/x".into()), false),
        (StringMatch::Suffix("/ns/a/sa/x".into()), true),
        (StringMatch::Prefix("spiffe://".into()), false),
    ] {
        let by_principal = MatchSpec { principals: vec![Ok(condition.clone())], ..MatchSpec::default() };
        assert_eq!(matches(vec![vec![vec![by_principal]]], &access(Some(&peer))), expected, "{condition:?}");
    }
}

#[test]
fn string_conditions_compare_as_named() {
    let cases = [
        (StringMatch::Exact("abc".into()), "abc", "abcd"),
        (StringMatch::Prefix("ab".into()), "abc", "bab"),
        (StringMatch::Suffix("bc".into()), "abc", "bcb"),
    ];
    for (condition, yes, no) in cases {
        assert!(condition.matches(yes) && !condition.matches(no) && !condition.matches(""), "{condition:?}");
    }
    assert!(StringMatch::Presence.matches("x") && !StringMatch::Presence.matches(""));
}

#[test]
fn mapped_addresses_are_their_ipv4_addresses_and_families_never_mix() {
    let from =
        |range: &str| MatchSpec { source_ips: vec![Ok(range.parse().unwrap())], ..MatchSpec::default() };
    let mapped =
        Access::new("::ffff:10.0.0.1".parse().unwrap(), None, "[::ffff:10.1.0.1]:80".parse().unwrap());
    assert!(matches(vec![vec![vec![from("10.0.0.0/8")]]], &mapped));
    assert!(!matches(vec![vec![vec![from("::/0")]]], &mapped));
}

// Deciding.

#[test]
fn allow_policies_close_the_door_and_deny_policies_come_first() {
    let a = identity("td/ns/a/sa/x");
    let peer = access(Some(&a));
    let allow = |namespace| spec("allow", Action::Allow, vec![vec![vec![from_namespace(namespace)]]]);
    let deny = |namespace| spec("deny", Action::Deny, vec![vec![vec![from_namespace(namespace)]]]);
    assert_eq!(decision(vec![], &peer), "allowed");
    assert_eq!(decision(vec![allow("a")], &peer), "allowed by ns1/allow#0");
    assert_eq!(decision(vec![allow("b")], &peer), "allow policies exist, but none allowed");
    assert_eq!(decision(vec![deny("b")], &peer), "allowed");
    assert_eq!(decision(vec![deny("a")], &peer), "explicitly denied by: ns1/deny");
    assert_eq!(decision(vec![allow("a"), deny("a")], &peer), "explicitly denied by: ns1/deny");
    assert_eq!(decision(vec![allow("a"), deny("b")], &peer), "allowed by ns1/allow#0");
    assert_eq!(
        decision(vec![spec("none", Action::Allow, vec![])], &peer),
        "allow policies exist, but none allowed"
    );
    assert_eq!(decision(vec![spec("none", Action::Deny, vec![])], &peer), "allowed");
}

#[test]
fn the_first_by_key_and_its_first_matching_rule_are_reported() {
    let peer = access(None);
    let second_rule = vec![vec![vec![to_port(1)]], vec![vec![to_port(8080)]], vec![]];
    for names in [["b", "a", "c"], ["c", "b", "a"], ["a", "b", "c"]] {
        let with = |action| names.iter().map(|name| spec(name, action, second_rule.clone())).collect();
        assert_eq!(decision(with(Action::Allow), &peer), "allowed by ns1/a#1");
        let Err(Denied::Explicitly(by)) = evaluate(with(Action::Deny), &[], &peer).decision else { panic!() };
        assert_eq!((&**by.policy.key(), by.rule), ("ns1/a", 1));
    }
    // Across scopes too: a global policy is looked at before, but does not sort before.
    let global = PolicySpec { scope: PolicyScope::Global, ..spec("z", Action::Deny, anything()) };
    assert_eq!(
        decision(vec![global, spec("y", Action::Deny, anything())], &peer),
        "explicitly denied by: ns1/y"
    );
}

#[test]
fn a_policy_that_is_named_but_not_known_lets_nothing_through() {
    let peer = access(None);
    let unknown = |specs, selected| describe(&evaluate(specs, selected, &peer));
    assert_eq!(unknown(vec![], &["ns1/z", "ns1/y"]), "policy not known yet: ns1/y");
    let allow = spec("allow", Action::Allow, anything());
    assert_eq!(unknown(vec![allow.clone()], &["ns1/y"]), "policy not known yet: ns1/y");
    let deny = spec("deny", Action::Deny, anything());
    assert_eq!(unknown(vec![deny], &["ns1/y"]), "explicitly denied by: ns1/deny");
    let selected = PolicySpec { scope: PolicyScope::WorkloadSelector, ..allow };
    assert_eq!(unknown(vec![selected], &["ns1/allow"]), "allowed by ns1/allow#0");
}

#[test]
fn strict_mutual_tls_arrives_as_a_deny_policy() {
    let no_principal = MatchSpec { not_principals: vec![Ok(StringMatch::Presence)], ..MatchSpec::default() };
    let strict =
        || spec("istio_converted_static_strict", Action::Deny, vec![vec![vec![no_principal.clone()]]]);
    let peer = identity("td/ns/a/sa/x");
    assert_eq!(decision(vec![strict()], &access(Some(&peer))), "allowed");
    assert_eq!(
        decision(vec![strict()], &access(None)),
        "explicitly denied by: ns1/istio_converted_static_strict"
    );
    // Except for one port.
    let not_8080 = MatchSpec { not_destination_ports: vec![Ok(8080)], ..MatchSpec::default() };
    let except = spec("except", Action::Deny, vec![vec![vec![no_principal], vec![not_8080]]]);
    assert_eq!(decision(vec![except.clone()], &access(None)), "allowed");
    let other_port = Access::new([10, 0, 0, 1].into(), None, "10.1.0.1:8081".parse().unwrap());
    assert_eq!(decision(vec![except], &other_port), "explicitly denied by: ns1/except");
}

#[test]
fn policies_that_are_not_enforced_are_reported_and_decide_nothing() {
    let peer = access(None);
    let evaluation = evaluate(
        vec![
            dry_run(spec("dry-allow", Action::Allow, anything())),
            dry_run(spec("dry-deny", Action::Deny, anything())),
            dry_run(spec("dry-other", Action::Deny, vec![])),
        ],
        &[],
        &peer,
    );
    assert_eq!(describe(&evaluation), "allowed");
    let reported: Vec<_> = evaluation
        .dry_run
        .iter()
        .map(|report| match report {
            DryRun::Matched(by) => by.to_string(),
            DryRun::NoneAllowed => "none allowed".into(),
        })
        .collect();
    assert_eq!(reported, ["ns1/dry-allow", "ns1/dry-deny"]);
    let denied =
        vec![dry_run(spec("dry", Action::Allow, anything())), spec("real", Action::Deny, anything())];
    assert_eq!(decision(denied, &peer), "explicitly denied by: ns1/real");
}

#[test]
fn enforcing_dry_run_allow_policies_that_match_nothing_would_deny_and_that_is_reported() {
    let peer = access(None);
    let dry = || dry_run(spec("dry", Action::Allow, vec![]));
    assert_eq!(evaluate(vec![dry()], &[], &peer).dry_run, [DryRun::NoneAllowed]);
    assert_eq!(evaluate(vec![dry(), spec("real", Action::Allow, anything())], &[], &peer).dry_run, []);
    assert_eq!(evaluate(vec![spec("real", Action::Allow, anything())], &[], &peer).dry_run, []);
}

// What cannot be read.

fn unreadable<T>() -> Vec<Readable<T>> {
    vec![Err(Unreadable("5 bytes are no address".into()))]
}

#[test]
fn an_unreadable_value_denies_in_a_deny_policy_and_allows_nothing_in_an_allow_policy() {
    let positive = || MatchSpec { source_ips: unreadable(), ..MatchSpec::default() };
    let negative = || MatchSpec { not_source_ips: unreadable(), ..MatchSpec::default() };
    let unknown = || MatchSpec { unknown_fields: vec![Unreadable("unknown field".into())], ..to_port(8080) };
    for given in [positive, negative, unknown] {
        for (action, expected) in [(Action::Deny, true), (Action::Allow, false)] {
            let (policy, warnings) = compile(spec("p", action, vec![vec![vec![given()]]]));
            assert_eq!(policy.first_match(&access(None)).is_some(), expected, "{action:?} {:?}", given());
            assert_eq!(warnings.len(), 1);
        }
    }
}

#[test]
fn an_unreadable_value_does_not_take_the_readable_ones_of_an_allow_policy_with_it() {
    let mut source_ips = unreadable();
    source_ips.push(Ok("10.0.0.0/8".parse().unwrap()));
    let given = MatchSpec { source_ips, ..MatchSpec::default() };
    let (policy, warnings) = compile(spec("p", Action::Allow, vec![vec![vec![given]]]));
    assert!(policy.first_match(&access(None)).is_some());
    assert_eq!(warnings[0].to_string(), "policy ns1/p: 5 bytes are no address; what needs it is not allowed");
}
