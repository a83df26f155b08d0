//! The request log: what clients asked, for assertions. Secrets are never stored.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;

/// One request as it was logged.
#[derive(Debug, Clone, Serialize)]
pub struct LoggedRequest {
    /// The position in the log, counted from 1.
    pub seq: u64,
    /// When it came, by the virtual clock.
    pub at: DateTime<Utc>,
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The decoded query parameters; tokens and keys are blanked.
    pub query: Vec<(String, String)>,
    /// `table`, `stats`, `batch`, `oauth_token`, …
    pub endpoint: String,
    /// The table, if the path names one.
    pub table: Option<String>,
    /// The user name, once known.
    pub user: Option<String>,
    /// The status, 0 when the connection was reset or left hanging.
    pub status: u16,
    /// The bytes of the answer's body before compression.
    pub bytes: usize,
    /// How long it took, in ms.
    pub duration_ms: f64,
    /// How much of that it stood in the queue of the semaphore, in ms.
    pub sem_wait_ms: u64,
    /// The body of a write with secrets blanked; none for token calls.
    pub body: Option<Value>,
    /// It was an item of a batch.
    pub in_batch: bool,
    /// The faults that struck it.
    pub faults: Vec<String>,
}

impl LoggedRequest {
    /// A query parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// Totals per endpoint and table.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Counter {
    /// Requests.
    pub calls: u64,
    /// Answers of 400 and more, and connections without an answer.
    pub errors: u64,
    /// Bytes of the answers' bodies.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct State {
    requests: VecDeque<LoggedRequest>,
    counters: BTreeMap<String, Counter>,
    next: u64,
    connections: u64,
}

/// The log.
#[derive(Debug, Default)]
pub(crate) struct RequestLog {
    state: Mutex<State>,
}

impl RequestLog {
    /// Adds a request, forgetting the oldest past the capacity.
    pub(crate) fn push(&self, mut request: LoggedRequest, capacity: usize) {
        let mut state = self.state.lock();
        state.next += 1;
        request.seq = state.next;
        let key = match &request.table {
            Some(table) => format!("{} {} {table}", request.method, request.endpoint),
            None => format!("{} {}", request.method, request.endpoint),
        };
        let counter = state.counters.entry(key).or_default();
        counter.calls += 1;
        counter.errors += u64::from(request.status >= 400 || request.status == 0);
        counter.bytes += request.bytes as u64;
        state.requests.push_back(request);
        while state.requests.len() > capacity {
            state.requests.pop_front();
        }
    }

    /// Counts a connection.
    pub(crate) fn connected(&self) {
        self.state.lock().connections += 1;
    }

    /// The connections so far.
    pub(crate) fn connections(&self) -> u64 {
        self.state.lock().connections
    }

    /// The requests, oldest first.
    pub(crate) fn requests(&self) -> Vec<LoggedRequest> {
        self.state.lock().requests.iter().cloned().collect()
    }

    /// The totals per method, endpoint and table.
    pub(crate) fn counters(&self) -> BTreeMap<String, Counter> {
        self.state.lock().counters.clone()
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        let mut state = self.state.lock();
        state.requests.clear();
        state.counters.clear();
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["password", "secret", "token", "apikey", "api_key", "assertion", "session"]
        .iter()
        .any(|s| name.contains(s))
}

/// Query parameters with secrets blanked.
pub(crate) fn blank_query(query: &[(String, String)]) -> Vec<(String, String)> {
    query.iter().map(|(n, v)| (n.clone(), if is_secret(n) { "***".to_owned() } else { v.clone() })).collect()
}

/// A JSON body with secrets blanked, at any depth.
pub(crate) fn blank_body(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(k, v)| if is_secret(&k) { (k, Value::from("***")) } else { (k, blank_body(v)) })
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(blank_body).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_blanked_wherever_they_stand() {
        let body = serde_json::json!({"name": "x", "client_secret": "s3", "deep": [{"user_password": "p"}]});
        let text = blank_body(body).to_string();
        assert!(!text.contains("s3") && !text.contains("\"p\""), "{text}");
        let query = blank_query(&[("access_token".to_owned(), "t0".to_owned())]);
        assert_eq!(query[0].1, "***");
    }
}
