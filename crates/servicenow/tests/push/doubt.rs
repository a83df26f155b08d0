//! What somebody else has changed is left, and what became of a write without an answer is found out.

use servicenow::push::decision::{Calls, Why};
use servicenow::push::undo::{Others, Outcome, undo};

use crate::Fate::{AnswerLost, Answered, NeverSent};
use crate::{Backend, Fate, assert_as_before};

const CHANGED: Outcome = Outcome::Left { why: Why::Changed };
const UNCLEAR: Outcome = Outcome::Left { why: Why::Unclear };

#[tokio::test]
async fn a_record_that_somebody_has_changed_since_is_left() {
    let mut backend = Backend::new().await;
    let (changed, made) =
        (backend.existing(), backend.insert("incident", &[("description", "new")], Answered).await);
    backend.update("incident", &changed, &[("description", "second")], Answered).await;
    for id in [&changed, &made] {
        backend.somebody_changes(id, &[("close_notes", "mine")]);
    }
    let (before, sent) = ([backend.record(&changed), backend.record(&made)], backend.writes());
    let reports = backend.undo().await.expect("the instance is there");
    assert!(reports.iter().all(|report| report.outcome == CHANGED), "{reports:?}");
    assert_eq!([backend.record(&changed), backend.record(&made)], before);
    assert_eq!(backend.writes(), sent);
}

#[tokio::test]
async fn a_deleted_record_that_somebody_has_made_again_is_left() {
    let mut backend = Backend::new().await;
    let id = backend.existing();
    backend.delete("incident", &id, Answered).await;
    let fields = [("sys_id", id.as_str()), ("description", "mine")];
    backend.sim.edit().insert("incident", &fields).expect("a record");
    assert_eq!(backend.outcome().await, CHANGED);
    assert_eq!(backend.record(&id).expect("it is there")["description"], "mine");
}

#[tokio::test]
async fn a_record_that_somebody_has_deleted_stays_away() {
    let mut backend = Backend::new().await;
    let id = backend.existing();
    backend.update("incident", &id, &[("description", "second")], Answered).await;
    backend.sim.edit().delete("incident", id.as_str()).expect("it is there");
    assert_eq!(backend.outcome().await, Outcome::Left { why: Why::Gone });
    assert_eq!(backend.record(&id), None);
}

#[tokio::test]
async fn a_change_that_the_cache_did_not_know_of_is_not_lost_by_undoing() {
    let mut backend = Backend::new().await;
    let id = backend.existing();
    let theirs = |sim: &servicenow_sim::Simulator| {
        sim.edit().update("incident", id.as_str(), &[("description", "mine")]).expect("it is there");
    };
    backend.update_after("incident", &id, &[("description", "second")], Answered, theirs).await;
    assert_eq!(backend.outcome().await, CHANGED);
    assert_eq!(backend.record(&id).expect("it is there")["description"], "second", "and not \"first\"");
}

#[tokio::test]
async fn a_refused_write_leaves_nothing_to_undo() {
    let mut backend = Backend::new().await;
    let id = backend.existing();
    let theirs = |sim: &servicenow_sim::Simulator| {
        sim.edit().delete("incident", id.as_str()).expect("it is there");
    };
    backend.update_after("incident", &id, &[("description", "second")], Answered, theirs).await;
    assert_eq!(backend.open(), []);
}

/// A write without an answer, undone if it happened and left alone if not.
async fn is_undone_either_way(write: impl AsyncFn(&mut Backend, Fate) -> servicenow::value::SysId) {
    for (fate, outcome) in [(AnswerLost, Outcome::Undone), (NeverSent, Outcome::NothingToDo)] {
        let mut backend = Backend::new().await;
        let existing = backend.existing();
        let before = backend.record(&existing);
        let id = write(&mut backend, fate).await;
        assert_eq!(backend.outcome().await, outcome, "{fate:?}");
        let expected = if id == existing { before } else { None };
        assert_as_before(backend.record(&id), &expected, &format!("{fate:?}"));
    }
}

/// The record that was there first.
fn first(backend: &Backend) -> servicenow::value::SysId {
    let found = backend.sim.edit().find("incident", "close_notes=first").expect("a query");
    servicenow::value::SysId::new(found.into_iter().next().expect("there is one"))
}

#[tokio::test]
async fn whether_a_change_happened_is_found_out() {
    is_undone_either_way(async |backend, fate| {
        let id = first(backend);
        backend.update("incident", &id, &[("description", "second")], fate).await;
        id
    })
    .await;
}

#[tokio::test]
async fn whether_a_record_was_made_is_found_out() {
    is_undone_either_way(async |backend, fate| {
        backend.insert("incident", &[("description", "new")], fate).await
    })
    .await;
}

#[tokio::test]
async fn whether_a_record_was_deleted_is_found_out() {
    is_undone_either_way(async |backend, fate| {
        let id = first(backend);
        backend.delete("incident", &id, fate).await;
        id
    })
    .await;
}

#[tokio::test]
async fn what_came_before_a_write_that_did_not_happen_is_undone() {
    for fate in [AnswerLost, NeverSent] {
        let mut backend = Backend::new().await;
        let id = backend.existing();
        let before = backend.record(&id);
        backend.update("incident", &id, &[("description", "second")], Answered).await;
        backend.update("incident", &id, &[("close_notes", "second")], fate).await;
        assert_eq!(backend.outcome().await, Outcome::Undone, "{fate:?}");
        assert_as_before(backend.record(&id), &before, &format!("{fate:?}"));
    }
}

#[tokio::test]
async fn somebodys_change_is_not_taken_for_a_write_without_an_answer() {
    let mut backend = Backend::new().await;
    let id = backend.existing();
    backend.update("incident", &id, &[("description", "second")], NeverSent).await;
    backend.somebody_changes(&id, &[("description", "mine")]);
    assert_eq!(backend.outcome().await, UNCLEAR);
    assert_eq!(backend.record(&id).expect("it is there")["description"], "mine");
}

#[tokio::test]
async fn somebodys_change_after_a_write_without_an_answer_is_left() {
    let mut backend = Backend::new().await;
    let made = backend.insert("incident", &[("description", "new")], AnswerLost).await;
    backend.somebody_changes(&made, &[("close_notes", "mine")]);
    assert_eq!(backend.outcome().await, UNCLEAR);
    assert_eq!(backend.record(&made).expect("it is there")["close_notes"], "mine");
}

#[tokio::test]
async fn a_write_that_arrives_after_a_first_look_is_undone_at_the_next() {
    let mut backend = Backend::new().await;
    let (changed, deleted) = (backend.existing(), backend.existing());
    let before = [backend.record(&changed), backend.record(&deleted), None];
    backend.update("incident", &changed, &[("description", "second")], Answered).await;
    backend.update("incident", &changed, &[("close_notes", "second")], NeverSent).await;
    backend.delete("incident", &deleted, NeverSent).await;
    let made = backend.insert("incident", &[("description", "new")], NeverSent).await;
    let sent = backend.writes();
    assert_eq!(backend.undo_early().await, [Outcome::Open, Outcome::Open, Outcome::Open]);
    assert_eq!(backend.writes(), sent, "a record that may still change is left alone");
    let arrives = backend.sim.edit().as_user("fdw.integration");
    arrives.update("incident", changed.as_str(), &[("close_notes", "second")]).expect("it is there");
    arrives.delete("incident", deleted.as_str()).expect("it is there");
    let fields = [("sys_id", made.as_str()), ("description", "new")];
    arrives.insert("incident", &fields).expect("a record");
    assert_eq!(backend.undo_early().await, [Outcome::Undone, Outcome::Undone, Outcome::Undone]);
    for (id, before) in [changed, deleted, made].iter().zip(&before) {
        assert_as_before(backend.record(id), before, "it has arrived");
    }
}

#[tokio::test]
async fn nobody_waits_for_a_write_that_was_answered() {
    let mut backend = Backend::new().await;
    let id = backend.existing();
    let before = backend.record(&id);
    backend.update("incident", &id, &[("description", "second")], Answered).await;
    assert_eq!(backend.undo_early().await, [Outcome::Undone]);
    assert_as_before(backend.record(&id), &before, "it was answered");
}

#[tokio::test]
async fn a_write_of_another_transaction_is_not_taken_for_one_without_an_answer() {
    for op in ["update", "delete"] {
        let mut backend = Backend::new().await;
        let id = backend.existing();
        match op {
            "update" => backend.update("incident", &id, &[("description", "second")], NeverSent).await,
            _ => backend.delete("incident", &id, NeverSent).await,
        }
        let untouched = backend.record(&id);
        let outcome = async |calls, others: Others| {
            let (client, writes) = (&backend.client, backend.open());
            let reports = undo(client, &writes, calls, &|_, _, _| others).await;
            reports.expect("the instance is there").remove(0).outcome
        };
        for others in [Others::UnderWay, Others::Wrote] {
            let outcome = outcome(Calls::AreOver, others).await;
            assert_eq!(outcome, Outcome::NothingToDo, "nothing has happened, whoever is at it");
        }
        assert_eq!(backend.record(&id), untouched);
        let edit = backend.sim.edit().as_user("fdw.integration");
        match op {
            "update" => edit.update("incident", id.as_str(), &[("description", "second")]),
            _ => edit.delete("incident", id.as_str()),
        }
        .expect("it is there");
        let (theirs, sent) = (backend.record(&id), backend.writes());
        assert_eq!(outcome(Calls::AreOver, Others::UnderWay).await, Outcome::Open, "{op}");
        assert_eq!(outcome(Calls::MayArrive, Others::Wrote).await, Outcome::Open, "{op}");
        assert_eq!(outcome(Calls::AreOver, Others::Wrote).await, Outcome::NothingToDo, "{op}");
        assert_eq!((backend.record(&id), backend.writes()), (theirs, sent), "{op}");
        assert_eq!(outcome(Calls::AreOver, Others::Nothing).await, Outcome::Undone, "{op}");
    }
}
