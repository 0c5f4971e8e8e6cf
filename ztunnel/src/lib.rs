//! The node proxy for ambient service mesh.
//!
//! One process per node. It opens sockets inside each enrolled pod's network namespace, decides where each
//! connection goes, carries it in mutual-TLS HBONE tunnels under SPIFFE identities, and enforces layer-4
//! authorization where it arrives.
//!
//! [`app`] wires the parts; [`proxy`] holds the stages of a connection; [`state`] what the mesh looks like; [`pods`]
//! which pods are ours; [`control_plane`] the channel to istiod; [`dns`] answers pods' queries; [`config`] what the operator asked for; [`metrics`] and
//! [`admin`] what operators see.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod control_plane;
pub mod dns;
pub mod http_server;
pub mod metrics;
pub mod pods;
pub mod policy;
pub mod proxy;
pub mod readiness;
pub mod rules;
pub mod shutdown;
pub mod state;
pub mod telemetry;
mod thread;
pub mod worker;
