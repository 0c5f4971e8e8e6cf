//! Policies are evaluated for every connection, so evaluation takes nothing from the allocator.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use identity::SpiffeId;
use ztunnel::policy::{Access, Denied, Evaluation};
use ztunnel::state::{Mesh, StaticConfig};

/// Every field and every kind of condition, so that nothing is left unevaluated.
const MESH: &str = r#"
workloads:
- {uid: w, name: w, namespace: ns, workloadIps: [10.0.0.1], protocol: HBONE, services: {}, authorizationPolicies: [ns/picked, LISTED]}
policies:
- {name: deny, namespace: ns, scope: Namespace, action: Deny, dryRun: false, rules: [[[
    {principals: [{Prefix: td/ns/bad/}, {Suffix: /sa/bad}], notNamespaces: [{Exact: good}], destinationPorts: [80, 8080],
     sourceIps: [10.0.0.0/8, "fd00::/8"], notDestinationIps: [192.0.2.0/24]}]]]}
- {name: strict, namespace: root, scope: Global, action: Deny, dryRun: false, rules: [[[{notPrincipals: [{Presence: []}]}]]]}
- {name: allow, namespace: ns, scope: Namespace, action: Allow, dryRun: false, rules: [[[
    {serviceAccounts: [{namespace: good, serviceAccount: good}], notDestinationPorts: [9090]}]]]}
- {name: picked, namespace: ns, scope: WorkloadSelector, action: Allow, dryRun: false, rules: [[[
    {namespaces: [{Exact: other}], notServiceAccounts: [{namespace: other, serviceAccount: x}],
     notSourceIps: [172.16.0.0/12], destinationIps: [10.0.0.1/32]}]]]}
MORE
"#;

const DRY_RUN: &str = "- {name: dry, namespace: ns, scope: Namespace, action: Deny, dryRun: true, rules: [[[{notPrincipals: [{Exact: x}]}]]]}";

fn mesh(listed: &str, more: &str) -> Mesh {
    let text = MESH.replace("LISTED", listed).replace("MORE", more);
    let mut mesh = Mesh::new(None);
    StaticConfig::parse("test", &text).unwrap().apply(&mut mesh);
    mesh
}

/// Evaluates for a peer, and counts allocations.
fn evaluate(mesh: &Mesh, principal: Option<&str>) -> (Evaluation, u64) {
    let workload = mesh.workload("w").unwrap();
    let identity: Option<SpiffeId> = principal.map(|text| format!("spiffe://{text}").parse().unwrap());
    let access = Access::new([10, 0, 0, 2].into(), identity.as_ref(), ([10, 0, 0, 1], 8080).into());
    let mut evaluation = None;
    let counted = allocation_counter::measure(|| {
        evaluation = Some(mesh.policies_for(workload).evaluate(&access));
    });
    (evaluation.unwrap(), counted.count_total)
}

#[test]
fn no_verdict_costs_an_allocation() {
    let scene = mesh("ns/picked", "");
    let allowed = [Some("td/ns/good/sa/good"), Some("td/ns/other/sa/y")];
    let denied = [None, Some("td/ns/bad/sa/x"), Some("td/ns/any/sa/bad")];
    let not_allowed = [Some("td/ns/other/sa/x"), Some("td/ns/good/sa/bad")];
    for principal in allowed {
        let (evaluation, allocations) = evaluate(&scene, principal);
        assert!(evaluation.decision.unwrap().by().is_some(), "{principal:?}");
        assert_eq!(allocations, 0, "{principal:?}");
    }
    for principal in denied {
        let (evaluation, allocations) = evaluate(&scene, principal);
        assert!(matches!(evaluation.decision, Err(Denied::Explicitly(_))), "{principal:?}");
        assert_eq!(allocations, 0, "{principal:?}");
    }
    for principal in not_allowed {
        let (evaluation, allocations) = evaluate(&scene, principal);
        assert!(matches!(evaluation.decision, Err(Denied::NotAllowed)), "{principal:?}");
        assert_eq!(allocations, 0, "{principal:?}");
    }
    let (evaluation, allocations) = evaluate(&mesh("ns/absent", ""), allowed[0]);
    assert!(matches!(evaluation.decision, Err(Denied::PolicyUnknown(_))));
    assert_eq!(allocations, 0);
}

#[test]
fn reports_of_policies_that_are_not_enforced_are_counted_as_allocations() {
    let (evaluation, allocations) = evaluate(&mesh("ns/picked", DRY_RUN), Some("td/ns/good/sa/good"));
    assert_eq!(evaluation.dry_run.len(), 1);
    assert!(allocations > 0, "the counter counts");
}
