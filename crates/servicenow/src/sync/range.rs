//! Parts of the space of `sys_id`s, in the order an instance sorts them.

use std::cmp::Ordering;

use crate::query::{Op, Query, QueryError, Term};
use crate::value::SysId;

/// How an instance sorts two identifiers: by their bytes, small letters as capitals; in a database
/// `upper(sys_id COLLATE "C") COLLATE "C"`. Nearly all identifiers consist of small letters and digits, about
/// which all collations agree. Where an instance sorts others in another way, a mirror does more work, not worse.
pub fn compare(a: &str, b: &str) -> Ordering {
    folded(a).cmp(folded(b))
}

fn folded(id: &str) -> impl Iterator<Item = u8> + '_ {
    id.bytes().map(|byte| byte.to_ascii_uppercase())
}

/// The place of an identifier among those that consist of 32 hexadecimal digits.
fn digits_of(id: &str) -> u128 {
    let mut digits = 0;
    for (at, byte) in folded(id).take(32).enumerate() {
        let place = 4 * (31 - at);
        match byte {
            b'0'..=b'9' => digits |= u128::from(byte - b'0') << place,
            b'A'..=b'F' => digits |= u128::from(byte - b'A' + 10) << place,
            // Whatever follows comes before all digits of this place, behind all figures, or behind all.
            ..b'0' => break,
            b':'..b'A' => return digits | 10 << place,
            b'G'.. => return digits | (u128::MAX >> (4 * at)),
        }
    }
    digits
}

/// A part of a table: the records whose `sys_id` is at least `lower` and less than `upper`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Range {
    /// The lower bound, inclusive; none is the beginning.
    pub lower: Option<SysId>,
    /// The upper bound, exclusive; none is the end.
    pub upper: Option<SysId>,
}

impl Range {
    /// Cuts the space of `sys_id`s into `count` parts of about the same number of records, given that most
    /// identifiers are random hexadecimal digits. The outermost parts are open, so that every other
    /// identifier (`global`, `4`) lies in one of them too. `count` is at most 256.
    pub fn partition(count: usize) -> Vec<Range> {
        let count = count.clamp(1, 256);
        let bounds = (1..count).map(|i| SysId::new(format!("{:02x}", i * 256 / count)));
        Range::default().cut(bounds)
    }

    /// Cuts a range at these bounds, which lie within it in ascending order.
    pub fn cut(&self, bounds: impl IntoIterator<Item = SysId>) -> Vec<Range> {
        let mut rest = self.clone();
        let mut parts = Vec::new();
        for bound in bounds {
            let lower = rest.lower.replace(bound.clone());
            parts.push(Range { lower, upper: Some(bound) });
        }
        parts.push(rest);
        parts
    }

    /// The smallest range that has all of these in it.
    pub fn spanning<'r>(ranges: impl IntoIterator<Item = &'r Range>) -> Range {
        let mut ranges = ranges.into_iter();
        let first = ranges.next().cloned().unwrap_or_default();
        ranges.fold(first, |all, range| Range {
            lower: all
                .lower
                .zip(range.lower.clone())
                .map(|(a, b)| if compare(a.as_str(), b.as_str()).is_le() { a } else { b }),
            upper: all
                .upper
                .zip(range.upper.clone())
                .map(|(a, b)| if compare(a.as_str(), b.as_str()).is_ge() { a } else { b }),
        })
    }

    /// Whether an identifier cuts the range in two, as a bound that can stand in a query.
    pub fn is_cut_by(&self, bound: &SysId) -> bool {
        let id = bound.as_str();
        let is_lower = |lower: &SysId| compare(lower.as_str(), id).is_eq();
        bound.is_plain() && id.trim() == id && self.contains(id) && !self.lower.as_ref().is_some_and(is_lower)
    }

    /// Restricts a query to the range.
    pub fn within(&self, mut query: Query) -> Result<Query, QueryError> {
        if let Some(lower) = &self.lower {
            query = query.and(Term::new("sys_id", Op::Ge, lower.as_str())?);
        }
        if let Some(upper) = &self.upper {
            query = query.and(Term::new("sys_id", Op::Lt, upper.as_str())?);
        }
        Ok(query)
    }

    /// Whether a record lies in the range.
    pub fn contains(&self, id: &str) -> bool {
        !self.begins_after(id) && !self.ends_by(id)
    }

    /// A bound that cuts off about one of `parts` equal parts at the beginning, if identifiers are random hexadecimal
    /// digits. There is none where the range is too narrow for that, or lies elsewhere.
    pub fn part(&self, parts: u64) -> Option<SysId> {
        self.first(self.width()? / u128::from(parts.max(2)))
    }

    /// How many identifiers of 32 hexadecimal digits lie in the range; `None` if it lies elsewhere.
    pub fn width(&self) -> Option<u128> {
        let upper = self.upper.as_ref().map_or(u128::MAX, |id| digits_of(id.as_str()));
        upper.checked_sub(self.first_digits())
    }

    /// A bound that cuts off a part of this width at the beginning, if the range is wider.
    pub fn first(&self, width: u128) -> Option<SysId> {
        let bound = format!("{:032x}", self.first_digits().checked_add(width)?);
        let bound = SysId::new(bound.trim_end_matches('0'));
        (width > 0 && self.is_cut_by(&bound)).then_some(bound)
    }

    fn first_digits(&self) -> u128 {
        self.lower.as_ref().map_or(0, |id| digits_of(id.as_str()))
    }

    /// Whether a record comes before the range.
    pub fn begins_after(&self, id: &str) -> bool {
        self.lower.as_ref().is_some_and(|lower| compare(id, lower.as_str()).is_lt())
    }

    /// Whether a record comes behind the range.
    pub fn ends_by(&self, id: &str) -> bool {
        self.upper.as_ref().is_some_and(|upper| compare(id, upper.as_str()).is_ge())
    }

    /// Whether the ranges have a part in common.
    pub fn overlaps(&self, other: &Range) -> bool {
        let begins_before_end = |a: &Range, b: &Range| match (&a.lower, &b.upper) {
            (Some(lower), Some(upper)) => compare(lower.as_str(), upper.as_str()).is_lt(),
            _ => true,
        };
        begins_before_end(self, other) && begins_before_end(other, self)
    }

    /// Whether the other range lies in this one as a whole.
    pub fn covers(&self, other: &Range) -> bool {
        let begins = match (&self.lower, &other.lower) {
            (Some(own), Some(lower)) => compare(own.as_str(), lower.as_str()).is_le(),
            (own, _) => own.is_none(),
        };
        let ends = match (&self.upper, &other.upper) {
            (Some(own), Some(upper)) => compare(own.as_str(), upper.as_str()).is_ge(),
            (own, _) => own.is_none(),
        };
        begins && ends
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn partitions_cover_everything_once() {
        for count in [1, 2, 7, 16, 256] {
            let ranges = Range::partition(count);
            assert_eq!(ranges.len(), count);
            assert_eq!((&ranges[0].lower, &ranges[count - 1].upper), (&None, &None));
            for pair in ranges.windows(2) {
                assert_eq!(pair[0].upper, pair[1].lower);
                assert!(pair[0].upper.is_some());
            }
        }
    }

    #[test]
    fn case_does_not_count() {
        let range = Range { lower: Some(SysId::new("f0")), upper: Some(SysId::new("f8")) };
        assert!(
            range.contains("F0F0") && range.contains("f7ff") && !range.contains("F8") && !range.contains("e")
        );
    }

    fn range() -> impl Strategy<Value = Range> {
        let bound = || prop::option::of("[0-9a-fA-F]{0,3}".prop_map(SysId::new));
        (bound(), bound()).prop_map(|(lower, upper)| Range { lower, upper })
    }

    proptest! {
        #[test]
        fn a_part_lies_within_its_range(
            lower in prop::option::of("[0-9a-gA-Z_ .-]{0,4}".prop_map(SysId::new)),
            upper in prop::option::of("[0-9a-gA-Z_ .-]{0,4}".prop_map(SysId::new)),
            parts in any::<u64>(),
        ) {
            let range = Range { lower, upper };
            if let Some(bound) = range.part(parts) {
                prop_assert!(range.is_cut_by(&bound), "{bound}");
                let first = Range { lower: range.lower.clone(), upper: Some(bound) };
                prop_assert!(range.covers(&first));
            }
        }

        #[test]
        fn a_range_of_random_identifiers_can_be_cut(lower in any::<u64>(), width in 1u64.., parts in 2u64..1_000) {
            let id = |n: u64| SysId::new(format!("{n:016x}0000000000000000"));
            let range = Range { lower: Some(id(lower)), upper: lower.checked_add(width).map(id) };
            prop_assert!(range.part(parts).is_some());
        }

        #[test]
        fn a_span_covers_every_range(ranges in prop::collection::vec(range(), 1..6)) {
            let span = Range::spanning(&ranges);
            prop_assert!(ranges.iter().all(|range| span.covers(range)));
            prop_assert!(span.lower.is_none() || ranges.iter().any(|range| range.lower == span.lower));
        }

        #[test]
        fn ranges_overlap_where_a_record_can_lie_in_both(a in range(), b in range(), id in "[0-9a-fA-F]{0,4}") {
            if a.contains(&id) && b.contains(&id) {
                prop_assert!(a.overlaps(&b) && b.overlaps(&a));
            }
            if a.covers(&b) && b.contains(&id) {
                prop_assert!(a.contains(&id));
            }
        }
    }
}
