//! The queries of one pod: what is answered at once, what takes others, and how much may be under way.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::time::Instant;

use super::asker::{Answered, Asker};
use super::lookup::Client;
use super::request::{Decoded, Request, Transport};
use super::respond::{Answer, special};
use super::upstream::{AskError, Origin};
use super::wire;
use super::{Node, SearchDomains};
use crate::metrics::dns::{Forwarded, Limit, Source};
use crate::proxy::Pod;
use crate::state::model::Workload;

/// How long a pod's first queries wait for the mesh to know the pod.
const WORKLOAD_PATIENCE: Duration = Duration::from_secs(5);

/// Queries of one pod that may wait for others.
const MOST_WAITING: usize = 512;

/// Queries of all pods of the node that may wait for others. Each has a socket or shares one.
const MOST_WAITING_ON_NODE: usize = 4096;

/// Whose queries they are. For the thread of the DNS proxy.
pub(super) struct PodDns {
    pub(super) pod: Arc<Pod>,
    pub(super) node: Rc<Node>,
    asker: Rc<Asker>,
    waiting: Rc<()>,
    /// The search domains of the pod's namespace, unless those of the process are used.
    search: Arc<[Arc<str>]>,
    /// Whether the limit was told of; once in a while is enough.
    shedding: Cell<bool>,
}

/// What is to be done with a message from the pod.
pub(super) enum Step {
    /// Nothing.
    Nothing,
    /// Send this.
    Reply(Vec<u8>),
    /// Wait for [`PodDns::finish`], then send what it returns.
    Wait(Waiting),
}

/// A query that takes others, and its place among those.
pub(super) struct Waiting {
    request: Box<Request>,
    _pod: Rc<()>,
    _node: Rc<()>,
}

impl PodDns {
    pub(super) fn new(pod: Arc<Pod>, node: Rc<Node>) -> Rc<Self> {
        let origin = Origin { netns: pod.netns.clone(), mark: pod.connect.mark };
        let asker = Asker::new(pod.instance, origin, node.upstreams.clone());
        let search = node.responder.search_domains(&pod.workload.namespace).into();
        Rc::new(Self { asker, waiting: Rc::default(), search, shedding: Cell::default(), pod, node })
    }

    /// Looks at a message. Does everything that needs nobody else.
    pub(super) fn look(&self, octets: &[u8], transport: Transport) -> Step {
        let request = match Request::decode(octets, transport) {
            Decoded::Ignored => return Step::Nothing,
            Decoded::Refused(reply) => return Step::Reply(reply),
            Decoded::Request(request) => request,
        };
        let workload = self.workload();
        if let Some(workload) = &workload {
            let source = source_of(&request, Some(workload));
            if let Some(reply) = self.at_once(&request, workload, &source) {
                self.node.metrics.request(&source);
                return Step::Reply(reply);
            }
        }
        match self.place() {
            Some((pod, node)) => Step::Wait(Waiting { request, _pod: pod, _node: node }),
            None => {
                let source = source_of(&request, workload.as_deref());
                self.node.metrics.request(&source);
                log(
                    &request,
                    workload.as_deref(),
                    &format_args!("forwarding failed ({})", AskError::Shed),
                    0,
                );
                Step::Reply(request.error(ResponseCode::ServFail))
            }
        }
    }

    /// The answer to a query that had to wait. Takes as long as others take, which has bounds.
    pub(super) async fn finish(self: &Rc<Self>, waiting: &Waiting) -> Vec<u8> {
        let request = &waiting.request;
        let workload = match self.workload() {
            Some(workload) => Some(workload),
            None => self.wait_for_workload().await,
        };
        let source = source_of(request, workload.as_deref());
        self.node.metrics.request(&source);
        let Some(workload) = workload else {
            log(request, None, &"the mesh does not know the client", 0);
            return request.error(ResponseCode::ServFail);
        };
        // The mesh, or what is remembered, may have changed meanwhile.
        if let Some(reply) = self.at_once(request, &workload, &source) {
            return reply;
        }
        let began = Instant::now();
        let outcome = self.asker.ask(&request.octets, request.is_plain).await;
        self.forwarded(request, &workload, &source, outcome, began.elapsed())
    }

    /// The answer of the mesh, of rules that always hold, or that somebody gave before.
    fn at_once(&self, request: &Request, workload: &Workload, source: &Source) -> Option<Vec<u8>> {
        let search = match self.node.search {
            SearchDomains::OfThePod => self.search.clone(),
            SearchDomains::OfTheProcess => self.node.upstreams.conf.borrow().search.clone(),
        };
        let client = Client { workload, search: &search };
        let answer = self.node.responder.answer(&self.node.mesh.load(), client, request);
        if let Some(Answer { octets, result, addresses }) = answer {
            log(request, Some(workload), &result, addresses);
            return Some(octets);
        }
        if let Some(octets) = special(request) {
            log(request, Some(workload), &"special name", 0);
            return Some(octets);
        }
        let known = self.asker.known(&request.octets).filter(|_| request.is_plain)?;
        self.node.metrics.cache_hit();
        Some(self.forwarded(request, workload, source, Ok(known), Duration::ZERO))
    }

    /// Counts, logs, and makes an answer of somebody else's ours.
    fn forwarded(
        &self,
        request: &Request,
        workload: &Workload,
        source: &Source,
        outcome: Result<Answered, AskError>,
        took: Duration,
    ) -> Vec<u8> {
        match outcome {
            Ok(Answered { octets, age }) => {
                let answers = wire::contents(&octets).map_or(0, |contents| contents.answers);
                let outcome = Forwarded::of_answer(wire::rcode(&octets), answers);
                self.node.metrics.forwarded(source, outcome, took);
                match outcome {
                    Forwarded::Records => log(request, Some(workload), &"forwarded", answers),
                    failed => {
                        let failed = format_args!("forwarding failed ({})", failed.label());
                        log(request, Some(workload), &failed, 0);
                    }
                }
                request.relay(&octets, age)
            }
            Err(error) => {
                self.node.metrics.forwarded(source, of_error(error), took);
                log(request, Some(workload), &format_args!("forwarding failed ({error})"), 0);
                request.error(ResponseCode::ServFail)
            }
        }
    }

    fn workload(&self) -> Option<Arc<Workload>> {
        let name = &self.pod.workload;
        let mesh = self.node.mesh.load();
        mesh.local_workload(&name.name, &name.namespace, &name.service_account).cloned()
    }

    async fn wait_for_workload(&self) -> Option<Arc<Workload>> {
        let name = &self.pod.workload;
        let mesh = &self.node.mesh;
        mesh.wait_for_workload(&name.name, &name.namespace, &name.service_account, WORKLOAD_PATIENCE).await
    }

    /// A place among the queries that wait, if there is one.
    fn place(&self) -> Option<(Rc<()>, Rc<()>)> {
        let limit = if Rc::strong_count(&self.waiting) > MOST_WAITING {
            Limit::Pod
        } else if Rc::strong_count(&self.node.waiting) > MOST_WAITING_ON_NODE {
            Limit::Node
        } else {
            self.shedding.set(false);
            return Some((self.waiting.clone(), self.node.waiting.clone()));
        };
        self.node.metrics.shed(limit);
        if !self.shedding.replace(true) {
            let pod = format_args!("{}/{}", self.pod.workload.namespace, self.pod.workload.name);
            tracing::warn!(%pod, limit = limit.label(), "DNS queries are refused: too many wait for name servers");
        }
        None
    }
}

fn of_error(error: AskError) -> Forwarded {
    match error {
        AskError::TimedOut => Forwarded::TimedOut,
        AskError::NoServers | AskError::Unreachable(_) | AskError::Malformed | AskError::Shed => {
            Forwarded::Unreachable
        }
    }
}

fn source_of(request: &Request, workload: Option<&Workload>) -> Source {
    Source::new(request.kind(), request.transport, workload)
}

/// The access log of DNS.
fn log(
    request: &Request,
    workload: Option<&Workload>,
    result: &(impl std::fmt::Display + ?Sized),
    endpoints: usize,
) {
    tracing::event!(
        target: "dns",
        tracing::Level::DEBUG,
        "src.workload" = workload.map_or("unknown", |workload| &*workload.name),
        "src.namespace" = workload.map_or("unknown", |workload| &*workload.namespace),
        "query" = display(request.kind()),
        "domain" = display(request.owner()),
        "result" = display(result),
        "endpoints" = endpoints,
    );
}
