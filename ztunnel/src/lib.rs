//! The node proxy for ambient service mesh.

pub mod policy;
pub mod state;
