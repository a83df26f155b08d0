//! Requests without a network, for tests that make very many of them or whose time is virtual.

use std::sync::Arc;

use bytes::Bytes;

use super::exchange::Request;
use super::pipeline::{self, Outcome};
use crate::instance::Instance;

/// A way to an instance that lies in the same process. It is treated like one that comes over a connection, but that
/// compression is up to the caller's headers and nothing is connected.
#[derive(Debug, Clone)]
pub struct Wire(pub(crate) Arc<Instance>);

/// The connection was reset, before an answer or within one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("connection reset on purpose")]
pub struct Reset;

impl Wire {
    /// Sends a request. Where a connection would stay open without an answer, there is none: the caller has to set a time
    /// limit. If the caller gives up, what was asked is carried out all the same.
    pub async fn call(&self, request: hyper::Request<Bytes>) -> Result<hyper::Response<Bytes>, Reset> {
        let (parts, body) = request.into_parts();
        let target = parts.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        let request = Request::new(parts.method.as_str(), &target, parts.headers, body);
        let instance = Arc::clone(&self.0);
        let handled = tokio::spawn(async move { pipeline::handle(&instance, request).await });
        match handled.await.map_err(|_| Reset)? {
            Outcome::Reset => Err(Reset),
            Outcome::Hang => std::future::pending().await,
            Outcome::Reply(reply) => {
                if let Some((piece, interval)) = reply.drip {
                    let pieces = u32::try_from(reply.body.len() / piece.max(1)).unwrap_or(u32::MAX);
                    tokio::time::sleep(interval.saturating_mul(pieces)).await;
                }
                if reply.truncate.is_some() { Err(Reset) } else { Ok(reply.with_body(reply.body.clone())) }
            }
        }
    }
}
