//! What the instance says is left of the calls it allows: `X-RateLimit-Limit`, `-Remaining` and `-Reset` of its answers.
//!
//! As with a budget of our own ([`super::budget`]), a tenth is kept for writes and statements, and reads of the background slow
//! down once half of it is used, so that they are spread over the time that is left and nobody is turned away. Others may use
//! the same login: what counts is what the instance says. No I/O and no clock here.

use std::time::{Duration, Instant};

use super::retry::Urgency;

/// What an answer tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// The most calls until then.
    pub(super) limit: u32,
    /// How many of them are left.
    pub(super) left: u32,
    /// The time until all of them may be made again.
    pub(super) reset_in: Duration,
}

/// Two answers that name moments this close together mean the same.
const SAME: Duration = Duration::from_secs(5);

/// What is left, as far as the instance has told.
#[derive(Clone, Debug, Default)]
pub(super) struct Quota {
    window: Option<Window>,
    last_background: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    limit: u32,
    left: u32,
    until: Instant,
}

impl Quota {
    /// Takes note of an answer. Answers to calls side by side come in any order: the lesser number counts.
    pub(super) fn note(&mut self, told: Told, now: Instant) {
        let until = now + told.reset_in;
        let before = self.current(now).filter(|window| {
            window.limit == told.limit && window.until.max(until) - window.until.min(until) <= SAME
        });
        let left = before.map_or(told.left, |window| window.left.min(told.left));
        self.window =
            Some(Window { limit: told.limit, left, until: before.map_or(until, |window| window.until) });
    }

    fn current(&self, now: Instant) -> Option<Window> {
        self.window.filter(|window| window.until > now)
    }

    /// How many calls are left; `None` if the instance has not told lately.
    pub(super) fn left(&self, now: Instant) -> Option<u32> {
        self.current(now).map(|window| window.left)
    }

    /// How long to wait before a call is made. A statement does not: if it is too much, the instance says so.
    pub(super) fn wait(&self, urgency: Urgency, now: Instant) -> Duration {
        let (Some(Window { limit, left, until }), Urgency::Background) = (self.current(now), urgency) else {
            return Duration::ZERO;
        };
        if left > limit / 2 {
            return Duration::ZERO;
        }
        let rest = until - now;
        let pause = match left.saturating_sub(limit / 10) {
            0 => return rest,
            share => rest / share,
        };
        self.last_background.map_or(Duration::ZERO, |last| (last + pause).saturating_duration_since(now))
    }

    /// A call is made.
    pub(super) fn take(&mut self, urgency: Urgency, now: Instant) {
        if let Some(window) = &mut self.window {
            window.left = window.left.saturating_sub(1);
        }
        if urgency == Urgency::Background {
            self.last_background = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn told(limit: u32, left: u32, reset_in: Duration) -> Told {
        Told { limit, left, reset_in }
    }

    #[test]
    fn an_instance_that_tells_nothing_slows_nobody_down() {
        let now = Instant::now();
        let mut quota = Quota::default();
        for _ in 0..10_000 {
            quota.take(Urgency::Background, now);
        }
        assert_eq!((quota.wait(Urgency::Background, now), quota.left(now)), (Duration::ZERO, None));
    }

    #[test]
    fn the_lesser_of_two_answers_of_one_hour_counts_and_the_next_hour_begins_anew() {
        let now = Instant::now();
        let mut quota = Quota::default();
        quota.note(told(100, 7, HOUR), now);
        quota.note(told(100, 9, HOUR), now);
        assert_eq!(quota.left(now), Some(7));
        assert_eq!(quota.wait(Urgency::Background, now), HOUR, "a tenth is kept");
        assert_eq!(quota.wait(Urgency::Statement, now), Duration::ZERO);
        let later = now + HOUR + Duration::from_secs(1);
        assert_eq!((quota.left(later), quota.wait(Urgency::Background, later)), (None, Duration::ZERO));
        quota.note(told(100, 99, HOUR), later);
        assert_eq!(quota.left(later), Some(99));
    }

    proptest! {
        /// A reader that never rests, on a clock of its own, beside others of the same login.
        #[test]
        fn the_background_is_never_turned_away_and_uses_most_of_what_it_may(
            limit in 20u32..2_000,
            others in 0u32..5,
        ) {
            let start = Instant::now();
            let mut quota = Quota::default();
            let (mut now, mut used, mut own) = (start, 0u32, 0u32);
            while now < start + HOUR {
                let wait = quota.wait(Urgency::Background, now);
                if !wait.is_zero() {
                    now += wait;
                    continue;
                }
                quota.take(Urgency::Background, now);
                now += Duration::from_millis(100);
                own += 1;
                used += 1 + u32::from(own % 10 < others);
                prop_assert!(used <= limit, "turned away");
                quota.note(told(limit, limit - used, (start + HOUR).saturating_duration_since(now)), now);
            }
            prop_assert!(used >= limit * 8 / 10, "{used} of {limit}");
            prop_assert!(limit - used >= limit / 10 - limit / 10 / 2, "some are kept: {used} of {limit}");
        }
    }
}
