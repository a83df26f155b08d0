//! Facts §1.6, §8.4, §10: what a write does, drops and refuses.

use serde_json::{Value, json};
use servicenow_sim::{AclRule, BusinessRule, Operation, Phase, RuleEffect};

use crate::support::{Caller, small};

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

fn new_incident(sim: &Caller) -> Value {
    sim.post("incident", &json!({ "short_description": "new" })).result()
}

#[test]
fn an_empty_incident_gets_the_recorded_defaults_and_a_location() {
    let sim = small();
    let reply = sim.call("POST", "/api/now/v2/table/incident", Some(&json!({})));
    assert_eq!(reply.status, 201);
    let row = reply.result();
    for (field, value) in [
        ("state", "1"),
        ("incident_state", "1"),
        ("impact", "3"),
        ("urgency", "3"),
        ("severity", "3"),
        ("priority", "5"),
        ("notify", "1"),
        ("escalation", "0"),
        ("active", "true"),
        ("made_sla", "true"),
        ("knowledge", "false"),
        ("category", "inquiry"),
        ("approval", "not requested"),
        ("upon_approval", "proceed"),
        ("upon_reject", "cancel"),
        ("reassignment_count", "0"),
        ("reopen_count", "0"),
        ("child_incidents", "0"),
        ("sys_mod_count", "0"),
        ("sys_domain_path", "/"),
        ("sys_class_name", "incident"),
        ("caller_id", ""),
    ] {
        assert_eq!(row[field], value, "{field}");
    }
    assert_eq!(row["sys_domain"]["value"], "global");
    assert_eq!(row["opened_by"]["value"], "6816f79cc0a8016401c5a33be04be441");
    assert_eq!(row["opened_at"], row["sys_created_on"]);
    assert_eq!(row["task_effective_number"], row["number"]);
    assert_eq!(text(&row["number"]), "INC0012346");
    let location = format!("{}/api/now/v2/table/incident/{}", sim.sim.url(), text(&row["sys_id"]));
    assert_eq!(reply.header("location"), Some(location.as_str()));
}

#[test]
fn only_the_first_object_of_an_array_counts() {
    let sim = small();
    let before = sim.count("incident", "");
    let row = sim
        .post("incident", &json!([{ "short_description": "one" }, { "short_description": "two" }]))
        .result();
    assert_eq!(row["short_description"], "one");
    assert_eq!(sim.count("incident", ""), before + 1);
}

#[test]
fn put_keeps_absent_fields_as_patch_does() {
    let sim = small();
    let id = sim.id_of("incident", "number=INC0012345");
    let row =
        sim.call("PUT", &format!("/api/now/table/incident/{id}"), Some(&json!({ "urgency": "1" }))).result();
    assert_eq!(row["short_description"], "Shield generator hums in a minor key");
    assert_eq!(row["sys_mod_count"], "4");
    assert_eq!(row["sys_updated_by"], "admin");
}

#[test]
fn the_answer_of_a_write_honours_the_reading_parameters_or_is_left_out() {
    let mut sim = small();
    let id = sim.id_of("incident", "number=INC0012345");
    let target = format!(
        "/api/now/table/incident/{id}?sysparm_fields=state,caller_id&sysparm_display_value=true&sysparm_exclude_reference_link=true"
    );
    let row = sim.call("PATCH", &target, Some(&json!({ "state": "3", "hold_reason": "1" }))).result();
    assert_eq!(row, json!({ "caller_id": "Ess Requester", "state": "On Hold" }));
    sim.headers.push(("X-no-response-body".to_owned(), "true".to_owned()));
    assert!(sim.post("incident", &json!({})).body.is_empty());
}

#[test]
fn unknown_fields_bad_choices_and_emptied_choices_are_dropped_silently() {
    let sim = small();
    let row = sim
        .post("incident", &json!({ "banana": "1", "category": "no such", "urgency": "2", "impact": "" }))
        .result();
    assert_eq!(
        (&row["category"], &row["urgency"], &row["impact"]),
        (&json!("inquiry"), &json!("2"), &json!("3"))
    );
    let id = text(&row["sys_id"]).to_owned();
    let row = sim
        .patch("incident", &id, &json!({ "state": "", "urgency": "9", "short_description": "x" }))
        .result();
    assert_eq!((&row["state"], &row["urgency"]), (&json!("1"), &json!("2")));
    let row = sim.patch("incident", &id, &json!({ "short_description": "" })).result();
    assert_eq!(row["short_description"], "", "other fields can be emptied");
    sim.sim.edit().set_property("glide.rest.choice.allow_non_existing_value", "true").expect("a property");
    let row = sim.patch("incident", &id, &json!({ "category": "brand new" })).result();
    assert_eq!(row["category"], "brand new");
}

#[test]
fn a_field_that_the_caller_may_not_write_stays_as_it_was() {
    let mut sim = small();
    sim.sim.edit().add_acl(AclRule::FieldWrite {
        table: "incident".into(),
        field: "urgency".into(),
        user: None,
    });
    let id = sim.id_of("incident", "number=INC0012345");
    sim.log_in("fdw.integration");
    let reply = sim.patch("incident", &id, &json!({ "urgency": "3", "description": "d" }));
    assert_eq!(reply.status, 200);
    assert_eq!((&reply.result()["urgency"], &reply.result()["description"]), (&json!("2"), &json!("d")));
}

#[test]
fn strictly_read_only_and_computed_columns_stay_and_display_ones_are_written() {
    let sim = small();
    let id = sim.id_of("u_pg_widget", "u_name=Widget ordinary");
    let body = json!({ "u_strict": "x", "u_calculated": "7", "u_display_only": "y", "u_inactive": "z" });
    let row = sim.patch("u_pg_widget", &id, &body).result();
    assert_eq!((&row["u_strict"], &row["u_calculated"]), (&json!(""), &json!("")));
    assert_eq!((&row["u_display_only"], &row["u_inactive"]), (&json!("y"), &json!("z")));
}

#[test]
fn a_users_password_is_ignored_with_success() {
    let sim = small();
    let id = sim.id_of("sys_user", "user_name=itil.user");
    let before = sim.sim.record("sys_user", &id).expect("a user")["user_password"].clone();
    assert_eq!(sim.patch("sys_user", &id, &json!({ "user_password": "changed" })).status, 200);
    assert_eq!(sim.sim.record("sys_user", &id).expect("a user")["user_password"], before);
}

#[test]
fn a_client_made_id_is_honoured_and_its_replay_is_refused() {
    let sim = small();
    let body = json!({ "sys_id": "AAAABBBBCCCCDDDD0000111122223333", "short_description": "mine" });
    assert_eq!(sim.post("incident", &body).result()["sys_id"], body["sys_id"]);
    let reply = sim.post("incident", &body);
    assert_eq!(reply.status, 403);
    let (message, detail) = reply.error();
    assert_eq!(message, "Operation Failed");
    assert_eq!(
        detail,
        "Unique Key violation detected by database (Duplicate entry 'AAAABBBBCCCCDDDD0000111122223333' for key 'PRIMARY')"
    );
    assert_eq!(sim.get("/api/now/table/incident/aaaabbbbccccdddd0000111122223333").status, 200);
}

#[test]
fn system_columns_are_writable_unless_the_property_forbids_it() {
    let mut sim = small();
    sim.log_in("fdw.integration");
    let id = text(&new_incident(&sim)["sys_id"]).to_owned();
    let target = format!("/api/now/table/incident/{id}?sysparm_suppress_auto_sys_field=true");
    let row = sim
        .call(
            "PATCH",
            &target,
            Some(&json!({ "sys_updated_on": "2001-02-03 04:05:06", "sys_updated_by": "me" })),
        )
        .result();
    assert_eq!(
        (&row["sys_updated_on"], &row["sys_updated_by"]),
        (&json!("2001-02-03 04:05:06"), &json!("me"))
    );
    let row = sim
        .patch("incident", &id, &json!({ "sys_updated_on": "2001-02-03 04:05:06", "description": "d" }))
        .result();
    assert_ne!(row["sys_updated_on"], "2001-02-03 04:05:06", "without the parameter the stamp is its own");
    sim.sim.edit().set_property("glide.rest.table_api.admin_only_sys_fields", "true").expect("a property");
    let reply = sim.post("incident", &json!({ "sys_id": "00000000000000000000000000000001" }));
    assert_ne!(reply.result()["sys_id"], "00000000000000000000000000000001");
}

#[test]
fn an_update_that_changes_nothing_leaves_the_stamps_alone() {
    let sim = small();
    let id = sim.id_of("incident", "number=INC0012345");
    let before = sim.sim.record("incident", &id);
    let row = sim
        .patch("incident", &id, &json!({ "state": "2", "assigned_to": "46d44a40c0a8016400b98a0681a55e77" }))
        .result();
    assert_eq!(row["sys_mod_count"], "3");
    assert_eq!(sim.sim.record("incident", &id), before);
}

#[test]
fn priority_follows_impact_and_urgency() {
    let sim = small();
    for (impact, urgency, priority) in [
        ("1", "1", "1"),
        ("1", "2", "2"),
        ("1", "3", "3"),
        ("2", "1", "2"),
        ("2", "2", "3"),
        ("2", "3", "4"),
        ("3", "1", "3"),
        ("3", "2", "4"),
        ("3", "3", "5"),
    ] {
        let row =
            sim.post("incident", &json!({ "impact": impact, "urgency": urgency, "priority": "1" })).result();
        assert_eq!(row["priority"], priority, "{impact},{urgency}");
    }
}

#[test]
fn states_drive_the_fields_that_depend_on_them() {
    let sim = small();
    let id = text(&new_incident(&sim)["sys_id"]).to_owned();
    let row = sim.patch("incident", &id, &json!({ "incident_state": "3", "hold_reason": "1" })).result();
    assert_eq!((&row["state"], &row["hold_reason"]), (&json!("3"), &json!("1")));
    let close = json!({ "state": "6", "close_code": "User error", "close_notes": "n" });
    let row = sim.patch("incident", &id, &close).result();
    assert_eq!(
        (&row["incident_state"], &row["active"], &row["hold_reason"]),
        (&json!("6"), &json!("true"), &json!(""))
    );
    assert_eq!(row["resolved_by"]["value"], "6816f79cc0a8016401c5a33be04be441");
    let row = sim.patch("incident", &id, &json!({ "state": "7" })).result();
    assert_eq!(row["active"], "false");
    assert_ne!(row["closed_at"], "");
    let row = sim.patch("incident", &id, &json!({ "state": "2" })).result();
    assert_eq!(
        (&row["active"], &row["reopen_count"], &row["closed_at"], &row["resolved_at"]),
        (&json!("true"), &json!("1"), &json!(""), &json!(""))
    );
}

#[test]
fn reassigning_counts() {
    let sim = small();
    let id = sim.id_of("incident", "number=INC0012345");
    let group = sim.id_of("sys_user_group", "name=Hardware");
    let row = sim.patch("incident", &id, &json!({ "assignment_group": group })).result();
    assert_eq!(row["reassignment_count"], "1");
}

#[test]
fn a_data_policy_refuses_with_labels() {
    let sim = small();
    let id = text(&new_incident(&sim)["sys_id"]).to_owned();
    let reply =
        sim.patch("incident", &id, &json!({ "state": "6", "close_notes": "n", "close_code": "dropped" }));
    assert_eq!(reply.status, 403);
    assert_eq!(reply.error().1, "Data Policy Exception: The following fields are mandatory: Resolution code");
    let reply = sim.patch("incident", &id, &json!({ "state": "7" }));
    assert_eq!(
        reply.error().1,
        "Data Policy Exception: The following fields are mandatory: Resolution code, Resolution notes"
    );
    assert_eq!(sim.sim.record("incident", &id).expect("kept")["state"], "1");
}

#[test]
fn a_rule_aborts_with_the_platforms_text() {
    let sim = small();
    let reply = sim.post("x_acme_app_thing", &json!({ "name": "forbidden fruit" }));
    assert_eq!(reply.status, 403);
    let (message, detail) = reply.error();
    assert_eq!(message, "Operation Failed");
    let detail = text(&detail).to_owned();
    assert!(
        detail.starts_with(
            "Operation against file 'x_acme_app_thing' was aborted by Business Rule 'Acme guard^"
        ),
        "{detail}"
    );
    assert!(detail.ends_with("'. Business Rule Stack:Acme guard"), "{detail}");
    assert_eq!(sim.count("x_acme_app_thing", "nameLIKEforbidden"), 0);
}

#[test]
fn a_business_rule_record_with_abort_action_refuses_children_too() {
    let sim = small();
    let rule = json!({ "name": "No cats", "collection": "task", "active": "true", "when": "before", "action_update": "true",
        "action_insert": "true", "abort_action": "true", "filter_condition": "short_descriptionLIKEcat" });
    let id = sim.post("sys_script", &rule).result()["sys_id"].clone();
    let reply = sim.post("incident", &json!({ "short_description": "a cat" }));
    let expected = format!(
        "Operation against file 'incident' was aborted by Business Rule 'No cats^{}'. Business Rule Stack:No cats",
        text(&id)
    );
    assert_eq!(reply.error().1, expected);
    assert_eq!(sim.post("incident", &json!({ "short_description": "a dog" })).status, 201);
}

#[test]
fn rules_can_set_fields_and_write_to_other_tables() {
    let sim = small();
    let edit = sim.sim.edit();
    let table =
        edit.insert("sys_db_object", &[("name", "u_pg_changes"), ("label", "Changes")]).expect("a table");
    assert!(!table.is_empty());
    for column in ["u_row", "u_op"] {
        edit.add_column("u_pg_changes", column, column, "string").expect("a column");
    }
    let effect = RuleEffect::Insert {
        table: "u_pg_changes".into(),
        values: vec![("u_row".into(), "${table}/${sys_id}".into()), ("u_op".into(), "${operation}".into())],
    };
    let rule = |phase, effect| BusinessRule {
        name: "capture".into(),
        table: "incident".into(),
        phase,
        operations: vec![Operation::Create, Operation::Write, Operation::Delete],
        condition: String::new(),
        effect,
    };
    edit.add_rule(rule(Phase::After, effect));
    edit.add_rule(rule(
        Phase::Before,
        RuleEffect::Set { field: "correlation_display".into(), value: "seen".into() },
    ));
    let row = new_incident(&sim);
    assert_eq!(row["correlation_display"], "seen");
    let id = text(&row["sys_id"]).to_owned();
    sim.patch("incident", &id, &json!({ "description": "d" }));
    sim.delete("incident", &id);
    let ops: Vec<Value> = sim
        .list("u_pg_changes", "ORDERBYsys_created_on^ORDERBYsys_id", "")
        .rows()
        .iter()
        .map(|r| r["u_op"].clone())
        .collect();
    assert_eq!(ops.len(), 3);
    assert_eq!(sim.count("u_pg_changes", &format!("u_row=incident/{id}")), 3);
}

#[test]
fn unique_columns_refuse_a_second_value() {
    let sim = small();
    let code = sim.list("x_acme_app_thing", "", "sysparm_limit=1").rows()[0]["code"].clone();
    let reply = sim.post("x_acme_app_thing", &json!({ "name": "again", "code": code }));
    assert_eq!(reply.status, 403);
    assert_eq!(
        reply.error().1,
        format!(
            "Unique Key violation detected by database (Duplicate entry '{}' for key 'code')",
            text(&code)
        )
    );
}

#[test]
fn journals_append_and_an_empty_note_does_nothing() {
    let sim = small();
    let id = sim.id_of("incident", "number=INC0012345");
    let row =
        sim.patch("incident", &id, &json!({ "work_notes": "first\nline", "comments": "hello" })).result();
    assert_eq!((&row["work_notes"], &row["sys_mod_count"]), (&json!(""), &json!("4")));
    let entries = sim.list("sys_journal_field", &format!("element_id={id}^ORDERBYelement"), "").rows();
    assert_eq!(entries.len(), 2);
    assert_eq!(
        (&entries[1]["element"], &entries[1]["value"], &entries[1]["name"]),
        (&json!("work_notes"), &json!("first\nline"), &json!("incident"))
    );
    assert!(entries[0].get("sys_updated_on").is_none(), "insert-only");
    let row = sim.patch("incident", &id, &json!({ "work_notes": "" })).result();
    assert_eq!(row["sys_mod_count"], "4");
}

#[test]
fn dates_are_utc_unless_input_is_display() {
    let mut sim = small();
    sim.log_in("pacific.user");
    let id = text(&new_incident(&sim)["sys_id"]).to_owned();
    let row = sim.patch("incident", &id, &json!({ "follow_up": "2026-01-02 03:04:05" })).result();
    assert_eq!(row["follow_up"], "2026-01-02 03:04:05");
    let target = format!("/api/now/table/incident/{id}?sysparm_input_display_value=true");
    let body = json!({ "follow_up": "2026-01-02 03:04:05", "assigned_to": "Gurney Halleck", "category": "Network", "state": "In Progress" });
    let row = sim.call("PATCH", &target, Some(&body)).result();
    assert_eq!(row["follow_up"], "2026-01-02 11:04:05");
    assert_eq!(row["assigned_to"]["value"], "46d44a40c0a8016400b98a0681a55e77");
    assert_eq!((&row["category"], &row["state"]), (&json!("network"), &json!("2")));
}

#[test]
fn a_reference_to_nothing_is_stored_as_it_is() {
    let sim = small();
    let id = "ffffffffffffffffffffffffffffffff";
    let row = sim.post("incident", &json!({ "caller_id": id })).result();
    assert_eq!(row["caller_id"]["value"], id);
    let row = sim.post("incident", &json!({ "caller_id": "Gurney Halleck" })).result();
    assert_eq!(row["caller_id"]["value"], "46d44a40c0a8016400b98a0681a55e77", "a display value is looked up");
}

#[test]
fn deleting_clears_deletes_restricts_or_leaves_references() {
    let sim = small();
    // Clear is the default rule.
    let incident = sim.ids("incident", "problem_idISNOTEMPTY").remove(0);
    let before = sim.sim.record("incident", &incident).expect("an incident");
    assert_eq!(sim.delete("problem", &before["problem_id"]).status, 204);
    let after = sim.sim.record("incident", &incident).expect("an incident");
    assert_eq!(after["problem_id"], "");
    assert_eq!(after["sys_updated_on"], before["sys_updated_on"], "without a stamp");
    // Delete takes the change's tasks along.
    let change = sim.ids("change_request", "").remove(0);
    let tasks = sim.count("change_task", &format!("change_request={change}"));
    let all = sim.count("change_task", "");
    assert_eq!(sim.delete("change_request", &change).status, 204);
    assert_eq!(sim.count("change_task", ""), all - tasks);
    // Restrict refuses.
    let owner = sim.list("x_acme_app_thing", "ownerISNOTEMPTY", "sysparm_exclude_reference_link=true").rows()
        [0]["owner"]
        .clone();
    assert_eq!(sim.delete("sys_user", text(&owner)).status, 403);
    // None leaves the reference dangling.
    let child = sim
        .list("x_acme_app_thing", "parentISNOTEMPTY", "sysparm_exclude_reference_link=true")
        .rows()
        .remove(0);
    assert_eq!(sim.delete("x_acme_app_thing", text(&child["parent"])).status, 204);
    assert_eq!(
        sim.sim.record("x_acme_app_thing", text(&child["sys_id"])).expect("a child")["parent"],
        text(&child["parent"])
    );
}

#[test]
fn a_deleted_row_is_gone_and_a_second_delete_is_404() {
    let sim = small();
    let id = sim.id_of("incident", "number=INC0012345");
    let reply = sim.delete("incident", &id);
    assert_eq!((reply.status, reply.body.len()), (204, 0));
    assert_eq!(sim.delete("incident", &id).status, 404);
    assert_eq!(sim.patch("incident", &id, &json!({})).status, 404);
}

#[test]
fn deletions_are_filed_under_the_real_class_and_forgotten_after_the_horizon() {
    let sim = small();
    let id = sim.ids("cmdb_ci_linux_server", "").remove(0);
    assert_eq!(sim.delete("cmdb_ci", &id).status, 204);
    assert_eq!(sim.count("sys_audit_delete", "tablename=cmdb_ci"), 0);
    let row = sim.list("sys_audit_delete", "tablename=cmdb_ci_linux_server", "").rows().remove(0);
    assert_eq!(row["documentkey"], id.as_str());
    assert!(text(&row["payload"]).contains(&format!("<sys_id>{id}</sys_id>")));
    assert!(text(&row["display_value"]).starts_with("lnx-"));
    sim.sim.set(|s| s.audit_delete_horizon_s = Some(3600));
    sim.sim.clock().advance(std::time::Duration::from_secs(7200));
    assert_eq!(sim.count("sys_audit_delete", ""), 0);
}

#[test]
fn an_audited_change_is_kept_field_by_field() {
    let sim = small();
    let id = sim.id_of("incident", "number=INC0012345");
    sim.patch("incident", &id, &json!({ "urgency": "1" }));
    let rows = sim.list("sys_audit", &format!("documentkey={id}^fieldname=urgency"), "").rows();
    assert_eq!(
        (&rows[0]["oldvalue"], &rows[0]["newvalue"], &rows[0]["user"]),
        (&json!("2"), &json!("1"), &json!("admin"))
    );
    assert_eq!(
        sim.count("sys_audit", &format!("documentkey={id}^fieldname=priority")),
        1,
        "derived fields too"
    );
}

#[test]
fn reclassification_keeps_the_id_and_moves_the_row() {
    let sim = small();
    let id = sim.ids("cmdb_ci_win_server", "").remove(0);
    let row =
        sim.patch("cmdb_ci_win_server", &id, &json!({ "sys_class_name": "cmdb_ci_linux_server" })).result();
    assert_eq!(row["sys_class_name"], "cmdb_ci_linux_server");
    assert_eq!(sim.get(&format!("/api/now/table/cmdb_ci_win_server/{id}")).status, 404);
    assert_eq!(sim.get(&format!("/api/now/table/cmdb_ci_linux_server/{id}")).status, 200);
    assert_eq!(sim.count("sys_audit_delete", ""), 0);
}

#[test]
fn malformed_and_oversized_bodies_are_400() {
    let sim = small();
    let reply = sim
        .try_call("POST", "/api/now/table/incident", Some(("application/json", "{\"a\":")))
        .expect("an answer");
    assert_eq!((reply.status, reply.error().0.as_str()), (400, "Exception while reading request"));
    let big = format!("{{\"description\":\"{}\"}}", "x".repeat(10_485_760));
    let reply =
        sim.try_call("POST", "/api/now/table/incident", Some(("application/json", &big))).expect("an answer");
    assert_eq!(reply.status, 400);
    assert_eq!(
        reply.error().1,
        format!(
            "Rejected large REST payload with content-length = {} bytes. Max allowed: 10485760 bytes.",
            big.len()
        )
    );
}

#[test]
fn control_characters_and_very_long_text_survive() {
    let sim = small();
    let odd = format!("nul \u{0} cr\r\nlf tab\t {} end ", "long ".repeat(20_000));
    let row = sim.post("incident", &json!({ "description": odd })).result();
    assert_eq!(text(&row["description"]), odd);
}

#[test]
fn tables_columns_and_choices_are_made_by_post() {
    let sim = small();
    let table = sim.post("sys_db_object", &json!({ "name": "pg_queue", "label": "Queue" })).result();
    assert_eq!(table["name"], "u_pg_queue", "the instance renames");
    let column = json!({ "name": "u_pg_queue", "element": "row", "column_label": "Row", "internal_type": { "value": "string" }, "max_length": "100" });
    let column = sim.post("sys_dictionary", &column).result();
    assert_eq!(column["element"], "u_row");
    let choice = json!({ "name": "u_pg_queue", "element": "u_kind", "value": "a", "label": "Alpha" });
    sim.post(
        "sys_dictionary",
        &json!({ "name": "u_pg_queue", "element": "u_kind", "internal_type": "string", "choice": "1" }),
    );
    assert_eq!(sim.post("sys_choice", &choice).status, 201);
    let row = sim
        .call(
            "POST",
            "/api/now/table/u_pg_queue?sysparm_display_value=all",
            Some(&json!({ "u_row": "r", "u_kind": "a" })),
        )
        .result();
    assert_eq!(row["u_kind"], json!({ "display_value": "Alpha", "value": "a" }));
    assert!(row.get("sys_updated_on").is_some());
    assert_eq!(
        sim.post("sys_db_object", &json!({ "name": "u_pg_queue" })).status,
        403,
        "a name is used once"
    );
    assert_eq!(sim.delete("sys_dictionary", text(&column["sys_id"])).status, 204);
    let row = sim.list("u_pg_queue", "", "").rows().remove(0);
    assert!(row.get("u_row").is_none(), "dropping the row drops the column");
    assert_eq!(sim.delete("sys_db_object", text(&table["sys_id"])).status, 204);
    assert_eq!(sim.get("/api/now/table/u_pg_queue").status, 400);
}

#[test]
fn a_column_added_to_a_parent_appears_in_its_children() {
    let sim = small();
    sim.post(
        "sys_dictionary",
        &json!({ "name": "task", "element": "u_extra", "internal_type": "integer", "default_value": "7" }),
    );
    let row = sim.list("incident", "number=INC0012345", "").rows().remove(0);
    assert_eq!(row["u_extra"], "");
    assert_eq!(new_incident(&sim)["u_extra"], "7");
    assert_eq!(
        sim.count("sys_dictionary", "element=u_extra"),
        1,
        "inherited columns have no row of their own"
    );
}

#[test]
fn parallel_writers_lose_nothing() {
    let sim = small();
    let id = sim.id_of("incident", "number=INC0012345");
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let (sim, id) = (&sim, &id);
            scope.spawn(move || {
                for n in 0..10 {
                    let text = format!("w{writer} {n}");
                    assert_eq!(sim.patch("incident", id, &json!({ "description": text })).status, 200);
                    assert_eq!(sim.post("incident", &json!({ "correlation_id": "parallel" })).status, 201);
                }
            });
        }
    });
    assert_eq!(sim.sim.record("incident", &id).expect("a record")["sys_mod_count"], "83");
    assert_eq!(sim.count("incident", "correlation_id=parallel"), 80);
    let rows = sim.list("incident", "correlation_id=parallel", "sysparm_fields=number").rows();
    let numbers: std::collections::BTreeSet<&str> = rows.iter().map(|r| text(&r["number"])).collect();
    assert_eq!(numbers.len(), 80, "numbers are given once");
}

#[test]
fn an_update_never_changes_the_id() {
    let sim = small();
    let id = sim.id_of("incident", "number=INC0012345");
    let target = format!("/api/now/table/incident/{id}?sysparm_suppress_auto_sys_field=true");
    let row =
        sim.call("PATCH", &target, Some(&json!({ "sys_id": "0".repeat(32), "description": "d" }))).result();
    assert_eq!(row["sys_id"], id.as_str());
}
