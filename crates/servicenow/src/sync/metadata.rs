//! What changes a table's rows without touching them: the dictionary, choices, and the names of referenced records.
//!
//! One reader serves all tables of a server. At every reading it asks what has changed in the dictionary, among the
//! choices and in the tables that columns refer to (`reference.rs`), and tells the store. A referenced record's label is
//! its display field as the caller sees it; the rows that show it have not changed, so nothing else would tell.
//!
//! Where a row itself says which record it refers to, the store finds it. Where it does not, the instance is asked for
//! the rows that refer to a record that has changed, which it has an index for; the same goes for lists and for dot-walks
//! of several steps. A record that was deleted may leave its identifier where it was referred to, or nothing, and its
//! referrers untouched: those are looked up.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::stream::{StreamExt, iter};
use tokio::sync::Notify;

use super::mirror::Spec;
use super::pace::Pace;
use super::range::Range;
use super::reference::{Reference, references};
use super::store::{MetadataRead, Relabelling, Renamed, Step, Store, StoreError};
use super::sweep::{Progress, Seen, Sweep};
use super::tail::{SeenInTime, Tail};
use super::{OVERLAP, Stop, local_seconds, rest_after_reading};
use crate::client::Client;
use crate::client::page_size::PageSize;
use crate::client::table_api::{List, shrinking};
use crate::client::transport::Transport;
use crate::dictionary::{self, TableDef};
use crate::error::Error;
use crate::page::{Column, Layout, Rows};
use crate::query::{Op, Query, Term};
use crate::value::{Kind, Show, SysId, TableName, date_time, decode_seconds};

/// The time between two readings of the dictionary although nothing has told of a change: removed entries leave no
/// trace, and not everybody may see when others change.
const DESCRIBE_INTERVAL: Duration = Duration::from_secs(3_600);
/// Records asked for at a time.
const PAGE: u32 = 1_000;
/// Tables that are read, or told of something, side by side.
const TABLES_AT_A_TIME: usize = 4;
/// Names handed to the store at a time: each time it may have to look through a whole table.
const NAMES_AT_A_TIME: usize = 20_000;
/// Records whose referrers are asked for in one call, so that its address stays well below an instance's limit; of lists,
/// whose condition is longer, fewer.
const REFERRED_AT_A_TIME: usize = 50;
const LISTED_AT_A_TIME: usize = 20;
/// Names remembered, so that a record that changes often and keeps its name is not looked for every time.
const REMEMBERED: usize = 200_000;
/// Dot-walks have at most so many steps.
const LONGEST_WALK: usize = 8;

/// Where the news goes.
pub trait MetadataStore: Store {
    /// The second from which on changes matter and have not been read; `None` before the first reading.
    fn metadata_since(&self) -> impl Future<Output = Result<Option<i64>, StoreError>> + Send;

    /// What the dictionary says now of the tables that are mirrored, and of those their columns lead through. Rows, their
    /// labels included, are brought in line with it.
    fn describe(&self, defs: Vec<TableDef>) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// A reading came to its end, or failed.
    fn note_metadata(
        &self,
        outcome: Result<MetadataRead, Stop>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Reads the metadata of one server's tables.
pub struct Metadata<T, S: Store> {
    client: Client<T>,
    store: Arc<S>,
    specs: HashMap<S::Table, Spec>,
    /// The tables that columns refer to.
    referred: BTreeMap<TableName, Referred<S::Table>>,
    described: Option<Instant>,
    /// When the last reading began, by the local clock.
    last_read: Option<SystemTime>,
    /// Tables that cannot be asked for what has changed in them.
    opaque: HashSet<TableName>,
    /// What each table has been told.
    told: HashMap<S::Table, HashMap<(TableName, SysId), Names>>,
    /// The tables that each class extends of which a record was deleted, as far as that may be seen.
    chains: HashMap<TableName, Option<Vec<TableName>>>,
}

/// What is shown of a record; of one that is gone, not even nothing.
type Names = Vec<Option<String>>;

/// A table that columns refer to.
struct Referred<K> {
    /// What they show of its records.
    shown: Vec<(String, Show)>,
    /// The columns, by their table.
    by: HashMap<K, Vec<Reference>>,
}

impl<K> Default for Referred<K> {
    fn default() -> Self {
        Self { shown: Vec::new(), by: HashMap::new() }
    }
}

/// What has changed in a table that columns refer to.
#[derive(Default)]
struct News {
    /// Records, as they are shown now.
    changed: Vec<(SysId, Names)>,
    /// Records that were deleted, with the names they had.
    gone: Vec<(SysId, String)>,
}

impl<T: Transport, S: MetadataStore> Metadata<T, S>
where
    S::Table: Hash,
{
    /// A reader for these tables.
    pub fn new(client: Client<T>, store: Arc<S>, specs: &HashMap<S::Table, Spec>) -> Self {
        Self {
            client,
            store,
            specs: specs.clone(),
            referred: BTreeMap::new(),
            described: None,
            last_read: None,
            opaque: HashSet::new(),
            told: HashMap::new(),
            chains: HashMap::new(),
        }
    }

    /// Reads what has changed since the last reading the store took note of.
    pub async fn read(&mut self) -> Result<MetadataRead, Stop> {
        let at = SystemTime::now();
        let since = self.store.metadata_since().await?;
        let (changed, served) = self.definitions_changed(since).await?;
        let is_due = self.described.is_none_or(|last| last.elapsed() >= DESCRIBE_INTERVAL);
        if changed || is_due {
            self.describe().await?;
        }
        if let Some(since) = since {
            self.read_referred(since).await?;
        }
        let served = served.unwrap_or_else(|| local_seconds(at));
        let before = self.last_read.replace(at);
        let watermark = match since {
            // The instance's clock has been set back: what was changed since then is stamped earlier than the watermark.
            Some(since) if served < since - OVERLAP => {
                let passed = before.and_then(|before| at.duration_since(before).ok());
                served - passed.unwrap_or(DESCRIBE_INTERVAL).as_secs() as i64
            }
            _ => served,
        };
        Ok(MetadataRead { watermark, at })
    }

    /// Whether anything in the dictionary or among the choices has changed, as far as the caller may see; and the
    /// instance's clock.
    async fn definitions_changed(&self, since: Option<i64>) -> Result<(bool, Option<i64>), Stop> {
        let layout = Arc::new(Layout::of_text(&[]));
        let from = since.unwrap_or(i64::MAX / 4).saturating_sub(OVERLAP);
        let mut served = None;
        let mut changed = false;
        for name in ["sys_choice", "sys_dictionary"] {
            let table = TableName::new(name).expect("a valid name");
            let time = date_time(from).unwrap_or_else(|| "9999-01-01 00:00:00".to_owned());
            let term = Term::new("sys_updated_on", Op::Ge, &time).map_err(Error::from)?;
            let query = Query::all().and(term);
            let list =
                List { table: &table, query: &query, layout: &layout, limit: 1, offset: 0, count: false };
            match self.client.list(list).await {
                Ok(page) => {
                    served = served.or(page.served_at);
                    changed |= !page.rows.is_empty();
                }
                Err(Error::Refused { .. } | Error::NoTable(_)) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok((changed, served))
    }

    async fn describe(&mut self) -> Result<(), Stop> {
        let tables: BTreeSet<&TableName> = self.specs.values().map(|spec| &spec.table).collect();
        let mut wanted: Vec<TableName> = tables.into_iter().cloned().collect();
        let (mut defs, mut asked) = (HashMap::new(), HashSet::new());
        let mut found = Vec::new();
        for _ in 0..LONGEST_WALK {
            asked.extend(wanted.iter().cloned());
            // One that cannot be described says so where it is mirrored.
            let described = dictionary::fetch(&self.client, &wanted).await?;
            defs.extend(described.into_iter().filter_map(|(table, def)| Some((table, def.ok()?))));
            let mut unknown = BTreeSet::new();
            found = Vec::new();
            for (table, spec) in &self.specs {
                if let Some(def) = defs.get(&spec.table) {
                    let references = references(&spec.layout, def, &defs, &mut unknown);
                    found.extend(references.into_iter().map(|reference| (*table, reference)));
                }
            }
            wanted = unknown.into_iter().filter(|table| !asked.contains(table)).collect();
            if wanted.is_empty() {
                break;
            }
        }
        self.referred.clear();
        for (table, reference) in found {
            let referred = self.referred.entry(reference.table.clone()).or_default();
            if !referred.shown.contains(&reference.shown) {
                referred.shown.push(reference.shown.clone());
            }
            referred.by.entry(table).or_default().push(reference);
        }
        self.opaque.clear();
        self.told.clear();
        self.chains.clear();
        self.store.describe(defs.into_values().collect()).await?;
        self.described = Some(Instant::now());
        Ok(())
    }

    /// Tells of the records that have changed or gone in the tables that columns refer to. Tables are read side by side: one
    /// that is slow or fails does not keep the others' news back.
    async fn read_referred(&mut self, since: i64) -> Result<(), Stop> {
        if self.referred.is_empty() {
            return Ok(());
        }
        let mut failure = None;
        let mut gone = self.read_gone(since).await.unwrap_or_else(|stop| {
            failure = Some(stop);
            HashMap::new()
        });
        let reads: Vec<_> = self
            .referred
            .iter()
            .map(|(table, referred)| {
                let (client, table, shown) = (self.client.clone(), table.clone(), referred.shown.clone());
                let opaque = self.opaque.contains(&table);
                let gone = gone.remove(&table).unwrap_or_default();
                async move {
                    let changed = match opaque {
                        true => Ok(None),
                        false => changed_since(&client, &table, &shown, since).await,
                    };
                    (table, changed, gone)
                }
            })
            .collect();
        let mut reads = iter(reads).buffer_unordered(TABLES_AT_A_TIME);
        while let Some((table, changed, gone)) = reads.next().await {
            let mut news = News { changed: Vec::new(), gone };
            match changed {
                Ok(Some(changed)) => news.changed = changed,
                Ok(None) => drop(self.opaque.insert(table.clone())),
                Err(e) => drop(failure.get_or_insert(e.into())),
            }
            if let Err(stop) = self.tell(&table, news).await {
                failure.get_or_insert(stop);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// What was deleted of the tables that columns refer to, by table. An entry says the real class, which may be one that
    /// extends a table referred to; so whoever refers to a table hears of all that cannot be told to be another's.
    async fn read_gone(&mut self, since: i64) -> Result<HashMap<TableName, Vec<(SysId, String)>>, Stop> {
        let table = TableName::new("sys_audit_delete").expect("a valid name");
        let layout =
            Arc::new(Layout::of_text(&["documentkey", "display_value", "tablename", "sys_created_on"]));
        let mut gone: HashMap<TableName, Vec<(SysId, String)>> = HashMap::new();
        let mut tail = Tail::new("sys_created_on", since - OVERLAP);
        let page_size = PageSize::new(PAGE);
        let mut deleted: BTreeMap<String, Vec<(SysId, String)>> = BTreeMap::new();
        loop {
            let listed = shrinking(&page_size, async |limit| {
                let (query, offset) = tail.page(&Query::all(), limit)?;
                let (table, query, layout) = (&table, &query, &layout);
                self.client.list(List { table, query, layout, limit, offset, count: true }).await
            });
            let (page, limit) = match listed.await {
                Ok(listed) => listed,
                Err(Error::Refused { .. } | Error::NoTable(_) | Error::Rejected { .. }) => return Ok(gone),
                Err(e) => return Err(e.into()),
            };
            let rows = &page.rows;
            for row in (0..rows.len()).filter(|row| !rows.get(*row, "documentkey").is_empty()) {
                let record =
                    (SysId::new(rows.get(row, "documentkey")), rows.get(row, "display_value").to_owned());
                deleted.entry(rows.get(row, "tablename").to_owned()).or_default().push(record);
            }
            let last = rows.len().checked_sub(1).and_then(|row| {
                Some((decode_seconds(rows.get(row, "sys_created_on"))?, SysId::new(rows.id(row))))
            });
            let seen = SeenInTime { rows: rows.len(), last, total: page.total };
            if tail.advance(&seen, limit) == Progress::Done {
                break;
            }
        }
        let classes = deleted.keys().filter_map(|class| TableName::new(class.as_str()).ok());
        let classes: Vec<TableName> = classes.filter(|class| !self.chains.contains_key(class)).collect();
        let mut chains = dictionary::chains(&self.client, &classes).await?;
        self.chains.extend(classes.into_iter().map(|class| {
            let chain = chains.remove(&class);
            (class, chain)
        }));
        for (class, records) in deleted {
            let known = TableName::new(class).ok().and_then(|class| self.chains.get(&class)?.as_ref());
            for referred in self.referred.keys() {
                if known.is_none_or(|chain| chain.contains(referred)) {
                    gone.entry(referred.clone()).or_default().extend(records.iter().cloned());
                }
            }
        }
        Ok(gone)
    }

    /// Tells every table that refers to another what has changed in that. One that somebody has locked keeps no other from
    /// hearing of it.
    async fn tell(&mut self, referred: &TableName, news: News) -> Result<(), Stop> {
        let Some(Referred { shown, by }) = self.referred.get(referred) else { return Ok(()) };
        let (client, store, told) = (&self.client, &self.store, &self.told);
        let (specs, news) = (&self.specs, &news);
        let tell = by.iter().filter_map(|(table, references)| {
            let spec = specs.get(table)?;
            let known = told.get(table);
            let is_new = |id: &SysId, names: &Names| {
                known.and_then(|known| known.get(&(referred.clone(), id.clone()))) != Some(names)
            };
            let changed = news.changed.iter().filter(|(id, names)| is_new(id, names));
            let mut changed: Vec<(SysId, Names)> = changed.cloned().collect();
            let gone = news.gone.iter().filter(|(id, _)| is_new(id, &Names::new()));
            let gone: Vec<(SysId, String)> = gone.cloned().collect();
            Some(async move {
                let referrers = Referrers { client, store: &**store, table: *table, spec, references };
                let outcome = match referrers.show(shown, &changed).await {
                    Ok(()) => referrers.doubt(&gone).await,
                    failed => failed,
                };
                changed.extend(gone.into_iter().map(|(id, _)| (id, Names::new())));
                (*table, changed, outcome)
            })
        });
        let outcomes: Vec<_> =
            iter(tell.collect::<Vec<_>>()).buffer_unordered(TABLES_AT_A_TIME).collect().await;
        let mut failure = None;
        for (table, changed, outcome) in outcomes {
            match outcome {
                Ok(()) => self.remember(table, referred, changed),
                // It is told again, so it must not be taken for known. Whoever changes the table begins anew.
                Err(Stop::Store(StoreError::Stale)) => {}
                Err(stop) => drop(failure.get_or_insert(stop)),
            }
        }
        failure.map_or(Ok(()), Err)
    }

    fn remember(&mut self, table: S::Table, referred: &TableName, changed: Vec<(SysId, Names)>) {
        if self.told.values().map(HashMap::len).sum::<usize>() + changed.len() > REMEMBERED {
            self.told.clear();
        }
        let known = self.told.entry(table).or_default();
        known.extend(changed.into_iter().map(|(id, names)| ((referred.clone(), id), names)));
    }
}

/// The rows of one table that refer to another.
struct Referrers<'m, T, S: Store> {
    client: &'m Client<T>,
    store: &'m S,
    table: S::Table,
    spec: &'m Spec,
    references: &'m [Reference],
}

impl<T: Transport, S: Store> Referrers<'_, T, S> {
    /// Has the rows show what records are called now.
    async fn show(&self, shown: &[(String, Show)], changed: &[(SysId, Names)]) -> Result<(), Stop> {
        if changed.is_empty() {
            return Ok(());
        }
        let columns: Vec<Renamed> = self
            .references
            .iter()
            .filter_map(|reference| {
                let name = shown.iter().position(|shown| *shown == reference.shown)?;
                Some(Renamed { column: reference.column, by: reference.twin?, name })
            })
            .collect();
        for records in changed.chunks(NAMES_AT_A_TIME).filter(|_| !columns.is_empty()) {
            let relabelling = Relabelling { columns: columns.clone(), records: records.to_vec() };
            self.store.apply(self.table, Step::Relabelled(relabelling)).await?;
        }
        let ids: Vec<&SysId> = changed.iter().map(|(id, _)| id).collect();
        self.reread(&ids, |reference| reference.twin.is_none()).await
    }

    /// Has the rows looked up that refer to records that were deleted, or did: by what they hold themselves, by the name
    /// they show, and by what the instance has of them.
    async fn doubt(&self, gone: &[(SysId, String)]) -> Result<(), Stop> {
        if gone.is_empty() {
            return Ok(());
        }
        let ids: Vec<String> = gone.iter().map(|(id, _)| id.as_str().to_owned()).collect();
        let names: Vec<String> =
            gone.iter().map(|(_, name)| name.clone()).filter(|n| !n.is_empty()).collect();
        let mut texts: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for reference in self.references.iter().filter(|reference| !reference.is_list) {
            match reference.twin {
                Some(by) => drop(texts.insert(by, ids.clone())),
                None if self.spec.layout.columns()[reference.column].show == Show::Label
                    && !names.is_empty() =>
                {
                    texts.insert(reference.column, names.clone());
                }
                None => {}
            }
        }
        if !texts.is_empty() {
            self.store.apply(self.table, Step::DoubtedWhere(texts.into_iter().collect())).await?;
        }
        self.reread(&gone.iter().map(|(id, _)| id).collect::<Vec<_>>(), |reference| reference.twin.is_none())
            .await
    }

    /// Reads those columns of the rows that refer to these records.
    async fn reread(&self, ids: &[&SysId], which: impl Fn(&Reference) -> bool) -> Result<(), Stop> {
        let mut paths: BTreeMap<(&str, bool), BTreeSet<usize>> = BTreeMap::new();
        for reference in self.references.iter().filter(|reference| which(reference)) {
            paths.entry((&reference.path, reference.is_list)).or_default().insert(reference.column);
        }
        let ids: Vec<&SysId> = ids.iter().copied().filter(|id| id.is_plain()).collect();
        for ((path, is_list), columns) in paths {
            let columns: Vec<usize> = columns.into_iter().collect();
            let at_a_time = if is_list { LISTED_AT_A_TIME } else { REFERRED_AT_A_TIME };
            for some in ids.chunks(at_a_time) {
                let condition = match is_list {
                    true => some.iter().map(|id| Term::contains(path, id.as_str())).collect(),
                    false => Term::is_one_of(path, some.iter().map(|id| id.as_str())).map(|term| vec![term]),
                };
                let query = self.spec.query.clone().and_any(condition.map_err(Error::from)?);
                self.read_columns(&query, &columns).await?;
            }
        }
        Ok(())
    }

    async fn read_columns(&self, query: &Query, columns: &[usize]) -> Result<(), Stop> {
        let layout = columns.iter().map(|column| self.spec.layout.columns()[*column].clone());
        let layout = Arc::new(Layout::new(layout.collect()));
        let page_size = PageSize::new(self.spec.page_size);
        let mut sweep = Sweep::new(Range::default(), None);
        loop {
            let (query, offset) = sweep.page(query)?;
            let (page, limit) = shrinking(&page_size, |limit| {
                let (table, query, count) = (&self.spec.table, &query, sweep.wants_count(limit));
                self.client.list(List { table, query, layout: &layout, limit, offset, count })
            })
            .await?;
            let last = page.rows.ids().last().map(SysId::new);
            let seen = Seen { rows: page.rows.len(), last, total: page.total };
            let progress = sweep.advance(&seen, limit);
            if !page.rows.is_empty() {
                let (columns, rows) = (columns.to_vec(), page.rows);
                self.store.apply(self.table, Step::Reread { columns, rows }).await?;
            }
            if progress == Progress::Done {
                return Ok(());
            }
        }
    }
}

/// What is shown of records of a table that have changed since a second; `None` if the table cannot be asked for that.
async fn changed_since<T: Transport>(
    client: &Client<T>,
    table: &TableName,
    shown: &[(String, Show)],
    since: i64,
) -> crate::Result<Option<Vec<(SysId, Names)>>> {
    let column =
        |(field, show): &(String, Show)| Column { field: field.clone(), show: *show, kind: Kind::Text };
    let layout = Arc::new(Layout::new(shown.iter().map(column).collect()));
    let page_size = PageSize::new(PAGE);
    let from = since - OVERLAP;
    let mut tail = Tail::new("sys_updated_on", from);
    let mut changed = Vec::new();
    loop {
        let listed = shrinking(&page_size, async |limit| {
            let (query, offset) = tail.page(&Query::all(), limit)?;
            let layout = &layout;
            client.list(List { table, query: &query, layout, limit, offset, count: true }).await
        });
        let (page, limit) = match listed.await {
            Ok(listed) => listed,
            Err(Error::Refused { .. } | Error::NoTable(_) | Error::Rejected { .. }) => return Ok(None),
            Err(e) => return Err(e),
        };
        let rows = &page.rows;
        let stamp = |row| rows.version(row).updated_on;
        if (0..rows.len()).any(|row| stamp(row).is_none_or(|stamp| stamp < from)) {
            // The instance dropped the condition: the table has no such field, and gives everything it has.
            return Ok(None);
        }
        changed.extend((0..rows.len()).map(|row| (SysId::new(rows.id(row)), names(rows, row))));
        let last = rows.len().checked_sub(1).and_then(|row| Some((stamp(row)?, SysId::new(rows.id(row)))));
        if tail.advance(&SeenInTime { rows: rows.len(), last, total: page.total }, limit) == Progress::Done {
            return Ok(Some(changed));
        }
    }
}

fn names(rows: &Rows, row: usize) -> Names {
    let columns = 0..rows.layout().columns().len();
    columns.map(|column| rows.is_shown(row, column).then(|| rows.text(row, column).to_owned())).collect()
}

/// Reads metadata at a pace until the future is dropped; `nudge` ends a wait early, one after a failure if it is long.
pub async fn run<T: Transport, S: MetadataStore>(
    mut metadata: Metadata<T, S>,
    mut pace: Pace,
    nudge: Arc<Notify>,
) where
    S::Table: Hash,
{
    let mut failures = 0;
    loop {
        let outcome = metadata.read().await;
        let rest = rest_after_reading(&mut failures, outcome.is_ok(), pace.now());
        // What the store could not note it is told again after the next reading.
        let _noted = metadata.store.note_metadata(outcome).await;
        rest.take(&nudge, &mut pace).await;
    }
}
