//! What runs: a mirror per foreign table and a reader of deletions per server, kept in line with the catalogs.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use servicenow::client::address::Trust;
use servicenow::client::page_size::PageSize;
use servicenow::client::stats::Stats;
use servicenow::dictionary::TableDef;
use servicenow::sync::deletes::{self, Deletes};
use servicenow::sync::metadata::{self, Metadata};
use servicenow::sync::mirror::{self, Mirror, Spec};
use servicenow::sync::moved::Moved;
use servicenow::sync::pace::Brake;
use servicenow::sync::store::{Position, Upkeep};
use tokio::sync::{Notify, mpsc};

use super::capture;
use super::mailbox::Letter;
use super::store::{BUSY_LIMIT, PgStore, Request, Table, note_failure};
use crate::cache::ddl;
use crate::capture::new_key;
use crate::catalog::{self, Manners};
use crate::connection::{Errand, HttpClient, WORKER, log_requests, new_client, sync_user, trust};
use crate::failpoint;
use crate::login::Login;
use crate::option::{CaptureMode, ServerOptions};
use crate::pg;
use crate::pg::io::{AbortOnDrop, Bell};

/// Threads for HTTP and decoding.
pub const THREADS: usize = 2;
/// Polls, at the server's interval or if all tables have longer ones at the shortest of those, in the time between two
/// readings of metadata, which change seldom and cost a call for each table referred to.
const POLLS_PER_METADATA: u32 = 6;

/// Everything that runs.
pub struct Tasks {
    requests: mpsc::Sender<Request>,
    bell: Bell,
    servers: HashMap<pg_sys::Oid, Server>,
    /// Under way, or not counted yet.
    errands: Vec<Errand>,
    /// Calls that were made and not written down yet.
    uncounted: HashMap<pg_sys::Oid, Stats>,
}

/// One server's tasks.
struct Server {
    /// Its name when it was planned.
    name: String,
    options: ServerOptions,
    login: Login,
    trust: Trust,
    client: HttpClient,
    mirrors: HashMap<Table, MirrorTask>,
    /// Tables whose mirrors cannot be started for now: since when, and whether that was said.
    held_up: HashMap<Table, (Instant, bool)>,
    /// What was last said of how it is called.
    shown: Option<Manners>,
    /// The readers of deletions and of metadata, and the tables they were started for.
    readers: Option<(HashSet<Table>, [Task; 2])>,
    /// The reader of events, if there are any.
    capture: Option<capture::Reader>,
    /// Slows polls down while events come.
    brake: Arc<Brake>,
}

/// A running task.
struct Task {
    handle: AbortOnDrop,
    nudge: Arc<Notify>,
}

/// A running mirror, and what is said of it.
struct MirrorTask {
    task: Task,
    page_size: Arc<PageSize>,
    /// What was last said of that.
    shown: u32,
}

impl Task {
    fn start<F: Future<Output = ()> + Send + 'static>(
        run: impl FnOnce(Arc<Notify>) -> F,
    ) -> std::io::Result<Self> {
        let nudge = Arc::new(Notify::new());
        Ok(Self { handle: pg::io::spawn(run(nudge.clone()), THREADS)?, nudge })
    }
}

/// What should run for a server, as the catalogs say.
struct Plan {
    name: String,
    options: ServerOptions,
    login: Login,
    trust: Trust,
    capture: Option<capture::Plan>,
    past_calls: Vec<(Duration, u32)>,
    tables: Vec<PlannedTable>,
    /// Tables that could not be looked at just now; what runs for them goes on.
    unclear: HashSet<Table>,
}

struct PlannedTable {
    table: Table,
    spec: Spec,
    position: Position,
    upkeep: Upkeep,
    known: Option<TableDef>,
}

impl Tasks {
    /// Nothing runs yet.
    pub fn new(requests: mpsc::Sender<Request>, bell: Bell) -> Self {
        Self { requests, bell, servers: HashMap::new(), errands: Vec::new(), uncounted: HashMap::new() }
    }

    /// Starts what should run and does not, stops what should not and does.
    pub fn reconcile(&mut self) -> std::io::Result<()> {
        // A client that is made anew is told of all calls before.
        self.count(Vec::new());
        let Ok(plans) = pg::xact::transaction(plans) else {
            catalog::keep_work_changed(); // tried again at the next tick
            return Ok(());
        };
        self.servers.retain(|server, _| plans.contains_key(server));
        for (oid, plan) in plans {
            let same = |server: &Server| {
                (&server.options, &server.login, &server.trust) == (&plan.options, &plan.login, &plan.trust)
            };
            if !self.servers.get(&oid).is_some_and(same) {
                let url = &plan.options.instance_url;
                let before = self.servers.remove(&oid).filter(|before| before.options.instance_url == *url);
                match new_client(&plan.options, plan.login.clone(), plan.trust.clone(), WORKER) {
                    Ok(client) => {
                        let (options, login) = (plan.options.clone(), plan.login.clone());
                        let (mirrors, brake) = (HashMap::new(), Arc::new(Brake::default()));
                        let server = Server {
                            name: plan.name.clone(),
                            options,
                            login,
                            trust: plan.trust.clone(),
                            client,
                            mirrors,
                            held_up: HashMap::new(),
                            shown: None,
                            readers: None,
                            capture: None,
                            brake,
                        };
                        server.client.note_past_calls(&plan.past_calls);
                        if let Some(before) = before {
                            server.client.heed_as(&before.client);
                        }
                        self.servers.insert(oid, server);
                    }
                    Err(e) => {
                        let text = e.to_string();
                        let tables: Vec<_> = plan.tables.iter().map(|t| t.table.relation).collect();
                        let _reported = pg::xact::transaction(|| {
                            for relation in &tables {
                                note_failure(*relation, text.as_str());
                            }
                        });
                        continue;
                    }
                }
            }
            let store = Arc::new(PgStore::new(oid, self.requests.clone(), self.bell.clone()));
            if let Some(server) = self.servers.get_mut(&oid) {
                server.reconcile(oid, &store, plan)?;
            }
        }
        Ok(())
    }

    /// Writes down the calls that were made since the last time, by this process and by the sessions that have told
    /// of theirs, which count towards the budget too.
    pub fn count(&mut self, letters: Vec<Letter>) {
        for letter in letters {
            self.count_elsewhere(letter.server.into(), &letter.stats);
        }
        for errand in std::mem::take(&mut self.errands) {
            let is_over = !errand.client.is_shared();
            self.count_elsewhere(errand.server, &errand.client.take_stats());
            log_requests(&errand.client, &errand.name);
            if !is_over {
                self.errands.push(errand);
            }
        }
        for (oid, server) in &self.servers {
            self.uncounted.entry(*oid).or_default().merge(&server.client.take_stats());
        }
        self.uncounted.retain(|_, stats| !stats.is_empty());
        let written = pg::xact::transaction(|| {
            self.uncounted.iter().for_each(|(server, stats)| catalog::add_request_stats(*server, stats));
            failpoint::reach("worker.count");
        });
        if written.is_ok() {
            self.uncounted.clear();
        }
        for (oid, server) in &mut self.servers {
            server.show(*oid);
        }
    }

    /// Adds calls that no server's own client has made.
    fn count_elsewhere(&mut self, server: pg_sys::Oid, stats: &Stats) {
        if let Some(known) = self.servers.get(&server) {
            known.client.note_calls_elsewhere(u32::try_from(stats.calls()).unwrap_or(u32::MAX));
        }
        self.uncounted.entry(server).or_default().merge(stats);
    }

    /// Writes the requests that were made into the server log, if they are to be there.
    pub fn log_requests(&self, on: bool) {
        for server in self.servers.values() {
            server.client.log_requests(on);
            log_requests(&server.client, &server.name);
        }
        for errand in &self.errands {
            errand.client.log_requests(on);
            log_requests(&errand.client, &errand.name);
        }
    }

    /// Counts and logs the requests of an errand too.
    pub fn watch(&mut self, errand: Errand) {
        self.errands.push(errand);
    }

    /// What wakes the worker.
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Whether anything that should run does not run any more.
    pub fn have_ended(&self) -> bool {
        self.servers.values().any(|server| {
            let readers = server.readers.iter().flat_map(|(_, tasks)| tasks);
            server
                .mirrors
                .values()
                .map(|mirror| &mirror.task)
                .chain(readers)
                .any(|task| task.handle.is_finished())
                || server.capture.as_ref().is_some_and(capture::Reader::has_ended)
        })
    }

    /// Says why nobody listens for webhooks, or that somebody does.
    pub fn tell_trouble(&self, trouble: Option<&str>) {
        self.servers
            .values()
            .filter_map(|server| server.capture.as_ref())
            .for_each(|capture| capture.tell_trouble(trouble));
    }

    /// Has the mirrors of these tables, and the deletions and metadata of their servers, read now.
    pub fn nudge(&self, relations: &[pg_sys::Oid]) {
        self.nudge_mirrors(relations);
        for server in self.servers.values() {
            let concerned = server.mirrors.keys().any(|table| relations.contains(&table.relation));
            for (_, tasks) in server.readers.iter().filter(|_| concerned) {
                tasks.iter().for_each(|task| task.nudge.notify_one());
            }
        }
    }

    /// Has the mirrors of these tables read now.
    pub fn nudge_mirrors(&self, relations: &[pg_sys::Oid]) {
        let mirrors = self.servers.values().flat_map(|server| &server.mirrors);
        for (_, mirror) in mirrors.filter(|(table, _)| relations.contains(&table.relation)) {
            mirror.task.nudge.notify_one();
        }
    }
}

impl Server {
    /// Says how the instance is called now, if that is news.
    fn show(&mut self, server: pg_sys::Oid) {
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let held = self.client.held_for();
        let manners = Manners {
            concurrency: number(self.client.concurrency()),
            held_for: (!held.is_zero()).then(|| held.as_secs() as i64 + 1),
            calls_left: [
                self.client.budget().map(|left| left.per_hour.saturating_sub(left.used)),
                self.client.calls_left(),
            ]
            .into_iter()
            .flatten()
            .min()
            .map(|left| number(left as usize)),
        };
        if self.shown != Some(manners)
            && pg::xact::transaction(|| catalog::show_manners(server, manners)).is_ok()
        {
            self.shown = Some(manners);
        }
        let most = self.options.page_size;
        for (table, mirror) in &mut self.mirrors {
            let size = mirror.page_size.current();
            let shown =
                || catalog::show_page_size(table.relation, (size < most).then_some(number(size as usize)));
            if size != mirror.shown && pg::xact::transaction(shown).is_ok() {
                mirror.shown = size;
            }
        }
    }

    fn reconcile(&mut self, oid: pg_sys::Oid, store: &Arc<PgStore>, plan: Plan) -> std::io::Result<()> {
        let planned = plan.tables.iter().map(|planned| planned.table);
        let wanted: HashSet<Table> = planned.chain(plan.unclear.iter().copied()).collect();
        self.mirrors.retain(|table, mirror| wanted.contains(table) && !mirror.task.handle.is_finished());
        let specs: HashMap<Table, Spec> =
            plan.tables.iter().map(|planned| (planned.table, planned.spec.clone())).collect();
        for PlannedTable { table, spec, position, upkeep, known } in plan.tables {
            if !self.mirrors.contains_key(&table) {
                let (client, store) = (self.client.clone(), store.clone());
                let spec = Spec { pace: self.brake.pace(spec.pace.own()), ..spec };
                let mirror = Mirror::new(client, store, table, spec, position, upkeep, known.as_ref());
                let page_size = mirror.page_size();
                let task = Task::start(|nudge| mirror::run(mirror, nudge))?;
                self.mirrors.insert(table, MirrorTask { task, shown: page_size.current(), page_size });
            }
        }
        self.tell_held_up(&plan.unclear);
        let is_current = |(tables, tasks): &(HashSet<Table>, [Task; 2])| {
            *tables == wanted && !tasks.iter().any(|task| task.handle.is_finished())
        };
        if wanted.is_empty() {
            self.readers = None;
        } else if plan.unclear.is_empty() && !self.readers.as_ref().is_some_and(is_current) {
            let interval =
                specs.values().map(|spec| spec.pace.own()).min().unwrap_or(Duration::from_secs(10));
            let pace = self.brake.pace(interval);
            // What it costs is the server's, however often a single table is polled.
            let seldom = self.brake.pace(interval.max(self.options.poll_interval)).times(POLLS_PER_METADATA);
            let metadata = Metadata::new(self.client.clone(), store.clone(), &specs);
            let metadata = Task::start(|nudge| metadata::run(metadata, seldom, nudge))?;
            let deletes = Deletes::new(self.client.clone(), store.clone(), specs.clone());
            let moved = Moved::new(self.client.clone(), store.clone(), specs.clone());
            let deletes = Task::start(|nudge| deletes::run(deletes, moved, pace, nudge))?;
            self.readers = Some((wanted.clone(), [deletes, metadata]));
        }
        if self.capture.as_ref().is_some_and(capture::Reader::has_ended) {
            self.brake.set(None);
        }
        match plan.capture {
            None => {
                self.capture = None;
                self.brake.set(None);
            }
            Some(capture) => {
                let is_current = |reader: &capture::Reader| reader.is_current(&capture, &wanted);
                if plan.unclear.is_empty() && !self.capture.as_ref().is_some_and(is_current) {
                    let before = self.capture.take();
                    let (client, store, brake) = (self.client.clone(), store.clone(), self.brake.clone());
                    match capture::Reader::start(capture, client, store, specs, &self.options, brake, before)
                    {
                        Ok(reader) => self.capture = Some(reader),
                        Err(e) => {
                            let why = format!("could not begin to take events in: {e}");
                            pg::worker::log(&why);
                            let is_off = || catalog::capture_is_off(oid, Some(&why));
                            let _with_the_next_try = pg::xact::transaction(is_off);
                            catalog::keep_work_changed(); // tried again at the next tick
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

impl Server {
    /// Says of tables that nothing runs for them because somebody is in the way, if that takes long.
    fn tell_held_up(&mut self, unclear: &HashSet<Table>) {
        let is_held_up = |table: &Table| unclear.contains(table) && !self.mirrors.contains_key(table);
        self.held_up.retain(|table, _| is_held_up(table));
        for table in unclear.iter().filter(|table| is_held_up(table)) {
            let (since, is_said) = self.held_up.entry(*table).or_insert_with(|| (Instant::now(), false));
            if !*is_said && since.elapsed() > BUSY_LIMIT {
                let why = "somebody holds a lock on the foreign table or its cache";
                *is_said = pg::xact::transaction(|| note_failure(table.relation, why)).is_ok();
            }
        }
    }
}

/// Reads from the catalogs what should run. What is wrong with one table or server is kept for `sync_status`
/// and leaves the others alone.
fn plans() -> HashMap<pg_sys::Oid, Plan> {
    for orphan in catalog::orphans() {
        let _tried_again_later = pg::xact::subtransaction(|| ddl::forget(orphan));
    }
    catalog::tidy();
    let mut plans: HashMap<pg_sys::Oid, Result<Plan, String>> = HashMap::new();
    for work in catalog::work() {
        let relation = work.foreign_table;
        let plan = match plans.entry(work.server).or_insert_with(|| plan(work.server)) {
            Ok(plan) => plan,
            Err(e) => {
                note_failure(relation, e.as_str());
                continue;
            }
        };
        match pg::xact::subtransaction(std::panic::AssertUnwindSafe(|| table(plan, &work))) {
            Ok(Some(planned)) if planned.table.generation == work.generation => plan.tables.push(planned),
            Err(caught) if !caught.is_conflict() => {
                note_failure(relation, caught);
            }
            // It is being changed at this very moment.
            _ => {
                catalog::keep_work_changed();
                plan.unclear.insert(Table { relation, generation: work.generation });
            }
        }
    }
    // Rules of tables that are not mirrored any more are taken away, also when no other table is left.
    for server in catalog::servers_with_rules() {
        plans.entry(server).or_insert_with(|| plan(server));
    }
    failpoint::reach("worker.plan");
    plans.into_iter().filter_map(|(server, plan)| Some((server, plan.ok()?))).collect()
}

/// A server's plan, without tables yet, or what is wrong with it.
fn plan(server: pg_sys::Oid) -> Result<Plan, String> {
    let read = || -> Result<Plan, String> {
        let description = pg::catalog::server(server);
        let options = ServerOptions::parse(&description.options).map_err(|e| e.to_string())?;
        let user = sync_user(&description, &options)?;
        let mapping = pg::catalog::user_mapping(user, server);
        let login = Login::of(server, &options, &mapping).map_err(|e| e.to_string())?;
        let trust = trust(&description, &options, user, &mapping);
        let (instance, who) = (options.instance_url.as_str().to_owned(), login.credentials.identity());
        if pg::xact::subtransaction(|| catalog::note_source(server, &instance, &who)).is_err() {
            catalog::keep_work_changed(); // somebody is changing one of its tables at this very moment
        }
        let capture = capture_plan(server, &options);
        let past_calls = catalog::past_calls(server);
        Ok(Plan {
            name: description.name,
            options,
            login,
            trust,
            capture,
            past_calls,
            tables: Vec::new(),
            unclear: HashSet::new(),
        })
    };
    pg::xact::subtransaction(read).unwrap_or_else(|caught| Err(caught.message))
}

/// What should be read of a server's events; without a table's lock that somebody has it is looked at again.
fn capture_plan(server: pg_sys::Oid, options: &ServerOptions) -> Option<capture::Plan> {
    let off = |why: Option<&str>| {
        // Tried again with the next plan.
        let _locked = pg::xact::subtransaction(|| catalog::capture_is_off(server, why));
        None
    };
    if options.capture == CaptureMode::Poll {
        return off(None);
    }
    let key = new_key();
    let subscription = match pg::xact::subtransaction(|| catalog::subscription(server, &key)) {
        Ok(Ok(subscription)) => subscription,
        failed => {
            catalog::keep_work_changed();
            return failed.ok().and_then(|known| off(Some(&catalog::unplaced(&known.err()?))));
        }
    };
    let endpoint = capture::endpoint(options, &subscription.id);
    if options.capture == CaptureMode::Webhook && endpoint.is_none() {
        return off(None); // nobody listens
    }
    Some(capture::Plan { subscription, endpoint })
}

fn table(plan: &Plan, work: &catalog::Work) -> Option<PlannedTable> {
    let mirror = catalog::mirror(work.foreign_table)?;
    let position = catalog::position(work.foreign_table)?;
    let known = catalog::definition(mirror.server, &mirror.table).map(Rc::unwrap_or_clone);
    let spec = Spec {
        table: mirror.table.clone(),
        layout: mirror.layout.clone(),
        fill_layout: mirror.fill_layout(),
        had: had(&mirror, &position, known.as_ref()),
        query: mirror.query.clone(),
        pace: mirror.poll_interval.unwrap_or(plan.options.poll_interval).into(),
        reconcile_interval: plan.options.reconcile_interval,
        scrub_interval: plan.options.scrub_interval,
        page_size: plan.options.page_size,
        parallel: plan.options.max_concurrency,
    };
    Some(PlannedTable {
        table: Table { relation: work.foreign_table, generation: mirror.generation },
        spec,
        position,
        upkeep: catalog::upkeep(work.foreign_table),
        known,
    })
}

/// The fields that a mirror has read, or has begun to, and may have lost since: not those of a table or of columns that
/// are still to be read for the first time.
fn had(mirror: &catalog::Mirror, position: &Position, known: Option<&TableDef>) -> HashSet<String> {
    if matches!(position, Position::Start { refill: false }) {
        return HashSet::new();
    }
    let mut had: HashSet<String> =
        catalog::removed_fields(mirror.server, &mirror.table).into_iter().collect();
    had.extend(known.iter().flat_map(|def| &def.fields).map(|field| field.name.clone()));
    had.extend(
        mirror.columns.iter().map(|column| &column.field).filter(|field| field.contains('.')).cloned(),
    );
    for position in mirror.fill_columns.iter().flatten() {
        let field = &mirror.columns[*position].field;
        had.remove(field);
        had.remove(field.split('.').next().unwrap_or(field));
    }
    had
}
