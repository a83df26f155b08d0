//! What the instance does by itself on a write: derived fields, data policies, business rules (facts §1.6, §10).
//!
//! [`run`] is the one place where business rules act. Rules come from two sources: those that tests add (an effect of
//! [`RuleEffect`]), and the rows of `sys_script` that abort without a script (`abort_action` with a filter).
//! Scripts of `sys_script` run with them ([`crate::script`]).

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::acl::Operation;
use crate::query::compile::UnknownField;
use crate::query::{Compiled, Query};
use crate::record::{Draft, Refusal, Writer};
use crate::schema::TableId;
use crate::store::{Db, RowId};
use crate::{calendar, ident, script};

/// When a rule runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Before the write: the rule may change or refuse it.
    Before,
    /// After the write, in the same transaction.
    After,
}

/// The signature of a rule written in Rust: (the record as column values, what is done to it) to columns to set.
pub type RuleFunction =
    dyn Fn(&dyn Fn(&str) -> String, Operation) -> Result<Vec<(String, String)>, ()> + Send + Sync;

/// A rule written in Rust.
#[derive(Clone)]
pub struct RuleHook(pub Arc<RuleFunction>);

impl fmt::Debug for RuleHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RuleHook")
    }
}

/// What a rule does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RuleEffect {
    /// Refuses the write with 403.
    Abort,
    /// Sets a column of the record (before rules).
    Set {
        /// The column.
        field: String,
        /// The value.
        value: String,
    },
    /// Makes a row of another table; `${column}` in a value is replaced by the record's, `${operation}` and `${table}` too.
    Insert {
        /// The other table.
        table: String,
        /// Its columns.
        values: Vec<(String, String)>,
    },
    /// Runs a Rust function.
    #[serde(skip)]
    Custom(RuleHook),
}

/// A business rule.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BusinessRule {
    /// The name, which appears in the error of an abort.
    pub name: String,
    /// The table; rules of a parent table fire for its children (facts §8.3).
    pub table: String,
    /// When it runs.
    pub phase: Phase,
    /// What it runs on.
    pub operations: Vec<Operation>,
    /// An encoded query that the record must match; empty for every record.
    #[serde(default)]
    pub condition: String,
    /// What it does.
    pub effect: RuleEffect,
}

impl BusinessRule {
    /// The `sys_id` of the rule.
    pub fn sys_id(&self) -> String {
        ident::sys_id("sys_script", &self.name)
    }
}

/// Runs the rules of a phase on a stored row.
pub(crate) fn run(
    writer: &mut Writer<'_>,
    row: RowId,
    operation: Operation,
    phase: Phase,
    previous: Option<&Draft>,
) -> Result<(), Refusal> {
    let mut rules = scripted_aborts(writer.db, row, operation, phase);
    let class = writer.db.row(row).table;
    let names: Vec<&str> =
        writer.db.schema.lineage(class).map(|t| &*writer.db.schema.table(t).name).collect();
    rules.extend(
        writer
            .rules
            .iter()
            .filter(|r| {
                r.phase == phase && r.operations.contains(&operation) && names.contains(&r.table.as_str())
            })
            .map(|r| (r.sys_id(), r.clone())),
    );
    for (sys_id, rule) in rules {
        if !matches(writer, row, &rule.condition) {
            continue;
        }
        let aborted = || refused(writer, class, &rule.name, &sys_id);
        match &rule.effect {
            RuleEffect::Abort => return Err(aborted()),
            RuleEffect::Set { field, value } => set(writer, row, field, value),
            RuleEffect::Insert { table, values } => insert(writer, row, operation, table, values)?,
            RuleEffect::Custom(hook) => {
                let db = &*writer.db;
                let changes =
                    (hook.0)(&|element| db.text(row, element), operation).map_err(|()| aborted())?;
                for (field, value) in changes {
                    set(writer, row, &field, &value);
                }
            }
        }
    }
    script::run(writer, row, operation, phase, previous)
}

/// The refusal of a rule.
pub(crate) fn refused(writer: &Writer<'_>, class: TableId, name: &str, sys_id: &str) -> Refusal {
    Refusal::Aborted {
        table: writer.db.schema.table(class).name.to_string(),
        name: name.to_owned(),
        sys_id: sys_id.to_owned(),
    }
}

/// Whether a stored row matches an encoded query; an empty one matches every row.
pub(crate) fn matches(writer: &Writer<'_>, row: RowId, condition: &str) -> bool {
    if condition.is_empty() {
        return true;
    }
    let class = writer.db.row(row).table;
    let session = writer.actor.session(writer.now);
    Compiled::new(writer.db, class, class, &Query::parse(condition), UnknownField::Ignore, &session)
        .matches(writer.db, row)
}

/// Sets a column of a stored row.
pub(crate) fn set(writer: &mut Writer<'_>, row: RowId, field: &str, value: &str) {
    let class = writer.db.row(row).table;
    let mut draft = Draft { table: class, vals: writer.db.values(row), notes: Vec::new() };
    draft.set(writer.db, field, value);
    writer.db.replace(row, class, draft.vals);
}

fn insert(
    writer: &mut Writer<'_>,
    row: RowId,
    operation: Operation,
    table: &str,
    values: &[(String, String)],
) -> Result<(), Refusal> {
    let Some(target) = writer.db.schema.find(table) else { return Ok(()) };
    let word = match operation {
        Operation::Create => "insert",
        Operation::Delete => "delete",
        Operation::Write | Operation::Read => "update",
    };
    let class = writer.db.schema.table(writer.db.row(row).table).name.to_string();
    let fields: Vec<(String, String)> = values
        .iter()
        .map(|(column, template)| (column.clone(), fill(writer.db, row, template, word, &class)))
        .collect();
    writer.insert(target, &fields).map(|_| ())
}

/// Replaces `${…}` in a template.
fn fill(db: &Db, row: RowId, template: &str, operation: &str, class: &str) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        let Some((name, tail)) = after.split_once('}') else { break };
        match name {
            "operation" => out.push_str(operation),
            "table" => out.push_str(class),
            column => out.push_str(&db.text(row, column)),
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}

/// The rows of `sys_script` that abort a write without running a script.
fn scripted_aborts(db: &Db, row: RowId, operation: Operation, phase: Phase) -> Vec<(String, BusinessRule)> {
    let Some(scripts) = db.schema.find("sys_script") else { return Vec::new() };
    let class = db.row(row).table;
    if phase != Phase::Before || class == scripts {
        return Vec::new();
    }
    let action = match operation {
        Operation::Create => "action_insert",
        Operation::Delete => "action_delete",
        Operation::Write | Operation::Read => "action_update",
    };
    let names: Vec<&str> = db.schema.lineage(class).map(|t| &*db.schema.table(t).name).collect();
    let mut found: Vec<(i64, String, BusinessRule)> = db
        .scan(scripts)
        .filter(|&r| {
            let on = |element: &str| db.text(r, element) == "true";
            on("active") && on("abort_action") && on(action) && db.text(r, "when") == "before"
        })
        .filter(|&r| names.contains(&db.text(r, "collection").as_str()))
        .map(|r| {
            let rule = BusinessRule {
                name: db.text(r, "name"),
                table: db.text(r, "collection"),
                phase,
                operations: vec![operation],
                condition: db.text(r, "filter_condition"),
                effect: RuleEffect::Abort,
            };
            (db.text(r, "order").parse().unwrap_or(100), db.text(r, "sys_id"), rule)
        })
        .collect();
    found.sort_by_key(|(order, _, _)| *order);
    found.into_iter().map(|(_, id, rule)| (id, rule)).collect()
}

/// The mandatory fields of a state, as the baseline data policy asks (facts §10: Resolved and Closed).
pub(crate) fn check_policies(db: &Db, draft: &Draft, previous: Option<&Draft>) -> Result<(), Refusal> {
    let Some(incident) = db.schema.find("incident") else { return Ok(()) };
    if !db.schema.is_a(draft.table, incident) {
        return Ok(());
    }
    if !matches!(draft.text(db, "state").as_str(), "6" | "7") {
        return Ok(());
    }
    let fields = ["close_code", "close_notes"];
    let touched = previous.is_none_or(|p| {
        p.get(db, "state") != draft.get(db, "state")
            || fields.iter().any(|f| p.get(db, f) != draft.get(db, f))
    });
    if !touched {
        return Ok(());
    }
    let layout = &db.schema.table(draft.table).layout;
    let labels: Vec<String> = fields
        .iter()
        .filter(|f| draft.get(db, f).is_empty())
        .filter_map(|f| layout.column(f).map(|c| db.label(draft.table, c).to_owned()))
        .collect();
    if labels.is_empty() { Ok(()) } else { Err(Refusal::DataPolicy { labels }) }
}

/// Priority from impact and urgency (facts §10).
fn priority(impact: &str, urgency: &str) -> Option<&'static str> {
    match (impact, urgency) {
        ("1", "1") => Some("1"),
        ("1", "2") | ("2", "1") => Some("2"),
        ("1", "3") | ("2", "2") | ("3", "1") => Some("3"),
        ("2", "3") | ("3", "2") => Some("4"),
        ("3", "3") => Some("5"),
        _ => None,
    }
}

/// Sets the fields that the baseline derives from others.
pub(crate) fn derive(writer: &mut Writer<'_>, draft: &mut Draft, previous: Option<&Draft>, given: &[&str]) {
    let class = draft.table;
    let is = |writer: &Writer<'_>, name: &str| {
        writer.db.schema.find(name).is_some_and(|t| writer.db.schema.is_a(class, t))
    };
    if is(writer, "sys_user") {
        derive_name(writer, draft, previous);
    }
    if !is(writer, "task") {
        return;
    }
    let now = writer.stamp();
    let actor = writer.actor.sys_id.clone();
    if previous.is_none() {
        for (element, value) in [("opened_at", now.clone()), ("opened_by", actor.clone())] {
            if draft.get(writer.db, element).is_empty() {
                draft.set(writer.db, element, &value);
            }
        }
    }
    let number = draft.text(writer.db, "number");
    draft.set(writer.db, "task_effective_number", &number);
    let changed = |writer: &Writer<'_>, draft: &Draft, element: &str| {
        previous.is_none_or(|p| p.get(writer.db, element) != draft.get(writer.db, element))
    };
    if is(writer, "incident") || is(writer, "problem") || is(writer, "change_request") {
        let looked_up = changed(writer, draft, "impact") || changed(writer, draft, "urgency");
        let (impact, urgency) = (draft.text(writer.db, "impact"), draft.text(writer.db, "urgency"));
        if looked_up
            && (previous.is_some() || is(writer, "incident"))
            && let Some(p) = priority(&impact, &urgency)
        {
            draft.set(writer.db, "priority", p);
        }
    }
    if let Some(p) = previous
        && changed(writer, draft, "assignment_group")
        && !p.get(writer.db, "assignment_group").is_empty()
        && !given.contains(&"reassignment_count")
    {
        let count = draft.text(writer.db, "reassignment_count").parse::<i64>().unwrap_or(0) + 1;
        draft.set(writer.db, "reassignment_count", &count.to_string());
    }
    for mirror in ["incident_state", "problem_state"] {
        if draft.has(writer.db, mirror) {
            let from_mirror =
                changed(writer, draft, mirror) && (previous.is_some() || given.contains(&mirror));
            let (from, to) = if from_mirror { (mirror, "state") } else { ("state", mirror) };
            let value = draft.text(writer.db, from);
            draft.set(writer.db, to, &value);
        }
    }
    let state = draft.text(writer.db, "state");
    if changed(writer, draft, "state") {
        enter_state(writer, draft, previous, &state, &now, &actor, given);
    }
}

/// The states of a class in which a record is closed.
fn closed_states(writer: &Writer<'_>, draft: &Draft) -> &'static [&'static str] {
    let is = |name: &str| writer.db.schema.find(name).is_some_and(|t| writer.db.schema.is_a(draft.table, t));
    if is("incident") {
        &["7", "8"]
    } else if is("problem") {
        &["107"]
    } else if is("change_request") {
        &["3", "4"]
    } else {
        &["3", "4", "7"]
    }
}

fn enter_state(
    writer: &mut Writer<'_>,
    draft: &mut Draft,
    previous: Option<&Draft>,
    state: &str,
    now: &str,
    actor: &str,
    given: &[&str],
) {
    let fill = |writer: &mut Writer<'_>, draft: &mut Draft, element: &str, value: &str| {
        if draft.get(writer.db, element).is_empty() {
            draft.set(writer.db, element, value);
        }
    };
    let closed = closed_states(writer, draft).contains(&state);
    if previous.is_some() || closed || !given.contains(&"active") {
        draft.set(writer.db, "active", if closed { "false" } else { "true" });
    }
    if closed {
        fill(writer, draft, "closed_at", now);
        fill(writer, draft, "closed_by", actor);
    } else if previous.is_some() {
        draft.set(writer.db, "closed_at", "");
        draft.set(writer.db, "closed_by", "");
    }
    if draft.has(writer.db, "incident_state") {
        if matches!(state, "6" | "7") {
            fill(writer, draft, "resolved_at", now);
            fill(writer, draft, "resolved_by", actor);
            measure(writer, draft);
        }
        if state != "3" {
            draft.set(writer.db, "hold_reason", "");
        }
        let was_resolved = previous.is_some_and(|p| matches!(p.text(writer.db, "state").as_str(), "6" | "7"));
        if was_resolved && !matches!(state, "6" | "7" | "8") {
            let count = draft.text(writer.db, "reopen_count").parse::<i64>().unwrap_or(0) + 1;
            draft.set(writer.db, "reopen_count", &count.to_string());
            draft.set(writer.db, "reopened_time", now);
            draft.set(writer.db, "reopened_by", actor);
            draft.set(writer.db, "resolved_at", "");
            draft.set(writer.db, "resolved_by", "");
        }
    }
}

/// The time from opening to resolution, in seconds and as a duration.
fn measure(writer: &mut Writer<'_>, draft: &mut Draft) {
    let seconds =
        |draft: &Draft, writer: &Writer<'_>, element: &str| draft.get(writer.db, element).as_seconds();
    let (Some(from), Some(to)) = (seconds(draft, writer, "opened_at"), seconds(draft, writer, "resolved_at"))
    else {
        return;
    };
    let elapsed = (to - from).max(0);
    let mut buffer = [0u8; 19];
    let text = calendar::write_canonical(elapsed, &mut buffer).to_owned();
    for element in ["calendar_stc", "business_stc"] {
        draft.set(writer.db, element, &elapsed.to_string());
    }
    for element in ["calendar_duration", "business_duration"] {
        draft.set(writer.db, element, &text);
    }
}

fn derive_name(writer: &mut Writer<'_>, draft: &mut Draft, previous: Option<&Draft>) {
    let parts: Vec<String> = ["first_name", "middle_name", "last_name"]
        .iter()
        .map(|e| draft.text(writer.db, e))
        .filter(|t| !t.is_empty())
        .collect();
    let changed = ["first_name", "middle_name", "last_name"]
        .iter()
        .any(|e| previous.is_none_or(|p| p.get(writer.db, e) != draft.get(writer.db, e)));
    if changed && !parts.is_empty() {
        draft.set(writer.db, "name", &parts.join(" "));
    }
}
