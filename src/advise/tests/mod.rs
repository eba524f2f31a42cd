//! Properties of plans, and the guides' worked examples.

mod properties;
mod seeds;
