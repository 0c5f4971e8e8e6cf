//! What holds whatever a pod asks and whatever a name server answers. Included by the fuzz target and by the corpus test.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ztunnel::config::Config;
use ztunnel::dns::{Client, Decoded, Request, Responder, Transport};
use ztunnel::state::model::Workload;
use ztunnel::state::{Mesh, StaticConfig};

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing was said.
    Ignored,
    /// It was refused.
    Refused,
    /// The mesh answered.
    Answered,
    /// It would be forwarded.
    Forwarded,
}

/// A cluster's mesh with a service, and one without virtual addresses.
fn world() -> &'static (Responder, Mesh, Vec<Arc<str>>) {
    static WORLD: OnceLock<(Responder, Mesh, Vec<Arc<str>>)> = OnceLock::new();
    WORLD.get_or_init(|| {
        let environment = [("LOCAL_XDS", "{}"), ("XDS_ADDRESS", "")];
        let environment: BTreeMap<_, _> =
            environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let responder = Responder::new(&Config::read(&environment).unwrap());
        let description = "
services:
- {name: web, namespace: ns, hostname: web.ns.svc.cluster.local, vips: [/10.0.0.1, '/fd00::1'], ports: {80: 80}}
- {name: any, namespace: ns, hostname: '*.example.com', vips: [/10.0.0.2], ports: {80: 80}}
- {name: none, namespace: ns, hostname: none.ns.svc.cluster.local, vips: [], ports: {80: 80}}
";
        let mut mesh = Mesh::new(None);
        StaticConfig::parse("world", description).unwrap().apply(&mut mesh);
        let search = responder.search_domains("ns");
        (responder, mesh, search)
    })
}

/// Takes a message of a pod; `answer` is what a name server says to it, if it is asked.
pub(crate) fn exchange(octets: &[u8], answer: &[u8], transport: Transport) -> Fate {
    let request = match Request::decode(octets, transport) {
        Decoded::Ignored => return Fate::Ignored,
        Decoded::Refused(reply) => {
            assert!(reply.len() >= 12 && reply[..2] == octets[..2] && reply[2] & 0x80 != 0);
            assert!(reply[3] & 0xf != 0 || reply[11] == 1, "no error: {reply:?}");
            return Fate::Refused;
        }
        Decoded::Request(request) => request,
    };
    let most = if transport == Transport::Udp { 65_507 } else { 65_535 };
    let (responder, mesh, search) = world();
    let workload = Workload { namespace: "ns".into(), ..Workload::default() };
    let relayed = request.relay(answer, Duration::from_secs(7));
    assert!(relayed.len() <= most.max(answer.len()));
    assert!(relayed[..2] == octets[..2]);
    match responder.answer(mesh, Client { workload: &workload, search }, &request) {
        None => Fate::Forwarded,
        Some(answer) => {
            assert!(answer.octets.len() <= most);
            assert!(answer.octets[..2] == octets[..2] && answer.octets[2] & 0x84 == 0x84);
            Fate::Answered
        }
    }
}
