//! The ways from the client pod to the server pod that are compared.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use lab::{BackendChoice, Lab, Mesh, MeshFile, PATIENCE, Pod, Process, Result, ZtunnelOptions, traffic};

use crate::interrupt::Interrupt;
use crate::usage;
use crate::witness::{self, Carried, Witness};
use crate::{origin, pair};

/// Threads, or worker processes, of every proxy.
pub(crate) const THREADS: usize = 2;

/// What is between the two pods.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Nothing.
    Direct,
    /// This `ztunnel` on both nodes, as in production: shared mode, pods handed over by a node agent, redirection
    /// inside the pods, the client's address kept.
    Ztunnel(PathBuf),
    /// haproxy in both pods.
    Haproxy,
    /// nginx with its stream module in both pods.
    Nginx,
}

/// Two nodes with a pod each, on a wire of their own, and what is between the pods. Dropping it ends everything.
pub(crate) struct Path {
    pub(crate) name: String,
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    /// The address that a client dials.
    address: IpAddr,
    /// On the client's side, then on the server's; none if there are no proxies.
    pub(crate) proxies: Vec<Proxy>,
    // Held for what dropping them ends, in this order.
    running: Running,
    _origin: Process,
    _lab: Lab,
}

/// A proxy whose processes are measured.
pub(crate) struct Proxy {
    pub(crate) side: &'static str,
    pub(crate) processes: Vec<u32>,
    pub(crate) witness: Witness,
}

enum Running {
    Nothing,
    Mesh(Mesh),
    Pair([Process; 2]),
}

impl Path {
    /// Builds the nodes, starts servers and proxies, and waits until a request gets through.
    pub(crate) fn open(name: &str, kind: &Kind, interrupt: &Interrupt) -> Result<Self> {
        let lab = Lab::new()?;
        let client = lab.node("east")?.pod("client")?;
        let server = lab.node("west")?.pod("server")?;
        let origin = origin::start(&server)?;
        let dialled = match kind {
            Kind::Direct | Kind::Ztunnel(_) => server.ipv4(),
            Kind::Haproxy | Kind::Nginx => Ipv4Addr::LOCALHOST,
        };
        let running = match kind {
            Kind::Direct => Running::Nothing,
            Kind::Ztunnel(binary) => Running::Mesh(mesh(binary, &client, &server)?),
            Kind::Haproxy => Running::Pair(pair::haproxy(&client, &server)?),
            Kind::Nginx => Running::Pair(pair::nginx(&client, &server)?),
        };
        let mut path = Self {
            name: name.to_owned(),
            client,
            server,
            address: dialled.into(),
            proxies: Vec::new(),
            running,
            _origin: origin,
            _lab: lab,
        };
        let peer = path.first_answer(interrupt)?;
        // Only now all worker processes are there.
        path.proxies = path.proxies()?;
        if matches!(kind, Kind::Direct | Kind::Ztunnel(_)) {
            ensure!(peer == path.client.ipv4().to_string(), "the server sees {peer} instead of the client");
        }
        let one = Carried { connections: 1, bytes: peer.len() as u64 };
        path.confirm(one, interrupt)?;
        Ok(path)
    }

    /// Where a client reaches a port of the server.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    /// Seconds of CPU that the proxies have used since they started.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        self.proxies.iter().map(|proxy| usage::cpu_seconds(&proxy.processes)).sum()
    }

    /// Forgets what the proxies' logs say so far.
    pub(crate) fn forget(&self) {
        for proxy in &self.proxies {
            proxy.witness.forget();
        }
    }

    /// Waits until the log of every proxy accounts for what has been `carried` since the last [`forget`](Self::forget).
    pub(crate) fn confirm(&self, carried: Carried, interrupt: &Interrupt) -> Result<()> {
        for proxy in &self.proxies {
            let confirmed = proxy.witness.confirm(carried, interrupt);
            confirmed.with_context(|| format!("{}, {} side", self.name, proxy.side))?;
        }
        Ok(())
    }

    /// Asks until there is an answer, at most [`PATIENCE`]: the address that the server sees the client under.
    fn first_answer(&self, interrupt: &Interrupt) -> Result<String> {
        let target = self.at(origin::HTTP);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.client.run(async move || traffic::http_get(target, origin::PEER).await);
            let failure = match answer {
                Ok((200, peer)) => return Ok(peer),
                Ok((status, _)) => anyhow!("status {status}"),
                Err(error) => error,
            };
            if Instant::now() > deadline || self.running.have_ended() {
                bail!("{}: no answer: {failure:#}\n{}", self.name, self.running.complaints());
            }
            interrupt.check()?;
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn proxies(&self) -> Result<Vec<Proxy>> {
        let sides = ["client", "server"];
        match &self.running {
            Running::Nothing => Ok(Vec::new()),
            Running::Mesh(mesh) => {
                let nodes = [self.client.node(), self.server.node()];
                let proxies = nodes.into_iter().zip(sides).map(|(node, side)| {
                    let ztunnel = mesh.ztunnel(node)?;
                    let witness = Witness::new(ztunnel.log().clone(), witness::ztunnel);
                    Ok(Proxy { side, processes: vec![ztunnel.process().id()], witness })
                });
                proxies.collect()
            }
            Running::Pair(processes) => {
                let proxies = processes.iter().zip(sides).map(|(process, side)| {
                    let witness = Witness::new(process.stdout().clone(), witness::pair);
                    // nginx runs below unshare, which is no part of it.
                    let below = usage::descendants(process.id())?;
                    let processes = if below.is_empty() { vec![process.id()] } else { below };
                    Ok(Proxy { side, processes, witness })
                });
                proxies.collect()
            }
        }
    }
}

impl Running {
    /// True when a proxy has ended by itself, as for a configuration that it does not like.
    fn have_ended(&self) -> bool {
        match self {
            Self::Nothing | Self::Mesh(_) => false,
            Self::Pair(pair) => pair.iter().any(|process| !process.is_running()),
        }
    }

    /// What the proxies wrote to standard error.
    fn complaints(&self) -> String {
        match self {
            Self::Nothing | Self::Mesh(_) => String::new(),
            Self::Pair(pair) => pair.each_ref().map(|process| process.stderr().to_text()).join("\n"),
        }
    }
}

fn mesh(binary: &std::path::Path, client: &Pod, server: &Pod) -> Result<Mesh> {
    let mut file = MeshFile::default();
    file.enrol(client);
    file.enrol(server);
    let options =
        ZtunnelOptions { binary: Some(binary.to_owned()), threads: THREADS, ..ZtunnelOptions::default() };
    Mesh::start_with(&file, &[client, server], BackendChoice::Auto, &options)
}
