//! A name server that does as a test tells it, by the names that it is asked for.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record};
use lab::{Pod, Result, Task};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;

/// What it was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) octets: Vec<u8>,
    pub(crate) name: String,
    pub(crate) tcp: bool,
    pub(crate) from: SocketAddr,
}

/// On port 53 of a pod. Dropping it closes its sockets.
pub(crate) struct Resolver {
    asked: Arc<Mutex<Vec<Asked>>>,
    gate: watch::Sender<bool>,
    _task: Task<()>,
}

/// What it says, octet by octet, to a query: any number of messages.
type Script = fn(&Asked) -> Vec<Vec<u8>>;

impl Resolver {
    /// Queries whose first label is `held` wait for [`release`](Self::release).
    pub(crate) fn start(pod: &Pod, script: Script) -> Result<Self> {
        let (gate, closed) = watch::channel(false);
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let any = (Ipv6Addr::UNSPECIFIED, 53);
        let (udp, tcp) = pod.visit(|| (std::net::UdpSocket::bind(any), std::net::TcpListener::bind(any)))?;
        let (udp, tcp) = (udp?, tcp?);
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let seen = asked.clone();
        let task = pod.spawn(async move || {
            let script = Scripted { script, seen, closed };
            let (udp, tcp) = (Arc::new(UdpSocket::from_std(udp)?), TcpListener::from_std(tcp)?);
            let mut buffer = vec![0; 65_535];
            loop {
                tokio::select! {
                    received = udp.recv_from(&mut buffer) => {
                        let (length, from) = received?;
                        let (query, script, udp) = (buffer[..length].to_vec(), script.clone(), udp.clone());
                        tokio::task::spawn_local(async move {
                            for reply in script.reply(query, false, from).await {
                                drop(udp.send_to(&reply, from).await);
                            }
                        });
                    }
                    accepted = tcp.accept() => {
                        let (stream, from) = accepted?;
                        tokio::task::spawn_local(serve(stream, from, script.clone()));
                    }
                }
            }
        });
        Ok(Self { asked, gate, _task: task })
    }

    /// Everything that it was asked, in order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often it was asked for a name, by whatever transport.
    pub(crate) fn count(&self, name: &str) -> usize {
        self.asked().iter().filter(|asked| asked.name.eq_ignore_ascii_case(name)).count()
    }

    /// Lets queries go on that are held.
    pub(crate) fn release(&self) {
        self.gate.send_replace(true);
    }
}

#[derive(Clone)]
struct Scripted {
    script: Script,
    seen: Arc<Mutex<Vec<Asked>>>,
    closed: watch::Receiver<bool>,
}

impl Scripted {
    async fn reply(&self, octets: Vec<u8>, tcp: bool, from: SocketAddr) -> Vec<Vec<u8>> {
        let name = Message::from_vec(&octets).map(|query| query.queries[0].name.to_ascii());
        let asked = Asked { name: name.unwrap_or_default(), octets, tcp, from };
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
        if asked.name.starts_with("held.") {
            drop(self.closed.clone().wait_for(|open| *open).await);
        }
        (self.script)(&asked)
    }
}

async fn serve(mut stream: TcpStream, from: SocketAddr, script: Scripted) -> Result<()> {
    while let Ok(length) = stream.read_u16().await {
        let mut query = vec![0; usize::from(length)];
        stream.read_exact(&mut query).await?;
        for reply in script.reply(query, true, from).await {
            stream.write_u16(u16::try_from(reply.len())?).await?;
            stream.write_all(&reply).await?;
        }
    }
    Ok(())
}

/// A response to `asked` without records.
pub(crate) fn response(asked: &Asked) -> Message {
    let query = Message::from_vec(&asked.octets).expect("a proxy forwards only what it could read");
    let mut response = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    // As a server does that has the zone; the proxy has not.
    response.metadata.authoritative = true;
    response.add_queries(query.queries);
    response
}

/// A record of an address for the name asked for.
pub(crate) fn address(asked: &Asked, last: u8, ttl: u32) -> Record {
    let name = Name::from_ascii(&asked.name).expect("it was decoded");
    Record::from_rdata(name, ttl, RData::A(A::new(192, 0, 2, last)))
}

/// There is no such name, for so many seconds.
pub(crate) fn no_such_name(asked: &Asked, ttl: u32) -> Message {
    let mut response = response(asked);
    response.metadata.response_code = ResponseCode::NXDomain;
    let name = |text| Name::from_ascii(text).expect("a name");
    let soa = SOA::new(name("ns.example."), name("hostmaster.example."), 1, 2, 3, 4, ttl);
    response.add_authority(Record::from_rdata(name("example."), ttl, RData::SOA(soa)));
    response
}

/// The message in octets.
pub(crate) fn octets(message: &Message) -> Vec<Vec<u8>> {
    vec![message.to_vec().expect("a message that can be encoded")]
}
