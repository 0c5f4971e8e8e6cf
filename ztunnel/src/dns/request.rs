//! A client's request, and the answers that are made here.

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::wire::{self, HEADER};

/// What a request came by.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Transport {
    /// One datagram.
    Udp,
    /// A message with its length in front (RFC 1035 section 4.2.2).
    Tcp,
}

impl Transport {
    /// In logs and metrics.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// The largest datagram that is read, which is what our OPT records say; answers are as large as the client allows.
pub(crate) const LARGEST_REQUEST: u16 = 4096;

/// What a UDP client takes that says nothing of it (RFC 1035 section 4.2.1), and the least that one can say.
const LEAST_PAYLOAD: usize = 512;

/// The most that fits a datagram over IPv4.
const MOST_PAYLOAD: usize = 65_507;

/// Octets of an address record, at least: a pointer to the name, type, class, lifetime, length, address.
const SHORTEST_ADDRESS: usize = 16;

/// What to do with what a client sent.
#[derive(Debug)]
pub enum Decoded {
    /// Nothing: no request, or none that could be answered.
    Ignored,
    /// Answer that it cannot be served.
    Refused(Vec<u8>),
    /// A query with one question.
    Request(Box<Request>),
}

/// A query with one question.
#[derive(Debug)]
pub struct Request {
    /// The message, up to the end of its last record.
    pub(super) octets: Vec<u8>,
    pub(super) transport: Transport,
    message: Message,
    question: Query,
    text: Option<String>,
    /// It consists of a question and at most an OPT record, so that equal ones get equal answers.
    pub(super) is_plain: bool,
}

impl Request {
    /// Reads what a client sent.
    pub fn decode(octets: &[u8], transport: Transport) -> Decoded {
        if octets.len() < HEADER || wire::is_response(octets) {
            return Decoded::Ignored;
        }
        if wire::opcode(octets) != u8::from(OpCode::Query) {
            return Decoded::Refused(bare(octets, ResponseCode::NotImp));
        }
        let malformed = || Decoded::Refused(bare(octets, ResponseCode::FormErr));
        let Some(contents) = wire::contents(octets) else { return malformed() };
        let Some(octets) = octets.get(..contents.end) else { return malformed() };
        let Ok(message) = Message::from_vec(octets) else { return malformed() };
        let [question] = &*message.queries else { return malformed() };
        let is_plain = message.answers.is_empty()
            && message.authorities.is_empty()
            && message.additionals.is_empty()
            && message.signature.is_none();
        let request = Self {
            octets: octets.to_vec(),
            transport,
            question: question.clone(),
            text: text_of(&question.name),
            is_plain,
            message,
        };
        if request.message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Decoded::Refused(request.error(ResponseCode::BADVERS));
        }
        Decoded::Request(Box::new(request))
    }

    /// The name asked for, in lower case and without the final dot. `None` when it holds octets that no hostname does.
    pub(crate) fn name(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// The name as it was asked for.
    pub(crate) fn owner(&self) -> &Name {
        &self.question.name
    }

    /// The type asked for.
    pub(crate) fn kind(&self) -> RecordType {
        self.question.query_type
    }

    /// Whether it asks about the Internet's names.
    pub(crate) fn is_internet(&self) -> bool {
        matches!(self.question.query_class, DNSClass::IN | DNSClass::ANY)
    }

    /// The largest answer that the client takes, in octets.
    pub(crate) fn limit(&self) -> usize {
        match self.transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => {
                let told = self.message.edns.as_ref().map(|edns| usize::from(edns.max_payload()));
                told.unwrap_or(LEAST_PAYLOAD).clamp(LEAST_PAYLOAD, MOST_PAYLOAD)
            }
        }
    }

    /// An answer without records that tells of an error.
    pub(crate) fn error(&self, code: ResponseCode) -> Vec<u8> {
        self.encode(self.response(code))
    }

    /// The beginning of every answer made here: what is copied from the request, and that recursion is available.
    pub(crate) fn response(&self, code: ResponseCode) -> Message {
        let mut response = Message::response(self.message.metadata.id, OpCode::Query);
        response.metadata.recursion_desired = self.message.metadata.recursion_desired;
        response.metadata.checking_disabled = self.message.metadata.checking_disabled;
        response.metadata.recursion_available = true;
        response.metadata.response_code = code;
        response.add_query(self.question.clone());
        if let Some(asked) = &self.message.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(LARGEST_REQUEST);
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            response.set_edns(edns);
        }
        response
    }

    /// Makes the answer of a server, which came `age` ago, one of ours: with the client's id, flags and spelling, lifetimes
    /// as they are now, in the size that the client takes. Everything else stays as it is, whatever it holds.
    pub fn relay(&self, answer: &[u8], age: Duration) -> Vec<u8> {
        let question_end = wire::question_end(&self.octets);
        let Some(end) = question_end.filter(|_| wire::same_question(&self.octets, answer)) else {
            // An error without the question.
            return self.error(ResponseCode::from(0, wire::rcode(answer)));
        };
        let mut answer = answer.to_vec();
        wire::set_id(&mut answer, self.message.metadata.id);
        wire::own_flags(&mut answer, self.message.metadata.recursion_desired);
        if let (Some(to), Some(from)) = (answer.get_mut(HEADER..end), self.octets.get(HEADER..end)) {
            to.copy_from_slice(from);
        }
        wire::age(&mut answer, u32::try_from(age.as_secs()).unwrap_or(u32::MAX));
        wire::truncate(&mut answer, self.limit());
        answer
    }

    /// The message in octets, as many records of it as fit.
    pub(crate) fn encode(&self, response: Message) -> Vec<u8> {
        match response.to_vec() {
            Ok(mut octets) => {
                wire::truncate(&mut octets, self.limit());
                octets
            }
            Err(error) => {
                tracing::debug!(%error, "an answer cannot be encoded");
                bare(&self.octets, ResponseCode::ServFail)
            }
        }
    }

    /// The message in octets, with an address record for each of `addresses` that fits. It holds a CNAME record, which
    /// leads to their owner, or nothing.
    pub(crate) fn encode_with(&self, mut response: Message, ttl: u32, addresses: Vec<IpAddr>) -> Vec<u8> {
        let edns = response.edns.take();
        let mut octets = match response.to_vec() {
            Ok(octets) => octets,
            Err(_) => return self.error(ResponseCode::ServFail),
        };
        // One more than fits, so that it shows when some do not.
        let fitting = self.limit() / SHORTEST_ADDRESS + 1;
        wire::add_addresses(&mut octets, ttl, addresses.into_iter().take(fitting));
        if let Some(edns) = edns {
            wire::add_opt(&mut octets, edns.max_payload(), edns.flags().dnssec_ok);
        }
        wire::truncate(&mut octets, self.limit());
        octets
    }
}

/// A record of an address.
pub(crate) fn address_record(owner: Name, ttl: u32, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(owner, ttl, data)
}

/// A header that answers the one at the start of `octets`, without even the question.
fn bare(octets: &[u8], code: ResponseCode) -> Vec<u8> {
    let id = wire::u16_at(octets, 0).unwrap_or_default();
    let mut response = Message::new(id, MessageType::Response, OpCode::from_u8(wire::opcode(octets)));
    response.metadata.recursion_desired = wire::recursion_desired(octets);
    response.metadata.checking_disabled = octets.get(3).is_some_and(|flags| flags & 0x10 != 0);
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    // A header can always be encoded; without it there would be no answer, which is no harm.
    response.to_vec().unwrap_or_default()
}

/// A hostname in lower case. `None` for names with other octets in them, such as a dot inside a label: as text they could
/// be taken for names that they are not.
fn text_of(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        for octet in label {
            match octet {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'*' => {
                    text.push(char::from(octet.to_ascii_lowercase()));
                }
                _ => return None,
            }
        }
    }
    (!text.is_empty()).then_some(text)
}
