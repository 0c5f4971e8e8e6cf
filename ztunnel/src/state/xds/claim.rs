//! Which addresses a rejected resource claims.

use std::sync::Arc;

use bytes::Bytes;
use xds_client::prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use xds_client::workload as wire;

use super::convert::{Converter, ServiceAddress, address, service_address};
use crate::state::model::{NetworkAddress, NetworkCidr};

/// Addresses that would have been understood, had the rest of the resource been.
///
/// A workload outside the mesh claims nothing: it is reached in clear anyway.
#[derive(Debug, Default)]
pub(super) struct Claim {
    pub(super) vips: Vec<NetworkAddress>,
    pub(super) ranges: Vec<NetworkCidr>,
}

impl Claim {
    /// Reads as much as can be read of an `Address` message.
    pub(super) fn read(payload: &Bytes) -> Self {
        match nested(payload.clone()) {
            Some((1, message)) => Self::of_workload(partial(message)),
            Some((2, message)) => Self::of_service(&partial(message)),
            _ => Self::default(),
        }
    }

    fn of_workload(workload: wire::Workload) -> Self {
        let is_plain = workload.waypoint.is_none()
            && workload.tunnel_protocol != wire::TunnelProtocol::Hbone as i32
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

/// The last workload or service in an `Address` message, not decoded, with its field number.
fn nested(mut bytes: Bytes) -> Option<(u32, Bytes)> {
    let mut found = None;
    while !bytes.is_empty() {
        let Ok((tag, wire_type)) = decode_key(&mut bytes) else { break };
        if wire_type == WireType::LengthDelimited && matches!(tag, 1 | 2) {
            let Ok(length) = decode_varint(&mut bytes) else { break };
            // A message that is cut off is read as far as it goes.
            let length = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
            found = Some((tag, bytes.split_to(length)));
        } else if skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).is_err() {
            break;
        }
    }
    found
}

/// The fields of a message before the first that cannot be decoded.
fn partial<M: xds_client::prost::Message + Default>(bytes: Bytes) -> M {
    let mut message = M::default();
    // What was merged before the error stays, and that is all that is wanted.
    drop(message.merge(bytes));
    message
}
