//! Facts §5 and §6: the Batch and the Aggregate API.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use servicenow_sim::{Effect, Fault};

use crate::support::{Caller, enc, small};

fn stats(sim: &Caller, parameters: &str) -> Value {
    sim.get(&format!("/api/now/stats/incident?{parameters}")).result()
}

#[test]
fn ungrouped_aggregates_are_an_object_of_strings() {
    let sim = small();
    let result = stats(
        &sim,
        "sysparm_count=true&sysparm_avg_fields=priority&sysparm_min_fields=priority,opened_at&sysparm_max_fields=priority&sysparm_sum_fields=priority",
    );
    let count = sim.count("incident", "");
    assert_eq!(result["stats"]["count"], count.to_string());
    let numbers: Vec<i64> = sim
        .sim
        .truth("incident", "admin")
        .expect("truth")
        .iter()
        .map(|r| r["priority"].parse().expect("n"))
        .collect();
    let sum: i64 = numbers.iter().sum();
    assert_eq!(result["stats"]["sum"]["priority"], sum.to_string());
    assert_eq!(result["stats"]["avg"]["priority"], format!("{:.4}", sum as f64 / numbers.len() as f64));
    assert_eq!(result["stats"]["min"]["priority"], numbers.iter().min().expect("one").to_string());
    assert!(result["stats"]["min"]["opened_at"].as_str().expect("a date").starts_with("20"));
    assert_eq!(stats(&sim, ""), json!({ "stats": {} }), "nothing asked, nothing computed");
}

#[test]
fn groups_can_be_filtered_sorted_and_shown() {
    let sim = small();
    let result = stats(
        &sim,
        &format!(
            "sysparm_count=true&sysparm_group_by=state&sysparm_having={}&sysparm_order_by={}",
            enc("count^state^>^3"),
            enc("COUNT^DESC")
        ),
    );
    let groups = result.as_array().expect("groups");
    let counts: Vec<i64> =
        groups.iter().map(|g| g["stats"]["count"].as_str().expect("n").parse().expect("n")).collect();
    assert!(counts.iter().all(|c| *c > 3) && counts.is_sorted_by(|a, b| a >= b), "{counts:?}");
    let shown = stats(
        &sim,
        "sysparm_count=true&sysparm_group_by=state&sysparm_display_value=true&sysparm_query=state%3D7",
    );
    assert_eq!(shown[0]["groupby_fields"], json!([{ "field": "state", "display_value": "Closed" }]));
    let both = stats(
        &sim,
        "sysparm_count=true&sysparm_group_by=state&sysparm_display_value=all&sysparm_query=state%3D7",
    );
    assert_eq!(
        both[0]["groupby_fields"],
        json!([{ "field": "state", "display_value": "Closed", "value": "7" }])
    );
    let empty = stats(&sim, "sysparm_count=true&sysparm_group_by=problem_id");
    assert!(empty.as_array().expect("groups").iter().any(|g| g["groupby_fields"][0]["value"] == ""));
}

#[test]
fn counts_are_blind_to_row_acls_and_refuse_unreadable_fields() {
    let mut sim = small();
    let all = sim.count("incident", "");
    sim.log_in("ess.user");
    assert_eq!(stats(&sim, "sysparm_count=true")["stats"]["count"], all.to_string());
    assert_eq!(
        sim.get("/api/now/stats/incident?sysparm_count=true&sysparm_group_by=work_notes_list").status,
        403
    );
}

#[test]
fn counts_per_id_range_add_up() {
    let sim = small();
    let count = |query: &str| -> usize {
        let result = stats(&sim, &format!("sysparm_count=true&sysparm_query={}", enc(query)));
        result["stats"]["count"].as_str().expect("n").parse().expect("n")
    };
    assert_eq!(count("sys_id<8") + count("sys_id>=8"), count(""));
}

fn batch(sim: &Caller, items: Value) -> Value {
    let reply = sim.call(
        "POST",
        "/api/now/v1/batch",
        Some(&json!({ "batch_request_id": 1, "rest_requests": items })),
    );
    assert_eq!(reply.status, 200);
    reply.json()
}

fn item(id: &str, method: &str, url: &str, body: Option<Value>) -> Value {
    json!({
        "id": id, "method": method, "url": url, "exclude_response_headers": true,
        "headers": [{ "name": "Content-Type", "value": "application/json" }, { "name": "Accept", "value": "application/json" }],
        "body": body.map(|b| STANDARD.encode(b.to_string())).unwrap_or_default(),
    })
}

fn decode(serviced: &Value) -> String {
    String::from_utf8(STANDARD.decode(serviced["body"].as_str().expect("base64")).expect("base64"))
        .expect("UTF-8")
}

#[test]
fn a_batch_answers_200_with_a_status_per_item_in_order_and_without_rollback() {
    let sim = small();
    let id = "0123456789abcdef0123456789abcdef";
    let table = "/api/now/table/incident";
    let answer = batch(
        &sim,
        json!([
            item("1", "POST", table, Some(json!({ "sys_id": id, "short_description": "b" }))),
            item("2", "GET", "/api/now/table/foo", None),
            item("3", "PATCH", &format!("{table}/{id}"), Some(json!({ "urgency": "1" }))),
            item("4", "DELETE", &format!("{table}/{id}"), None),
            item("5", "GET", &format!("{table}/{id}"), None),
        ]),
    );
    let statuses: Vec<i64> = answer["serviced_requests"]
        .as_array()
        .expect("items")
        .iter()
        .map(|i| i["status_code"].as_i64().expect("a number"))
        .collect();
    assert_eq!(statuses, [201, 400, 200, 204, 404]);
    assert_eq!(answer["batch_request_id"], "1", "ids come back as strings");
    assert_eq!(answer["unserviced_requests"], json!([]));
    let first = &answer["serviced_requests"][0];
    assert_eq!((&first["status_text"], &first["headers"]), (&json!("Created"), &json!([])));
    assert!(first["execution_time"].is_u64());
    assert!(decode(first).contains("\"short_description\":\"b\""));
    assert_eq!(answer["serviced_requests"][3]["body"], "");
    let logged = sim.sim.requests();
    assert_eq!(logged.iter().filter(|r| r.in_batch).count(), 5);
}

#[test]
fn an_item_without_accept_is_answered_in_xml_with_the_documented_headers() {
    let sim = small();
    let answer = batch(
        &sim,
        json!([{ "id": 11, "method": "GET", "url": "/api/now/table/incident?sysparm_limit=1&sysparm_fields=number" }]),
    );
    let documented: Value =
        serde_json::from_str(include_str!("../captures/doc_batch_response.json")).expect("JSON");
    let (ours, theirs) = (&answer["serviced_requests"][0], &documented["serviced_requests"][0]);
    assert_eq!(ours["id"], "11");
    assert!(decode(ours).starts_with("<?xml version=\"1.0\" encoding=\"UTF-8\"?><response><result><number>"));
    let keys = |v: &Value| v.as_object().expect("an item").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(ours), keys(theirs));
    for header in theirs["headers"].as_array().expect("headers") {
        let found = ours["headers"].as_array().expect("headers").iter().any(|h| h["name"] == header["name"]);
        assert!(found, "{header}");
    }
}

#[test]
fn what_does_not_fit_comes_back_unserviced() {
    let mut sim = small();
    sim.headers.push(("X-BATCHREQUEST-MAX-OUTPUT-SIZE".to_owned(), "20000".to_owned()));
    let many: Vec<Value> = (0..6)
        .map(|n| item(&n.to_string(), "GET", "/api/now/table/incident?sysparm_limit=3", None))
        .collect();
    let answer = batch(&sim, json!(many));
    let (done, left) = (
        answer["serviced_requests"].as_array().expect("items").len(),
        answer["unserviced_requests"].as_array().expect("ids").len(),
    );
    assert!(done > 0 && left > 0, "{done} {left}");
    assert_eq!(done + left, 6);
    let twice = json!({ "rest_requests": [item("1", "GET", "/x", None), item("1", "GET", "/x", None)] });
    assert_eq!(sim.call("POST", "/api/now/batch", Some(&twice)).status, 400, "ids are unique");
}

#[test]
fn items_past_the_quota_and_struck_items_are_told_apart() {
    let sim = small();
    sim.sim.set(|s| {
        s.batch_item_ms = 20;
        s.batch_quota_ms = 60;
    });
    let list = "/api/now/table/incident?sysparm_limit=1";
    let many: Vec<Value> = (0..5).map(|n| item(&n.to_string(), "GET", list, None)).collect();
    let began = std::time::Instant::now();
    let answer = batch(&sim, json!(many));
    assert_eq!(answer["unserviced_requests"], json!(["3", "4"]));
    assert!(began.elapsed() >= std::time::Duration::from_millis(60));
    sim.sim.fault(Fault::new(Effect::Status { status: 503, html: false }).in_batch().after(1).times(1));
    let answer = batch(&sim, json!([item("a", "GET", list, None), item("b", "GET", list, None)]));
    let status = |n: usize| answer["serviced_requests"][n]["status_code"].clone();
    assert_eq!((status(0), status(1)), (json!(200), json!(503)));
}

#[test]
fn an_item_that_is_struck_like_a_connection_is_left_out_of_the_answer() {
    let sim = small();
    let table = "/api/now/table/incident";
    let insert = |id: &str, text: &str| item(id, "POST", table, Some(json!({ "short_description": text })));
    sim.sim.fault(Fault::new(Effect::ResetBefore).in_batch().after(1).times(1));
    sim.sim.fault(Fault::new(Effect::ResetAfter).in_batch().after(2).times(1));
    let answer = batch(&sim, json!([insert("a", "one"), insert("b", "two"), insert("c", "three")]));
    let serviced = answer["serviced_requests"].as_array().expect("items");
    assert_eq!((serviced.len(), &serviced[0]["id"]), (1, &json!("a")));
    assert_eq!(answer["unserviced_requests"], json!([]));
    let made = |text: &str| sim.count("incident", &format!("short_description={text}"));
    assert_eq!((made("one"), made("two"), made("three")), (1, 0, 1));
}

#[test]
fn an_item_tells_the_time_it_took() {
    let sim = small();
    sim.sim.set(|s| s.batch_item_ms = 7);
    let answer = batch(&sim, json!([item("a", "GET", "/api/now/table/incident?sysparm_limit=1", None)]));
    assert!(answer["serviced_requests"][0]["execution_time"].as_u64().expect("a number") >= 7);
}

#[test]
fn an_instance_may_have_no_batch_api() {
    let sim = small();
    sim.sim.set(|s| s.batch_api = false);
    let reply = sim.call("POST", "/api/now/v1/batch", Some(&json!({ "rest_requests": [] })));
    assert_eq!(reply.status, 400);
    assert_eq!(reply.error().0, "Requested URI does not represent any resource");
}
