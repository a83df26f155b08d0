//! A random sample of a foreign table's rows for ANALYZE, taken from its cache.

use std::ffi::{CString, c_int};
use std::ptr::null_mut;

use pgrx::{PgMemoryContexts, PgRelation, pg_sys};

use super::catalog;
use super::expand::{analyze, set_owner};
use super::generated;
use super::scan::Source;

/// Rows to read for each that is wanted: blocks are chosen, and not all hold as many rows.
const MARGIN: f64 = 1.2;

/// The size of the cache, in pages.
pub fn pages(source: &Source) -> u32 {
    // SAFETY: opening raises an ERROR if the table is gone; the guard closes it.
    unsafe {
        let cache = PgRelation::with_lock(source.cache, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        pg_sys::RelationGetNumberOfBlocksInFork(cache.as_ptr(), pg_sys::ForkNumber::MAIN_FORKNUM)
    }
}

/// Fills `rows` with at most `wanted` rows of the foreign table; gives back how many, and how many the table has.
///
/// # Safety
/// Called by ANALYZE as an `AcquireSampleRowsFunc`, with its arguments.
pub unsafe fn take(
    relation: pg_sys::Relation,
    source: &Source,
    rows: *mut pg_sys::HeapTuple,
    wanted: usize,
) -> (usize, f64) {
    let placeholders = source.generated.iter().map(|_| generated::PLACEHOLDER.to_owned());
    let names = source.columns.iter().map(|(_, n)| pgrx::spi::quote_identifier(n)).chain(placeholders);
    let names: Vec<String> = names.collect();
    let table = catalog::locked_name(source.cache).unwrap_or_default();
    let percent = percent(source.cache, wanted);
    let clause = if percent < 100.0 { format!(" TABLESAMPLE SYSTEM ({percent})") } else { String::new() };
    let sql = format!("SELECT {} FROM {table}{clause}", names.join(", "));
    let numbers = source.columns.iter().map(|(number, _)| *number).chain(source.generated.iter().copied());
    let places: Vec<usize> = numbers.map(|number| number as usize - 1).collect();
    let computed: Vec<(usize, i16)> =
        (source.columns.len()..).zip(source.generated.iter().copied()).collect();
    // SAFETY: by contract. The rows are made in ANALYZE's context, which is current; everything else belongs to
    // the executor, which copies nothing into them that it takes away.
    unsafe {
        let query = analyze(&sql);
        set_owner(query, source.owner);
        generated::compute_in(query, source.foreign_table, &computed, &source.cache_numbers());
        let text = CString::new(sql).expect("identifiers hold no NUL");
        let plan = pg_sys::planner(query, text.as_ptr(), 0, null_mut());
        let (snapshot, none) = (pg_sys::GetActiveSnapshot(), null_mut());
        let receiver = pg_sys::CreateDestReceiver(pg_sys::CommandDest::DestNone);
        let query =
            pg_sys::CreateQueryDesc(plan, text.as_ptr(), snapshot, none, receiver, null_mut(), null_mut(), 0);
        pg_sys::ExecutorStart(query, 0);
        let mut state: pg_sys::ReservoirStateData = std::mem::zeroed();
        pg_sys::reservoir_init_selection_state(&mut state, wanted as c_int);
        let tupdesc = (*relation).rd_att;
        let natts = (*tupdesc).natts as usize;
        let (mut values, mut nulls) = (vec![pg_sys::Datum::from(0); natts], vec![true; natts]);
        let (mut kept, mut seen, mut to_skip) = (0usize, 0f64, -1f64);
        loop {
            delay();
            let mut context = PgMemoryContexts::For((*(*query).estate).es_query_cxt);
            let slot = context.switch_to(|_| pg_sys::ExecProcNode((*query).planstate));
            if slot.is_null() || (*slot).tts_flags & pg_sys::TTS_FLAG_EMPTY as u16 != 0 {
                break;
            }
            // Vitter's algorithm: once the sample is full, some of the rows that follow replace members.
            let place = if kept < wanted {
                kept += 1;
                Some(kept - 1)
            } else {
                if to_skip < 0.0 {
                    to_skip = pg_sys::reservoir_get_next_S(&mut state, seen, wanted as c_int);
                }
                to_skip -= 1.0;
                (to_skip < 0.0).then(|| {
                    let place = (wanted as f64 * pg_sys::sampler_random_fract(&mut state.randstate)) as usize;
                    pg_sys::heap_freetuple(*rows.add(place));
                    place
                })
            };
            seen += 1.0;
            let Some(place) = place else { continue };
            pg_sys::slot_getallattrs(slot);
            for (i, column) in places.iter().enumerate() {
                values[*column] = *(*slot).tts_values.add(i);
                nulls[*column] = *(*slot).tts_isnull.add(i);
            }
            *rows.add(place) = pg_sys::heap_form_tuple(tupdesc, values.as_mut_ptr(), nulls.as_mut_ptr());
        }
        pg_sys::ExecutorFinish(query);
        pg_sys::ExecutorEnd(query);
        pg_sys::FreeQueryDesc(query);
        (kept, (seen * 100.0 / percent).round())
    }
}

/// Spares the disks as `vacuum_cost_delay` says.
fn delay() {
    // SAFETY: sleeps or does nothing.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::vacuum_delay_point();
        #[cfg(feature = "pg18")]
        pg_sys::vacuum_delay_point(true);
    }
}

/// How much of the cache to read for so many rows, by the number of rows its own statistics know of.
fn percent(cache: pg_sys::Oid, wanted: usize) -> f64 {
    let known = catalog::row_estimate(cache);
    if known > 0.0 { (100.0 * MARGIN * wanted as f64 / f64::from(known)).min(100.0) } else { 100.0 }
}
