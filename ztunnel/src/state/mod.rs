//! What the proxy knows of the mesh, and the decisions that follow from it.
//!
//! [`model`] holds the values as the control plane describes them; [`Mesh`] is one consistent, immutable view of all of
//! them; [`MeshState`] publishes the current view to every thread. The decisions are pure functions over a view:
//! [`route`] for a connection that a local workload opens, [`inbound`] for one that arrives at a local workload,
//! [`balance`] for the choice of an endpoint. None of them does I/O or reads a clock.

pub mod avoided;
pub mod balance;
mod cow_list;
pub(crate) mod cow_map;
mod endpoints;
pub mod inbound;
mod intern;
mod mesh;
pub mod model;
mod publish;
pub mod route;
mod services;
pub mod static_config;
mod weighted_list;
mod workloads;
pub mod xds;

pub use endpoints::EndpointRef;
pub use intern::Interner;
pub use mesh::{Mesh, Owner, Removed};
pub use publish::MeshState;
pub use static_config::{StaticConfig, StaticConfigError};
