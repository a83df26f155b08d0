//! Choosing rows: which index answers a query, in what order, how many rows match, and the page of them.
//!
//! Keyset pages walk an ordered index from a rank and count by subtracting ranks, so that they cost the page and not
//! the table. Everything else scans and sorts.

use std::ops::Bound;

use super::compile::{self, Compiled, UnknownField};
use super::order::{self, SortKey};
use super::{Condition, Operator, Query, Session};
use crate::schema::{Kind, TableId};
use crate::store::key::IdKey;
use crate::store::{Db, RowId};

/// What is asked of a table.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    /// The table.
    pub(crate) table: TableId,
    /// The query.
    pub(crate) query: &'a Query,
    /// What unknown fields do.
    pub(crate) unknown: UnknownField,
    /// Who asks.
    pub(crate) session: &'a Session,
    /// Rows to skip.
    pub(crate) offset: usize,
    /// Rows to return.
    pub(crate) limit: usize,
    /// Whether the number of matches is wanted.
    pub(crate) count: bool,
    /// The seed of the order among ties, or `None` for a stable one (facts §1.5).
    pub(crate) unstable: Option<u64>,
}

/// The page and the number of matches before any ACL.
#[derive(Debug)]
pub(crate) struct Selection {
    /// The rows of the page.
    pub(crate) rows: Vec<RowId>,
    /// The number of matches, when asked for.
    pub(crate) total: Option<usize>,
}

type Bounds<K> = (Bound<K>, Bound<K>);

/// The ordered index that yields the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walk {
    Id { descending: bool },
    Updated { descending: bool },
}

/// Selects the rows of a page.
pub(crate) fn select(db: &Db, ask: &Ask<'_>) -> Selection {
    let family = db.schema.family(ask.table);
    let keys = SortKey::resolve(db, ask.table, &ask.query.order);
    let compiled: Vec<(TableId, Compiled)> = family
        .iter()
        .map(|&class| (class, Compiled::new(db, ask.table, class, ask.query, ask.unknown, ask.session)))
        .collect();
    let filter = |row: RowId| {
        let class = db.row(row).table;
        compiled.iter().find(|(t, _)| *t == class).is_some_and(|(_, c)| c.matches(db, row))
    };
    // One row before the page is fetched too: it may stand in for a tie.
    let from = ask.offset.saturating_sub(1);
    let want = ask.limit.saturating_add(ask.offset - from);

    let mut picked = if let Some(mut rows) = exact_candidates(db, ask) {
        rows.retain(|&r| filter(r));
        sort(db, &mut rows, &keys);
        let total = rows.len();
        Picked { rows: page(rows, from, want), total: Some(total) }
    } else {
        let id = id_bounds(ask);
        let updated = updated_bounds(db, ask);
        match natural_walk(ask, &keys, id.is_some(), updated.is_some()) {
            Some(walk) => {
                let covered = compiled.iter().all(|(_, c)| c.is_trivial()) || is_covered(ask, walk);
                walk_index(db, ask, &family, walk, id, updated, covered.then_some(()), &filter, from, want)
            }
            None => {
                let mut rows: Vec<RowId> = match updated {
                    Some(bounds) => family
                        .iter()
                        .flat_map(|&t| updated_range(db, t, &bounds))
                        .filter(|&r| filter(r))
                        .collect(),
                    None => {
                        let bounds = id.unwrap_or((Bound::Unbounded, Bound::Unbounded));
                        family.iter().flat_map(|&t| id_range(db, t, &bounds)).filter(|&r| filter(r)).collect()
                    }
                };
                let total = rows.len();
                sort_front(db, &mut rows, &keys, from.saturating_add(want));
                Picked { rows: page(rows, from, want), total: Some(total) }
            }
        }
    };

    if ask.offset > from && !picked.rows.is_empty() {
        let before = picked.rows.remove(0);
        if let (Some(seed), Some(first)) = (ask.unstable, picked.rows.first_mut()) {
            let tied = order::compare(
                db,
                &keys,
                &order::key_of(db, before, &keys),
                &order::key_of(db, *first, &keys),
            )
            .is_eq();
            if tied && mix(seed ^ ask.offset as u64).is_multiple_of(5) {
                *first = before;
            }
        }
    }
    picked.rows.truncate(ask.limit);
    Selection { rows: picked.rows, total: ask.count.then(|| picked.total.unwrap_or_default()) }
}

struct Picked {
    rows: Vec<RowId>,
    total: Option<usize>,
}

/// A well-spread hash of a number.
pub(crate) fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn page(rows: Vec<RowId>, from: usize, want: usize) -> Vec<RowId> {
    rows.into_iter().skip(from).take(want).collect()
}

fn sort(db: &Db, rows: &mut Vec<RowId>, keys: &[SortKey]) {
    sort_front(db, rows, keys, usize::MAX);
}

/// Sorts so that the first `front` rows are right; the others need no order among themselves.
fn sort_front(db: &Db, rows: &mut Vec<RowId>, keys: &[SortKey], front: usize) {
    if keys.is_empty() {
        rows.sort_by_cached_key(|&r| db.id_key(r));
        return;
    }
    let mut keyed: Vec<_> = rows.iter().map(|&r| (order::key_of(db, r, keys), db.id_key(r))).collect();
    let compare = |a: &(Vec<order::Sorted>, (IdKey, RowId)), b: &(Vec<order::Sorted>, (IdKey, RowId))| {
        order::compare(db, keys, &a.0, &b.0).then_with(|| a.1.cmp(&b.1))
    };
    if front < keyed.len() {
        keyed.select_nth_unstable_by(front, compare);
        keyed.truncate(front);
    }
    keyed.sort_unstable_by(compare);
    *rows = keyed.into_iter().map(|(_, (_, r))| r).collect();
}

/// The single conditions that every match must meet.
fn required(query: &Query) -> Option<impl Iterator<Item = &Condition>> {
    let [only] = query.alternatives.as_slice() else { return None };
    Some(only.iter().filter_map(|group| match group.as_slice() {
        [condition] => Some(condition),
        _ => None,
    }))
}

/// The few rows that an equality on an indexed column or on `sys_id` leaves.
fn exact_candidates(db: &Db, ask: &Ask<'_>) -> Option<Vec<RowId>> {
    for condition in required(ask.query)? {
        let values: Vec<&str> = match condition.operator {
            Operator::Equal if !condition.value.is_empty() => vec![&condition.value],
            Operator::In => condition.value.split(',').collect(),
            _ => continue,
        };
        if values.iter().any(|v| v.starts_with("javascript:") || *v == "NULL" || v.is_empty()) {
            continue;
        }
        let find = |value: &str| match condition.field.as_str() {
            "sys_id" => Some(db.find(ask.table, value).into_iter().collect()),
            field => db.find_equal(ask.table, field, value),
        };
        if let Some(rows) = values.into_iter().map(find).collect::<Option<Vec<Vec<RowId>>>>() {
            let mut rows = rows.concat();
            rows.sort_unstable();
            rows.dedup();
            return Some(rows);
        }
    }
    None
}

/// The order that the query asks for, when an index has it.
fn natural_walk(ask: &Ask<'_>, keys: &[SortKey], by_id: bool, by_updated: bool) -> Option<Walk> {
    let order: Vec<(&str, bool)> = ask.query.order.iter().map(|(f, d)| (f.as_str(), *d)).collect();
    match order.as_slice() {
        _ if keys.is_empty() && by_updated && !by_id => Some(Walk::Updated { descending: false }),
        _ if keys.is_empty() => Some(Walk::Id { descending: false }),
        [("sys_id", descending), ..] => Some(Walk::Id { descending: *descending }),
        [("sys_updated_on", descending)] => Some(Walk::Updated { descending: *descending }),
        [("sys_updated_on", a), ("sys_id", b), ..] if a == b => Some(Walk::Updated { descending: *a }),
        _ => None,
    }
}

fn is_bound(condition: &Condition, field: &str) -> bool {
    condition.field == field
        && matches!(
            condition.operator,
            Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual
        )
        && !condition.value.starts_with("javascript:")
}

/// True when the bounds of the walk express the whole query.
fn is_covered(ask: &Ask<'_>, walk: Walk) -> bool {
    let field = match walk {
        Walk::Id { .. } => "sys_id",
        Walk::Updated { .. } => "sys_updated_on",
    };
    let [only] = ask.query.alternatives.as_slice() else { return false };
    only.iter().all(|group| matches!(group.as_slice(), [c] if is_bound(c, field) && exact_bound(c)))
}

/// True when the index bound of a condition is neither wider nor narrower than the condition.
fn exact_bound(condition: &Condition) -> bool {
    match condition.field.as_str() {
        "sys_id" => !IdKey::is_cut(&condition.value),
        _ => compile::number_of(Kind::DateTime, &condition.value)
            .is_some_and(|n| (0.0..f64::from(u32::MAX)).contains(&n)),
    }
}

/// The union over all alternatives of the bounds they set on a key; `None` when one sets none.
fn bounds_of<K: Ord + Copy>(
    query: &Query,
    field: &str,
    key: impl Fn(&str) -> Option<K>,
) -> Option<Bounds<K>> {
    let mut union: Option<Bounds<K>> = None;
    for alternative in &query.alternatives {
        let mut low = Bound::Unbounded;
        let mut high = Bound::Unbounded;
        for group in alternative {
            let [condition] = group.as_slice() else { continue };
            if condition.field != field || condition.value.starts_with("javascript:") {
                continue;
            }
            let Some(k) = key(&condition.value) else { continue };
            match condition.operator {
                Operator::Greater => low = tighter(low, Bound::Excluded(k), true),
                Operator::GreaterOrEqual => low = tighter(low, Bound::Included(k), true),
                Operator::Less => high = tighter(high, Bound::Excluded(k), false),
                Operator::LessOrEqual => high = tighter(high, Bound::Included(k), false),
                Operator::Equal if !condition.value.is_empty() => {
                    low = tighter(low, Bound::Included(k), true);
                    high = tighter(high, Bound::Included(k), false);
                }
                _ => {}
            }
        }
        if matches!((&low, &high), (Bound::Unbounded, Bound::Unbounded)) {
            return None;
        }
        union = Some(match union {
            None => (low, high),
            Some((l, h)) => (looser(l, low, true), looser(h, high, false)),
        });
    }
    union
}

fn rank<K: Ord + Copy>(bound: Bound<K>, lower: bool) -> Option<(K, u8)> {
    match bound {
        Bound::Unbounded => None,
        Bound::Included(k) => Some((k, u8::from(!lower))),
        Bound::Excluded(k) => Some((k, u8::from(lower))),
    }
}

/// The narrower of two bounds on the same side.
fn tighter<K: Ord + Copy>(a: Bound<K>, b: Bound<K>, lower: bool) -> Bound<K> {
    match (rank(a, lower), rank(b, lower)) {
        (None, _) => b,
        (_, None) => a,
        (Some(x), Some(y)) => {
            if (x < y) == lower {
                b
            } else {
                a
            }
        }
    }
}

/// The wider of two bounds on the same side.
fn looser<K: Ord + Copy>(a: Bound<K>, b: Bound<K>, lower: bool) -> Bound<K> {
    match (rank(a, lower), rank(b, lower)) {
        (None, _) | (_, None) => Bound::Unbounded,
        (Some(x), Some(y)) => {
            if (x < y) == lower {
                a
            } else {
                b
            }
        }
    }
}

fn id_bounds(ask: &Ask<'_>) -> Option<Bounds<IdKey>> {
    bounds_of(ask.query, "sys_id", |text| (!IdKey::is_cut(text)).then(|| IdKey::of(text)))
}

fn updated_bounds(db: &Db, ask: &Ask<'_>) -> Option<Bounds<u32>> {
    db.schema.table(ask.table).layout.slot("sys_updated_on")?;
    bounds_of(ask.query, "sys_updated_on", |text| {
        compile::number_of(Kind::DateTime, text)
            .filter(|n| (0.0..f64::from(u32::MAX)).contains(n))
            .map(|n| n as u32)
    })
}

const FIRST: RowId = RowId(0);
const LAST: RowId = RowId(u32::MAX);

/// The ranks in the id index that bounds on the id mean.
fn id_ranks(db: &Db, class: TableId, bounds: &Bounds<IdKey>) -> (usize, usize) {
    let set = &db.class(class).by_id;
    let low = match bounds.0 {
        Bound::Unbounded => 0,
        Bound::Included(k) => set.rank_from(Bound::Included(&(k, FIRST))),
        Bound::Excluded(k) => set.rank_from(Bound::Excluded(&(k, LAST))),
    };
    let high = match bounds.1 {
        Bound::Unbounded => set.len(),
        Bound::Included(k) => set.rank_to(Bound::Included(&(k, LAST))),
        Bound::Excluded(k) => set.rank_to(Bound::Excluded(&(k, FIRST))),
    };
    (low, high.max(low))
}

fn updated_ranks(db: &Db, class: TableId, bounds: &Bounds<u32>) -> (usize, usize) {
    let set = &db.class(class).by_updated;
    let least = |k: u32| (k, IdKey::of(""), FIRST);
    let low = match bounds.0 {
        Bound::Unbounded => 0,
        Bound::Included(k) => set.rank_from(Bound::Included(&least(k))),
        Bound::Excluded(k) => {
            k.checked_add(1).map_or(set.len(), |k| set.rank_from(Bound::Included(&least(k))))
        }
    };
    let high = match bounds.1 {
        Bound::Unbounded => set.len(),
        Bound::Excluded(k) => set.rank_to(Bound::Excluded(&least(k))),
        Bound::Included(k) => k.checked_add(1).map_or(set.len(), |k| set.rank_to(Bound::Excluded(&least(k)))),
    };
    (low, high.max(low))
}

fn id_range<'a>(db: &'a Db, class: TableId, bounds: &Bounds<IdKey>) -> impl Iterator<Item = RowId> + 'a {
    let (low, high) = id_ranks(db, class, bounds);
    db.class(class).by_id.iter_from(low).take(high - low).map(|(_, r)| r)
}

fn updated_range<'a>(db: &'a Db, class: TableId, bounds: &Bounds<u32>) -> impl Iterator<Item = RowId> + 'a {
    let (low, high) = updated_ranks(db, class, bounds);
    db.class(class).by_updated.iter_from(low).take(high - low).map(|(_, _, r)| r)
}

#[allow(clippy::too_many_arguments)]
fn walk_index(
    db: &Db,
    ask: &Ask<'_>,
    family: &[TableId],
    walk: Walk,
    id: Option<Bounds<IdKey>>,
    updated: Option<Bounds<u32>>,
    covered: Option<()>,
    filter: &dyn Fn(RowId) -> bool,
    from: usize,
    want: usize,
) -> Picked {
    let ranks: Vec<(TableId, usize, usize)> = family
        .iter()
        .map(|&class| {
            let (low, high) = match walk {
                Walk::Id { .. } => id_ranks(db, class, &id.unwrap_or((Bound::Unbounded, Bound::Unbounded))),
                Walk::Updated { .. } => {
                    updated_ranks(db, class, &updated.unwrap_or((Bound::Unbounded, Bound::Unbounded)))
                }
            };
            (class, low, high)
        })
        .filter(|(_, low, high)| high > low)
        .collect();
    let total: usize = ranks.iter().map(|(_, low, high)| high - low).sum();
    let descending = matches!(walk, Walk::Id { descending: true } | Walk::Updated { descending: true });

    if covered.is_some() && ranks.len() <= 1 {
        let Some(&(class, low, high)) = ranks.first() else {
            return Picked { rows: Vec::new(), total: Some(0) };
        };
        let size = high - low;
        let (start, take) = if descending {
            let end = size.saturating_sub(from);
            let start = end.saturating_sub(want);
            (low + start, end - start)
        } else {
            (low + from.min(size), want.min(size.saturating_sub(from)))
        };
        let mut rows: Vec<RowId> = match walk {
            Walk::Id { .. } => db.class(class).by_id.iter_from(start).take(take).map(|(_, r)| r).collect(),
            Walk::Updated { .. } => {
                db.class(class).by_updated.iter_from(start).take(take).map(|(_, _, r)| r).collect()
            }
        };
        if descending {
            rows.reverse();
        }
        return Picked { rows, total: Some(total) };
    }

    let mut merged: Box<dyn Iterator<Item = RowId>> = match walk {
        Walk::Id { .. } => Box::new(merge(
            ranks
                .iter()
                .map(|&(c, low, high)| db.class(c).by_id.iter_from(low).take(high - low).map(|k| (k, k.1)))
                .collect(),
        )),
        Walk::Updated { .. } => Box::new(merge(
            ranks
                .iter()
                .map(|&(c, low, high)| {
                    db.class(c).by_updated.iter_from(low).take(high - low).map(|k| (k, k.2))
                })
                .collect(),
        )),
    };
    if descending {
        let mut all: Vec<RowId> = merged.filter(|&r| covered.is_some() || filter(r)).collect();
        all.reverse();
        let total = all.len();
        return Picked { rows: page(all, from, want), total: Some(total) };
    }
    if covered.is_some() {
        return Picked { rows: merged.skip(from).take(want).collect(), total: Some(total) };
    }
    let mut rows = Vec::new();
    let mut matched = 0;
    for row in merged.by_ref().filter(|&r| filter(r)) {
        if matched >= from && rows.len() < want {
            rows.push(row);
        }
        matched += 1;
        if !ask.count && rows.len() == want {
            break;
        }
    }
    Picked { rows, total: Some(matched) }
}

/// Merges sorted runs.
fn merge<K: Ord + Copy>(mut runs: Vec<impl Iterator<Item = (K, RowId)>>) -> impl Iterator<Item = RowId> {
    let mut heads: Vec<Option<(K, RowId)>> = runs.iter_mut().map(Iterator::next).collect();
    std::iter::from_fn(move || {
        let (at, _) =
            heads.iter().enumerate().filter_map(|(i, h)| h.map(|h| (i, h.0))).min_by_key(|(_, k)| *k)?;
        let head = std::mem::replace(&mut heads[at], runs[at].next());
        head.map(|(_, row)| row)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use chrono::Utc;
    use proptest::prelude::*;

    use super::*;
    use crate::dataset;

    static DATA: LazyLock<Db> = LazyLock::new(|| dataset::build(dataset::Plan::default()).db);

    fn session() -> Session {
        Session {
            now: Utc::now(),
            zone: chrono_tz::Tz::UTC,
            user_id: String::new(),
            user_name: "admin".to_owned(),
        }
    }

    /// A value that occurs in a column, or one near it.
    fn value_of(field: &str, n: usize) -> String {
        let db = &*DATA;
        let task = db.schema.find("task").expect("task");
        let rows: Vec<RowId> = db.scan(task).collect();
        let path: Vec<String> = field.split('.').map(str::to_owned).collect();
        db.symbols.text(compile::walk(db, rows[n % rows.len()], &path))
    }

    fn condition() -> impl Strategy<Value = String> {
        let fields = prop::sample::select(vec![
            "sys_id",
            "sys_updated_on",
            "number",
            "state",
            "priority",
            "short_description",
            "assigned_to",
            "assigned_to.name",
            "active",
            "opened_at",
            "sys_class_name",
            "no_such_field",
        ]);
        let operators = prop::sample::select(vec![
            "=",
            "!=",
            "<",
            "<=",
            ">",
            ">=",
            "STARTSWITH",
            "LIKE",
            "ISEMPTY",
            "IN",
        ]);
        (fields, operators, any::<usize>(), any::<usize>()).prop_map(|(field, operator, n, m)| match operator
        {
            "ISEMPTY" => format!("{field}ISEMPTY"),
            "IN" => format!("{field}IN{},{}", value_of(field, n), value_of(field, m)),
            "STARTSWITH" | "LIKE" => {
                format!("{field}{operator}{}", value_of(field, n).chars().take(3).collect::<String>())
            }
            operator => format!("{field}{operator}{}", value_of(field, n)),
        })
    }

    fn query() -> impl Strategy<Value = String> {
        let order = prop::sample::select(vec![
            "",
            "^ORDERBYsys_id",
            "^ORDERBYDESCsys_id",
            "^ORDERBYsys_updated_on",
            "^ORDERBYsys_updated_on^ORDERBYsys_id",
            "^ORDERBYDESCsys_updated_on^ORDERBYDESCsys_id",
            "^ORDERBYpriority^ORDERBYDESCnumber",
            "^ORDERBYassigned_to^ORDERBYsys_id",
        ]);
        let joins = prop::sample::select(vec!["^", "^", "^", "^OR", "^NQ"]);
        (prop::collection::vec((joins, condition()), 0..4), order).prop_map(|(parts, order)| {
            let mut text = String::new();
            for (at, (join, condition)) in parts.iter().enumerate() {
                if at > 0 {
                    text.push_str(join);
                }
                text.push_str(condition);
            }
            text + order
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn pages_from_indexes_are_the_pages_of_a_full_scan(
            text in query(),
            table in prop::sample::select(vec!["incident", "task", "problem"]),
            limit in 1usize..40,
        ) {
            let db = &*DATA;
            let table = db.schema.find(table).expect("a table");
            let (query, session) = (Query::parse(&text), session());
            let mut expected: Vec<RowId> = db
                .scan(table)
                .filter(|&r| {
                    let class = db.row(r).table;
                    Compiled::new(db, table, class, &query, UnknownField::Ignore, &session).matches(db, r)
                })
                .collect();
            let keys = SortKey::resolve(db, table, &query.order);
            sort(db, &mut expected, &keys);
            let mut found = Vec::new();
            for offset in (0..=expected.len()).step_by(limit) {
                let ask = Ask {
                    table, query: &query, unknown: UnknownField::Ignore, session: &session,
                    offset, limit, count: true, unstable: None,
                };
                let selection = select(db, &ask);
                prop_assert_eq!(selection.total, Some(expected.len()), "{}", text);
                found.extend(selection.rows);
            }
            if query.order.is_empty() {
                found.sort_by_cached_key(|&r| db.id_key(r));
            }
            let ids = |rows: &[RowId]| rows.iter().map(|&r| db.text(r, "number")).collect::<Vec<_>>();
            let settled = query.order.iter().any(|(f, _)| f == "sys_id" || f == "number");
            if settled || query.order.is_empty() {
                prop_assert_eq!(ids(&found), ids(&expected), "{}", text);
            } else {
                let keys_of = |rows: &[RowId]| rows.iter().map(|&r| order::key_of(db, r, &keys)).collect::<Vec<_>>();
                prop_assert_eq!(keys_of(&found), keys_of(&expected), "{}", text);
                found.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(found, expected, "{}", text);
            }
        }
    }
}
