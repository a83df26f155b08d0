//! What a mirror reads when, and when it may believe that it has read everything.
//!
//! The decisions are state machines without I/O: [`sweep`] through the space of `sys_id`s, [`tail`] along the time
//! of the last change, [`reconcile`] from counts to what differs, [`scrub`] for the pace of reading all once more.
//! [`mirror`] drives them for one table against a client and a [`store::Store`].
//!
//! - A mirror first *fills*: ranges of `sys_id`s side by side, each with a position the store keeps, so that a
//!   crash loses nothing.
//! - Then it *follows*: every poll reads what changed since the watermark, less an overlap, because a record
//!   becomes visible after the time it is stamped with.
//! - Deletions leave no trace in the table itself; [`deletes`] reads them from `sys_audit_delete` and looks every
//!   record up before it believes one. Nor does a record that becomes one of another class; [`moved`] finds it in the
//!   table that all classes extend.
//! - What leaves no trace at all shows in how many records there are, or else when they are read again; *upkeep*
//!   does both between polls, a piece at a time.

use std::time::{Duration, SystemTime};

mod beat;
pub mod capture;
pub mod compare;
pub mod deletes;
mod describe;
pub mod digest;
mod fill;
pub mod latest;
pub mod memory;
pub mod metadata;
pub mod mirror;
pub mod moved;
mod names;
pub mod pace;
mod poll;
pub mod range;
mod recheck;
pub mod reconcile;
mod reference;
mod referrers;
pub mod scrub;
pub mod store;
pub mod sweep;
pub mod tail;
mod upkeep;
pub mod verify;

use pace::Rest;

/// How far behind the watermark a poll begins, in seconds: records are stamped by the node that writes them
/// and become visible when their transaction ends; nodes' clocks differ.
pub const OVERLAP: i64 = 60;
/// How far back is read once more, in seconds, when the instance's clock was set back: longer than one reading is from the
/// next. What happened in between is stamped before the last one.
const SET_BACK: i64 = 3_600;

/// Where the reading after one begins that began at `since`, when the instance's clock showed `served`.
fn next_since(since: i64, served: i64) -> i64 {
    if served >= since - OVERLAP { served } else { served - SET_BACK }
}

/// Why work on a table stopped.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The instance failed or refused.
    #[error(transparent)]
    Remote(#[from] crate::Error),
    /// The store failed or refused.
    #[error(transparent)]
    Store(#[from] store::StoreError),
}

/// The first wait after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest wait between two attempts at something that fails.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Who waits for something may have it tried again after this long, though it has failed often.
const LONGEST_REFUSAL: Duration = Duration::from_secs(10);

/// How long to wait after so many failures in a row: doubling, up to a minute.
fn pause_after(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST_PAUSE)
}

/// How to wait after a reading that is repeated every `interval`: longer the more have failed in a row, which it counts.
fn rest_after_reading(failures: &mut u32, succeeded: bool, interval: Duration) -> Rest {
    *failures = if succeeded { 0 } else { *failures + 1 };
    match succeeded {
        true => Rest { least: Duration::ZERO, most: interval },
        false => Rest::after_failure(pause_after(*failures), interval),
    }
}

/// Seconds since 1970 by the local clock.
fn local_seconds(at: SystemTime) -> i64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
