//! All policies, and those that apply to one workload.

use std::sync::Arc;

use super::compile::Policy;
use super::spec::PolicyScope;
use crate::state::cow_map::CowMap;

/// Policies by key and by what they apply to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    by_key: CowMap<Arc<str>, Arc<Policy>>,
    /// Namespace-scoped ones, by key within each namespace.
    by_namespace: CowMap<Arc<str>, Arc<Vec<Arc<Policy>>>>,
    /// Global ones, by key.
    global: Arc<Vec<Arc<Policy>>>,
    /// Counts the changes.
    version: u64,
}

/// The policies that apply to one workload.
#[derive(Clone, Copy, Debug)]
pub struct PolicySet<'a> {
    global: &'a [Arc<Policy>],
    namespace: &'a [Arc<Policy>],
    /// Keys that the workload names.
    selected: &'a [Arc<str>],
    policies: &'a Policies,
}

impl Policies {
    pub(crate) fn upsert(&mut self, policy: Arc<Policy>) {
        // The scope may have changed.
        self.remove(policy.key());
        self.version += 1;
        self.by_key.insert(policy.key().clone(), policy.clone());
        if let Some(list) = self.list_mut(&policy) {
            let at = list.partition_point(|other| **other < *policy);
            list.insert(at, policy.clone());
        }
    }

    pub(crate) fn remove(&mut self, key: &str) -> Option<Arc<Policy>> {
        let policy = self.by_key.remove(key)?;
        self.version += 1;
        if let Some(list) = self.list_mut(&policy) {
            list.retain(|other| other.key() != policy.key());
            if list.is_empty() && policy.scope() == PolicyScope::Namespace {
                self.by_namespace.remove(policy.namespace());
            }
        }
        Some(policy)
    }

    fn list_mut(&mut self, policy: &Policy) -> Option<&mut Vec<Arc<Policy>>> {
        match policy.scope() {
            PolicyScope::Global => Some(Arc::make_mut(&mut self.global)),
            PolicyScope::Namespace => {
                Some(Arc::make_mut(self.by_namespace.get_or_default(policy.namespace())))
            }
            PolicyScope::WorkloadSelector => None,
        }
    }

    /// Another number after every change.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn by_key(&self, key: &str) -> Option<&Arc<Policy>> {
        self.by_key.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.by_key.iter().map(|(_, policy)| policy)
    }

    /// The policies for a workload of `namespace` that names the policies `selected`.
    pub(crate) fn applying_to<'a>(&'a self, namespace: &str, selected: &'a [Arc<str>]) -> PolicySet<'a> {
        PolicySet {
            global: &self.global,
            namespace: self.by_namespace.get(namespace).map_or(&[], |list| list.as_slice()),
            selected,
            policies: self,
        }
    }
}

impl<'a> PolicySet<'a> {
    /// The applicable policies that are known. One that a workload both names and is in the scope of comes twice.
    pub fn iter(&self) -> impl Iterator<Item = &'a Arc<Policy>> + use<'a> {
        let policies = self.policies;
        let selected = self.selected.iter().filter_map(|key| policies.by_key.get(&**key));
        self.global.iter().chain(self.namespace).chain(selected)
    }

    /// The keys that the workload names without such a policy being known.
    pub fn missing(&self) -> impl Iterator<Item = &'a Arc<str>> + use<'a> {
        let policies = self.policies;
        self.selected.iter().filter(|key| policies.by_key.get(&***key).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Action, Enforcement, PolicySpec, compile};
    use super::*;

    fn policy(name: &str, scope: PolicyScope) -> Arc<Policy> {
        let spec = PolicySpec {
            namespace: "ns".into(),
            name: name.into(),
            scope,
            action: Action::Deny,
            enforcement: Enforcement::Enforced,
            rules: vec![],
        };
        Arc::new(compile(spec).0)
    }

    fn keys(set: PolicySet<'_>) -> Vec<&str> {
        set.iter().map(|policy| &**policy.key()).collect()
    }

    #[test]
    fn a_policy_that_becomes_selector_scoped_leaves_its_namespace() {
        let mut policies = Policies::default();
        policies.upsert(policy("p", PolicyScope::Namespace));
        assert_eq!(keys(policies.applying_to("ns", &[])), ["ns/p"]);
        policies.upsert(policy("p", PolicyScope::WorkloadSelector));
        assert_eq!(keys(policies.applying_to("ns", &[])), [""; 0]);
        assert_eq!(keys(policies.applying_to("other", &["ns/p".into()])), ["ns/p"]);
        assert_eq!(policies.by_namespace.len(), 0);
    }

    #[test]
    fn each_scope_reaches_its_workloads_and_no_others() {
        let mut policies = Policies::default();
        policies.upsert(policy("global", PolicyScope::Global));
        policies.upsert(policy("b", PolicyScope::Namespace));
        policies.upsert(policy("a", PolicyScope::Namespace));
        policies.upsert(policy("picked", PolicyScope::WorkloadSelector));
        assert_eq!(keys(policies.applying_to("ns", &[])), ["ns/global", "ns/a", "ns/b"]);
        assert_eq!(keys(policies.applying_to("other", &[])), ["ns/global"]);
        let selected = ["ns/picked".into(), "ns/absent".into()];
        let set = policies.applying_to("other", &selected);
        assert_eq!(keys(set), ["ns/global", "ns/picked"]);
        assert_eq!(set.missing().map(|key| &**key).collect::<Vec<_>>(), ["ns/absent"]);

        policies.remove("ns/global");
        policies.remove("ns/a");
        assert_eq!(keys(policies.applying_to("ns", &[])), ["ns/b"]);
    }
}
