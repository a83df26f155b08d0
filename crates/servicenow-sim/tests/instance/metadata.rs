//! Facts §7: the dictionary and the choices as data.

use serde_json::json;

use crate::support::small;

#[test]
fn the_empty_element_is_the_table_itself_and_every_class_has_its_own_sys_id_row() {
    let sim = small();
    for table in ["task", "incident", "cmdb_ci_server"] {
        let rows = sim.list("sys_dictionary", &format!("name={table}^elementISEMPTY"), "").rows();
        assert_eq!(rows[0]["internal_type"]["value"], "collection", "{table}");
        assert_eq!(sim.count("sys_dictionary", &format!("name={table}^element=sys_id")), 1);
    }
    assert_eq!(sim.count("sys_dictionary", "name=incident^element=short_description"), 0, "inherited");
}

#[test]
fn walking_super_class_gives_the_92_columns() {
    let sim = small();
    let object = |query: &str| {
        sim.list("sys_db_object", query, "sysparm_exclude_reference_link=true").rows().remove(0)
    };
    let incident = object("name=incident");
    let parent = object(&format!("sys_id={}", incident["super_class"].as_str().expect("an id")));
    assert_eq!((&parent["name"], &parent["super_class"]), (&json!("task"), &json!("")));
    let elements: std::collections::BTreeSet<String> = sim
        .list("sys_dictionary", "nameINincident,task^elementISNOTEMPTY", "sysparm_fields=element")
        .rows()
        .iter()
        .map(|r| r["element"].as_str().expect("a name").to_owned())
        .collect();
    assert_eq!(elements.len(), 92);
}

#[test]
fn choices_repeat_per_language_and_depend_on_other_columns() {
    let sim = small();
    assert_eq!(sim.count("sys_choice", "name=incident^element=state^language=en"), 6);
    assert_eq!(sim.count("sys_choice", "name=incident^element=state^language=de"), 6);
    let rows = sim.list("sys_choice", "name=incident^element=subcategory^dependent_value=network", "").rows();
    assert!(rows.iter().any(|r| r["value"] == "vpn"));
    assert!(sim.count("sys_choice", "name=incident^inactive=true") >= 3);
}

#[test]
fn a_child_overrides_a_default() {
    let sim = small();
    assert_eq!(sim.count("sys_dictionary_override", "name=incident^element=priority^default_value=5"), 1);
    let row = sim.list("sys_dictionary", "name=task^element=priority", "").rows().remove(0);
    assert_eq!(row["default_value"], "4");
}

#[test]
fn references_by_name_link_with_a_query() {
    let sim = small();
    let row = sim.list("sys_dictionary", "name=incident^element=caller_id", "").rows().remove(0);
    let link = format!("{}/api/now/table/sys_db_object?name=sys_user", sim.sim.url());
    assert_eq!(row["reference"], json!({ "link": link, "value": "sys_user" }));
    let target = sim.get("/api/now/table/sys_db_object?name=sys_user").rows();
    assert_eq!(target[0]["label"], "User");
}

#[test]
fn scoped_and_non_hex_ids_exist() {
    let sim = small();
    let row = sim.get("/api/now/table/sys_scope/global").result();
    assert_eq!(row["name"], "Global");
    let table = sim
        .list("sys_db_object", "name=x_acme_app_thing", "sysparm_exclude_reference_link=true")
        .rows()
        .remove(0);
    assert_eq!(table["sys_scope"], "x_acme_app");
    let columns = sim.list("sys_dictionary", "name=u_pg_widget^element=u_inactive", "").rows();
    assert_eq!(columns[0]["active"], "false");
    let widget = sim.list("u_pg_widget", "u_name=Widget ordinary", "").rows().remove(0);
    assert_eq!(widget["u_inactive"], "ordinary", "inactive columns are still returned");
}

#[test]
fn every_table_people_ask_for_is_there_and_readable() {
    let mut sim = small();
    sim.log_in("admin");
    for table in [
        "task",
        "incident",
        "problem",
        "change_request",
        "change_task",
        "sc_request",
        "sc_req_item",
        "sc_task",
        "sc_cat_item",
        "sc_cat_item_guide",
        "cmdb",
        "cmdb_ci",
        "cmdb_ci_server",
        "kb_knowledge_base",
        "kb_knowledge",
        "contract_sla",
        "task_sla",
        "sc_catalog",
        "sc_category",
        "sys_user",
        "sys_user_group",
        "sys_user_grmember",
        "sys_user_role",
        "sys_user_has_role",
        "cmn_location",
        "core_company",
        "cmn_department",
        "u_pg_widget",
        "x_acme_app_thing",
        "u_pg_static",
        "incident_sla",
        "sys_db_object",
        "sys_dictionary",
        "sys_dictionary_override",
        "sys_choice",
        "sys_glide_object",
        "sys_documentation",
        "sys_scope",
        "sys_journal_field",
        "sys_properties",
        "oauth_entity",
    ] {
        assert!(!sim.list(table, "", "sysparm_limit=1").rows().is_empty(), "{table}");
    }
    for table in ["sys_audit_delete", "sys_audit", "sys_script", "sys_rate_limit_rules"] {
        assert_eq!(sim.list(table, "", "").status, 200, "{table}");
    }
}

#[test]
fn a_retitled_column_and_a_relabelled_choice_show_at_once() {
    let sim = small();
    sim.sim.edit().retitle_column("incident", "severity", "Grimness").expect("an edit");
    assert_eq!(sim.get("/api/now/ui/meta/incident").result()["columns"]["severity"]["label"], "Grimness");
    sim.sim.edit().relabel_choice("incident", "state", "2", "Under Way").expect("an edit");
    let row = sim.list("incident", "number=INC0012345", "sysparm_display_value=true").rows().remove(0);
    assert_eq!(row["state"], "Under Way");
}
