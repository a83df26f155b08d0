//! Looking up the records that events have named.

use std::hash::Hash;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::try_join_all;
use tokio::task::JoinError;
use tokio::time::timeout;

use super::{Capture, CaptureStore};
use crate::client::transport::Transport;
use crate::sync::pause_after;
use crate::sync::recheck::recheck;
use crate::sync::store::{Origin, StoredRecords};

/// How long a table may take to show records; then the next look goes on with them.
const LONGEST_LOOK: Duration = Duration::from_secs(10);
/// Records in one look, about as many as an address holds.
const IDS_AT_A_TIME: usize = 200;

/// A table's records have been looked up.
pub(super) struct Look<T> {
    table: T,
    /// Why not, if they have not.
    trouble: Option<String>,
    /// When the rule of the oldest event ran.
    pub(super) oldest: Option<i64>,
}

/// What events have left to be looked up.
pub(super) struct Looks<T> {
    pub(super) records: Vec<(T, StoredRecords)>,
    /// When the rule of the oldest event ran.
    pub(super) oldest: Option<i64>,
}

impl<T> Default for Looks<T> {
    fn default() -> Self {
        Self { records: Vec::new(), oldest: None }
    }
}

impl<T: Transport, S: CaptureStore> Capture<T, S>
where
    S::Table: Hash,
{
    /// Has records looked up, each table on its own: one that is slow delays no other. What fails or takes long stays
    /// noted and comes again, after a rest.
    pub(super) fn start(&mut self, looks: Looks<S::Table>) {
        for (table, stored) in looks.records {
            let rests = self.resting.get(&table).is_some_and(|(until, _)| *until > Instant::now());
            let Some(spec) = self.specs.get(&table).filter(|_| !rests && self.busy.insert(table)) else {
                (self.waiting, self.skipped) = (true, true);
                continue;
            };
            let (client, store, spec, oldest) =
                (self.client.clone(), self.store.clone(), spec.clone(), looks.oldest);
            self.looking.spawn(async move {
                let parts = stored
                    .chunks(IDS_AT_A_TIME)
                    .map(|part| recheck(&client, &*store, table, &spec, part.to_vec(), Origin::Capture));
                let trouble = match timeout(LONGEST_LOOK, try_join_all(parts)).await {
                    Ok(Ok(_)) => None,
                    Ok(Err(stop)) => Some(stop.to_string()),
                    Err(_) => Some(format!("it takes longer than {} s", LONGEST_LOOK.as_secs())),
                };
                Look { table, trouble, oldest }
            });
        }
    }

    pub(super) fn end(&mut self, look: Result<Look<S::Table>, JoinError>) {
        match look {
            Ok(look) => self.settle(look),
            // It panicked. What it was about stays noted; which table that was is not known.
            Err(_) => self.busy.clear(),
        }
    }

    /// Takes note of a look that has come to its end.
    fn settle(&mut self, look: Look<S::Table>) {
        self.busy.remove(&look.table);
        if let Some(why) = look.trouble {
            let name = self.specs.get(&look.table).map_or("", |spec| spec.table.as_str());
            self.trouble = Some(format!("could not look up records of table \"{name}\": {why}"));
            let (_, failures) = self.resting.get(&look.table).copied().unwrap_or((Instant::now(), 0));
            let rest = (Instant::now() + pause_after(failures + 1), failures + 1);
            self.resting.insert(look.table, rest);
            self.waiting = true;
            return;
        }
        self.resting.remove(&look.table);
        // Some may not have been settled by it.
        self.waiting = true;
        if let Some(oldest) = look.oldest.and_then(|at| u64::try_from(at).ok()) {
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(oldest);
            let lag = SystemTime::now().duration_since(at).unwrap_or_default();
            self.news.lag = Some(self.news.lag.map_or(lag, |longest| longest.max(lag)));
        }
    }
}
