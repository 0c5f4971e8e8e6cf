//! From a policy as described to one that evaluates without allocating and without special cases.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::spec::{
    Action, Enforcement, MatchSpec, PolicyScope, PolicySpec, Readable, ServiceAccountMatch, StringMatch,
    Unreadable,
};

/// A policy ready for evaluation. Ordered by key.
#[derive(Clone, Debug)]
pub struct Policy {
    /// `namespace/name`.
    key: Arc<str>,
    namespace: Arc<str>,
    name: Arc<str>,
    scope: PolicyScope,
    action: Action,
    enforcement: Enforcement,
    pub(super) rules: Box<[Rule]>,
}

/// All of its clauses must hold.
#[derive(Clone, Debug)]
pub struct Rule(pub Box<[Clause]>);

/// One of its matches must hold, unless it has none.
#[derive(Clone, Debug)]
pub struct Clause(pub Box<[Match]>);

/// One alternative of a clause.
#[derive(Clone, Debug)]
pub enum Match {
    /// Holds when every field does.
    When(Box<Conditions>),
    /// Never holds: it has no fields, or one that could not be understood in a policy that allows.
    Never,
}

/// The fields of a match; a field without values holds.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the fields are those of MatchSpec")]
pub struct Conditions {
    pub destination_ports: Field<u16>,
    pub destination_ips: Field<IpNet>,
    pub source_ips: Field<IpNet>,
    pub namespaces: Field<StringMatch>,
    pub service_accounts: Field<ServiceAccountMatch>,
    pub principals: Field<StringMatch>,
}

/// The values of one field.
#[derive(Clone, Debug)]
pub struct Field<T> {
    /// Unless empty, one of these must match.
    pub any_of: Box<[T]>,
    /// None of these may match.
    pub none_of: Box<[T]>,
}

impl Policy {
    /// `namespace/name`, by which workloads name the policy and logs report it.
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// The namespace that defines it.
    pub fn namespace(&self) -> &Arc<str> {
        &self.namespace
    }

    /// Its name within the namespace.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Which workloads it applies to.
    pub fn scope(&self) -> PolicyScope {
        self.scope
    }

    /// What a match means.
    pub fn action(&self) -> Action {
        self.action
    }

    /// Whether it decides anything.
    pub fn enforcement(&self) -> Enforcement {
        self.enforcement
    }

    /// Its rules, for dumps.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

/// Compiles a policy, and reports every part of it that could not be understood.
///
/// Such a part never lets more through than the whole would have: a value that cannot be read matches everything in a
/// policy that denies, and in a policy that allows it makes its match narrower. So in a DENY policy an unreadable
/// positive value makes its field hold, and an unreadable negative value is as good as absent; in an ALLOW policy an
/// unreadable positive value is as good as absent unless it is the only one, and otherwise the match never holds.
pub fn compile(spec: PolicySpec) -> (Policy, Vec<CompileWarning>) {
    compile_as(format!("{}/{}", spec.namespace, spec.name).into(), spec)
}

/// Compiles a policy that has a key of its own: the name of its resource, under which it will be removed.
pub(crate) fn compile_as(key: Arc<str>, spec: PolicySpec) -> (Policy, Vec<CompileWarning>) {
    let mut reader = Reader { action: spec.action, faults: Vec::new() };
    let rules = spec.rules.into_iter().map(|clauses| {
        let clauses = clauses.into_iter().map(|matches| {
            let matches = matches.into_iter().map(|spec| reader.read_match(spec));
            Clause(matches.collect())
        });
        Rule(clauses.collect())
    });
    let rules = rules.collect();
    let warning = |fault| CompileWarning { policy: key.clone(), action: spec.action, fault };
    let warnings = reader.faults.into_iter().map(warning).collect();
    let policy = Policy {
        key,
        namespace: spec.namespace,
        name: spec.name,
        scope: spec.scope,
        action: spec.action,
        enforcement: spec.enforcement,
        rules,
    };
    (policy, warnings)
}

/// A part of a policy that could not be understood, and what is done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileWarning {
    /// The policy's key.
    pub policy: Arc<str>,
    /// Its action.
    pub action: Action,
    /// What could not be understood.
    pub fault: Unreadable,
}

impl fmt::Display for CompileWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let consequence = match self.action {
            Action::Allow => "what needs it is not allowed",
            Action::Deny => "it is taken to match every connection",
        };
        write!(f, "policy {}: {}; {consequence}", self.policy, self.fault)
    }
}

/// Reads the matches of one policy.
struct Reader {
    action: Action,
    faults: Vec<Unreadable>,
}

/// A match, or a field of it, that can never hold.
struct NeverHolds;

impl Reader {
    fn read_match(&mut self, spec: MatchSpec) -> Match {
        if is_empty(&spec) {
            return Match::Never;
        }
        match self.conditions(spec) {
            Ok(conditions) => Match::When(Box::new(conditions)),
            Err(NeverHolds) => Match::Never,
        }
    }

    fn conditions(&mut self, spec: MatchSpec) -> Result<Conditions, NeverHolds> {
        // Every field is read before the first failure counts, so that all faults are reported.
        let destination_ports = self.field(spec.destination_ports, spec.not_destination_ports);
        let destination_ips = self.field(spec.destination_ips, spec.not_destination_ips);
        let source_ips = self.field(spec.source_ips, spec.not_source_ips);
        let namespaces = self.field(spec.namespaces, spec.not_namespaces);
        let service_accounts = self.field(spec.service_accounts, spec.not_service_accounts);
        let principals = self.field(spec.principals, spec.not_principals);
        let has_unknown_fields = !spec.unknown_fields.is_empty();
        self.faults.extend(spec.unknown_fields);
        if has_unknown_fields && self.action == Action::Allow {
            return Err(NeverHolds);
        }
        Ok(Conditions {
            destination_ports: destination_ports?,
            destination_ips: destination_ips?,
            source_ips: source_ips?,
            namespaces: namespaces?,
            service_accounts: service_accounts?,
            principals: principals?,
        })
    }

    fn field<T>(
        &mut self,
        positive: Vec<Readable<T>>,
        negative: Vec<Readable<T>>,
    ) -> Result<Field<T>, NeverHolds> {
        let positive = self.values(positive);
        let negative = self.values(negative);
        match self.action {
            Action::Deny => Ok(Field {
                any_of: if positive.unreadable > 0 { Box::default() } else { positive.read.into() },
                none_of: negative.read.into(),
            }),
            Action::Allow if negative.unreadable > 0 => Err(NeverHolds),
            Action::Allow if positive.unreadable > 0 && positive.read.is_empty() => Err(NeverHolds),
            Action::Allow => Ok(Field { any_of: positive.read.into(), none_of: negative.read.into() }),
        }
    }

    fn values<T>(&mut self, values: Vec<Readable<T>>) -> Values<T> {
        let mut result = Values { read: Vec::with_capacity(values.len()), unreadable: 0 };
        for value in values {
            match value {
                Ok(value) => result.read.push(value),
                Err(fault) => {
                    result.unreadable += 1;
                    self.faults.push(fault);
                }
            }
        }
        result
    }
}

struct Values<T> {
    read: Vec<T>,
    unreadable: usize,
}

fn is_empty(spec: &MatchSpec) -> bool {
    // Exhaustive on purpose: a field added later must be considered here.
    let MatchSpec {
        namespaces,
        not_namespaces,
        principals,
        not_principals,
        service_accounts,
        not_service_accounts,
        source_ips,
        not_source_ips,
        destination_ips,
        not_destination_ips,
        destination_ports,
        not_destination_ports,
        unknown_fields,
    } = spec;
    namespaces.is_empty()
        && not_namespaces.is_empty()
        && principals.is_empty()
        && not_principals.is_empty()
        && service_accounts.is_empty()
        && not_service_accounts.is_empty()
        && source_ips.is_empty()
        && not_source_ips.is_empty()
        && destination_ips.is_empty()
        && not_destination_ips.is_empty()
        && destination_ports.is_empty()
        && not_destination_ports.is_empty()
        && unknown_fields.is_empty()
}

impl<T> Default for Field<T> {
    fn default() -> Self {
        Self { any_of: Box::default(), none_of: Box::default() }
    }
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Policy {}

impl PartialOrd for Policy {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Policy {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key)
    }
}
