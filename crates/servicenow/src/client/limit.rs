//! How many calls may be under way at a time: additive increase, multiplicative decrease.
//!
//! A node of an instance serves about four API calls at a time and queues fifty more; what comes on top is turned
//! away. So the limit grows by one as long as calls do not queue over there, steps back by one when they do or
//! when the last step has gained nothing, and is halved when calls are turned away or time out. Decisions are
//! made once per round: what comes back from calls that were under way when the last one was made is its effect
//! as little as its cause. No I/O and no clock here; [`super::gate`] asks.

use std::time::Duration;

/// What a node serves at a time: the limit begins here, and growing back to here is not questioned.
const START: usize = 4;
/// A round lasts for so many answers per call under way, so that its means can be told from chance.
const ROUND: usize = 4;
/// With fewer calls of ours than this in the instance's queue there is room for one more.
const FEW_WAITING: f64 = 0.5;
/// With more than this there is one too many.
const MANY_WAITING: f64 = 1.5;
/// The queue may be somebody else's: it alone does not bring the limit below this.
const LEAST_FOR_QUEUE: usize = 2;
/// A step up that makes calls faster by less than this part of what it could is not worth it.
const WORTH: f64 = 1.0 / 4.0;
/// The rounds without growth after a step back.
const REST: u32 = 16;

/// What became of a call. One that was interrupted or broke says nothing about the instance's load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outcome {
    /// It was answered.
    Answered {
        /// From sending the request to having the whole answer.
        latency: Duration,
        /// How much of it the call stood in the instance's queue, as far as the instance tells.
        queued: Duration,
    },
    /// It was turned away, or no answer came in time: the instance has too much to do.
    Overloaded,
}

/// The limit and what it depends on.
#[derive(Debug)]
pub(super) struct Limit {
    ceiling: usize,
    limit: usize,
    /// The number of the next call.
    next: u64,
    /// Calls from this number on were begun after the limit was last halved.
    halved_before: u64,
    round: Round,
    /// The round before the last step up.
    before: Option<Rate>,
    /// Rounds to go without growth.
    rest: u32,
    /// How often the limit was halved since the last answer.
    setbacks: u32,
}

/// What the calls begun since the last decision have shown.
#[derive(Debug, Default)]
struct Round {
    /// The number of its first call.
    first: u64,
    begun: usize,
    /// Calls that would have begun earlier with a higher limit.
    waited: usize,
    answers: usize,
    /// Sums, in seconds.
    latency: f64,
    queued: f64,
}

/// Calls per second at some limit.
#[derive(Clone, Copy, Debug)]
struct Rate {
    limit: usize,
    rate: f64,
}

impl Limit {
    /// A limit between 1 and the ceiling.
    pub(super) fn new(ceiling: usize) -> Self {
        let ceiling = ceiling.max(1);
        Self {
            ceiling,
            limit: START.min(ceiling),
            next: 0,
            halved_before: 0,
            round: Round::default(),
            before: None,
            rest: 0,
            setbacks: 0,
        }
    }

    /// The most calls under way at a time.
    pub(super) fn get(&self) -> usize {
        self.limit
    }

    /// A call begins, perhaps after having waited for others to end. Gives back its number.
    pub(super) fn begin(&mut self, has_waited: bool) -> u64 {
        self.round.begun += 1;
        self.round.waited += usize::from(has_waited);
        self.next += 1;
        self.next - 1
    }

    /// A call has ended. If the limit is halved, tells how often it was since the last answer.
    pub(super) fn end(&mut self, call: u64, outcome: Outcome) -> Option<u32> {
        match outcome {
            Outcome::Overloaded if call < self.halved_before => None,
            Outcome::Overloaded => {
                self.limit = (self.limit / 2).max(1);
                self.halved_before = self.next;
                self.begin_round();
                self.before = None;
                self.setbacks += 1;
                Some(self.setbacks)
            }
            Outcome::Answered { latency, queued } => {
                if call >= self.halved_before {
                    self.setbacks = 0;
                }
                if call >= self.round.first {
                    self.round.answers += 1;
                    self.round.latency += latency.as_secs_f64();
                    self.round.queued += queued.min(latency).as_secs_f64();
                    if self.round.answers >= ROUND * self.limit {
                        self.decide();
                    }
                }
                None
            }
        }
    }

    fn begin_round(&mut self) -> Round {
        std::mem::replace(&mut self.round, Round { first: self.next, ..Round::default() })
    }

    fn decide(&mut self) {
        let round = self.begin_round();
        let before = self.before.take();
        // A limit that hardly anybody has met tells nothing about what lies above it.
        if round.waited * 2 < round.begun {
            return;
        }
        // By Little's law, a mean over calls under way is a mean over time.
        let per_second = self.limit as f64 / round.latency.max(f64::MIN_POSITIVE);
        let (waiting, rate) = (round.queued * per_second, round.answers as f64 * per_second);
        self.rest = self.rest.saturating_sub(1);
        if waiting > MANY_WAITING && self.limit > LEAST_FOR_QUEUE {
            self.limit -= 1;
            self.rest = REST;
        } else if let Some(before) = before.filter(|before| self.has_gained_nothing(before, rate)) {
            self.limit = before.limit;
            self.rest = REST;
        } else if waiting < FEW_WAITING && self.rest == 0 && self.limit < self.ceiling {
            self.before = Some(Rate { limit: self.limit, rate });
            self.limit += 1;
        }
    }

    fn has_gained_nothing(&self, before: &Rate, rate: f64) -> bool {
        let possible = self.limit as f64 / before.limit as f64;
        self.limit > START && rate < before.rate * (1.0 + (possible - 1.0) * WORTH)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BinaryHeap;

    use proptest::prelude::*;

    use super::*;

    /// A model of an instance: so many calls are served at a time, each for a time; others queue.
    struct Model {
        served_at_a_time: usize,
        service: f64,
        /// On the way, and not counted as queueing.
        network: f64,
        /// Whether it tells how long a call was queued.
        tells: bool,
    }

    /// What happened in a stretch of time.
    #[derive(Debug)]
    struct Seen {
        calls_per_second: f64,
        mean_queued: f64,
    }

    impl Model {
        /// As many callers as the limit lets through, call after call.
        fn run(&self, limit: &mut Limit, calls: usize) -> Seen {
            let mut free_at = BinaryHeap::from(vec![std::cmp::Reverse(0u64); self.served_at_a_time]);
            let micros = |seconds: f64| (seconds * 1e6) as u64;
            let mut answers = BinaryHeap::new(); // (when, number, sent, queued), the earliest first
            let (mut now, mut sent_calls, mut queued_sum) = (0u64, 0, 0u64);
            while sent_calls < calls {
                while answers.len() < limit.get() {
                    let number = limit.begin(true);
                    let arrives = now + micros(self.network / 2.0);
                    let std::cmp::Reverse(free) = free_at.pop().expect("it serves some");
                    // Not all calls are alike: up to a tenth more or less.
                    let uneven = 0.9 + 0.2 * ((number * 7919 % 101) as f64 / 101.0);
                    let starts = arrives.max(free);
                    let done = starts + micros(self.service * uneven);
                    free_at.push(std::cmp::Reverse(done));
                    let back = done + micros(self.network / 2.0);
                    answers.push(std::cmp::Reverse((back, number, now, starts - arrives)));
                    sent_calls += 1;
                }
                let std::cmp::Reverse((back, number, sent, queued)) =
                    answers.pop().expect("one is under way");
                now = back;
                queued_sum += queued;
                let told = if self.tells { Duration::from_micros(queued) } else { Duration::ZERO };
                limit.end(
                    number,
                    Outcome::Answered { latency: Duration::from_micros(back - sent), queued: told },
                );
            }
            Seen {
                calls_per_second: sent_calls as f64 / (now as f64 / 1e6),
                mean_queued: queued_sum as f64 / 1e6 / sent_calls as f64,
            }
        }

        fn best(&self) -> f64 {
            self.served_at_a_time as f64 / self.service
        }
    }

    #[test]
    fn an_instance_that_serves_four_at_a_time_is_kept_busy_without_a_queue() {
        for (service, network) in [(0.02, 0.0), (0.05, 0.001), (0.5, 0.1)] {
            for tells in [true, false] {
                let model = Model { served_at_a_time: 4, service, network, tells };
                let mut limit = Limit::new(64);
                model.run(&mut limit, 2_000);
                let seen = model.run(&mut limit, 2_000);
                let least = model.best() * service / (service + network) * 0.95;
                assert!(seen.calls_per_second > least, "{service} {network} {tells}: {seen:?}");
                assert!(seen.mean_queued < service * 0.4, "{service} {network} {tells}: {seen:?}");
            }
        }
    }

    #[test]
    fn an_instance_that_serves_more_gets_more_up_to_the_ceiling() {
        let model = Model { served_at_a_time: 32, service: 0.1, network: 0.01, tells: true };
        for (ceiling, reached) in [(8, 8), (3, 3), (1, 1)] {
            let mut limit = Limit::new(ceiling);
            model.run(&mut limit, 2_000);
            assert_eq!(limit.get(), reached);
        }
    }

    #[test]
    fn a_round_of_calls_that_are_turned_away_together_halves_the_limit_once() {
        let mut limit = Limit::new(8);
        let calls: Vec<u64> = (0..4).map(|_| limit.begin(true)).collect();
        let told: Vec<_> = calls.into_iter().map(|call| limit.end(call, Outcome::Overloaded)).collect();
        assert_eq!((told, limit.get()), (vec![Some(1), None, None, None], 2));
        let call = limit.begin(true);
        assert_eq!((limit.end(call, Outcome::Overloaded), limit.get()), (Some(2), 1));
        let call = limit.begin(true);
        assert_eq!((limit.end(call, Outcome::Overloaded), limit.get()), (Some(3), 1));
    }

    #[test]
    fn a_limit_that_nobody_waits_for_does_not_grow() {
        let mut limit = Limit::new(8);
        let answered = Outcome::Answered { latency: Duration::from_millis(20), queued: Duration::ZERO };
        for _ in 0..1_000 {
            let calls: Vec<u64> = (0..4).map(|_| limit.begin(false)).collect();
            calls.into_iter().for_each(|call| assert_eq!(limit.end(call, answered), None));
        }
        assert_eq!(limit.get(), 4);
    }

    #[test]
    fn somebody_elses_queue_leaves_us_two_calls_at_a_time() {
        let mut limit = Limit::new(8);
        let crowded =
            Outcome::Answered { latency: Duration::from_millis(1_000), queued: Duration::from_millis(950) };
        for _ in 0..1_000 {
            let calls: Vec<u64> = (0..limit.get()).map(|_| limit.begin(true)).collect();
            calls.into_iter().for_each(|call| assert_eq!(limit.end(call, crowded), None));
        }
        assert_eq!(limit.get(), 2);
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            (0u64..2_000, 0u64..2_000).prop_map(|(latency, queued)| Outcome::Answered {
                latency: Duration::from_millis(latency),
                queued: Duration::from_millis(queued),
            }),
            Just(Outcome::Overloaded),
        ]
    }

    proptest! {
        #[test]
        fn the_limit_stays_within_its_bounds_and_recovers_from_whatever_happened(
            ceiling in 1usize..20,
            outcomes in prop::collection::vec((outcome(), 0usize..8), 0..400),
        ) {
            let mut limit = Limit::new(ceiling);
            let mut under_way = Vec::new();
            for (outcome, which) in outcomes {
                while under_way.len() < limit.get() {
                    under_way.push(limit.begin(true));
                }
                let before = limit.get();
                let halved = limit.end(under_way.swap_remove(which % under_way.len()), outcome);
                prop_assert!((1..=ceiling).contains(&limit.get()));
                prop_assert!(limit.get() <= before + 1);
                prop_assert!(limit.get() + 1 >= before || halved.is_some());
            }
            let model = Model { served_at_a_time: 4, service: 0.1, network: 0.01, tells: true };
            model.run(&mut limit, 3_000);
            prop_assert!(limit.get() >= ceiling.min(4), "{}", limit.get());
        }
    }
}
