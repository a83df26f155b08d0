//! The real event log as a data set and as a stream.

use servicenow_sim::{Dataset, Simulator};

use crate::support::with;

#[test]
fn the_last_states_are_24918_incidents_one_of_them_the_known_one() {
    let mut sim = with(Simulator::builder().dataset(Dataset::EventLog));
    assert_eq!(sim.count("incident", ""), 24_918);
    let row = sim
        .list(
            "incident",
            "number=INC0012345",
            "sysparm_display_value=all&sysparm_exclude_reference_link=true",
        )
        .rows()
        .remove(0);
    assert_eq!(row["state"]["display_value"], "In Progress");
    assert_eq!(row["assigned_to"]["display_value"], "Gurney Halleck");
    assert!(row["assigned_to"]["value"].as_str().expect("an id").starts_with("46d44a"));
    let row = sim
        .list(
            "incident",
            "number=INC0000045",
            "sysparm_display_value=true&sysparm_exclude_reference_link=true",
        )
        .rows()
        .remove(0);
    for (field, value) in [
        ("caller_id", "Caller 2403"),
        ("category", "Category 55"),
        ("subcategory", "Subcategory 170"),
        ("state", "Closed"),
        ("location", "Location 143"),
        ("assignment_group", "Group 56"),
        ("resolved_by", "Resolved by 149"),
        ("opened_at", "2016-02-29 01:16:00"),
        ("close_code", "code 5"),
        ("priority", "3 - Moderate"),
        ("active", "false"),
    ] {
        assert_eq!(row[field], value, "{field}");
    }
    assert_eq!(row.as_object().expect("a row").len(), 92);
    assert_eq!(
        sim.count("sys_user", "nameSTARTSWITHCaller "),
        5_243,
        "each label a user, one of them the ess user"
    );
    sim.log_in("ess.user");
    let mine = sim.sim.truth("incident", "ess.user").expect("truth").len();
    assert!((200..400).contains(&mine), "{mine}");
}

#[test]
fn a_number_of_incidents_is_made_by_cycling_the_real_ones() {
    let sim = with(Simulator::builder().dataset(Dataset::Incidents(1_000)).extra_columns(true));
    assert_eq!(sim.count("incident", ""), 1_000);
    let row = sim.list("incident", "u_symptomISNOTEMPTY", "sysparm_limit=1").rows().remove(0);
    assert_eq!(row.as_object().expect("a row").len(), 94);
}

#[test]
fn replay_plays_events_as_live_updates_stamped_now() {
    let sim = with(Simulator::builder().dataset(Dataset::Incidents(300)).first_events(true));
    let open = sim.count("incident", "active=true");
    assert!(open > 250, "at their first events most are open: {open}");
    let since = sim.sim.clock().now().format("%Y-%m-%d %H:%M:%S").to_string();
    assert_eq!(sim.sim.play(50), 50);
    let changed = sim.list("incident", &format!("sys_updated_on>={since}^ORDERBYsys_updated_on"), "").rows();
    assert!(!changed.is_empty());
    let total = sim.sim.replay_status().total;
    sim.sim.play(usize::MAX);
    let status = sim.sim.replay_status();
    assert_eq!((status.played, status.skipped), (total, 0));
    assert_eq!(sim.count("incident", "state=7"), 299, "the log ends with every incident closed");
    let row = &sim.list("incident", "number=INC0000045", "").rows()[0];
    assert!(row["sys_mod_count"].as_str().expect("n").parse::<u32>().expect("n") >= 3);
}

#[test]
fn replay_runs_at_a_rate_in_the_background() {
    let sim = with(Simulator::builder().dataset(Dataset::Incidents(100)));
    let body = serde_json::json!({ "rate": 400.0, "count": 40 });
    assert_eq!(sim.call("POST", "/sim/replay", Some(&body)).status, 200);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while sim.get("/sim/replay").json()["running"] == true && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(sim.get("/sim/replay").json()["played"], 40);
}
