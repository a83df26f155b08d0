//! Requests and answers, and the way from one to the other.

pub(crate) mod exchange;
pub(crate) mod gate;
pub(crate) mod pipeline;
pub(crate) mod server;
pub(crate) mod tls;
pub(crate) mod wire;
pub(crate) mod xml;

pub(crate) use exchange::{ApiError, Request, Response};
