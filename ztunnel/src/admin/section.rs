//! The parts of a dump, and how a request names them.

use std::collections::BTreeSet;

/// One top-level key of the dump, in the order in which they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// Our certificates, without their keys.
    Certificates,
    /// What the operator asked for.
    Config,
    /// Authorization policies.
    Policies,
    /// Services and their endpoints.
    Services,
    /// Endpoints of services that are not known.
    StagedServices,
    /// What the local file describes.
    StaticConfig,
    /// What runs.
    Version,
    /// The pods that are served; in shared mode only.
    WorkloadState,
    /// Workloads.
    Workloads,
}

impl Section {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Certificates,
        Self::Config,
        Self::Policies,
        Self::Services,
        Self::StagedServices,
        Self::StaticConfig,
        Self::Version,
        Self::WorkloadState,
        Self::Workloads,
    ];

    /// The key.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Certificates => "certificates",
            Self::Config => "config",
            Self::Policies => "policies",
            Self::Services => "services",
            Self::StagedServices => "stagedServices",
            Self::StaticConfig => "staticConfig",
            Self::Version => "version",
            Self::WorkloadState => "workloadState",
            Self::Workloads => "workloads",
        }
    }

    /// The sections that the parameter `section` of a query asks for, a comma list; without it all. Of several the last
    /// counts; other parameters are ignored.
    pub(super) fn from_query(query: &str) -> Result<BTreeSet<Self>, UnknownSection> {
        let mut parameters = query.split('&').filter_map(|parameter| parameter.split_once('='));
        let Some((_, list)) = parameters.rfind(|(name, _)| *name == "section") else {
            return Ok(Self::ALL.into());
        };
        // No key needs to be encoded; a comma between them may be.
        let list = list.replace("%2C", ",").replace("%2c", ",");
        list.split(',').map(Self::from_key).collect()
    }

    fn from_key(key: &str) -> Result<Self, UnknownSection> {
        Self::ALL.into_iter().find(|section| section.key() == key).ok_or(UnknownSection)
    }
}

/// A request asks for a section that there is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown section; there are: {}", Section::ALL.map(Section::key).join(","))]
pub struct UnknownSection;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_in_the_byte_order_of_their_keys() {
        assert!(Section::ALL.is_sorted_by(|one, next| one < next && one.key() < next.key()));
    }

    #[test]
    fn a_query_selects_sections_and_may_contain_anything_else() {
        let all = BTreeSet::from(Section::ALL);
        let two = BTreeSet::from([Section::Services, Section::Workloads]);
        for (query, expected) in [
            ("", Ok(all.clone())),
            ("pretty", Ok(all.clone())),
            ("x=1&&sections=version", Ok(all)),
            ("section=workloads,services", Ok(two.clone())),
            ("section=workloads%2Cservices&x", Ok(two.clone())),
            ("section=version&section=services,workloads", Ok(two)),
            ("section=", Err(UnknownSection)),
            ("section=Workloads", Err(UnknownSection)),
            ("section=services,", Err(UnknownSection)),
        ] {
            assert_eq!(Section::from_query(query), expected, "{query}");
        }
    }
}
