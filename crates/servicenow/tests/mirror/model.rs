//! A model check: after any interleaving of edits, failures, crashes, changes of rights and clocks that are set,
//! followed by some quiet, the store is like what the instance shows.
//!
//! What leaves a trace has to be there after polls and a reading of deletions alone; what leaves none, after everything
//! has been read once more and counts have been compared. `MIRROR_MODEL_SEED` repeats a case (see [`crate::cases`]).

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use proptest::prelude::*;
use servicenow::page::{Column, Layout};
use servicenow::sync::metadata::Metadata;
use servicenow::sync::mirror::Mirror;
use servicenow::sync::moved::Moved;
use servicenow::sync::store::Position;
use servicenow::value::{Kind, Show};
use servicenow_sim::{AclRule, Effect, Fault, Simulator};

use crate::cases::check;
use crate::direct::Direct;
use crate::faults::all_effects;
use crate::interrupt::at_most;
use crate::keeper::Keeper;
use crate::reconcile::LONG_AGO;
use crate::restart::begun;
use crate::{Contents, INTEGRATION, TASK_FIELDS, World, assert_same, client};

/// How long to go on with new cases.
const BUDGET: Duration = Duration::from_secs(20);
/// Classes of task that a record may have.
const CLASSES: [&str; 4] = ["incident", "problem", "change_request", "sc_task"];
/// How long after its stamp a late change becomes visible, in seconds.
const LATE: u64 = 30;

/// Something that happens.
#[derive(Clone, Debug)]
enum Event {
    Insert(usize),
    InsertAgain(usize),
    Update(usize, u8),
    Move(usize, u8),
    Delete(usize),
    Mass(u8),
    Reclassify(usize, usize),
    InsertOdd(usize),
    InsertSilently,
    UpdateSilently(usize, u8),
    DeleteSilently(usize),
    RightsChange(usize),
    Late(usize, u8),
    TimePasses(u64),
    ClockIsSet(i64),
    Fails { effect: usize, after: u64, times: u64 },
    SomebodyWrites(usize),
    NobodyWrites,
    Works,
    WorksAndCrashes(usize),
    ReadsDeletes,
    ReadsDeletesAndCrashes(usize),
    ReadsMoved,
    ReadsMovedAndCrashes(usize),
    ReadsMetadata,
    ReadsMetadataAndCrashes(usize),
    DoesAllAndCrashes(usize),
    Renames(usize, u8),
    Assigns(usize, usize),
    UserLeaves,
    DoesBothAndCrashes(usize),
    IsFilledAnew,
    CountsAreDue,
    StretchIsDue,
}

impl Event {
    /// Whether neither polls nor deletions tell of it.
    fn is_silent(&self, table: &str) -> bool {
        match self {
            Event::InsertSilently
            | Event::UpdateSilently(..)
            | Event::DeleteSilently(_)
            | Event::RightsChange(_) => true,
            Event::Reclassify(..) => table == "incident",
            _ => false,
        }
    }
}

/// Identifiers that are not 32 hexadecimal digits, some of which cannot stand in a query.
const ODD: [&str; 10] = ["0", "4", "global", "GLOBAL-2", "zz top", "a^b", "a,b", "ÄÖ", "F0F0", "a_b"];
/// Which records are shown.
const SHOWN: [Option<&str>; 5] =
    [None, Some("sys_id<4^ORsys_id>6"), Some("sys_id>4^sys_id<a"), Some("sys_id>9"), Some("state!=2")];

/// Users that tasks are assigned to. The last one leaves now and then; nobody's task was opened by them.
const USERS: usize = 3;

/// Who a task is assigned to, which it says itself; and who opened it, of whom it shows name and address only.
fn columns() -> Vec<Column> {
    let column = |field: &str, show| Column { field: field.to_owned(), show, kind: Kind::Text };
    let mut columns = Layout::of_text(TASK_FIELDS).columns().to_vec();
    columns.push(column("assigned_to", Show::Label));
    columns.push(column("opened_by", Show::Label));
    columns.push(column("opened_by.email", Show::Value));
    columns
}

/// What is mirrored, and how.
#[derive(Clone, Debug)]
struct Setting {
    table: &'static str,
    rows: u32,
    ranges: usize,
    shown: Option<&'static str>,
    query: Option<&'static str>,
    /// Whether there is anything that leaves no trace.
    silent: bool,
}

fn settings() -> impl Strategy<Value = Setting> {
    let shown = prop_oneof![2 => Just(0usize), 2 => 1usize..SHOWN.len()].prop_map(|n| SHOWN[n]);
    let query = prop_oneof![
        3 => Just(None),
        1 => Just(Some("active=true^ORstate=2")),
        1 => Just(Some("state=1^NQstate=2^short_descriptionISNOTEMPTY")),
    ];
    let table = prop_oneof![3 => Just("task"), 2 => Just("incident")];
    let rows = prop_oneof![1u32..8, 8u32..60];
    (table, rows, prop_oneof![Just(1usize), Just(4), Just(16)], shown, query, any::<bool>()).prop_map(
        |(table, rows, ranges, shown, query, silent)| Setting { table, rows, ranges, shown, query, silent },
    )
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let any_row = 0usize..1_000;
    let event = prop_oneof![
        3 => (0usize..4).prop_map(Event::Insert),
        1 => any_row.clone().prop_map(Event::InsertAgain),
        5 => (any_row.clone(), any::<u8>()).prop_map(|(row, n)| Event::Update(row, n)),
        4 => (any_row.clone(), any::<u8>()).prop_map(|(row, n)| Event::Move(row, n)),
        3 => any_row.clone().prop_map(Event::Delete),
        1 => any::<u8>().prop_map(Event::Mass),
        2 => (any_row.clone(), 0usize..4).prop_map(|(row, class)| Event::Reclassify(row, class)),
        2 => (any_row.clone(), any::<u8>()).prop_map(|(row, n)| Event::Late(row, n)),
        4 => (0u64..400).prop_map(Event::TimePasses),
        2 => prop_oneof![-200i64..200, -100_000i64..100_000].prop_map(Event::ClockIsSet),
        3 => (0usize..100, 0u64..6, 1u64..4)
            .prop_map(|(effect, after, times)| Event::Fails { effect, after, times }),
        2 => any_row.clone().prop_map(Event::SomebodyWrites),
        1 => (0..ODD.len()).prop_map(Event::InsertOdd),
        1 => Just(Event::NobodyWrites),
        5 => Just(Event::Works),
        4 => (0usize..60).prop_map(Event::WorksAndCrashes),
        3 => Just(Event::ReadsDeletes),
        3 => Just(Event::ReadsMoved),
        2 => (0usize..40).prop_map(Event::ReadsMovedAndCrashes),
        3 => Just(Event::ReadsMetadata),
        2 => (0usize..60).prop_map(Event::ReadsMetadataAndCrashes),
        2 => (0usize..120).prop_map(Event::DoesAllAndCrashes),
        4 => (0usize..USERS, any::<u8>()).prop_map(|(user, n)| Event::Renames(user, n)),
        4 => (any_row.clone(), 0usize..USERS).prop_map(|(row, user)| Event::Assigns(row, user)),
        1 => Just(Event::UserLeaves),
        2 => (0usize..20).prop_map(Event::ReadsDeletesAndCrashes),
        2 => (0usize..80).prop_map(Event::DoesBothAndCrashes),
        1 => Just(Event::IsFilledAnew),
        2 => Just(Event::CountsAreDue),
        2 => Just(Event::StretchIsDue),
    ];
    let silent = prop_oneof![
        1 => Just(Event::InsertSilently),
        2 => (any_row.clone(), any::<u8>()).prop_map(|(row, n)| Event::UpdateSilently(row, n)),
        2 => any_row.clone().prop_map(Event::DeleteSilently),
        1 => (0usize..SHOWN.len()).prop_map(Event::RightsChange),
    ];
    let event = event.boxed();
    let event = prop_oneof![event.clone(), prop_oneof![6 => event, 1 => silent]];
    prop::collection::vec(event, 1..40)
}

/// Which records the mirror's user is shown from now on.
fn show(world: &World, query: Option<&str>) {
    world.sim.edit().clear_acls();
    if let Some(query) = query {
        world.sim.edit().add_acl(AclRule::Rows {
            table: "task".to_owned(),
            user: Some(INTEGRATION.to_owned()),
            query: query.to_owned(),
        });
    }
}

/// Makes a user.
fn user(world: &World) -> String {
    world.sim.edit().insert("sys_user", &[("name", "new"), ("email", "new@example.com")]).expect("a user")
}

/// A case under way.
struct Case {
    world: World,
    mirror: Mirror<Direct, Keeper>,
    metadata: Metadata<Direct, Keeper>,
    moved: Moved<Direct, Keeper>,
    /// Users that tasks are assigned to.
    users: Vec<String>,
    query: Option<&'static str>,
    /// Records that were deleted.
    gone: Vec<String>,
    /// The clock was set, and not everything has been read since.
    clock_was_set: bool,
    /// There may be records that were made later than it is now.
    has_future: bool,
    /// A late change is on its way.
    is_late: bool,
    /// See [`Setting::silent`].
    may_be_silent: bool,
    /// Something has happened that neither polls nor deletions tell of.
    is_silent: bool,
}

impl Case {
    async fn new(setting: &Setting) -> Case {
        let sim = Simulator::builder().seed(42).start().await.expect("the simulator starts");
        let mut world = World::of(sim, setting.table, TASK_FIELDS).in_pages_of(setting.rows);
        world.client = client(&world.sim, INTEGRATION, 1);
        world.spec.layout = Arc::new(Layout::new(columns()));
        if let Some(query) = setting.query {
            world = world.matching(query);
        }
        show(&world, setting.shown);
        world.read_deletes().await;
        begun(&world, setting.ranges, false);
        let (mirror, metadata, moved) = (world.mirror(), world.metadata(), world.moved());
        let users = (0..USERS).map(|_| user(&world)).collect();
        Case {
            world,
            mirror,
            metadata,
            moved,
            users,
            query: setting.query,
            gone: Vec::new(),
            clock_was_set: false,
            has_future: false,
            is_late: false,
            may_be_silent: setting.silent,
            // A record that changes may be hidden by that; no poll shows it then.
            is_silent: setting.shown.is_some_and(|query| !query.contains("sys_id")),
        }
    }

    /// One of the records there are.
    fn pick(&self, row: usize) -> Option<String> {
        let ids = self.world.sim.edit().find(self.world.spec.table.as_str(), "").expect("a query");
        (!ids.is_empty()).then(|| ids[row % ids.len()].clone())
    }

    fn class(&self, n: usize) -> &'static str {
        if self.world.spec.table.as_str() == "incident" { "incident" } else { CLASSES[n] }
    }

    fn update(&self, row: usize, fields: &[(&str, &str)]) {
        if let Some(id) = self.pick(row) {
            self.world.sim.edit().without_workflow().update("task", &id, fields).expect("it is there");
        }
    }

    async fn happens(&mut self, event: &Event) {
        if event.is_silent(self.world.spec.table.as_str()) {
            if !self.may_be_silent {
                return;
            }
            self.is_silent = true;
        }
        let table = self.world.spec.table.as_str().to_owned();
        match *event {
            Event::Insert(class) => {
                let fields = [("short_description", "new"), ("state", "2")];
                self.world.sim.edit().insert(self.class(class), &fields).expect("a record");
            }
            Event::InsertAgain(n) => {
                if !self.gone.is_empty() {
                    let id = self.gone.swap_remove(n % self.gone.len());
                    let fields = [("sys_id", id.as_str()), ("short_description", "again")];
                    // Another one of this identity may be on its way.
                    let _made = self.world.sim.edit().insert(self.class(n % 4), &fields);
                }
            }
            Event::Update(row, n) => self.update(row, &[("short_description", &format!("text {n}"))]),
            Event::Move(row, n) => {
                let (state, active) = ((n % 4).to_string(), if n % 3 == 0 { "true" } else { "false" });
                self.update(row, &[("state", &state), ("active", active)]);
            }
            Event::Delete(row) => {
                if let Some(id) = self.pick(row) {
                    self.world.sim.edit().delete("task", &id).expect("it is there");
                    self.gone.push(id);
                }
            }
            Event::Mass(n) => {
                let edit = self.world.sim.edit().without_workflow();
                edit.update_where(&table, "active=true", &[("short_description", &format!("mass {n}"))])
                    .expect("a query");
            }
            Event::Reclassify(row, class) => {
                self.update(row, &[("sys_class_name", CLASSES[class])]);
            }
            Event::InsertOdd(n) => {
                let fields = [("sys_id", ODD[n]), ("short_description", "odd"), ("state", "1")];
                // It may be there.
                let _made = self.world.sim.edit().insert(self.class(n % 4), &fields);
            }
            Event::InsertSilently => {
                let edit = self.world.sim.edit().without_workflow().without_auto_sys_fields();
                let fields = [("state", "2"), LONG_AGO[0], LONG_AGO[1]];
                edit.insert(self.class(0), &fields).expect("a record");
            }
            Event::UpdateSilently(row, n) => {
                if let Some(id) = self.pick(row) {
                    let edit = self.world.sim.edit().without_workflow().without_auto_sys_fields();
                    let (text, state) = (format!("silent {n}"), (n % 4).to_string());
                    let fields = [("short_description", text.as_str()), ("state", &state)];
                    edit.update("task", &id, &fields).expect("it is there");
                }
            }
            Event::DeleteSilently(row) => {
                if let Some(id) = self.pick(row) {
                    self.world.sim.edit().without_workflow().delete("task", &id).expect("it is there");
                    self.gone.push(id);
                }
            }
            Event::RightsChange(n) => show(&self.world, SHOWN[n]),
            Event::Late(row, n) => {
                self.world.sim.set(|s| s.commit_delay_ms = LATE * 1_000);
                self.update(row, &[("short_description", &format!("late {n}"))]);
                self.world
                    .sim
                    .edit()
                    .insert(self.class(0), &[("short_description", "late")])
                    .expect("a record");
                self.world.sim.set(|s| s.commit_delay_ms = 0);
                self.is_late = true;
            }
            Event::TimePasses(seconds) => self.pass(seconds).await,
            Event::ClockIsSet(seconds) => {
                if self.is_late {
                    self.pass(LATE + 1).await;
                }
                self.read_everything_after_a_clock_was_set().await;
                self.world.sim.clock().step(TimeDelta::seconds(seconds));
                self.clock_was_set = true;
                self.has_future |= seconds < 0;
            }
            Event::Fails { effect, after, times } => {
                let mut effects = all_effects();
                effects.push(Effect::Hang);
                let effect = effects[effect % effects.len()].clone();
                self.world.sim.fault(Fault::new(effect).after(after).times(times));
            }
            Event::SomebodyWrites(row) => {
                if let Some(id) = self.pick(row) {
                    self.world.store.hold(&id);
                }
            }
            Event::NobodyWrites => self.world.store.let_go(),
            Event::Works => drop(self.mirror.advance().await),
            Event::WorksAndCrashes(polls) => {
                let _dropped = at_most(self.mirror.advance(), polls).await;
                self.restart();
            }
            Event::ReadsDeletes => self.read_deletes(usize::MAX).await,
            Event::ReadsDeletesAndCrashes(polls) => self.read_deletes(polls).await,
            Event::DoesBothAndCrashes(polls) => {
                let deletes = self.world.deletes();
                let both = async { tokio::join!(self.mirror.advance(), deletes.read()) };
                if let Some((_, Ok(read))) = at_most(both, polls).await {
                    self.world.store.with(|m| m.deletes = Some(read.watermark));
                }
                self.restart();
            }
            Event::ReadsMoved => self.read_moved(usize::MAX).await,
            Event::ReadsMovedAndCrashes(polls) => {
                self.read_moved(polls).await;
                self.moved = self.world.moved();
            }
            Event::ReadsMetadata => self.read_metadata(usize::MAX).await,
            Event::ReadsMetadataAndCrashes(polls) => {
                self.read_metadata(polls).await;
                self.metadata = self.world.metadata();
            }
            Event::DoesAllAndCrashes(polls) => {
                let all = async { tokio::join!(self.mirror.advance(), self.metadata.read()) };
                if let Some((_, Ok(read))) = at_most(all, polls).await {
                    self.world.store.with(|m| m.metadata = Some(read.watermark));
                }
                self.restart();
                self.metadata = self.world.metadata();
            }
            Event::Renames(n, name) => {
                let (name, email) = (format!("name {}", name % 8), format!("{name}@example.com"));
                let fields = [("name", name.as_str()), ("email", &email)];
                self.world.sim.edit().update("sys_user", &self.users[n], &fields).expect("a user");
            }
            Event::Assigns(row, n) => {
                let user = self.users[n].clone();
                match n {
                    n if n + 1 < USERS => self.update(row, &[("assigned_to", &user), ("opened_by", &user)]),
                    _ => self.update(row, &[("assigned_to", &user)]),
                }
            }
            Event::UserLeaves => {
                let gone = std::mem::replace(&mut self.users[USERS - 1], user(&self.world));
                self.world.sim.edit().delete("sys_user", &gone).expect("a user");
            }
            Event::IsFilledAnew => {
                self.world.store.with(|m| m.position = Position::Start { refill: true });
                self.restart();
            }
            Event::CountsAreDue => self.mirror = self.world.due(),
            Event::StretchIsDue => {
                let long_ago = 2 * self.world.spec.scrub_interval;
                self.world.store.with(|m| {
                    if let Some(position) = &mut m.upkeep.scrub {
                        position.began -= long_ago;
                    }
                });
                self.restart();
            }
        }
    }

    fn restart(&mut self) {
        self.mirror = self.world.mirror();
    }

    async fn read_metadata(&mut self, polls: usize) {
        if let Some(Ok(read)) = at_most(self.metadata.read(), polls).await {
            self.world.store.with(|m| m.metadata = Some(read.watermark));
        }
    }

    /// Reads what has moved to other tables, from when deletions were last read.
    async fn read_moved(&mut self, polls: usize) {
        let since = self.world.store.with(|m| m.deletes).unwrap_or_default();
        let _dropped = at_most(self.moved.read(since), polls).await;
    }

    async fn read_deletes(&mut self, polls: usize) {
        let deletes = self.world.deletes();
        if let Some(Ok(read)) = at_most(deletes.read(), polls).await {
            self.world.store.with(|m| m.deletes = Some(read.watermark));
        }
    }

    async fn pass(&mut self, seconds: u64) {
        self.read_everything_after_a_clock_was_set().await;
        self.world.sim.clock().advance(Duration::from_secs(seconds));
        if seconds > LATE && self.is_late {
            self.is_late = false;
            let _made_visible = self.world.truth();
        }
    }

    /// A clock is set once, and read a while later, as always: nobody could find what was stamped in a past that is
    /// over before anybody has looked.
    async fn read_everything_after_a_clock_was_set(&mut self) {
        if self.clock_was_set {
            self.read_everything().await;
            self.clock_was_set = false;
        }
    }

    /// Goes on, whatever fails, until there were two polls and a reading of deletions, after one of metadata.
    async fn read_everything(&mut self) {
        let mut tries = 0;
        loop {
            if let Ok(read) = self.metadata.read().await {
                self.world.store.with(|m| m.metadata = Some(read.watermark));
                break;
            }
            tries += 1;
            assert!(tries < 300, "it goes on");
        }
        let polls = self.world.store.polls() + 2;
        while self.world.store.polls() < polls {
            self.mirror.nudge();
            let outcome = self.mirror.advance().await;
            if outcome.is_ok_and(|pause| !pause.is_zero()) && self.world.store.polls() < polls {
                // In pages so small much has changed at once; that is waited for.
                self.world.sim.clock().advance(Duration::from_secs(10));
                self.is_silent |= self.clock_was_set;
            }
            tries += 1;
            assert!(tries < 600, "it goes on");
        }
        loop {
            if let Ok(read) = self.world.deletes().read().await {
                self.world.store.with(|m| m.deletes = Some(read.watermark));
                return;
            }
            tries += 1;
            assert!(tries < 900, "it goes on");
        }
    }

    /// What the mirror's user is shown, and how many records are counted.
    fn truth(&self) -> (Contents, u64) {
        let counted =
            self.world.sim.edit().find(self.world.spec.table.as_str(), self.query.unwrap_or_default());
        let truth = match self.query {
            Some(query) => self.world.truth_where(query),
            None => self.world.truth(),
        };
        (truth, counted.expect("a query").len() as u64)
    }

    async fn ends(&mut self) {
        self.world.sim.clear_faults();
        self.world.store.let_go();
        self.read_everything_after_a_clock_was_set().await;
        self.pass(120).await;
        for _ in 0..2 {
            self.read_everything().await;
        }
        if !self.is_silent {
            assert_same(&self.world.stored(), &self.truth().0);
        }
        self.world.spec.scrub_interval = Duration::ZERO;
        self.world.scrub().await;
        self.world.reconcile().await;
        let (truth, counted) = self.truth();
        assert_same(&self.world.stored(), &truth);
        // Where an instance sorts other letters is its own affair, and records of the future are newcomers.
        if !truth.contains_key("ÄÖ") && !self.has_future {
            assert_eq!(self.world.remembered(), counted - truth.len() as u64, "hidden records");
        }
    }
}

#[test]
fn after_any_interleaving_and_some_quiet_the_store_is_like_the_instance() {
    check(
        "MIRROR_MODEL_SEED",
        BUDGET,
        || (settings(), events()),
        async |(setting, events)| {
            let mut case = Case::new(&setting).await;
            for event in &events {
                case.happens(event).await;
            }
            case.ends().await;
        },
    );
}
