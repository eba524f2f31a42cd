//! Which nodes there are, which of them hosts what, and how one cluster comes to be.
//!
//! Everything here is pure: a value and what may become of it. [`state`] is the document that all nodes agree on,
//! [`change`] what operators and joiners do to it, [`plan`] how replicas move until it is balanced again, and
//! [`founding`] how nodes that know nothing but addresses agree on one cluster. Whoever drives them does the IO.

pub mod change;
pub mod founding;
pub mod plan;
pub mod state;
#[cfg(test)]
mod tests;
