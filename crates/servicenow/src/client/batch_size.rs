//! How many writes, or reads that go together, to put into one batch: as many as the instance carries out in a few seconds, and no more than
//! its answers leave room for.
//!
//! An instance gives a batch 30 seconds and 10 MB of output, and returns unserviced what does not fit. We stay
//! well below both, by what the batches before have taken. Sizes double as long as all goes well, up to where it
//! did not once; from there on they grow by one, as a TCP window does.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;

use super::batch::OUTPUT_LIMIT;
use crate::value::TableName;

/// The first size.
const START: usize = 25;
/// The largest: beyond it there is nothing left to gain on a round trip.
const MOST: usize = 500;
/// Fewer than this are not spread over several calls.
const LEAST: usize = 10;
/// The time a batch should take, in seconds: a sixth of the quota.
const TARGET: f64 = 5.0;
/// What a call may take on its way before it is taken for the instance's work.
const TRAVEL: Duration = Duration::from_secs(1);
/// The output a batch should have, in bytes: records differ in size.
const OUTPUT: f64 = OUTPUT_LIMIT as f64 / 2.0;

/// How a batch went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// How many items it had.
    pub(super) sent: usize,
    /// How many were serviced.
    pub(super) serviced: usize,
    /// What the instance says that they took.
    pub(super) time: Duration,
    /// What the call took.
    pub(super) latency: Duration,
    /// The size of the answers, in bytes.
    pub(super) output: usize,
}

/// The size of the batches for one table and method: deletions take their time where many records refer to one.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchSize {
    /// The size by how batches went.
    window: usize,
    /// Up to here the size doubles.
    threshold: usize,
    /// What an item takes, in seconds.
    time: f64,
    /// The size of an answer, in bytes.
    output: f64,
}

impl Default for BatchSize {
    fn default() -> Self {
        Self { window: START, threshold: MOST, time: 0.0, output: 0.0 }
    }
}

impl BatchSize {
    /// One that begins with so many.
    pub(super) fn of(items: usize) -> Self {
        Self { window: items.clamp(1, MOST), ..Self::default() }
    }

    /// How many items to send at a time.
    pub(super) fn items(&self) -> usize {
        // Nothing known yet divides to infinity, which `as` makes the largest number.
        let in_time = (TARGET / self.time) as usize;
        let in_room = (OUTPUT / self.output) as usize;
        self.window.min(in_time).min(in_room).max(1)
    }

    /// How many of those that wait to send in the next call, when so many calls can share them.
    pub(super) fn share(&self, waiting: usize, calls: usize) -> usize {
        let calls = waiting.div_ceil(LEAST).clamp(1, calls.max(1));
        self.items().min(waiting.div_ceil(calls))
    }

    /// Takes note of how a batch went.
    pub(super) fn answered(&mut self, seen: Seen) {
        if seen.serviced > 0 {
            let per_item = |sum: f64| sum / seen.serviced as f64;
            let spent = seen.time.max(seen.latency.saturating_sub(TRAVEL)).as_secs_f64();
            self.time = follow(self.time, per_item(spent));
            self.output = follow(self.output, per_item(seen.output as f64));
        }
        if seen.serviced < seen.sent {
            self.reduce(seen.serviced * 3 / 4);
        } else if seen.sent >= self.items() {
            let next = if self.window < self.threshold {
                (self.window * 2).min(self.threshold)
            } else {
                self.window + 1
            };
            self.window = next.min(MOST);
        }
    }

    /// A batch of so many items was refused for its size, or came to nothing.
    pub(super) fn failed(&mut self, sent: usize) {
        self.reduce(sent / 2);
    }

    fn reduce(&mut self, to: usize) {
        self.window = self.window.min(to).max(1);
        self.threshold = self.window.max(LEAST);
    }
}

/// Follows a measured value, upward at once and downward slowly: what is rare and large must not be forgotten soon.
fn follow(before: f64, now: f64) -> f64 {
    if now >= before { now } else { (before + now) / 2.0 }
}

/// What a client knows about batches.
#[derive(Debug, Default)]
pub(super) struct BatchSizes {
    /// The instance has no Batch API, or not for this user.
    absent: AtomicBool,
    sizes: Mutex<HashMap<(TableName, Method), BatchSize>>,
}

impl BatchSizes {
    /// Whether there are batches, as far as is known.
    pub(super) fn are_possible(&self) -> bool {
        !self.absent.load(Ordering::Relaxed)
    }

    /// There are none.
    pub(super) fn are_absent(&self) {
        self.absent.store(true, Ordering::Relaxed);
    }

    /// Asks or tells about the batches for a table that are made of, or begin with, some method.
    pub(super) fn with<R>(
        &self,
        table: &TableName,
        method: Method,
        with: impl FnOnce(&mut BatchSize) -> R,
    ) -> R {
        let mut sizes = self.sizes.lock().expect("no panic while it is held");
        with(sizes.entry((table.clone(), method)).or_default())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An instance that takes its time for each item, and has its limits.
    #[derive(Clone, Copy, Debug)]
    struct Model {
        item_ms: u64,
        item_output: usize,
        /// Besides the items, for the call.
        latency_ms: u64,
        tells_time: bool,
    }

    impl Model {
        /// Sends a batch of the size that is due; gives back what it took.
        fn send(self, size: &mut BatchSize) -> Seen {
            let sent = size.items();
            let in_time = 30_000usize.div_ceil(self.item_ms.max(1) as usize);
            let in_room = OUTPUT_LIMIT / self.item_output.max(1);
            let serviced = sent.min(in_time).min(in_room);
            let time = Duration::from_millis(self.item_ms * serviced as u64);
            let seen = Seen {
                sent,
                serviced,
                time: if self.tells_time { time } else { Duration::ZERO },
                latency: time + Duration::from_millis(self.latency_ms),
                output: self.item_output * serviced,
            };
            size.answered(seen);
            seen
        }
    }

    fn model() -> impl Strategy<Value = Model> {
        (0u64..8_000, 0usize..400_000, 0u64..2_000, any::<bool>()).prop_map(
            |(item_ms, item_output, latency_ms, tells_time)| Model {
                item_ms,
                item_output,
                latency_ms,
                tells_time,
            },
        )
    }

    #[test]
    fn few_changes_are_spread_over_the_calls_there_may_be() {
        let size = BatchSize::default();
        assert_eq!(size.share(100, 4), 25);
        assert_eq!(size.share(20, 4), 10);
        assert_eq!(size.share(11, 4), 6);
        assert_eq!((size.share(9, 4), size.share(2, 8), size.share(1, 8)), (9, 2, 1));
        assert_eq!(size.share(1_000, 4), START);
    }

    #[test]
    fn a_fast_instance_soon_gets_large_batches() {
        let mut size = BatchSize::default();
        let fast = Model { item_ms: 1, item_output: 2_000, latency_ms: 50, tells_time: true };
        let sent: Vec<usize> = (0..6).map(|_| fast.send(&mut size).sent).collect();
        assert_eq!(sent, [25, 50, 100, 200, 400, 500]);
    }

    #[test]
    fn small_batches_do_not_make_large_ones_possible() {
        let mut size = BatchSize::default();
        for _ in 0..100 {
            let time = Duration::from_millis(2);
            size.answered(Seen { sent: 5, serviced: 5, time, latency: time, output: 5_000 });
        }
        assert_eq!(size.items(), START);
    }

    #[test]
    fn what_did_not_fit_is_approached_slowly() {
        let mut size = BatchSize { window: 400, ..BatchSize::default() };
        let quick = Duration::from_millis(1);
        size.answered(Seen { sent: 400, serviced: 100, time: quick, latency: quick, output: 1 });
        assert_eq!(size.items(), 75);
        size.answered(Seen { sent: 75, serviced: 75, time: quick, latency: quick, output: 1 });
        assert_eq!(size.items(), 76);
        size.failed(76);
        assert_eq!(size.items(), 38);
    }

    #[test]
    fn batches_that_fail_end_as_single_calls() {
        let mut size = BatchSize::default();
        for _ in 0..10 {
            let sent = size.items();
            size.failed(sent);
        }
        assert_eq!(size.items(), 1);
    }

    proptest! {
        #[test]
        fn after_a_few_batches_none_takes_long_and_all_fit(model in model()) {
            let mut size = BatchSize::default();
            let mut unserviced = 0;
            for n in 0..200 {
                let seen = model.send(&mut size);
                prop_assert!((1..=MOST).contains(&seen.sent) && seen.serviced > 0);
                if n >= 10 {
                    unserviced += usize::from(seen.serviced < seen.sent);
                    let item = Duration::from_millis(model.item_ms);
                    prop_assert!(seen.latency <= Duration::from_secs(7) + item, "{:?}", seen);
                }
            }
            prop_assert_eq!(unserviced, 0);
        }

        /// Whatever the instance does for a while, it gets batches again that are worth it.
        #[test]
        fn an_instance_that_has_recovered_gets_larger_batches(outages in 0usize..20) {
            let mut size = BatchSize::default();
            (0..outages).for_each(|_| { let sent = size.items(); size.failed(sent) });
            let fast = Model { item_ms: 5, item_output: 2_000, latency_ms: 50, tells_time: true };
            let sent: usize = (0..20).map(|_| fast.send(&mut size).sent).sum();
            prop_assert!(sent >= 20 * 10, "{}", sent);
        }
    }
}
