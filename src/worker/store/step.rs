//! The steps of mirrors, each carried out in the transaction of its request.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::SystemTime;

use pgrx::{PgSqlErrorCode as Sql, Spi, pg_sys};
use servicenow::page::{Rows, Version};
use servicenow::sync::Stop;
use servicenow::sync::store::{Origin, Relabelling, Step, StoreError};
use servicenow::value::SysId;

use super::{Table, latest};
use crate::cache::apply::{CacheWriter, Outcome, Replace};
use crate::cache::change::Source;
use crate::cache::label;
use crate::catalog::{self, Failure, Mirror, timestamp, write};
use crate::error::{Doing, error, raise, report};
use crate::failpoint;
use crate::pg;
use crate::pg::table::Triggers;

/// The mirror a request is about, its row of `sync_table` locked, and whether it was filled; refused if what is
/// mirrored has changed since the request was made. Nobody's lock is waited for, which would keep the requests of
/// all other tables waiting: an ERROR that is a conflict has this one made again a little later.
pub fn current_mirror(table: Table) -> Result<(Rc<Mirror>, bool), StoreError> {
    let filled = {
        let _owner = pg::session::AsOwner::begin();
        Spi::connect_mut(|client| {
            let sql = "SELECT filled FROM servicenow.sync_table WHERE foreign_table = $1 AND generation = $2
                       FOR NO KEY UPDATE NOWAIT";
            let args = [table.relation.into(), table.generation.into()];
            let mut rows = client.update(sql, None, &args).expect("a valid use of SPI");
            rows.next().and_then(|row| catalog::get(&row, 1))
        })
    };
    let filled = filled.ok_or(StoreError::Stale)?;
    let mirror = catalog::mirror(table.relation).ok_or(StoreError::Stale)?;
    if mirror.generation == table.generation { Ok((mirror, filled)) } else { Err(StoreError::Stale) }
}

/// As [`current_mirror`], its cache locked for writing.
pub fn current_cache(table: Table) -> Result<(Rc<Mirror>, bool), StoreError> {
    let (mirror, filled) = current_mirror(table)?;
    if !pg::catalog::try_lock(mirror.cache, pg_sys::RowExclusiveLock) {
        let name = catalog::qualified(mirror.cache);
        raise(error(Sql::ERRCODE_LOCK_NOT_AVAILABLE, format!("could not obtain lock on relation {name}")));
    }
    Ok((mirror, filled))
}

/// Carries out a step.
pub fn apply(table: Table, step: &Step, careful: bool) -> Result<(), StoreError> {
    let relation = table.relation;
    // These leave the cache alone, which somebody may have locked.
    match step {
        Step::Failed(stop) => {
            failed(&current_mirror(table)?.0, stop);
            return Ok(());
        }
        Step::Doubted(ids) => {
            current_mirror(table)?;
            let ids: Vec<String> = ids.iter().map(|id| id.as_str().to_owned()).collect();
            catalog::leave_to_recheck(relation, &ids);
            return Ok(());
        }
        _ => {}
    }
    let (mirror, filled) = current_cache(table)?;
    // Changes are logged from the first fill on.
    let from = |source| filled.then_some(source);
    match step {
        Step::Described { def, lost } => {
            super::metadata::describe(mirror.server, def);
            super::metadata::note_lost_walks(&mirror, lost);
        }
        Step::Begin { ranges, since, refill, total, at } => {
            catalog::forget_hidden(relation);
            write("DELETE FROM servicenow.sync_range WHERE foreign_table = $1", &[relation.into()]);
            for (range, number) in ranges.iter().zip(0i32..) {
                let bound = |id: &Option<SysId>| id.as_ref().map(|id| id.as_str().to_owned());
                write(
                    "INSERT INTO servicenow.sync_range (foreign_table, number, lower_bound, upper_bound)
                     VALUES ($1, $2, $3, $4)",
                    &[relation.into(), number.into(), bound(&range.lower).into(), bound(&range.upper).into()],
                );
            }
            write(
                "UPDATE servicenow.sync_table
                 SET phase = CASE WHEN $5 THEN 'resync' ELSE 'backfill' END, refill = $5, watermark = $2,
                     rows_total = $3, rows_filled = 0, fill_started_at = $4, fill_ended_at = NULL, ranges_total = $6
                 WHERE foreign_table = $1",
                &[
                    relation.into(),
                    (*since).into(),
                    total.and_then(|total| i64::try_from(total).ok()).into(),
                    timestamp(*at).into(),
                    (*refill).into(),
                    i32::try_from(ranges.len()).unwrap_or(i32::MAX).into(),
                ],
            );
            let news = serde_json::json!({"rows_total": total, "resync": refill});
            catalog::notify("backfill_started", mirror.server, relation, news);
            write(
                "UPDATE servicenow.sync_server SET deletes_watermark = $2
                 WHERE server = $1 AND deletes_watermark IS NULL",
                &[mirror.server.into(), (*since).into()],
            );
        }
        Step::Filled { number, rows, after } => {
            let outcome = match &mirror.fill_columns {
                Some(columns) => {
                    let source = from(Source::Backfill);
                    look_out(&mirror, rows, None, label::put_columns(&mirror, columns, rows, source))
                }
                None => put_page(&mirror, rows, Replace::SameOrLater, from(Source::Backfill), careful),
            };
            catalog::leave_to_recheck(relation, &outcome.unsettled);
            write(
                "UPDATE servicenow.sync_range SET position = $3 WHERE foreign_table = $1 AND number = $2",
                &[relation.into(), (*number).into(), after.as_ref().map(|id| id.as_str().to_owned()).into()],
            );
            write(
                "UPDATE servicenow.sync_table SET rows = rows + $2, rows_filled = rows_filled + $3
                 WHERE foreign_table = $1",
                &[relation.into(), outcome.inserted.into(), (rows.len() as i64).into()],
            );
        }
        Step::RangeDone { number } => {
            write(
                "DELETE FROM servicenow.sync_range WHERE foreign_table = $1 AND number = $2",
                &[relation.into(), (*number).into()],
            );
        }
        Step::Complete { watermark } => complete(&mirror, *watermark),
        Step::Hidden { range, count } => catalog::remember_hidden(relation, range, *count),
        Step::Reconciled { at } => {
            write(
                "UPDATE servicenow.sync_table
                 SET last_reconcile_at = $2,
                     rows_hidden = coalesce((SELECT sum(count) FROM servicenow.hidden h WHERE h.foreign_table = $1), 0)
                 WHERE foreign_table = $1",
                &[relation.into(), timestamp(*at).into()],
            );
        }
        Step::Newest(rows) | Step::Changed(rows) => {
            let outcome = put_page(&mirror, rows, Replace::Later, from(Source::Poll), careful);
            catalog::leave_to_recheck(relation, &outcome.unsettled);
            if filled {
                catalog::suspect(mirror.server, relation, &outcome.touched);
            }
            changed(&mirror, rows, &outcome, 0);
        }
        Step::Scrubbed { rows, position } => {
            let outcome = put_page(&mirror, rows, Replace::SameOrLater, from(Source::Reconcile), careful);
            catalog::leave_to_recheck(relation, &outcome.unsettled);
            changed(&mirror, rows, &outcome, 0);
            write(
                "UPDATE servicenow.sync_table
                 SET scrub_began_at = $2, scrub_position = $3, scrub_read = $4, scrub_total = $5
                 WHERE foreign_table = $1",
                &[
                    relation.into(),
                    timestamp(position.began).into(),
                    position.after.as_ref().map(|id| id.as_str().to_owned()).into(),
                    i64::try_from(position.read).unwrap_or(i64::MAX).into(),
                    i64::try_from(position.total).unwrap_or(i64::MAX).into(),
                ],
            );
        }
        Step::Rechecked { looked_up, present, origin, at } => {
            let source = match origin {
                Origin::Fill => Source::Backfill,
                Origin::Poll => Source::Poll,
                Origin::Capture => Source::Capture,
                Origin::Upkeep => Source::Reconcile,
            };
            let there: HashSet<&str> = present.ids().collect();
            let seen: HashMap<&str, Version> =
                (0..present.len()).map(|row| (present.id(row), present.version(row))).collect();
            let looks: Vec<_> =
                looked_up.iter().map(|(id, _)| (id.as_str(), seen.get(id.as_str()).copied())).collect();
            // What was deleted during the look may still have been shown by it.
            let gone = catalog::gone_since(relation, present.ids().collect(), *at);
            let mut shown = Rows::new(present.layout().clone());
            let stays = |row: &usize| !gone.contains(present.id(*row));
            (0..present.len()).filter(stays).for_each(|row| shown.push(present, row));
            let present = &shown;
            let outcome = put(&mirror, present, Replace::Unchanged(looked_up), from(source), careful);
            let outcome = look_out(&mirror, present, Some(*at), outcome);
            let looked_up = looked_up.iter().map(|(id, version)| (id.as_str(), *version));
            let absent: Vec<_> = looked_up.clone().filter(|(id, _)| !there.contains(id)).collect();
            let mut writer = CacheWriter::open(&mirror, Triggers::Own, from(source));
            let (deleted, kept) = writer.delete_unchanged(&absent);
            writer.close();
            catalog::forget_absent(relation, present.ids().collect());
            let absent: Vec<String> = absent.iter().map(|(id, _)| (*id).to_owned()).collect();
            catalog::remember_absent(relation, &absent);
            catalog::rechecked(relation, &looks, *at);
            catalog::leave_to_recheck(relation, &gone.into_iter().collect::<Vec<_>>());
            catalog::leave_to_recheck(relation, &outcome.unsettled);
            catalog::leave_to_recheck(relation, &kept);
            changed(&mirror, present, &outcome, deleted);
        }
        Step::DoubtedWhere(texts) => {
            let found = label::holders(&mirror, texts);
            catalog::leave_to_recheck(relation, &found);
        }
        // In pieces, by `relabel`, and above.
        Step::Relabelled(_) | Step::Failed(_) | Step::Doubted(_) => {}
        Step::Reread { columns, rows } => {
            catalog::announce_names();
            let outcome = label::put_columns(&mirror, columns, rows, from(Source::Poll));
            catalog::leave_to_recheck(relation, &outcome.unsettled);
            latest::with(&mirror, |latest| latest.note_rows(columns, rows, SystemTime::now()));
            count_change(&mirror, &outcome);
        }
        Step::PolledUpTo { watermark } => {
            write(
                "UPDATE servicenow.sync_table SET watermark = $2 WHERE foreign_table = $1",
                &[relation.into(), (*watermark).into()],
            );
        }
        Step::Polled { watermark, at, is_well } => {
            let recovered = write(
                "UPDATE servicenow.sync_table SET last_error = NULL, last_error_at = NULL
                 WHERE foreign_table = $1 AND last_error IS NOT NULL AND $2",
                &[relation.into(), (*is_well).into()],
            );
            write(
                "WITH delta AS (DELETE FROM servicenow.row_delta WHERE foreign_table = $1 RETURNING delta)
                 UPDATE servicenow.sync_table
                 SET phase = 'synced', watermark = $2, last_poll_at = $3,
                     rows = rows + (SELECT coalesce(sum(delta), 0) FROM delta)
                 WHERE foreign_table = $1",
                &[relation.into(), (*watermark).into(), timestamp(*at).into()],
            );
            if recovered > 0 {
                catalog::note_recovery(relation);
                catalog::notify("sync_recovered", mirror.server, relation, serde_json::json!({}));
                pg::worker::log(&format!(
                    "foreign table {} is synchronized again",
                    catalog::qualified(relation)
                ));
            }
        }
    }
    Ok(())
}

/// Carries out a piece of [`Step::Relabelled`], from a position on: a table is not kept from others' work, nor its rows
/// locked, for as long as all of it takes.
pub fn relabel(
    table: Table,
    relabelling: &Relabelling,
    position: Option<i64>,
) -> Result<super::Done, StoreError> {
    let (mirror, filled) = current_cache(table)?;
    catalog::announce_names();
    if position.is_none() {
        // From here on pages are looked at that were asked for before; the rows they have brought by now will be met.
        latest::with(&mirror, |latest| latest.note_names(relabelling, SystemTime::now()));
        if label::index_references(&mirror, relabelling) {
            return Ok(super::Done::Reached(None));
        }
    }
    let (outcome, next) = label::relabel(&mirror, relabelling, position, filled.then_some(Source::Poll));
    catalog::leave_to_recheck(table.relation, &outcome.unsettled);
    count_change(&mirror, &outcome);
    Ok(next.map_or(super::Done::Applied, |next| super::Done::Reached(Some(next))))
}

/// Puts a page of records into the cache. Those that are gone by what else is known are left to be looked up: several tasks
/// and users' statements are at work on a table, and the page may be older.
fn put_page(
    mirror: &Rc<Mirror>,
    rows: &Rows,
    replace: Replace<'_>,
    source: Option<Source>,
    careful: bool,
) -> Outcome {
    let absent = catalog::absent_among(mirror.foreign_table, rows.ids().collect());
    if absent.is_empty() {
        return look_out(mirror, rows, None, put(mirror, rows, replace, source, careful));
    }
    let mut others = Rows::new(rows.layout().clone());
    let is_absent = |row: usize| absent.contains(rows.id(row));
    (0..rows.len()).filter(|row| !is_absent(*row)).for_each(|row| others.push(rows, row));
    let mut outcome = look_out(mirror, &others, None, put(mirror, &others, replace, source, careful));
    outcome.unsettled.extend(absent);
    outcome
}

/// Has those of these rows looked up that show something of other tables from before it changed. `asked` is when they were
/// asked for, if that is known.
fn look_out(mirror: &Mirror, rows: &Rows, asked: Option<SystemTime>, outcome: Outcome) -> Outcome {
    let outdated = latest::with(mirror, |latest| latest.outdated(&mirror.layout, rows, asked));
    Outcome { unsettled: outcome.unsettled.into_iter().chain(outdated).collect(), ..outcome }
}

fn put(
    mirror: &Rc<Mirror>,
    rows: &Rows,
    replace: Replace<'_>,
    source: Option<Source>,
    careful: bool,
) -> Outcome {
    if rows.is_empty() {
        return Outcome::default();
    }
    let mut writer = CacheWriter::open(mirror, Triggers::Own, source);
    let outcome = writer.put_all(rows, replace, careful);
    failpoint::reach("worker.rows");
    writer.close();
    outcome
}

/// Counts what a poll or recheck has done.
fn changed(mirror: &Mirror, rows: &Rows, outcome: &Outcome, deleted: i64) {
    if outcome.inserted + outcome.updated + deleted == 0 {
        return;
    }
    let relation = mirror.foreign_table;
    if catalog::is_referred_to(mirror.server, &mirror.table) {
        catalog::announce_names(); // sessions may remember the records by other names
    }
    let latest = (0..rows.len()).filter_map(|row| rows.version(row).updated_on).max();
    write(
        "UPDATE servicenow.sync_table
         SET rows = rows + $2, last_change_at = greatest(last_change_at, coalesce(to_timestamp($3), now()))
         WHERE foreign_table = $1",
        &[
            relation.into(),
            (outcome.inserted - deleted).into(),
            latest.filter(|_| outcome.inserted + outcome.updated > 0).map(|s| s as f64).into(),
        ],
    );
}

/// As [`changed`], of what has changed in other tables.
fn count_change(mirror: &Mirror, outcome: &Outcome) {
    if outcome.updated > 0 {
        write(
            "UPDATE servicenow.sync_table SET last_change_at = greatest(last_change_at, now()) WHERE foreign_table = $1",
            &[mirror.foreign_table.into()],
        );
    }
}

/// A fill is over: from here on rows are counted by what changes.
fn complete(mirror: &Mirror, watermark: i64) {
    let (table, key) = (catalog::qualified(mirror.cache), mirror.foreign_table);
    let updated_on = pgrx::spi::quote_identifier(mirror.updated_on_column());
    write(
        &format!(
            "WITH counted AS (SELECT count(*) AS rows, max({updated_on}) AS latest FROM {table}),
                  forgotten AS (DELETE FROM servicenow.row_delta WHERE foreign_table = $1)
             UPDATE servicenow.sync_table t
             SET phase = 'catchup', refill = false, filled = true, fill_columns = NULL, watermark = $2, fill_ended_at = clock_timestamp(),
                 rows = c.rows, rows_hidden = greatest(0, t.rows_total - c.rows),
                 last_change_at = greatest(t.last_change_at, c.latest)
             FROM counted c WHERE t.foreign_table = $1"
        ),
        &[key.into(), watermark.into()],
    );
    let count = catalog::read(
        "SELECT rows FROM servicenow.sync_table WHERE foreign_table = $1",
        &[key.into()],
        |mut rows| rows.next().and_then(|row| catalog::get::<i64>(&row, 1)),
    );
    let count = count.unwrap_or_default();
    catalog::notify("backfill_completed", mirror.server, key, serde_json::json!({"rows": count}));
    pg::worker::log(&format!("foreign table {} is filled: {count} rows", catalog::qualified(key)));
}

/// Keeps what went wrong for `sync_status`; the log hears of it when it begins or changes.
fn failed(mirror: &Mirror, stop: &Stop) {
    let failure = match stop {
        Stop::Remote(e) => {
            let server = pg::catalog::server(mirror.server).name;
            let what = format!("synchronize table \"{}\"", mirror.table);
            Failure::from(report(e, Doing { server: &server, what: &what, writing: false }))
        }
        Stop::Store(e) => Failure::from(e.to_string()),
    };
    note_failure(mirror.foreign_table, failure);
}

/// As [`failed`], for what cannot even begin.
pub fn note_failure(relation: pg_sys::Oid, failure: impl Into<Failure>) {
    let failure = failure.into();
    let text = failure.text();
    let news = write(
        "UPDATE servicenow.sync_table SET last_error = $2
         WHERE foreign_table = $1 AND last_error IS DISTINCT FROM $2",
        &[relation.into(), text.as_str().into()],
    );
    write(
        "UPDATE servicenow.sync_table SET last_error_at = clock_timestamp() WHERE foreign_table = $1",
        &[relation.into()],
    );
    catalog::log_failure(relation, &failure);
    if news > 0 {
        catalog::notify_of(relation, "sync_failed", serde_json::json!({"error": text}));
        pg::worker::log(&format!("foreign table {}: {text}", catalog::qualified(relation)));
    }
}
