//! The local description of the mesh, in a form that could be read as such again.

use serde::{Serialize, Serializer};

use super::json::{Object, list};
use super::policy::PolicyView;
use super::service::{EndpointView, ServiceView, sorted};
use super::workload::{ServicesForm, WorkloadView};
use crate::state::StaticConfig;

/// All of it, in the order in which it was written.
pub(super) fn view(config: &StaticConfig) -> impl Serialize {
    ConfigView(config)
}

struct ConfigView<'a>(&'a StaticConfig);

impl Serialize for ConfigView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let StaticConfig { workloads, services, policies, warnings: _ } = self.0;
        let services = services.iter().map(|service| {
            let endpoints = service.endpoints.iter().map(|endpoint| EndpointView {
                uid: &endpoint.workload_uid,
                ports: &endpoint.ports,
                health: endpoint.health,
            });
            ServiceView { service, endpoints: sorted(endpoints) }
        });
        let workloads =
            workloads.iter().map(|workload| WorkloadView { workload, services: ServicesForm::Ports });
        let mut object = Object::begin(serializer)?;
        object.put("policies", &list(policies.iter().map(|policy| PolicyView(policy))))?;
        object.put("services", &list(services))?;
        object.put("workloads", &list(workloads))?;
        object.end()
    }
}
