//! Routing over replicas and links in memory.

mod fake;
mod lists;
mod reads;
mod watches;
mod writes;
