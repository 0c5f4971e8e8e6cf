//! A workload as the far end of a connection, and which of its addresses is used.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use identity::{ExpectedPeers, SpiffeId};

use super::{Family, RouteError, Target};
use crate::state::model::{Service, Workload};

/// A workload that can take the connection.
pub(super) struct Upstream<'a> {
    pub(super) workload: &'a Arc<Workload>,
    /// The service whose endpoint it is.
    pub(super) service: Option<&'a Arc<Service>>,
    /// 0 where only the workload's own network knows the port.
    pub(super) port: u16,
    /// None: only through its network gateway.
    host: Option<Host>,
}

enum Host {
    Ip(IpAddr),
    Name(Arc<str>, Family),
}

impl<'a> Upstream<'a> {
    /// Selects the address of `workload`: `hint` if it is one of its own; else the first that the service's families
    /// allow, of the family of `hint` if there is one; else its hostname.
    pub(super) fn new(
        workload: &'a Arc<Workload>,
        service: Option<&'a Arc<Service>>,
        port: u16,
        hint: IpAddr,
    ) -> Result<Self, RouteError> {
        let families = service.map(|service| service.ip_families).unwrap_or_default();
        let allowed = || workload.addresses.iter().copied().filter(|address| families.allows(*address));
        let own = || workload.addresses.iter().copied().find(|address| *address == hint);
        let ip = own()
            .or_else(|| allowed().find(|address| address.is_ipv4() == hint.is_ipv4()))
            .or_else(|| allowed().next());
        let host = match ip {
            Some(ip) => Some(Host::Ip(ip)),
            None if !workload.hostname.is_empty() => {
                Some(Host::Name(workload.hostname.clone(), Family::of(hint)))
            }
            None if workload.network_gateway.is_some() => None,
            None => return Err(no_valid_destination(workload)),
        };
        Ok(Self { workload, service, port, host })
    }

    pub(super) fn target(&self, port: u16) -> Result<Target, RouteError> {
        match &self.host {
            // Port 0 stands for a port that only the workload's own network can tell.
            _ if port == 0 => Err(no_valid_destination(self.workload)),
            Some(Host::Ip(ip)) => Ok(Target::Address(SocketAddr::new(*ip, port))),
            Some(Host::Name(hostname, family)) => {
                Ok(Target::Resolve { hostname: hostname.clone(), port, family: *family })
            }
            None => Err(no_valid_destination(self.workload)),
        }
    }

    pub(super) fn identities(&self) -> ExpectedPeers {
        self.service_identities().chain(self.workload.identity()).collect()
    }

    pub(super) fn service_identities(&self) -> impl Iterator<Item = SpiffeId> + '_ {
        self.service.into_iter().flat_map(|service| service.subject_alt_names.iter().cloned())
    }
}

pub(super) fn no_valid_destination(workload: &Workload) -> RouteError {
    RouteError::NoValidDestination(workload.uid.clone())
}
