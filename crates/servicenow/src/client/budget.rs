//! The most calls in any hour (`max_calls_per_hour`), and who may use what is left of them.
//!
//! A tenth is kept for writes and for statements. Reads of the background are free while the hour is half used; from there on
//! the less is left the longer they wait, so that they slow down instead of stopping for the rest of the hour.
//! No I/O and no clock here: callers say what time it is.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::retry::Urgency;

/// What the budget is for.
const WINDOW: Duration = Duration::from_secs(3600);
/// Calls are counted in grains of this length, and forgotten when the youngest of a grain is an hour old.
const GRAIN: Duration = Duration::from_secs(10);
/// Under pressure a call is made after this time divided by how many are left. A quarter of the window: callers
/// who never rest then use four fifths of the budget all the time.
const PACE: Duration = Duration::from_secs(900);

/// May a call be made?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It may.
    Go,
    /// Ask again after this time.
    Wait(Duration),
    /// The budget is used up; there will be room after this time.
    UsedUp(Duration),
}

/// What is left of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remaining {
    /// The most calls in an hour.
    pub per_hour: u32,
    /// Calls in the last hour, those reported from elsewhere included.
    pub used: u32,
    /// If it is used up, the time until there is room again.
    pub room_in: Option<Duration>,
}

/// The calls of the last hour, and how many there may be.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    per_hour: u32,
    reserve: u32,
    /// Grains are counted from here.
    start: Instant,
    /// How many calls in which grain, the oldest first.
    grains: VecDeque<(u64, u32)>,
    used: u32,
    last_background: Option<Instant>,
}

impl Budget {
    /// A budget of so many calls an hour, at least one; nothing is used yet.
    pub(super) fn new(per_hour: u32, now: Instant) -> Self {
        let per_hour = per_hour.max(1);
        let reserve = (per_hour / 10).max(1).min(per_hour - 1);
        // Calls of the hour before may be told of.
        let start = now.checked_sub(WINDOW).unwrap_or(now);
        Self { per_hour, reserve, start, grains: VecDeque::new(), used: 0, last_background: None }
    }

    /// May a call be made now?
    pub(super) fn ask(&mut self, urgency: Urgency, now: Instant) -> Answer {
        self.forget(now);
        match urgency {
            Urgency::Statement if self.used < self.per_hour => Answer::Go,
            Urgency::Statement => Answer::UsedUp(self.room_in(self.per_hour, now)),
            Urgency::Background => {
                let share = self.per_hour - self.reserve;
                match share.saturating_sub(self.used) {
                    0 => Answer::Wait(self.room_in(share, now)),
                    left if left > share / 2 => Answer::Go,
                    left => {
                        let due = self.last_background.map(|last| last + PACE / left);
                        match due.map(|due| due.saturating_duration_since(now)) {
                            Some(wait) if !wait.is_zero() => Answer::Wait(wait),
                            _ => Answer::Go,
                        }
                    }
                }
            }
        }
    }

    /// As [`Self::ask`]; a call that may be made is taken from the budget.
    pub(super) fn take(&mut self, urgency: Urgency, now: Instant) -> Answer {
        let answer = self.ask(urgency, now);
        if answer == Answer::Go {
            self.note(1, now);
            if urgency == Urgency::Background {
                self.last_background = Some(now);
            }
        }
        answer
    }

    /// Takes note of calls that were made.
    pub(super) fn note(&mut self, calls: u32, now: Instant) {
        self.forget(now);
        self.used = self.used.saturating_add(calls);
        let grain = self.grain(now);
        match self.grains.back_mut() {
            Some((youngest, count)) if *youngest >= grain => *count = count.saturating_add(calls),
            _ => self.grains.push_back((grain, calls)),
        }
    }

    /// Takes note of calls of the last hour that were made before this budget was: how long ago, and how many, in any
    /// order.
    pub(super) fn note_past(&mut self, past: &[(Duration, u32)], now: Instant) {
        let mut past: Vec<(Instant, u32)> =
            past.iter().filter_map(|(ago, calls)| Some((now.checked_sub(*ago)?, *calls))).collect();
        past.sort_unstable();
        let start = self.start;
        for (at, calls) in past.into_iter().filter(|(at, _)| *at >= start) {
            self.note(calls, at);
        }
    }

    /// What is left.
    pub(super) fn remaining(&mut self, now: Instant) -> Remaining {
        self.forget(now);
        let room_in = (self.used >= self.per_hour).then(|| self.room_in(self.per_hour, now));
        Remaining { per_hour: self.per_hour, used: self.used, room_in }
    }

    fn forget(&mut self, now: Instant) {
        let before = self.grains.len();
        while self.grains.front().is_some_and(|(grain, _)| self.end_of(*grain) <= now) {
            self.grains.pop_front();
        }
        if self.grains.len() < before {
            self.used = self.grains.iter().fold(0, |sum, (_, calls)| sum.saturating_add(*calls));
        }
    }

    /// The time until fewer than so many calls count.
    fn room_in(&self, most: u32, now: Instant) -> Duration {
        let mut left = self.used;
        for (grain, calls) in &self.grains {
            left = left.saturating_sub(*calls);
            if left < most {
                return self.end_of(*grain).saturating_duration_since(now);
            }
        }
        WINDOW
    }

    fn grain(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() / GRAIN.as_secs()
    }

    /// When the youngest call of a grain is an hour old.
    fn end_of(&self, grain: u64) -> Instant {
        self.start + Duration::from_secs((grain + 1) * GRAIN.as_secs()) + WINDOW
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = WINDOW;

    fn take_all(budget: &mut Budget, urgency: Urgency, now: Instant) -> u32 {
        (0..).take_while(|_| budget.take(urgency, now) == Answer::Go).count() as u32
    }

    #[test]
    fn a_statement_is_refused_only_when_everything_is_used_and_told_when_there_is_room() {
        let now = Instant::now();
        let mut budget = Budget::new(20, now);
        assert_eq!(take_all(&mut budget, Urgency::Statement, now), 20);
        assert_eq!(budget.remaining(now).used, 20);
        let Answer::UsedUp(wait) = budget.take(Urgency::Statement, now) else { panic!("it is used up") };
        assert!(wait >= HOUR && wait <= HOUR + GRAIN, "{wait:?}");
        assert_eq!(budget.remaining(now).room_in, Some(wait));
        let almost = now + wait - Duration::from_millis(1);
        assert!(matches!(budget.take(Urgency::Statement, almost), Answer::UsedUp(_)));
        assert_eq!(budget.take(Urgency::Statement, now + wait), Answer::Go);
        assert_eq!(budget.remaining(now + wait), Remaining { per_hour: 20, used: 1, room_in: None });
    }

    #[test]
    fn the_background_leaves_a_reserve() {
        for (per_hour, reserve) in [(1, 0), (2, 1), (10, 1), (100, 10)] {
            let now = Instant::now();
            let mut budget = Budget::new(per_hour, now);
            let mut at = now;
            while at < now + HOUR {
                match budget.take(Urgency::Background, at) {
                    Answer::Go => {}
                    Answer::Wait(wait) => at += wait,
                    Answer::UsedUp(_) => panic!("nobody waits for it"),
                }
            }
            let just_before = now + HOUR;
            assert!(take_all(&mut budget, Urgency::Statement, just_before) >= reserve, "{per_hour}");
        }
    }

    #[test]
    fn calls_made_elsewhere_count() {
        let now = Instant::now();
        let mut budget = Budget::new(10, now);
        budget.note(9, now);
        assert!(matches!(budget.take(Urgency::Background, now), Answer::Wait(_)));
        assert_eq!(take_all(&mut budget, Urgency::Statement, now), 1);
        budget.note(u32::MAX, now);
        assert!(matches!(budget.take(Urgency::Statement, now), Answer::UsedUp(_)));
        assert_eq!(budget.take(Urgency::Statement, now + HOUR + GRAIN), Answer::Go);
    }

    /// A worker that would use the whole budget at once reads all the time instead, and most of what it may.
    #[test]
    fn the_background_slows_down_instead_of_stopping() {
        for per_hour in [20, 100, 1_000, 20_000] {
            let start = Instant::now();
            let mut budget = Budget::new(per_hour, start);
            let (mut now, mut calls) = (start, Vec::new());
            while now < start + 4 * HOUR {
                match budget.take(Urgency::Background, now) {
                    Answer::Go => calls.push(now),
                    Answer::Wait(wait) => now += wait,
                    Answer::UsedUp(_) => panic!("nobody waits for it"),
                }
            }
            let longest = calls.windows(2).map(|pair| pair[1] - pair[0]).max().expect("some calls");
            assert!(longest <= HOUR / 3, "{per_hour}: {longest:?}");
            let later = calls.iter().filter(|at| **at >= start + HOUR).count() as f64;
            assert!(later >= f64::from(per_hour) * 3.0 * 0.6, "{per_hour}: {later}");
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Pass(u64),
        Take(Urgency),
        Elsewhere(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let urgency = prop_oneof![Just(Urgency::Statement), Just(Urgency::Background)];
        prop_oneof![
            2 => (0u64..900_000).prop_map(Step::Pass),
            6 => urgency.prop_map(Step::Take),
            1 => (0u32..5).prop_map(Step::Elsewhere),
        ]
    }

    #[test]
    fn calls_from_before_count_until_they_are_an_hour_old() {
        let now = Instant::now();
        let mut budget = Budget::new(10, now);
        let minutes = |n: u64| Duration::from_secs(60 * n);
        budget.note_past(&[(minutes(1), 3), (minutes(50), 7), (minutes(70), 100)], now);
        assert_eq!(budget.remaining(now).used, 10);
        assert!(matches!(budget.ask(Urgency::Statement, now), Answer::UsedUp(_)));
        assert_eq!(budget.remaining(now + minutes(11)).used, 3);
        assert_eq!(budget.remaining(now + minutes(61)).used, 0);
    }

    proptest! {
        #[test]
        fn no_hour_has_more_calls_than_the_budget(
            per_hour in 1u32..40,
            steps in prop::collection::vec(step(), 0..400),
        ) {
            let mut now = Instant::now();
            let mut budget = Budget::new(per_hour, now);
            let reserve = budget.reserve as usize;
            let mut made: Vec<Instant> = Vec::new();
            for step in steps {
                match step {
                    Step::Pass(ms) => now += Duration::from_millis(ms),
                    Step::Elsewhere(calls) => {
                        budget.note(calls, now);
                        made.extend((0..calls).map(|_| now));
                    }
                    Step::Take(urgency) => {
                        let within = |window| made.iter().filter(|at| now < **at + window).count();
                        let (exact, at_most) = (within(HOUR), within(HOUR + GRAIN));
                        let used = budget.remaining(now).used as usize;
                        prop_assert!((exact..=at_most).contains(&used), "{exact} {used} {at_most}");
                        match budget.take(urgency, now) {
                            Answer::Go => {
                                let kept = if urgency == Urgency::Background { reserve } else { 0 };
                                prop_assert!(exact + kept < per_hour as usize);
                                made.push(now);
                            }
                            Answer::UsedUp(wait) => {
                                prop_assert_eq!(urgency, Urgency::Statement);
                                prop_assert!(at_most >= per_hour as usize);
                                let mut later = budget.clone();
                                prop_assert_eq!(later.ask(urgency, now + wait), Answer::Go);
                            }
                            Answer::Wait(wait) => {
                                prop_assert_eq!(urgency, Urgency::Background);
                                prop_assert!(!wait.is_zero() && wait <= HOUR + GRAIN);
                            }
                        }
                    }
                }
            }
        }
    }
}
