//! Keeps one table like the instance's: fill once, then follow.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::beat::Beat;
use super::describe::Traits;
use super::pace::{Pace, Rest};
use super::store::{Position, Step, Store, StoreError, StoredRecords, Upkeep};
use super::upkeep::Underway;
use super::{Stop, pause_after};
use crate::client::page_size::PageSize;
use crate::client::table_api::{List, Page};
use crate::client::transport::Transport;
use crate::client::{Client, chance};
use crate::dictionary::TableDef;
use crate::error::Error;
use crate::page::Layout;
use crate::query::Query;
use crate::value::TableName;

/// The time between two looks whether a mass update has come to its end.
const MASS_PAUSE: Duration = Duration::from_secs(10);
/// After so many polls in a row that the instance fails at, what else there is to be done no longer waits for one.
const FAILED_POLLS: u32 = 3;
/// The time from a poll to the next one if there are more records to be looked up than were at once.
const UNSETTLED_PAUSE: Duration = Duration::from_secs(1);

/// What is mirrored, and how.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The table in ServiceNow.
    pub table: TableName,
    /// The columns.
    pub layout: Arc<Layout>,
    /// The columns that are all the next fill has to read; the others are as they should be. `None` for all.
    pub fill_layout: Option<Arc<Layout>>,
    /// Fields of columns that the table is known to have had, and dot-walks. One that it does not have any more leaves its column
    /// without values, and the others go on; a field that never was is a mistake, and so is one in a condition.
    pub had: HashSet<String>,
    /// Which records.
    pub query: Query,
    /// The time between two polls.
    pub pace: Pace,
    /// The time between two comparisons of how many records there are.
    pub reconcile_interval: Duration,
    /// The time in which everything is read once more.
    pub scrub_interval: Duration,
    /// Rows asked for at a time, at most.
    pub page_size: u32,
    /// Ranges filled side by side.
    pub parallel: usize,
}

/// Keeps one table like the instance's until the future is dropped, or the store says the table has changed.
/// A failure is reported to the store and tried again after a pause; `nudge` ends a pause early, that after a failure if it is a long one.
pub async fn run<T: Transport, S: Store>(mut mirror: Mirror<T, S>, nudge: Arc<Notify>) {
    let (store, table) = (mirror.store.clone(), mirror.table);
    let mut failures = 0;
    let mut beat = Beat::default();
    loop {
        let before = mirror.position.clone();
        let rest = match mirror.advance().await {
            Ok(pause) => {
                failures = 0;
                let most = match (pause == mirror.spec.pace.now(), mirror.spec.pace.meeting_in()) {
                    (false, _) => pause,
                    (true, Some(meeting)) => meeting,
                    (true, None) => beat.next_in(pause, Instant::now().into_std(), chance()),
                };
                Rest { least: Duration::ZERO, most }
            }
            Err(Stop::Store(StoreError::Stale)) => return,
            Err(stop) => {
                if matches!(store.apply(table, Step::Failed(stop)).await, Err(StoreError::Stale)) {
                    return;
                }
                // What has come further is not kept waiting longer and longer.
                failures = if mirror.position == before { failures + 1 } else { 1 };
                // Those that fail together do not come back together either.
                let pause = pause_after(failures).mul_f64((1.0 + chance()) / 2.0);
                Rest::after_failure(pause, Duration::ZERO)
            }
        };
        // When polls become rarer there is one more: nobody has told of what changed since the last one.
        if rest.take(&nudge, &mut mirror.spec.pace).await {
            mirror.nudge();
        }
    }
}

/// The mirror of one table.
pub struct Mirror<T, S: Store> {
    pub(super) client: Client<T>,
    pub(super) store: Arc<S>,
    pub(super) table: S::Table,
    pub(super) spec: Spec,
    pub(super) page_size: Arc<PageSize>,
    pub(super) position: Position,
    pub(super) upkeep: Upkeep,
    /// What the dictionary says that matters here; `None` if it has to be read.
    pub(super) traits: Option<Traits>,
    /// When the last poll began, by the local clock.
    pub(super) last_poll: Option<SystemTime>,
    /// How many polls in a row the instance has failed at.
    pub(super) failed_polls: u32,
    /// After some of them: when the next one is.
    no_poll_before: Option<Instant>,
    /// There was nothing more to be done at once: the next thing is a poll.
    pub(super) is_idle: bool,
    /// Somebody wants to see what is there now.
    is_asked: bool,
    pub(super) underway: Underway,
    /// The records looked up last, if there may have been others.
    pub(super) looked_up: StoredRecords,
    /// There are others to be looked up.
    pub(super) is_unsettled: bool,
    /// Everything has just been read again because of how much was counted; once more would not help.
    pub(super) refilled_for_counts: bool,
    /// There has been no poll since everything was read: that reads what has changed meanwhile, however much.
    pub(super) just_filled: bool,
    /// Since when much has been changing.
    pub(super) mass_since: Option<Instant>,
}

impl Spec {
    /// Every field and dot-walk that columns and conditions name.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.layout.columns().iter().map(|column| column.field.as_str()).chain(self.query.fields())
    }

    /// Whether the table may lack a field: see [`Spec::had`].
    pub(super) fn may_lack(&self, field: &str) -> bool {
        let first = |path: &str| path.split('.').next() == Some(field);
        self.had.contains(field) && !self.query.fields().any(first)
    }

    /// As [`Spec::may_lack`], of a dot-walk as a whole.
    pub(super) fn may_lack_walk(&self, path: &str) -> bool {
        self.had.contains(path) && !self.query.fields().any(|field| field == path)
    }
}

impl<T: Transport, S: Store> Mirror<T, S> {
    /// A mirror that goes on from where the store says it is. `known` is the table's description as the store has it.
    pub fn new(
        client: Client<T>,
        store: Arc<S>,
        table: S::Table,
        spec: Spec,
        position: Position,
        upkeep: Upkeep,
        known: Option<&TableDef>,
    ) -> Self {
        let known = known.filter(|_| !spec.paths().any(|path| path.contains('.')));
        let traits = known.and_then(|def| Traits::of(def, &spec).ok());
        Self {
            client,
            store,
            table,
            page_size: Arc::new(PageSize::new(spec.page_size)),
            spec,
            position,
            upkeep,
            traits,
            last_poll: None,
            failed_polls: 0,
            no_poll_before: None,
            is_idle: true,
            is_asked: false,
            underway: Underway::default(),
            looked_up: StoredRecords::new(),
            is_unsettled: false,
            refilled_for_counts: false,
            just_filled: false,
            mass_since: None,
        }
    }

    /// How many records are asked for at a time.
    pub fn page_size(&self) -> Arc<PageSize> {
        self.page_size.clone()
    }

    /// The position reached.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The next thing is a poll, whatever else there is to be done; where nothing can be polled, everything is read.
    pub fn nudge(&mut self) {
        (self.is_idle, self.is_asked) = (true, true);
    }

    /// Does the next piece of work: begins a fill, completes it, polls once, or does some of the upkeep, which is
    /// done between polls. Gives back how long to wait before the one after it. After an error the caller may call
    /// again; nothing is lost.
    pub async fn advance(&mut self) -> Result<Duration, Stop> {
        let traits = match self.traits {
            Some(traits) => traits,
            None => *self.traits.insert(self.describe().await?),
        };
        match self.position.clone() {
            Position::Start { refill } => {
                self.begin(refill).await?;
                Ok(Duration::ZERO)
            }
            Position::Filling { refill, open, since } => {
                let at = self.last_poll.unwrap_or_else(SystemTime::now);
                self.fill(refill, open).await?;
                let watermark = since;
                self.apply(Step::Complete { watermark }).await?;
                self.position = Position::Following { watermark };
                if !traits.has_updated_on {
                    // No poll brings what has changed: the fill itself is the poll, and the comparison.
                    self.apply(Step::Reconciled { at }).await?;
                    self.upkeep.reconciled = Some(at);
                    self.apply(Step::Polled { watermark, at, is_well: true }).await?;
                }
                Ok(Duration::ZERO)
            }
            Position::Following { .. } if traits.trace().is_some() => {
                if self.is_asked && !self.tells_of_changes().await? {
                    // All is read as quickly as what is new.
                    self.is_asked = false;
                    self.begin(true).await?;
                    return Ok(Duration::ZERO);
                }
                if self.is_poll_due() {
                    match self.poll().await {
                        Ok(true) => self.failed_polls = 0,
                        Ok(false) => return Ok(self.spec.pace.own().min(MASS_PAUSE)),
                        // Whoever may not ask by time, or gets no answer to that, may still count and read everything.
                        Err(Stop::Remote(error))
                            if self.failed_polls >= FAILED_POLLS
                                || matches!(error, Error::Refused { .. }) =>
                        {
                            self.failed_polls += 1;
                            let rest = pause_after(self.failed_polls).max(self.spec.pace.now());
                            self.no_poll_before = Some(Instant::now() + rest);
                            self.apply(Step::Failed(error.into())).await?;
                            self.recheck_what_is_unsettled().await?;
                        }
                        Err(stop) => {
                            self.failed_polls += u32::from(matches!(stop, Stop::Remote(_)));
                            return Err(stop);
                        }
                    }
                    (self.is_idle, self.is_asked) = (false, false);
                }
                self.keep_up_and_rest().await
            }
            Position::Following { .. } if std::mem::take(&mut self.is_asked) => {
                self.begin(true).await?;
                Ok(Duration::ZERO)
            }
            Position::Following { .. } => {
                self.recheck_what_is_unsettled().await?;
                self.keep_up_and_rest().await
            }
        }
    }

    /// Does some of the upkeep; gives back how long to wait then.
    async fn keep_up_and_rest(&mut self) -> Result<Duration, Stop> {
        let is_more = match self.keep_up().await {
            Err(Stop::Store(StoreError::Stale)) => return Err(StoreError::Stale.into()),
            // That is said, and polls go on.
            Err(stop) => {
                self.underway.fail();
                if self.failed_polls == 0 {
                    self.apply(Step::Failed(stop)).await?;
                }
                false
            }
            Ok(is_more) => is_more,
        };
        if is_more {
            return Ok(Duration::ZERO);
        }
        self.is_idle = true;
        let rest = if self.is_unsettled { UNSETTLED_PAUSE } else { Duration::MAX };
        Ok(self.spec.pace.now().min(self.upkeep_due_in()).min(rest))
    }

    /// Whether it is time to poll, in the middle of other work.
    pub(super) fn is_poll_due(&self) -> bool {
        let is_recent = |last: SystemTime| last.elapsed().is_ok_and(|since| since < self.spec.pace.now());
        if !self.is_asked && self.no_poll_before.is_some_and(|moment| moment > Instant::now()) {
            return false;
        }
        self.is_idle || !self.last_poll.is_some_and(is_recent)
    }

    /// Whether nobody waits for what is read now, so that it can go with what others read.
    pub(super) fn is_in_no_hurry(&self) -> bool {
        self.spec.pace.is_slowed() && !self.is_asked
    }

    pub(super) async fn apply(&self, step: Step) -> Result<(), Stop> {
        Ok(self.store.apply(self.table, step).await?)
    }

    pub(super) fn list<'a>(
        &'a self,
        query: &'a Query,
        limit: u32,
        offset: u64,
        count: bool,
    ) -> impl Future<Output = crate::Result<Page>> + 'a {
        let (table, layout) = (&self.spec.table, &self.spec.layout);
        self.client.list(List { table, query, layout, limit, offset, count })
    }
}
