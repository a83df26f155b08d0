//! Faults on demand: which requests go wrong, and how (facts §3, §12).

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::query::plan::mix;

/// How a page that ran into the 60-second quota ends (facts §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// `],"error":{…},"status":"failure"}` after the rows that fit.
    Error,
    /// A dangling comma before `]`.
    DanglingComma,
    /// The text just stops.
    Broken,
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Effect {
    /// 202 with an empty body: the request is discarded, not queued (facts §3).
    Discard,
    /// 429 of a rate limit rule or, without headers, of the request queue.
    RateLimited {
        /// With `X-RateLimit-*` and `Retry-After`.
        headers: bool,
        /// The `Retry-After` in seconds.
        #[serde(default)]
        retry_after: Option<u64>,
        /// With the JSON envelope; the queue's own 429 has sometimes none.
        #[serde(default)]
        json: bool,
    },
    /// Any status, as JSON envelope or HTML page.
    Status {
        /// The status.
        status: u16,
        /// An HTML page instead of the envelope.
        #[serde(default)]
        html: bool,
    },
    /// 200 with the literal body `null`; the request is handled.
    NullBody,
    /// 200 with an empty body; the request is handled.
    EmptyBody,
    /// 200 with the hibernation page.
    Hibernating,
    /// 200 with a login page, as after an SSO redirect.
    LoginPage,
    /// 200 with some rows, then an error (facts §3, transaction cancelled).
    Cut {
        /// The rows that are still there.
        rows: usize,
        /// How the body ends.
        cut: Cut,
    },
    /// The connection is reset before the request is handled.
    ResetBefore,
    /// The request is carried out, then the connection is reset.
    ResetAfter,
    /// No answer ever comes; the request is not handled.
    Hang,
    /// The request is carried out and no answer ever comes.
    HangAfter,
    /// The body comes in small pieces.
    Drip {
        /// Bytes per piece.
        bytes: usize,
        /// Time between pieces, in ms.
        interval_ms: u64,
    },
    /// The body stops half-way and the connection is reset.
    Truncate {
        /// The bytes that still come.
        bytes: usize,
    },
    /// All access tokens expire before the request is handled.
    ExpireTokens,
    /// 401, whatever the credentials.
    Unauthorized,
    /// The request takes longer.
    Delay {
        /// Time added, in ms.
        ms: u64,
    },
    /// 200 with a body of the caller's own.
    Body {
        /// The body, in hexadecimal digits where it is no text.
        text: String,
        /// Whether it is hexadecimal digits.
        #[serde(default)]
        hex: bool,
    },
    /// 200 with a page that does not end: a string of so many bytes.
    Endless {
        /// The size, in bytes, after decompression.
        bytes: usize,
    },
    /// So many headers besides the usual ones.
    Headers {
        /// How many.
        count: usize,
        /// How long each is, in bytes.
        bytes: usize,
    },
    /// The transaction is cancelled before anything is sent: an error with a status of its own.
    Cancelled,
}

/// A fault: what goes wrong and for which requests. Unset conditions match everything.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fault {
    /// What goes wrong.
    pub effect: Effect,
    /// Only requests with this method.
    #[serde(default)]
    pub method: Option<String>,
    /// Only requests on this table.
    #[serde(default)]
    pub table: Option<String>,
    /// Only requests whose path and query match this regular expression; a text that is none is taken literally.
    #[serde(default)]
    pub path: Option<String>,
    /// Strikes the items of batches instead of requests. An item that would be reset or hang is left out of the
    /// answer of its batch.
    #[serde(default)]
    pub in_batch: bool,
    /// Only every n-th matching request, the first being number 1 of each n.
    #[serde(default)]
    pub every: Option<u64>,
    /// Let this many matching requests pass first.
    #[serde(default)]
    pub after: u64,
    /// Only with this probability, decided by the seed.
    #[serde(default)]
    pub probability: Option<f64>,
    /// Strike at most this often.
    #[serde(default)]
    pub times: Option<u64>,
}

impl Fault {
    /// A fault that strikes every request.
    pub fn new(effect: Effect) -> Self {
        Self {
            effect,
            method: None,
            table: None,
            path: None,
            in_batch: false,
            every: None,
            after: 0,
            probability: None,
            times: None,
        }
    }

    /// The same fault for one method only.
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// The same fault for one table only.
    pub fn table(mut self, table: &str) -> Self {
        self.table = Some(table.to_owned());
        self
    }

    /// The same fault for paths that match a regular expression only.
    pub fn path(mut self, pattern: &str) -> Self {
        self.path = Some(pattern.to_owned());
        self
    }

    /// The same fault for the items of batches.
    pub fn in_batch(mut self) -> Self {
        self.in_batch = true;
        self
    }

    /// The same fault, striking at most `times` requests.
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// The same fault, letting the first `after` matching requests pass.
    pub fn after(mut self, after: u64) -> Self {
        self.after = after;
        self
    }

    /// The same fault, striking each matching request with a probability.
    pub fn probability(mut self, probability: f64) -> Self {
        self.probability = Some(probability);
        self
    }
}

/// Names a fault so that it can be taken away again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FaultId(pub u64);

#[derive(Debug)]
struct Armed {
    id: FaultId,
    fault: Fault,
    path: Option<Regex>,
    seen: u64,
    struck: u64,
}

/// The faults in force.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    armed: Mutex<Vec<Armed>>,
    next: AtomicU64,
}

impl Faults {
    /// Adds a fault.
    pub(crate) fn add(&self, fault: Fault) -> FaultId {
        let path =
            fault.path.as_deref().and_then(|p| Regex::new(p).or_else(|_| Regex::new(&regex::escape(p))).ok());
        let id = FaultId(self.next.fetch_add(1, Ordering::Relaxed));
        self.armed.lock().push(Armed { id, fault, path, seen: 0, struck: 0 });
        id
    }

    /// Takes a fault away; true when it was there.
    pub(crate) fn remove(&self, id: FaultId) -> bool {
        let mut armed = self.armed.lock();
        let before = armed.len();
        armed.retain(|a| a.id != id);
        armed.len() < before
    }

    /// Takes all faults away.
    pub(crate) fn clear(&self) {
        self.armed.lock().clear();
    }

    /// How often a fault struck.
    pub(crate) fn struck(&self, id: FaultId) -> u64 {
        self.armed.lock().iter().find(|a| a.id == id).map_or(0, |a| a.struck)
    }

    /// The effects that a request meets, in the order in which the faults were added.
    pub(crate) fn strike(
        &self,
        seed: u64,
        method: &str,
        table: Option<&str>,
        target: &str,
        in_batch: bool,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        for armed in self.armed.lock().iter_mut() {
            let fault = &armed.fault;
            let matches = fault.in_batch == in_batch
                && fault.method.as_deref().is_none_or(|m| m.eq_ignore_ascii_case(method))
                && fault.table.as_deref().is_none_or(|t| Some(t) == table)
                && armed.path.as_ref().is_none_or(|p| p.is_match(target));
            if !matches {
                continue;
            }
            armed.seen += 1;
            if armed.seen <= fault.after || fault.times.is_some_and(|t| armed.struck >= t) {
                continue;
            }
            if fault.every.is_some_and(|n| n > 1 && (armed.seen - fault.after - 1) % n != 0) {
                continue;
            }
            let chance = mix(seed ^ armed.id.0.rotate_left(32) ^ armed.seen) as f64 / u64::MAX as f64;
            if fault.probability.is_some_and(|p| chance >= p) {
                continue;
            }
            armed.struck += 1;
            effects.push(fault.effect.clone());
        }
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strikes(fault: Fault, n: usize) -> Vec<bool> {
        let faults = Faults::default();
        faults.add(fault);
        (0..n)
            .map(|_| {
                !faults.strike(7, "GET", Some("incident"), "/api/now/table/incident?x=1", false).is_empty()
            })
            .collect()
    }

    #[test]
    fn a_fault_strikes_as_often_as_it_was_told() {
        assert_eq!(strikes(Fault::new(Effect::Discard).times(2), 4), [true, true, false, false]);
        assert_eq!(strikes(Fault::new(Effect::Discard).after(1).times(1), 3), [false, true, false]);
        let every = Fault { every: Some(3), ..Fault::new(Effect::Discard) };
        assert_eq!(strikes(every, 5), [true, false, false, true, false]);
    }

    #[test]
    fn a_fault_keeps_to_its_method_table_and_path() {
        assert_eq!(strikes(Fault::new(Effect::Discard).method("post"), 1), [false]);
        assert_eq!(strikes(Fault::new(Effect::Discard).table("problem"), 1), [false]);
        assert_eq!(strikes(Fault::new(Effect::Discard).path("x=\\d"), 1), [true]);
        assert_eq!(strikes(Fault::new(Effect::Discard).path("(x"), 1), [false], "taken literally");
        assert_eq!(strikes(Fault::new(Effect::Discard).in_batch(), 1), [false]);
    }

    #[test]
    fn a_probable_fault_strikes_about_as_often() {
        let hits =
            strikes(Fault::new(Effect::Discard).probability(0.3), 1000).into_iter().filter(|s| *s).count();
        assert!((200..400).contains(&hits), "{hits}");
    }
}
