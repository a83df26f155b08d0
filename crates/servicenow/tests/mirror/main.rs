//! A mirror against a simulated instance in the same process, with a store in memory: whatever happens over there or in
//! between, the store becomes like the instance again.

mod cases;
mod deletes;
mod direct;
mod events;
mod faults;
mod fill;
mod follow;
mod hidden;
#[path = "../interrupt/mod.rs"]
mod interrupt;
mod keeper;
mod model;
mod names;
mod reconcile;
mod restart;
mod scope;
mod scrub;
mod together;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use servicenow::client::auth::vault::Vault;
use servicenow::client::auth::{Credentials, Secret};
use servicenow::client::retry::{Patience, Urgency};
use servicenow::client::{Client, Instance};
use servicenow::page::{Column, Layout};
use servicenow::query::Query;
use servicenow::sync::Stop;
use servicenow::sync::deletes::Deletes;
use servicenow::sync::metadata::{Metadata, MetadataStore};
use servicenow::sync::mirror::{Mirror, Spec};
use servicenow::sync::moved::Moved;
use servicenow::sync::store::Position;
use servicenow::value::{Show, TableName};
use servicenow_sim::{Dataset, LoggedRequest, Simulator};

use direct::Direct;
use keeper::Keeper;

/// The user whose view of the instance most mirrors keep.
const INTEGRATION: &str = "fdw.integration";
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Fields of every task.
const TASK_FIELDS: &[&str] = &[
    "number",
    "short_description",
    "state",
    "assigned_to",
    "sys_class_name",
    "sys_updated_on",
    "sys_mod_count",
];

/// What a store has of a table, or an instance shows of it: the wanted fields by `sys_id`.
type Contents = BTreeMap<String, Vec<String>>;

/// An instance, and a mirror of one of its tables.
struct World {
    sim: Simulator,
    user: &'static str,
    store: Arc<Keeper>,
    client: Client<Direct>,
    spec: Spec,
}

impl World {
    /// A mirror of some fields of a table of a small instance.
    async fn new(table: &str, fields: &[&str]) -> World {
        World::with(Dataset::Small, table, fields).await
    }

    async fn with(dataset: Dataset, table: &str, fields: &[&str]) -> World {
        let sim = Simulator::builder().dataset(dataset).seed(42).start().await.expect("the simulator starts");
        World::of(sim, table, fields)
    }

    fn of(sim: Simulator, table: &str, fields: &[&str]) -> World {
        let spec = Spec {
            table: TableName::new(table).expect("a valid name"),
            layout: Arc::new(Layout::of_text(fields)),
            query: Query::all(),
            pace: Duration::from_millis(10).into(),
            reconcile_interval: Duration::from_secs(3_600),
            fill_layout: None,
            had: HashSet::new(),
            scrub_interval: Duration::from_secs(7 * 86_400),
            page_size: 1_000,
            parallel: 4,
        };
        let client = client(&sim, INTEGRATION, 3);
        let world = World { sim, user: INTEGRATION, store: Arc::default(), client, spec };
        // Most tests look at polls: counts are compared an hour after the beginning.
        world.store.with(|m| m.upkeep.reconciled = Some(SystemTime::now()));
        world
    }

    /// A mirror of all tasks, which have children of several classes.
    async fn of_tasks() -> World {
        World::new("task", TASK_FIELDS).await
    }

    /// The same mirror, read page by page of so many rows.
    fn in_pages_of(mut self, rows: u32) -> World {
        self.spec.page_size = rows;
        self
    }

    /// The same mirror, as another user sees the instance.
    fn seen_by(mut self, user: &'static str) -> World {
        self.user = user;
        self.client = client(&self.sim, user, 3);
        self
    }

    /// The same mirror, of the records that match a query.
    fn matching(mut self, query: &str) -> World {
        self.spec.query = Query::parse(query).expect("a valid query");
        self
    }

    /// A mirror that goes on from where the store is: the first one, or the next after a crash.
    fn mirror(&self) -> Mirror<Direct, Keeper> {
        let (position, upkeep, known) = (self.store.position(), self.store.upkeep(), self.store.known());
        let (client, store) = (self.client.clone(), self.store.clone());
        Mirror::new(client, store, (), self.spec.clone(), position, upkeep, known.as_ref())
    }

    /// A reader of deletions that goes on from where the store is.
    fn deletes(&self) -> Deletes<Direct, Keeper> {
        let specs = HashMap::from([((), self.spec.clone())]);
        Deletes::new(self.client.clone(), self.store.clone(), specs)
    }

    /// A reader of what has moved to other tables.
    fn moved(&self) -> Moved<Direct, Keeper> {
        let specs = HashMap::from([((), self.spec.clone())]);
        Moved::new(self.client.clone(), self.store.clone(), specs)
    }

    /// Reads deletions, and keeps how far.
    async fn read_deletes(&self) {
        use servicenow::sync::store::Store;
        let outcome = self.deletes().read().await;
        assert!(outcome.is_ok(), "{outcome:?}");
        self.store.note_deletes(outcome).await.expect("the store takes note");
    }

    /// A reader of metadata.
    fn metadata(&self) -> Metadata<Direct, Keeper> {
        let specs = HashMap::from([((), self.spec.clone())]);
        Metadata::new(self.client.clone(), self.store.clone(), &specs)
    }

    /// Reads metadata, and keeps how far.
    async fn read_metadata(&self, metadata: &mut Metadata<Direct, Keeper>) {
        let outcome = metadata.read().await;
        assert!(outcome.is_ok(), "{outcome:?}");
        self.store.note_metadata(outcome).await.expect("the store takes note");
    }

    /// A mirror that has filled the store, with deletions read from before it began.
    async fn filled(&self) -> Mirror<Direct, Keeper> {
        self.read_deletes().await;
        let mut mirror = self.mirror();
        fill(&mut mirror).await.expect("it is filled");
        mirror
    }

    /// What the store has.
    fn stored(&self) -> Contents {
        self.store.with(|m| m.rows.iter().map(|(id, (_, values))| (id.clone(), values.clone())).collect())
    }

    /// What the instance shows the mirror's user of the mirror's table.
    fn truth(&self) -> Contents {
        let columns = self.spec.layout.columns();
        let records = self.sim.truth(self.spec.table.as_str(), self.user).expect("a table of the instance");
        let values = |record: &servicenow_sim::Record| {
            columns.iter().map(|c| self.shown(record, c).unwrap_or_default()).collect()
        };
        records.iter().map(|record| (record["sys_id"].clone(), values(record))).collect()
    }

    /// What a column shows of a record; references are to users, by name.
    fn shown(&self, record: &servicenow_sim::Record, column: &Column) -> Option<String> {
        let (reference, field) = match (column.field.split_once('.'), column.show) {
            (Some(walk), _) => walk,
            (None, Show::Label) => (column.field.as_str(), "name"),
            (None, Show::Value) => return record.get(&column.field).cloned(),
        };
        self.sim.record("sys_user", record.get(reference)?)?.get(field).cloned()
    }

    /// As [`World::truth`], of the records that match a query.
    fn truth_where(&self, query: &str) -> Contents {
        let ids = self.sim.edit().find(self.spec.table.as_str(), query).expect("a valid query");
        self.truth().into_iter().filter(|(id, _)| ids.contains(id)).collect()
    }

    /// Makes sure that the store is like the instance.
    #[track_caller]
    fn assert_alike(&self) {
        assert_same(&self.stored(), &self.truth());
    }

    /// The list calls so far on the mirror's table.
    fn lists(&self) -> Vec<LoggedRequest> {
        let table = self.spec.table.as_str();
        let is_list = |r: &LoggedRequest| r.endpoint == "table" && r.table.as_deref() == Some(table);
        self.sim.requests().into_iter().filter(is_list).collect()
    }

    /// The identity of the one record of the mirror's table that matches a query.
    fn find(&self, query: &str) -> String {
        let found = self.sim.edit().find(self.spec.table.as_str(), query).expect("a valid query");
        assert_eq!(found.len(), 1, "{query}");
        found.into_iter().next().expect("there is one")
    }

    /// Changes the text of a record.
    fn describe(&self, id: &str, text: &str) {
        let table = self.spec.table.as_str();
        self.sim.edit().update(table, id, &[("short_description", text)]).expect("it is there");
    }

    /// The text of a record in the store.
    fn stored_description(&self, id: &str) -> Option<String> {
        let columns = self.spec.layout.columns();
        let at = columns.iter().position(|c| c.field == "short_description").expect("it is mirrored");
        self.stored().get(id).map(|values| values[at].clone())
    }
}

/// Says what is different.
#[track_caller]
fn assert_same(stored: &Contents, truth: &Contents) {
    let only = |a: &Contents, b: &Contents| -> Vec<(String, Vec<String>)> {
        a.iter()
            .filter(|(id, values)| b.get(*id) != Some(values))
            .map(|(i, v)| (i.clone(), v.clone()))
            .collect()
    };
    let (extra, missing) = (only(stored, truth), only(truth, stored));
    assert!(
        extra.is_empty() && missing.is_empty(),
        "{} only in the store: {:#?}\n{} only in the instance: {:#?}",
        extra.len(),
        &extra[..extra.len().min(5)],
        missing.len(),
        &missing[..missing.len().min(5)]
    );
}

/// Goes on until the table is followed; gives back the first failure.
async fn fill(mirror: &mut Mirror<Direct, Keeper>) -> Result<(), Stop> {
    for _ in 0..100 {
        mirror.advance().await?;
        if matches!(mirror.position(), Position::Following { .. }) {
            return Ok(());
        }
    }
    panic!("the fill does not end")
}

/// Goes on until the table is followed, whatever fails in between; gives back how often something did.
async fn fill_in_spite_of_all(mirror: &mut Mirror<Direct, Keeper>) -> usize {
    let mut failures = 0;
    while fill(mirror).await.is_err() {
        failures += 1;
        assert!(failures < 200, "the fill does not end");
    }
    failures
}

/// Polls once.
async fn poll(mirror: &mut Mirror<Direct, Keeper>) {
    assert!(matches!(mirror.position(), Position::Following { .. }), "{:?}", mirror.position());
    mirror.nudge();
    mirror.advance().await.expect("a poll");
}

/// A client of one of the instance's users that tries so often.
fn client(sim: &Simulator, user: &str, attempts: u32) -> Client<Direct> {
    client_within(sim, user, attempts, PATIENCE)
}

/// One that waits so long for an answer.
fn client_within(sim: &Simulator, user: &str, attempts: u32, patience: Duration) -> Client<Direct> {
    let password = match user {
        INTEGRATION => "fdw-secret".to_owned(),
        other => format!("{}-secret", other.split('.').next().unwrap_or_default()),
    };
    let instance = Instance {
        url: sim.url().parse().expect("an address"),
        token_url: None,
        credentials: Credentials::Basic { username: user.to_owned(), password: Secret::new(password).into() },
        vault: Vault::default(),
        max_concurrency: 4,
        max_calls_per_hour: None,
        patience: Patience { attempts, longest_wait: Duration::from_secs(3), urgency: Urgency::Background },
    };
    Client::new(instance, Direct::to(sim, patience)).expect("a client")
}
