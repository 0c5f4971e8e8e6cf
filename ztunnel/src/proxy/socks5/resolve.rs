//! The address of a host that a SOCKS client names.

use std::net::IpAddr;

use thiserror::Error;

use crate::proxy::pod::LocalPod;
use crate::state::route::Family;

/// Why a name has no address.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum ResolveError {
    /// Names are the DNS proxy's, and it is off.
    #[error("host names need the DNS proxy, which is off")]
    Disabled,
    /// The DNS proxy has no address for it of the client's family.
    #[error("no address for {0:?}")]
    Unknown(String),
}

/// The address that the DNS proxy tells the pod for the full `name`, of the family that `client` has. Search domains are not
/// applied.
pub(super) async fn resolve(pod: &LocalPod, name: &[u8], client: IpAddr) -> Result<IpAddr, ResolveError> {
    if !pod.config().dns.enabled {
        return Err(ResolveError::Disabled);
    }
    let unknown = || ResolveError::Unknown(String::from_utf8_lossy(name).into_owned());
    let text = std::str::from_utf8(name).map_err(|_| unknown())?;
    let family = if client.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
    pod.worker.shared().dns.address(pod.pod.instance, text, family).await.map_err(|_| unknown())
}
