//! What the two-node benchmark (`benches/two-node.rs`) is made of.
//!
//! ```text
//!   run         all paths opened, then measured in turns
//!   path        two nodes with a pod each, and what is between the pods: nothing, ztunnel, haproxy, nginx
//!   load        bulk transfer, requests, new connections: programs that know nothing of the proxies
//!   usage       CPU and memory of the proxies' processes, as the kernel counts them
//!   witness     proof from the proxies' logs that what was measured went through them
//!   figures     medians, ratios, spread
//!   report      table and JSON
//! ```

mod certificates;
pub mod driven;
mod figures;
mod held;
mod interrupt;
mod load;
pub mod mesh;
mod origin;
mod pair;
mod path;
mod programs;
mod report;
mod run;
mod usage;
mod witness;

pub use interrupt::Interrupt;
pub use path::Kind;
pub use report::Report;
pub use run::{BASE, Options, build_ztunnel, run};
