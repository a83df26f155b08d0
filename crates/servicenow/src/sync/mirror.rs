//! Keeps one table like the instance's: fill once, then follow.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::future::try_join;
use futures_util::stream::{TryStreamExt, iter};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::store::{Applied, OpenRange, Position, Step, Store, StoreError, StoredRecords};
use super::sweep::{Progress, Range, Seen, Sweep};
use super::tail::{SeenInTime, Tail};
use super::{OVERLAP, Stop, local_seconds, pause_after};
use crate::client::Client;
use crate::client::retry::{self, Effect, Policy};
use crate::client::table_api::{List, Page};
use crate::client::transport::Transport;
use crate::dictionary::{self, TableDef};
use crate::error::Error;
use crate::page::{Layout, Rows, Version};
use crate::query::{Query, ids_term};
use crate::value::{SysId, TableName};

/// A table of fewer records than this is read as one range.
const SPLIT_FROM: u64 = 4_000;
/// The ranges a larger table is read in.
const RANGES: usize = 16;
/// Records looked up by `sys_id` in one call; 32 characters each, so that the address stays short.
pub(super) const IDS_AT_A_TIME: usize = 100;
/// The smallest page: below this a cut-off answer is not the page's fault.
const SMALLEST_PAGE: u32 = 10;

/// What is mirrored, and how.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The table in ServiceNow.
    pub table: TableName,
    /// The columns.
    pub layout: Arc<Layout>,
    /// Which records.
    pub query: Query,
    /// The time between two polls.
    pub poll_interval: Duration,
    /// Rows asked for at a time.
    pub page_size: u32,
    /// Ranges filled side by side.
    pub parallel: usize,
}

/// Keeps one table like the instance's until the future is dropped, or the store says the table has changed.
/// A failure is reported to the store and tried again after a pause; `nudge` ends a pause early.
pub async fn run<T: Transport, S: Store>(mut mirror: Mirror<T, S>, nudge: Arc<Notify>) {
    let (store, table) = (mirror.store.clone(), mirror.table);
    let mut failures = 0;
    loop {
        let pause = match mirror.advance().await {
            Ok(pause) => {
                failures = 0;
                pause
            }
            Err(Stop::Store(StoreError::Stale)) => return,
            Err(stop) => {
                if matches!(store.apply(table, Step::Failed(stop)).await, Err(StoreError::Stale)) {
                    return;
                }
                failures += 1;
                pause_after(failures)
            }
        };
        if !pause.is_zero() {
            let _nudged_or_over = timeout(pause, nudge.notified()).await;
        }
    }
}

/// The mirror of one table.
pub struct Mirror<T, S: Store> {
    client: Client<T>,
    store: Arc<S>,
    table: S::Table,
    spec: Spec,
    position: Position,
    /// Whether the table is described well enough: every field asked for is known.
    described: bool,
}

impl<T: Transport, S: Store> Mirror<T, S> {
    /// A mirror that goes on from a position. `known` is the table's description as the store has it.
    pub fn new(
        client: Client<T>,
        store: Arc<S>,
        table: S::Table,
        spec: Spec,
        position: Position,
        known: Option<&TableDef>,
    ) -> Self {
        let described = known.is_some_and(|def| check_fields(def, &spec).is_ok());
        Self { client, store, table, spec, position, described }
    }

    /// The position reached.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Does the next piece of work: begins a fill, completes it, or polls once. Gives back how long to wait
    /// before the one after it. After an error the caller may call again; nothing is lost.
    pub async fn advance(&mut self) -> Result<Duration, Stop> {
        if !self.described {
            self.describe().await?;
            self.described = true;
        }
        match self.position.clone() {
            Position::Start { refill } => {
                self.begin(refill).await?;
                Ok(Duration::ZERO)
            }
            Position::Filling { refill, open, since } => {
                self.fill(refill, open).await?;
                self.apply(Step::Complete { watermark: since }).await?;
                self.position = Position::Following { watermark: since };
                Ok(Duration::ZERO)
            }
            Position::Following { watermark } => {
                let watermark = self.poll(watermark).await?;
                self.position = Position::Following { watermark };
                Ok(self.spec.poll_interval)
            }
        }
    }

    async fn apply(&self, step: Step) -> Result<Applied, Stop> {
        Ok(self.store.apply(self.table, step).await?)
    }

    /// Reads the table's description and makes sure that every field asked for exists: the instance would
    /// leave an unknown one out of its answers, and drop a condition on it, without a word.
    async fn describe(&self) -> Result<(), Stop> {
        let mut described = dictionary::fetch(&self.client, std::slice::from_ref(&self.spec.table)).await?;
        let Some((_, def)) = described.pop() else { return Ok(()) };
        let def = def?;
        check_fields(&def, &self.spec)?;
        self.apply(Step::Described(Box::new(def))).await?;
        Ok(())
    }

    async fn begin(&mut self, refill: bool) -> Result<(), Stop> {
        let at = SystemTime::now();
        let page = self.list(&self.spec.query, 1, 0, true).await?;
        let since = page.served_at.unwrap_or_else(|| local_seconds(at));
        let count = match page.total {
            Some(total) if total < SPLIT_FROM => 1,
            _ => RANGES,
        };
        let ranges = Range::partition(count);
        let open = ranges.iter().cloned().zip(0..);
        let open = open.map(|(range, number)| OpenRange { number, range, after: None }).collect();
        self.apply(Step::Begin { ranges, since, total: page.total, at }).await?;
        self.position = Position::Filling { refill, open, since };
        Ok(())
    }

    /// Fills the open ranges, several at a time. A range's position advances in the store as its pages are
    /// kept, so that whoever comes after a failure goes on from there.
    async fn fill(&mut self, refill: bool, open: Vec<OpenRange>) -> Result<(), Stop> {
        let unfinished = Mutex::new(open.clone());
        let this = &*self;
        let filled = iter(open.into_iter().map(Ok::<_, Stop>))
            .try_for_each_concurrent(self.spec.parallel.max(1), |range| {
                this.fill_range(refill, range, &unfinished)
            })
            .await;
        if let Position::Filling { open, .. } = &mut self.position {
            *open = unfinished.into_inner().expect("no panic while it is held");
        }
        filled
    }

    /// Fills one range. The next page is fetched while the one before it is being stored.
    async fn fill_range(
        &self,
        refill: bool,
        open: OpenRange,
        unfinished: &Mutex<Vec<OpenRange>>,
    ) -> Result<(), Stop> {
        // A refill has to know every record the instance showed, so it cannot go on from the middle.
        let after = if refill { None } else { open.after.clone() };
        let mut sweep = Sweep::new(open.range.clone(), after);
        let mut seen_ids = refill.then(HashSet::new);
        let mut next = Some(self.sweep_page(&mut sweep).await?);
        while let Some((rows, progress)) = next.take() {
            if let Some(ids) = &mut seen_ids {
                ids.extend(rows.ids().map(SysId::new));
            }
            let after = sweep.after().cloned();
            let keep = async {
                if !rows.is_empty() {
                    self.apply(Step::Filled { number: open.number, rows, after: after.clone() }).await?;
                    let mut unfinished = unfinished.lock().expect("no panic while it is held");
                    unfinished
                        .iter_mut()
                        .filter(|r| r.number == open.number)
                        .for_each(|r| r.after = after.clone());
                }
                Ok(())
            };
            next = match progress {
                Progress::Done => {
                    keep.await?;
                    None
                }
                Progress::More => {
                    let mut ahead = sweep.clone();
                    let (_, page) = try_join(keep, self.sweep_page(&mut ahead)).await?;
                    sweep = ahead;
                    Some(page)
                }
            };
        }
        if let Some(seen) = seen_ids {
            let missing = self.store.missing(self.table, open.range, seen).await?;
            recheck(&self.client, &*self.store, self.table, &self.spec, missing).await?;
        }
        self.apply(Step::RangeDone { number: open.number }).await?;
        unfinished.lock().expect("no panic while it is held").retain(|r| r.number != open.number);
        Ok(())
    }

    /// One page of a sweep, asked for in smaller pieces as long as the instance cuts it short.
    async fn sweep_page(&self, sweep: &mut Sweep) -> Result<(Rows, Progress), Stop> {
        let (query, offset) = sweep.page(&self.spec.query)?;
        let (page, limit) =
            shrinking(self.spec.page_size, |limit| self.list(&query, limit, offset, sweep.wants_count()))
                .await?;
        let last = page.rows.ids().last().map(SysId::new);
        let progress = sweep.advance(&Seen { rows: page.rows.len(), last, total: page.total }, limit);
        Ok((page.rows, progress))
    }

    /// Reads what changed since the watermark; gives back the new one.
    async fn poll(&self, watermark: i64) -> Result<i64, Stop> {
        let at = SystemTime::now();
        let mut tail = Tail::new("sys_updated_on", watermark - OVERLAP);
        let mut matching = HashSet::new();
        let mut next_watermark: Option<i64> = None;
        let mut held_back: Option<i64> = None;
        loop {
            let (query, offset) = tail.page(&self.spec.query)?;
            let (page, limit) =
                shrinking(self.spec.page_size, |limit| self.list(&query, limit, offset, true)).await?;
            next_watermark.get_or_insert(page.served_at.unwrap_or_else(|| local_seconds(at)));
            let progress = tail.advance(&seen_in_time(&page), limit);
            if !self.spec.query.is_all() {
                matching.extend(page.rows.ids().map(SysId::new));
            }
            if !page.rows.is_empty() {
                let applied = self.apply(Step::Changed(page.rows)).await?;
                held_back = earlier(held_back, applied.held_back_since);
            }
            if progress == Progress::Done {
                break;
            }
        }
        if !self.spec.query.is_all() {
            self.drop_rows_that_stopped_matching(watermark, &matching).await?;
        }
        let served = next_watermark.unwrap_or(watermark);
        let watermark = earlier(Some(served), held_back).unwrap_or(served);
        self.apply(Step::Polled { watermark, at }).await?;
        Ok(watermark)
    }

    /// A record that changed and is not among those that match may have matched before.
    async fn drop_rows_that_stopped_matching(
        &self,
        watermark: i64,
        matching: &HashSet<SysId>,
    ) -> Result<(), Stop> {
        let layout = Arc::new(Layout::of_text(&[]));
        let mut tail = Tail::new("sys_updated_on", watermark - OVERLAP);
        let mut others = Vec::new();
        loop {
            let (query, offset) = tail.page(&Query::all())?;
            let list = |limit| {
                let table = &self.spec.table;
                self.client.list(List { table, query: &query, layout: &layout, limit, offset, count: true })
            };
            let (page, limit) = shrinking(self.spec.page_size, list).await?;
            others.extend(page.rows.ids().map(SysId::new).filter(|id| !matching.contains(id)));
            if tail.advance(&seen_in_time(&page), limit) == Progress::Done {
                break;
            }
        }
        for (table, stored) in self.store.find(others).await? {
            if table == self.table {
                recheck(&self.client, &*self.store, table, &self.spec, stored).await?;
            }
        }
        Ok(())
    }

    fn list<'a>(
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

/// Looks records up by `sys_id` and brings the store in line with what the instance shows of them.
pub(super) async fn recheck<T: Transport, S: Store>(
    client: &Client<T>,
    store: &S,
    table: S::Table,
    spec: &Spec,
    stored: StoredRecords,
) -> Result<(), Stop> {
    let (plain, odd): (Vec<_>, Vec<_>) = stored.into_iter().partition(|(id, _)| id.is_plain());
    let mut batches: Vec<&[(SysId, Version)]> = plain.chunks(IDS_AT_A_TIME).collect();
    while let Some(batch) = batches.pop() {
        let query = spec.query.clone().and(ids_term(batch.iter().map(|(id, _)| id)));
        let (name, layout, limit) = (&spec.table, &spec.layout, batch.len() as u32);
        let list = List { table: name, query: &query, layout, limit, offset: 0, count: false };
        let present = match client.list(list).await {
            Ok(page) => page.rows,
            Err(e) if retry::policy(&e, Effect::Read) == Policy::Shrink && batch.len() > 1 => {
                let (left, right) = batch.split_at(batch.len() / 2);
                batches.extend([left, right]);
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        let there: HashSet<&str> = present.ids().collect();
        let absent = batch.iter().filter(|(id, _)| !there.contains(id.as_str())).cloned().collect();
        store.apply(table, Step::Rechecked { present, absent }).await?;
    }
    // An identifier that cannot stand in a query is looked up by its address.
    for (id, version) in odd {
        let (present, absent) = match client.get(&spec.table, &id, &spec.layout).await {
            Ok(rows) => (rows, Vec::new()),
            Err(Error::NoRecord(_)) => (Rows::new(spec.layout.clone()), vec![(id, version)]),
            Err(e) => return Err(e.into()),
        };
        store.apply(table, Step::Rechecked { present, absent }).await?;
    }
    Ok(())
}

/// Makes a list call in ever smaller pages as long as the instance cuts the answer short; gives back the page
/// and the limit it was asked for with.
async fn shrinking<F: Future<Output = crate::Result<Page>>>(
    page_size: u32,
    list: impl Fn(u32) -> F,
) -> crate::Result<(Page, u32)> {
    let mut limit = page_size.max(1);
    loop {
        match list(limit).await {
            Ok(page) => return Ok((page, limit)),
            Err(e) if retry::policy(&e, Effect::Read) == Policy::Shrink && limit > SMALLEST_PAGE => {
                limit = (limit / 2).max(SMALLEST_PAGE);
            }
            Err(e) => return Err(e),
        }
    }
}

/// Makes sure that the table has every field that columns and conditions name.
fn check_fields(def: &TableDef, spec: &Spec) -> Result<(), Error> {
    let columns = spec.layout.columns().iter().map(|column| column.field.as_str());
    for path in columns.chain(spec.query.fields()) {
        let field = path.split('.').next().unwrap_or(path);
        if def.field(field).is_none() {
            return Err(Error::NoField { table: spec.table.to_string(), field: field.to_owned() });
        }
    }
    Ok(())
}

fn seen_in_time(page: &Page) -> SeenInTime {
    let rows = &page.rows;
    let last = rows.len().checked_sub(1).and_then(|row| {
        let second = rows.version(row).updated_on?;
        Some((second, SysId::new(rows.id(row))))
    });
    SeenInTime { rows: rows.len(), last, total: page.total }
}

fn earlier(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
