//! Policies.

use std::collections::HashSet;
use std::sync::Arc;

use ipnet::IpNet;

use super::Converter;
use crate::policy::{
    self, Action, Enforcement, MatchSpec, PolicyScope, PolicySpec, Readable, ServiceAccountMatch,
    StringMatch, Unreadable,
};
use crate::state::static_config::fault::Path;
use crate::state::static_config::schema;

impl Converter<'_> {
    pub(super) fn policies(&mut self, policies: Vec<schema::Policy>) -> Vec<Arc<policy::Policy>> {
        let list = Path::TOP.key("policies");
        let mut seen = HashSet::new();
        let mut converted = Vec::with_capacity(policies.len());
        for (index, policy) in policies.into_iter().enumerate() {
            let at = list.index(index);
            let spec = self.policy(&at, policy);
            let (policy, warnings) = policy::compile(spec);
            for warning in warnings {
                self.warning(&at.key("rules"), warning.to_string());
            }
            if !seen.insert(policy.key().clone()) {
                self.fault(&at.key("name"), format!("duplicate policy {:?}", policy.key()));
            }
            converted.push(Arc::new(policy));
        }
        converted
    }

    fn policy(&mut self, at: &Path<'_>, policy: schema::Policy) -> PolicySpec {
        let rules_at = at.key("rules");
        let mut rules = Vec::with_capacity(policy.rules.len());
        for (rule, clauses) in policy.rules.into_iter().enumerate() {
            let rule_at = rules_at.index(rule);
            let mut converted = Vec::with_capacity(clauses.len());
            for (clause, matches) in clauses.into_iter().enumerate() {
                let clause_at = rule_at.index(clause);
                let matches = matches.into_iter().enumerate();
                converted.push(
                    matches.map(|(index, given)| self.match_spec(&clause_at.index(index), given)).collect(),
                );
            }
            rules.push(converted);
        }
        PolicySpec {
            namespace: self.strings.intern(&policy.namespace),
            name: policy.name.into(),
            scope: self.choice_of(&at.key("scope"), &policy.scope, &POLICY_SCOPES),
            action: self.choice_of(&at.key("action"), &policy.action, &ACTIONS),
            enforcement: match policy.dry_run {
                true => Enforcement::DryRun,
                false => Enforcement::Enforced,
            },
            rules,
        }
    }

    fn match_spec(&mut self, at: &Path<'_>, given: schema::Match) -> MatchSpec {
        let unknown = given.unknown.into_keys();
        MatchSpec {
            namespaces: self.string_matches(&at.key("namespaces"), given.namespaces),
            not_namespaces: self.string_matches(&at.key("notNamespaces"), given.not_namespaces),
            principals: self.string_matches(&at.key("principals"), given.principals),
            not_principals: self.string_matches(&at.key("notPrincipals"), given.not_principals),
            service_accounts: service_accounts(given.service_accounts),
            not_service_accounts: service_accounts(given.not_service_accounts),
            source_ips: self.ranges(&at.key("sourceIps"), &given.source_ips),
            not_source_ips: self.ranges(&at.key("notSourceIps"), &given.not_source_ips),
            destination_ips: self.ranges(&at.key("destinationIps"), &given.destination_ips),
            not_destination_ips: self.ranges(&at.key("notDestinationIps"), &given.not_destination_ips),
            destination_ports: given.destination_ports.into_iter().map(Ok).collect(),
            not_destination_ports: given.not_destination_ports.into_iter().map(Ok).collect(),
            unknown_fields: unknown.map(|key| Unreadable(format!("unknown field {key:?}"))).collect(),
        }
    }

    fn string_matches(
        &mut self,
        at: &Path<'_>,
        given: Vec<schema::StringMatch>,
    ) -> Vec<Readable<StringMatch>> {
        let mut converted = Vec::with_capacity(given.len());
        for (index, given) in given.into_iter().enumerate() {
            let conditions = [
                given.exact.map(|text| StringMatch::Exact(text.into())),
                given.prefix.map(|text| StringMatch::Prefix(text.into())),
                given.suffix.map(|text| StringMatch::Suffix(text.into())),
                given.presence.map(|_| StringMatch::Presence),
            ];
            let mut conditions = conditions.into_iter().flatten();
            match (conditions.next(), conditions.next()) {
                (Some(condition), None) => converted.push(Ok(condition)),
                _ => self
                    .fault(&at.index(index), "expected one of Exact, Prefix, Suffix and Presence".to_owned()),
            }
        }
        converted
    }

    fn ranges(&mut self, at: &Path<'_>, given: &[String]) -> Vec<Readable<IpNet>> {
        let given = given.iter().enumerate();
        given.filter_map(|(index, text)| self.cidr(&at.index(index), text)).map(Ok).collect()
    }
}

fn service_accounts(given: Vec<schema::ServiceAccount>) -> Vec<Readable<ServiceAccountMatch>> {
    let convert = |given: schema::ServiceAccount| ServiceAccountMatch {
        namespace: given.namespace.into(),
        service_account: given.service_account.into(),
    };
    given.into_iter().map(convert).map(Ok).collect()
}

// The words of the file. Where the file may leave the choice out, the first is meant.

const POLICY_SCOPES: [(&str, PolicyScope); 3] = [
    ("Global", PolicyScope::Global),
    ("Namespace", PolicyScope::Namespace),
    ("WorkloadSelector", PolicyScope::WorkloadSelector),
];
const ACTIONS: [(&str, Action); 2] = [("Allow", Action::Allow), ("Deny", Action::Deny)];
