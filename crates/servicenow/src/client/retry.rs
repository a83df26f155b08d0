//! Which failures are worth another attempt, and how long to wait before it.

use std::time::Duration;

use crate::error::Error;

/// The first wait; each further one is twice as long.
const BASE: Duration = Duration::from_millis(250);
/// The longest wait of our own choosing.
const CAP: Duration = Duration::from_secs(30);

/// What carrying out a request twice would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Reads change nothing.
    Read,
    /// Sending it again leaves the record as sending it once.
    Idempotent,
    /// Sending it again would do it again.
    Once,
}

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Try again, not before the given wait if there is one.
    Retry(Option<Duration>),
    /// Ask for less at a time.
    Shrink,
    /// Give up; the same request would fail again, or nobody knows what it did.
    Fail,
}

/// Decides by the kind of failure and by what the request would do a second time.
pub fn policy(error: &Error, effect: Effect) -> Policy {
    let unless_done = |after| if effect == Effect::Once { Policy::Fail } else { Policy::Retry(after) };
    match error {
        // Nothing was carried out.
        Error::Connect { .. } | Error::Discarded | Error::Unheard { .. } => Policy::Retry(None),
        Error::RateLimited { retry_after, .. } => Policy::Retry(*retry_after),
        // Something may have been carried out.
        Error::Unavailable { retry_after, .. } => unless_done(*retry_after),
        Error::Broken { .. } | Error::Unreadable(_) => unless_done(None),
        Error::CutShort(_) | Error::TooLong | Error::TooLarge { .. } => match effect {
            Effect::Read => Policy::Shrink,
            Effect::Idempotent | Effect::Once => Policy::Fail,
        },
        // The same list would most likely take as long again.
        Error::TimedOut { .. } => match effect {
            Effect::Read => Policy::Shrink,
            Effect::Idempotent | Effect::Once => unless_done(None),
        },
        Error::NotPublic { .. }
        | Error::Untrusted { .. }
        | Error::Login
        | Error::NoConsent
        | Error::Unauthorized(_)
        | Error::BudgetUsedUp { .. }
        | Error::Refused { .. }
        | Error::NoTable(_)
        | Error::NoRecord(_)
        | Error::Rejected { .. }
        | Error::Value { .. }
        | Error::NoSysId
        | Error::NoField { .. }
        | Error::Query(_)
        | Error::Name(_)
        | Error::Setup(_) => Policy::Fail,
    }
}

/// Whether somebody waits for a client's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A statement does: its calls take what there is of a budget, and fail rather than waiting for an hour.
    Statement,
    /// Nobody does: reads leave the budget's reserve to others and wait for room for as long as it takes.
    Background,
}

/// How many attempts a caller makes and how long it is willing to wait between two of them.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Attempts in all, at least one.
    pub attempts: u32,
    /// The longest wait an instance may ask for before the call gives up instead.
    pub longest_wait: Duration,
    /// Whether somebody waits for the answers.
    pub urgency: Urgency,
}

/// The wait before attempt `next` (2 for the second): doubling from a quarter of a second up to half a minute,
/// less up to half of it at random, so that callers who failed together do not come back together.
/// `chance` is a random number from 0 to 1.
pub fn backoff(next: u32, chance: f64) -> Duration {
    let full = BASE.saturating_mul(1 << (next.saturating_sub(2)).min(16)).min(CAP);
    full.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_create_that_may_have_happened_is_never_sent_again() {
        let broken = Error::Broken { host: "h".into(), reason: "reset".into() };
        assert_eq!(policy(&broken, Effect::Once), Policy::Fail);
        assert_eq!(policy(&broken, Effect::Idempotent), Policy::Retry(None));
        let timed_out = Error::TimedOut { host: "h".into() };
        assert_eq!(policy(&timed_out, Effect::Once), Policy::Fail);
        assert_eq!(policy(&timed_out, Effect::Idempotent), Policy::Retry(None));
        let unavailable = Error::Unavailable { status: 503, retry_after: None };
        assert_eq!(policy(&unavailable, Effect::Once), Policy::Fail);
        assert_eq!(policy(&Error::Discarded, Effect::Once), Policy::Retry(None));
    }

    #[test]
    fn the_wait_an_instance_asks_for_is_kept() {
        let limited =
            Error::RateLimited { retry_after: Some(Duration::from_secs(9)), words: Default::default() };
        assert_eq!(policy(&limited, Effect::Once), Policy::Retry(Some(Duration::from_secs(9))));
    }

    #[test]
    fn a_list_cut_short_or_too_slow_is_asked_for_in_smaller_pages() {
        assert_eq!(policy(&Error::CutShort(Default::default()), Effect::Read), Policy::Shrink);
        assert_eq!(policy(&Error::TimedOut { host: "h".into() }, Effect::Read), Policy::Shrink);
    }

    proptest! {
        #[test]
        fn waits_grow_and_stay_within_the_cap(next in 2u32..100, chance in 0.0f64..=1.0) {
            let wait = backoff(next, chance);
            prop_assert!(wait <= CAP && wait >= BASE / 2);
        }
    }
}
