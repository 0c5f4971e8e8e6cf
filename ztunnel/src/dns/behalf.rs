//! Lookups on behalf of a pod's application: what it would be answered if it asked itself.

use std::net::IpAddr;
use std::rc::Rc;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

use super::on_demand::{ResolveError, addresses_of};
use super::pod::{PodDns, Step};
use super::request::Transport;
use crate::state::route::Family;

/// A query for the address of a host, with the message that a stub resolver would send.
pub(super) struct AddressQuery {
    name: Name,
    octets: Vec<u8>,
}

impl AddressQuery {
    /// For the full `name`, with or without the final dot.
    ///
    /// # Errors
    /// It is no name.
    pub(super) fn new(name: &str, family: Family) -> Result<Self, ResolveError> {
        let mut name = Name::from_ascii(name).map_err(|_| ResolveError::Failed)?;
        name.set_fqdn(true);
        let kind = match family {
            Family::Ipv4 => RecordType::A,
            Family::Ipv6 => RecordType::AAAA,
        };
        let mut query = Message::query();
        query.metadata.op_code = OpCode::Query;
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(name.clone(), kind));
        let octets = query.to_vec().map_err(|_| ResolveError::Failed)?;
        Ok(Self { name, octets })
    }

    /// The first address of the answer that the applications of `pod` would get. Takes as long as name servers do, within
    /// bounds.
    ///
    /// # Errors
    /// The lookup failed, or the name has no such address.
    pub(super) async fn ask(&self, pod: &Rc<PodDns>) -> Result<IpAddr, ResolveError> {
        // A transport without a limit of length.
        let answer = match pod.look(&self.octets, Transport::Tcp) {
            Step::Reply(answer) => answer,
            Step::Wait(waiting) => pod.finish(&waiting).await,
            Step::Nothing => return Err(ResolveError::Failed),
        };
        let answer = Message::from_vec(&answer).map_err(|_| ResolveError::Failed)?;
        if answer.metadata.response_code != ResponseCode::NoError {
            return Err(ResolveError::Failed);
        }
        addresses_of(&answer, &self.name).into_iter().next().ok_or(ResolveError::Empty)
    }
}
