//! The log of changes, `servicenow._sync_cdc`: what became of a cache's rows, with the values before and after.

use std::fmt::Write as _;

use servicenow::value::Kind;

use super::apply::to_value;
use crate::catalog::{self, LoggedChange, Mirror, MirrorColumn};
use crate::pg::tuple::{OwnedScalar, Scalar};

/// How a change came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The table was read as a whole.
    Backfill,
    /// It was among what has changed, or among what was deleted.
    Poll,
    /// The instance has told of it.
    Capture,
    /// A comparison with the instance found it.
    Reconcile,
    /// A statement here.
    Write,
}

impl Source {
    /// As `_sync_cdc.source` has it.
    pub fn name(self) -> &'static str {
        match self {
            Source::Backfill => "backfill",
            Source::Poll => "poll",
            Source::Capture => "capture",
            Source::Reconcile => "reconcile",
            Source::Write => "write",
        }
    }
}

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// It is new.
    Insert,
    /// Some of its values are others.
    Update,
    /// It is gone.
    Delete,
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
        }
    }
}

/// The changes of one batch, until they are written down together.
#[derive(Debug)]
pub struct ChangeLog {
    source: Source,
    changes: Vec<LoggedChange>,
}

/// Changes written down at a time.
const BATCH: usize = 1_000;

impl ChangeLog {
    /// Nothing yet.
    pub fn new(source: Source) -> Self {
        Self { source, changes: Vec::new() }
    }

    /// Where the changes come from.
    pub fn source(&self) -> Source {
        self.source
    }

    /// Adds a change of these columns (positions in the mirror), with their values before and after; columns that
    /// hold nothing on either side are left out.
    pub fn add(
        &mut self,
        mirror: &Mirror,
        op: Op,
        sys_id: &str,
        columns: impl IntoIterator<Item = (usize, OwnedScalar, OwnedScalar)>,
        row: impl Fn(usize) -> OwnedScalar,
    ) {
        let mut changed = String::from("{");
        for (position, before, after) in columns {
            let Some(column) = mirror.columns.get(position) else { continue };
            if before == OwnedScalar::Null && after == OwnedScalar::Null {
                continue;
            }
            if changed.len() > 1 {
                changed.push(',');
            }
            write_string(&mut changed, &column.name);
            changed.push_str(":{\"before\":");
            write_json(&mut changed, column.kind, &before);
            changed.push_str(",\"after\":");
            write_json(&mut changed, column.kind, &after);
            changed.push('}');
        }
        changed.push('}');
        self.changes.push(LoggedChange {
            sys_id: sys_id.to_owned(),
            op: op.name(),
            changed,
            updated_on: match mirror.updated_on.map(&row) {
                Some(OwnedScalar::Plain(Scalar::Micros(us))) => Some(us as f64 / 1e6),
                _ => None,
            },
            updated_by: match mirror.updated_by.map(&row) {
                Some(OwnedScalar::Text(name)) => Some(name),
                _ => None,
            },
        });
        if self.changes.len() >= BATCH {
            self.write(mirror);
        }
    }

    /// Writes down what was added.
    pub fn write(&mut self, mirror: &Mirror) {
        if !self.changes.is_empty() {
            catalog::log_changes(mirror, self.source.name(), std::mem::take(&mut self.changes));
        }
    }
}

/// Rows, each as its columns with their values, as an array of JSON objects.
pub fn rows_as_json<'m>(
    rows: impl Iterator<Item = impl Iterator<Item = (&'m MirrorColumn, OwnedScalar)>>,
) -> String {
    let mut json = String::from("[");
    for (n, row) in rows.enumerate() {
        json.push_str(if n > 0 { ",{" } else { "{" });
        for (n, (column, value)) in row.enumerate() {
            if n > 0 {
                json.push(',');
            }
            write_string(&mut json, &column.name);
            json.push(':');
            write_json(&mut json, column.kind, &value);
        }
        json.push('}');
    }
    json.push(']');
    json
}

/// A value as `to_jsonb` shows it in a session whose time zone is UTC.
fn write_json(out: &mut String, kind: Kind, value: &OwnedScalar) {
    let encoded = || to_value(value).encode().unwrap_or_default();
    match (value, kind) {
        (OwnedScalar::Null, _) => out.push_str("null"),
        (OwnedScalar::Text(text), Kind::Numeric) if is_json_number(text) => out.push_str(text),
        (OwnedScalar::Text(text), _) => write_string(out, text),
        (OwnedScalar::Plain(scalar), kind) => match *scalar {
            Scalar::Boolean(b) => out.push_str(if b { "true" } else { "false" }),
            Scalar::Integer(i) => out.push_str(&i.to_string()),
            Scalar::Float(f) if f.is_finite() => out.push_str(&f.to_string()),
            Scalar::Float(f) => write_string(out, &f.to_string()),
            Scalar::Micros(_) => {
                let zone = if kind == Kind::Instant { "+00:00" } else { "" };
                write_string(out, &(encoded().replacen(' ', "T", 1) + zone));
            }
            Scalar::TimeOfDay(_) => {
                write_string(out, encoded().split_once(' ').map_or("", |(_, time)| time));
            }
            Scalar::Seconds(s) => write_string(out, &interval(s)),
            Scalar::Null | Scalar::Text(_) | Scalar::Days(_) => write_string(out, &encoded()),
        },
    }
}

fn is_json_number(text: &str) -> bool {
    serde_json::from_str::<serde_json::Number>(text).is_ok()
}

/// Seconds as an interval's text.
fn interval(seconds: i64) -> String {
    let (sign, all) = (if seconds < 0 { "-" } else { "" }, seconds.unsigned_abs());
    let (days, rest) = (all / 86_400, all % 86_400);
    let mut text = String::new();
    if days > 0 {
        let _infallible = write!(text, "{sign}{days} days ");
    }
    let _infallible = write!(text, "{sign}{:02}:{:02}:{:02}", rest / 3_600, rest / 60 % 60, rest % 60);
    text
}

fn write_string(out: &mut String, text: &str) {
    out.push_str(&serde_json::Value::from(text).to_string());
}
