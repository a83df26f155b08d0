//! Random transactions, with savepoints, rollbacks and faults, on foreign tables and, the same, on ordinary ones: in the end all
//! agree, and the instance agrees with them.
//!
//! The ordinary tables are the model. Where Postgres rolls a change back there, the instance has to be as before, too, if
//! nothing was sent (`push = 'commit'`) or it was undone (`on_rollback 'compensate'`); else it may keep what was sent,
//! and the cache has to show that.
//!
//! Each run takes another seed and prints it; `WRITE_SEED` repeats one.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::SinkExt;
use servicenow_sim::{BusinessRule, Dataset, Effect, Fault, Operation, Phase, RuleEffect};
use world::random::Random;
use world::{Session, World};

/// How long to go on with new transactions.
const BUDGET: Duration = Duration::from_secs(25);
/// How much longer if too little of a kind came by: a slow machine tries less in the same time.
const PATIENCE: Duration = Duration::from_secs(90);
/// Transactions, failures and undone ones that a world has to see.
const ENOUGH: usize = 2;
/// Worlds side by side: a transaction that was rolled back waits for the worker.
const WORLDS: u64 = 3;
/// What is written.
struct Table {
    name: &'static str,
    /// Its name in the instance.
    remote: &'static str,
    /// Whether it is read again after a rollback, or else restored.
    is_restored: bool,
    columns: [&'static str; 3],
}

/// The texts of the last one are unique.
const TABLES: [Table; 3] = [
    Table {
        name: "incident",
        remote: "incident",
        is_restored: false,
        columns: ["short_description", "description", "link=parent_incident"],
    },
    Table {
        name: "problem",
        remote: "problem",
        is_restored: true,
        columns: ["short_description", "description", "link=parent"],
    },
    Table {
        name: "thing",
        remote: "x_acme_app_thing",
        is_restored: true,
        columns: ["short_description=name", "description=code", "link=parent"],
    },
];

/// Keys that records take from each other.
const KEYS: usize = 3;

/// What a statement may fail with: refused (without a reason, where a fault has taken that away), or the outcome is unknown,
/// or the instance is out of reach.
const EXPECTED: [&str; 8] = ["23505", "38000", "42501", "08007", "08006", "53400", "HV00M", "HV00N"];

/// Short description, description and link of each record.
type Contents = BTreeMap<String, [Option<String>; 3]>;

/// What one transaction has done that may show although it was rolled back.
#[derive(Debug, Default)]
struct Traces {
    /// Writes may have been sent that were rolled back.
    are_possible: bool,
    /// There were deletions.
    has_deleted: bool,
    /// Something went wrong that may have left the outcome of a write unknown.
    has_fault: bool,
}

struct Run {
    world: World,
    session: Session,
    random: Random,
    /// Of the transaction.
    number: usize,
    /// Everything done in it, for whoever has to find out.
    script: Vec<String>,
    failures: usize,
    undone: usize,
}

impl Run {
    async fn new(seed: u64) -> Run {
        let world = World::with(Dataset::Small, ", request_timeout '10s'").await;
        world.import(&["incident", "problem"]).await;
        world
            .db
            .run(
                "ALTER FOREIGN TABLE incident ADD link text OPTIONS (field 'parent_incident');
                 ALTER FOREIGN TABLE problem ADD link text OPTIONS (field 'parent');
                 ALTER FOREIGN TABLE problem OPTIONS (ADD on_rollback 'compensate');
                 CREATE FOREIGN TABLE thing (link text OPTIONS (field 'parent'), sys_id text,
                     short_description text OPTIONS (field 'name'), description text OPTIONS (field 'code'))
                     SERVER acme OPTIONS (table 'x_acme_app_thing', on_rollback 'compensate')",
            )
            .await;
        for Table { name, remote, .. } in TABLES {
            world.sync(name).await;
            world
                .db
                .run(&format!(
                    "CREATE TABLE of_{name} AS SELECT sys_id, short_description, description, link FROM {name}"
                ))
                .await;
            if name == "thing" {
                continue; // it has a guard
            }
            world.sim.edit().add_rule(BusinessRule {
                name: format!("Guard of {name}"),
                table: remote.to_owned(),
                phase: Phase::Before,
                operations: vec![Operation::Create, Operation::Write],
                condition: "short_descriptionLIKEforbidden".to_owned(),
                effect: RuleEffect::Abort,
            });
        }
        let session = world.session().await;
        let random = Random(seed);
        Run { world, session, random, number: 0, script: Vec::new(), failures: 0, undone: 0 }
    }

    /// A `sys_id` that nobody has.
    fn fresh_id(&mut self) -> String {
        format!("{:016x}{:016x}", self.random.any(), self.random.any())
    }

    /// Some of the rows, the same ones in every table with them.
    fn some(&mut self, of: usize) -> String {
        let (salt, n) = (self.random.below(1_000), self.random.below(of));
        format!("abs(hashtext(sys_id || '{salt}')) % {of} = {n}")
    }

    /// Makes a statement: for a table, and for its model if that takes another one.
    fn statement(&mut self, table: &str, traces: &mut Traces) -> (String, Option<String>) {
        let tag = format!("t{} {}", self.number, self.random.below(1_000));
        let insert = |into: &str, rows: &[(String, String)]| {
            let rows: Vec<_> = rows.iter().map(|(id, text)| format!("('{id}', '{text}')")).collect();
            format!("INSERT INTO {into} (sys_id, short_description) VALUES {}", rows.join(", "))
        };
        let with = |update: &dyn Fn(&str) -> String| (update(table), Some(update(&format!("of_{table}"))));
        match self.random.below(if table == "thing" { 15 } else { 12 }) {
            0 | 1 => {
                (format!("INSERT INTO {table} (short_description) VALUES ('{tag}') RETURNING sys_id"), None)
            }
            2 | 3 => {
                let count = 2 + self.random.below(3);
                let rows: Vec<_> = (0..count).map(|n| (self.fresh_id(), format!("{tag} {n}"))).collect();
                with(&|into| insert(into, &rows))
            }
            4 => {
                let some = self.some(40);
                with(&|t| {
                    format!("UPDATE {t} SET short_description = '{tag} ' || left(sys_id, 6) WHERE {some}")
                })
            }
            5 => {
                let some = self.some(12);
                with(&|t| {
                    format!(
                        "UPDATE {t} t SET description = v.text, short_description = '{tag}'
                         FROM (SELECT sys_id AS id, '{tag} of ' || left(sys_id, 6) AS text FROM of_{table} WHERE {some}) v
                         WHERE t.sys_id = v.id"
                    )
                })
            }
            6 => {
                let some = self.some(30);
                with(&|t| {
                    format!(
                        "UPDATE {t} SET description = NULL, short_description = '{tag}' WHERE {some} RETURNING description"
                    )
                })
            }
            7 => {
                let some = self.some(25);
                traces.has_deleted = true;
                // The instance would empty links to them.
                let linked = format!("SELECT link FROM of_{table} WHERE link IS NOT NULL");
                with(&|t| format!("DELETE FROM {t} WHERE {some} AND sys_id NOT IN ({linked})"))
            }
            8 => {
                let some = self.some(20);
                let text = format!("CASE abs(hashtext(sys_id)) % 3 WHEN 0 THEN 'forbidden' ELSE '{tag}' END");
                with(&|t| format!("UPDATE {t} SET short_description = {text} WHERE {some}"))
            }
            9 => {
                // To a record that this transaction may have made.
                let some = self.some(20);
                let own = format!("short_description LIKE 't{} %'", self.number);
                let link = format!("(SELECT min(sys_id) FROM of_{table} WHERE {own})");
                with(&|t| {
                    format!(
                        "UPDATE {t} SET link = {link}, short_description = '{tag}' WHERE {some} AND NOT {own}"
                    )
                })
            }
            10 => {
                let (one, other) = (self.fresh_id(), self.fresh_id());
                with(&|t| {
                    format!(
                        "INSERT INTO {t} (sys_id, short_description, link) VALUES ('{one}', '{tag}', NULL), ('{other}', '{tag}', '{one}')"
                    )
                })
            }
            12 | 13 => {
                // Somebody else may have it.
                let (key, salt) = (self.random.below(KEYS), self.random.below(1_000));
                let whom =
                    format!("(SELECT sys_id FROM of_{table} ORDER BY hashtext(sys_id || '{salt}') LIMIT 1)");
                with(&|t| {
                    format!(
                        "UPDATE {t} SET description = 'K{key}', short_description = '{tag}' WHERE sys_id = {whom}"
                    )
                })
            }
            14 => {
                let key = self.random.below(KEYS);
                with(&|t| {
                    format!(
                        "UPDATE {t} SET description = '{tag} no more', short_description = '{tag}' WHERE description = 'K{key}'"
                    )
                })
            }
            _ => {
                // The second one is there.
                let id = self.fresh_id();
                let there = format!("(SELECT min(sys_id) FROM of_{table})");
                with(&|t| {
                    format!(
                        "INSERT INTO {t} (sys_id, short_description) VALUES ('{id}', '{tag}'), ({there}, '{tag}')"
                    )
                })
            }
        }
    }

    /// Runs a statement on a table and its model; gives back whether it has succeeded.
    async fn execute(&mut self, traces: &mut Traces) -> bool {
        let table = self.random.pick(&TABLES).name;
        if self.random.chance(10) {
            return self.copy(table).await;
        }
        let (statement, of_model) = self.statement(table, traces);
        self.script.push(statement.clone());
        let outcome = self.session.client().query(&statement, &[]).await;
        let rows = match outcome {
            Ok(rows) => rows,
            Err(e) => return self.failed(&e),
        };
        let of_model = of_model.unwrap_or_else(|| {
            let (id, tag) = (rows[0].get::<_, &str>(0), statement.split('\'').nth(1).expect("a text"));
            format!("INSERT INTO of_{table} (sys_id, short_description) VALUES ('{id}', '{tag}')")
        });
        self.session.run(&of_model).await;
        true
    }

    async fn copy(&mut self, table: &str) -> bool {
        let rows: Vec<String> = (0..1 + self.random.below(4))
            .map(|n| format!("{}\tt{} copied {n}\n", self.fresh_id(), self.number))
            .collect();
        self.script.push(format!("COPY {table} FROM STDIN: {rows:?}"));
        for into in [table.to_owned(), format!("of_{table}")] {
            let copy = format!("COPY {into} (sys_id, short_description) FROM STDIN");
            let mut sink = pin!(self.session.client().copy_in::<_, Bytes>(&copy).await.expect("COPY begins"));
            sink.send(rows.concat().into()).await.expect("the data are taken");
            if let Err(e) = sink.finish().await {
                return self.failed(&e);
            }
        }
        true
    }

    fn failed(&mut self, e: &tokio_postgres::Error) -> bool {
        let e = e.as_db_error().unwrap_or_else(|| panic!("the session broke: {e}\n{:#?}", self.script));
        assert!(EXPECTED.contains(&e.code().code()), "{e:?}\n{:#?}", self.script);
        self.script.push(format!(
            "-- {}: {} {}",
            e.code().code(),
            e.message(),
            e.detail().unwrap_or_default()
        ));
        self.failures += 1;
        false
    }

    /// Has something go wrong.
    fn fault(&mut self) {
        let effects = [
            Effect::ResetBefore,
            Effect::ResetAfter,
            Effect::NullBody,
            Effect::Discard,
            Effect::Status { status: 503, html: true },
            Effect::RateLimited { headers: false, retry_after: None, json: true },
        ];
        let effect = self.random.pick(&effects).clone();
        let (times, after) = (1 + self.random.below(3) as u64, self.random.below(3) as u64);
        let fault = match self.random.below(3) {
            0 => Fault::new(effect).path("/batch").method("POST"),
            1 => Fault::new(effect).path("/table/(incident|problem|x_acme)").in_batch(),
            _ => Fault::new(effect)
                .path("/table/(incident|problem|x_acme)")
                .method(["POST", "PATCH", "DELETE"][self.random.below(3)]),
        };
        let fault = fault.times(times).after(after);
        self.script.push(format!("-- {fault:?}"));
        self.world.sim.fault(fault);
    }

    /// One transaction, from beginning to end.
    async fn transaction(&mut self) -> Traces {
        let mut traces = Traces { has_fault: self.random.chance(40), ..Traces::default() };
        if traces.has_fault {
            self.fault();
        }
        let is_late = self.random.chance(40);
        let push = if is_late { "commit" } else { "statement" };
        self.run(&format!("SET servicenow_fdw.push = '{push}'; BEGIN")).await;
        let mut savepoint = false;
        for _ in 0..1 + self.random.below(5) {
            if self.random.chance(25) {
                self.run("SAVEPOINT s").await;
                savepoint = true;
            }
            let succeeded = self.execute(&mut traces).await;
            if !succeeded && (!savepoint || self.random.chance(50)) {
                self.run("ROLLBACK").await;
                traces.are_possible |= !is_late;
                return traces;
            }
            if !succeeded || (savepoint && self.random.chance(30)) {
                self.run("ROLLBACK TO s").await;
                traces.are_possible |= !is_late;
            } else if savepoint && self.random.chance(30) {
                self.run("RELEASE s").await;
                savepoint = false;
            }
        }
        if self.random.chance(40) {
            self.run("ROLLBACK").await;
            traces.are_possible |= !is_late;
        } else {
            self.script.push("COMMIT".to_owned());
            if let Err(e) = self.session.client().batch_execute("COMMIT").await {
                self.failed(&e);
                traces.are_possible = true;
            }
        }
        traces
    }

    async fn run(&mut self, statement: &str) {
        self.script.push(statement.to_owned());
        self.session.run(statement).await;
    }

    async fn contents(&self, table: &str) -> Contents {
        let rows = self
            .world
            .db
            .rows(&format!("SELECT sys_id, short_description, description, link FROM {table}"))
            .await;
        rows.iter().map(|row| (row.get(0), [row.get(1), row.get(2), row.get(3)])).collect()
    }

    /// Waits until nothing is left to be settled, and compares all sides.
    async fn settle(&mut self, traces: &Traces) {
        self.world.sim.clear_faults();
        self.world.until("SELECT sum(pending_writes) = 0 FROM servicenow.sync_status").await;
        for Table { name: table, remote, is_restored, columns } in TABLES {
            self.world.until_like_the_instance(&format!("{table}={remote}"), &columns).await;
            let (here, wanted) = (self.contents(table).await, self.contents(&format!("of_{table}")).await);
            let ids: Vec<&String> =
                here.keys().chain(wanted.keys()).filter(|id| here.get(*id) != wanted.get(*id)).collect();
            for id in &ids {
                assert!(
                    self.may_differ(remote, is_restored, id, here.get(*id), traces),
                    "record {id} of {table} is {:?} and not {:?}\n{traces:?}\n{:#?}",
                    here.get(*id),
                    wanted.get(*id),
                    self.script
                );
            }
            if !ids.is_empty() {
                let copy = format!(
                    "DELETE FROM of_{table}; INSERT INTO of_{table} SELECT sys_id, short_description, description, link FROM {table}"
                );
                self.world.db.run(&copy).await;
            } else if is_restored && traces.are_possible {
                self.undone += 1;
            }
        }
    }

    /// Whether a record may be otherwise than the model says after a transaction.
    fn may_differ(
        &self,
        remote: &str,
        is_restored: bool,
        id: &str,
        now: Option<&[Option<String>; 3]>,
        traces: &Traces,
    ) -> bool {
        let own = format!("t{} ", self.number);
        let is_own = match now {
            Some(texts) => texts.iter().any(|text| text.as_ref().is_some_and(|text| text.starts_with(&own))),
            None => traces.has_deleted,
        };
        // What cannot be undone, because it is not known what has happened, is said.
        let said = || {
            let said = format!("record \"{id}\" of table \"{remote}\" was not restored after a rollback");
            traces.has_fault && self.world.cluster.log().contains(&said)
        };
        traces.are_possible && is_own && (!is_restored || said())
    }
}

async fn go(seed: u64) -> (usize, usize, usize) {
    let began = Instant::now();
    let mut run = Run::new(seed).await;
    let has_enough = |run: &Run| [run.number, run.failures, run.undone].iter().all(|seen| *seen >= ENOUGH);
    while began.elapsed() < BUDGET || (began.elapsed() < BUDGET + PATIENCE && !has_enough(&run)) {
        run.number += 1;
        run.script = vec![format!("-- WRITE_SEED={seed}")];
        let traces = run.transaction().await;
        run.settle(&traces).await;
    }
    (run.number, run.failures, run.undone)
}

#[tokio::test(flavor = "multi_thread")]
async fn random_transactions_leave_both_sides_as_the_model_says() {
    let given = std::env::var("WRITE_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_nanos() as u64;
    let seeds = given.map_or_else(|| (0..WORLDS).map(|n| now.wrapping_add(n)).collect(), |seed| vec![seed]);
    let runs: Vec<_> = seeds.into_iter().map(|seed| (seed, tokio::spawn(go(seed)))).collect();
    for (seed, run) in runs {
        let (transactions, failures, undone) = run.await.unwrap_or_else(|e| panic!("WRITE_SEED={seed}: {e}"));
        eprintln!("WRITE_SEED={seed}: {transactions} transactions, {failures} failures, {undone} undone");
        let seen = [transactions, failures, undone];
        assert!(seen.iter().all(|seen| *seen >= ENOUGH), "WRITE_SEED={seed}: too little was tried: {seen:?}");
    }
}
