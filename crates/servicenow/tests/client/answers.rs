use std::time::Duration;

use serde_json::{Map, json};
use servicenow::Error;
use servicenow::client::retry::Effect as Repeated;
use servicenow::client::table_api::List;
use servicenow::error::Refusal;
use servicenow::query::Query;
use servicenow::value::SysId;
use servicenow_sim::{AclRule, Availability, Cut, Effect, Fault, Operation};

use crate::{HttpClient, basic, client, client_at, instance, known, login, page, set_up, some_fields, table};

fn fields(pairs: &[(&str, &str)]) -> Map<String, serde_json::Value> {
    pairs.iter().map(|(field, value)| ((*field).to_owned(), json!(value))).collect()
}

/// The kind of a refused update of a record.
async fn refusal(
    client: &HttpClient,
    name: &str,
    id: &str,
    change: &[(&str, &str)],
) -> Option<(Refusal, String)> {
    let (table, id, fields, layout) = (table(name), SysId::new(id), fields(change), some_fields());
    match client.update(&table, &id, &fields, &layout, Repeated::Idempotent).await {
        Err(Error::Refused { refusal, words }) => Some((refusal, words.detail.unwrap_or_default())),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_table_that_is_not_there_and_a_record_that_is_not_there_are_told_apart() {
    let sim = instance().await;
    let client = client(&sim);
    let error = page(&client, "no_such_table", "", 1).await.expect_err("no table");
    assert!(
        matches!(&error, Error::NoTable(words) if words.message == "Invalid table no_such_table"),
        "{error:?}"
    );
    let (incident, nobody, layout) = (table("incident"), SysId::new("none"), some_fields());
    let gone = |error: Option<Error>| matches!(error, Some(Error::NoRecord(words)) if words.message == "No Record found");
    assert!(gone(client.get(&incident, &nobody, &layout).await.err()));
    assert!(gone(client.delete(&incident, &nobody).await.err()));
    let change = fields(&[("state", "2")]);
    let update = client.update(&incident, &nobody, &change, &layout, Repeated::Idempotent);
    assert!(gone(update.await.err()));
    assert!(matches!(client.get(&table("no_such_table"), &nobody, &layout).await, Err(Error::NoTable(_))));
}

#[tokio::test]
async fn every_refusal_of_a_write_is_told_apart() {
    let sim = instance().await;
    let client = client(&sim);
    let incident = known(&sim);
    let resolved = refusal(&client, "incident", incident.as_str(), &[("state", "6")]).await;
    let detail =
        "Data Policy Exception: The following fields are mandatory: Resolution code, Resolution notes";
    assert_eq!(resolved, Some((Refusal::Mandatory, detail.to_owned())));
    let thing =
        |code: &str| sim.edit().find("x_acme_app_thing", &format!("code={code}")).expect("a query").remove(0);
    let taken = refusal(&client, "x_acme_app_thing", &thing("T-0001"), &[("code", "T-0002")])
        .await
        .expect("a refusal");
    assert_eq!(taken.0, Refusal::Unique);
    let aborted = refusal(&client, "x_acme_app_thing", &thing("T-0001"), &[("name", "forbidden")])
        .await
        .expect("a refusal");
    assert_eq!(aborted.0, Refusal::Aborted);
    assert!(aborted.1.contains("aborted by Business Rule 'Acme guard"), "{}", aborted.1);
    let reader = basic(&sim, "readonly.user");
    let denied = refusal(&reader, "incident", incident.as_str(), &[("state", "3")]).await;
    assert_eq!(denied, Some((Refusal::Acl, "ACL Exception due to insufficient rights".to_owned())));
    let restricted = {
        sim.edit().grant_role("fdw.integration", "user_admin").expect("the user is there");
        let owner = sim.record("x_acme_app_thing", &thing("T-0001")).expect("it is there")["owner"].clone();
        client.delete(&table("sys_user"), &SysId::new(owner)).await
    };
    assert!(matches!(restricted, Err(Error::Refused { refusal: Refusal::Aborted, .. })), "{restricted:?}");
}

#[tokio::test]
async fn a_query_that_may_not_be_asked_is_told_apart_from_a_table_that_may_not_be_read() {
    let sim = instance().await;
    let client = client(&sim);
    let user = Some("fdw.integration".to_owned());
    let (incident, field) = ("incident".to_owned(), "priority".to_owned());
    sim.edit().add_acl(AclRule::QueryMatch { table: incident.clone(), field, user: user.clone() });
    let error = page(&client, "incident", "priority=1", 1).await.expect_err("403");
    assert!(matches!(error, Error::Refused { refusal: Refusal::QueryAcl, .. }), "{error:?}");
    page(&client, "incident", "", 1).await.expect("an answer");
    sim.edit().add_acl(AclRule::Table { table: incident, user, operation: Operation::Read, refuse: true });
    let error = page(&client, "incident", "", 1).await.expect_err("403");
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
}

/// What a GET fails with when it meets a fault every time.
async fn failure(effect: Effect) -> Error {
    let sim = instance().await;
    sim.fault(Fault::new(effect));
    let client = client_at(sim.url(), login("admin"), 1);
    page(&client, "incident", "", 50).await.expect_err("a failure")
}

macro_rules! assert_fails {
    ($effect:expr, $pattern:pat $(if $guard:expr)?) => {{
        let error = failure($effect).await;
        assert!(matches!(&error, $pattern $(if $guard)?), "{:?} gives {error:?}", $effect);
    }};
}

#[tokio::test]
async fn every_answer_that_is_none_is_told_apart() {
    assert_fails!(Effect::Discard, Error::Discarded);
    assert_fails!(Effect::Status { status: 500, html: false }, Error::Unavailable { status: 500, .. });
    assert_fails!(Effect::Status { status: 502, html: true }, Error::Unavailable { status: 502, .. });
    assert_fails!(Effect::Status { status: 503, html: true }, Error::Unavailable { status: 503, .. });
    assert_fails!(Effect::Status { status: 414, html: true }, Error::TooLong);
    assert_fails!(Effect::Status { status: 302, html: true }, Error::Unreadable(_));
    assert_fails!(Effect::Status { status: 415, html: false }, Error::Rejected { status: 415, .. });
    assert_fails!(Effect::Status { status: 404, html: true }, Error::Rejected { status: 404, .. });
    assert_fails!(Effect::Unauthorized, Error::Unauthorized(_));
    assert_fails!(Effect::NullBody, Error::Unreadable(why) if why == "the answer is null");
    assert_fails!(Effect::EmptyBody, Error::Unreadable(why) if why == "the answer is empty");
    assert_fails!(Effect::Hibernating, Error::Unreadable(why) if why == "the instance is hibernating");
    assert_fails!(Effect::LoginPage, Error::Unreadable(_));
    assert_fails!(Effect::ResetBefore, Error::Broken { .. });
    assert_fails!(Effect::ResetAfter, Error::Broken { .. });
    assert_fails!(Effect::Truncate { bytes: 100 }, Error::Broken { .. });
}

#[tokio::test]
async fn every_way_a_list_is_cut_short_is_noticed() {
    for rows in [0, 1, 20] {
        assert_fails!(Effect::Cut { rows, cut: Cut::Error }, Error::CutShort(words) if words.message.starts_with("Transaction cancelled"));
        assert_fails!(Effect::Cut { rows, cut: Cut::DanglingComma }, Error::CutShort(_));
    }
    assert_fails!(Effect::Cut { rows: 20, cut: Cut::Broken }, Error::CutShort(_));
    assert_fails!(Effect::Cancelled, Error::CutShort(words) if words.message.starts_with("Transaction cancelled"));
}

#[tokio::test]
async fn the_two_kinds_of_too_many_calls_say_how_long_to_wait_if_the_instance_does() {
    let limited = |headers, retry_after, json| Effect::RateLimited { headers, retry_after, json };
    let seconds = |wait: &Option<Duration>| wait.map(|wait| wait.as_secs());
    assert_fails!(
        limited(true, Some(17), true),
        Error::RateLimited { retry_after, words } if seconds(retry_after) == Some(17) && words.message == "Rate limit exceeded"
    );
    assert_fails!(limited(false, Some(9), true), Error::RateLimited { retry_after, .. } if seconds(retry_after) == Some(9));
    assert_fails!(limited(false, None, false), Error::RateLimited { retry_after: None, .. });
}

#[tokio::test]
async fn an_instance_that_is_away_is_told_apart_from_one_that_breaks_off() {
    let sim = instance().await;
    sim.set(|s| s.availability = Availability::Down);
    let error = page(&client_at(sim.url(), login("admin"), 1), "incident", "", 1).await.expect_err("503");
    assert!(matches!(error, Error::Unavailable { status: 503, .. }), "{error:?}");
    sim.set(|s| s.availability = Availability::Unreachable);
    let error = page(&client_at(sim.url(), login("admin"), 1), "incident", "", 1).await.expect_err("a reset");
    assert!(matches!(error, Error::Broken { .. }), "{error:?}");
    let url = sim.url().to_owned();
    sim.stop().await;
    for address in [url.as_str(), "http://no.such.host.invalid"] {
        let error =
            page(&client_at(address, login("admin"), 1), "incident", "", 1).await.expect_err("nobody there");
        assert!(matches!(error, Error::Connect { .. }), "{address}: {error:?}");
        assert!(!error.leaves_outcome_unknown());
    }
}

#[tokio::test]
async fn an_answer_that_never_comes_is_told_apart_from_a_connection_that_breaks() {
    let sim = instance().await;
    sim.fault(Fault::new(Effect::Hang));
    let client = set_up(sim.url(), login("admin"), |instance, options| {
        instance.patience.attempts = 1;
        options.request_timeout = Duration::from_millis(200);
    })
    .expect("a client");
    let error = page(&client, "incident", "", 1).await.expect_err("a timeout");
    assert!(matches!(&error, Error::TimedOut { .. }), "{error:?}");
    assert!(error.leaves_outcome_unknown());
}

#[tokio::test]
async fn an_answer_in_small_pieces_is_read_whole() {
    let sim = instance().await;
    sim.fault(Fault::new(Effect::Drip { bytes: 300, interval_ms: 1 }));
    let page = page(&client(&sim), "incident", "", 50).await.expect("an answer");
    assert_eq!(page.rows.len(), 50.min(page.total.expect("it was counted") as usize));
}

#[tokio::test]
async fn an_address_that_would_be_too_long_is_not_sent() {
    let sim = instance().await;
    let client = client(&sim);
    let ids: Vec<SysId> = (0..400).map(|n| SysId::new(format!("{n:032x}"))).collect();
    let query = Query::all().and(servicenow::query::ids_term(&ids));
    let (table, layout) = (table("incident"), some_fields());
    let list = List { table: &table, query: &query, layout: &layout, limit: 1, offset: 0, count: false };
    assert!(matches!(client.list(list).await, Err(Error::TooLong)));
    assert!(sim.requests().is_empty());
}
