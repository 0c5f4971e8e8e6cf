//! What the playground consists of: two nodes with a ztunnel each, five pods, one service, two policies.

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use lab::traffic::Server;
use lab::{BackendChoice, Lab, Mesh, MeshFile, Namespace, Node, Pod, Ztunnel};

use crate::screen::Screen;
use crate::web;

/// The service `server`.
const SERVICE: [&str; 2] = ["10.96.0.1", "fd96::1"];

/// The port of the web servers behind port 80 of the service.
pub(crate) const WEB: u16 = 8080;

/// Attached to both replicas of the service. The second is what Istio makes of a `STRICT` PeerAuthentication.
const POLICIES: [(&str, &str, &str); 2] = [
    (
        "allow-client",
        "of the mesh, only client may call server",
        "action: Allow, rules: [[[{principals: [{Exact: cluster.local/ns/default/sa/client}]}]]]",
    ),
    (
        "strict",
        "nobody may call server in plaintext",
        "action: Deny, rules: [[[{notPrincipals: [{Presence: []}]}]]]",
    ),
];

/// ```text
///   node-1: client, intruder, server-2       node-2: server-1, outsider (not in the mesh)
/// ```
pub(crate) struct Scene {
    mesh: Mesh,
    _servers: [Server; 3],
    pub(crate) client: Pod,
    pub(crate) intruder: Pod,
    pub(crate) outsider: Pod,
    /// server-1, server-2.
    pub(crate) replicas: [Pod; 2],
    nodes: [Node; 2],
    lab: Lab,
}

impl Scene {
    /// Builds everything. Returns when both proxies are ready and the web servers listen.
    pub(crate) fn build() -> Result<Self> {
        let lab = Lab::new()?;
        let nodes = [lab.node("node-1")?, lab.node("node-2")?];
        let (client, intruder) = (nodes[0].pod("client")?, nodes[0].pod("intruder")?);
        let replicas = [nodes[1].pod_as("server-1", "server")?, nodes[0].pod_as("server-2", "server")?];
        let outsider = nodes[1].pod("outsider")?;

        let file = mesh_file(&[&client, &intruder], &replicas, &outsider)?;
        let enrolled = [&client, &intruder, &replicas[0], &replicas[1]];
        let mesh = Mesh::start(&file, &enrolled, BackendChoice::Auto)?;
        let servers = [serve(&replicas[0])?, serve(&replicas[1])?, serve(&outsider)?];
        Ok(Self { mesh, _servers: servers, client, intruder, outsider, replicas, nodes, lab })
    }

    /// Prints who is where.
    pub(crate) fn describe(&self, screen: &mut Screen) -> Result<()> {
        let mut text = String::new();
        for node in &self.nodes {
            writeln!(text, "  {:<10} {:<12} {}", node.name(), node.ipv4(), node.ipv6())?;
            for pod in self.pods().filter(|pod| pod.node().name() == node.name()) {
                let note = if pod.name() == self.outsider.name() { "  not in the mesh" } else { "" };
                writeln!(text, "    {:<8} {:<12} {}{note}", pod.name(), pod.ipv4(), pod.ipv6())?;
            }
        }
        let [ipv4, ipv6] = SERVICE;
        writeln!(text, "\n  service server       {ipv4} and {ipv6}, port 80 of server-1 and server-2")?;
        for (name, meaning, _) in POLICIES {
            writeln!(text, "  policy {name:<13} {meaning}")?;
        }
        screen.line(&text)?;
        Ok(())
    }

    /// Who is called what, for /etc/hosts.
    pub(crate) fn hosts(&self) -> String {
        let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost\n");
        for vip in SERVICE {
            hosts += &format!("{vip} server server.default.svc.cluster.local\n");
        }
        for pod in self.pods() {
            hosts += &pod.addresses().map(|address| format!("{address} {}\n", pod.name())).concat();
        }
        for node in &self.nodes {
            hosts += &format!("{} {name}\n{} {name}\n", node.ipv4(), node.ipv6(), name = node.name());
        }
        hosts
    }

    /// Everything that can be entered.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&str, &Namespace)> {
        let pods = self.pods().map(|pod| (pod.name(), &**pod));
        pods.chain(self.nodes.iter().map(|node| (node.name(), &**node)))
    }

    /// The nodes, each with its proxy.
    pub(crate) fn proxies(&self) -> Result<[(&Node, &Ztunnel); 2]> {
        let [one, two] = &self.nodes;
        Ok([(one, self.mesh.ztunnel(one)?), (two, self.mesh.ztunnel(two)?)])
    }

    /// The proxy of a pod's node.
    pub(crate) fn proxy_of(&self, pod: &Pod) -> Result<&Ztunnel> {
        self.mesh.ztunnel(pod.node())
    }

    /// The replica of the service with this name.
    pub(crate) fn replica(&self, name: &str) -> Result<&Pod> {
        let found = self.replicas.iter().find(|pod| pod.name() == name);
        found.with_context(|| format!("{name:?} is no replica of server"))
    }

    /// What every packet between the nodes crosses.
    pub(crate) fn wire(&self) -> &Namespace {
        self.lab.wire()
    }

    fn pods(&self) -> impl Iterator<Item = &Pod> {
        let [one, two] = &self.replicas;
        [&self.client, &self.intruder, two, one, &self.outsider].into_iter()
    }
}

/// What a control plane would tell the proxies.
fn mesh_file(clients: &[&Pod], replicas: &[Pod; 2], outsider: &Pod) -> Result<MeshFile> {
    let mut file = MeshFile::default();
    for client in clients {
        file.enrol(client);
    }
    for replica in replicas {
        file.enrol(replica).authorization_policies =
            POLICIES.map(|(name, ..)| format!("default/{name}")).to_vec();
    }
    file.outsider(outsider);
    for (name, _, rules) in POLICIES {
        file.policy(&format!(
            "{{name: {name}, namespace: default, scope: WorkloadSelector, dryRun: false, {rules}}}"
        ))?;
    }
    let vips: Vec<IpAddr> = SERVICE.iter().map(|vip| vip.parse()).collect::<Result<_, _>>()?;
    file.service("server", &vips, (80, WEB), &[&replicas[0], &replicas[1]])?;
    Ok(file)
}

fn serve(pod: &Pod) -> Result<Server> {
    let (name, node) = (pod.name().to_owned(), pod.node().name().to_owned());
    Server::start(pod, WEB, async move |stream, peer| web::serve(&name, &node, stream, peer).await)
}
