//! The `ztunnel` command.

fn main() {}
