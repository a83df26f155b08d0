//! Failpoints: places in the code at which a test can have a process die, stop or fail. Debug builds only; a release
//! build has neither the places nor the setting.
//!
//! The setting `servicenow_fdw.failpoint` names a place and what is to happen to whoever reaches it: `place` or
//! `place:kill` is the end without any clean-up, as by `kill -9`; `place:sleep` waits until the setting is another;
//! `place:error` is an ERROR. It is a setting, and not the crate `fail`, because every process of a server has to get
//! it from SQL: with `SET`, `ALTER DATABASE`, or `ALTER SYSTEM` and a reload.
//!
//! # Places
//! - `worker.start`, `worker.exit`: the worker has begun, and is about to end by itself
//! - `worker.plan`: what should run has been read from the catalogs, in the transaction that reads it
//! - `worker.count`: calls have been written down and not committed
//! - `worker.<request>.before`, `.commit`, `.after`: before the transaction of a request of a mirror or reader, before
//!   its commit, and after it. A request is a step (`described`, `begin`, `newest`, `filled`, `range_done`, `complete`,
//!   `changed`, `rechecked`, `doubted`, `doubted_where`, `relabelled`, `reread`, `polled`, `hidden`, `reconciled`, `scrubbed`, `failed`), a question (`compare`,
//!   `count_by_prefix`, `hidden_ranges`, `find`, `find_in`, `to_recheck`, `deletes_since`, `metadata_since`, `to_look_up`) or news of a server
//!   (`deletes`, `describe`, `metadata`, `events`, `capture`, `renew_subscription`)
//! - `worker.rows`: rows of a step have been put into the cache, and neither their log nor the position
//! - `push.noting`, `push.noted`: before and after writes are noted, before they are sent; `push.answered`: the instance has
//!   answered; `push.kept`: the answers are in the cache; `push.committing`, `push.committed`: before and after the
//!   end of a transaction that has written. At the last one an ERROR would be the end of the
//!   server.
//! - `push.syncing`: a note is written, and is about to be synced before anything is sent; if files are synced at all
//! - `recovery.undoing`: the task that undoes begins, and panics
//! - `recovery.begin`, `recovery.undone`, `recovery.noted`: the worker has found what a session has left behind; has undone what
//!   there was to be undone; has noted the records to be looked at, and not removed the file

use std::fmt::Display;

/// The process has come to a place. On the main thread only.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reach(_place: impl Display) {}

/// See the one of debug builds.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn trap(_place: impl Display) -> impl FnOnce() + Send {
    || {}
}

#[cfg(debug_assertions)]
pub use armed::{define, reach, trap};

/// There is no setting.
#[cfg(not(debug_assertions))]
pub fn define() {}

#[cfg(debug_assertions)]
mod armed {
    use std::ffi::CString;
    use std::time::Duration;

    use pgrx::PgSqlErrorCode as Sql;
    use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};

    use super::Display;
    use crate::error::{error, raise};
    use crate::pg;

    /// How often a process that sleeps looks at the setting.
    const LOOK_INTERVAL: Duration = Duration::from_millis(20);

    static FAILPOINT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

    /// Defines the setting. Once per process, when the library is loaded.
    pub fn define() {
        GucRegistry::define_string_guc(
            c"servicenow_fdw.failpoint",
            c"Makes a process die, stop or fail at a place in the code.",
            c"For tests: the name of the place, and \":kill\", \":sleep\" or \":error\".",
            &FAILPOINT,
            GucContext::Suset,
            GucFlags::default(),
        );
    }

    /// What is to happen at a place, if anything.
    fn action(place: &impl Display) -> Option<String> {
        let setting = FAILPOINT.get()?.into_string().ok().filter(|setting| !setting.is_empty())?;
        let (name, action) = setting.split_once(':').unwrap_or((&setting, "kill"));
        (name == place.to_string()).then(|| action.to_owned())
    }

    /// The process has come to a place. On the main thread only.
    pub fn reach(place: impl Display) {
        match action(&place).as_deref() {
            None => {}
            Some("sleep") => {
                pg::worker::log(&format!("failpoint \"{place}\": sleeping"));
                while action(&place).as_deref() == Some("sleep") {
                    pg::io::wait(None, Some(LOOK_INTERVAL));
                    pg::worker::reload_configuration_if_asked();
                }
            }
            Some("error") => raise(error(
                Sql::ERRCODE_TRIGGERED_ACTION_EXCEPTION,
                format!("failpoint \"{place}\" was reached"),
            )),
            Some(_) => {
                pg::worker::log(&format!("failpoint \"{place}\": killed"));
                pg::worker::kill_at_once()
            }
        }
    }

    /// As [`reach`], for a place on another thread, where nothing but a panic can happen: whether it does is looked up here.
    pub fn trap(place: impl Display) -> impl FnOnce() + Send {
        let is_armed = action(&place).is_some();
        if is_armed {
            pg::worker::log(&format!("failpoint \"{place}\": panicking"));
        }
        move || assert!(!is_armed, "a failpoint was reached")
    }
}
