//! Facts §1.5, §7.3, §9: who sees and does what.

use serde_json::json;
use servicenow_sim::{AclRule, Operation};

use crate::support::small;

#[test]
fn row_acls_leave_the_count_unreduced_and_pages_short_or_empty() {
    let mut sim = small();
    let all = sim.count("incident", "");
    sim.log_in("ess.user");
    let (mut seen, mut empty_in_the_middle, mut last_full) = (0, false, 0);
    for offset in (0..all).step_by(3) {
        let page = sim.list("incident", "ORDERBYsys_id", &format!("sysparm_limit=3&sysparm_offset={offset}"));
        assert_eq!(page.total(), all, "counted before ACLs");
        let rows = page.rows().len();
        empty_in_the_middle |= rows == 0 && seen > 0;
        if rows > 0 {
            last_full = offset;
        }
        seen += rows;
    }
    let mine = sim.sim.truth("incident", "ess.user").expect("truth").len();
    assert!(mine > 0 && mine < all);
    assert_eq!(seen, mine);
    assert!(empty_in_the_middle && last_full > 3, "empty pages in the middle");
}

#[test]
fn a_hidden_row_is_404_as_a_missing_one() {
    let mut sim = small();
    let id = sim.ids("incident", "caller_id!=javascript:gs.getUserID()").remove(0);
    let mine = sim.id_of("incident", "number=INC0012345");
    sim.log_in("ess.user");
    assert_eq!(sim.get(&format!("/api/now/table/incident/{id}")).status, 404);
    assert_eq!(sim.patch("incident", &id, &json!({ "short_description": "x" })).status, 404);
    assert_eq!(sim.get(&format!("/api/now/table/incident/{mine}")).status, 200);
}

#[test]
fn fields_that_may_not_be_read_are_left_out() {
    let mut sim = small();
    let rule =
        AclRule::FieldRead { table: "task".into(), field: "priority".into(), user: Some("itil.user".into()) };
    sim.sim.edit().add_acl(rule);
    sim.log_in("itil.user");
    let row = sim.list("incident", "", "sysparm_limit=1").rows().remove(0);
    assert!(row.get("priority").is_none() && row.get("impact").is_some());
    let row = sim.list("incident", "", "sysparm_limit=1&sysparm_fields=priority,impact").rows().remove(0);
    assert!(row.get("priority").is_none());
    let reply = sim.list("incident", "priority=1", "");
    assert_eq!((reply.status, reply.error().0.as_str()), (403, "Insufficient rights to query records"));
    assert_eq!(sim.list("incident", "ORDERBYpriority", "").status, 403, "sorting is querying");
}

#[test]
fn query_acls_tell_equality_from_ranges() {
    let mut sim = small();
    sim.sim.edit().add_acl(AclRule::QueryRange {
        table: "incident".into(),
        field: "number".into(),
        user: None,
    });
    sim.log_in("itil.user");
    assert_eq!(sim.list("incident", "number=INC0012345", "").status, 200);
    assert_eq!(sim.list("incident", "numberSTARTSWITHINC", "").status, 403);
    assert_eq!(sim.list("incident", "ORDERBYnumber", "").status, 403);
    sim.sim.edit().clear_acls();
    sim.sim.edit().add_acl(AclRule::QueryMatch {
        table: "incident".into(),
        field: "number".into(),
        user: None,
    });
    assert_eq!(sim.list("incident", "number=INC0012345", "").status, 403);
    assert_eq!(sim.list("incident", "numberSTARTSWITHINC", "").status, 200);
}

#[test]
fn metadata_hides_from_an_itil_user_as_measured() {
    let mut sim = small();
    sim.log_in("itil.user");
    let reply = sim.list("sys_dictionary", "", "sysparm_limit=5");
    assert!(reply.rows().is_empty() && reply.total() > 1000, "200 and no row");
    assert_eq!(sim.list("sys_db_object", "", "sysparm_limit=1").status, 200, "itil may");
    let choice = sim.list("sys_choice", "", "sysparm_limit=1").rows().remove(0);
    assert_eq!(choice.as_object().expect("a row").keys().collect::<Vec<_>>(), ["label"]);
    assert_eq!(sim.list("sys_choice", "name=incident", "").status, 403);
    for table in ["sys_properties", "sys_script", "sys_audit_delete", "sys_audit", "oauth_entity"] {
        assert!(sim.list(table, "", "").rows().is_empty(), "{table}");
    }
    sim.log_in("ess.user");
    assert_eq!(sim.list("sys_db_object", "", "").status, 403, "below itil");
}

#[test]
fn the_integration_user_reads_the_metadata_of_a_mirror() {
    let mut sim = small();
    sim.log_in("fdw.integration");
    for table in [
        "sys_db_object",
        "sys_dictionary",
        "sys_choice",
        "sys_glide_object",
        "sys_documentation",
        "sys_dictionary_override",
    ] {
        let reply = sim.list(table, "ORDERBYsys_id", "sysparm_limit=5");
        assert!(!reply.rows().is_empty(), "{table}");
    }
    assert!(!sim.list("sys_choice", "name=incident^element=state", "").rows().is_empty());
    sim.delete("incident", &sim.id_of("incident", "number=INC0012345"));
    assert_eq!(sim.count("sys_audit_delete", "tablename=incident"), 1);
    assert_eq!(sim.post("sys_db_object", &json!({ "name": "x" })).status, 403);
    assert_eq!(sim.post("sys_dictionary", &json!({ "name": "incident", "element": "x" })).status, 403);
}

#[test]
fn ui_meta_and_the_table_schema_work_without_dictionary_rights() {
    let mut sim = small();
    sim.log_in("itil.user");
    let columns = sim.get("/api/now/ui/meta/incident").result()["columns"].clone();
    assert_eq!(columns.as_object().expect("columns").len(), 92);
    assert_eq!(columns["state"]["choices"][1]["parameters"]["name"], "incident");
    let tables = sim.get("/api/now/doc/table/schema").rows();
    assert!(tables.iter().any(|t| t["value"] == "incident"));
    assert!(!tables.iter().any(|t| t["value"] == "sys_dictionary"));
    let xml = sim.get("/incident.do?SCHEMA").text();
    assert!(xml.contains("<element name=\"caller_id\" internal_type=\"reference\" max_length=\"32\" reference_table=\"sys_user\"/>"), "{xml}");
    sim.log_in("ess.user");
    let columns = sim.get("/api/now/ui/meta/incident").result()["columns"].clone();
    assert!(columns.get("work_notes").is_none(), "only readable ones");
    assert!(sim.get("/problem.do?SCHEMA").text().contains("<error>"));
}

#[test]
fn writes_need_their_roles() {
    let mut sim = small();
    let id = sim.id_of("incident", "number=INC0012345");
    sim.log_in("readonly.user");
    let reply = sim.patch("incident", &id, &json!({ "urgency": "3" }));
    assert_eq!(reply.status, 403);
    assert_eq!(
        reply.error(),
        ("Operation Failed".to_owned(), "ACL Exception due to insufficient rights".into())
    );
    assert_eq!(sim.post("incident", &json!({})).status, 403);
    assert_eq!(sim.delete("incident", &id).status, 403);
    assert_eq!(sim.list("incident", "", "sysparm_limit=1").rows().len(), 1, "but it reads");
    sim.log_in("itil.user");
    assert_eq!(sim.delete("incident", &id).status, 403, "itil does not delete");
    assert_eq!(sim.patch("incident", &id, &json!({ "urgency": "3" })).status, 200);
    sim.log_in("ess.user");
    let row = sim.post("incident", &json!({ "short_description": "help", "priority": "1", "assigned_to": "46d44a40c0a8016400b98a0681a55e77" })).result();
    assert_eq!((&row["short_description"], &row["assigned_to"]), (&json!("help"), &json!("")));
}

#[test]
fn a_table_can_be_denied_with_an_empty_list_or_403() {
    let mut sim = small();
    let deny =
        |refuse| AclRule::Table { table: "problem".into(), user: None, operation: Operation::Read, refuse };
    sim.sim.edit().add_acl(deny(false));
    sim.log_in("itil.user");
    let reply = sim.list("problem", "", "");
    assert!(reply.rows().is_empty() && reply.total() > 0);
    sim.sim.edit().clear_acls();
    sim.sim.edit().add_acl(deny(true));
    assert_eq!(sim.list("problem", "", "").status, 403);
}

#[test]
fn rights_change_while_the_instance_runs() {
    let mut sim = small();
    sim.log_in("itil.user");
    assert!(!sim.list("problem", "", "").rows().is_empty());
    assert_eq!(sim.sim.edit().revoke_role("itil.user", "itil").expect("a role"), 1);
    assert!(sim.list("problem", "", "").rows().is_empty());
    sim.sim.edit().grant_role("itil.user", "sn_problem_read").expect("a role");
    assert!(!sim.list("problem", "", "").rows().is_empty());
    let rule =
        AclRule::Rows { table: "problem".into(), user: Some("itil.user".into()), query: "state=101".into() };
    sim.sim.edit().add_acl(rule);
    let rows = sim.list("problem", "", "").rows();
    assert!(rows.iter().all(|r| r["state"] == "101"));
    assert_eq!(rows.len(), sim.sim.truth("problem", "itil.user").expect("truth").len());
}
