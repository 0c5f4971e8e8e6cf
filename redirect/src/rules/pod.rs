//! What is wanted for one pod: settings of the node, and annotations of the pod.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// What is wanted for one pod. The default is what Istio's agent does without settings and annotations.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodRules {
    /// Whether IPv6 is captured. IPv4 always is.
    pub ipv6: Ipv6Capture,
    /// Whether DNS queries go to the proxy.
    pub dns: DnsCapture,
    /// Whether inbound connections go to the proxy.
    pub inbound: InboundCapture,
    /// Interfaces behind which virtual machines or nested containers live: what comes in there is outbound.
    pub virtual_interfaces: Vec<InterfaceName>,
    /// Where kubelet's probes come from: rules of the host rewrite their source to this address.
    pub probe_ipv4: Ipv4Addr,
    /// The same for IPv6.
    pub probe_ipv6: Ipv6Addr,
    /// On packets of the proxy.
    pub proxy_mark: Mark,
    /// On connections from the proxy to the pod's application, and on the replies.
    pub return_mark: Mark,
}

impl Default for PodRules {
    fn default() -> PodRules {
        PodRules {
            ipv6: Ipv6Capture::On,
            dns: DnsCapture::On,
            inbound: InboundCapture::Capture,
            virtual_interfaces: Vec::new(),
            probe_ipv4: Ipv4Addr::new(169, 254, 7, 127),
            probe_ipv6: Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff),
            proxy_mark: Mark { value: 0x539, mask: 0xfff },
            return_mark: Mark { value: 0x111, mask: 0xfff },
        }
    }
}

impl PodRules {
    /// The families whose traffic is captured.
    pub fn families(&self) -> &'static [Family] {
        match self.ipv6 {
            Ipv6Capture::On => &[Family::V4, Family::V6],
            Ipv6Capture::Off => &[Family::V4],
        }
    }
}

/// Whether IPv6 is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ipv6Capture {
    /// Like IPv4.
    On,
    /// Not at all: such traffic is not in the mesh.
    Off,
}

/// Whether DNS queries go to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DnsCapture {
    /// UDP and TCP port 53 go to the proxy's DNS listener.
    On,
    /// UDP is left alone, and TCP port 53 is outbound like any other.
    Off,
}

/// Whether inbound connections go to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InboundCapture {
    /// All but tunnels, which arrive there anyway, and probes.
    Capture,
    /// Straight to the application (annotation `ambient.istio.io/bypass-inbound-capture`): for ingress gateways.
    Bypass,
}

/// A packet or connection mark, compared and set under a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark {
    /// The bits within the mask.
    pub value: u32,
    /// Which bits count.
    pub mask: u32,
}

/// The name of an interface, as the kernel and both back-ends take it literally; a `+` at the end means any interface
/// that begins so.
///
/// The characters are limited to those without a meaning in the rule languages, since names come from annotations,
/// which the pod's owner writes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InterfaceName(String);

/// Not the name of an interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the name of an interface: up to 15 letters, digits and any of - _ . @ :, maybe a + at the end"
)]
pub struct InvalidInterfaceName(String);

impl FromStr for InterfaceName {
    type Err = InvalidInterfaceName;

    fn from_str(name: &str) -> Result<InterfaceName, InvalidInterfaceName> {
        let literal = name.strip_suffix('+').unwrap_or(name);
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@:".contains(&byte);
        match literal.bytes().all(allowed)
            && literal.bytes().next().is_some_and(|first| first != b'-')
            && !matches!(literal, "." | "..")
            && name.len() < libc::IFNAMSIZ
        {
            true => Ok(InterfaceName(name.to_owned())),
            false => Err(InvalidInterfaceName(name.to_owned())),
        }
    }
}

impl InterfaceName {
    /// The name, with a trailing `+` if it stands for several.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_a_meaning_in_the_rule_languages_are_not_interfaces() {
        for name in
            ["eth0", "k6t-eth0", "docker0", "tap+", "vlan@eth0", "eth0:1", "veth_a.100", "123456789012345"]
        {
            assert_eq!(name.parse::<InterfaceName>().unwrap().as_str(), name);
        }
        for name in [
            "",
            "+",
            ".",
            "..",
            "-i",
            "a b",
            "a\nb",
            "a\"",
            "a;b",
            "a{",
            "a*",
            "a/b",
            "tap++",
            "1234567890123456",
            "ö",
            "!eth0",
            "a,b",
            "$x",
            "#",
        ] {
            assert!(name.parse::<InterfaceName>().is_err(), "{name}");
        }
    }
}
