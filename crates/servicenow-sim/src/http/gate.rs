//! What stands between a request and its handler: sessions, the API semaphore, rate limit rules (facts §3, §11).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedMutexGuard};

use super::{ApiError, Response};
use crate::store::{Db, RowId};
use crate::switch::Concurrency;
use crate::users::Actor;

#[derive(Debug, Default)]
struct Load {
    running: usize,
    waiting: usize,
}

#[derive(Debug, Default)]
struct Session {
    turn: Arc<tokio::sync::Mutex<()>>,
    waiting: AtomicUsize,
}

/// Sessions, semaphore and rate counters.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    load: Arc<Mutex<Load>>,
    freed: Arc<Notify>,
    sessions: Mutex<HashMap<String, Arc<Session>>>,
    rates: Mutex<HashMap<(String, String, i64), u64>>,
    transactions: AtomicU64,
}

/// A place in the semaphore, given back when dropped.
pub(crate) struct Place {
    load: Arc<Mutex<Load>>,
    freed: Arc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.load.lock().running -= 1;
        self.freed.notify_one();
    }
}

/// The turn of a request on its session.
pub(crate) struct Turn {
    _guard: OwnedMutexGuard<()>,
}

/// A request in the queue of the semaphore; it leaves the queue even when its caller gives up.
struct Waiter<'a>(&'a Gate);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.load.lock().waiting -= 1;
        // Should this one have taken the signal for a free place with it, the next one looks again.
        self.0.freed.notify_one();
    }
}

/// A request waiting on a session.
struct Queued<'a>(&'a AtomicUsize);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Gate {
    /// The number of the next transaction.
    pub(crate) fn transaction(&self) -> u64 {
        self.transactions.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits for a place among the requests handled at a time; the time waited in ms, or `None` when the queue is full.
    pub(crate) async fn enter(&self, rule: Concurrency) -> Option<(Place, u128)> {
        let began = Instant::now();
        let place = || Place { load: Arc::clone(&self.load), freed: Arc::clone(&self.freed) };
        {
            let mut load = self.load.lock();
            if load.running < rule.limit {
                load.running += 1;
                return Some((place(), 0));
            }
            if load.waiting >= rule.queue {
                return None;
            }
            load.waiting += 1;
        }
        let _waiter = Waiter(self);
        loop {
            self.freed.notified().await;
            let mut load = self.load.lock();
            if load.running < rule.limit {
                load.running += 1;
                return Some((place(), began.elapsed().as_millis()));
            }
        }
    }

    /// Waits for the turn on a session; `None` when too many wait already and the request is discarded.
    pub(crate) async fn take_turn(&self, session: &str, most_waiting: usize) -> Option<Turn> {
        let session = {
            let mut sessions = self.sessions.lock();
            sessions.retain(|_, s| Arc::strong_count(s) > 1 || Arc::strong_count(&s.turn) > 1);
            Arc::clone(sessions.entry(session.to_owned()).or_default())
        };
        if let Ok(guard) = Arc::clone(&session.turn).try_lock_owned() {
            return Some(Turn { _guard: guard });
        }
        if session.waiting.fetch_add(1, Ordering::SeqCst) >= most_waiting {
            session.waiting.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        let _queued = Queued(&session.waiting);
        let guard = Arc::clone(&session.turn).lock_owned().await;
        Some(Turn { _guard: guard })
    }

    /// Counts a call against the rate limit rule that binds the caller, if any does: what is left, or 429 once the hour's
    /// calls are used up.
    pub(crate) fn check_rate(
        &self,
        db: &Db,
        actor: &Actor,
        api: &str,
        now: DateTime<Utc>,
    ) -> Option<Result<Left, Response>> {
        let (rule, limit) = binding_rule(db, actor, api)?;
        let hour = now.timestamp().div_euclid(3600);
        let id = db.text(rule, "sys_id");
        let mut rates = self.rates.lock();
        rates.retain(|(_, _, h), _| *h == hour);
        let used = rates.entry((id.clone(), actor.user_name.clone(), hour)).or_default();
        *used += 1;
        let reset = (hour + 1) * 3600;
        if *used <= limit {
            return Some(Ok(Left { limit, left: limit - *used, reset }));
        }
        Some(Err(rate_limited(api, limit, reset, &id, reset - now.timestamp())))
    }
}

/// What a rate limit rule leaves of the hour's calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    pub(crate) limit: u64,
    pub(crate) left: u64,
    /// When all of them may be made again, in seconds since 1970.
    pub(crate) reset: i64,
}

/// The 429 of a rate limit rule (facts §3).
pub(crate) fn rate_limited(api: &str, limit: u64, reset: i64, rule: &str, retry_after: i64) -> Response {
    let detail = format!("Rate limit of {limit} requests per hour for {api} exceeded");
    Response::from(ApiError::new(429, "Rate limit exceeded", Some(&detail)))
        .with("X-RateLimit-Limit", limit.to_string())
        .with("X-RateLimit-Reset", reset.to_string())
        .with("X-RateLimit-Rule", rule)
        .with("Retry-After", retry_after.max(1).to_string())
}

/// A single user's rule beats role rules, among which the lowest wins, and those beat a rule for all (facts §11).
fn binding_rule(db: &Db, actor: &Actor, api: &str) -> Option<(RowId, u64)> {
    let table = db.schema.find("sys_rate_limit_rules")?;
    let roles = db.schema.find("sys_user_role")?;
    let mut best: Option<(u8, u64, RowId)> = None;
    for row in db.scan(table) {
        let Ok(limit) = db.text(row, "limit").parse::<u64>() else { continue };
        if db.text(row, "active") != "true" || db.text(row, "api") != api {
            continue;
        }
        let (user, role) = (db.text(row, "user"), db.value(row, "role"));
        let rank = if !user.is_empty() {
            if user != actor.sys_id {
                continue;
            }
            0
        } else if !role.is_empty() {
            let name = db.find_val(roles, role).map_or_else(String::new, |r| db.text(r, "name"));
            if !actor.roles.contains(&name) {
                continue;
            }
            1
        } else {
            2
        };
        if best.is_none_or(|(r, l, _)| (rank, limit) < (r, l)) {
            best = Some((rank, limit, row));
        }
    }
    best.map(|(_, limit, row)| (row, limit))
}
