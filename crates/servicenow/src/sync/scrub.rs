//! The pace at which everything is read once more, whatever it looks like.
//!
//! Some edits leave no trace in the time of a record's last change or in its count of changes; and records become
//! visible or invisible as rights change. Only reading them again shows that. It is spread evenly over a given
//! time, a stretch of some pages after the other, so that it costs an instance little at any time.

use std::time::{Duration, SystemTime};

use super::store::ScrubPosition;
use crate::value::SysId;

/// Pages that are read one after the other, and then compared with the store.
pub const STRETCH_PAGES: u64 = 10;

/// The re-reading of one table.
#[derive(Clone, Debug)]
pub struct Scrub {
    position: ScrubPosition,
    interval: Duration,
    /// Records of a page.
    page: u32,
}

impl Scrub {
    /// Goes on from a position, to read everything once in each `interval`.
    pub fn new(position: ScrubPosition, interval: Duration, page: u32) -> Self {
        Self { position, interval, page }
    }

    /// How many stretches make up so many records.
    pub fn stretches(records: u64, page: u32) -> u32 {
        let stretch = STRETCH_PAGES * u64::from(page.max(1));
        u32::try_from(records.div_ceil(stretch).max(1)).unwrap_or(u32::MAX)
    }

    /// The position.
    pub fn position(&self) -> &ScrubPosition {
        &self.position
    }

    /// The time from one stretch to the next.
    fn step(&self) -> Duration {
        self.interval / Self::stretches(self.position.total, self.page)
    }

    /// When the next stretch is to be read: the last one at the end of the round.
    fn due_at(&self) -> SystemTime {
        let left = self.position.total.saturating_sub(self.position.read);
        let left = Self::stretches(left, self.page);
        let before = self.interval.saturating_sub(self.step().saturating_mul(left - 1));
        self.position.began.checked_add(before).unwrap_or(self.position.began)
    }

    /// If the clock shows a time before the round began, it was set back: the round is as if it began now, so that it
    /// does not wait until the clock shows that time again.
    pub fn look_at_clock(&mut self, now: SystemTime) {
        self.position.began = self.position.began.min(now);
    }

    /// How long it is until the next stretch is to be read; nought when it is time.
    pub fn due_in(&self, now: SystemTime) -> Duration {
        self.due_at().duration_since(now).unwrap_or(Duration::ZERO)
    }

    /// A stretch has been read and compared, up to a record or to the end. `read` records were looked at and
    /// `left`, if known, are left. What comes late is not made up for: the round takes longer.
    pub fn advance(&mut self, now: SystemTime, after: Option<SysId>, read: u64, left: Option<u64>) {
        if after.is_none() {
            self.position = ScrubPosition { began: now, after, read: 0, total: self.position.read + read };
            return;
        }
        let late = now.duration_since(self.due_at()).unwrap_or(Duration::ZERO);
        if late > self.step() {
            self.position.began = self.position.began.checked_add(late).unwrap_or(now);
        }
        self.position.after = after;
        self.position.read += read;
        if let Some(left) = left {
            self.position.total = self.position.read + left;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WEEK: Duration = Duration::from_secs(7 * 86_400);

    fn scrub(total: u64, read: u64) -> Scrub {
        let began = SystemTime::UNIX_EPOCH;
        Scrub::new(ScrubPosition { began, after: None, read, total }, WEEK, 1_000)
    }

    #[test]
    fn a_clock_that_is_set_back_puts_a_round_off_by_no_more_than_its_time() {
        let mut scrub = scrub(10_000, 0);
        let now = SystemTime::UNIX_EPOCH - 100 * WEEK;
        scrub.look_at_clock(now);
        assert_eq!(scrub.due_in(now), WEEK);
        scrub.look_at_clock(now + WEEK);
        assert!(scrub.due_in(now + WEEK).is_zero());
    }

    #[test]
    fn a_small_table_is_read_at_the_end_of_each_round() {
        for total in [0, 1, 10_000] {
            let mut scrub = scrub(total, 0);
            let began = scrub.position().began;
            assert_eq!(scrub.due_in(began), WEEK);
            scrub.advance(began + WEEK, None, total, Some(0));
            assert_eq!(scrub.due_in(began + WEEK), WEEK);
        }
    }

    #[test]
    fn a_pause_is_not_made_up_for() {
        let mut scrub = scrub(1_000_000, 500_000);
        let now = scrub.position().began + 3 * WEEK;
        assert_eq!(scrub.due_in(now), Duration::ZERO);
        scrub.advance(now, Some(SysId::new("8")), 10_000, None);
        assert_eq!(scrub.due_in(now).as_secs(), WEEK.as_secs() / 100);
    }

    proptest! {
        /// Whatever the size, and though records come and go.
        #[test]
        fn a_round_is_spread_evenly_and_takes_its_time(
            total in 0u64..3_000_000,
            grows in 0u64..10,
            shrinks in 0u64..10,
        ) {
            let mut scrub = scrub(total, 0);
            let began = scrub.position().began;
            let mut now = began;
            let mut left = total;
            for stretch in 0.. {
                prop_assert!(stretch <= 400);
                let wait = scrub.due_in(now);
                now += wait;
                if stretch > 0 && grows == shrinks {
                    prop_assert!(wait <= WEEK / u32::try_from(total.div_ceil(10_000).max(1)).unwrap() + Duration::from_secs(1));
                }
                if stretch == 3 {
                    left = (left + total * grows / 100).saturating_sub(total * shrinks / 100);
                }
                let read = left.min(10_000);
                left -= read;
                let after = (left > 0).then(|| SysId::new("8"));
                let is_over = after.is_none();
                scrub.advance(now, after, read, Some(left));
                if is_over {
                    break;
                }
            }
            let took = now.duration_since(began).unwrap();
            let margin = WEEK / 5 + WEEK / u32::try_from(total.div_ceil(10_000).max(1)).unwrap();
            prop_assert!(took + margin >= WEEK && took <= WEEK + margin, "{:?}", took);
        }
    }
}
