//! The switches of the instance: documented behaviours that differ between instances or happen only under load
//! (facts §12).

use serde::{Deserialize, Serialize};

use crate::fault::Cut;
use crate::query::compile::UnknownField;

/// The semaphore in front of the REST API (facts §11: 4 at a time, queue of 50, then 429).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Concurrency {
    /// Requests handled at a time.
    pub limit: usize,
    /// Requests waiting before 429.
    pub queue: usize,
}

/// The transaction quota: pages of more rows are cut (facts §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowQuota {
    /// The rows that fit.
    pub rows: usize,
    /// How the page ends.
    pub cut: Cut,
}

/// Whether and how the instance answers at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    /// It works.
    #[default]
    Up,
    /// 503 with an HTML page.
    Down,
    /// Connections are reset.
    Unreachable,
    /// The hibernation page with status 200 (facts §3).
    Hibernating,
}

/// All switches; the defaults are those of an ordinary instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Switches {
    /// Whether the instance answers.
    pub availability: Availability,
    /// What a condition on an unknown field does (facts §2.1).
    pub unknown_field: UnknownField,
    /// Ties and unsorted lists come in the same order on every page; off as measured (facts §1.5).
    pub stable_order: bool,
    /// The `Link` header has a `prev`, `offset=-1` on the first page (facts §1.2).
    pub link_previous: bool,
    /// The longest request target before 414, in bytes (facts §1.7).
    pub max_url: usize,
    /// The longest `Link` header before the 400 of facts §1.3, in bytes.
    pub max_link_header: usize,
    /// Answers are compressed when the client accepts it.
    pub gzip: bool,
    /// Time added to every request, in ms.
    pub latency_ms: u64,
    /// Time added at random on top, at most this many ms.
    pub jitter_ms: u64,
    /// Direct edits and replayed events become visible this long after their stamp, in ms (facts §8.1).
    pub commit_delay_ms: u64,
    /// There is a Batch API; otherwise its path is none.
    pub batch_api: bool,
    /// Time that each item of a batch takes, in ms, on top of the latency of the whole.
    pub batch_item_ms: u64,
    /// The quota of a batch, in ms of item time; items past it come back unserviced (facts §5).
    pub batch_quota_ms: u64,
    /// The semaphore, or none.
    pub concurrency: Option<Concurrency>,
    /// Requests waiting on one session before one is discarded with 202 (facts §3).
    pub session_waiters: usize,
    /// Pages of more rows are cut, or none.
    pub row_quota: Option<RowQuota>,
    /// Good answers say too how many calls a rate limit rule leaves (not established; other platforms do).
    pub rate_headers: bool,
    /// `sys_audit_delete` forgets what is older than this many seconds, or nothing (facts §8.2).
    pub audit_delete_horizon_s: Option<u64>,
    /// Clearing a reference on delete stamps the referring row (facts §13: not established).
    pub cascade_stamps: bool,
    /// Basic authentication needs the role `snc_basic_auth_api_access` (facts §4).
    pub basic_auth_restricted: bool,
    /// A refresh token is good for one call, whose answer has another one. ServiceNow's are not (facts §4).
    pub rotate_refresh_tokens: bool,
    /// Asynchronous rules run this long after their transaction, in ms.
    pub async_rule_delay_ms: u64,
    /// So many in a thousand of the requests that scripts make are lost.
    pub posts_drop: u32,
    /// So many in a thousand of them arrive twice.
    pub posts_duplicate: u32,
    /// They are late by up to this many ms each, and so come in another order.
    pub posts_jitter_ms: u64,
    /// Scripts' requests leave at once, before a delayed commit shows what they tell of.
    pub posts_before_commit: bool,
    /// The requests kept in the log.
    pub log_capacity: usize,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            availability: Availability::Up,
            unknown_field: UnknownField::Ignore,
            stable_order: false,
            link_previous: true,
            max_url: 8192,
            max_link_header: 8192,
            gzip: true,
            latency_ms: 0,
            jitter_ms: 0,
            commit_delay_ms: 0,
            batch_api: true,
            batch_item_ms: 0,
            batch_quota_ms: 30_000,
            concurrency: None,
            session_waiters: 10,
            row_quota: None,
            rate_headers: false,
            audit_delete_horizon_s: None,
            cascade_stamps: false,
            basic_auth_restricted: false,
            rotate_refresh_tokens: false,
            async_rule_delay_ms: 100,
            posts_drop: 0,
            posts_duplicate: 0,
            posts_jitter_ms: 0,
            posts_before_commit: false,
            log_capacity: 200_000,
        }
    }
}
