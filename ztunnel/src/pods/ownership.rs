//! Whether a network namespace can be the one of the workload it is said to be.
//!
//! The node agent says which pod a namespace belongs to, and the control plane which addresses that pod has. Where the
//! two contradict each other, somebody is mistaken, and whoever sits in the namespace would speak under another's
//! identity. So such a pod is not served. One that is served already, in a namespace with nobody else's addresses, is
//! denied its identity until the two agree, and keeps the connections that it has.
//!
//! This guards against mistakes: a descriptor that went with the wrong name, a namespace that has changed hands, a
//! description that is out of date. It is no defence against a pod that may give itself addresses.
//!
//! The source address of a single connection is not asked for. Only what is in the namespace reaches its outbound
//! listener, and not all of that has the namespace's addresses: what a pod forwards for virtual machines or containers
//! inside it comes from theirs, and has the pod's identity all the same.

use std::fmt;
use std::io;
use std::net::IpAddr;

use crate::state::Mesh;
use crate::state::model::{NetworkMode, Workload};

/// The namespace has none of the workload's addresses.
#[derive(Debug, thiserror::Error)]
#[error(
    "the network namespace is not the one of {workload}: its addresses are {}, those of the workload are {}",
    List(namespace),
    List(described)
)]
pub(crate) struct NotOwned {
    /// The workload's uid.
    workload: Box<str>,
    /// What the namespace has.
    namespace: Box<[IpAddr]>,
    /// What the workload should have.
    described: Box<[IpAddr]>,
}

/// How a pod that is served stands to what the mesh says of it.
#[derive(Debug)]
pub(crate) enum Standing {
    /// Its namespace can be that of the workload.
    Fits,
    /// Its namespace is somebody else's: one of the addresses is another workload's.
    Strangers(NotOwned),
    /// Its namespace does not fit, and is nobody else's either: the description is outdated or wrong.
    Outdated(NotOwned),
    /// Its addresses cannot be read, and those that were read last do not fit.
    Unreadable(io::Error),
}

/// The standing of a pod whose namespace turned out to have the addresses `found`.
///
/// The difference matters because a pod that is served has connections: one wrong description must not cut them all, and
/// neither must a descriptor that could not be had for a moment.
pub(crate) fn standing(mesh: &Mesh, workload: &Workload, found: io::Result<&[IpAddr]>) -> Standing {
    let found = match found {
        Ok(found) => found,
        Err(error) => return Standing::Unreadable(error),
    };
    match judge(workload, found) {
        Ok(()) => Standing::Fits,
        Err(error) if is_anothers(mesh, workload, found) => Standing::Strangers(error),
        Err(error) => Standing::Outdated(error),
    }
}

/// Whether one of these addresses is, in the mesh, that of a workload other than `workload`.
pub(crate) fn is_anothers(mesh: &Mesh, workload: &Workload, addresses: &[IpAddr]) -> bool {
    let owner = |address: &IpAddr| mesh.workload_by_address(&workload.network, *address);
    addresses.iter().filter_map(owner).any(|owner| owner.uid != workload.uid)
}

/// Whether a namespace with these addresses can be that of `workload`: they have an address in common, or the workload
/// has none of its own, which proves nothing. A workload on its node's network has the node's addresses.
///
/// A few comparisons; allocates only for the error.
pub(crate) fn judge(workload: &Workload, namespace: &[IpAddr]) -> Result<(), NotOwned> {
    let described = match workload.network_mode {
        NetworkMode::Standard => &*workload.addresses,
        NetworkMode::HostNetwork => &[],
    };
    if described.is_empty() || described.iter().any(|address| namespace.contains(&address.to_canonical())) {
        return Ok(());
    }
    let (workload, namespace, described) = ((&*workload.uid).into(), namespace.into(), described.into());
    Err(NotOwned { workload, namespace, described })
}

/// Addresses for a message: `none`, or with commas between them. Of many, the first [`MOST_LISTED`] and how many more.
struct List<'a>(&'a [IpAddr]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (listed, others) = self.0.split_at(self.0.len().min(MOST_LISTED));
        let Some((first, rest)) = listed.split_first() else { return f.write_str("none") };
        write!(f, "{first}")?;
        rest.iter().try_for_each(|address| write!(f, ", {address}"))?;
        match others.len() {
            0 => Ok(()),
            others => write!(f, " and {others} more"),
        }
    }
}

/// The addresses that a message shows.
const MOST_LISTED: usize = 8;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn addresses(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|address| address.parse().unwrap()).collect()
    }

    fn workload(list: &[&str]) -> Workload {
        Workload { uid: "c//Pod/n/p".into(), addresses: addresses(list).into(), ..Workload::default() }
    }

    #[test]
    fn one_common_address_of_either_family_is_enough() {
        let dual = workload(&["10.0.0.1", "fd00::1"]);
        for namespace in [
            &["10.0.0.1"][..],
            &["fd00::1"],
            &["10.0.0.1", "fd00::1"],
            &["192.0.2.9", "10.0.0.1"],
            &["fd00::1", "192.0.2.9"],
        ] {
            assert!(judge(&dual, &addresses(namespace)).is_ok(), "{namespace:?}");
        }
    }

    #[test]
    fn a_namespace_with_other_addresses_or_none_is_not_the_workloads() {
        for namespace in [&[][..], &["10.0.0.2"], &["10.0.0.2", "fd00::2"]] {
            let error = judge(&workload(&["10.0.0.1", "fd00::1"]), &addresses(namespace)).unwrap_err();
            assert_eq!(*error.namespace, *addresses(namespace));
        }
    }

    #[test]
    fn a_workload_without_addresses_or_on_its_nodes_network_proves_nothing() {
        let on_the_node = Workload { network_mode: NetworkMode::HostNetwork, ..workload(&["172.30.0.1"]) };
        for silent in [workload(&[]), on_the_node] {
            assert!(judge(&silent, &addresses(&["10.0.0.2"])).is_ok(), "{silent:?}");
            assert!(judge(&silent, &[]).is_ok());
        }
    }

    #[test]
    fn an_address_in_its_mapped_form_is_the_same_address() {
        assert!(judge(&workload(&["::ffff:10.0.0.1"]), &addresses(&["10.0.0.1"])).is_ok());
    }

    #[test]
    fn the_refusal_names_the_workload_and_both_lists() {
        let error = judge(&workload(&["10.0.0.1", "fd00::1"]), &addresses(&["10.0.0.2"])).unwrap_err();
        let text = error.to_string();
        for part in ["c//Pod/n/p", "10.0.0.2", "10.0.0.1, fd00::1"] {
            assert!(text.contains(part), "{text}");
        }
        let error = judge(&workload(&["10.0.0.1"]), &[]).unwrap_err();
        assert!(error.to_string().contains("its addresses are none"), "{error}");
    }
    #[test]
    fn a_refusal_shows_a_few_addresses_of_many() {
        let many: Vec<_> = (0..64).map(|last| IpAddr::from([10, 1, 0, last])).collect();
        let text = judge(&workload(&["10.0.0.1"]), &many).unwrap_err().to_string();
        assert!(text.contains("10.1.0.7 and 56 more,") && !text.contains("10.1.0.8"), "{text}");
    }

    #[test]
    fn a_namespace_that_cannot_be_read_is_nobody_elses_as_far_as_is_known() {
        let mut mesh = Mesh::new(None);
        let other = Workload { uid: "c//Pod/n/q".into(), ..workload(&["10.0.0.2"]) };
        mesh.upsert_workload(Arc::new(other));
        let pod = workload(&["10.0.0.1"]);
        let stands = |found: io::Result<&[&str]>| {
            let found = found.map(addresses);
            standing(&mesh, &pod, found.as_deref().map_err(|error| error.kind().into()))
        };
        assert!(matches!(stands(Err(io::ErrorKind::Other.into())), Standing::Unreadable(_)));
        assert!(matches!(stands(Ok(&["10.0.0.2", "10.0.0.1"])), Standing::Fits));
        assert!(matches!(stands(Ok(&["10.0.0.9", "10.0.0.2"])), Standing::Strangers(_)));
        assert!(matches!(stands(Ok(&["10.0.0.9"])), Standing::Outdated(_)));
        assert!(matches!(stands(Ok(&[])), Standing::Outdated(_)));
    }
}
