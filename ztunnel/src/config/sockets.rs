//! The sockets made for pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use redirect::socket::{Keepalive, PortSharing, Transparency};

use super::read::Reader;
use super::{ProxyMode, settings};

/// Options of the sockets made for pods.
#[derive(Clone, Debug)]
pub struct SocketConfig {
    /// Mark on our packets, by which the pod's rules know them.
    pub mark: Option<u32>,
    /// How another proxy may listen beside us.
    pub sharing: PortSharing,
    /// Whether a client's address is kept towards the application.
    pub transparency: Transparency,
    /// TCP keepalive; `None` is off.
    pub keepalive: Option<Keepalive>,
    /// How long sent bytes may stay unacknowledged; `None` leaves it to the kernel.
    pub user_timeout: Option<Duration>,
    /// Address families to listen on.
    pub families: Families,
    /// Whether pods have a SOCKS5 listener.
    pub socks5: bool,
}

/// Address families to listen on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Families {
    /// `0.0.0.0` only.
    Ipv4,
    /// `[::]`, which also serves IPv4.
    Both,
}

impl Families {
    /// Every address of these families, at `port`.
    pub fn wildcard(self, port: u16) -> SocketAddr {
        let address: IpAddr = match self {
            Self::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::Both => Ipv6Addr::UNSPECIFIED.into(),
        };
        SocketAddr::new(address, port)
    }
}

/// The options, and the times of keepalive, also when it is off.
pub(super) fn sockets(read: &mut Reader<'_>, mode: &ProxyMode) -> (SocketConfig, Keepalive) {
    let shared = matches!(mode, ProxyMode::Shared { .. });
    let mark = match read.optional(&settings::PACKET_MARK) {
        Some(mark) => Some(mark).filter(|mark| *mark != 0),
        None => shared.then_some(settings::DEFAULT_PACKET_MARK),
    };
    let sharing = match read.value(&settings::INPOD_PORT_REUSE) && shared {
        true => PortSharing::ReusePort,
        false => PortSharing::ReuseAddress,
    };
    let transparency = match read.optional(&settings::ENABLE_ORIG_SRC) {
        None => Transparency::BestEffort,
        Some(true) => Transparency::Require,
        Some(false) => Transparency::Off,
    };
    let keepalive = Keepalive {
        idle: read.value(&settings::KEEPALIVE_TIME),
        interval: read.value(&settings::KEEPALIVE_INTERVAL),
        retries: read.value(&settings::KEEPALIVE_RETRIES),
    };
    let user_timeout = keepalive.idle.saturating_add(keepalive.interval.saturating_mul(keepalive.retries));
    let families = match read.value(&settings::IPV6_ENABLED) {
        true => Families::Both,
        false => Families::Ipv4,
    };
    let config = SocketConfig {
        mark,
        sharing,
        transparency,
        user_timeout: read.value(&settings::USER_TIMEOUT_ENABLED).then_some(user_timeout),
        keepalive: read.value(&settings::KEEPALIVE_ENABLED).then_some(keepalive),
        families,
        socks5: read.value(&settings::UNSTABLE_ENABLE_SOCKS5),
    };
    (config, keepalive)
}
