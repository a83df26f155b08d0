//! Whether any write has left, for a caller who cannot wait for the answers: what has not left never will.

use std::sync::Mutex;

/// The writes of a caller that the instance may have carried out.
#[derive(Debug, Default)]
pub struct Traces(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Calls that left and are not known to have come to nothing.
    left: usize,
    withdrawn: bool,
}

impl Traces {
    /// From now on nothing leaves. Gives back whether anything may have been carried out.
    pub fn withdraw(&self) -> bool {
        let mut state = self.0.lock().expect("no panic while it is held");
        state.withdrawn = true;
        state.left > 0
    }

    /// A call is about to leave, if it still may.
    pub(super) fn leave(&self) -> bool {
        let mut state = self.0.lock().expect("no panic while it is held");
        state.left += usize::from(!state.withdrawn);
        !state.withdrawn
    }

    /// A call that left was not carried out.
    pub(super) fn take_back(&self) {
        self.0.lock().expect("no panic while it is held").left -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_withdrawn_before_it_left_never_leaves() {
        let traces = Traces::default();
        assert!(!traces.withdraw());
        assert!(!traces.leave());
        assert!(!traces.withdraw());
    }

    #[test]
    fn what_has_left_may_have_been_carried_out_unless_it_was_turned_away() {
        let traces = Traces::default();
        assert!(traces.leave() && traces.leave());
        traces.take_back();
        assert!(traces.withdraw());
        traces.take_back();
        assert!(!traces.withdraw());
    }
}
