//! What changes a table's rows without touching them: the dictionary, choices, and the names of referenced records.
//!
//! One reader serves all tables of a server. At every reading it asks what has changed in the dictionary, among the
//! choices and in the tables that columns refer to, and tells the store. A referenced record's label is its display
//! field as the caller sees it; the rows that show it have not changed, so nothing else would tell.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::stream::{StreamExt, iter};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::mirror::Spec;
use super::pace::Pace;
use super::store::StoreError;
use super::sweep::Progress;
use super::tail::{SeenInTime, Tail};
use super::{OVERLAP, Stop, local_seconds, pause_after_reading};
use crate::client::Client;
use crate::client::page_size::PageSize;
use crate::client::table_api::{List, shrinking};
use crate::client::transport::Transport;
use crate::dictionary::{self, TableDef};
use crate::error::Error;
use crate::page::{Column, Layout};
use crate::query::{Op, Query, Term};
use crate::value::{Kind, Show, SysId, TableName, date_time};

/// The time between two readings of the dictionary although nothing has told of a change: removed entries leave no
/// trace, and not everybody may see when others change.
const DESCRIBE_INTERVAL: Duration = Duration::from_secs(3_600);
/// Records asked for at a time.
const PAGE: u32 = 1_000;
/// Tables whose names are read side by side.
const TABLES_AT_A_TIME: usize = 4;
/// Labels handed to the store at a time: each time it may have to look through whole tables.
const LABELS_AT_A_TIME: usize = 20_000;
/// Labels remembered, so that a record that changes often and keeps its name is not looked for every time.
const REMEMBERED: usize = 200_000;

/// Where the news goes.
pub trait MetadataStore: Send + Sync + 'static {
    /// The second from which on changes matter and have not been read; `None` before the first reading.
    fn metadata_since(&self) -> impl Future<Output = Result<Option<i64>, StoreError>> + Send;

    /// What the dictionary says of tables now. Rows, their labels included, are brought in line with it.
    fn describe(&self, defs: Vec<TableDef>) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Records of a table are shown under these names now, wherever something refers to them.
    fn relabel(
        &self,
        table: TableName,
        labels: Vec<(SysId, String)>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// A reading came to its end: everything before this second has been read; or it failed.
    fn note_metadata(
        &self,
        outcome: Result<i64, Stop>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Reads the metadata of one server's tables.
pub struct Metadata<T, S> {
    client: Client<T>,
    store: Arc<S>,
    specs: Vec<Spec>,
    /// Per referenced table: the field that names its records.
    references: BTreeMap<TableName, String>,
    described: Option<Instant>,
    /// Tables that cannot be asked for what has changed in them.
    opaque: HashSet<TableName>,
    labels: HashMap<(TableName, SysId), String>,
}

impl<T: Transport, S: MetadataStore> Metadata<T, S> {
    /// A reader for these tables.
    pub fn new<K: Eq + Hash>(client: Client<T>, store: Arc<S>, specs: &HashMap<K, Spec>) -> Self {
        Self {
            client,
            store,
            specs: specs.values().cloned().collect(),
            references: BTreeMap::new(),
            described: None,
            opaque: HashSet::new(),
            labels: HashMap::new(),
        }
    }

    /// Reads what has changed since the last reading the store took note of; gives back where the next one begins.
    pub async fn read(&mut self) -> Result<i64, Stop> {
        let at = SystemTime::now();
        let since = self.store.metadata_since().await?;
        let (changed, served) = self.definitions_changed(since).await?;
        let is_due = self.described.is_none_or(|last| last.elapsed() >= DESCRIBE_INTERVAL);
        if changed || is_due {
            self.describe().await?;
        }
        if let Some(since) = since {
            self.read_labels(since).await?;
        }
        Ok(served.unwrap_or_else(|| local_seconds(at)))
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
        let tables: HashSet<&TableName> = self.specs.iter().map(|spec| &spec.table).collect();
        let mut tables: Vec<TableName> = tables.into_iter().cloned().collect();
        tables.sort();
        // One that cannot be described says so where it is mirrored.
        let described = dictionary::fetch(&self.client, &tables).await?;
        let defs: Vec<TableDef> = described.into_iter().filter_map(|(_, def)| def.ok()).collect();
        self.references = references(&self.specs, &defs);
        self.opaque.clear();
        self.labels.clear();
        self.store.describe(defs).await?;
        self.described = Some(Instant::now());
        Ok(())
    }

    /// Tells the store how records are called that have changed. Tables are read side by side: one that is slow or fails
    /// does not keep the others' news back.
    async fn read_labels(&mut self, since: i64) -> Result<(), Stop> {
        let tables = self.references.iter().filter(|(table, _)| !self.opaque.contains(*table));
        let reads: Vec<_> = tables
            .map(|(table, field)| {
                let (client, table, field) = (self.client.clone(), table.clone(), field.clone());
                async move {
                    let labels = labels_since(&client, &table, &field, since).await;
                    (table, labels)
                }
            })
            .collect();
        let mut reads = iter(reads).buffer_unordered(TABLES_AT_A_TIME);
        let mut failure = None;
        while let Some((table, labels)) = reads.next().await {
            match labels {
                Ok(Some(labels)) => {
                    if let Err(stop) = self.tell_news(&table, labels).await {
                        failure.get_or_insert(stop);
                    }
                }
                Ok(None) => drop(self.opaque.insert(table)),
                Err(e) => drop(failure.get_or_insert(e.into())),
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Tells the store of those labels that are not known to be told.
    async fn tell_news(&mut self, table: &TableName, labels: Vec<(SysId, String)>) -> Result<(), Stop> {
        let mut news = Vec::new();
        for (id, label) in labels {
            let key = (table.clone(), id);
            if self.labels.get(&key) != Some(&label) {
                news.push((key.1.clone(), label.clone()));
                self.remember(key, label);
            }
            if news.len() >= LABELS_AT_A_TIME {
                self.tell(table, &mut news).await?;
            }
        }
        self.tell(table, &mut news).await
    }

    fn remember(&mut self, key: (TableName, SysId), label: String) {
        if self.labels.len() >= REMEMBERED {
            self.labels.clear();
        }
        self.labels.insert(key, label);
    }

    async fn tell(&mut self, table: &TableName, news: &mut Vec<(SysId, String)>) -> Result<(), Stop> {
        if news.is_empty() {
            return Ok(());
        }
        let told = self.store.relabel(table.clone(), std::mem::take(news)).await;
        if told.is_err() {
            // It is told again, so it must not be taken for known.
            self.labels.clear();
        }
        Ok(told?)
    }
}

/// How records of a table are called that have changed since a second; `None` if the table cannot be asked for that.
async fn labels_since<T: Transport>(
    client: &Client<T>,
    table: &TableName,
    field: &str,
    since: i64,
) -> crate::Result<Option<Vec<(SysId, String)>>> {
    let label = Column { field: field.to_owned(), show: Show::Label, kind: Kind::Text };
    let (layout, page_size) = (Arc::new(Layout::new(vec![label])), PageSize::new(PAGE));
    let from = since - OVERLAP;
    let mut tail = Tail::new("sys_updated_on", from);
    let mut labels = Vec::new();
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
        let shown = (0..rows.len()).filter(|row| rows.is_shown(*row, 0));
        labels.extend(shown.map(|row| (SysId::new(rows.id(row)), rows.text(row, 0).to_owned())));
        let last = rows.len().checked_sub(1).and_then(|row| Some((stamp(row)?, SysId::new(rows.id(row)))));
        if tail.advance(&SeenInTime { rows: rows.len(), last, total: page.total }, limit) == Progress::Done {
            return Ok(Some(labels));
        }
    }
}

/// The tables that label columns refer to, each with the field that names its records.
fn references(specs: &[Spec], defs: &[TableDef]) -> BTreeMap<TableName, String> {
    let mut references = BTreeMap::new();
    for spec in specs {
        let Some(def) = defs.iter().find(|def| def.name == spec.table) else { continue };
        for column in spec.layout.columns().iter().filter(|column| column.show == Show::Label) {
            let reference = def.field(&column.field).and_then(|field| field.reference.as_ref());
            if let Some((table, field)) = reference.and_then(|r| Some((&r.table, r.display_field.as_ref()?)))
            {
                references.insert(table.clone(), field.clone());
            }
        }
    }
    references
}

/// Reads metadata at a pace until the future is dropped; `nudge` ends a wait early.
pub async fn run<T: Transport, S: MetadataStore>(
    mut metadata: Metadata<T, S>,
    mut pace: Pace,
    nudge: Arc<Notify>,
) {
    let mut failures = 0;
    loop {
        let outcome = metadata.read().await;
        let pause = pause_after_reading(&mut failures, outcome.is_ok(), pace.now());
        // What the store could not note it is told again after the next reading.
        let _noted = metadata.store.note_metadata(outcome).await;
        let woken = async {
            tokio::select! {
                () = nudge.notified() => {}
                () = pace.changed() => {}
            }
        };
        let _woken_or_over = timeout(pause, woken).await;
    }
}
