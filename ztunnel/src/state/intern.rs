//! One copy of everything that repeats.

use std::collections::HashSet;
use std::sync::Arc;

use super::model::{GatewayAddress, NamespacedHostname, PortMap};

/// Shares equal values while resources are decoded.
///
/// A mesh of 50,000 pods has a few hundred namespaces, nodes, networks and localities, and the pods of one deployment
/// belong to the same services and waypoint; each is stored once. Whoever decodes resources owns the interner; the values
/// live on in the resources after it is dropped.
#[derive(Debug, Default)]
pub struct Interner {
    strings: HashSet<Arc<str>>,
    services: HashSet<Arc<[(NamespacedHostname, PortMap)]>>,
    gateways: HashSet<Arc<GatewayAddress>>,
}

impl Interner {
    /// The shared copy of `text`, made now if there is none.
    pub fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.strings.get(text) {
            return shared.clone();
        }
        let shared: Arc<str> = text.into();
        self.strings.insert(shared.clone());
        shared
    }

    /// The shared copy of the services that a workload is an endpoint of.
    pub fn services(
        &mut self,
        services: Vec<(NamespacedHostname, PortMap)>,
    ) -> Arc<[(NamespacedHostname, PortMap)]> {
        if let Some(shared) = self.services.get(services.as_slice()) {
            return shared.clone();
        }
        let shared: Arc<[_]> = services.into();
        self.services.insert(shared.clone());
        shared
    }

    /// The shared copy of a reference to a waypoint or network gateway.
    pub fn gateway(&mut self, gateway: GatewayAddress) -> Arc<GatewayAddress> {
        if let Some(shared) = self.gateways.get(&gateway) {
            return shared.clone();
        }
        let shared = Arc::new(gateway);
        self.gateways.insert(shared.clone());
        shared
    }

    /// Forgets what nothing else refers to any more. Cost: one pass over everything that is shared; call it after a
    /// large push, not after each resource.
    pub fn sweep(&mut self) {
        self.services.retain(|shared| Arc::strong_count(shared) > 1);
        self.gateways.retain(|shared| Arc::strong_count(shared) > 1);
        self.strings.retain(|shared| Arc::strong_count(shared) > 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_share_one_copy_and_unused_ones_are_forgotten() {
        let mut interner = Interner::default();
        let first = interner.intern("shop");
        assert!(Arc::ptr_eq(&first, &interner.intern("shop")));
        interner.intern("gone");
        interner.sweep();
        assert_eq!(interner.strings.len(), 1);
        assert!(Arc::ptr_eq(&first, &interner.intern("shop")));
    }
}
