//! Undoing may fail and end anywhere, and is begun anew.

use servicenow::push::undo::Outcome;
use servicenow_sim::{Availability, Cut, Effect, Fault};

use crate::Fate::Answered;
use crate::interrupt::at_most;
use crate::{Backend, assert_as_before, client};

/// Failures after which an instance may be tried again.
pub fn passing_failures() -> Vec<Effect> {
    vec![
        Effect::Discard,
        Effect::RateLimited { headers: false, retry_after: Some(0), json: true },
        Effect::RateLimited { headers: false, retry_after: None, json: false },
        Effect::Status { status: 500, html: false },
        Effect::Status { status: 503, html: true },
        Effect::Status { status: 404, html: true },
        Effect::NullBody,
        Effect::EmptyBody,
        Effect::Hibernating,
        Effect::LoginPage,
        Effect::ResetBefore,
        Effect::ResetAfter,
        Effect::Truncate { bytes: 20 },
        Effect::Cut { rows: 0, cut: Cut::Broken },
        Effect::Cancelled,
    ]
}

/// A transaction that has made, changed and deleted records, and how they were before.
struct Case {
    backend: Backend,
    before: Vec<Option<servicenow_sim::Record>>,
    ids: Vec<servicenow::value::SysId>,
}

impl Case {
    async fn new() -> Case {
        Case::of(Backend::new().await).await
    }

    async fn of(mut backend: Backend) -> Case {
        let mut ids = vec![backend.existing(), backend.existing(), backend.existing()];
        let mut before: Vec<_> = ids.iter().map(|id| backend.record(id)).collect();
        backend.update("incident", &ids[0], &[("description", "second")], Answered).await;
        backend.update("incident", &ids[0], &[("close_notes", "second")], Answered).await;
        ids.push(backend.insert("incident", &[("short_description", "new")], Answered).await);
        before.push(None);
        backend.delete("incident", &ids[1], Answered).await;
        backend.update("incident", &ids[2], &[("description", "second")], Answered).await;
        Case { backend, before, ids }
    }

    #[track_caller]
    fn assert_undone(&self, what: &str) {
        for (id, before) in self.ids.iter().zip(&self.before) {
            assert_as_before(self.backend.record(id), before, what);
        }
    }
}

#[tokio::test]
async fn every_failure_at_every_call_is_gone_through() {
    let mut backend = Backend::new().await;
    for effect in passing_failures() {
        for after in 0..8 {
            let case = Case::of(backend).await;
            let fault = case.backend.sim.fault(Fault::new(effect.clone()).after(after).times(1));
            let mut failures = 0;
            let reports = loop {
                match case.backend.undo().await {
                    Ok(reports) => break reports,
                    Err(_) => failures += 1,
                }
                assert!(failures < 10, "{effect:?} after {after}");
            };
            let left = |outcome: &Outcome| matches!(outcome, Outcome::Left { .. });
            assert!(!reports.iter().any(|r| left(&r.outcome)), "{effect:?} after {after}: {reports:?}");
            assert!(case.backend.sim.fault_count(fault) > 0, "{effect:?} after {after}");
            case.assert_undone(&format!("{effect:?} after {after}"));
            case.backend.sim.clear_faults();
            backend = case.backend.next();
        }
    }
}

#[tokio::test]
async fn an_instance_that_goes_down_in_the_middle_is_tried_again() {
    let case = Case::new().await;
    let down = case.backend.sim.fault(Fault::new(Effect::Status { status: 503, html: true }).after(3));
    case.backend.undo().await.expect_err("it is down");
    case.backend.sim.remove_fault(down);
    case.backend.sim.set(|switches| switches.availability = Availability::Unreachable);
    case.backend.undo().await.expect_err("it is not there");
    case.backend.sim.set(|switches| switches.availability = Availability::Up);
    let reports = case.backend.undo().await.expect("it is up");
    let was_done = |outcome| reports.iter().filter(|report| report.outcome == outcome).count();
    assert!(was_done(Outcome::NothingToDo) > 0 && was_done(Outcome::Undone) > 0, "{reports:?}");
    case.assert_undone("after an outage");
}

#[tokio::test]
async fn a_refused_login_leaves_everything_open() {
    let mut case = Case::new().await;
    case.backend.sim.fault(Fault::new(Effect::Unauthorized).after(2).times(1));
    case.backend.undo().await.expect_err("the login is refused");
    case.backend.client = client(&case.backend.sim, &case.backend.transport);
    case.backend.undo().await.expect("the instance is there");
    case.assert_undone("after a refused login");
}

#[tokio::test]
async fn undoing_that_ends_anywhere_is_begun_anew() {
    let mut polls = 1;
    loop {
        let case = Case::new().await;
        let is_done = at_most(case.backend.undo(), polls).await.is_some();
        case.backend.undo().await.expect("the instance is there");
        case.assert_undone(&format!("ended after {polls} polls"));
        if is_done {
            break;
        }
        polls += 1;
    }
    assert!(polls > 8, "it was interrupted often");
}
