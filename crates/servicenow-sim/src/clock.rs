//! The instance's virtual clock: it runs with real time, and tests step or hold it.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;

#[derive(Debug, Default)]
struct State {
    offset: TimeDelta,
    held: Option<DateTime<Utc>>,
}

/// The clock of a simulator; copies show the same time.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    state: Arc<Mutex<State>>,
}

impl Clock {
    /// The instance's present.
    pub fn now(&self) -> DateTime<Utc> {
        let state = self.state.lock();
        state.held.unwrap_or_else(|| Utc::now() + state.offset)
    }

    /// Steps the clock forward.
    pub fn advance(&self, by: Duration) {
        self.step(TimeDelta::from_std(by).unwrap_or(TimeDelta::MAX));
    }

    /// Steps the clock by a signed length: instances' clocks are set back, too.
    pub fn step(&self, by: TimeDelta) {
        let mut state = self.state.lock();
        state.offset += by;
        if let Some(held) = &mut state.held {
            *held += by;
        }
    }

    /// Sets the clock to a time.
    pub fn set(&self, to: DateTime<Utc>) {
        let mut state = self.state.lock();
        state.offset = to - Utc::now();
        if state.held.is_some() {
            state.held = Some(to);
        }
    }

    /// Holds the clock at its present time, or lets it run on from there.
    pub fn hold(&self, hold: bool) {
        let now = self.now();
        let mut state = self.state.lock();
        state.held = hold.then_some(now);
        state.offset = now - Utc::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_clock_moves_only_when_it_is_stepped() {
        let clock = Clock::default();
        clock.hold(true);
        let then = clock.now();
        assert_eq!(clock.now(), then);
        clock.advance(Duration::from_secs(90));
        assert_eq!(clock.now() - then, TimeDelta::seconds(90));
        clock.hold(false);
        assert!(clock.now() - then >= TimeDelta::seconds(90));
    }
}
