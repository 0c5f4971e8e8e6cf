//! Authorization policies, as they are enforced.

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::json::{Object, Text, list};
use crate::policy::{
    Action, Conditions, Enforcement, Field, Match, Policy, PolicyScope, ServiceAccountMatch, StringMatch,
};
use crate::state::Mesh;

/// All of them, by key.
pub(super) fn all(mesh: &Mesh) -> impl Serialize {
    let mut policies: Vec<&Policy> = mesh.policies().map(|policy| &**policy).collect();
    policies.sort_unstable();
    list(policies.into_iter().map(PolicyView))
}

/// One policy.
pub(super) struct PolicyView<'a>(pub(super) &'a Policy);

impl Serialize for PolicyView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(policy) = self;
        let rules = policy.rules().iter().map(|rule| {
            let clauses = rule.0.iter().map(|clause| list(clause.0.iter().map(MatchView)));
            list(clauses)
        });
        let mut object = Object::begin(serializer)?;
        object.put(
            "action",
            match policy.action() {
                Action::Allow => "Allow",
                Action::Deny => "Deny",
            },
        )?;
        object.put("dryRun", &(policy.enforcement() == Enforcement::DryRun))?;
        object.put("name", &**policy.name())?;
        object.put("namespace", &**policy.namespace())?;
        object.put("rules", &list(rules))?;
        object.put(
            "scope",
            match policy.scope() {
                PolicyScope::Global => "Global",
                PolicyScope::Namespace => "Namespace",
                PolicyScope::WorkloadSelector => "WorkloadSelector",
            },
        )?;
        object.end()
    }
}

/// A match with its non-empty lists. One without any never holds, which is also how one appears that can never hold for
/// another reason. In a policy that denies, a match all of whose values could not be understood holds always: it has a
/// key of its own, which no tool reads.
struct MatchView<'a>(&'a Match);

impl Serialize for MatchView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = Object::begin(serializer)?;
        if let Match::When(conditions) = self.0 {
            if holds_always(conditions) {
                object.put("matchesEverything", &true)?;
            }
            put_conditions(&mut object, conditions)?;
        }
        object.end()
    }
}

fn put_conditions<S: Serializer>(object: &mut Object<S>, conditions: &Conditions) -> Result<(), S::Error> {
    // Exhaustive on purpose: a field added later must be considered here.
    let Conditions {
        destination_ports,
        destination_ips,
        source_ips,
        namespaces,
        service_accounts,
        principals,
    } = conditions;
    object.put_list("destinationIps", &destination_ips.any_of, range)?;
    object.put_list("destinationPorts", &destination_ports.any_of, |port| port)?;
    object.put_list("namespaces", &namespaces.any_of, StringView)?;
    object.put_list("notDestinationIps", &destination_ips.none_of, range)?;
    object.put_list("notDestinationPorts", &destination_ports.none_of, |port| port)?;
    object.put_list("notNamespaces", &namespaces.none_of, StringView)?;
    object.put_list("notPrincipals", &principals.none_of, StringView)?;
    object.put_list("notServiceAccounts", &service_accounts.none_of, AccountView)?;
    object.put_list("notSourceIps", &source_ips.none_of, range)?;
    object.put_list("principals", &principals.any_of, StringView)?;
    object.put_list("serviceAccounts", &service_accounts.any_of, AccountView)?;
    object.put_list("sourceIps", &source_ips.any_of, range)
}

fn holds_always(conditions: &Conditions) -> bool {
    fn is_empty<T>(field: &Field<T>) -> bool {
        field.any_of.is_empty() && field.none_of.is_empty()
    }
    let Conditions {
        destination_ports,
        destination_ips,
        source_ips,
        namespaces,
        service_accounts,
        principals,
    } = conditions;
    is_empty(destination_ports)
        && is_empty(destination_ips)
        && is_empty(source_ips)
        && is_empty(namespaces)
        && is_empty(service_accounts)
        && is_empty(principals)
}

fn range(range: &IpNet) -> Text<&IpNet> {
    Text(range)
}

struct StringView<'a>(&'a StringMatch);

impl Serialize for StringView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = Object::begin(serializer)?;
        match self.0 {
            StringMatch::Exact(text) => object.put("Exact", text)?,
            StringMatch::Prefix(text) => object.put("Prefix", text)?,
            StringMatch::Suffix(text) => object.put("Suffix", text)?,
            StringMatch::Presence => object.put("Presence", &[(); 0])?,
        }
        object.end()
    }
}

struct AccountView<'a>(&'a ServiceAccountMatch);

impl Serialize for AccountView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ServiceAccountMatch { namespace, service_account } = self.0;
        let mut object = Object::begin(serializer)?;
        object.put("namespace", namespace)?;
        object.put("serviceAccount", service_account)?;
        object.end()
    }
}
