//! What nobody else has touched is as before.

use servicenow::push::decision::Why;
use servicenow::push::undo::Outcome;
use servicenow_sim::{AclRule, BusinessRule, Operation, Phase, RuleEffect};

use crate::Fate::Answered;
use crate::{Backend, assert_as_before, content, partly, table_name};

#[tokio::test]
async fn a_change_is_taken_back_with_what_the_instance_derived_from_it() {
    let mut backend = Backend::new().await;
    let id = backend.existing();
    let before = backend.record(&id);
    backend
        .update("incident", &id, &[("urgency", "1"), ("impact", "1"), ("description", "")], Answered)
        .await;
    assert_eq!(backend.record(&id).expect("it is there")["priority"], "1");
    assert_eq!(backend.outcome().await, Outcome::Undone);
    assert_as_before(backend.record(&id), &before, "undone");
    assert_eq!(backend.outcome().await, Outcome::NothingToDo, "again");
}

#[tokio::test]
async fn a_made_record_is_deleted() {
    let mut backend = Backend::new().await;
    let id = backend.insert("incident", &[("short_description", "new")], Answered).await;
    assert_eq!(backend.outcome().await, Outcome::Undone);
    assert_eq!(backend.record(&id), None);
    assert_eq!(backend.outcome().await, Outcome::NothingToDo, "again");
}

#[tokio::test]
async fn a_deleted_record_is_made_again_with_its_identity_and_all_its_values() {
    let mut backend = Backend::new().await;
    let known = backend.sim.edit().find("incident", "number=INC0012345").expect("a query").remove(0);
    let id = servicenow::value::SysId::new(known);
    let before = backend.record(&id);
    backend.delete("incident", &id, Answered).await;
    assert_eq!(backend.record(&id), None);
    assert_eq!(backend.outcome().await, Outcome::Undone);
    assert_as_before(backend.record(&id), &before, "undone");
    assert_eq!(backend.outcome().await, Outcome::NothingToDo, "again");
}

#[tokio::test]
async fn what_was_written_to_a_record_in_turn_is_undone_with_one_write() {
    let mut backend = Backend::new().await;
    let id = backend.existing();
    let before = backend.record(&id);
    for text in ["second", "third", "fourth"] {
        backend.update("incident", &id, &[("description", text)], Answered).await;
    }
    backend.update("incident", &id, &[("short_description", "second")], Answered).await;
    let sent = backend.writes();
    assert_eq!(backend.outcome().await, Outcome::Undone);
    assert_eq!(backend.writes(), sent + 1);
    assert_as_before(backend.record(&id), &before, "undone");
}

#[tokio::test]
async fn a_record_that_was_changed_and_deleted_is_as_before_the_change() {
    let mut backend = Backend::new().await;
    let id = backend.existing();
    let before = backend.record(&id);
    backend.update("incident", &id, &[("description", "second")], Answered).await;
    backend.delete("incident", &id, Answered).await;
    assert_eq!(backend.outcome().await, Outcome::Undone);
    assert_as_before(backend.record(&id), &before, "undone");
}

#[tokio::test]
async fn a_record_that_was_made_changed_and_deleted_is_not_looked_for_in_vain() {
    let mut backend = Backend::new().await;
    let id = backend.insert("incident", &[("short_description", "new")], Answered).await;
    backend.update("incident", &id, &[("description", "second")], Answered).await;
    assert_eq!(backend.outcome().await, Outcome::Undone);
    let id = backend.insert("incident", &[("short_description", "new")], Answered).await;
    backend.delete("incident", &id, Answered).await;
    let reports = backend.undo().await.expect("the instance is there");
    assert!(reports.iter().all(|report| report.outcome == Outcome::NothingToDo), "{reports:?}");
}

#[tokio::test]
async fn what_refers_to_a_made_record_is_deleted_first() {
    let mut backend = Backend::new().await;
    backend.sim.set(|switches| switches.cascade_stamps = true);
    let problem = backend.insert("problem", &[("short_description", "new")], Answered).await;
    let incident = backend.insert("incident", &[("problem_id", problem.as_str())], Answered).await;
    backend.update("problem", &problem, &[("short_description", "second")], Answered).await;
    let reports = backend.undo().await.expect("the instance is there");
    let order: Vec<_> =
        reports.iter().map(|report| (report.sys_id.clone(), report.outcome.clone())).collect();
    assert_eq!(order, [(incident, Outcome::Undone), (problem, Outcome::Undone)]);
}

#[tokio::test]
async fn many_changes_are_taken_back_side_by_side() {
    let mut backend = Backend::new().await;
    let ids: Vec<_> = (0..12).map(|_| backend.existing()).collect();
    let before: Vec<_> = ids.iter().map(|id| content(backend.record(id))).collect();
    for id in &ids {
        backend.update("incident", id, &[("description", "second")], Answered).await;
    }
    let reports = backend.undo().await.expect("the instance is there");
    assert!(reports.iter().all(|report| report.outcome == Outcome::Undone), "{reports:?}");
    assert!(reports.iter().map(|report| &report.sys_id).eq(ids.iter().rev()), "the last one first");
    let after: Vec<_> = ids.iter().map(|id| content(backend.record(id))).collect();
    assert_eq!(after, before);
}

#[tokio::test]
async fn fields_that_do_not_go_back_are_named() {
    let mut backend = Backend::new().await;
    let id = backend.existing();
    // A choice cannot be emptied.
    backend.update("incident", &id, &[("hold_reason", "1"), ("description", "second")], Answered).await;
    assert_eq!(backend.record(&id).expect("it is there")["hold_reason"], "1");
    assert_eq!(backend.outcome().await, partly(&["hold_reason"]));
    assert_eq!(backend.record(&id).expect("it is there")["description"], "first");
}

#[tokio::test]
async fn journals_keep_their_entries() {
    let mut backend = Backend::new().await;
    let id = backend.existing();
    backend.update("incident", &id, &[("work_notes", "hm"), ("description", "second")], Answered).await;
    assert_eq!(backend.outcome().await, partly(&["work_notes"]));
    assert_eq!(backend.record(&id).expect("it is there")["description"], "first");
    assert_eq!(backend.outcome().await, partly(&["work_notes"]), "again");
}

#[tokio::test]
async fn a_record_of_a_child_table_is_made_again_in_its_table() {
    let mut backend = Backend::new().await;
    let id = backend.existing();
    let fields = backend.record_in("task", &id).expect("it is there");
    backend.delete("task", &id, Answered).await;
    // The backend of this test has read fields of incidents too, which a foreign table of tasks does not have.
    assert_eq!(backend.outcome().await, Outcome::Left { why: Why::OtherClass(table_name("incident")) });
    let again = backend.record(&id).expect("it is there");
    assert_eq!(again["sys_class_name"], "incident");
    assert_eq!(again["number"], fields["number"]);
}

#[tokio::test]
async fn what_the_instance_refuses_is_reported_in_its_words() {
    let mut backend = Backend::new().await;
    let (refused, other) = (backend.existing(), backend.existing());
    for id in [&refused, &other] {
        backend.update("incident", id, &[("description", "second")], Answered).await;
    }
    backend.sim.edit().add_rule(BusinessRule {
        name: "no way back".to_owned(),
        table: "incident".to_owned(),
        phase: Phase::Before,
        operations: vec![Operation::Write],
        condition: format!("sys_id={refused}"),
        effect: RuleEffect::Abort,
    });
    let reports = backend.undo().await.expect("the instance is there");
    assert_eq!(reports[0].outcome, Outcome::Undone);
    let Outcome::Left { why: Why::Refused(words) } = &reports[1].outcome else { panic!("{reports:?}") };
    assert!(words.detail.as_deref().unwrap_or_default().contains("no way back"), "{words}");
    let again = backend.undo().await.expect("the instance is there");
    assert_eq!(again[0].outcome, Outcome::NothingToDo);
}

#[tokio::test]
async fn a_record_that_may_not_be_deleted_stays() {
    let mut backend = Backend::new().await;
    let id = backend.insert("incident", &[("short_description", "new")], Answered).await;
    backend.sim.edit().add_acl(AclRule::Table {
        table: "incident".to_owned(),
        user: None,
        operation: Operation::Delete,
        refuse: true,
    });
    assert!(matches!(backend.outcome().await, Outcome::Left { why: Why::Refused(_) }));
    assert!(backend.record(&id).is_some());
}
