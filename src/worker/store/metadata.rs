//! What the dictionary says, and the labels in caches that change with it or with referenced records.

use std::collections::{BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;

use pgrx::pg_sys;
use pgrx::spi::quote_identifier;
use servicenow::dictionary::{FieldDef, TableDef};
use servicenow::sync::Stop;
use servicenow::value::{Show, SysId, TableName};

use crate::cache::apply::lock_free;
use crate::cache::change::{ChangeLog, Op, Source};
use crate::catalog::{self, Drift, DriftKind, Mirror, get, read, write};
use crate::error::{error, raise};
use crate::pg;
use crate::pg::tuple::OwnedScalar;

/// Rows given new labels in one go.
const ROWS_AT_A_TIME: usize = 20_000;

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
    for mirror in mirrors(server).filter(|mirror| mirror.table == def.name) {
        if !drift.is_empty() {
            let names = |kind| -> Vec<&str> {
                drift.iter().filter(|d| d.kind == kind).map(|d| d.field.as_str()).collect()
            };
            let (added, removed) = (names(DriftKind::Added), names(DriftKind::Removed));
            let (changed, choices) = (names(DriftKind::Changed), names(DriftKind::Choices));
            let news = serde_json::json!({
                "added": added, "removed": removed, "changed": changed, "choices": choices,
            });
            catalog::notify("schema_changed", &mirror, news);
        }
        let mut named_anew = Vec::new();
        for pair in label_pairs(&mirror) {
            let field = |def: &TableDef| def.field(&mirror.columns[pair.label].field).cloned();
            let (Some(old), Some(new)) = (field(&before), field(def)) else { continue };
            show_choices(&mirror, pair, &old, &new);
            if shown_by(&old) != shown_by(&new) {
                named_anew.push(mirror.columns[pair.label].number);
            }
        }
        if !named_anew.is_empty() {
            // Every label of such a reference is another one.
            catalog::read_columns_again(mirror.foreign_table, named_anew);
            catalog::announce(mirror.foreign_table);
        }
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

fn label_pairs(mirror: &Mirror) -> Vec<LabelPair> {
    let columns = mirror.columns.iter().enumerate();
    let labels = columns.filter(|(_, column)| column.show == Show::Label);
    labels
        .filter_map(|(label, column)| {
            let is_twin =
                |other: &&catalog::MirrorColumn| other.field == column.field && other.show == Show::Value;
            let value = mirror.columns.iter().position(|other| is_twin(&other))?;
            Some(LabelPair { label, value })
        })
        .collect()
}

/// Has a column show choices as they are called now. Labels come in the language of the login, so only a row that
/// shows exactly the label from before gets the new one.
fn show_choices(mirror: &Rc<Mirror>, pair: LabelPair, before: &FieldDef, after: &FieldDef) {
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
            // Several choices share the value: which one a row means is seen when it is read again.
            _ => continue,
        };
    }
    for (value, label) in new.iter().filter(|(value, _)| !old.iter().any(|(v, _)| v == value)) {
        values.insert((*value, *value), *label);
    }
    if values.is_empty() {
        return;
    }
    let mut changes = Relabelling::default();
    for ((value, from), to) in values {
        changes.values.push(value.to_owned());
        changes.from.push(Some(from.to_owned()));
        changes.to.push(to.to_owned());
    }
    relabel_column(mirror, pair, &changes);
}

/// Records of a table are called so now: has every column that refers to them show it. A cache that somebody has locked
/// keeps no other from it; gives back whether there was none.
pub fn relabel(server: pg_sys::Oid, table: &TableName, labels: &[(SysId, String)]) -> bool {
    catalog::announce_names();
    let mut changes = Relabelling::default();
    for (id, label) in labels {
        changes.values.push(id.as_str().to_owned());
        changes.from.push(None);
        changes.to.push(label.clone());
    }
    let mut complete = true;
    for work in catalog::work().into_iter().filter(|work| work.server == server) {
        let relabelled = pg::xact::subtransaction(AssertUnwindSafe(|| {
            let Some(mirror) = catalog::mirror(work.foreign_table) else { return };
            let Some(def) = catalog::kept_definition(server, &mirror.table) else { return };
            for pair in label_pairs(&mirror) {
                let reference =
                    def.field(&mirror.columns[pair.label].field).and_then(|f| f.reference.as_ref());
                if reference.is_some_and(|reference| reference.table == *table) {
                    relabel_column(&mirror, pair, &changes);
                }
            }
        }));
        match relabelled {
            Ok(()) => {}
            Err(caught) if caught.is_conflict() => complete = false,
            // One that is damaged is read again as a whole when it is repaired.
            Err(caught) => {
                let name = catalog::qualified(work.foreign_table);
                pg::worker::log(&format!(
                    "foreign table {name}: could not show new names: {}",
                    caught.message
                ));
            }
        }
    }
    complete
}

/// Rows that hold a value (and show a label, if one is given) are to show another.
#[derive(Default)]
struct Relabelling {
    values: Vec<String>,
    from: Vec<Option<String>>,
    to: Vec<String>,
}

fn relabel_column(mirror: &Rc<Mirror>, pair: LabelPair, changes: &Relabelling) {
    let table = catalog::qualified(mirror.cache);
    let [key, label, value] =
        [mirror.key, pair.label, pair.value].map(|position| quote_identifier(&mirror.columns[position].name));
    let stale = format!(
        "SELECT c.{key}::text, c.{label}::text, nullif(n.now, '')
         FROM {table} c JOIN unnest($1::text[], $2::text[], $3::text[]) AS n (value, before, now)
              ON c.{value}::text = n.value
         WHERE c.{label}::text IS DISTINCT FROM nullif(n.now, '')
           AND (n.before IS NULL OR c.{label}::text = n.before)"
    );
    let args = [changes.values.clone().into(), changes.from.clone().into(), changes.to.clone().into()];
    let stale: Vec<(String, Option<String>, Option<String>)> = read(&stale, &args, |rows| {
        rows.filter_map(|row| Some((get(&row, 1)?, get(&row, 2), get(&row, 3)))).collect()
    });
    let update = format!(
        "UPDATE {table} c SET {label} = n.now FROM unnest($1::text[], $2::text[]) AS n (id, now) WHERE c.{key} = n.id"
    );
    let mut log = mirror.cdc.then(|| ChangeLog::new(Source::Poll));
    for some in stale.chunks(ROWS_AT_A_TIME) {
        let free = lock_free(mirror, some.iter().map(|(id, ..)| id.as_str()));
        let (now, busy): (Vec<_>, Vec<_>) = some.iter().partition(|(id, ..)| free.contains(id));
        let ids: Vec<String> = now.iter().map(|(id, ..)| id.clone()).collect();
        let labels: Vec<Option<String>> = now.iter().map(|(_, _, to)| to.clone()).collect();
        write(&update, &[ids.into(), labels.into()]);
        if let Some(log) = &mut log {
            let text = |text: &Option<String>| text.clone().map_or(OwnedScalar::Null, OwnedScalar::Text);
            for (id, from, to) in now {
                let change = [(pair.label, text(from), text(to))];
                log.add(mirror, Op::Update, id, change, |_| OwnedScalar::Null);
            }
            log.write(mirror);
        }
        // Somebody is writing these: they are read again as a whole.
        let busy: Vec<String> = busy.into_iter().map(|(id, ..)| id.clone()).collect();
        catalog::leave_to_recheck(mirror.foreign_table, &busy);
    }
}

/// A server's mirrors that can be worked on; those that are damaged are read again as a whole when they are repaired. If
/// somebody has locked one it is an ERROR, and the work comes back.
fn mirrors(server: pg_sys::Oid) -> impl Iterator<Item = Rc<Mirror>> {
    let works = catalog::work().into_iter().filter(move |work| work.server == server);
    works.filter_map(|work| match pg::xact::subtransaction(move || catalog::mirror(work.foreign_table)) {
        Ok(mirror) => mirror,
        Err(caught) if caught.is_conflict() => raise(error(caught.sqlstate, caught.message)),
        Err(_) => None,
    })
}

/// Takes note of a reading, or of its failure.
pub fn note(server: pg_sys::Oid, outcome: &Result<i64, Stop>) {
    match outcome {
        Ok(watermark) => {
            write(
                "UPDATE servicenow.sync_server
                 SET metadata_watermark = $2, metadata_error = NULL, metadata_error_at = NULL WHERE server = $1",
                &[server.into(), (*watermark).into()],
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
