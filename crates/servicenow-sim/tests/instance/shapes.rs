//! Facts §1.4: the exact value shapes.

use serde_json::{Value, json};

use crate::support::{Caller, enc, small};

const CAPTURED: &str = "1c741bd70b2322007518478d83673af3";

fn field(sim: &Caller, table: &str, id: &str, field: &str, more: &str) -> Value {
    let target = format!("/api/now/table/{table}/{id}?sysparm_fields={}&{more}", enc(field));
    sim.get(&target).result()[field].clone()
}

#[test]
fn every_scalar_is_a_string_in_every_mode() {
    let sim = small();
    for mode in ["false", "true", "all"] {
        for table in ["incident", "u_pg_widget", "sc_cat_item", "sys_dictionary"] {
            for row in sim
                .get(&format!("/api/now/table/{table}?sysparm_limit=20&sysparm_display_value={mode}"))
                .rows()
            {
                for (key, value) in row.as_object().expect("a row") {
                    let ok = match value {
                        Value::String(_) => mode != "all",
                        Value::Object(map) => {
                            map.iter().all(|(k, v)| v.is_string() || (k == "display_value" && v.is_null()))
                        }
                        _ => false,
                    };
                    assert!(ok, "{table}.{key} in mode {mode}: {value}");
                }
            }
        }
    }
}

#[test]
fn references_have_link_and_value_in_the_three_modes_and_lose_the_link_on_demand() {
    let sim = small();
    let id = "681ccaf9c0a8016400b98a06818d57c7";
    let link = format!("{}/api/now/table/sys_user/{id}", sim.sim.url());
    let get = |more: &str| field(&sim, "incident", CAPTURED, "caller_id", more);
    assert_eq!(get(""), json!({ "link": link, "value": id }));
    assert_eq!(get("sysparm_display_value=true"), json!({ "display_value": "Joe Employee", "link": link }));
    assert_eq!(
        get("sysparm_display_value=all"),
        json!({ "display_value": "Joe Employee", "link": link, "value": id })
    );
    let bare = "&sysparm_exclude_reference_link=true";
    assert_eq!(get(bare), json!(id));
    assert_eq!(get(&format!("sysparm_display_value=true{bare}")), json!("Joe Employee"));
    assert_eq!(
        get(&format!("sysparm_display_value=all{bare}")),
        json!({ "display_value": "Joe Employee", "value": id })
    );
}

#[test]
fn a_link_uses_the_version_of_the_call_and_the_instances_own_host() {
    let sim = small();
    let row = sim.get(&format!("/api/now/v2/table/incident/{CAPTURED}")).result();
    let link = row["caller_id"]["link"].as_str().expect("a link").to_owned();
    assert!(link.starts_with(&format!("{}/api/now/v2/table/sys_user/", sim.sim.url())), "{link}");
}

#[test]
fn an_empty_reference_has_no_link() {
    let sim = small();
    let get = |more: &str| field(&sim, "incident", CAPTURED, "parent_incident", more);
    assert_eq!(get(""), "");
    assert_eq!(get("sysparm_display_value=true"), "");
    assert_eq!(get("sysparm_display_value=all"), json!({ "display_value": "", "value": "" }));
}

#[test]
fn a_dangling_reference_has_an_empty_display_value() {
    let sim = small();
    let id = sim.ids("change_task", "").remove(0);
    let value = field(
        &sim,
        "change_task",
        &id,
        "opened_by",
        "sysparm_display_value=all&sysparm_exclude_reference_link=true",
    );
    assert_eq!(value, json!({ "display_value": "", "value": "glide.maint" }));
}

#[test]
fn numbers_have_separators_only_in_display_values() {
    let sim = small();
    let value = field(&sim, "incident", CAPTURED, "calendar_stc", "sysparm_display_value=all");
    assert_eq!(value, json!({ "display_value": "102,197", "value": "102197" }));
}

#[test]
fn choices_show_labels_and_empty_ones_null_or_nothing() {
    let sim = small();
    let all = "sysparm_display_value=all";
    assert_eq!(
        field(&sim, "incident", CAPTURED, "state", all),
        json!({ "display_value": "Closed", "value": "7" })
    );
    assert_eq!(
        field(&sim, "incident", CAPTURED, "subcategory", all),
        json!({ "display_value": "Email", "value": "email" })
    );
    assert_eq!(
        field(&sim, "incident", CAPTURED, "hold_reason", all),
        json!({ "display_value": "", "value": "" })
    );
    let change = sim.ids("change_request", "").remove(0);
    assert_eq!(
        field(&sim, "change_request", &change, "reason", all),
        json!({ "display_value": null, "value": "" })
    );
    assert_eq!(field(&sim, "change_request", &change, "reason", "sysparm_display_value=true"), "");
}

#[test]
fn an_inactive_choice_shows_its_raw_value() {
    let sim = small();
    let value = field(
        &sim,
        "u_pg_widget",
        &sim.id_of("u_pg_widget", "u_name=Widget extreme"),
        "u_t_choice",
        "sysparm_display_value=all",
    );
    assert_eq!(value, json!({ "display_value": "d", "value": "d" }));
}

#[test]
fn an_unset_boolean_shows_false_and_has_no_value() {
    let sim = small();
    let id = sim.id_of("u_pg_widget", "u_name=Widget empty");
    let value = field(&sim, "u_pg_widget", &id, "u_t_boolean", "sysparm_display_value=all");
    assert_eq!(value, json!({ "display_value": "false", "value": "" }));
}

#[test]
fn due_dates_show_unknown_when_empty() {
    let sim = small();
    let get = |more: &str| field(&sim, "incident", CAPTURED, "sla_due", more);
    assert_eq!(get(""), "");
    assert_eq!(get("sysparm_display_value=true"), "UNKNOWN");
    assert_eq!(get("sysparm_display_value=all"), json!({ "display_value": "UNKNOWN", "value": "" }));
}

#[test]
fn durations_drop_seconds_in_display() {
    let sim = small();
    let value = field(&sim, "incident", CAPTURED, "calendar_duration", "sysparm_display_value=all");
    assert_eq!(value, json!({ "display_value": "1 Day 4 Hours 23 Minutes", "value": "1970-01-02 04:23:17" }));
}

#[test]
fn amounts_have_a_third_key_and_zero_is_0() {
    let sim = small();
    let get = |query: &str| {
        let id = sim.ids("sc_cat_item", query).remove(0);
        field(&sim, "sc_cat_item", &id, "price", "sysparm_display_value=all")
    };
    assert_eq!(
        get("price=0"),
        json!({ "display_value": "$0.00", "currency_display_value": "USD;0.00", "value": "0" })
    );
    assert_eq!(
        get("price>0"),
        json!({ "display_value": "$1,699.99", "currency_display_value": "USD;1699.99", "value": "1699.99" })
    );
}

#[test]
fn journals_have_no_value_and_show_their_history_newest_first() {
    let mut sim = small();
    assert_eq!(field(&sim, "incident", CAPTURED, "comments", ""), "");
    let shown = field(&sim, "incident", CAPTURED, "comments", "sysparm_display_value=all");
    assert_eq!(shown["value"], "");
    let history = shown["display_value"].as_str().expect("text");
    assert!(history.starts_with(
        "2016-12-13 20:30:14 - Joe Employee (Additional comments)\nThat must be it. Please close.\n\n"
    ));
    assert!(history.ends_with(
        "2016-12-12 15:19:57 - Joe Employee (Additional comments)\nI cannot reach the mail server.\n\n"
    ));
    sim.log_in("pacific.user");
    let merged = field(&sim, "incident", CAPTURED, "comments_and_work_notes", "sysparm_display_value=true");
    let merged = merged.as_str().expect("text");
    assert!(merged.starts_with("2016-12-13 12:30:14 - Joe"), "in the reader's zone: {merged}");
    assert!(merged.contains("2016-12-12 09:01:24 - David Loo (Work notes)\n"));
}

#[test]
fn lists_show_names_and_free_addresses() {
    let sim = small();
    let id = sim.ids("incident", "watch_listISNOTEMPTY").remove(0);
    let value = field(&sim, "incident", &id, "watch_list", "sysparm_display_value=all");
    assert_eq!(value["display_value"], "Gurney Halleck, someone@example.com");
}

#[test]
fn passwords_show_stars() {
    let sim = small();
    let id = sim.id_of("sys_user", "user_name=admin");
    let value = field(&sim, "sys_user", &id, "user_password", "sysparm_display_value=all");
    assert_eq!(value["display_value"], "********");
    assert_ne!(value["value"], "admin");
}

#[test]
fn a_class_name_shows_the_tables_label() {
    let sim = small();
    let id = sim.ids("change_request", "").remove(0);
    assert_eq!(
        field(&sim, "task", &id, "sys_class_name", "sysparm_display_value=all"),
        json!({ "display_value": "Change Request", "value": "change_request" })
    );
}

#[test]
fn dates_show_in_the_users_zone_and_format_and_labels_in_the_users_language() {
    let mut sim = small();
    sim.log_in("pacific.user");
    let all = "sysparm_display_value=all";
    assert_eq!(
        field(&sim, "incident", CAPTURED, "closed_at", all),
        json!({ "display_value": "2016-12-13 18:46:44", "value": "2016-12-14 02:46:44" })
    );
    sim.log_in("german.user");
    assert_eq!(field(&sim, "incident", CAPTURED, "closed_at", all)["display_value"], "14.12.2016 03:46:44");
    assert_eq!(field(&sim, "incident", CAPTURED, "state", all)["display_value"], "Geschlossen");
    let article = sim.ids("kb_knowledge", "publishedISNOTEMPTY").remove(0);
    assert_eq!(
        field(&sim, "kb_knowledge", &article, "published", all),
        json!({ "display_value": "09.09.2014", "value": "2014-09-09" })
    );
}

#[test]
fn odd_text_comes_back_verbatim() {
    let sim = small();
    let id = sim.id_of("u_pg_widget", "u_name=Widget odd");
    let text = field(&sim, "u_pg_widget", &id, "u_t_string", "");
    let text = text.as_str().expect("text");
    assert!(
        text.contains('\0')
            && text.contains("\r\n")
            && text.contains('\u{1F37A}')
            && text.contains("a\"b\\c")
    );
    let long = sim.id_of("u_pg_widget", "u_name=Widget extreme");
    assert_eq!(field(&sim, "u_pg_widget", &long, "u_t_html", "").as_str().map(str::len), Some(65_000));
}

#[test]
fn the_widget_has_a_column_of_every_dictionary_type() {
    let sim = small();
    let used: std::collections::BTreeSet<String> = sim
        .list("sys_dictionary", "nameINu_pg_widget,u_pg_widget_part", "sysparm_exclude_reference_link=true")
        .rows()
        .iter()
        .map(|r| r["internal_type"].as_str().expect("a type").to_owned())
        .collect();
    let known = sim.list("sys_glide_object", "", "sysparm_fields=name").rows();
    assert!(known.len() >= 158, "{}", known.len());
    for row in known {
        let name = row["name"].as_str().expect("a name");
        assert!(used.contains(name), "{name}");
    }
}

#[test]
fn a_parent_table_returns_all_children_with_the_parents_columns_only() {
    let sim = small();
    let rows = sim.list("task", "", "sysparm_limit=500").rows();
    assert!(rows.iter().any(|r| r["sys_class_name"] == "incident"));
    assert!(rows.iter().any(|r| r["sys_class_name"] == "problem"));
    assert!(rows.iter().all(|r| r.as_object().expect("a row").len() == 68));
    let named =
        sim.list("task", "sys_class_name=incident", "sysparm_fields=number,caller_id&sysparm_limit=3").rows();
    assert!(named.iter().all(|r| r.get("caller_id").is_some()), "child fields come when named");
    assert_eq!(sim.count("task", "sys_class_name=task"), 0);
}

#[test]
fn the_classes_have_the_counted_columns() {
    let sim = small();
    for (table, columns) in
        [("incident", 92), ("problem", 96), ("change_request", 103), ("change_task", 76), ("sc_req_item", 84)]
    {
        let row = sim.list(table, "", "sysparm_limit=1").rows().remove(0);
        assert_eq!(row.as_object().expect("a row").len(), columns, "{table}");
    }
}
