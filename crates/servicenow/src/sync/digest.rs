//! When what has happened to the mirrors of a server is told to people, several things at a time.
//!
//! Tables that are filled together, or fail together, make one message; a server that comes and goes does not make
//! one each time; and a message that cannot be delivered is tried again, ever more seldom.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Nothing has happened for so long: it is told.
const QUIET: Duration = Duration::from_secs(3);
/// It is told after this long, whatever else may happen.
const LONGEST: Duration = Duration::from_secs(60);
/// The pause after a message; it doubles with every one in [`MEMORY`].
const PAUSE: Duration = Duration::from_secs(2);
/// The longest pause between two messages, and between two attempts to deliver one.
const LONGEST_PAUSE: Duration = Duration::from_secs(15 * 60);
/// How long a message makes the next ones wait.
const MEMORY: Duration = Duration::from_secs(3_600);
/// The pause after a failed attempt; it doubles with every one.
const RETRY: Duration = Duration::from_secs(2);

/// What has not been told yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untold {
    /// How long ago the first of it has happened.
    pub oldest: Duration,
    /// How long ago the last of it has happened.
    pub latest: Duration,
    /// More of the same may be about to happen: other tables of the server are being filled, or fail still.
    pub more_to_come: bool,
}

/// The messages about one server.
#[derive(Clone, Debug, Default)]
pub struct Digest {
    sent: VecDeque<Instant>,
    failures: u32,
    retry_at: Option<Instant>,
}

impl Digest {
    /// Whether it is time to tell.
    pub fn is_due(&self, untold: Untold, now: Instant) -> bool {
        let complete = untold.latest >= QUIET && !untold.more_to_come;
        let may = self.retry_at.is_none_or(|at| at <= now)
            && self.sent.back().is_none_or(|last| now.saturating_duration_since(*last) >= self.pause(now));
        may && (complete || untold.oldest >= LONGEST)
    }

    /// A message was delivered.
    pub fn delivered(&mut self, now: Instant) {
        let is_old = |at: &Instant| now.saturating_duration_since(*at) > MEMORY;
        while self.sent.front().is_some_and(is_old) {
            self.sent.pop_front();
        }
        self.sent.push_back(now);
        (self.failures, self.retry_at) = (0, None);
    }

    /// A message could not be delivered; gives back when it is tried again.
    pub fn failed(&mut self, now: Instant) -> Duration {
        let wait = doubled(RETRY, self.failures);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + wait);
        wait
    }

    fn pause(&self, now: Instant) -> Duration {
        let recent = self.sent.iter().filter(|at| now.saturating_duration_since(**at) <= MEMORY).count();
        doubled(PAUSE, u32::try_from(recent.saturating_sub(1)).unwrap_or(u32::MAX))
    }
}

fn doubled(first: Duration, times: u32) -> Duration {
    first.saturating_mul(2u32.saturating_pow(times)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn untold(oldest: u64, latest: u64, more_to_come: bool) -> Untold {
        Untold { oldest: Duration::from_secs(oldest), latest: Duration::from_secs(latest), more_to_come }
    }

    #[test]
    fn what_happens_together_is_told_together() {
        let (digest, now) = (Digest::default(), Instant::now());
        assert!(!digest.is_due(untold(2, 2, false), now), "more may follow at once");
        assert!(!digest.is_due(untold(20, 1, false), now), "it has just gone on");
        assert!(!digest.is_due(untold(20, 10, true), now), "other tables are being filled");
        assert!(digest.is_due(untold(20, 3, false), now));
        assert!(digest.is_due(untold(60, 0, true), now), "nobody waits for longer than a minute");
    }

    #[test]
    fn an_attempt_that_fails_is_repeated_ever_more_seldom() {
        let (mut digest, mut now) = (Digest::default(), Instant::now());
        let waits: Vec<u64> = (0..12)
            .map(|_| {
                let wait = digest.failed(now);
                assert!(!digest.is_due(untold(600, 600, false), now));
                now += wait;
                assert!(digest.is_due(untold(600, 600, false), now));
                wait.as_secs()
            })
            .collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]);
        digest.delivered(now);
        assert_eq!(digest.failed(now + MEMORY).as_secs(), 2);
    }

    proptest! {
        /// A server that fails and recovers all the time does not flood a mailbox.
        #[test]
        fn there_are_few_messages_however_much_happens(steps in prop::collection::vec(1u64..30, 2_000)) {
            let (mut digest, start) = (Digest::default(), Instant::now());
            let (mut now, mut sent) = (start, Vec::new());
            for step in steps {
                now += Duration::from_secs(step);
                if digest.is_due(untold(120, 10, false), now) {
                    digest.delivered(now);
                    sent.push(now);
                }
            }
            for first in &sent {
                let within = sent.iter().filter(|at| **at >= *first && **at - *first < MEMORY).count();
                prop_assert!(within <= 13, "{within} in an hour");
            }
            prop_assert!(!sent.is_empty());
        }
    }
}
