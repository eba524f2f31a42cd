//! Bytes on the wire to domain values and back: JSON bodies, query parameters, entity tags.
//!
//! The only place that knows the names of JSON members and query parameters.

pub(crate) mod answer;
pub(crate) mod etag;
pub(crate) mod json;
pub(crate) mod query;
pub(crate) mod request;
pub(crate) mod shape;
pub(crate) mod time;
