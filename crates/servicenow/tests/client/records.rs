use serde_json::{Map, json};
use servicenow::Error;
use servicenow::client::retry::Effect;
use servicenow::client::table_api::{Identity, List};
use servicenow::page::Layout;
use servicenow::query::{Op, Query, Term};
use servicenow::value::SysId;

use crate::{basic, both_sides, calls, client, instance, known, page, some_fields, table};

#[tokio::test]
async fn a_record_lives_through_insert_update_and_delete() {
    let sim = instance().await;
    let (client, incident, layout) = (client(&sim), table("incident"), some_fields());
    let id = SysId::from_random([0xab; 16]);
    let fields =
        Map::from_iter([("short_description".to_owned(), json!("new")), ("impact".to_owned(), json!("1"))]);
    let rows =
        client.insert(&incident, &Identity::Given(id.clone()), &fields, &layout).await.expect("it is made");
    assert_eq!((rows.len(), rows.id(0), rows.get(0, "short_description")), (1, id.as_str(), "new"));
    assert!(rows.get(0, "number").starts_with("INC"), "the instance numbers it");
    assert_eq!(rows.version(0).mod_count, Some(0));
    let change = Map::from_iter([("state".to_owned(), json!("2"))]);
    let rows =
        client.update(&incident, &id, &change, &layout, Effect::Idempotent).await.expect("it is changed");
    assert_eq!((rows.get(0, "state"), rows.version(0).mod_count), ("2", Some(1)));
    assert_eq!(client.get(&incident, &id, &layout).await.expect("it is there").get(0, "state"), "2");
    client.delete(&incident, &id).await.expect("it goes");
    assert!(matches!(client.get(&incident, &id, &layout).await, Err(Error::NoRecord(_))));
    assert!(sim.record("incident", id.as_str()).is_none());
}

#[tokio::test]
async fn stored_value_and_label_of_a_field_come_in_one_answer() {
    let sim = instance().await;
    let layout = both_sides(&["state", "assigned_to", "opened_at", "subcategory", "hold_reason"]);
    let rows = client(&sim).get(&table("incident"), &known(&sim), &layout).await.expect("it is there");
    let shown: Vec<&str> = (0..10).map(|column| rows.text(0, column)).collect();
    let expected = [
        "2",
        "In Progress",
        "46d44a40c0a8016400b98a0681a55e77",
        "Gurney Halleck",
        "2026-02-03 08:30:00",
        "2026-02-03 08:30:00",
        "monitor",
        "Monitor",
        "",
        "",
    ];
    assert_eq!(shown, expected);
    assert_eq!(calls(&sim, "GET").len(), 1);
}

#[tokio::test]
async fn a_dot_walk_shows_the_referenced_record() {
    let sim = instance().await;
    let layout = both_sides(&["caller_id.email", "assigned_to.name"]);
    let rows = client(&sim).get(&table("incident"), &known(&sim), &layout).await.expect("it is there");
    assert_eq!((rows.text(0, 0), rows.text(0, 2)), ("ess.user@example.com", "Gurney Halleck"));
}

/// Access rules take rows out after the limit, so that pages are short, or empty, with more behind them.
#[tokio::test]
async fn hidden_rows_are_counted_and_not_shown() {
    let sim = instance().await;
    let ess = basic(&sim, "ess.user");
    let all = sim.truth("incident", "admin").expect("a table").len() as u64;
    let seen = sim.truth("incident", "ess.user").expect("a table").len();
    let whole = page(&ess, "incident", "", 1_000).await.expect("an answer");
    assert_eq!((whole.total, whole.rows.len()), (Some(all), seen));
    let (incident, layout, query) = (table("incident"), some_fields(), Query::all().order_by("sys_id"));
    let mut found = 0;
    for offset in (0..all).step_by(5) {
        let list = List { table: &incident, query: &query, layout: &layout, limit: 5, offset, count: true };
        let page = ess.list(list).await.expect("an answer");
        assert_eq!(page.total, Some(all));
        found += page.rows.len();
    }
    assert_eq!(found, seen);
}

#[tokio::test]
async fn a_count_is_made_only_if_asked_for() {
    let sim = instance().await;
    let (client, incident, layout, query) = (client(&sim), table("incident"), some_fields(), Query::all());
    let list = List { table: &incident, query: &query, layout: &layout, limit: 3, offset: 0, count: false };
    let page = client.list(list).await.expect("an answer");
    assert_eq!((page.total, page.rows.len()), (None, 3));
    assert!(page.served_at.is_some());
}

#[tokio::test]
async fn the_instances_clock_comes_with_every_page() {
    let sim = instance().await;
    sim.clock().step(chrono::TimeDelta::hours(-5));
    let page = page(&client(&sim), "incident", "", 1).await.expect("an answer");
    let there = sim.clock().now().timestamp();
    assert!((page.served_at.expect("a Date header") - there).abs() <= 2);
}

#[tokio::test]
async fn conditions_and_order_reach_the_instance_as_they_were_meant() {
    let sim = instance().await;
    let (client, incident, layout) = (client(&sim), table("incident"), some_fields());
    let query = Query::parse("state=1^ORstate=2^NQnumber=INC0012345").expect("a query");
    let query = query.and(Term::new("sys_id", Op::Gt, "8").expect("a term")).order_by_descending("number");
    let list = List { table: &incident, query: &query, layout: &layout, limit: 100, offset: 0, count: true };
    let page = client.list(list).await.expect("an answer");
    let mut expected: Vec<String> = sim
        .truth("incident", "fdw.integration")
        .expect("a table")
        .into_iter()
        .filter(|r| {
            (["1", "2"].contains(&r["state"].as_str()) || r["number"] == "INC0012345")
                && r["sys_id"].as_str() > "8"
        })
        .map(|r| r["number"].clone())
        .collect();
    expected.sort_by(|a, b| b.cmp(a));
    let got: Vec<&str> = (0..page.rows.len()).map(|row| page.rows.get(row, "number")).collect();
    assert_eq!(got, expected);
}

#[tokio::test]
async fn identities_of_any_characters_are_addressed() {
    let sim = instance().await;
    let (client, table, layout) = (client(&sim), table("u_pg_widget"), Layout::of_text(&["u_name"]));
    let layout = std::sync::Arc::new(layout);
    for id in ["global", "4", "a b", "a/b?c=d&e#f", "50% + \u{e9}"] {
        sim.edit().insert("u_pg_widget", &[("sys_id", id), ("u_name", "odd")]).expect("a record");
        let id = SysId::new(id);
        assert_eq!(client.get(&table, &id, &layout).await.expect("it is there").id(0), id.as_str());
        client.delete(&table, &id).await.expect("it goes");
        assert!(sim.record("u_pg_widget", id.as_str()).is_none());
    }
}

/// So many names would make the address too long for the instance's front end.
#[tokio::test]
async fn a_record_of_very_many_fields_is_read_whole() {
    let sim = instance().await;
    let mut fields = Vec::new();
    for n in 0..160 {
        let name = format!("u_a_field_with_a_rather_long_name_so_that_it_counts_{n}");
        fields.push(sim.edit().add_column("u_pg_static", &name, "Long", "string").expect("a column"));
    }
    let names: Vec<&str> = fields.iter().map(String::as_str).collect();
    let id =
        sim.edit().insert("u_pg_static", &[("u_code", "long"), (names[159], "the last")]).expect("a record");
    let layout = std::sync::Arc::new(Layout::of_text(&names));
    let rows = client(&sim).get(&table("u_pg_static"), &SysId::new(id), &layout).await.expect("it is there");
    assert_eq!(rows.get(0, names[159]), "the last");
}

#[tokio::test]
async fn text_arrives_as_it_is_stored() {
    let sim = instance().await;
    let (client, incident, layout) = (client(&sim), table("incident"), some_fields());
    for text in [
        " leading and trailing ",
        "a\r\nb\tc",
        "\u{1F37A} \u{5e9}\u{5dc}",
        "\"quoted\" \\N \\u0000 {}",
        "&lt;b&gt; <i>",
    ] {
        let fields = Map::from_iter([("description".to_owned(), json!(text))]);
        let rows = client
            .update(&incident, &known(&sim), &fields, &layout, Effect::Idempotent)
            .await
            .expect("it is changed");
        assert_eq!(rows.get(0, "description"), text);
        assert_eq!(sim.record("incident", known(&sim).as_str()).expect("it is there")["description"], text);
    }
}
