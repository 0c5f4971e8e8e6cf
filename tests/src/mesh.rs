//! The usual combination: on every node an agent and a proxy, and pods enrolled with them.

use anyhow::Context as _;

use crate::agent::apply_rules;
use crate::{BackendChoice, MeshFile, Node, Pod, Result, ScriptedAgent, Ztunnel, ZtunnelOptions};

/// Agents and proxies of some nodes, ready for traffic. Dropping it ends them all; the pods' rules stay.
pub struct Mesh {
    nodes: Vec<MeshNode>,
}

struct MeshNode {
    node: Node,
    agent: ScriptedAgent,
    ztunnel: Ztunnel,
}

impl Mesh {
    /// Enrols `pods` and starts a proxy on each of their nodes, all with the same mesh description. Returns when
    /// every proxy is ready.
    pub fn start(file: &MeshFile, pods: &[&Pod], backend: BackendChoice) -> Result<Self> {
        Self::start_with(file, pods, backend, &ZtunnelOptions::default())
    }

    /// As [`start`](Self::start), with options for the proxies.
    pub fn start_with(
        file: &MeshFile,
        pods: &[&Pod],
        backend: BackendChoice,
        options: &ZtunnelOptions,
    ) -> Result<Self> {
        let mut nodes: Vec<MeshNode> = Vec::new();
        for pod in pods {
            let node = pod.node();
            apply_rules(pod, backend)?;
            if !nodes.iter().any(|known| known.node.name() == node.name()) {
                let agent = ScriptedAgent::start(node)?;
                let ztunnel = Ztunnel::shared(node, file, options)?;
                nodes.push(MeshNode { node: node.clone(), agent, ztunnel });
            }
        }
        let mesh = Self { nodes };
        for pod in pods {
            mesh.agent(pod.node())?.add(pod)?;
        }
        for node in &mesh.nodes {
            node.ztunnel.wait_ready()?;
        }
        Ok(mesh)
    }

    /// The agent of a node.
    pub fn agent(&self, node: &Node) -> Result<&ScriptedAgent> {
        Ok(&self.at(node)?.agent)
    }

    /// The proxy of a node.
    pub fn ztunnel(&self, node: &Node) -> Result<&Ztunnel> {
        Ok(&self.at(node)?.ztunnel)
    }

    fn at(&self, node: &Node) -> Result<&MeshNode> {
        let found = self.nodes.iter().find(|known| known.node.name() == node.name());
        found.with_context(|| format!("no proxy was started on {}", node.name()))
    }
}
