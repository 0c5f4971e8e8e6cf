//! The scene of tests about the control plane: two nodes whose proxies know only what a scripted istiod tells them.

use anyhow::Context as _;

use crate::agent::apply_rules;
use crate::istiod::World;
use crate::{
    BackendChoice, ControlPlane, Lab, Node, Pod, Result, ScriptedAgent, ScriptedIstiod, Ztunnel,
    ZtunnelOptions,
};

/// How a [`Driven`] scene is made. [`Default`] is what most tests want.
#[derive(Clone, Debug, Default)]
pub struct DrivenOptions {
    /// For both proxies.
    pub ztunnel: ZtunnelOptions,
    /// Whether the proxies read revocation lists. The files are written by the test.
    pub revocations: bool,
}

/// ```text
///   east: client, neighbour (in the mesh)       west: server (in the mesh)       control: istiod
///         outsider (known to it, not in it)
/// ```
pub struct Driven {
    /// The node of the clients, its agent and its proxy.
    pub east: DrivenNode,
    /// The node of the server, its agent and its proxy.
    pub west: DrivenNode,
    /// The control plane and certificate authority.
    pub istiod: ScriptedIstiod,
    /// In the mesh, on `east`.
    pub client: Pod,
    /// In the mesh, on `east`.
    pub neighbour: Pod,
    /// In the mesh, on `west`.
    pub server: Pod,
    /// Outside the mesh, on `east`.
    pub outsider: Pod,
    /// The wire between them.
    pub lab: Lab,
}

/// A node with its agent and, once started, its proxy.
pub struct DrivenNode {
    ztunnel: Option<Ztunnel>,
    /// The node's agent.
    pub agent: ScriptedAgent,
    /// The proxy's settings and files.
    pub control: ControlPlane,
    /// How the proxy is started.
    pub options: ZtunnelOptions,
    /// The node.
    pub node: Node,
}

impl Driven {
    /// A mesh of the four pods without services or policies, ready for traffic.
    pub fn new() -> Result<Self> {
        Self::with(&DrivenOptions::default(), |_, _| Ok(()))
    }

    /// A mesh that `change` has changed before anything starts, ready for traffic. It is given the server pod too.
    pub fn with(
        options: &DrivenOptions,
        change: impl FnOnce(&mut World, &Pod) -> Result<()>,
    ) -> Result<Self> {
        let mut scene = Self::prepare(options)?;
        scene.istiod.edit(|world| change(world, &scene.server))?;
        scene.istiod.listen()?;
        scene.start()?;
        Ok(scene)
    }

    /// Everything but running proxies and a listening istiod. The agents know the pods, whose rules are applied.
    pub fn prepare(options: &DrivenOptions) -> Result<Self> {
        let lab = Lab::new()?;
        let (east, west) = (lab.node("east")?, lab.node("west")?);
        let (client, neighbour) = (east.pod("client")?, east.pod("neighbour")?);
        let (server, outsider) = (west.pod("server")?, east.pod("outsider")?);
        let istiod = ScriptedIstiod::prepare(&lab.node("control")?)?;
        istiod.push(|world| {
            for pod in [&client, &neighbour, &server] {
                world.enrol(pod);
            }
            world.outsider(&outsider);
        });
        let east = DrivenNode::prepare(east, &istiod, options)?;
        let west = DrivenNode::prepare(west, &istiod, options)?;
        for pod in [&client, &neighbour, &server] {
            apply_rules(pod, BackendChoice::Nftables)?;
            let node = if pod.node().name() == east.node.name() { &east } else { &west };
            node.agent.remember(pod);
        }
        Ok(Self { east, west, istiod, client, neighbour, server, outsider, lab })
    }

    /// Starts both proxies and waits until they are ready.
    pub fn start(&mut self) -> Result<()> {
        for node in [&mut self.east, &mut self.west] {
            node.start()?;
        }
        self.wait_ready()
    }

    /// Waits until both proxies are ready.
    pub fn wait_ready(&self) -> Result<()> {
        for node in [&self.east, &self.west] {
            node.ztunnel()?.wait_ready()?;
        }
        Ok(())
    }

    /// Waits until both proxies have acknowledged all there is.
    pub fn wait_synchronized(&self) -> Result<()> {
        for node in [&self.east, &self.west] {
            self.istiod.wait_synchronized(&node.control.pod)?;
        }
        Ok(())
    }

    /// Changes the mesh, pushes the change, and waits until both proxies have acknowledged it.
    pub fn push<T>(&self, change: impl FnOnce(&mut World) -> T) -> Result<T> {
        let result = self.istiod.push(change);
        self.wait_synchronized()?;
        Ok(result)
    }

    /// Writes the revocation lists for both proxies.
    pub fn write_revocations(&self) -> Result<()> {
        for node in [&self.east, &self.west] {
            self.istiod.ca().write_revocations(&node.control.revocations())?;
        }
        Ok(())
    }

    /// Gives both proxies the roots that istiod has now.
    pub fn write_roots(&self) -> Result<()> {
        for node in [&self.east, &self.west] {
            node.control.write_roots(&self.istiod.ca().roots())?;
        }
        Ok(())
    }
}

impl DrivenNode {
    fn prepare(node: Node, istiod: &ScriptedIstiod, options: &DrivenOptions) -> Result<Self> {
        let mut control = ControlPlane::new(istiod, &node, &ControlPlane::pod_of(&node))?;
        if options.revocations {
            control = control.with_revocations();
        }
        let agent = ScriptedAgent::start(&node)?;
        Ok(Self { ztunnel: None, agent, control, options: options.ztunnel.clone(), node })
    }

    /// Starts the proxy, in place of the one that runs if there is one, without waiting for it.
    pub fn start(&mut self) -> Result<()> {
        self.stop();
        self.ztunnel = Some(Ztunnel::driven(&self.node, &self.control, &self.options)?);
        Ok(())
    }

    /// Kills the proxy.
    pub fn stop(&mut self) {
        self.ztunnel = None;
    }

    /// The proxy.
    pub fn ztunnel(&self) -> Result<&Ztunnel> {
        self.ztunnel.as_ref().with_context(|| format!("no proxy runs on {}", self.node.name()))
    }
}
