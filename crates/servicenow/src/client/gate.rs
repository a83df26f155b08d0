//! The gate that every call passes: no more are under way than [`Limit`] allows, writes go before reads, and among
//! themselves each kind goes in the order in which it came.

use std::collections::VecDeque;
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
    under_way: usize,
    writes: VecDeque<Waiter>,
    reads: VecDeque<Waiter>,
}

/// A caller before the gate. It is told the number of its call by getting the permit for it.
type Waiter = oneshot::Sender<Permit>;

/// The permission to make one call; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    call: u64,
    gate: Arc<Gate>,
}

impl Gate {
    /// A gate that lets at most so many through at a time.
    pub(super) fn new(ceiling: usize) -> Arc<Self> {
        let (writes, reads) = (VecDeque::new(), VecDeque::new());
        let state = State { limit: Limit::new(ceiling), under_way: 0, writes, reads };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// The most calls under way at a time, for now.
    pub(super) fn limit(&self) -> usize {
        self.lock().limit.get()
    }

    /// Waits for a call's turn.
    pub(super) async fn enter(self: &Arc<Self>, effect: Effect) -> Permit {
        let turn = {
            let mut state = self.lock();
            // While somebody waits there is no room: whoever makes some lets the next one in at once.
            if state.has_room() {
                return self.permit(state.begin(false));
            }
            let (waiter, turn) = oneshot::channel();
            match effect {
                Effect::Read => state.reads.push_back(waiter),
                Effect::Idempotent | Effect::Once => state.writes.push_back(waiter),
            }
            turn
        };
        turn.await.expect("the gate drops only those who have given up")
    }

    fn leave(self: &Arc<Self>) {
        let mut next = Vec::new();
        {
            let mut state = self.lock();
            state.under_way -= 1;
            while let Some(waiter) = state.next() {
                next.push((waiter, state.begin(true)));
            }
        }
        for (waiter, call) in next {
            // Should it have given up just now, the permit comes back here and is dropped.
            let _gone = waiter.send(self.permit(call));
        }
    }

    fn permit(self: &Arc<Self>, call: u64) -> Permit {
        Permit { call, gate: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it is held")
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.under_way < self.limit.get()
    }

    fn begin(&mut self, has_waited: bool) -> u64 {
        self.under_way += 1;
        self.limit.begin(has_waited)
    }

    /// Whose turn it is, if there is room for somebody who still waits.
    fn next(&mut self) -> Option<Waiter> {
        while self.has_room() {
            let waiter = self.writes.pop_front().or_else(|| self.reads.pop_front())?;
            if !waiter.is_closed() {
                return Some(waiter);
            }
        }
        None
    }
}

impl Permit {
    /// Takes note of what became of the call. If that halves the limit, tells how often it was since the last
    /// answer. Nobody is let in before the permit is dropped.
    pub(super) fn report(&self, outcome: Outcome) -> Option<u32> {
        self.gate.lock().limit.end(self.call, outcome)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.leave();
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

    fn entering(gate: &Arc<Gate>, effect: Effect) -> Entering {
        let gate = gate.clone();
        Box::pin(async move { gate.enter(effect).await })
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
        let first = poll(&mut entering(&gate, Effect::Read)).expect("nobody is before it");
        let order = [Effect::Read, Effect::Once, Effect::Read, Effect::Idempotent, Effect::Once];
        let mut waiting: Vec<_> = order.iter().map(|effect| entering(&gate, *effect)).collect();
        assert!(waiting.iter_mut().all(|entering| poll(entering).is_none()));
        drop(first);
        for expected in [1, 3, 4, 0, 2] {
            let ready: Vec<(usize, Permit)> =
                waiting.iter_mut().enumerate().filter_map(|(n, e)| Some((n, poll(e)?))).collect();
            assert_eq!(ready.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [expected]);
            waiting[expected] = Box::pin(std::future::pending());
        }
    }

    /// One step of a life at the gate; numbers say which of those who wait or are under way.
    #[derive(Clone, Debug)]
    enum Step {
        Come(bool),
        GiveUp(usize),
        End(usize, Option<Outcome>),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => any::<bool>().prop_map(Step::Come),
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
            let mut waiting: Vec<Entering> = Vec::new();
            let mut inside: Vec<Permit> = Vec::new();
            for (step, all_look) in steps {
                match step {
                    Step::Come(writes) => {
                        let effect = if writes { Effect::Once } else { Effect::Read };
                        let mut newcomer = entering(&gate, effect);
                        match poll(&mut newcomer) {
                            Some(permit) => inside.push(permit),
                            None => waiting.push(newcomer),
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
                    waiting.retain_mut(|entering| match poll(entering) {
                        Some(permit) => { inside.push(permit); false }
                        None => true,
                    });
                    let (under_way, limit) = { let s = gate.lock(); (s.under_way, s.limit.get()) };
                    prop_assert_eq!(under_way, inside.len());
                    prop_assert!(limit <= ceiling);
                    prop_assert!(waiting.is_empty() || under_way >= limit, "somebody waits beside a free place");
                }
            }
            drop(waiting);
            drop(inside);
            prop_assert_eq!(gate.lock().under_way, 0);
        }
    }
}
