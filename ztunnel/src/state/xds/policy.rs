//! Authorization policies.

use bytes::Bytes;
use ipnet::IpNet;
use xds_client::security as wire;

use super::claim::partial;
use super::convert::{Converter, address, port};
use super::rejection::{Rejection, known};
use crate::policy::{
    Action, Enforcement, MatchSpec, PolicyScope, PolicySpec, Readable, ServiceAccountMatch, StringMatch,
    Unreadable,
};

impl Converter {
    /// Converts a policy. Values of a match that cannot be read are kept as such: what becomes of them depends on the
    /// policy's action.
    pub(crate) fn policy(&mut self, policy: wire::Authorization) -> Result<PolicySpec, Rejection> {
        let scope = match known("scope", policy.scope)? {
            wire::Scope::Global => PolicyScope::Global,
            wire::Scope::Namespace => PolicyScope::Namespace,
            wire::Scope::WorkloadSelector => PolicyScope::WorkloadSelector,
        };
        let action = match known("action", policy.action)? {
            wire::Action::Allow => Action::Allow,
            wire::Action::Deny => Action::Deny,
        };
        let rules = policy.rules.into_iter().map(|rule| {
            let clauses =
                rule.clauses.into_iter().map(|clause| clause.matches.into_iter().map(match_spec).collect());
            clauses.collect()
        });
        Ok(PolicySpec {
            namespace: self.shared.intern(&policy.namespace),
            name: policy.name.into(),
            scope,
            action,
            enforcement: if policy.dry_run { Enforcement::DryRun } else { Enforcement::Enforced },
            rules: rules.collect(),
        })
    }
}

impl Converter {
    /// A policy that denies everything in the scope of one that certainly denies something and cannot be read. Nothing, if
    /// what can be read of it does not say so: then it may be anything, or nothing that concerns us.
    pub(crate) fn unreadable_denial(&mut self, payload: &Bytes) -> Option<PolicySpec> {
        let (policy, _) = partial::<wire::Authorization>(payload.clone());
        // Fields come in the order of their numbers: where the action was read, so were the scope and the names before it.
        let denies = policy.action == wire::Action::Deny as i32 && !policy.dry_run;
        let scope = match wire::Scope::try_from(policy.scope) {
            Ok(wire::Scope::Global) => PolicyScope::Global,
            Ok(wire::Scope::Namespace) | Err(_) => PolicyScope::Namespace,
            Ok(wire::Scope::WorkloadSelector) => PolicyScope::WorkloadSelector,
        };
        denies.then(|| PolicySpec {
            namespace: self.shared.intern(&policy.namespace),
            name: policy.name.into(),
            scope,
            action: Action::Deny,
            enforcement: Enforcement::Enforced,
            // One rule without clauses matches everything.
            rules: vec![vec![]],
        })
    }
}

fn match_spec(given: wire::Match) -> MatchSpec {
    MatchSpec {
        namespaces: strings("namespaces", given.namespaces),
        not_namespaces: strings("not_namespaces", given.not_namespaces),
        principals: strings("principals", given.principals),
        not_principals: strings("not_principals", given.not_principals),
        service_accounts: accounts(given.service_accounts),
        not_service_accounts: accounts(given.not_service_accounts),
        source_ips: ranges("source_ips", &given.source_ips),
        not_source_ips: ranges("not_source_ips", &given.not_source_ips),
        destination_ips: ranges("destination_ips", &given.destination_ips),
        not_destination_ips: ranges("not_destination_ips", &given.not_destination_ips),
        destination_ports: given.destination_ports.into_iter().map(|number| Ok(port(number))).collect(),
        not_destination_ports: given
            .not_destination_ports
            .into_iter()
            .map(|number| Ok(port(number)))
            .collect(),
        unknown_fields: Vec::new(),
    }
}

fn strings(field: &str, given: Vec<wire::StringMatch>) -> Vec<Readable<StringMatch>> {
    use wire::string_match::MatchType;
    let read = |given: wire::StringMatch| match given.match_type {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text.into())),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.into())),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.into())),
        Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
        None => Err(Unreadable(format!("{field}: a condition of no known kind"))),
    };
    given.into_iter().map(read).collect()
}

fn accounts(given: Vec<wire::ServiceAccountMatch>) -> Vec<Readable<ServiceAccountMatch>> {
    let read = |given: wire::ServiceAccountMatch| ServiceAccountMatch {
        namespace: given.namespace.into(),
        service_account: given.service_account.into(),
    };
    given.into_iter().map(read).map(Ok).collect()
}

fn ranges(field: &'static str, given: &[wire::Address]) -> Vec<Readable<IpNet>> {
    let read = |given: &wire::Address| {
        let address = address(field, &given.address).map_err(|error| Unreadable(error.to_string()))?;
        let (length, sent) = (given.length, 8 * given.address.len() as u32);
        let own = if address.is_ipv4() { 32 } else { 128 };
        let length = length.checked_sub(sent - own).and_then(|length| u8::try_from(length).ok());
        length
            .and_then(|length| IpNet::new(address, length).ok())
            .ok_or_else(|| Unreadable(format!("{field}: invalid range {address}/{}", given.length)))
    };
    given.iter().map(read).collect()
}
