//! A model check: transactions write to some records, others change some of them, undoing fails and ends here and there.
//! In the end what nobody else has touched is as before, and what somebody has is as they have left it.
//!
//! Each run takes another seed and prints it; `UNDO_MODEL_SEED` repeats one.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use servicenow::push::undo::{Outcome, Report};
use servicenow::value::SysId;
use servicenow_sim::{Fault, Record};

use crate::interrupt::at_most;
use crate::interrupted::passing_failures;
use crate::{Backend, Fate, assert_as_before};

/// How long to go on with new cases.
const BUDGET: Duration = Duration::from_secs(15);
/// Fields that nothing else is derived from.
const FIELDS: [&str; 3] = ["short_description", "description", "close_notes"];

/// A write of the transaction.
#[derive(Clone, Debug)]
enum Write {
    Insert,
    Update(usize, Values),
    /// Somebody else changes the record first, and the cache does not know.
    UpdateUnaware(usize, Values, Values),
    Delete(usize),
}

/// Fields by number, and which value each gets.
type Values = Vec<(usize, u8)>;

/// What happens before or between attempts to undo.
#[derive(Clone, Debug)]
enum Event {
    SomebodyChanges(usize, Values),
    SomebodyDeletes(usize),
    Fails { effect: usize, after: u64, times: u64 },
    IsUndone,
    IsUndoneAndEnds(usize),
}

fn values() -> impl Strategy<Value = Values> {
    prop::collection::vec((0..FIELDS.len(), 0u8..3), 1..3)
}

fn writes() -> impl Strategy<Value = Vec<(Write, Fate)>> {
    let row = || 0usize..6;
    let write = prop_oneof![
        2 => Just(Write::Insert),
        6 => (row(), values()).prop_map(|(row, ours)| Write::Update(row, ours)),
        1 => (row(), values(), values()).prop_map(|(row, ours, theirs)| Write::UpdateUnaware(row, ours, theirs)),
        2 => row().prop_map(Write::Delete),
    ];
    let fate =
        prop_oneof![6 => Just(Fate::Answered), 1 => Just(Fate::AnswerLost), 1 => Just(Fate::NeverSent)];
    prop::collection::vec((write, fate), 1..10)
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        2 => (0usize..6, values()).prop_map(|(row, theirs)| Event::SomebodyChanges(row, theirs)),
        1 => (0usize..6).prop_map(Event::SomebodyDeletes),
        3 => (0usize..100, 0u64..8, 1u64..3)
            .prop_map(|(effect, after, times)| Event::Fails { effect, after, times }),
        3 => Just(Event::IsUndone),
        3 => (0usize..40).prop_map(Event::IsUndoneAndEnds),
    ];
    prop::collection::vec(event, 0..8)
}

/// A record of a case.
#[derive(Debug)]
struct Row {
    id: SysId,
    before: Option<Record>,
    /// As somebody else has left it, if anybody has touched it since the transaction began.
    theirs: Option<Option<Record>>,
    is_written: bool,
    /// A write without an answer is an error: no other one to the record follows.
    is_over: bool,
    is_deleted: bool,
}

struct Case {
    backend: Backend,
    rows: Vec<Row>,
    /// Undoing was ended while a call may have been under way, which may arrive any time.
    is_adrift: bool,
}

impl Case {
    fn new(backend: Backend) -> Case {
        let rows = (0..3).map(|_| {
            let id = backend.existing();
            let before = backend.record(&id);
            Row { id, before, theirs: None, is_written: false, is_over: false, is_deleted: false }
        });
        let rows = rows.collect();
        Case { backend, rows, is_adrift: false }
    }

    /// A record that is there to be written to.
    fn pick(&self, row: usize) -> Option<usize> {
        let row = row % self.rows.len();
        let Row { id, is_over, .. } = &self.rows[row];
        (!is_over && self.backend.record(id).is_some()).then_some(row)
    }

    fn fields(values: &Values, mark: &str) -> BTreeMap<&'static str, String> {
        values.iter().map(|&(field, n)| (FIELDS[field], format!("{mark} {n}"))).collect()
    }

    async fn write(&mut self, write: &Write, fate: Fate) {
        let row = match write {
            Write::Insert => {
                let id = self.backend.insert("incident", &[("short_description", "our new one")], fate).await;
                let (is_written, is_over) = (true, false);
                self.rows.push(Row {
                    id,
                    before: None,
                    theirs: None,
                    is_written,
                    is_over,
                    is_deleted: false,
                });
                self.rows.len() - 1
            }
            Write::Update(row, ours) => {
                let Some(row) = self.pick(*row) else { return };
                let fields = Case::fields(ours, "our");
                let fields: Vec<_> = fields.iter().map(|(field, value)| (*field, value.as_str())).collect();
                self.backend.update("incident", &self.rows[row].id, &fields, fate).await;
                row
            }
            Write::UpdateUnaware(row, ours, theirs) => {
                let Some(row) = self.pick(*row) else { return };
                let (ours, theirs) = (Case::fields(ours, "our"), Case::fields(theirs, "their"));
                let ours: Vec<_> = ours.iter().map(|(field, value)| (*field, value.as_str())).collect();
                let theirs: Vec<_> = theirs.iter().map(|(field, value)| (*field, value.as_str())).collect();
                let id = self.rows[row].id.clone();
                let before = self.backend.record(&id);
                let happens = |sim: &servicenow_sim::Simulator| {
                    sim.edit().update("incident", id.as_str(), &theirs).expect("it is there");
                };
                self.backend.update_after("incident", &id, &ours, fate, happens).await;
                // The same value once more changes nothing.
                if fate != Fate::NeverSent || self.backend.record(&id) != before {
                    self.rows[row].theirs = Some(None);
                }
                row
            }
            Write::Delete(row) => {
                let Some(row) = self.pick(*row).filter(|&row| self.rows[row].theirs.is_none()) else {
                    return;
                };
                self.backend.delete("incident", &self.rows[row].id, fate).await;
                self.rows[row].is_deleted = true;
                row
            }
        };
        self.rows[row].is_written = true;
        self.rows[row].is_over = fate != Fate::Answered;
    }

    /// Somebody else does something to a record.
    fn somebody(&mut self, row: usize, change: impl FnOnce(&Backend, &SysId)) {
        let row = row % self.rows.len();
        let id = &self.rows[row].id;
        let before = self.backend.record(id);
        if before.is_none() || self.is_adrift {
            return;
        }
        change(&self.backend, id);
        let after = self.backend.record(id);
        if after != before {
            self.rows[row].theirs = Some(after);
        }
    }

    async fn happens(&mut self, event: &Event) {
        match event {
            Event::SomebodyChanges(row, theirs) => {
                let fields = Case::fields(theirs, "their");
                let fields: Vec<_> = fields.iter().map(|(field, value)| (*field, value.as_str())).collect();
                self.somebody(*row, |backend, id| backend.somebody_changes(id, &fields));
            }
            Event::SomebodyDeletes(row) => {
                // Who of several has deleted a record cannot be told.
                if !self.rows[row % self.rows.len()].is_deleted {
                    self.somebody(*row, |backend, id| {
                        backend.sim.edit().delete("incident", id.as_str()).expect("it is there");
                    });
                }
            }
            Event::Fails { effect, after, times } => {
                let effects = passing_failures();
                let effect = effects[effect % effects.len()].clone();
                self.backend.sim.fault(Fault::new(effect).after(*after).times(*times));
            }
            Event::IsUndone => drop(self.backend.undo().await),
            Event::IsUndoneAndEnds(polls) => {
                let _dropped = at_most(self.backend.undo(), *polls).await;
                self.is_adrift = true;
            }
        }
    }

    fn check(&self, reports: &[Report]) {
        assert_eq!(reports.len(), self.rows.iter().filter(|row| row.is_written).count());
        for row in &self.rows {
            let now = self.backend.record(&row.id);
            let outcome = reports.iter().find(|report| report.sys_id == row.id).map(|report| &report.outcome);
            match &row.theirs {
                Some(theirs) => {
                    assert_eq!(&now, theirs, "somebody has touched it: {outcome:?}");
                    assert_ne!(outcome, Some(&Outcome::Undone), "somebody has touched it");
                }
                None => {
                    assert_as_before(now, &row.before, &format!("nobody has touched it: {outcome:?}"));
                    assert!(!matches!(outcome, Some(Outcome::Left { .. })), "{outcome:?}");
                }
            }
        }
    }
}

/// Runs a case; gives back a backend for the next one.
async fn run(backend: Option<Backend>, writes: &[(Write, Fate)], events: &[Event]) -> Backend {
    let backend = match backend {
        Some(backend) => backend.next(),
        None => Backend::new().await,
    };
    let mut case = Case::new(backend);
    for (write, fate) in writes {
        case.write(write, *fate).await;
    }
    for row in &mut case.rows {
        if row.theirs.is_some() {
            row.theirs = Some(case.backend.record(&row.id));
        }
    }
    for event in events {
        case.happens(event).await;
    }
    case.backend.sim.clear_faults();
    let reports = case.backend.undo().await.expect("the instance is there");
    case.check(&reports);
    case.backend
}

#[test]
fn after_any_interleaving_only_what_nobody_else_touched_is_as_before() {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_nanos() as u64;
    let given = std::env::var("UNDO_MODEL_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let first: u64 = given.unwrap_or_else(now);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().expect("threads");
    let began = Instant::now();
    let (mut cases, backend) = (0, Cell::new(None));
    while began.elapsed() < BUDGET {
        let seed = first.wrapping_add(cases);
        cases += 1;
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let config =
            Config { cases: 1, max_shrink_iters: 2_000, failure_persistence: None, ..Config::default() };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let outcome = TestRunner::new_with_rng(config, rng).run(&(writes(), events()), |(writes, events)| {
            backend.set(Some(runtime.block_on(run(backend.take(), &writes, &events))));
            Ok(())
        });
        if let Err(e) = outcome {
            panic!("UNDO_MODEL_SEED={seed}: {e}");
        }
        if given.is_some() {
            break;
        }
    }
    eprintln!("{cases} cases, UNDO_MODEL_SEED={first} onwards");
}
