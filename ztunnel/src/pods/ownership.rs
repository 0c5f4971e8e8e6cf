//! Whether a network namespace can be the one of the workload it is said to be.
//!
//! The node agent says which pod a namespace belongs to, and the control plane which addresses that pod has. Where the
//! two contradict each other, somebody is mistaken, and whoever sits in the namespace would speak under another's
//! identity. So such a pod is not served.
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

use redirect::Netns;

use crate::state::model::{NetworkMode, Workload};

/// The namespace is not known to be the workload's, and should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotOwned {
    /// It has none of the workload's addresses.
    #[error(
        "the network namespace is not the one of {workload}: its addresses are {}, those of the workload are {}",
        List(namespace),
        List(described)
    )]
    Foreign {
        /// The workload's uid.
        workload: Box<str>,
        /// What the namespace has.
        namespace: Box<[IpAddr]>,
        /// What the workload should have.
        described: Box<[IpAddr]>,
    },
    /// Its addresses cannot be read.
    #[error("the addresses in the network namespace cannot be read")]
    Unreadable(#[source] io::Error),
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
    Err(NotOwned::Foreign { workload, namespace, described })
}

/// Judges by the addresses that `netns` has now, and returns them. A few system calls.
pub(crate) fn examine(workload: &Workload, netns: &Netns) -> Result<Vec<IpAddr>, NotOwned> {
    let addresses = netns.addresses().map_err(NotOwned::Unreadable)?;
    judge(workload, &addresses).map(|()| addresses)
}

/// Addresses for a message: `none`, or with commas between them.
struct List<'a>(&'a [IpAddr]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, rest)) = self.0.split_first() else { return f.write_str("none") };
        write!(f, "{first}")?;
        rest.iter().try_for_each(|address| write!(f, ", {address}"))
    }
}

#[cfg(test)]
mod tests {
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
            assert!(matches!(error, NotOwned::Foreign { .. }), "{namespace:?}");
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
}
