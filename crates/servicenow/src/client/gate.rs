//! The gate that every call passes: no more are under way than [`Limit`] allows, and writes go before reads, among
//! themselves in the order in which they came.
//!
//! Reads are shared out by what they read: next is whoever has the fewest under way, and one place is kept for those
//! who have none. So a table whose calls take long, however many of them there are, delays no other.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

use super::limit::{Limit, Outcome};
use super::retry::Effect;

/// The gate. A caller that gives up, before or after it was let in, leaves no trace.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: Limit,
    ceiling: usize,
    under_way: usize,
    /// How many reads are under way of what; those of which none is are left out.
    reads_of: HashMap<Arc<str>, usize>,
    writes: VecDeque<Waiter>,
    reads: VecDeque<Waiter>,
}

/// A caller before the gate.
#[derive(Debug)]
struct Waiter {
    /// What it reads, if it does.
    reads: Option<Arc<str>>,
    /// It is told that it is its turn by getting the permit.
    turn: oneshot::Sender<Permit>,
}

/// The permission to make one call; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    call: u64,
    reads: Option<Arc<str>>,
    gate: Arc<Gate>,
}

impl Gate {
    /// A gate that lets at most so many through at a time.
    pub(super) fn new(ceiling: usize) -> Arc<Self> {
        let ceiling = ceiling.max(1);
        let state = State {
            limit: Limit::new(ceiling),
            ceiling,
            under_way: 0,
            reads_of: HashMap::new(),
            writes: VecDeque::new(),
            reads: VecDeque::new(),
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// The most calls under way at a time, for now.
    pub(super) fn limit(&self) -> usize {
        self.lock().limit.get()
    }

    /// As [`Permit::report`], of a call whose permit has been given back.
    pub(super) fn report(&self, call: u64, outcome: Outcome) -> Option<u32> {
        self.lock().limit.end(call, outcome)
    }

    /// Waits for a call's turn. `what` is read, or written.
    pub(super) async fn enter(self: &Arc<Self>, effect: Effect, what: &str) -> Permit {
        let reads: Option<Arc<str>> = (effect == Effect::Read).then(|| what.into());
        let turn = {
            let mut state = self.lock();
            // Whoever waits has no room: who makes some lets the next one in at once.
            if state.has_room(reads.as_deref()) {
                return self.permit(state.begin(reads.as_ref(), false), reads);
            }
            let (turn, its_turn) = oneshot::channel();
            let queue = if reads.is_some() { &mut state.reads } else { &mut state.writes };
            queue.push_back(Waiter { reads, turn });
            its_turn
        };
        turn.await.expect("the gate drops only those who have given up")
    }

    fn leave(self: &Arc<Self>, reads: Option<&str>) {
        let mut next = Vec::new();
        {
            let mut state = self.lock();
            state.end(reads);
            while let Some(Waiter { reads, turn }) = state.next() {
                next.push((turn, state.begin(reads.as_ref(), true), reads));
            }
        }
        for (turn, call, reads) in next {
            // Should it have given up just now, the permit comes back here and is dropped.
            let _gone = turn.send(self.permit(call, reads));
        }
    }

    fn permit(self: &Arc<Self>, call: u64, reads: Option<Arc<str>>) -> Permit {
        Permit { call, reads, gate: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it is held")
    }
}

impl State {
    /// Whether another call may be made. What has no read under way finds a place beside what has many: one of those
    /// above the limit while there are any, else one that is kept from the others.
    fn has_room(&self, reads: Option<&str>) -> bool {
        let limit = self.limit.get();
        match reads.map(|what| self.reads_of.get(what).copied().unwrap_or_default()) {
            None => self.under_way < limit,
            Some(0) => self.under_way < (limit + 1).min(self.ceiling),
            Some(others) => self.under_way < limit && others < (self.ceiling - 1).max(1),
        }
    }

    fn begin(&mut self, reads: Option<&Arc<str>>, has_waited: bool) -> u64 {
        self.under_way += 1;
        if let Some(what) = reads {
            *self.reads_of.entry(what.clone()).or_default() += 1;
        }
        self.limit.begin(has_waited)
    }

    fn end(&mut self, reads: Option<&str>) {
        self.under_way -= 1;
        if let Some(count) = reads.and_then(|what| self.reads_of.get_mut(what)) {
            *count -= 1;
        }
        self.reads_of.retain(|_, count| *count > 0);
    }

    /// Whose turn it is, if there is room for somebody who still waits.
    fn next(&mut self) -> Option<Waiter> {
        self.writes.retain(|waiter| !waiter.turn.is_closed());
        self.reads.retain(|waiter| !waiter.turn.is_closed());
        if self.has_room(None)
            && let Some(writer) = self.writes.pop_front()
        {
            return Some(writer);
        }
        let under_way = |waiter: &Waiter| {
            waiter.reads.as_ref().and_then(|what| self.reads_of.get(what)).copied().unwrap_or_default()
        };
        // The first of those that are equal.
        let (first, waiter) = self.reads.iter().enumerate().min_by_key(|(_, waiter)| under_way(waiter))?;
        if self.has_room(waiter.reads.as_deref()) { self.reads.remove(first) } else { None }
    }
}

impl Permit {
    /// Takes note of what became of the call. If that halves the limit, tells how often it was since the last
    /// answer. Nobody is let in before the permit is dropped.
    pub(super) fn report(&self, outcome: Outcome) -> Option<u32> {
        self.gate.report(self.call, outcome)
    }

    /// The number of the call.
    pub(super) fn number(&self) -> u64 {
        self.call
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.leave(self.reads.as_deref());
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    type Entering = Pin<Box<dyn Future<Output = Permit>>>;

    fn entering(gate: &Arc<Gate>, effect: Effect, what: &'static str) -> Entering {
        let gate = gate.clone();
        Box::pin(async move { gate.enter(effect, what).await })
    }

    fn poll(entering: &mut Entering) -> Option<Permit> {
        match entering.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(permit) => Some(permit),
            Poll::Pending => None,
        }
    }

    const ANSWERED: Outcome =
        Outcome::Answered { latency: Duration::from_millis(20), queued: Duration::ZERO };

    #[test]
    fn writes_go_before_reads_and_each_in_the_order_of_coming() {
        let gate = Gate::new(1);
        let first = poll(&mut entering(&gate, Effect::Read, "incident")).expect("nobody is before it");
        let order = [Effect::Read, Effect::Once, Effect::Read, Effect::Idempotent, Effect::Once];
        let mut waiting: Vec<_> = order.iter().map(|effect| entering(&gate, *effect, "incident")).collect();
        assert!(waiting.iter_mut().all(|entering| poll(entering).is_none()));
        drop(first);
        for expected in [1, 3, 4, 0, 2] {
            let ready: Vec<(usize, Permit)> =
                waiting.iter_mut().enumerate().filter_map(|(n, e)| Some((n, poll(e)?))).collect();
            assert_eq!(ready.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [expected]);
            waiting[expected] = Box::pin(std::future::pending());
        }
    }

    #[test]
    fn a_table_whose_calls_take_long_delays_no_other() {
        for ceiling in 2..10 {
            for answered in 0..200 {
                let gate = Gate::new(ceiling);
                let slow = || poll(&mut entering(&gate, Effect::Read, "slow"));
                // Whatever the limit has become by then, it is used up.
                let mut under_way: Vec<Permit> = Vec::new();
                for _ in 0..answered {
                    under_way.extend(std::iter::from_fn(slow));
                    under_way.remove(0).report(ANSWERED);
                }
                under_way.extend(std::iter::from_fn(slow));
                assert!(poll(&mut entering(&gate, Effect::Read, "quick")).is_some(), "{ceiling} {answered}");
            }
        }
    }

    #[test]
    fn places_are_shared_out_by_what_is_read() {
        let gate = Gate::new(4);
        let fill: Vec<_> = (0..4).filter_map(|_| poll(&mut entering(&gate, Effect::Read, "fill"))).collect();
        let polls = poll(&mut entering(&gate, Effect::Read, "poll")).expect("a place is kept");
        assert_eq!(fill.len(), 3);
        let mut waiting: Vec<_> =
            ["fill", "fill", "poll", "other"].map(|what| entering(&gate, Effect::Read, what)).into();
        assert!(waiting.iter_mut().all(|entering| poll(entering).is_none()));
        let mut fill = fill.into_iter();
        for (ended, expected) in [(fill.next(), 3), (Some(polls), 2)] {
            drop(ended);
            let ready: Vec<usize> =
                (0..4).filter(|n| poll(&mut waiting[*n]).map(std::mem::forget).is_some()).collect();
            assert_eq!(ready, [expected]);
            waiting[expected] = Box::pin(std::future::pending());
        }
    }

    /// One step of a life at the gate; numbers say which of those who wait or are under way.
    #[derive(Clone, Debug)]
    enum Step {
        Come(bool, bool),
        GiveUp(usize),
        End(usize, Option<Outcome>),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (any::<bool>(), any::<bool>()).prop_map(|(writes, other)| Step::Come(writes, other)),
            1 => (0usize..100).prop_map(Step::GiveUp),
            3 => (0usize..100, prop_oneof![
                5 => Just(Some(ANSWERED)),
                1 => Just(Some(Outcome::Overloaded)),
                1 => Just(None),
            ]).prop_map(|(which, outcome)| Step::End(which, outcome)),
        ]
    }

    proptest! {
        /// Callers look whether it is their turn only now and then, so that permits are under way to some who give
        /// up before they get them.
        #[test]
        fn no_permit_is_lost_and_none_is_made(
            ceiling in 1usize..10,
            steps in prop::collection::vec((step(), any::<bool>()), 0..300),
        ) {
            let gate = Gate::new(ceiling);
            let mut waiting: Vec<(Option<&str>, Entering)> = Vec::new();
            let mut inside: Vec<Permit> = Vec::new();
            for (step, all_look) in steps {
                match step {
                    Step::Come(writes, other) => {
                        let effect = if writes { Effect::Once } else { Effect::Read };
                        let what = if other { "problem" } else { "incident" };
                        let mut newcomer = entering(&gate, effect, what);
                        match poll(&mut newcomer) {
                            Some(permit) => inside.push(permit),
                            None => waiting.push(((!writes).then_some(what), newcomer)),
                        }
                    }
                    Step::GiveUp(which) if !waiting.is_empty() => {
                        drop(waiting.swap_remove(which % waiting.len()));
                    }
                    Step::End(which, outcome) if !inside.is_empty() => {
                        let permit = inside.swap_remove(which % inside.len());
                        outcome.map(|outcome| permit.report(outcome));
                    }
                    Step::GiveUp(_) | Step::End(..) => {}
                }
                if all_look {
                    waiting.retain_mut(|(_, entering)| match poll(entering) {
                        Some(permit) => { inside.push(permit); false }
                        None => true,
                    });
                    let state = gate.lock();
                    prop_assert_eq!(state.under_way, inside.len());
                    prop_assert!(state.limit.get() <= ceiling && state.under_way <= ceiling);
                    let room = waiting.iter().any(|(reads, _)| state.has_room(*reads));
                    prop_assert!(!room, "somebody waits beside a free place");
                }
            }
            drop(waiting);
            drop(inside);
            let state = gate.lock();
            prop_assert!(state.under_way == 0 && state.reads_of.is_empty());
        }
    }
}
