//! The `fastpaca` binary.

fn main() {}
