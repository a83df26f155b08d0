//! Plays the event log as live updates: each event changes its incident, stamped with the instance's present.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use crate::edit::{self, Change};
use crate::instance::Instance;
use crate::record::Options;
use crate::store::{Db, Val};
use crate::users::Actor;

/// One event: the incident and the columns it sets, in the order of [`Replay::columns`].
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// The incident's `sys_id`.
    pub(crate) incident: Val,
    /// The user name that made the change.
    pub(crate) user: Val,
    /// A value per column.
    pub(crate) values: Box<[Val]>,
}

/// How far the replay is.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct ReplayStatus {
    /// Events in the log.
    pub total: usize,
    /// Events played.
    pub played: usize,
    /// Events whose incident was gone.
    pub skipped: usize,
    /// True while a replay runs.
    pub running: bool,
}

#[derive(Debug, Default)]
struct State {
    position: usize,
    skipped: usize,
    running: bool,
    generation: u64,
}

/// The events in order and the position in them.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// The columns that an event sets.
    pub(crate) columns: Vec<String>,
    /// The events in the order of their time.
    pub(crate) events: Vec<Event>,
    state: Mutex<State>,
}

impl Replay {
    /// Starts at an event: the first one that is not in the data yet.
    pub(crate) fn new(columns: Vec<String>, events: Vec<Event>) -> Self {
        Self { columns, events, state: Mutex::default() }
    }

    /// How far the replay is.
    pub(crate) fn status(&self) -> ReplayStatus {
        let state = self.state.lock();
        ReplayStatus {
            total: self.events.len(),
            played: state.position,
            skipped: state.skipped,
            running: state.running,
        }
    }
}

/// Plays the next events at once; how many there were.
pub(crate) fn play(instance: &Instance, count: usize) -> usize {
    let replay = &instance.replay;
    let mut db = instance.db.write();
    let mut played = 0;
    for _ in 0..count {
        let at = {
            let mut state = replay.state.lock();
            if state.position >= replay.events.len() {
                break;
            }
            state.position += 1;
            state.position - 1
        };
        played += 1;
        if !apply(instance, &mut db, &replay.events[at]) {
            replay.state.lock().skipped += 1;
        }
    }
    played
}

fn apply(instance: &Instance, db: &mut Db, event: &Event) -> bool {
    let Some(table) = db.schema.find("incident") else { return false };
    let Some(row) = db.find_val(table, event.incident) else { return false };
    let fields: Vec<(String, String)> = instance
        .replay
        .columns
        .iter()
        .cloned()
        .zip(event.values.iter().map(|&v| db.symbols.text(v)))
        .collect();
    let actor = Actor { user_name: db.symbols.text(event.user), ..Actor::system() };
    // The log has what a workflow made of the values.
    let options = Options { auto_sys_fields: true, workflow: false, force: true, scripts: true };
    let change = Change::Update(db.symbols.text(event.incident), fields);
    let Some(Change::Update(_, fields)) = edit::defer(instance, "incident", change, options, &actor) else {
        return true;
    };
    instance.writer(db, &actor, options, |writer| writer.update(row, &fields)).is_ok()
}

/// Plays `count` events at `rate` per second in the background; a new call takes over from a running one.
pub(crate) fn start(instance: &Arc<Instance>, rate: f64, count: usize) {
    let generation = {
        let mut state = instance.replay.state.lock();
        state.generation += 1;
        state.running = true;
        state.generation
    };
    let instance = Arc::clone(instance);
    tokio::spawn(async move {
        let began = Instant::now();
        let mut done = 0;
        while done < count && instance.replay.state.lock().generation == generation {
            let due = ((began.elapsed().as_secs_f64() * rate) as usize).min(count);
            if due > done {
                let played = play(&instance, due - done);
                if played == 0 {
                    break;
                }
                done += played;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut state = instance.replay.state.lock();
        if state.generation == generation {
            state.running = false;
        }
    });
}

/// Stops a running replay.
pub(crate) fn stop(instance: &Instance) {
    let mut state = instance.replay.state.lock();
    state.generation += 1;
    state.running = false;
}
