//! An east-west gateway: what is inside the outer tunnel it neither reads nor could read.

use std::net::SocketAddr;

use serde_json::Value;

use super::{Files, parts};

/// Where a gateway passes on what came in an outer tunnel.
#[derive(Clone, Debug)]
pub struct Forwarded {
    /// What the CONNECT asks for, to the letter: `hostname:port`.
    pub authority: String,
    /// Port 15008 of whoever terminates the inner tunnel.
    pub target: SocketAddr,
}

/// Listeners and clusters.
pub(super) fn resources(files: &Files, forwarded: &[Forwarded]) -> (Vec<Value>, Vec<Value>) {
    let mut hosts = Vec::new();
    let mut clusters = Vec::new();
    for entry in forwarded {
        let name = format!("outbound|{}", entry.authority);
        hosts.push(parts::terminated(&name, std::slice::from_ref(&entry.authority), &name));
        clusters.push(parts::cluster(&name, vec![parts::endpoint(entry.target)], None));
    }
    (vec![parts::connect_terminate(files, &hosts, Vec::new())], clusters)
}
