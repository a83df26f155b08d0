//! What the dictionary says, and the labels in caches that change with it.

use std::collections::{BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::SystemTime;

use pgrx::{JsonB, pg_sys};
use servicenow::dictionary::{FieldDef, TableDef};
use servicenow::sync::Stop;
use servicenow::sync::store::MetadataRead;
use servicenow::value::{Show, TableName};

use super::{Table, latest};
use crate::cache::change::Source;
use crate::cache::label;
use crate::catalog::{self, Drift, DriftKind, FollowedColumns, Mirror, MirrorColumn, timestamp, write};
use crate::pg;

/// Takes in what the dictionary says now of the tables of a server: those that are mirrored and those that columns lead
/// through.
pub fn describe_all(server: pg_sys::Oid, defs: &[TableDef]) {
    defs.iter().for_each(|def| describe(server, def));
    catalog::keep_definitions_of(server, defs.iter().map(|def| def.name.as_str()).collect());
}

/// Takes in what the dictionary says of a table now: keeps it, notes what is new, and has the caches show choices as
/// they are called now.
pub fn describe(server: pg_sys::Oid, def: &TableDef) {
    let before = catalog::kept_definition(server, &def.name);
    if before.as_ref() == Some(def) {
        return;
    }
    catalog::keep_definition(server, def);
    let Some(before) = before else { return };
    let drift = drift(&before, def);
    catalog::note_drift(server, &def.name, &drift);
    for table in catalog::followed_columns(server) {
        if !drift.is_empty() && table.remote_table == def.name.as_str() {
            let names = |kind| -> Vec<&str> {
                drift.iter().filter(|d| d.kind == kind).map(|d| d.field.as_str()).collect()
            };
            let (added, removed) = (names(DriftKind::Added), names(DriftKind::Removed));
            let (changed, choices) = (names(DriftKind::Changed), names(DriftKind::Choices));
            let news = serde_json::json!({
                "added": added, "removed": removed, "changed": changed, "choices": choices,
            });
            catalog::notify("schema_changed", server, table.relation, news);
        }
        show_definition(server, &table, &before, def);
    }
}

/// Has a mirror's labels show what the description of a table now says. Choices whose stored values stand beside are
/// relabelled in place; other columns are read again, and so are all of a cache that somebody has locked.
fn show_definition(server: pg_sys::Oid, table: &FollowedColumns, before: &TableDef, after: &TableDef) {
    let mut to_read = Vec::new();
    for column in table.columns.iter().filter(|column| column.show == Show::Label) {
        let Some(field) = last_field(server, &table.remote_table, &column.field, after) else { continue };
        let (Some(old), Some(new)) = (before.field(field), after.field(field)) else { continue };
        if shown_by(old) != shown_by(new) {
            // Every label of such a reference is another one.
            to_read.push(column.number);
        } else if choices_differ(old, new).is_some() {
            let shown = pg::xact::subtransaction(AssertUnwindSafe(|| {
                let mirror = catalog::mirror(table.relation)?;
                let pair = label_pair(&mirror, column.number)?;
                Some(show_choices(&mirror, pair, old, new))
            }));
            if !matches!(shown, Ok(Some(true))) {
                to_read.push(column.number);
            }
        }
    }
    if !to_read.is_empty() {
        catalog::read_columns_again(table.relation, to_read);
        catalog::announce(table.relation);
    }
}

/// The field of the table just described that a column shows, if it shows one of its fields: a field of the mirrored table or, at the
/// end of a dot-walk, of another.
fn last_field<'c>(server: pg_sys::Oid, table: &str, path: &'c str, described: &TableDef) -> Option<&'c str> {
    let Some((walk, field)) = path.rsplit_once('.') else {
        return (table == described.name.as_str()).then_some(path);
    };
    let mut here = TableName::new(table).ok()?;
    for step in walk.split('.') {
        let def = catalog::kept_definition(server, &here)?;
        here = def.field(step)?.reference.as_ref()?.table.clone();
    }
    (here == described.name).then_some(field)
}

/// Dot-walks among a mirror's columns that lead nowhere any more, and the others, which do.
pub fn note_lost_walks(mirror: &Mirror, lost: &[String]) {
    let walks = mirror.columns.iter().map(|column| &column.field).filter(|field| field.contains('.'));
    let (gone, there): (Vec<&String>, Vec<&String>) = walks.partition(|walk| lost.contains(walk));
    catalog::forget_drift(mirror.server, &mirror.table, there.into_iter().cloned().collect());
    let known = catalog::removed_fields(mirror.server, &mirror.table);
    let news: Vec<&String> = gone.into_iter().filter(|walk| !known.contains(walk)).collect();
    let drift: Vec<Drift> = news
        .iter()
        .map(|walk| Drift {
            field: (*walk).clone(),
            kind: DriftKind::Removed,
            detail: "leads nowhere any more".to_owned(),
        })
        .collect();
    catalog::note_drift(mirror.server, &mirror.table, &drift);
    if !news.is_empty() {
        let news = serde_json::json!({ "added": [], "removed": news, "changed": [], "choices": [] });
        catalog::notify("schema_changed", mirror.server, mirror.foreign_table, news);
    }
}

/// Which field's value a reference shows.
fn shown_by(field: &FieldDef) -> Option<&str> {
    field.reference.as_ref()?.display_field.as_deref()
}

/// What the two descriptions of a table differ in.
fn drift(before: &TableDef, after: &TableDef) -> Vec<Drift> {
    let mut drift = Vec::new();
    for field in &after.fields {
        let of_type = |field: &FieldDef| match &field.reference {
            Some(reference) => format!("{} to {}", field.internal_type, reference.table),
            None => field.internal_type.clone(),
        };
        let (kind, detail) = match before.field(&field.name) {
            None => (DriftKind::Added, format!("{} ({})", of_type(field), field.label)),
            Some(old) if of_type(old) != of_type(field) => {
                (DriftKind::Changed, format!("{} became {}", of_type(old), of_type(field)))
            }
            Some(old) => match choices_differ(old, field) {
                Some(detail) => (DriftKind::Choices, detail),
                None => continue,
            },
        };
        drift.push(Drift { field: field.name.clone(), kind, detail });
    }
    for field in before.fields.iter().filter(|field| after.field(&field.name).is_none()) {
        let detail = format!("was {} ({})", field.internal_type, field.label);
        drift.push(Drift { field: field.name.clone(), kind: DriftKind::Removed, detail });
    }
    drift
}

/// How the choices of a field differ from those before, if they do.
fn choices_differ(before: &FieldDef, after: &FieldDef) -> Option<String> {
    let named = |field: &FieldDef| -> BTreeSet<(String, String)> {
        field.choices.iter().map(|c| (c.value.clone(), c.label.clone())).collect()
    };
    let (before, after) = (named(before), named(after));
    let list = |which: &str, some: Vec<&(String, String)>| {
        let some: Vec<String> = some.into_iter().map(|(value, label)| format!("{label} ({value})")).collect();
        (!some.is_empty()).then(|| format!("{which} {}", some.join(", ")))
    };
    let new = list("new:", after.difference(&before).collect());
    let gone = list("gone:", before.difference(&after).collect());
    let parts: Vec<String> = [new, gone].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// The columns of one field: what people see and what is stored, by position.
#[derive(Clone, Copy)]
struct LabelPair {
    label: usize,
    value: usize,
}

fn label_pair(mirror: &Mirror, number: i16) -> Option<LabelPair> {
    let label = mirror.columns.iter().position(|column| column.number == number)?;
    let field = &mirror.columns[label].field;
    let is_twin = |other: &MirrorColumn| other.field == *field && other.show == Show::Value;
    Some(LabelPair { label, value: mirror.columns.iter().position(is_twin)? })
}

/// Has a column show choices as they are called now. Labels come in the language of the login, so only a row that
/// shows exactly the label from before gets the new one. Gives back whether that can be told for every choice.
fn show_choices(mirror: &Rc<Mirror>, pair: LabelPair, before: &FieldDef, after: &FieldDef) -> bool {
    // A choice that is gone, or was not there yet, shows its stored value.
    let old: Vec<(&str, &str)> =
        before.choices.iter().map(|c| (c.value.as_str(), c.label.as_str())).collect();
    let new: Vec<(&str, &str)> = after.choices.iter().map(|c| (c.value.as_str(), c.label.as_str())).collect();
    let gone = old.iter().filter(|choice| !new.contains(choice));
    let mut values = HashMap::new();
    for (value, label) in gone {
        let successors: Vec<&str> =
            new.iter().filter(|(v, l)| v == value && !old.contains(&(*v, *l))).map(|(_, l)| *l).collect();
        match successors.as_slice() {
            [] if !new.iter().any(|(v, _)| v == value) => values.insert((*value, *label), *value),
            [label_now] => values.insert((*value, *label), *label_now),
            // Several choices share the value: which one a row means is seen when it is read.
            _ => return false,
        };
    }
    for (value, label) in new.iter().filter(|(value, _)| !old.iter().any(|(v, _)| v == value)) {
        values.insert((*value, *value), *label);
    }
    if values.is_empty() {
        return true;
    }
    let mut changes = Relabelling::default();
    for ((value, from), to) in values {
        changes.values.push(value.to_owned());
        changes.from.push(from.to_owned());
        changes.to.push(to.to_owned());
    }
    relabel_column(mirror, pair, &changes);
    true
}

/// Rows that hold a value and show a label are to show another.
#[derive(Default)]
struct Relabelling {
    values: Vec<String>,
    from: Vec<String>,
    to: Vec<String>,
}

fn relabel_column(mirror: &Rc<Mirror>, pair: LabelPair, changes: &Relabelling) {
    let relabelled: HashMap<(&str, &str), &str> = changes
        .values
        .iter()
        .zip(&changes.from)
        .zip(&changes.to)
        .map(|((value, from), to)| ((value.as_str(), from.as_str()), to.as_str()))
        .collect();
    let show = |texts: &mut [Option<String>]| {
        if let (Some(label), Some(value)) = (texts[0].as_deref(), texts[1].as_deref())
            && let Some(now) = relabelled.get(&(value, label))
        {
            texts[0] = Some((*now).to_owned()).filter(|now| !now.is_empty());
        }
    };
    let holds = (vec![pair.value], changes.values.iter().map(String::as_str).collect());
    let outcome = label::rewrite(mirror, holds, &[pair.label], &[pair.value], Some(Source::Poll), show);
    // Somebody is writing these: they are read again as a whole.
    catalog::leave_to_recheck(mirror.foreign_table, &outcome.unsettled);
    latest::with(mirror, |latest| {
        for ((value, _), to) in &relabelled {
            latest.note_text(
                (pair.value, (*value).to_owned()),
                (pair.label, (*to).to_owned()),
                SystemTime::now(),
            );
        }
    });
}

/// Takes note of a reading, or of its failure.
pub fn note(server: pg_sys::Oid, outcome: &Result<MetadataRead<Table>, Stop>) {
    match outcome {
        Ok(read) => {
            let unfollowed = read.unfollowed.iter().map(|(table, names)| {
                let names = names.iter().map(|name| name.as_str().into()).collect::<Vec<serde_json::Value>>();
                (table.relation.to_u32().to_string(), names.into())
            });
            write(
                "UPDATE servicenow.sync_server
                 SET metadata_watermark = $2, last_metadata_at = $3, metadata_error = NULL, metadata_error_at = NULL,
                     unfollowed = $4
                 WHERE server = $1",
                &[
                    server.into(),
                    read.watermark.into(),
                    timestamp(read.at).into(),
                    JsonB(unfollowed.collect::<serde_json::Map<_, _>>().into()).into(),
                ],
            );
            catalog::note_server_outcome(server, "metadata", None);
        }
        Err(stop) => {
            let text = format!("could not read the dictionary and labels: {stop}");
            catalog::note_server_outcome(server, "metadata", Some(&text));
            let news = write(
                "UPDATE servicenow.sync_server SET metadata_error = $2
                 WHERE server = $1 AND metadata_error IS DISTINCT FROM $2",
                &[server.into(), text.clone().into()],
            );
            write(
                "UPDATE servicenow.sync_server SET metadata_error_at = clock_timestamp() WHERE server = $1",
                &[server.into()],
            );
            if news > 0 {
                pg::worker::log(&format!("server \"{}\": {text}", pg::catalog::server(server).name));
            }
        }
    }
}
