//! Keeps one table like the instance's: fill once, then follow.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::future::try_join;
use futures_util::stream::{TryStreamExt, iter};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::store::{OpenRange, Position, Step, Store, StoreError, StoredRecords};
use super::sweep::{Progress, Range, Seen, Sweep};
use super::tail::{SeenInTime, Tail};
use super::{OVERLAP, Stop, local_seconds, pause_after};
use crate::client::Client;
use crate::client::page_size::PageSize;
use crate::client::retry::{self, Effect, Policy};
use crate::client::table_api::{List, Page, shrinking};
use crate::client::transport::Transport;
use crate::dictionary::{self, FieldDef, TableDef};
use crate::error::{Error, Words};
use crate::page::{Layout, Rows, Version};
use crate::query::{Query, ids_term};
use crate::value::{SysId, TableName};

/// A table of fewer records than this is read as one range.
const SPLIT_FROM: u64 = 4_000;
/// The ranges a larger table is read in.
const RANGES: usize = 16;
/// Records looked up by `sys_id` in one call; 32 characters each, so that the address stays short.
pub(super) const IDS_AT_A_TIME: usize = 100;
/// The time between two readings of a table that cannot be polled because it has no `sys_updated_on`.
const FULL_READ_INTERVAL: Duration = Duration::from_secs(600);

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
    /// Rows asked for at a time, at most.
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
    page_size: PageSize,
    position: Position,
    /// What the dictionary says that matters here; `None` if it has to be read.
    traits: Option<Traits>,
    /// When the last poll began, by the local clock.
    last_poll: Option<SystemTime>,
}

/// What a mirror has to know of its table.
#[derive(Clone, Copy, Debug)]
struct Traits {
    /// Changes can be found by `sys_updated_on`. Without it a query on it would match every record, because the
    /// instance drops conditions on fields it does not know.
    has_updated_on: bool,
}

impl Traits {
    /// Makes sure that the table has every field that columns and conditions name, as far as the table itself
    /// tells: of a dot-walk the first.
    fn of(def: &TableDef, spec: &Spec) -> Result<Self, Error> {
        for path in spec.paths() {
            field_of(def, path.split('.').next().unwrap_or(path))?;
        }
        Ok(Self { has_updated_on: def.field("sys_updated_on").is_some() })
    }
}

impl Spec {
    /// Every field and dot-walk that columns and conditions name.
    fn paths(&self) -> impl Iterator<Item = &str> {
        self.layout.columns().iter().map(|column| column.field.as_str()).chain(self.query.fields())
    }
}

fn field_of<'d>(def: &'d TableDef, field: &str) -> Result<&'d FieldDef, Error> {
    def.field(field).ok_or_else(|| Error::NoField { table: def.name.to_string(), field: field.to_owned() })
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
        let known = known.filter(|_| !spec.paths().any(|path| path.contains('.')));
        let traits = known.and_then(|def| Traits::of(def, &spec).ok());
        let page_size = PageSize::new(spec.page_size);
        Self { client, store, table, spec, page_size, position, traits, last_poll: None }
    }

    /// The position reached.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Does the next piece of work: begins a fill, completes it, or polls once. Gives back how long to wait
    /// before the one after it. After an error the caller may call again; nothing is lost.
    pub async fn advance(&mut self) -> Result<Duration, Stop> {
        let Traits { has_updated_on } = match self.traits {
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
                if has_updated_on {
                    return Ok(Duration::ZERO);
                }
                // There is nothing to poll by: the fill itself is the poll.
                self.apply(Step::Polled { watermark, at }).await?;
                Ok(FULL_READ_INTERVAL.max(self.spec.poll_interval))
            }
            Position::Following { watermark } if has_updated_on => {
                let watermark = self.poll(watermark).await?;
                self.position = Position::Following { watermark };
                Ok(self.spec.poll_interval)
            }
            Position::Following { .. } => {
                self.begin(true).await?;
                Ok(Duration::ZERO)
            }
        }
    }

    async fn apply(&self, step: Step) -> Result<(), Stop> {
        Ok(self.store.apply(self.table, step).await?)
    }

    /// Reads the table's description and makes sure that every field asked for exists: the instance would
    /// leave an unknown one out of its answers, and drop a condition on it, without a word.
    async fn describe(&self) -> Result<Traits, Stop> {
        let mut described = dictionary::fetch(&self.client, std::slice::from_ref(&self.spec.table)).await?;
        let def = described.pop().map(|(_, def)| def).unwrap_or(Err(Error::NoTable(Words::default())))?;
        let traits = Traits::of(&def, &self.spec)?;
        self.check_dot_walks(&def).await?;
        self.apply(Step::Described(Box::new(def))).await?;
        Ok(traits)
    }

    /// Follows every dot-walk through the dictionary, a step at a time.
    async fn check_dot_walks(&self, def: &TableDef) -> Result<(), Stop> {
        let walks = self.spec.paths().filter(|path| path.contains('.'));
        let mut walks: Vec<(TableDef, Vec<&str>)> =
            walks.map(|path| (def.clone(), path.split('.').rev().collect())).collect();
        let mut known: HashMap<TableName, TableDef> = HashMap::new();
        while !walks.is_empty() {
            let mut next = Vec::new();
            for (def, mut steps) in walks {
                let Some(step) = steps.pop() else { continue };
                let field = field_of(&def, step)?;
                if steps.is_empty() {
                    continue;
                }
                let Some(reference) = &field.reference else {
                    let field =
                        steps.into_iter().fold(step.to_owned(), |path, step| format!("{path}.{step}"));
                    return Err(Error::NoField { table: def.name.to_string(), field }.into());
                };
                next.push((reference.table.clone(), steps));
            }
            let unknown: Vec<TableName> =
                next.iter().map(|(table, _)| table.clone()).filter(|t| !known.contains_key(t)).collect();
            for (table, def) in dictionary::fetch(&self.client, &unknown).await? {
                known.insert(table, def?);
            }
            walks = next.into_iter().filter_map(|(t, steps)| Some((known.get(&t)?.clone(), steps))).collect();
        }
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
        self.apply(Step::Begin { ranges, since, refill, total: page.total, at }).await?;
        self.last_poll = Some(at);
        self.position = Position::Filling { refill, open, since };
        Ok(())
    }

    /// Fills the open ranges, several at a time. A range's position advances in the store as its pages are
    /// kept, so that whoever comes after a failure goes on from there.
    async fn fill(&mut self, refill: bool, open: Vec<OpenRange>) -> Result<(), Stop> {
        let left = Mutex::new(open.clone());
        let this = &*self;
        let filled = iter(open.into_iter().map(Ok::<_, Stop>))
            .try_for_each_concurrent(self.spec.parallel.max(1), |range| this.fill_range(refill, range, &left))
            .await;
        if let Position::Filling { open, .. } = &mut self.position {
            *open = left.into_inner().expect("no panic while it is held");
        }
        filled
    }

    /// Fills one range. The next page is fetched while the one before it is being stored.
    async fn fill_range(
        &self,
        refill: bool,
        open: OpenRange,
        left: &Mutex<Vec<OpenRange>>,
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
                    let step = Step::Filled { number: open.number, rows, after: after.clone() };
                    self.apply(step).await?;
                    let mut left = left.lock().expect("no panic while it is held");
                    left.iter_mut().filter(|r| r.number == open.number).for_each(|r| r.after = after.clone());
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
        let mut left = left.lock().expect("no panic while it is held");
        left.retain(|r| r.number != open.number);
        Ok(())
    }

    /// One page of a sweep, asked for in smaller pieces as long as the instance cuts it short.
    async fn sweep_page(&self, sweep: &mut Sweep) -> Result<(Rows, Progress), Stop> {
        let (query, offset) = sweep.page(&self.spec.query)?;
        let (page, limit) =
            shrinking(&self.page_size, |limit| self.list(&query, limit, offset, sweep.wants_count())).await?;
        let last = page.rows.ids().last().map(SysId::new);
        let progress = sweep.advance(&Seen { rows: page.rows.len(), last, total: page.total }, limit);
        Ok((page.rows, progress))
    }

    /// Reads what changed since the watermark; gives back the new one.
    async fn poll(&mut self, watermark: i64) -> Result<i64, Stop> {
        let at = SystemTime::now();
        let mut tail = Tail::new("sys_updated_on", watermark - OVERLAP);
        let mut matching = HashSet::new();
        let mut next_watermark: Option<i64> = None;
        loop {
            let (page, limit) = shrinking(&self.page_size, async |limit| {
                let (query, offset) = tail.page(&self.spec.query, limit)?;
                self.list(&query, limit, offset, true).await
            })
            .await?;
            next_watermark.get_or_insert(page.served_at.unwrap_or_else(|| local_seconds(at)));
            let progress = tail.advance(&seen_in_time(&page), limit);
            if !self.spec.query.is_all() {
                matching.extend(page.rows.ids().map(SysId::new));
            }
            if !page.rows.is_empty() {
                self.apply(Step::Changed(page.rows)).await?;
            }
            if progress == Progress::Done {
                break;
            }
        }
        let all =
            self.spec.query.is_all() || self.drop_rows_that_stopped_matching(watermark, &matching).await?;
        let unsettled = self.store.to_recheck(self.table).await?;
        recheck(&self.client, &*self.store, self.table, &self.spec, unsettled).await?;
        let next = match next_watermark {
            Some(served) if all => self.next_watermark(watermark, served, at),
            _ => watermark,
        };
        self.apply(Step::Polled { watermark: next, at }).await?;
        self.last_poll = Some(at);
        Ok(next)
    }

    /// Where the next poll begins. If the instance's clock has been set back, what was changed since then and
    /// before this poll is stamped earlier than the old watermark; so it begins as far back as that may be.
    fn next_watermark(&self, before: i64, served: i64, at: SystemTime) -> i64 {
        if served >= before - OVERLAP {
            return served;
        }
        let since = self.last_poll.and_then(|last| at.duration_since(last).ok());
        served - since.unwrap_or(self.spec.poll_interval).as_secs() as i64
    }

    /// A record that changed and is not among those that match may have matched before. Gives back whether the
    /// store could be asked about all of them.
    async fn drop_rows_that_stopped_matching(
        &self,
        watermark: i64,
        matching: &HashSet<SysId>,
    ) -> Result<bool, Stop> {
        let layout = Arc::new(Layout::of_text(&[]));
        let mut tail = Tail::new("sys_updated_on", watermark - OVERLAP);
        let mut others = Vec::new();
        loop {
            let (page, limit) = shrinking(&self.page_size, async |limit| {
                let (query, offset) = tail.page(&Query::all(), limit)?;
                let table = &self.spec.table;
                let list = List { table, query: &query, layout: &layout, limit, offset, count: true };
                self.client.list(list).await
            })
            .await?;
            others.extend(page.rows.ids().map(SysId::new).filter(|id| !matching.contains(id)));
            if tail.advance(&seen_in_time(&page), limit) == Progress::Done {
                break;
            }
        }
        let found = self.store.find(others).await?;
        for (table, stored) in found.records {
            if table == self.table {
                recheck(&self.client, &*self.store, table, &self.spec, stored).await?;
            }
        }
        Ok(found.complete)
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
        let step = Step::Rechecked { looked_up: batch.to_vec(), present };
        store.apply(table, step).await?;
    }
    // An identifier that cannot stand in a query is looked up by its address.
    for (id, version) in odd {
        let present = match client.get(&spec.table, &id, &spec.layout).await {
            Ok(rows) => rows,
            Err(Error::NoRecord(_)) => Rows::new(spec.layout.clone()),
            Err(e) => return Err(e.into()),
        };
        let step = Step::Rechecked { looked_up: vec![(id, version)], present };
        store.apply(table, step).await?;
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
