//! When a table is polled: at moments of its own, so that many tables are not polled together.
//!
//! Tables that begin together would stay together, and so would those that something has held up together: a pause after the
//! end of a poll keeps them in step. A beat is kept instead, and caught up with after a delay.

use std::time::{Duration, Instant};

/// The moments of one table: one in each interval, all at the same distance from its beginning.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Beat {
    /// One of them, and the interval it was placed in; `None` before the first.
    origin: Option<(Instant, Duration)>,
}

impl Beat {
    /// How long it is until the next one. `chance` is a random number from 0 to 1, which places the first.
    pub(super) fn next_in(&mut self, interval: Duration, now: Instant, chance: f64) -> Duration {
        let placed = self.origin.filter(|(origin, within)| *within == interval || *origin <= now);
        // One that is still to come was placed for another pace.
        let (origin, _) =
            placed.unwrap_or_else(|| (now + interval.mul_f64(chance.clamp(0.0, 1.0)), interval));
        self.origin = Some((origin, interval));
        let since = now.saturating_duration_since(origin);
        let into = Duration::from_nanos((since.as_nanos() % interval.as_nanos().max(1)) as u64);
        match origin.checked_duration_since(now) {
            Some(left) if !left.is_zero() => left,
            _ => interval - into,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    #[test]
    fn tables_that_were_held_up_together_do_not_stay_together() {
        let start = Instant::now();
        let mut beats: Vec<(Beat, Instant)> = (0..10).map(|_| (Beat::default(), start)).collect();
        for (n, (beat, at)) in beats.iter_mut().enumerate() {
            *at += beat.next_in(INTERVAL, *at, n as f64 / 10.0);
        }
        // All of them come to an end at the same moment.
        let late = start + INTERVAL * 3 + INTERVAL / 20;
        let mut next: Vec<Duration> =
            beats.iter_mut().map(|(beat, _)| beat.next_in(INTERVAL, late, 0.0)).collect();
        next.sort_unstable();
        assert!(next.windows(2).all(|pair| pair[1] - pair[0] == INTERVAL / 10), "{next:?}");
    }

    #[test]
    fn another_pace_places_the_first_anew() {
        let start = Instant::now();
        let mut beat = Beat::default();
        assert_eq!(beat.next_in(INTERVAL * 60, start, 0.9), INTERVAL * 54);
        assert_eq!(beat.next_in(INTERVAL, start, 0.5), INTERVAL / 2);
        assert_eq!(beat.next_in(INTERVAL * 60, start, 0.9), INTERVAL * 54);
    }

    proptest! {
        #[test]
        fn there_is_one_in_each_interval(chance in 0.0f64..=1.0, polls in prop::collection::vec(0u64..9_999, 1..20)) {
            let start = Instant::now();
            let (mut beat, mut now) = (Beat::default(), start);
            for (n, poll) in polls.iter().enumerate() {
                let pause = beat.next_in(INTERVAL, now, chance);
                prop_assert!(pause <= INTERVAL && (n == 0 || !pause.is_zero()));
                now += pause;
                let since = now - start;
                prop_assert!(since <= INTERVAL * (n as u32 + 1));
                now += Duration::from_millis(*poll);
            }
        }
    }
}
