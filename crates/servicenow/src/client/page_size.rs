//! How many records to ask for at a time: less when the instance cannot answer, more again when it can.

use std::sync::{Mutex, MutexGuard};

/// The smallest page: below this a cut-off answer is not the page's fault.
const SMALLEST: u32 = 10;
/// Good pages in a row before a larger one is tried.
const FIRST_PATIENCE: u32 = 8;
/// The same at most, after larger ones have failed: each costs a minute, which is the instance's quota.
const LONGEST_PATIENCE: u32 = 1024;

/// A page size that several readers of one table share and that outlasts the calls.
#[derive(Debug)]
pub struct PageSize {
    most: u32,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    current: u32,
    /// Good pages of this size so far.
    good: u32,
    /// Good pages before the next larger size is tried. Doubles whenever that one fails at once.
    patience: u32,
    /// This size has been tried after a smaller one, and has yet to prove itself.
    on_trial: bool,
}

impl PageSize {
    /// Pages of so many records, at least one.
    pub fn new(most: u32) -> Self {
        let most = most.max(1);
        let state = State { current: most, good: 0, patience: FIRST_PATIENCE, on_trial: false };
        Self { most, state: Mutex::new(state) }
    }

    /// The size to ask for now.
    pub fn current(&self) -> u32 {
        self.lock().current
    }

    /// A page of the size asked for was answered with so many records.
    pub(super) fn answered(&self, asked: u32, records: usize) {
        let mut state = self.lock();
        // What comes back nearly empty does not show that a larger page would have come back.
        if asked != state.current || (records as u64) * 2 < u64::from(asked) {
            return;
        }
        state.good = state.good.saturating_add(1);
        if state.good < FIRST_PATIENCE {
            return;
        }
        if state.on_trial {
            (state.on_trial, state.patience) = (false, FIRST_PATIENCE);
        }
        if state.good >= state.patience && state.current < self.most {
            state.current = state.current.saturating_mul(2).min(self.most);
            (state.on_trial, state.good) = (true, 0);
        }
    }

    /// A page of the size asked for was too large. Gives back whether a smaller one may be asked for.
    pub(super) fn shrink(&self, asked: u32) -> bool {
        let least = SMALLEST.min(self.most);
        let mut state = self.lock();
        // Of several readers who find out at the same time only the first one makes it smaller.
        if asked <= state.current {
            let patience = match state.on_trial {
                true => state.patience.saturating_mul(2).min(LONGEST_PATIENCE),
                false => state.patience,
            };
            *state = State { current: (asked / 2).max(least), good: 0, patience, on_trial: false };
        }
        asked > least
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it is held")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads full pages of a table whose instance manages so many records at a time; how many attempts failed.
    fn read(size: &PageSize, manages: u32, pages: u32) -> u32 {
        (0..pages).map(|_| read_page(size, manages)).sum()
    }

    fn read_page(size: &PageSize, manages: u32) -> u32 {
        for failures in 0.. {
            let asked = size.current();
            if asked <= manages {
                size.answered(asked, asked as usize);
                return failures;
            }
            assert!(size.shrink(asked), "{asked} records are too many although {manages} are not");
        }
        unreachable!("pages become small")
    }

    #[test]
    fn what_was_learned_outlasts_the_call() {
        let size = PageSize::new(1_000);
        assert_eq!(read(&size, 300, 1), 2);
        assert_eq!((size.current(), read(&size, 300, FIRST_PATIENCE - 1)), (250, 0));
    }

    #[test]
    fn an_instance_that_has_recovered_is_asked_for_full_pages_again() {
        let size = PageSize::new(1_000);
        read(&size, 10, 1);
        assert_eq!(size.current(), 10);
        assert_eq!(read(&size, u32::MAX, 7 * FIRST_PATIENCE), 0);
        assert_eq!(size.current(), 1_000);
    }

    #[test]
    fn readers_who_find_out_together_make_it_smaller_once() {
        let size = PageSize::new(1_000);
        assert!((0..4).all(|_| size.shrink(1_000)));
        assert_eq!(size.current(), 500);
    }

    #[test]
    fn nearly_empty_pages_prove_nothing() {
        let size = PageSize::new(1_000);
        size.shrink(1_000);
        (0..10_000).for_each(|_| size.answered(500, 10));
        assert_eq!(size.current(), 500);
    }

    #[test]
    fn the_smallest_page_is_not_made_smaller() {
        let size = PageSize::new(25);
        assert!(size.shrink(25) && size.shrink(12));
        assert!(!size.shrink(10));
        assert_eq!(size.current(), 10);
        assert!(!PageSize::new(4).shrink(4), "smaller than the smallest from the beginning");
    }

    proptest! {
        #[test]
        fn pages_are_as_large_as_the_instance_manages_or_half_of_it_and_few_fail(
            most in 10u32..10_000,
            manages in 10u32..10_000,
        ) {
            let size = PageSize::new(most);
            let failures = read(&size, manages, 4_000);
            prop_assert!(size.current() <= manages.min(most) && size.current() * 2 >= manages.min(most));
            // Down to the size, and then one trial after 8, 16, 32 … good pages.
            prop_assert!(failures <= 10 + 10, "{} failures", failures);
        }
    }
}
