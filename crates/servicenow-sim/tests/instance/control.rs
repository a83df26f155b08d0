//! `/sim/…`: the library over HTTP.

use serde_json::json;

use crate::support::small;

#[test]
fn the_control_interface_needs_no_login_and_is_not_logged() {
    let mut sim = small();
    sim.authorization.clear();
    assert_eq!(sim.get("/sim/health").json()["status"], "ok");
    assert_eq!(sim.get("/sim/nothing").status, 404);
    assert!(sim.sim.requests().is_empty());
}

#[test]
fn requests_are_logged_with_decoded_parameters_and_counted() {
    let sim = small();
    sim.list("incident", "state=7^ORstate=6", "sysparm_limit=1");
    sim.post("incident", &json!({ "short_description": "x", "client_secret": "s" }));
    let log = sim.get("/sim/requests").json();
    let first = &log["requests"][0];
    assert_eq!(
        (&first["method"], &first["table"], &first["user"], &first["status"]),
        (&json!("GET"), &json!("incident"), &json!("admin"), &json!(200))
    );
    assert_eq!(sim.sim.requests()[0].parameter("sysparm_query"), Some("state=7^ORstate=6"));
    assert_eq!(log["requests"][1]["body"], json!({ "short_description": "x", "client_secret": "***" }));
    assert_eq!(log["counters"]["GET table incident"]["calls"], 1);
    assert_eq!(sim.call("DELETE", "/sim/requests", None).status, 200);
    assert!(sim.sim.requests().is_empty());
}

#[test]
fn faults_switches_and_the_clock_are_set_over_http() {
    let sim = small();
    let fault =
        json!({ "effect": { "kind": "status", "status": 502, "html": true }, "method": "GET", "times": 1 });
    let id = sim.call("POST", "/sim/fault", Some(&fault)).json()["id"].clone();
    assert_eq!(sim.get("/api/now/table/incident").status, 502);
    assert_eq!(sim.get(&format!("/sim/fault/{id}")).json()["struck"], 1);
    assert_eq!(sim.call("DELETE", "/sim/fault", None).status, 200);
    assert_eq!(
        sim.call("POST", "/sim/fault", Some(&json!({ "effect": { "kind": "nonsense" } }))).status,
        400
    );
    let set = sim.call("POST", "/sim/set", Some(&json!({ "latency_ms": 3, "unknown_field": "no_rows", "concurrency": { "limit": 4, "queue": 50 } })));
    assert_eq!((&set.json()["latency_ms"], &set.json()["unknown_field"]), (&json!(3), &json!("no_rows")));
    assert_eq!(sim.call("POST", "/sim/set", Some(&json!({ "nonsense": 1 }))).status, 400);
    let clock = sim.call("POST", "/sim/clock", Some(&json!({ "set": "2040-01-01T00:00:00Z", "hold": true })));
    assert!(clock.json()["now"].as_str().expect("a time").starts_with("2040-01-01T00:00:00"));
    sim.call("POST", "/sim/clock", Some(&json!({ "advance_ms": 60_000 })));
    assert_eq!(sim.get("/sim/clock").json()["now"], "2040-01-01T00:01:00Z");
}

#[test]
fn edits_and_the_truth_are_reached_over_http() {
    let sim = small();
    let edit = |body: serde_json::Value| sim.call("POST", "/sim/edit", Some(&body));
    let id =
        edit(json!({ "op": "insert", "table": "incident", "fields": { "short_description": "inside" } }))
            .json()["result"]
            .clone();
    let id = id.as_str().expect("an id").to_owned();
    let how = json!({ "op": "update", "table": "incident", "sys_id": id, "fields": { "urgency": "1" }, "auto_sys_fields": false });
    assert_eq!(edit(how).status, 200);
    let record = sim.get(&format!("/sim/record/incident/{id}")).json();
    assert_eq!(
        (&record["urgency"], &record["sys_mod_count"], &record["priority"]),
        (&json!("1"), &json!("0"), &json!("3"))
    );
    assert_eq!(
        edit(json!({ "op": "delete", "table": "incident", "query": "short_description=inside" })).json()["result"],
        1
    );
    assert_eq!(sim.get(&format!("/sim/record/incident/{id}")).status, 404);
    for body in [
        json!({ "op": "rename_user", "user": "gurney.halleck", "name": "G" }),
        json!({ "op": "relabel_choice", "table": "incident", "element": "state", "value": "2", "label": "Busy" }),
        json!({ "op": "add_column", "table": "incident", "element": "u_x", "label": "X", "internal_type": "integer" }),
        json!({ "op": "retitle_column", "table": "incident", "element": "u_x", "label": "Y" }),
        json!({ "op": "remove_column", "table": "incident", "element": "u_x" }),
        json!({ "op": "set_property", "name": "a.b", "value": "c" }),
        json!({ "op": "add_user", "user": "new.user", "password": "pw", "roles": ["itil"] }),
        json!({ "op": "grant_role", "user": "new.user", "role": "catalog_admin" }),
        json!({ "op": "revoke_role", "user": "new.user", "role": "catalog_admin" }),
        json!({ "op": "add_acl", "rule": { "kind": "rows", "table": "incident", "user": "new.user", "query": "state=7" } }),
        json!({ "op": "add_rule", "rule": { "name": "r", "table": "incident", "phase": "before", "operations": ["write"], "effect": { "kind": "abort" } } }),
        json!({ "op": "remove_rule", "name": "r" }),
        json!({ "op": "expire_tokens" }),
    ] {
        assert_eq!(edit(body.clone()).status, 200, "{body}");
    }
    let truth = sim.get("/sim/truth/incident?user=new.user").json();
    let records = truth["records"].as_array().expect("records");
    assert!(!records.is_empty() && records.iter().all(|r| r["state"] == "7"));
    assert_eq!(edit(json!({ "op": "update", "table": "nothing", "fields": {} })).status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_also_starts_within_a_runtime() {
    let sim = servicenow_sim::Simulator::builder().start().await.expect("it starts");
    let record = sim.truth("incident", "admin").expect("truth");
    assert!(record.len() >= 50);
    let url = sim.url().trim_start_matches("http://").to_owned();
    sim.stop().await;
    assert!(std::net::TcpStream::connect(url).is_err(), "nobody listens any more");
}
