//! SPIFFE identities, certificates and the TLS configurations made from them.

mod spiffe;

pub use spiffe::{SpiffeId, SpiffeIdError};
