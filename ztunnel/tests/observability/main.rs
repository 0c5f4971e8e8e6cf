//! What operators and their tools see: the configuration dump, metrics, and the servers for both.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod admin_server;
mod certificates;
mod config_dump;
mod fixture;
mod http_client;
mod metrics;
