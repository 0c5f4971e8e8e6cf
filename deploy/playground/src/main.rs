//! The `playground` command.

fn main() {}
