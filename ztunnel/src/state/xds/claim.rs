//! Which addresses a rejected resource claims.

use std::sync::Arc;

use bytes::Bytes;
use xds_client::prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use xds_client::workload as wire;

use super::convert::{Converter, ServiceAddress, address, service_address};
use crate::state::model::{NetworkAddress, NetworkCidr};

/// Addresses that would have been understood, had the rest of the resource been.
///
/// A workload that is outside the mesh for certain claims nothing: it is reached in clear anyway.
#[derive(Debug, Default)]
pub(super) struct Claim {
    pub(super) vips: Vec<NetworkAddress>,
    pub(super) ranges: Vec<NetworkCidr>,
}

impl Claim {
    /// Reads as much as can be read of an `Address` message.
    pub(super) fn read(payload: &Bytes) -> Self {
        match nested(payload.clone()) {
            Some((1, message, there)) => {
                let (workload, read) = partial(message);
                Self::of_workload(workload, if there == Read::Whole { read } else { there })
            }
            Some((2, message, _)) => Self::of_service(&partial(message).0),
            _ => Self::default(),
        }
    }

    fn of_workload(workload: wire::Workload, read: Read) -> Self {
        // Fields that were not read may have said anything. Legacy mutual TLS is as good as none: nobody tunnels it.
        let outside = [wire::TunnelProtocol::None as i32, wire::TunnelProtocol::LegacyIstioMtls as i32];
        let is_plain = read == Read::Whole
            && workload.waypoint.is_none()
            && outside.contains(&workload.tunnel_protocol)
            && !workload.native_tunnel;
        if is_plain || workload.network_mode == wire::NetworkMode::HostNetwork as i32 {
            return Self::default();
        }
        let network: Arc<str> = workload.network.into();
        let addresses = workload.addresses.iter().filter_map(|bytes| address("addresses", bytes).ok());
        let vips = addresses.map(|address| NetworkAddress { network: network.clone(), address });
        Self { vips: vips.collect(), ranges: Vec::new() }
    }

    fn of_service(service: &wire::Service) -> Self {
        let mut claim = Self::default();
        let mut converter = Converter::default();
        for given in &service.addresses {
            match service_address(&mut converter, given) {
                Ok(ServiceAddress::Exact(vip)) => claim.vips.push(vip),
                Ok(ServiceAddress::Range(range)) => claim.ranges.push(range),
                Err(_) => {}
            }
        }
        claim
    }
}

/// The last workload or service in an `Address` message, not decoded: its field number, its bytes, and whether all of
/// them are there.
fn nested(mut bytes: Bytes) -> Option<(u32, Bytes, Read)> {
    let mut found = None;
    while !bytes.is_empty() {
        let Ok((tag, wire_type)) = decode_key(&mut bytes) else { break };
        if wire_type == WireType::LengthDelimited && matches!(tag, 1 | 2) {
            let Ok(length) = decode_varint(&mut bytes) else { break };
            // A message that is cut off is read as far as it goes.
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let there = if length <= bytes.len() { Read::Whole } else { Read::Partly };
            found = Some((tag, bytes.split_to(length.min(bytes.len())), there));
        } else if skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).is_err() {
            break;
        }
    }
    found
}

/// How much of a message could be decoded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    Whole,
    Partly,
}

/// The fields of a message before the first that cannot be decoded.
pub(super) fn partial<M: xds_client::prost::Message + Default>(bytes: Bytes) -> (M, Read) {
    let mut message = M::default();
    // What was merged before an error stays.
    let read = if message.merge(bytes).is_ok() { Read::Whole } else { Read::Partly };
    (message, read)
}
