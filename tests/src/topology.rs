//! Nodes and pods: who is wired to whom, under which addresses.
//!
//! ```text
//!   wire: bridge ──┬── node 1  172.30.0.1, fd30::1 ──┬── pod 1  10.1.0.1, fd10:0:0:1::1
//!                  │                                 └── pod 2  10.1.0.2, fd10:0:0:1::2
//!                  └── node 2  172.30.0.2, fd30::2 ───── pod 1  10.2.0.1, fd10:0:0:2::1
//! ```
//!
//! Nodes route between pods without address translation, as the usual CNI plugins do. A pod has a /32 and a /128
//! and reaches everything, its neighbours too, through its node.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Deref;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::ensure;
use tempfile::TempDir;

use crate::{Namespace, Result};

/// Routes between nodes are laid when a node is made, for this many of them.
const NODES: u8 = 8;

/// A wire with nodes on it.
pub struct Lab {
    wire: Namespace,
    directory: Arc<TempDir>,
    nodes: AtomicU8,
}

impl Lab {
    /// A wire without nodes.
    pub fn new() -> Result<Self> {
        // One process holds both ends of every connection of a test, thousands in some.
        redirect::privileges::raise_descriptor_limit()?;
        let wire = Namespace::new("wire")?;
        // No spanning tree and no multicast snooping: a port forwards, neighbour discovery included, once it is up.
        wire.ip(
            "link add bridge type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set bridge up",
        )?;
        let directory = Arc::new(tempfile::Builder::new().prefix("lab").tempdir()?);
        Ok(Self { wire, directory, nodes: AtomicU8::new(0) })
    }

    /// Adds a node.
    pub fn node(&self, name: &str) -> Result<Node> {
        let index = self.nodes.fetch_add(1, Ordering::Relaxed) + 1;
        ensure!(index <= NODES, "a laboratory has at most {NODES} nodes");
        let namespace = Namespace::new(name)?;
        quiet(&namespace)?;
        for (key, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
        ] {
            namespace.sysctl(key, value)?;
        }
        self.wire.ip(&format!(
            "link add node{index} type veth peer name eth0 netns {}\n\
             link set node{index} master bridge up",
            path_of(&namespace)
        ))?;
        let mut batch = format!(
            "link set eth0 up\n\
             addr add {}/16 dev eth0\n\
             addr add {}/64 dev eth0 nodad\n",
            node_ipv4(index),
            node_ipv6(index)
        );
        for other in (1..=NODES).filter(|other| *other != index) {
            writeln!(batch, "route add 10.{other}.0.0/16 via {}", node_ipv4(other))?;
            writeln!(batch, "route add fd10:0:0:{other}::/64 via {}", node_ipv6(other))?;
        }
        namespace.ip(&batch)?;
        let directory = self.directory.path().join(name);
        std::fs::create_dir(&directory)?;
        Ok(Node {
            namespace,
            index,
            name: name.into(),
            directory,
            ca: self.ca_directory(),
            pods: Arc::new(AtomicU8::new(0)),
            _lab_directory: Arc::clone(&self.directory),
        })
    }

    /// The namespace that every packet between nodes crosses.
    pub fn wire(&self) -> &Namespace {
        &self.wire
    }

    /// The directory of the certificate authority that all proxies of the laboratory share. The first one started
    /// creates it.
    pub fn ca_directory(&self) -> PathBuf {
        self.directory.path().join("ca")
    }
}

/// A node. Clones refer to the same one; it dereferences to its namespace, where its proxy runs.
#[derive(Clone)]
pub struct Node {
    namespace: Namespace,
    index: u8,
    name: Arc<str>,
    directory: PathBuf,
    ca: PathBuf,
    pods: Arc<AtomicU8>,
    _lab_directory: Arc<TempDir>,
}

impl Node {
    /// Adds a pod in the Kubernetes namespace `default` whose service account has the pod's own name.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.pod_as(name, name)
    }

    /// Adds a pod in the Kubernetes namespace `default` with the given service account.
    pub fn pod_as(&self, name: &str, service_account: &str) -> Result<Pod> {
        let index = self.pods.fetch_add(1, Ordering::Relaxed) + 1;
        let namespace = Namespace::new(name)?;
        quiet(&namespace)?;
        let ipv4 = Ipv4Addr::new(10, self.index, 0, index);
        let ipv6 = Ipv6Addr::new(0xfd10, 0, 0, self.index.into(), 0, 0, 0, index.into());
        self.namespace.ip(&format!(
            "link add pod{index} type veth peer name eth0 netns {}\n\
             addr add {GATEWAY_IPV4}/32 dev pod{index}\n\
             addr add {GATEWAY_IPV6}/64 dev pod{index} nodad\n\
             link set pod{index} up\n\
             route add {ipv4} dev pod{index}\n\
             route add {ipv6} dev pod{index}",
            path_of(&namespace)
        ))?;
        namespace.ip(&format!(
            "addr add {ipv4}/32 dev eth0\n\
             addr add {ipv6}/128 dev eth0 nodad\n\
             link set eth0 up\n\
             route add {GATEWAY_IPV4} dev eth0\n\
             route add default via {GATEWAY_IPV4} dev eth0\n\
             route add default via {GATEWAY_IPV6} dev eth0",
        ))?;
        Ok(Pod {
            namespace,
            node: self.clone(),
            name: name.into(),
            service_account: service_account.into(),
            ipv4,
            ipv6,
        })
    }

    /// The name, which is also the value of `NODE_NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's own address.
    pub fn ipv4(&self) -> Ipv4Addr {
        node_ipv4(self.index)
    }

    /// The node's own address.
    pub fn ipv6(&self) -> Ipv6Addr {
        node_ipv6(self.index)
    }

    /// A directory of the node's own, removed with the laboratory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the node's agent listens for the proxy.
    pub fn agent_socket(&self) -> PathBuf {
        self.directory.join("ztunnel.sock")
    }

    /// The directory of the laboratory's certificate authority.
    pub fn ca_directory(&self) -> &Path {
        &self.ca
    }
}

impl Deref for Node {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

/// A pod. Clones refer to the same one; it dereferences to its namespace.
#[derive(Clone)]
pub struct Pod {
    namespace: Namespace,
    node: Node,
    name: Arc<str>,
    service_account: Arc<str>,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
}

impl Pod {
    /// The Kubernetes namespace of every pod here.
    pub const NAMESPACE: &str = "default";

    /// The trust domain of every pod here.
    pub const TRUST_DOMAIN: &str = "cluster.local";

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The pod's service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// The pod's SPIFFE identity as a URI.
    pub fn identity(&self) -> String {
        format!("spiffe://{}/ns/{}/sa/{}", Self::TRUST_DOMAIN, Self::NAMESPACE, self.service_account)
    }

    /// The key under which the agent announces the pod.
    pub fn uid(&self) -> String {
        format!("uid-{}", self.name)
    }

    /// The node the pod is on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The pod's address.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.ipv4
    }

    /// The pod's address.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.ipv6
    }

    /// The pod's IPv4 address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.ipv4, port).into()
    }

    /// The pod's IPv6 address with a port.
    pub fn at_ipv6(&self, port: u16) -> SocketAddr {
        (self.ipv6, port).into()
    }

    /// Both addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }
}

impl Deref for Pod {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

/// The node's address on every pod's link: the same everywhere, as each link is its own network.
const GATEWAY_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_IPV6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

fn node_ipv4(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, index)
}

fn node_ipv6(index: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, index.into())
}

/// No duplicate address detection, router solicitations or reverse-path checks inherited from the machine.
fn quiet(namespace: &Namespace) -> Result<()> {
    for (key, value) in [
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
    ] {
        namespace.sysctl(key, value)?;
    }
    Ok(())
}

/// A path by which another process of ours can open the namespace.
fn path_of(namespace: &Namespace) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.netns().as_fd().as_raw_fd())
}
