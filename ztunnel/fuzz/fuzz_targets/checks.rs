//! What holds whatever the control plane sends. Included by the fuzz targets and by the corpus test.

use std::net::IpAddr;
use std::sync::Arc;

use xds_client::{Handler as _, ResourceType};
use ztunnel::policy::{Access, Action};
use ztunnel::state::xds::XdsState;
use ztunnel::state::{Mesh, MeshState};

/// Applies one resource, asks the mesh about it, and takes it out again.
pub(crate) fn apply(kind: ResourceType, payload: &[u8]) {
    let name: Arc<str> = "ns/name".into();
    let state = Arc::new(MeshState::new(Mesh::new(None)));
    let mut xds = XdsState::new(state.clone(), |_| {});
    xds.begin(kind);
    let outcome = xds.update(kind, &name, payload.to_vec().into());
    xds.commit(kind);
    let mesh = state.load();
    let known = mesh.workload_count() + mesh.services().count();
    // A policy that was rejected is there only if it denies everything.
    let denials = mesh.policies().filter(|policy| policy.action() == Action::Deny).count();
    assert!(known + denials <= 1, "{outcome:?}");
    assert!(outcome.is_err() || known + mesh.policies().count() == 1, "{outcome:?}");
    assert!(outcome.is_ok() || known + mesh.policies().count() == denials, "{outcome:?}");
    for workload in mesh.workloads() {
        assert!(mesh.workload(&workload.uid).is_some());
        let source = workload.addresses.first().copied().unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let access = Access::new(source, None, (source, 80).into());
        drop(mesh.policies_for(workload).evaluate(&access));
    }
    for policy in mesh.policies() {
        policy.first_match(&Access::new([10, 0, 0, 1].into(), None, ([10, 0, 0, 2], 80).into()));
    }
    for service in mesh.services() {
        for vip in &service.vips {
            assert!(mesh.service_by_vip(&vip.network, vip.address, None).is_some());
        }
    }
    // A resource is gone under its own name, or under the key that it gave itself.
    let keys = mesh.workloads().map(|workload| workload.uid.to_string());
    let keys: Vec<_> = keys.chain(mesh.services().map(|service| service.host.to_string())).collect();
    xds.begin(kind);
    xds.remove(kind, &name);
    keys.iter().for_each(|key| xds.remove(kind, key));
    xds.commit(kind);
}
