//! Where a pod's queries come in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use redirect::Netns;
use redirect::socket::{ListenError, ListenOptions, Transparency, bind_udp, listen};

use crate::config::{Config, DnsAddress, Families};

/// One address, bound for UDP and TCP.
#[derive(Debug)]
pub(crate) struct DnsSocket {
    pub(crate) binding: DnsBinding,
    pub(crate) udp: UdpSocket,
    pub(crate) tcp: TcpListener,
}

/// How sockets are bound, so that they can be bound again.
#[derive(Clone, Debug)]
pub(crate) struct DnsBinding {
    netns: Option<Netns>,
    address: SocketAddr,
    options: Arc<ListenOptions>,
}

/// Binds every address of the DNS proxy, in the pod's namespace. All or nothing.
pub(crate) fn bind_all(
    config: &Config,
    netns: Option<&Netns>,
    options: &ListenOptions,
) -> Result<Vec<DnsSocket>, ListenError> {
    let options = Arc::new(ListenOptions { transparent: Transparency::Off, ..options.clone() });
    let addresses = match config.dns.address {
        _ if !config.dns.enabled => Vec::new(),
        DnsAddress::Socket(address) => vec![address],
        DnsAddress::Localhost(port) => loopbacks(config.sockets.families, netns)
            .into_iter()
            .map(|address| SocketAddr::new(address, port))
            .collect(),
    };
    let bind = |address| {
        let binding = DnsBinding { netns: netns.cloned(), address, options: options.clone() };
        let (udp, tcp) = (binding.udp()?, binding.tcp()?);
        tracing::info!(%address, component = "dns", "listener established");
        Ok(DnsSocket { binding, udp, tcp })
    };
    addresses.into_iter().map(bind).collect()
}

/// The loopback addresses that exist. A namespace that cannot be looked into is taken to have both.
fn loopbacks(families: Families, netns: Option<&Netns>) -> Vec<IpAddr> {
    let has_ipv6 = || match netns {
        Some(netns) => netns.loopback_has_ipv6().unwrap_or(true),
        None => Netns::current().map_or(true, |netns| netns.loopback_has_ipv6().unwrap_or(true)),
    };
    let mut addresses = vec![Ipv4Addr::LOCALHOST.into()];
    if families == Families::Both && has_ipv6() {
        addresses.push(Ipv6Addr::LOCALHOST.into());
    }
    addresses
}

impl DnsBinding {
    /// Where it is bound.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn udp(&self) -> Result<UdpSocket, ListenError> {
        let ListenOptions { mark, port_sharing, .. } = *self.options;
        bind_udp(self.netns.as_ref(), self.address, mark, Some(port_sharing))
    }

    pub(crate) fn tcp(&self) -> Result<TcpListener, ListenError> {
        listen(self.netns.as_ref(), self.address, &self.options).map(|listening| listening.listener)
    }
}
