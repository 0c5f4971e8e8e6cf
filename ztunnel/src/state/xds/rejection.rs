//! Why a resource of the control plane cannot be used.

use thiserror::Error;
use xds_client::prost::{DecodeError, UnknownEnumValue};

/// What is wrong with a resource, in the words that control planes of this mesh are used to. The control plane is at
/// fault, or newer than this proxy.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Rejection {
    /// Not a message of its type.
    #[error("decode: {0}")]
    Decode(#[from] DecodeError),
    /// Neither a workload nor a service.
    #[error("unknown address type")]
    AddressType,
    /// Neither IPv4 nor IPv6.
    #[error("{field}: failed to parse address, had {length} bytes")]
    AddressLength {
        /// Which field.
        field: &'static str,
        /// How many bytes it had.
        length: usize,
    },
    /// Not `namespace/hostname`.
    #[error("services: failed to parse namespaced hostname: {0}")]
    NamespacedHostname(String),
    /// A prefix longer than its address.
    #[error("addresses: invalid cidr: {0}")]
    Cidr(String),
    /// A value that is known, and not supported.
    #[error("unknown enum: {0}")]
    Unsupported(&'static str),
    /// A value that was not defined when this proxy was made.
    #[error("{field}: decode error: {value}")]
    UnknownValue {
        /// Which field.
        field: &'static str,
        /// The value.
        value: UnknownEnumValue,
    },
    /// A waypoint or network gateway that is nowhere.
    #[error("{field}: nonempty gateway address is missing address")]
    GatewayWithoutAddress {
        /// Which field.
        field: &'static str,
    },
}

/// Reads an enum field; a number that is not defined is an error that names `field`.
pub(super) fn known<T: TryFrom<i32, Error = UnknownEnumValue>>(
    field: &'static str,
    number: i32,
) -> Result<T, Rejection> {
    T::try_from(number).map_err(|value| Rejection::UnknownValue { field, value })
}
