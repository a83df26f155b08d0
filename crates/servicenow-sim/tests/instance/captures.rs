//! Our answers beside the captured and documented ones in `tests/captures` (see its SOURCES.md).

use serde_json::Value;

use crate::support::{enc, small};

fn capture(name: &str) -> Value {
    let path = format!("{}/tests/captures/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).expect("the capture")).expect("JSON")
}

/// The text of a JSON object with the keys in the order in which they were written.
fn keys_in_order(text: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut depth = 0usize;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            '"' => {
                let mut end = at + 1;
                let mut escaped = false;
                for (i, c) in chars.by_ref() {
                    if c == '"' && !escaped {
                        end = i;
                        break;
                    }
                    escaped = c == '\\' && !escaped;
                }
                if depth == 1 && text[end + 1..].trim_start().starts_with(':') {
                    keys.push(text[at + 1..end].to_owned());
                }
            }
            _ => {}
        }
    }
    keys
}

#[test]
fn the_captured_incident_comes_back_byte_for_byte_but_for_the_host() {
    let sim = small();
    let reply = sim.get("/api/now/v2/table/incident/1c741bd70b2322007518478d83673af3");
    let captured = capture("incident_list_v2_with_headers.json");
    let theirs =
        captured["body"]["result"][0].to_string().replace("https://dev130168.service-now.com", sim.sim.url());
    assert_eq!(reply.result(), serde_json::from_str::<Value>(&theirs).expect("JSON"));
}

#[test]
fn keys_come_in_the_captured_order() {
    let sim = small();
    let text = sim.get("/api/now/v2/table/incident/1c741bd70b2322007518478d83673af3").text();
    let ours = keys_in_order(&text["{\"result\":".len()..text.len() - 1]);
    let raw = include_str!("../captures/incident_list_v2_with_headers.json");
    let from = raw.find("\"result\": [").expect("the result") + "\"result\": [".len();
    let theirs = keys_in_order(raw[from..].trim_start());
    assert_eq!(theirs.len(), 92);
    assert_eq!(ours, theirs);
}

#[test]
fn the_captured_headers_are_all_there() {
    let mut sim = small();
    sim.headers.push(("Accept-Encoding".to_owned(), "gzip".to_owned()));
    let reply =
        sim.get("/api/now/v2/table/incident?query=number%3DINC0000040&display_value=True&sysparm_limit=1");
    let captured = capture("incident_list_v2_with_headers.json");
    for (name, value) in captured["headers"].as_object().expect("headers") {
        if name.starts_with("Set-Cookie") || name == "Connection" {
            continue;
        }
        let ours = reply.header(name).unwrap_or_else(|| panic!("no {name}"));
        if !matches!(name.as_str(), "X-Transaction-ID" | "Link" | "X-Total-Count" | "Date") {
            assert_eq!(ours, value.as_str().expect("text"), "{name}");
        }
    }
    let cookies: Vec<&str> = reply
        .headers
        .iter()
        .filter(|(n, _)| n.eq_ignore_ascii_case("set-cookie"))
        .map(|(_, v)| v.as_str())
        .collect();
    for name in ["glide_user=;", "glide_user_session=;", "glide_user_route=glide.", "glide_session_store="] {
        assert!(cookies.iter().any(|c| c.starts_with(name)), "{name}: {cookies:?}");
    }
    assert_eq!(reply.header("x-transaction-id").map(str::len), Some(12));
}

#[test]
fn a_dictionary_row_has_the_captured_keys_and_reference_links_by_name() {
    let sim = small();
    let row = sim.list("sys_dictionary", "name=cmdb_ci_server^element=sys_id", "").rows().remove(0);
    let captured = capture("sys_dictionary_rows.json")["result"][0].clone();
    let keys = |v: &Value| v.as_object().expect("a row").keys().cloned().collect::<Vec<_>>();
    // The capture is of a release before this one.
    let known = keys(&row).into_iter().filter(|key| key != "read_only_option").collect::<Vec<_>>();
    assert_eq!(known, keys(&captured));
    let link = format!("{}/api/now/table/sys_glide_object?name=GUID", sim.sim.url());
    assert_eq!(row["internal_type"], serde_json::json!({ "link": link, "value": "GUID" }));
    assert_eq!(row["primary"], "true");
}

#[test]
fn the_captured_own_columns_of_incident_are_dictionary_rows_of_incident() {
    let sim = small();
    for column in capture("incident_own_columns.json").as_array().expect("a list") {
        let element = column["element"].as_str().expect("a name");
        let rows = sim.list("sys_dictionary", &format!("name=incident^element={element}"), "").rows();
        assert_eq!(rows.len(), 1, "{element}");
        assert_eq!(rows[0]["column_label"], column["column_label"], "{element}");
        assert_eq!(rows[0]["internal_type"]["value"], column["internal_type"], "{element}");
        assert_eq!(rows[0]["reference"]["value"], column["reference"], "{element}");
    }
}

#[test]
fn ui_meta_has_the_captured_form() {
    let sim = small();
    let ours = sim.get("/api/now/ui/meta/incident").result()["columns"].clone();
    let theirs = capture("ui_meta_incident.json")["result"]["columns"].clone();
    assert_eq!(ours["number"], theirs["number"]);
    let keys = |v: &Value| v.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&ours["priority"]), keys(&theirs["priority"]));
    assert_eq!(keys(&ours["priority"]["choices"][1]), keys(&theirs["priority"]["choices"][1]));
    assert_eq!(ours["priority"]["choices"][0], theirs["priority"]["choices"][0]);
    for key in [
        "type",
        "base_type",
        "reference",
        "reference_display_field",
        "attributes",
        "mandatory",
        "label",
        "hint",
    ] {
        assert_eq!(ours["caller_id"][key], theirs["caller_id"][key], "{key}");
    }
}

#[test]
fn the_table_schema_has_the_captured_form() {
    let sim = small();
    let list = sim.get("/api/now/doc/table/schema").rows();
    let theirs = capture("doc_table_schema.json")["result"][0].clone();
    assert!(list.contains(&theirs));
}

#[test]
fn dot_walked_fields_are_flat_keys_as_documented() {
    let sim = small();
    let fields = "user.name,user.sys_id,role.name,user.department,role,user";
    let target = format!(
        "/api/now/table/sys_user_has_role?sysparm_display_value=true&sysparm_limit=1&sysparm_fields={}",
        enc(fields)
    );
    let ours = sim.get(&target).rows().remove(0);
    let theirs = capture("doc_dotwalk_display_true.json")["result"][0].clone();
    let keys = |v: &Value| v.as_object().expect("a row").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&ours), keys(&theirs));
    assert_eq!(keys(&ours["user"]), keys(&theirs["user"]));
    assert!(ours["user.name"].is_string());
}

#[test]
fn grouped_averages_have_the_documented_form() {
    let sim = small();
    let target = "/api/now/stats/incident?sysparm_avg_fields=reassignment_count,business_stc&sysparm_group_by=assignment_group";
    let ours = sim.get(target).rows();
    let theirs = capture("doc_stats_grouped_avg.json")["result"][0].clone();
    let keys = |v: &Value| v.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    for group in &ours {
        assert_eq!(keys(group), keys(&theirs));
        assert_eq!(keys(&group["stats"]["avg"]), keys(&theirs["stats"]["avg"]));
        assert_eq!(keys(&group["groupby_fields"][0]), keys(&theirs["groupby_fields"][0]));
    }
    let average =
        ours.iter().find_map(|g| g["stats"]["avg"]["reassignment_count"].as_str()).expect("an average");
    assert_eq!(average.split_once('.').map(|(_, d)| d.len()), Some(4), "{average}");
}
