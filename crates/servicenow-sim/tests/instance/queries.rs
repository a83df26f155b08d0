//! Facts §2: encoded queries.

use servicenow_sim::UnknownField;

use crate::support::{Caller, small};

fn numbers(sim: &Caller, query: &str) -> Vec<String> {
    let reply = sim.list("incident", query, "sysparm_fields=number");
    reply.rows().iter().map(|r| r["number"].as_str().expect("a number").to_owned()).collect()
}

/// A predicate on a record, given as a function from column to stored value.
type Keep<'a> = &'a dyn Fn(&dyn Fn(&str) -> String) -> bool;

/// Counts by the truth what a predicate on stored values selects.
fn truth(sim: &Caller, table: &str, keep: impl Fn(&dyn Fn(&str) -> String) -> bool) -> usize {
    sim.sim
        .truth(table, "admin")
        .expect("a table")
        .iter()
        .filter(|r| keep(&|f| r.get(f).cloned().unwrap_or_default()))
        .count()
}

#[test]
fn equality_ranges_lists_and_emptiness_agree_with_the_data() {
    let sim = small();
    let check = |query: &str, keep: Keep<'_>| {
        assert_eq!(sim.count("incident", query), truth(&sim, "incident", keep), "{query}");
    };
    let n = |text: String| text.parse::<i64>().unwrap_or(i64::MIN);
    check("state=7", &|f| f("state") == "7");
    check("state!=7", &|f| f("state") != "7");
    check("stateIN1,2", &|f| matches!(f("state").as_str(), "1" | "2"));
    check("stateNOT IN1,2", &|f| !matches!(f("state").as_str(), "1" | "2"));
    check("priority<3", &|f| n(f("priority")) < 3);
    check("priority>=3", &|f| n(f("priority")) >= 3);
    check("priorityBETWEEN2@3", &|f| (2..=3).contains(&n(f("priority"))));
    check("resolved_atISEMPTY", &|f| f("resolved_at").is_empty());
    check("resolved_atISNOTEMPTY", &|f| !f("resolved_at").is_empty());
    check("resolved_at=", &|f| f("resolved_at").is_empty());
    check("resolved_at=NULL", &|f| f("resolved_at").is_empty());
    check("resolved_atANYTHING", &|_| true);
    check("short_descriptionLIKEprinter", &|f| f("short_description").to_lowercase().contains("printer"));
    check("short_descriptionNOT LIKEprinter", &|f| {
        !f("short_description").is_empty() && !f("short_description").to_lowercase().contains("printer")
    });
    check("short_descriptionSTARTSWITHdisk", &|f| f("short_description").to_lowercase().starts_with("disk"));
    check("short_description%caller 3", &|f| f("short_description").to_lowercase().ends_with("caller 3"));
    check("opened_at>=2024-01-02", &|f| f("opened_at").as_str() >= "2024-01-02 00:00:00");
    check("opened_atBETWEEN2024-01-02@2024-01-03 12:00:00", &|f| {
        ("2024-01-02 00:00:00".."2024-01-03 12:00:01").contains(&f("opened_at").as_str())
    });
    check("impactSAMEASurgency", &|f| f("impact") == f("urgency"));
    check("impactNSAMEASurgency", &|f| f("impact") != f("urgency"));
    check("impactGT_FIELDurgency", &|f| f("impact") > f("urgency"));
    check("impactLT_OR_EQUALS_FIELDurgency", &|f| f("impact") <= f("urgency"));
    check("sys_updated_onMORETHANopened_at@hour@after@0", &|f| f("sys_updated_on") > f("opened_at"));
}

#[test]
fn and_or_and_new_queries_bind_as_documented() {
    let sim = small();
    let check = |query: &str, keep: Keep<'_>| {
        assert_eq!(sim.count("incident", query), truth(&sim, "incident", keep), "{query}");
    };
    check("state=1^ORstate=2^priority=5^ORpriority=3", &|f| {
        matches!(f("state").as_str(), "1" | "2") && matches!(f("priority").as_str(), "5" | "3")
    });
    check("state=7^NQpriority=1^EQ", &|f| f("state") == "7" || f("priority") == "1");
}

#[test]
fn junk_is_answered_as_measured() {
    let sim = small();
    let all = sim.count("incident", "");
    assert_eq!(sim.count("incident", "^^^"), all);
    assert_eq!(sim.count("incident", "^state=7"), sim.count("incident", "state=7"));
    assert_eq!(sim.count("incident", "state==1"), 0);
    assert_eq!(sim.count("incident", "state=NOT_A_NUMBER"), 0);
    assert_eq!(sim.count("incident", "no_such_field=banana"), all, "the condition is dropped");
}

#[test]
fn unknown_fields_can_return_nothing_or_be_refused() {
    let sim = small();
    sim.sim.edit().set_property("glide.invalid_query.returns_no_rows", "true").expect("a property");
    assert_eq!(sim.count("incident", "no_such_field=banana^state=7"), 0);
    sim.sim.set(|s| s.unknown_field = UnknownField::Forbid);
    let reply = sim.list("incident", "no_such_field=banana", "");
    assert_eq!(reply.status, 403);
    assert_eq!(reply.error().0, "Insufficient rights to query records");
}

#[test]
fn comparisons_ignore_case_accents_and_trailing_blanks() {
    let sim = small();
    assert_eq!(sim.count("sys_user", "name=GURNEY halleck "), 1);
    assert_eq!(sim.count("core_company", "name=cafe zurich gmbh"), 1);
    assert_eq!(
        sim.count("incident", "SYS_ID=x"),
        sim.count("incident", ""),
        "field names are case-sensitive"
    );
}

#[test]
fn a_reference_compares_ids_by_equality_and_names_by_text() {
    let sim = small();
    let by_name = sim.count("incident", "assigned_toLIKEhalleck");
    assert!(by_name > 0);
    assert_eq!(by_name, sim.count("incident", "assigned_to=46d44a40c0a8016400b98a0681a55e77"));
    assert_eq!(by_name, sim.count("incident", "assigned_to.last_name=Halleck"), "dot-walk");
    let others = truth(&sim, "incident", |f| {
        !f("assigned_to").is_empty() && f("assigned_to") != "46d44a40c0a8016400b98a0681a55e77"
    });
    assert_eq!(
        sim.count("incident", "assigned_to!=46d44a40c0a8016400b98a0681a55e77"),
        others,
        "populated by any other"
    );
}

#[test]
fn several_sorts_are_honoured_left_to_right() {
    let sim = small();
    let rows =
        sim.list("incident", "ORDERBYDESCpriority^ORDERBYnumber", "sysparm_fields=priority,number").rows();
    let keys: Vec<(i64, String)> = rows
        .iter()
        .map(|r| {
            (
                -r["priority"].as_str().expect("p").parse::<i64>().expect("n"),
                r["number"].as_str().expect("n").to_owned(),
            )
        })
        .collect();
    assert!(keys.is_sorted());
    let names = sim
        .list(
            "incident",
            "assigned_toISNOTEMPTY^ORDERBYassigned_to",
            "sysparm_fields=assigned_to&sysparm_display_value=true&sysparm_exclude_reference_link=true",
        )
        .rows();
    let names: Vec<&str> = names.iter().map(|r| r["assigned_to"].as_str().expect("a name")).collect();
    assert!(names.is_sorted(), "references sort by display value: {names:?}");
}

#[test]
fn a_keyset_over_sys_id_reads_everything_once() {
    let sim = small();
    let (mut last, mut seen) = (String::new(), Vec::new());
    loop {
        let page = sim.list(
            "incident",
            &format!("sys_id>{last}^ORDERBYsys_id"),
            "sysparm_limit=7&sysparm_fields=sys_id",
        );
        let rows = page.rows();
        assert_eq!(page.total(), sim.sim.truth("incident", "admin").expect("truth").len() - seen.len());
        let Some(end) = rows.last() else { break };
        last = end["sys_id"].as_str().expect("an id").to_owned();
        seen.extend(rows.iter().map(|r| r["sys_id"].clone()));
    }
    assert_eq!(seen.len(), sim.count("incident", ""));
}

#[test]
fn a_keyset_over_the_update_stamp_reads_everything_once() {
    let sim = small();
    let (mut at, mut id, mut seen) = ("1970-01-01 00:00:00".to_owned(), String::new(), 0);
    loop {
        let query = format!(
            "sys_updated_on>{at}^NQsys_updated_on={at}^sys_id>{id}^ORDERBYsys_updated_on^ORDERBYsys_id"
        );
        let rows = sim.list("task", &query, "sysparm_limit=9&sysparm_fields=sys_id,sys_updated_on").rows();
        let Some(end) = rows.last() else { break };
        at = end["sys_updated_on"].as_str().expect("a stamp").to_owned();
        id = end["sys_id"].as_str().expect("an id").to_owned();
        seen += rows.len();
    }
    assert_eq!(seen, sim.count("task", ""));
}

#[test]
fn scripts_are_evaluated_in_the_callers_session() {
    let mut sim = small();
    sim.log_in("itil.user");
    let me = sim.id_of("sys_user", "sys_id=javascript:gs.getUserID()");
    assert_eq!(me, sim.id_of("sys_user", "user_name=itil.user"));
    let id =
        sim.post("incident", &serde_json::json!({ "short_description": "today" })).result()["sys_id"].clone();
    let found = sim
        .ids("incident", "sys_created_onONToday@javascript:gs.beginningOfToday()@javascript:gs.endOfToday()");
    assert_eq!(found, [id.as_str().expect("an id")]);
    assert_eq!(sim.ids("incident", "sys_created_onRELATIVEGT@minute@ago@5"), found);
    assert_eq!(sim.ids("incident", "sys_created_on>=javascript:gs.hoursAgo(1)"), found);
    assert_eq!(sim.count("incident", "number=javascript:alert(1)"), 0);
}

#[test]
fn instance_of_means_a_class_or_its_children() {
    let sim = small();
    let servers = sim.count("cmdb_ci", "sys_class_nameINSTANCEOFcmdb_ci_server");
    assert_eq!(servers, sim.count("cmdb_ci_server", ""));
    assert!(servers > sim.count("cmdb_ci", "sys_class_name=cmdb_ci_server"));
}

#[test]
fn a_caret_in_a_value_is_doubled() {
    let sim = small();
    sim.sim.edit().insert("incident", &[("short_description", "a^b")]).expect("inserted");
    assert_eq!(numbers(&sim, "short_description=a^^b").len(), 1);
}
