//! What a client sends, one line per request, for whoever wants to follow along: see [`super::Client::log_requests`].

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use http::Method;
use url::Url;

use super::transport::Response;
use crate::error::Result;

/// Lines kept until they are taken; of more the oldest are left out.
const MOST_LINES: usize = 10_000;

/// A request that has come to an end. Queries, headers and bodies are no part of it: they hold values and secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedRequest {
    method: Method,
    path: String,
    status: Option<u16>,
    latency: Duration,
    bytes_in: usize,
}

impl fmt::Display for LoggedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, path, status, latency, bytes_in } = self;
        write!(f, "{method} {path}: ")?;
        match status {
            Some(status) => write!(f, "status {status}")?,
            None => f.write_str("no answer")?,
        }
        write!(f, ", {:.3} ms, {bytes_in} bytes", latency.as_secs_f64() * 1e3)
    }
}

/// The lines since they were last taken.
#[derive(Debug, Default)]
pub(super) struct Journal(Mutex<Option<VecDeque<LoggedRequest>>>);

impl Journal {
    /// Begins or ends to keep lines.
    pub(super) fn keep(&self, on: bool) {
        let mut lines = self.lock();
        if on != lines.is_some() {
            *lines = on.then(VecDeque::new);
        }
    }

    /// A request came to an end after so long.
    pub(super) fn ended(&self, method: &Method, url: &Url, latency: Duration, outcome: &Result<Response>) {
        let mut lines = self.lock();
        let Some(lines) = lines.as_mut() else { return };
        if lines.len() == MOST_LINES {
            lines.pop_front();
        }
        lines.push_back(LoggedRequest {
            method: method.clone(),
            path: url.path().to_owned(),
            status: outcome.as_ref().ok().map(|response| response.status),
            latency,
            bytes_in: outcome.as_ref().map_or(0, |response| response.wire_bytes),
        });
    }

    /// Hands the lines over.
    pub(super) fn take(&self) -> Vec<LoggedRequest> {
        self.lock().as_mut().map(std::mem::take).unwrap_or_default().into()
    }

    fn lock(&self) -> MutexGuard<'_, Option<VecDeque<LoggedRequest>>> {
        self.0.lock().expect("no panic while it is held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn end(journal: &Journal, address: &str) {
        let url = Url::parse(address).expect("an address");
        let outcome = Err(Error::TimedOut { host: "acme".to_owned() });
        journal.ended(&Method::GET, &url, Duration::from_micros(1_500), &outcome);
    }

    #[test]
    fn a_line_holds_neither_query_nor_login() {
        let journal = Journal::default();
        journal.keep(true);
        end(&journal, "https://me:secret@acme.service-now.com/api/now/table/incident?sysparm_query=name=Joe");
        let lines: Vec<String> = journal.take().iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["GET /api/now/table/incident: no answer, 1.500 ms, 0 bytes"]);
        assert!(journal.take().is_empty());
    }

    #[test]
    fn nothing_is_kept_unless_it_is_wanted_and_never_without_end() {
        let journal = Journal::default();
        end(&journal, "https://acme/a");
        assert!(journal.take().is_empty());
        journal.keep(true);
        (0..=MOST_LINES).for_each(|n| end(&journal, &format!("https://acme/{n}")));
        journal.keep(true);
        let lines = journal.take();
        assert_eq!((lines.len(), lines[0].path.as_str()), (MOST_LINES, "/1"));
    }
}
