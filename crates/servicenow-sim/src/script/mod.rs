//! Business Rules whose rows of `sys_script` hold a script (facts §8.3): they are really run, by a JavaScript engine.
//!
//! `es5` what the platform's engine would refuse; `engine` contexts and compiled scripts; `host` what scripts can do,
//! and `prelude.js` the platform's classes over it; `effect` what is left to be done after the transaction: requests and
//! asynchronous rules.

pub(crate) mod effect;
mod engine;
mod es5;
mod host;

use std::sync::Arc;

use crate::acl::Operation;
use crate::record::{Draft, Refusal, Writer};
use crate::rules::{Phase, matches, refused};
use crate::store::{Db, RowId};

/// How deep rules may call for each other by what they write.
const DEEPEST: usize = 4;

/// A row of `sys_script` with a script.
#[derive(Debug)]
pub(crate) struct ScriptRule {
    pub(crate) sys_id: String,
    pub(crate) name: String,
    collection: String,
    when: String,
    order: i64,
    insert: bool,
    update: bool,
    delete: bool,
    condition: String,
    filter: String,
    script: Arc<str>,
}

/// Every active rule with a script, in the order in which they run.
pub(crate) fn active_rules(db: &Db) -> Vec<ScriptRule> {
    let Some(table) = db.schema.find("sys_script") else { return Vec::new() };
    let on = |row, element: &str| db.text(row, element) == "true";
    let mut rules: Vec<ScriptRule> = db
        .scan(table)
        .filter(|&row| on(row, "active") && on(row, "advanced"))
        .map(|row| ScriptRule {
            sys_id: db.text(row, "sys_id"),
            name: db.text(row, "name"),
            collection: db.text(row, "collection"),
            when: db.text(row, "when"),
            order: db.text(row, "order").parse().unwrap_or(100),
            insert: on(row, "action_insert"),
            update: on(row, "action_update"),
            delete: on(row, "action_delete"),
            condition: db.text(row, "condition"),
            filter: db.text(row, "filter_condition"),
            script: db.text(row, "script").into(),
        })
        .filter(|rule| !rule.script.is_empty())
        .collect();
    rules.sort_by_key(|rule| rule.order);
    rules
}

impl ScriptRule {
    fn runs_on(&self, operation: Operation) -> bool {
        match operation {
            Operation::Create => self.insert,
            Operation::Delete => self.delete,
            Operation::Write | Operation::Read => self.update,
        }
    }
}

/// The operation as scripts call it.
fn word(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "insert",
        Operation::Delete => "delete",
        Operation::Write | Operation::Read => "update",
    }
}

/// Runs the scripts of a phase on a stored row; the asynchronous ones are noted to be run later.
pub(crate) fn run(
    writer: &mut Writer<'_>,
    row: RowId,
    operation: Operation,
    phase: Phase,
    previous: Option<&Draft>,
) -> Result<(), Refusal> {
    let rules = writer.db.script_rules();
    if rules.is_empty() {
        return Ok(());
    }
    let class = writer.db.row(row).table;
    let names: Vec<String> =
        writer.db.schema.lineage(class).map(|t| writer.db.schema.table(t).name.to_string()).collect();
    let mut aborted = None;
    for rule in rules.iter().filter(|rule| names.contains(&rule.collection) && rule.runs_on(operation)) {
        let now = match phase {
            Phase::Before => rule.when == "before",
            Phase::After => matches!(rule.when.as_str(), "after" | "async"),
        };
        if !now || !matches(writer, row, &rule.filter) {
            continue;
        }
        let about = engine::About { table: names[0].clone(), row: Some(row), operation, copies: Vec::new() };
        if rule.when == "async" {
            let copy = Draft { table: class, vals: writer.db.values(row), notes: Vec::new() };
            writer.effects.later.push(effect::Later { rule: rule.sys_id.clone(), copy, operation });
            continue;
        }
        if writer.depth >= DEEPEST {
            writer.effects.complain(rule, "rules call for each other without an end");
            continue;
        }
        let copies = previous.into_iter().cloned().collect();
        let outcome = engine::run(writer, rule, engine::About { copies, ..about });
        match outcome {
            Ok(outcome) if outcome.aborted && phase == Phase::Before => aborted = Some(rule),
            Ok(outcome) if phase == Phase::Before => {
                for (element, value) in outcome.set {
                    crate::rules::set(writer, row, &element, &value);
                }
            }
            Ok(_) => {}
            Err(message) => writer.effects.complain(rule, &message),
        }
        if aborted.is_some() {
            break;
        }
    }
    match aborted {
        Some(rule) => {
            writer.effects.withdraw();
            Err(refused(writer, class, &rule.name, &rule.sys_id))
        }
        None => Ok(()),
    }
}

/// Runs an asynchronous rule: `current` is the record as it is now, or as it was when it is gone.
pub(crate) fn run_later(writer: &mut Writer<'_>, later: &effect::Later) {
    let rules = writer.db.script_rules();
    let Some(rule) = rules.iter().find(|rule| rule.sys_id == later.rule) else { return };
    let id = later.copy.text(writer.db, "sys_id");
    let row = writer.db.find(later.copy.table, &id);
    let table = writer.db.schema.table(later.copy.table).name.to_string();
    let copies = if row.is_none() { vec![later.copy.clone()] } else { Vec::new() };
    let about = engine::About { table, row, operation: later.operation, copies };
    if let Err(message) = engine::run(writer, rule, about) {
        writer.effects.complain(rule, &message);
    }
}
