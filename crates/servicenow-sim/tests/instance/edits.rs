//! Facts §8.1: what happens inside the instance without REST.

use std::time::Duration;

use servicenow_sim::EditError;

use crate::support::{Caller, small};

fn known(sim: &Caller) -> String {
    sim.id_of("incident", "number=INC0012345")
}

#[test]
fn an_edit_stamps_and_derives_as_a_script_does() {
    let sim = small();
    let id = known(&sim);
    let (edit, fields) = (
        sim.sim.edit().as_user("gurney.halleck"),
        [("state", "6"), ("close_code", "User error"), ("close_notes", "n")],
    );
    edit.update("incident", &id, &fields).expect("an edit");
    let row = sim.sim.record("incident", &id).expect("a record");
    assert_eq!(
        (row["sys_mod_count"].as_str(), row["sys_updated_by"].as_str(), row["incident_state"].as_str()),
        ("4", "gurney.halleck", "6")
    );
    assert_eq!(row["resolved_by"], "46d44a40c0a8016400b98a0681a55e77");
}

#[test]
fn without_auto_sys_fields_the_stamps_stay() {
    let sim = small();
    let id = known(&sim);
    let before = sim.sim.record("incident", &id).expect("a record");
    sim.sim
        .edit()
        .without_auto_sys_fields()
        .update("incident", &id, &[("short_description", "hidden")])
        .expect("an edit");
    let after = sim.sim.record("incident", &id).expect("a record");
    assert_eq!(after["short_description"], "hidden");
    for stamp in ["sys_updated_on", "sys_updated_by", "sys_mod_count"] {
        assert_eq!(before[stamp], after[stamp]);
    }
}

#[test]
fn without_workflow_no_rule_runs_and_a_delete_leaves_no_trace() {
    let sim = small();
    let id = known(&sim);
    sim.sim.edit().without_workflow().update("incident", &id, &[("state", "7")]).expect("no policy");
    let row = sim.sim.record("incident", &id).expect("a record");
    assert_eq!(
        (row["active"].as_str(), row["incident_state"].as_str(), row["sys_mod_count"].as_str()),
        ("true", "2", "4")
    );
    sim.sim.edit().without_workflow().delete("incident", &id).expect("a delete");
    assert_eq!(sim.count("sys_audit_delete", ""), 0);
    assert!(matches!(sim.sim.edit().update("incident", &id, &[]), Err(EditError::NoRecord(_))));
}

#[test]
fn renaming_a_user_changes_display_values_without_touching_rows() {
    let sim = small();
    let id = known(&sim);
    let before = sim.sim.record("incident", &id);
    sim.sim.edit().rename_user("gurney.halleck", "Gurney the Bald").expect("an edit");
    let row = sim
        .list(
            "incident",
            "number=INC0012345",
            "sysparm_display_value=true&sysparm_exclude_reference_link=true",
        )
        .rows()
        .remove(0);
    assert_eq!(row["assigned_to"], "Gurney the Bald");
    assert_eq!(sim.sim.record("incident", &id), before);
}

#[test]
fn a_commit_delay_makes_old_stamps_appear_late() {
    let sim = small();
    sim.sim.clock().hold(true);
    sim.sim.set(|s| s.commit_delay_ms = 30_000);
    let id = known(&sim);
    let stamp = sim.sim.clock().now().format("%Y-%m-%d %H:%M:%S").to_string();
    sim.sim.edit().update("incident", &id, &[("short_description", "late")]).expect("an edit");
    let new = sim.sim.edit().insert("incident", &[("short_description", "late too")]).expect("an insert");
    assert_eq!(sim.count("incident", "short_descriptionLIKElate"), 0);
    sim.sim.clock().advance(Duration::from_secs(29));
    assert!(sim.sim.record("incident", &new).is_none());
    sim.sim.clock().advance(Duration::from_secs(2));
    assert_eq!(sim.count("incident", "short_descriptionLIKElate"), 2);
    assert_eq!(sim.sim.record("incident", &id).expect("a record")["sys_updated_on"], stamp);
}

#[test]
fn mass_updates_and_deletes_go_by_query() {
    let sim = small();
    let open = sim.count("incident", "active=true");
    assert_eq!(
        sim.sim
            .edit()
            .update_where("incident", "active=true", &[("correlation_id", "mass")])
            .expect("an edit"),
        open
    );
    assert_eq!(sim.count("incident", "correlation_id=mass"), open);
    assert_eq!(sim.sim.edit().delete_where("incident", "correlation_id=mass").expect("a delete"), open);
    assert_eq!(sim.count("sys_audit_delete", "tablename=incident"), open);
}

#[test]
fn columns_come_and_go() {
    let sim = small();
    let name = sim.sim.edit().add_column("incident", "mood", "Mood", "string").expect("a column");
    assert_eq!(name, "u_mood");
    sim.sim.edit().update("incident", &known(&sim), &[("u_mood", "merry")]).expect("an edit");
    assert_eq!(sim.count("incident", "u_mood=merry"), 1);
    sim.sim.edit().remove_column("incident", "u_mood").expect("an edit");
    let row = sim.list("incident", "number=INC0012345", "").rows().remove(0);
    assert_eq!(row.as_object().expect("a row").len(), 92);
    assert!(matches!(
        sim.sim.edit().update("incident", &known(&sim), &[("u_mood", "x")]),
        Err(EditError::NoColumn(_))
    ));
}

#[test]
fn stamps_have_one_second_resolution_and_the_clock_can_be_set_back() {
    let sim = small();
    sim.sim.clock().hold(true);
    let id = known(&sim);
    let stamp = |text: &str| {
        sim.sim.edit().update("incident", &id, &[("description", text)]).expect("an edit");
        sim.sim.record("incident", &id).expect("a record")["sys_updated_on"].clone()
    };
    let first = stamp("one");
    assert_eq!(stamp("two"), first);
    sim.sim.clock().step(chrono::TimeDelta::seconds(-60));
    assert!(stamp("three") < first);
}
