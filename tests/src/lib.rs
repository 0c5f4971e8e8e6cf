//! The namespace laboratory: nodes, pods and proxies on one machine, for tests, benchmarks and the playground.
//!
//! A [`Lab`] is a set of network namespaces wired together: one bridge ("the wire"), nodes on it, and pods behind
//! the nodes, with IPv4 and IPv6. Everything real runs in them: the `ztunnel` binary ([`Ztunnel`]), a scripted node
//! agent that enrols pods the way the CNI agent does ([`ScriptedAgent`]), a scripted control plane ([`ScriptedIstiod`]),
//! and whatever programs or async code a test starts inside a pod. [`Mesh`] puts the usual combination of proxies with a
//! static description together, [`Driven`] the one with a control plane. [`Envoy`] is a real waypoint or gateway.
//!
//! ```no_run
//! use lab::{BackendChoice, Lab, Mesh, MeshFile, traffic};
//!
//! # fn main() -> lab::Result<()> {
//! let lab = Lab::new()?;
//! let client = lab.node("east")?.pod("client")?;
//! let server = lab.node("west")?.pod("server")?;
//! let mut file = MeshFile::default();
//! file.enrol(&client);
//! file.enrol(&server);
//! let mesh = Mesh::start(&file, &[&client, &server], BackendChoice::Nftables)?;
//!
//! let echo = traffic::Server::start(&server, 8080, traffic::echo)?;
//! let target = echo.ipv4();
//! let answer = client.run(async move || traffic::ask(target, b"hello").await)?;
//! assert_eq!(answer, b"hello");
//! # drop(mesh);
//! # Ok(())
//! # }
//! ```
//!
//! Nothing outlives the process that made a laboratory, however it ends: namespaces are held by open descriptors
//! only, and every child has a parent-death signal. It needs root, or to be mapped root in a user namespace of its
//! own (`unshare --user --map-root-user --mount --pid --fork --mount-proc`).

mod access_log;
mod agent;
mod capture;
mod control_plane;
mod driven;
mod envoy;
mod flow;
mod hbone_peer;
mod hbone_relay;
pub mod istiod;
mod lines;
mod mesh;
mod mesh_file;
mod namespace;
mod process;
pub mod raw_peer;
mod topology;
pub mod traffic;
mod two_nodes;
mod ztunnel;

use std::time::{Duration, Instant};

pub use access_log::AccessLine;
pub use agent::{Ack, ScriptedAgent, apply_rules, apply_rules_with};
pub use capture::{Capture, Recording};
pub use control_plane::{ControlPlane, Dial};
pub use driven::{Driven, DrivenNode, DrivenOptions};
pub use envoy::{Attached, Envoy, EnvoyRole, Forwarded, Layer};
pub use flow::{Flow, Flowed, OpenConnection};
pub use hbone_peer::{HbonePeer, HboneReply, issue};
pub use hbone_relay::{Ending, HboneRelay, Heard};
pub use istiod::ScriptedIstiod;
pub use lines::Lines;
pub use mesh::Mesh;
pub use mesh_file::{MeshFile, Protocol, Service, Workload};
pub use namespace::{Namespace, Task};
pub use process::Process;
pub use redirect::rules::{BackendChoice, DnsCapture};
pub use topology::{Lab, Node, Pod};
pub use two_nodes::{TwoNodes, hello};
pub use ztunnel::{Ztunnel, ZtunnelOptions, with_file};

/// Everything here fails with a message for the person reading the test's output.
pub type Result<T, E = anyhow::Error> = std::result::Result<T, E>;

/// How long anything in the laboratory is waited for before it counts as not happening. Generous, as the machine
/// may be busy with other laboratories: no test may rely on something being faster.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits, at most [`PATIENCE`], until `condition` holds.
pub fn wait_until(mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        anyhow::ensure!(Instant::now() < deadline, "it did not happen within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
