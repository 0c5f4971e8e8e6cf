//! The DNS proxy: real pods whose port 53 is redirected, and a scripted name server.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

mod answers;
mod forwarding;
mod hostile;
mod lifecycle;
mod on_demand;
mod resolver;
mod scene;
mod socks;
