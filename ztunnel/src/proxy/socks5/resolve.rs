//! The address of a host that a SOCKS client names.

use std::net::IpAddr;

use thiserror::Error;

use crate::proxy::pod::LocalPod;
use crate::state::Mesh;

/// Why a name has no address.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum ResolveError {
    /// Names are the DNS proxy's, and it is off.
    #[error("host names need the DNS proxy, which is off")]
    Disabled,
    /// The client's namespace sees no service of this name, or none with an address of its family.
    #[error("no address for {0:?}")]
    Unknown(String),
}

/// The address of the service that the pod knows by the full `name`, of the family that `client` has. Search domains are not
/// applied.
pub(super) fn resolve(pod: &LocalPod, name: &[u8], client: IpAddr) -> Result<IpAddr, ResolveError> {
    let config = pod.config();
    if !config.dns.enabled {
        return Err(ResolveError::Disabled);
    }
    let shared = pod.worker.shared();
    let view = View {
        network: &config.network,
        namespace: &pod.pod.workload.namespace,
        preferred: config.dns.preferred_namespace.as_deref(),
    };
    let unknown = || ResolveError::Unknown(String::from_utf8_lossy(name).into_owned());
    view.address(&shared.mesh.load(), name, client).ok_or_else(unknown)
}

/// Who asks.
struct View<'a> {
    network: &'a str,
    namespace: &'a str,
    /// Preferred after the client's own namespace.
    preferred: Option<&'a str>,
}

impl View<'_> {
    fn address(&self, mesh: &Mesh, name: &[u8], client: IpAddr) -> Option<IpAddr> {
        let name = std::str::from_utf8(name).ok()?.to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        let service = mesh.service_by_hostname(name, Some(self.namespace), self.preferred)?;
        let of_network = service.vips.iter().filter(|vip| *vip.network == *self.network);
        of_network.map(|vip| vip.address).find(|address| address.is_ipv4() == client.is_ipv4())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StaticConfig;

    #[test]
    fn a_name_is_that_of_a_service_with_an_address_of_the_clients_family() {
        let mut mesh = Mesh::new(None);
        let text = r#"
services:
- {name: web, namespace: shop, hostname: web.shop.svc, vips: ["far/10.0.0.9", "/fd00::1", "/10.0.0.1"], ports: {80: 80}}
- {name: hidden, namespace: other, hostname: hidden.other.svc, vips: ["/10.0.0.2"], ports: {80: 80}, visibility: Namespace}
- {name: headless, namespace: shop, hostname: headless.shop.svc, vips: [], ports: {80: 80}}
"#;
        StaticConfig::parse("test", text).unwrap().apply(&mut mesh);
        let view = View { network: "", namespace: "shop", preferred: None };
        let (v4, v6): (IpAddr, IpAddr) = ([127, 0, 0, 1].into(), "::1".parse().unwrap());
        for (name, client, expected) in [
            ("web.shop.svc", v4, Some("10.0.0.1")),
            ("WEB.shop.svc.", v4, Some("10.0.0.1")),
            ("web.shop.svc", v6, Some("fd00::1")),
            ("web", v4, None),
            ("hidden.other.svc", v4, None),
            ("headless.shop.svc", v4, None),
            ("", v4, None),
        ] {
            let expected = expected.map(|address| address.parse().unwrap());
            assert_eq!(view.address(&mesh, name.as_bytes(), client), expected, "{name} for {client}");
        }
        assert_eq!(view.address(&mesh, b"\xff\xfe", v4), None);
    }
}
