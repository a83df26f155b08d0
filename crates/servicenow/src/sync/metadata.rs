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
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use futures_util::stream::{StreamExt, iter};
use tokio::sync::Notify;

use super::mirror::Spec;
use super::names::{Changes, Named, Told};
use super::pace::Pace;
use super::reference::{Reference, references};
use super::referrers::Referrers;
use super::store::{MetadataRead, Store, StoreError};
use super::sweep::Progress;
use super::tail::Tail;
use super::{OVERLAP, Stop, local_seconds, rest_after_reading};
use crate::client::Client;
use crate::client::page_size::PageSize;
use crate::client::table_api::{List, shrinking};
use crate::client::transport::Transport;
use crate::dictionary::{self, TableDef};
use crate::error::Error;
use crate::page::Layout;
use crate::query::{Op, Query, Term};
use crate::value::{Show, SysId, TableName, date_time};

/// The time between two readings of the dictionary although nothing has told of a change: removed entries leave no
/// trace, and not everybody may see when others change.
const DESCRIBE_INTERVAL: Duration = Duration::from_secs(3_600);
/// Records asked for at a time.
const PAGE: u32 = 1_000;
/// Tables that are read, or told of something, side by side.
const TABLES_AT_A_TIME: usize = 4;
/// Records gathered before their referrers are told, give or take a page: each time the store may have to look through
/// a whole table.
pub const NAMES_AT_A_TIME: usize = 5_000;
/// Dot-walks have at most so many steps.
const LONGEST_WALK: usize = 8;

/// Where the news goes.
pub trait MetadataStore: Store {
    /// The second from which on changes matter and have not been read: where the last reading said, or the beginning of the
    /// first fill; `None` before both.
    fn metadata_since(&self) -> impl Future<Output = Result<Option<i64>, StoreError>> + Send;

    /// What the dictionary says now of the tables that are mirrored, and of those their columns lead through. Rows, their
    /// labels included, are brought in line with it.
    fn describe(&self, defs: Vec<TableDef>) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// A reading came to its end, or failed.
    fn note_metadata(
        &self,
        outcome: Result<MetadataRead<Self::Table>, Stop>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Reads the metadata of one server's tables.
pub struct Metadata<T, S: Store> {
    client: Client<T>,
    /// For lists, which may go together with those of others.
    reader: Client<T>,
    store: Arc<S>,
    specs: HashMap<S::Table, Spec>,
    /// The tables that columns refer to.
    referred: BTreeMap<TableName, Referred<S::Table>>,
    described: Option<Instant>,
    /// When the last reading began, by the local clock.
    last_read: Option<SystemTime>,
    /// Tables that cannot be asked for what has changed in them.
    opaque: HashSet<TableName>,
    /// Tables that columns lead through and that could not be described, by the table of the columns.
    undescribed: HashMap<S::Table, BTreeSet<TableName>>,
    /// What each table has been told.
    told: Mutex<Told>,
    /// Tables are told of one referred to after the other.
    telling: tokio::sync::Mutex<()>,
    /// The tables that each class extends of which a record was deleted, as far as that may be seen.
    chains: HashMap<TableName, Option<Vec<TableName>>>,
}

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
    changed: Vec<Named>,
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
            reader: client.clone(),
            client,
            store,
            specs: specs.clone(),
            referred: BTreeMap::new(),
            described: None,
            last_read: None,
            opaque: HashSet::new(),
            undescribed: HashMap::new(),
            told: Mutex::default(),
            telling: tokio::sync::Mutex::default(),
            chains: HashMap::new(),
        }
    }

    /// Has its lists go together with those of others, or not.
    fn go_along(&mut self, along: bool) {
        self.reader = self.client.gathering_if(along);
    }

    /// Reads what has changed since the last reading the store took note of.
    pub async fn read(&mut self) -> Result<MetadataRead<S::Table>, Stop> {
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
        Ok(MetadataRead { watermark, at, unfollowed: self.unfollowed() })
    }

    /// Whether anything in the dictionary or among the choices has changed, as far as the caller may see; and the
    /// instance's clock.
    async fn definitions_changed(&self, since: Option<i64>) -> Result<(bool, Option<i64>), Stop> {
        let layout = Arc::new(Layout::of_text(&[]));
        let from = since.unwrap_or(i64::MAX / 4).saturating_sub(OVERLAP);
        let time = date_time(from).unwrap_or_else(|| "9999-01-01 00:00:00".to_owned());
        let term = Term::new("sys_updated_on", Op::Ge, &time).map_err(Error::from)?;
        let (query, layout) = (&Query::all().and(term), &layout);
        let reads = ["sys_choice", "sys_dictionary"].map(|name| async move {
            let table = &TableName::new(name).expect("a valid name");
            self.reader.list(List { table, query, layout, limit: 1, offset: 0, count: false }).await
        });
        let mut served = None;
        let mut changed = false;
        for read in join_all(reads).await {
            match read {
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
            (found, self.undescribed) = (Vec::new(), HashMap::new());
            for (table, spec) in &self.specs {
                if let Some(def) = defs.get(&spec.table) {
                    let mut missing = BTreeSet::new();
                    let references = references(&spec.layout, def, &defs, &mut missing);
                    found.extend(references.into_iter().map(|reference| (*table, reference)));
                    unknown.extend(missing.iter().cloned());
                    if !missing.is_empty() {
                        self.undescribed.insert(*table, missing);
                    }
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
        self.told().clear();
        self.chains.clear();
        self.store.describe(defs.into_values().collect()).await?;
        self.described = Some(Instant::now());
        Ok(())
    }

    /// See [`MetadataRead::unfollowed`].
    fn unfollowed(&self) -> HashMap<S::Table, BTreeSet<TableName>> {
        let mut unfollowed = self.undescribed.clone();
        for referred in &self.opaque {
            for table in self.referred.get(referred).into_iter().flat_map(|referred| referred.by.keys()) {
                unfollowed.entry(*table).or_default().insert(referred.clone());
            }
        }
        unfollowed
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().expect("no panic while it is held")
    }

    /// Tells of the records that have changed or gone in the tables that columns refer to. Tables are read side by side: one
    /// that is slow or fails does not keep the others' news back.
    async fn read_referred(&mut self, since: i64) -> Result<(), Stop> {
        if self.referred.is_empty() {
            return Ok(());
        }
        let mut failure = self.read_gone(since).await.err();
        let this = &*self;
        let reads = this.referred.iter().filter(|(table, _)| !this.opaque.contains(*table));
        let reads: Vec<_> = reads
            .map(|(table, referred)| async move {
                (
                    table.clone(),
                    this.read_changed(table, Changes::new(table.clone(), &referred.shown, since)).await,
                )
            })
            .collect();
        let reads: Vec<_> = iter(reads).buffer_unordered(TABLES_AT_A_TIME).collect().await;
        for (table, read) in reads {
            match read {
                Ok(true) => {}
                Ok(false) => drop(self.opaque.insert(table)),
                Err(stop) => drop(failure.get_or_insert(stop)),
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Tells of the records that have changed in a table, some at a time; gives back whether it can be asked for them.
    async fn read_changed(&self, table: &TableName, mut changes: Changes) -> Result<bool, Stop> {
        let (mut news, mut failure) = (News::default(), None);
        while !changes.is_over() {
            let client = if changes.is_at_its_beginning() { &self.reader } else { &self.client };
            let Some(page) = changes.next(client).await? else { return Ok(false) };
            news.changed.extend(page);
            if changes.is_over() || news.changed.len() >= NAMES_AT_A_TIME {
                failure = failure.or(self.tell(table, std::mem::take(&mut news)).await.err());
            }
        }
        failure.map_or(Ok(true), Err)
    }

    /// Tells of what was deleted of the tables that columns refer to, some at a time.
    async fn read_gone(&mut self, since: i64) -> Result<(), Stop> {
        let table = TableName::new("sys_audit_delete").expect("a valid name");
        let layout =
            Arc::new(Layout::of_text(&["documentkey", "display_value", "tablename", "sys_created_on"]));
        let mut tail = Tail::new("sys_created_on", since - OVERLAP);
        let page_size = PageSize::new(PAGE);
        let (mut deleted, mut gathered, mut failure) = (BTreeMap::new(), 0, None);
        loop {
            let listed = shrinking(&page_size, async |limit| {
                let (query, offset) = tail.page(&Query::all(), limit)?;
                let (table, query, layout) = (&table, &query, &layout);
                let client = if tail.is_at_its_beginning() { &self.reader } else { &self.client };
                client.list(List { table, query, layout, limit, offset, count: true }).await
            });
            let (page, limit) = match listed.await {
                Ok(listed) => listed,
                Err(Error::Refused { .. } | Error::NoTable(_) | Error::Rejected { .. }) => break,
                Err(e) => return Err(e.into()),
            };
            let rows = &page.rows;
            for row in (0..rows.len()).filter(|row| !rows.get(*row, "documentkey").is_empty()) {
                let record =
                    (SysId::new(rows.get(row, "documentkey")), rows.get(row, "display_value").to_owned());
                let class: &mut Vec<_> = deleted.entry(rows.get(row, "tablename").to_owned()).or_default();
                class.push(record);
                gathered += 1;
            }
            let is_over = tail.advance(&page, limit) == Progress::Done;
            if is_over || gathered >= NAMES_AT_A_TIME {
                failure = failure.or(self.tell_gone(std::mem::take(&mut deleted)).await.err());
                gathered = 0;
            }
            if is_over {
                break;
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Tells of deleted records, which are filed under the real class: that may be one that extends a table referred to. So
    /// whoever refers to a table hears of all that cannot be told to be another's.
    async fn tell_gone(&mut self, deleted: BTreeMap<String, Vec<(SysId, String)>>) -> Result<(), Stop> {
        let classes = deleted.keys().filter_map(|class| TableName::new(class.as_str()).ok());
        let classes: Vec<TableName> = classes.filter(|class| !self.chains.contains_key(class)).collect();
        let mut chains = dictionary::chains(&self.client, &classes).await?;
        self.chains.extend(classes.into_iter().map(|class| {
            let chain = chains.remove(&class);
            (class, chain)
        }));
        let mut failure = None;
        for referred in self.referred.keys() {
            let concerns = |class: &str| {
                let known = TableName::new(class).ok().and_then(|class| self.chains.get(&class)?.as_ref());
                known.is_none_or(|chain| chain.contains(referred))
            };
            let gone = deleted.iter().filter(|(class, _)| concerns(class)).flat_map(|(_, records)| records);
            let news = News { gone: gone.cloned().collect(), changed: Vec::new() };
            failure = failure.or(self.tell(referred, news).await.err());
        }
        failure.map_or(Ok(()), Err)
    }

    /// Tells every table that refers to another what has changed in that. One that somebody has locked keeps no other from
    /// hearing of it.
    async fn tell(&self, referred: &TableName, news: News) -> Result<(), Stop> {
        let Some(Referred { shown, by }) = self.referred.get(referred) else { return Ok(()) };
        let _one_after_the_other = self.telling.lock().await;
        let news = &news;
        let tells: Vec<_> = by
            .iter()
            .filter_map(|(table, references)| Some((*table, self.specs.get(table)?, references)))
            .map(|(table, spec, references)| async move {
                let (changed, gone) = {
                    let told = self.told();
                    let changed: Vec<&Named> =
                        news.changed.iter().filter(|record| told.is_news(table, referred, record)).collect();
                    let gone: Vec<&(SysId, String)> =
                        news.gone.iter().filter(|(id, _)| told.is_news_of_end(table, referred, id)).collect();
                    (changed, gone)
                };
                let (client, store) = (&self.client, &*self.store);
                let referrers = Referrers { client, store, table, spec, references };
                let outcome = match referrers.show(shown, &changed).await {
                    Ok(()) => referrers.doubt(&gone).await,
                    failed => failed,
                };
                match outcome {
                    Ok(()) => {
                        let mut told = self.told();
                        told.note(table, referred, &changed);
                        told.note_end(table, referred, gone.into_iter().map(|(id, _)| id));
                        Ok(())
                    }
                    // It is told again, so it must not be taken for known. Whoever changes the table begins anew.
                    Err(Stop::Store(StoreError::Stale)) => Ok(()),
                    failed => failed,
                }
            })
            .collect();
        let outcomes: Vec<_> = iter(tells).buffer_unordered(TABLES_AT_A_TIME).collect().await;
        outcomes.into_iter().find(Result::is_err).unwrap_or(Ok(()))
    }
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
        let next = pace.meeting_in().unwrap_or_else(|| pace.now());
        let rest = rest_after_reading(&mut failures, outcome.is_ok(), next);
        // What the store could not note it is told again after the next reading.
        let _noted = metadata.store.note_metadata(outcome).await;
        let is_asked = rest.take(&nudge, &mut pace).await;
        metadata.go_along(pace.is_slowed() && !is_asked);
    }
}
