//! The scene of most tests: two nodes, three pods in the mesh, one outside.

use std::net::SocketAddr;

use crate::traffic::{self, Outcome};
use crate::{BackendChoice, Lab, Mesh, MeshFile, Node, Pod, Result, Ztunnel, ZtunnelOptions};

/// ```text
///   east: client, neighbour (in the mesh)       west: server (in the mesh)
///         outsider (known to it, not in it)
/// ```
pub struct TwoNodes {
    /// Agents and proxies of both nodes.
    pub mesh: Mesh,
    /// In the mesh, on `east`.
    pub client: Pod,
    /// In the mesh, on `east`.
    pub neighbour: Pod,
    /// In the mesh, on `west`.
    pub server: Pod,
    /// Outside the mesh, on `east`.
    pub outsider: Pod,
    /// The node of the clients.
    pub east: Node,
    /// The node of the server.
    pub west: Node,
    /// The wire between them.
    pub lab: Lab,
}

impl TwoNodes {
    /// A mesh without services or policies.
    pub fn new(backend: BackendChoice) -> Result<Self> {
        Self::with(backend, &ZtunnelOptions::default(), |_, _| Ok(()))
    }

    /// A mesh whose description `change` has changed; it is given the file and the server pod.
    pub fn with(
        backend: BackendChoice,
        options: &ZtunnelOptions,
        change: impl FnOnce(&mut MeshFile, &Pod) -> Result<()>,
    ) -> Result<Self> {
        let lab = Lab::new()?;
        let (east, west) = (lab.node("east")?, lab.node("west")?);
        let (client, neighbour) = (east.pod("client")?, east.pod("neighbour")?);
        let (server, outsider) = (west.pod("server")?, east.pod("outsider")?);
        let mut file = MeshFile::default();
        for pod in [&client, &neighbour, &server] {
            file.enrol(pod);
        }
        file.outsider(&outsider);
        change(&mut file, &server)?;
        let mesh = Mesh::start_with(&file, &[&client, &neighbour, &server], backend, options)?;
        Ok(Self { mesh, client, neighbour, server, outsider, east, west, lab })
    }

    /// Has the server's node swallow what tunnels to its pods consist of, as a NetworkPolicy would.
    pub fn swallow_tunnels(&self) -> Result<()> {
        let rule = "type filter hook forward priority 0; tcp dport 15008 drop;";
        self.west.feed("nft", &["-f", "-"], &format!("table inet hole {{ chain forward {{ {rule} }}; }}"))
    }

    /// The proxy of the clients' node.
    pub fn east_ztunnel(&self) -> Result<&Ztunnel> {
        self.mesh.ztunnel(&self.east)
    }

    /// The proxy of the server's node.
    pub fn west_ztunnel(&self) -> Result<&Ztunnel> {
        self.mesh.ztunnel(&self.west)
    }
}

/// What becomes of a connection from a pod that sends `hello`.
pub fn hello(from: &Pod, target: SocketAddr) -> Result<Outcome> {
    from.run(async move || traffic::outcome(target, b"hello").await)
}
