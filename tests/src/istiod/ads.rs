//! `DeltaAggregatedResources`: one task per stream.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream as FuturesStream, StreamExt as _};
use http::HeaderMap;
use tokio::sync::mpsc;
use tonic::{Code, Request, Response, Status, Streaming};
use xds_client::ResourceType;
use xds_client::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use xds_client::prost::Message as _;

use super::admission::{Caller, check_node};
use super::session::{Call, Session};
use super::shared::{Answered, Command, Demand, FirstRequest, Refusal, Shared, Stream};

/// The path of the call.
pub(super) const PATH: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// The service, for one call.
pub(super) struct AggregatedDiscovery(pub(super) Arc<Shared>);

type Responses = Pin<Box<dyn FuturesStream<Item = Result<Bytes, Status>> + Send>>;
type Opened = Result<Response<Responses>, Status>;

impl tonic::server::StreamingService<Bytes> for AggregatedDiscovery {
    type Response = Bytes;
    type ResponseStream = Responses;
    type Future = Pin<Box<dyn Future<Output = Opened> + Send>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let opened = open(&shared, request).await;
            if let Err(status) = opened.as_ref()
                && status.code() != Code::Ok
            {
                shared.change(|state| state.log.refusals.push(Refusal::new(PATH, status)));
            }
            opened
        })
    }
}

impl Refusal {
    pub(super) fn new(path: &'static str, status: &Status) -> Self {
        Self { path, code: status.code(), message: status.message().to_owned() }
    }
}

/// Begins to serve a stream. Like istiod, it sends no headers before the first message, so it returns with that.
async fn open(shared: &Arc<Shared>, request: Request<Streaming<Bytes>>) -> Opened {
    let headers = request.metadata().clone().into_headers();
    let caller = {
        let state = shared.state();
        if let Some((code, message)) = &state.refuse {
            return Err(Status::new(*code, message.clone()));
        }
        state.admission.authenticate(&headers)?
    };
    let (responses, mut outgoing) = mpsc::unbounded_channel();
    let stream = ServedStream {
        shared: Arc::clone(shared),
        caller,
        headers,
        number: None,
        responses,
        waiting: VecDeque::new(),
    };
    // It ends with the stream that its responses go into.
    tokio::spawn(stream.serve(request.into_inner()));
    let first = outgoing.recv().await;
    let first = first.unwrap_or_else(|| Err(Status::ok("the client left")))?;
    let rest = futures_util::stream::poll_fn(move |context| outgoing.poll_recv(context));
    Ok(Response::new(Box::pin(futures_util::stream::iter([Ok(first)]).chain(rest))))
}

/// A stream's task.
struct ServedStream {
    shared: Arc<Shared>,
    caller: Caller,
    headers: HeaderMap,
    /// None until the first request has been accepted.
    number: Option<u64>,
    responses: mpsc::UnboundedSender<Result<Bytes, Status>>,
    /// In the order in which they came up.
    waiting: VecDeque<(ResourceType, Due)>,
}

/// A response that has to be made.
enum Due {
    First(Box<DeltaDiscoveryRequest>),
    Demanded(Vec<String>),
    Pushed(Arc<std::collections::BTreeSet<String>>, u64),
}

/// Why a stream ends: with this status, if any.
type Over = Option<Status>;

impl ServedStream {
    async fn serve(mut self, mut requests: Streaming<Bytes>) {
        let (commands, mut queue) = mpsc::unbounded_channel();
        let over = loop {
            let step = tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(bytes)) => self.request(&bytes, &commands),
                    Ok(None) => Err(None),
                    Err(status) => Err(Some(as_go_does(status))),
                },
                command = queue.recv() => match command {
                    Some(command) => self.command(command),
                    None => Err(None),
                },
                () = self.responses.closed() => Err(None),
            };
            if let Err(over) = step {
                break over;
            }
            self.respond();
        };
        if let Some(status) = over {
            // Nobody may be there to read it.
            let _ = self.responses.send(Err(status));
        }
    }

    fn request(&mut self, bytes: &Bytes, commands: &mpsc::UnboundedSender<Command>) -> Result<(), Over> {
        let request = DeltaDiscoveryRequest::decode(bytes.clone())
            .map_err(|error| Some(Status::internal(error.to_string())))?;
        let number = match self.number {
            Some(number) => number,
            None => self.register(&request, commands)?,
        };
        let Some(kind) = ResourceType::from_url(&request.type_url) else {
            // An answer to a response of a strange type, which only a script sends.
            return if request.response_nonce.is_empty() {
                Err(Some(Status::invalid_argument(format!("unknown type {}", request.type_url))))
            } else {
                Ok(())
            };
        };
        let due = self.shared.change(|state| {
            let stream = state.streams.get_mut(&number)?;
            let proxy = stream.proxy.pod.clone();
            match stream.session.receive(kind, request) {
                Call::First(request) => {
                    let headers = text_headers(&self.headers);
                    let bytes = bytes.len();
                    let first = FirstRequest {
                        stream: number,
                        proxy,
                        kind,
                        request: (*request).clone(),
                        bytes,
                        headers,
                    };
                    state.log.first_requests.push(first);
                    Some(Due::First(request))
                }
                Call::Demand(names) => {
                    state.log.demands.push(Demand { proxy, names: names.clone() });
                    Some(Due::Demanded(names))
                }
                Call::Answer { nonce, answer, newest } => {
                    let answered = Answered { stream: number, proxy, kind, nonce, answer, newest };
                    state.log.answers.push(answered);
                    None
                }
                Call::Nothing => None,
            }
        });
        self.waiting.extend(due.map(|due| (kind, due)));
        Ok(())
    }

    /// Checks who the client is, which it tells with its first request only.
    fn register(
        &mut self,
        request: &DeltaDiscoveryRequest,
        commands: &mpsc::UnboundedSender<Command>,
    ) -> Result<u64, Over> {
        let proxy = check_node(request.node.as_ref(), &self.caller).map_err(Some)?;
        let number = self.shared.change(|state| {
            state.stream_count += 1;
            let number = state.stream_count;
            let session = Session::new(number, &proxy.node);
            state.streams.insert(number, Stream { proxy, session, commands: commands.clone() });
            number
        });
        self.number = Some(number);
        Ok(number)
    }

    fn command(&mut self, command: Command) -> Result<(), Over> {
        match command {
            Command::Push { kind, touched, revision } => {
                self.waiting.push_back((kind, Due::Pushed(touched, revision)));
            }
            Command::Send(bytes) => self.send(bytes),
            Command::Resume => {}
            Command::Close(status) => return Err((status.code() != Code::Ok).then_some(status)),
        }
        Ok(())
    }

    /// Makes every response that is due and not held.
    fn respond(&mut self) {
        for (kind, due) in std::mem::take(&mut self.waiting) {
            let response = {
                let mut state = self.shared.state();
                if state.held.contains(&kind) {
                    self.waiting.push_back((kind, due));
                    continue;
                }
                self.make(&mut state, kind, due)
            };
            if let Some(response) = response {
                self.send(response.encode_to_vec().into());
            }
        }
        // A push may have concerned nobody, which some wait for.
        self.shared.change(|_| ());
    }

    fn make(
        &self,
        state: &mut super::shared::State,
        kind: ResourceType,
        due: Due,
    ) -> Option<DeltaDiscoveryResponse> {
        let current = state.revision_of(kind);
        let stream = state.streams.get_mut(&self.number?)?;
        let (session, world) = (&mut stream.session, &state.world);
        match due {
            Due::First(request) => Some(session.first(kind, &request, world, current)),
            Due::Demanded(names) => Some(session.demanded(kind, &names, world)),
            // The first response, made later than this push, had it in it already.
            Due::Pushed(_, revision)
                if session.subscription(kind).is_some_and(|known| known.revision >= revision) =>
            {
                None
            }
            Due::Pushed(touched, revision) => session.push(kind, &touched, world, revision),
        }
    }

    fn send(&self, bytes: Bytes) {
        // The client may have left, which the loop notices.
        let _ = self.responses.send(Ok(bytes));
    }
}

impl Drop for ServedStream {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.shared.change(|state| state.streams.remove(&number));
        }
    }
}

/// The code that istiod's gRPC library gives to a request beyond the size limit.
fn as_go_does(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => Status::resource_exhausted(status.message()),
        _ => status,
    }
}

fn text_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let texts =
        headers.iter().filter_map(|(key, value)| Some((key.to_string(), value.to_str().ok()?.to_owned())));
    texts.collect()
}
