//! The transport of these tests: to an instance in the same process, so that there are many in a short time, and time can
//! be virtual.

use std::time::Duration;

use servicenow::Error;
use servicenow::client::transport::{Request, Response, Transport, host_of};
use servicenow_sim::{Simulator, Wire};
use tokio::task::yield_now;
use tokio::time::timeout;

/// See the module.
#[derive(Clone, Debug)]
pub struct Direct {
    wire: Wire,
    patience: Duration,
}

impl Direct {
    /// To an instance whose answers are waited for so long.
    pub fn to(sim: &Simulator, patience: Duration) -> Self {
        Self { wire: sim.wire(), patience }
    }
}

impl Transport for Direct {
    async fn send(&self, request: Request) -> servicenow::Result<Response> {
        let host = host_of(&request.url);
        let mut asked = http::Request::new(request.body.unwrap_or_default());
        *asked.method_mut() = request.method;
        *asked.uri_mut() = request.url.as_str().parse().expect("an address");
        *asked.headers_mut() = request.headers;
        // As over a network, there are moments in which a request or its answer is under way and the caller may end.
        yield_now().await;
        let answer = timeout(self.patience, self.wire.call(asked)).await;
        yield_now().await;
        match answer {
            Err(_) => Err(Error::TimedOut { host }),
            Ok(Err(reset)) => Err(Error::Broken { host, reason: reset.to_string() }),
            Ok(Ok(answer)) => {
                let (parts, body) = answer.into_parts();
                let (status, wire_bytes) = (parts.status.as_u16(), body.len());
                Ok(Response { status, headers: parts.headers, body, wire_bytes })
            }
        }
    }
}
