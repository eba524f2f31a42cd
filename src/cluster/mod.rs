//! Which nodes there are, which of them hosts what, and how one cluster comes to be.
//!
//! What is decided is pure, a value and what may become of it: [`state`] is the document that all nodes agree on,
//! [`change`] what operators and joiners do to it, [`plan`] how replicas move until it is balanced again, and
//! [`founding`] how nodes that know nothing but addresses agree on one cluster.
//!
//! The rest drives that: `service` has the loops, `discovery` and `meeting` find others and found or join, `keeper` brings
//! this node to what the state says, `leading` plans where the meta group is led, `document` reads and writes the state,
//! `calls` and `answers` are what nodes say to each other, `control` is what operators see and change, `durable` is what a
//! node remembers by itself, `marks` tells data from the past, and `share` whether a node has all it is to have.

mod answers;
mod calls;
pub mod change;
mod control;
mod discovery;
mod document;
mod durable;
pub mod founding;
mod keeper;
mod leading;
mod marks;
mod meeting;
pub mod plan;
mod service;
mod share;
pub mod state;
#[cfg(test)]
mod tests;

pub use self::durable::DurableFile;
pub use self::marks::remember as remember_marks;
pub use self::service::{Cluster, ClusterSettings, Parts};
