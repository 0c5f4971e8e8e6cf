//! Pods whose DNS is captured, a name server outside of the mesh, and what pods ask.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RecordType};
use lab::{
    BackendChoice, DnsCapture, Lab, MeshFile, Namespace, Node, PATIENCE, Pod, Result, ScriptedAgent, Ztunnel,
    ZtunnelOptions, apply_rules_with,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::resolver::{Asked, Resolver};

/// The cluster's resolver as pods know it: nobody has the address, so an answer from it is the proxy's.
pub(crate) const CLUSTER_DNS: [&str; 2] = ["10.96.0.53:53", "[fd96::53]:53"];

/// ```text
///   east: client (DNS captured), other (likewise)       west: resolver (outside), server (in the mesh)
///   service web.default.svc.cluster.local at 10.96.0.1 and fd96::1
/// ```
pub(crate) struct Scene {
    pub(crate) ztunnel: Ztunnel,
    pub(crate) resolver: Resolver,
    pub(crate) agent: ScriptedAgent,
    pub(crate) client: Pod,
    pub(crate) other: Pod,
    pub(crate) server: Pod,
    /// What the proxy reads as `/etc/resolv.conf`.
    pub(crate) resolv_conf: PathBuf,
    pub(crate) resolver_pod: Pod,
    pub(crate) east: Node,
    pub(crate) _lab: Lab,
}

impl Scene {
    pub(crate) fn new(script: fn(&Asked) -> Vec<Vec<u8>>) -> Result<Self> {
        Self::with(BackendChoice::Nftables, ZtunnelOptions::default(), script, |_, _| Ok(()))
    }

    pub(crate) fn with(
        backend: BackendChoice,
        options: ZtunnelOptions,
        script: fn(&Asked) -> Vec<Vec<u8>>,
        change: impl FnOnce(&mut MeshFile, &Pod) -> Result<()>,
    ) -> Result<Self> {
        let lab = Lab::new()?;
        let (east, west) = (lab.node("east")?, lab.node("west")?);
        let (client, other) = (east.pod("client")?, east.pod("other")?);
        let (resolver_pod, server) = (west.pod("resolver")?, west.pod("server")?);
        let resolver = Resolver::start(&resolver_pod, script)?;
        let mut file = MeshFile::default();
        for pod in [&client, &other, &server] {
            file.enrol(pod);
        }
        let vips: [IpAddr; 2] = ["10.96.0.1".parse()?, "fd96::1".parse()?];
        file.service("web", &vips, (80, 8080), &[&server])?;
        change(&mut file, &server)?;
        let resolv_conf = east.directory().join("resolv.conf");
        std::fs::write(&resolv_conf, servers(&[resolver_pod.ipv4().into()]))?;
        let options = ZtunnelOptions { resolv_conf: Some(resolv_conf.clone()), ..options };
        let agent = ScriptedAgent::start(&east)?;
        let ztunnel = Ztunnel::shared(&east, &file, &options)?;
        for pod in [&client, &other] {
            apply_rules_with(pod, backend, DnsCapture::On)?;
            ensure!(agent.add(pod)? == lab::Ack::Accepted, "{} was refused", pod.name());
        }
        ztunnel.wait_ready()?;
        Ok(Self {
            ztunnel,
            resolver,
            agent,
            client,
            other,
            server,
            resolv_conf,
            resolver_pod,
            east,
            _lab: lab,
        })
    }

    /// Has the proxy find other name servers. It notices in its own time.
    pub(crate) fn set_servers(&self, addresses: &[IpAddr]) -> Result<()> {
        // In place: the file is mounted.
        let mut file = std::fs::OpenOptions::new().write(true).truncate(true).open(&self.resolv_conf)?;
        Ok(file.write_all(servers(addresses).as_bytes())?)
    }

    /// Asks from the client pod over UDP, with room for large answers.
    pub(crate) fn ask(&self, name: &str, kind: RecordType) -> Result<Message> {
        self.exchange(&with_edns(query(name, kind), 4096))
    }

    pub(crate) fn exchange(&self, query: &Message) -> Result<Message> {
        let octets = udp(&self.client, CLUSTER_DNS[0], query.to_vec()?)?;
        Ok(Message::from_vec(&octets)?)
    }
}

fn servers(addresses: &[IpAddr]) -> String {
    let lines = addresses.iter().map(|address| format!("nameserver {address}\n"));
    lines.chain(["search search.example\n".to_owned()]).collect()
}

/// A query with an id of its own.
pub(crate) fn query(name: &str, kind: RecordType) -> Message {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let mut query = Message::query();
    query.metadata.id = NEXT.fetch_add(1, Ordering::Relaxed);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    query
}

pub(crate) fn with_edns(mut query: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    query.set_edns(edns);
    query
}

/// Sends a datagram from a pod and returns the first answer.
pub(crate) fn udp(pod: &Namespace, to: &str, octets: Vec<u8>) -> Result<Vec<u8>> {
    let to: SocketAddr = to.parse()?;
    pod.run(async move || {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).await?;
        // An answer from elsewhere would be none for an ordinary client either.
        socket.connect(to).await?;
        socket.send(&octets).await?;
        let mut buffer = vec![0; 65_535];
        let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.context("no answer")??;
        buffer.truncate(length);
        Ok(buffer)
    })
}

/// Writes octets on a new connection from a pod, and reads `count` messages.
pub(crate) fn tcp(pod: &Namespace, to: &str, octets: Vec<u8>, count: usize) -> Result<Vec<Message>> {
    let to: SocketAddr = to.parse()?;
    pod.run(async move || {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(&octets).await?;
        let mut messages = Vec::new();
        for _ in 0..count {
            messages.push(read_message(&mut stream).await?);
        }
        Ok(messages)
    })
}

pub(crate) async fn read_message(stream: &mut TcpStream) -> Result<Message> {
    let length = timeout(PATIENCE, stream.read_u16()).await.context("no answer")??;
    let mut octets = vec![0; usize::from(length)];
    timeout(PATIENCE, stream.read_exact(&mut octets)).await.context("half an answer")??;
    Ok(Message::from_vec(&octets)?)
}

/// A message as it is sent over TCP.
pub(crate) fn framed(octets: &[u8]) -> Vec<u8> {
    let length = u16::try_from(octets.len()).expect("a message");
    [&length.to_be_bytes(), octets].concat()
}

/// The data of the answers.
pub(crate) fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

/// Runs getent(1) in a pod with a resolv.conf as Kubernetes makes it.
pub(crate) fn getent(pod: &Pod, directory: &Path, arguments: &[&str]) -> Result<String> {
    let file = directory.join(format!("{}.resolv.conf", pod.name()));
    let search = "default.svc.cluster.local svc.cluster.local cluster.local";
    std::fs::write(&file, format!("nameserver 10.96.0.53\nsearch {search}\noptions ndots:5\n"))?;
    let mut command = lab::with_file(pod, &file, "/etc/resolv.conf");
    command.arg("getent").args(arguments);
    let output = pod.output(command)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Longer than a proxy takes to notice another resolv.conf; the wait itself is for the event.
pub(crate) const LOOK: Duration = Duration::from_millis(200);
