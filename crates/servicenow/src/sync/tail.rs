//! Reading a table along the time of its changes, none left out.
//!
//! Time has a resolution of one second, and thousands of records may share one. A tail therefore moves by
//! (time, `sys_id`): when a page ends inside a second, it reads the rest of that second by `sys_id` first and
//! goes on behind it then. Records that change meanwhile move towards the end, where they are met again.
//!
//! Where a page shows no key to go on from, because access control hides all its rows, a tail reads the place
//! by offset, from its end to its beginning: records that change leave the place they had, which moves those
//! behind it one closer to the beginning, never past a reader who comes from the end.

use crate::client::table_api::Page;
use crate::error::Result;
use crate::query::{Op, Query, Term};
use crate::sync::sweep::Progress;
use crate::value::{SysId, date_time, decode_seconds};

/// What a tail has to know of a page.
#[derive(Clone, Debug)]
struct SeenInTime {
    /// The number of rows in the page.
    rows: usize,
    /// Time (seconds since 1970) and `sys_id` of the last row that has both.
    last: Option<(i64, SysId)>,
    /// How many records match the page's query, if the instance counts.
    total: Option<u64>,
}

/// Where a tail stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Everything from this second on.
    From(i64),
    /// The rest of this second, behind this record.
    Within(i64, SysId),
    /// Everything after this second.
    Beyond(i64),
}

/// The position of a reader along a time field.
#[derive(Clone, Debug)]
pub struct Tail {
    field: &'static str,
    place: Place,
    /// Reading backwards: what lies at this offset and behind it has been read.
    unread_below: Option<u64>,
}

impl Tail {
    /// Begins at a second, inclusive.
    pub fn new(field: &'static str, from: i64) -> Self {
        Self { field, place: Place::From(from), unread_below: None }
    }

    /// The next page's query and offset, within `base`, if it is asked for with `limit`. Every page has to be
    /// counted.
    pub fn page(&self, base: &Query, limit: u32) -> Result<(Query, u64)> {
        let time = |op, second| Term::new(self.field, op, &date_time(second).unwrap_or_default());
        let query = match &self.place {
            Place::From(second) => base.clone().and(time(Op::Ge, *second)?).order_by(self.field),
            Place::Beyond(second) => base.clone().and(time(Op::Gt, *second)?).order_by(self.field),
            Place::Within(second, after) => {
                base.clone().and(time(Op::Eq, *second)?).and(Term::new("sys_id", Op::Gt, after.as_str())?)
            }
        };
        let offset = self.unread_below.map_or(0, |unread| unread.saturating_sub(u64::from(limit)));
        Ok((query.order_by("sys_id"), offset))
    }

    /// The second before which everything has been read, if it is not the one it began at.
    pub fn reached(&self) -> Option<i64> {
        match self.place {
            Place::From(_) => None,
            Place::Within(second, _) | Place::Beyond(second) => Some(second),
        }
    }

    /// Whether nothing has been read yet.
    pub fn is_at_its_beginning(&self) -> bool {
        matches!(self.place, Place::From(_)) && self.unread_below.is_none()
    }

    /// Takes note of a page that was asked for with `limit`. If it was not read by the time of the last change, its rows
    /// have the field as text.
    pub fn advance(&mut self, page: &Page, limit: u32) -> Progress {
        let rows = &page.rows;
        let last = rows.len().checked_sub(1).and_then(|row| {
            let second = match self.field {
                "sys_updated_on" => rows.version(row).updated_on,
                field => decode_seconds(rows.get(row, field)),
            };
            Some((second?, SysId::new(rows.id(row))))
        });
        self.advance_behind(&SeenInTime { rows: rows.len(), last, total: page.total }, limit)
    }

    fn advance_behind(&mut self, seen: &SeenInTime, limit: u32) -> Progress {
        if let Some(unread) = self.unread_below {
            let left = unread.saturating_sub(u64::from(limit));
            self.unread_below = Some(left);
            return if left == 0 { self.leave_place() } else { Progress::More };
        }
        let exhausted = match seen.total {
            Some(total) => seen.rows as u64 >= total,
            None => seen.rows == 0,
        };
        if exhausted {
            return self.leave_place();
        }
        match (&seen.last, seen.total) {
            (Some((second, id)), _) if id.is_plain() => {
                self.place = Place::Within(*second, id.clone());
                Progress::More
            }
            // Nothing to go on from: the rows are hidden, or have no usable key.
            (_, Some(total)) if total > u64::from(limit) => {
                self.unread_below = Some(total);
                Progress::More
            }
            _ => self.leave_place(),
        }
    }

    fn leave_place(&mut self) -> Progress {
        self.unread_below = None;
        match self.place {
            Place::From(_) | Place::Beyond(_) => Progress::Done,
            Place::Within(second, _) => {
                self.place = Place::Beyond(second);
                Progress::More
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_quiet_table_costs_one_call() {
        let mut tail = Tail::new("sys_updated_on", 0);
        let (query, _) = tail.page(&Query::all(), 100).unwrap();
        assert_eq!(
            query.to_string(),
            "sys_updated_on>=1970-01-01 00:00:00^ORDERBYsys_updated_on^ORDERBYsys_id"
        );
        assert_eq!(
            tail.advance_behind(&SeenInTime { rows: 0, last: None, total: Some(0) }, 100),
            Progress::Done
        );
    }

    #[test]
    fn the_rest_of_a_second_is_read_before_what_follows_it() {
        let mut tail = Tail::new("sys_updated_on", 0);
        let seen = SeenInTime { rows: 2, last: Some((5, SysId::new("b"))), total: Some(9) };
        assert_eq!(tail.advance_behind(&seen, 2), Progress::More);
        let (query, _) = tail.page(&Query::all(), 100).unwrap();
        assert_eq!(query.to_string(), "sys_updated_on=1970-01-01 00:00:05^sys_id>b^ORDERBYsys_id");
        assert_eq!(
            tail.advance_behind(&SeenInTime { rows: 0, last: None, total: Some(0) }, 2),
            Progress::More
        );
        let (query, _) = tail.page(&Query::all(), 100).unwrap();
        assert_eq!(
            query.to_string(),
            "sys_updated_on>1970-01-01 00:00:05^ORDERBYsys_updated_on^ORDERBYsys_id"
        );
    }

    proptest! {
        /// Thousands of records in one second, hidden ones among them, and changes while it reads.
        #[test]
        fn a_tail_meets_every_readable_record_in_its_last_state(
            times in prop::collection::vec((0i64..6, any::<bool>()), 0..120),
            limit in 1u32..15,
            touched in prop::collection::vec((0usize..120, 0usize..30), 0..30),
        ) {
            let mut table: Vec<(i64, String, bool)> =
                times.iter().enumerate().map(|(i, (t, v))| (*t, format!("{i:04}"), *v)).collect();
            let mut clock = 10;
            let mut met: BTreeSet<(i64, String)> = BTreeSet::new();
            let mut tail = Tail::new("sys_updated_on", 0);
            for step in 0.. {
                prop_assert!(step < 2_000, "a tail ends");
                for (row, _) in touched.iter().filter(|(_, when)| *when == step) {
                    if let Some(record) = table.iter_mut().find(|(_, id, _)| *id == format!("{row:04}")) {
                        clock += 1;
                        record.0 = clock;
                    }
                }
                table.sort();
                let matching: Vec<_> = table.iter().filter(|(t, id, _)| match &tail.place {
                    Place::From(s) => t >= s,
                    Place::Beyond(s) => t > s,
                    Place::Within(s, after) => t == s && id.as_str() > after.as_str(),
                }).collect();
                let (_, offset) = tail.page(&Query::all(), limit).unwrap();
                let page: Vec<_> = matching.iter().skip(offset as usize).take(limit as usize)
                    .filter(|(_, _, v)| *v).collect();
                met.extend(page.iter().map(|(t, id, _)| (*t, id.clone())));
                let seen = SeenInTime {
                    rows: page.len(),
                    last: page.last().map(|(t, id, _)| (*t, SysId::new(id.clone()))),
                    total: Some(matching.len() as u64),
                };
                if tail.advance_behind(&seen, limit) == Progress::Done {
                    break;
                }
            }
            for (t, id, visible) in &table {
                // A record touched after the tail has passed the end belongs to the next poll.
                let late = touched.iter().any(|(row, _)| format!("{row:04}") == *id);
                prop_assert!(!visible || late || met.contains(&(*t, id.clone())), "{} at {}", id, t);
            }
        }
    }
}
