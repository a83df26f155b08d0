//! Many writes at once: what is sent, and what becomes of them when all goes well or something is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Map, Value as Json, json};
use servicenow::Error;
use servicenow::client::auth::{Credentials, OauthClient, Secret};
use servicenow::client::retry::Effect as Repeated;
use servicenow::client::table_api::Identity;
use servicenow::client::transport::Transport;
use servicenow::client::write::{Change, Fate};
use servicenow::error::Refusal;
use servicenow::page::Layout;
use servicenow::value::SysId;
use servicenow_sim::{BusinessRule, Effect, Fault, LoggedRequest, Operation, Phase, RuleEffect, Simulator};

use crate::{
    Client, HttpClient, basic, calls, client, client_at, instance, login, logins, set_up, some_fields, table,
};

/// Batches so far.
pub(crate) fn batches(sim: &Simulator) -> Vec<LoggedRequest> {
    sim.requests().into_iter().filter(|request| request.endpoint == "batch").collect()
}

/// Table API requests so far that were items of batches.
pub(crate) fn items(sim: &Simulator) -> usize {
    sim.requests().iter().filter(|request| request.in_batch).count()
}

/// Table API requests so far that were calls of their own.
fn singles(sim: &Simulator, method: &str) -> usize {
    calls(sim, method).iter().filter(|request| !request.in_batch).count()
}

pub(crate) fn fields(name: &str, value: &str) -> Map<String, Json> {
    Map::from_iter([(name.to_owned(), json!(value))])
}

/// An identifier that is not there yet.
pub(crate) fn new_id(series: u8, n: usize) -> SysId {
    let mut bytes = [series; 16];
    bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
    SysId::from_random(bytes)
}

/// So many new incidents, each with a text.
pub(crate) fn inserts(series: u8, count: usize, text: &str) -> Vec<Change> {
    let id = |n| Identity::Fresh(new_id(series, n));
    (0..count).map(|n| Change::Insert { id: id(n), fields: fields("short_description", text) }).collect()
}

/// So many incidents that are there.
pub(crate) fn there(sim: &Simulator, count: usize) -> Vec<SysId> {
    let insert = |_| sim.edit().insert("incident", &[("short_description", "before")]).expect("a record");
    (0..count).map(insert).map(SysId::new).collect()
}

pub(crate) fn updates(ids: &[SysId], effect: Repeated, field: &str, text: &str) -> Vec<Change> {
    let update =
        |id: &SysId| Change::Update { id: id.clone(), fields: fields(field, text), effect, from: None };
    ids.iter().map(update).collect()
}

pub(crate) fn deletes(ids: &[SysId]) -> Vec<Change> {
    ids.iter().map(|id| Change::Delete { id: id.clone() }).collect()
}

/// Incidents with a text.
pub(crate) fn with_text(sim: &Simulator, text: &str) -> usize {
    sim.edit().find("incident", &format!("short_description={text}")).expect("a query").len()
}

/// Writes incidents; as many fates as changes, and as much progress as was accepted.
pub(crate) async fn write<T: Transport>(client: &Client<T>, changes: Vec<Change>) -> Vec<Fate> {
    write_to(client, "incident", changes, false).await
}

async fn write_to<T: Transport>(
    client: &Client<T>,
    name: &str,
    changes: Vec<Change>,
    pass_over_duplicates: bool,
) -> Vec<Fate> {
    let (count, progress) = (changes.len(), Arc::new(AtomicU64::new(0)));
    let (table, layout) = (table(name), some_fields());
    let fates = client.write_all(&table, changes, &layout, pass_over_duplicates, &progress).await;
    assert_eq!(fates.len(), count);
    assert_eq!(progress.load(Ordering::Relaxed), done(&fates) as u64);
    fates
}

pub(crate) fn done(fates: &[Fate]) -> usize {
    fates.iter().filter(|fate| matches!(fate, Fate::Done(_))).count()
}

pub(crate) fn not_sent(fates: &[Fate]) -> usize {
    fates.iter().filter(|fate| matches!(fate, Fate::NotSent)).count()
}

pub(crate) fn failures(fates: &[Fate]) -> Vec<&Error> {
    let mut failures = Vec::new();
    for fate in fates {
        if let Fate::Failed(error) = fate {
            failures.push(error);
        }
    }
    failures
}

/// A client that makes one call at a time, so that it is known what goes first, and waits for a busy machine.
pub(crate) fn one_at_a_time(sim: &Simulator) -> HttpClient {
    let client = set_up(sim.url(), login("admin"), |instance, options| {
        (instance.max_concurrency, options.request_timeout) = (1, Duration::from_secs(60));
    });
    client.expect("a client")
}

/// Incidents whose description is "no" may not be written.
pub(crate) fn refuse_some(sim: &Simulator) {
    sim.edit().add_rule(BusinessRule {
        name: "no".to_owned(),
        table: "incident".to_owned(),
        phase: Phase::Before,
        operations: vec![Operation::Create, Operation::Write],
        condition: "description=no".to_owned(),
        effect: RuleEffect::Abort,
    });
}

#[tokio::test]
async fn nothing_to_do_is_done_without_a_call() {
    let sim = instance().await;
    assert!(write(&client(&sim), Vec::new()).await.is_empty());
    assert!(sim.requests().is_empty());
}

#[tokio::test]
async fn one_change_is_a_call_of_its_own() {
    let sim = instance().await;
    let fates = write(&client(&sim), inserts(1, 1, "alone")).await;
    assert!(matches!(&fates[0], Fate::Done(rows) if rows.get(0, "short_description") == "alone"));
    assert_eq!((batches(&sim).len(), singles(&sim, "POST")), (0, 1));
}

#[tokio::test]
async fn a_hundred_changes_of_every_kind_are_spread_over_the_calls_there_may_be() {
    let sim = instance().await;
    let ids = there(&sim, 66);
    let mut changes = inserts(1, 34, "made");
    changes.extend(updates(&ids[..33], Repeated::Idempotent, "short_description", "changed"));
    changes.extend(deletes(&ids[33..]));
    let fates = write(&client(&sim), changes).await;
    for (n, fate) in fates.iter().enumerate() {
        let Fate::Done(rows) = fate else { panic!("{n}: {fate:?}") };
        match n {
            0..34 => {
                let row = (rows.len(), rows.id(0), rows.get(0, "short_description"));
                assert_eq!(row, (1, new_id(1, n).as_str(), "made"));
                assert!(rows.get(0, "number").starts_with("INC"), "the instance numbers it");
            }
            34..67 => {
                let row = (rows.len(), rows.id(0), rows.get(0, "short_description"));
                assert_eq!(row, (1, ids[n - 34].as_str(), "changed"));
            }
            _ => {
                assert!(rows.is_empty());
                assert!(sim.record("incident", ids[n - 34].as_str()).is_none());
            }
        }
    }
    assert_eq!((batches(&sim).len(), items(&sim), sim.requests().len()), (4, 100, 104));
    assert_eq!((with_text(&sim, "made"), with_text(&sim, "changed"), with_text(&sim, "before")), (34, 33, 0));
}

/// A call costs 50 ms here, so a thousand of them would 50 seconds. What the instance does besides takes as long as the
/// machine that runs it is busy, and is left out of account.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_changes_take_a_fraction_of_a_thousand_calls() {
    let sim = instance().await;
    sim.set(|s| s.latency_ms = 50);
    let client = set_up(sim.url(), login("fdw.integration"), |_, options| {
        options.request_timeout = Duration::from_secs(60);
    });
    let (client, ids) = (client.expect("a client"), there(&sim, 1_000));
    for (kind, changes) in [
        ("insert", inserts(1, 1_000, "made")),
        ("update", updates(&ids, Repeated::Idempotent, "short_description", "changed")),
        ("delete", deletes(&ids)),
    ] {
        sim.clear_requests();
        let began = Instant::now();
        assert_eq!(done(&write(&client, changes).await), 1_000);
        let took = began.elapsed().as_secs_f64() * 1_000.0;
        let calls = batches(&sim);
        let busy: f64 = calls.iter().map(|call| call.duration_ms).sum();
        assert_eq!(items(&sim), 1_000);
        assert!(calls.len() <= 30, "{kind}: {} calls", calls.len());
        assert!(took < busy / 1.5, "{kind}: {took} ms for {busy} ms, which go side by side");
    }
}

#[tokio::test]
async fn what_was_learned_about_a_table_outlasts_the_statement() {
    let sim = instance().await;
    let client = client(&sim);
    assert_eq!(done(&write(&client, inserts(1, 1_000, "made")).await), 1_000);
    sim.clear_requests();
    assert_eq!(done(&write(&client, inserts(2, 400, "made")).await), 400);
    assert!(batches(&sim).len() <= 8, "{}", batches(&sim).len());
}

#[tokio::test]
async fn a_batch_is_one_call_of_the_budget_and_of_the_statistics() {
    let sim = instance().await;
    let client = set_up(sim.url(), login("admin"), |instance, _| instance.max_calls_per_hour = Some(5));
    let client = client.expect("a client");
    assert_eq!(done(&write(&client, inserts(1, 100, "made")).await), 100);
    assert_eq!(client.budget().map(|left| left.used), Some(4));
    let stats = client.take_stats();
    assert_eq!(stats.get("POST batch").map(|counters| (counters.calls, counters.errors)), Some((4, 0)));
    let fates = write(&client, inserts(2, 200, "too many")).await;
    let failed = failures(&fates);
    assert!(
        failed.iter().all(|e| matches!(e, Error::BudgetUsedUp { .. })) && !failed.is_empty(),
        "{failed:?}"
    );
    assert_eq!(done(&fates), with_text(&sim, "too many"));
    assert!((25..=50).contains(&done(&fates)), "one call was left");
}

#[tokio::test]
async fn after_a_refusal_nothing_more_is_sent_and_it_is_known_what_was_accepted() {
    let sim = instance().await;
    refuse_some(&sim);
    let mut changes = inserts(1, 200, "made");
    let Change::Insert { fields, .. } = &mut changes[10] else { unreachable!("they are inserts") };
    fields.insert("description".to_owned(), json!("no"));
    let fates = write(&one_at_a_time(&sim), changes).await;
    let Fate::Failed(Error::Refused { refusal: Refusal::Aborted, words }) = &fates[10] else {
        panic!("{:?}", fates[10]);
    };
    assert!(words.to_string().contains("aborted by Business Rule 'no^"), "{words}");
    assert_eq!((done(&fates), not_sent(&fates)), (24, 175), "the rest of its batch was carried out");
    assert_eq!((batches(&sim).len(), with_text(&sim, "made")), (1, 24));
}

#[tokio::test]
async fn what_is_under_way_when_something_is_refused_is_waited_for() {
    let sim = instance().await;
    refuse_some(&sim);
    sim.fault(Fault::new(Effect::Delay { ms: 300 }).path("/batch").after(1).times(3));
    let mut changes = inserts(1, 1_000, "made");
    let Change::Insert { fields, .. } = &mut changes[0] else { unreachable!("they are inserts") };
    fields.insert("description".to_owned(), json!("no"));
    let fates = write(&client(&sim), changes).await;
    assert_eq!(failures(&fates).len(), 1);
    assert_eq!((done(&fates), not_sent(&fates)), (batches(&sim).len() * 25 - 1, 1_000 - items(&sim)));
    assert_eq!(with_text(&sim, "made"), done(&fates));
    assert!(items(&sim) <= 125);
}

#[tokio::test]
async fn duplicates_are_passed_over_if_that_is_wanted() {
    let sim = instance().await;
    let client = basic(&sim, "admin");
    let thing = |n: usize| Change::Insert {
        id: Identity::Fresh(new_id(1, n)),
        fields: fields("code", if n.is_multiple_of(3) { "taken" } else { ["a", "b"][n % 2] }),
    };
    sim.edit().insert("x_acme_app_thing", &[("code", "taken")]).expect("a record");
    let fates = write_to(&client, "x_acme_app_thing", (0..40).map(thing).collect(), true).await;
    assert_eq!((done(&fates), failures(&fates).len(), not_sent(&fates)), (2, 38, 0));
    for (n, fate) in fates.iter().enumerate().step_by(3) {
        assert!(
            matches!(fate, Fate::Failed(Error::Refused { refusal: Refusal::Unique, .. })),
            "{n}: {fate:?}"
        );
    }
    assert!(calls(&sim, "GET").is_empty(), "no need to look anything up");
    let things = (100..160).map(|n| Change::Insert {
        id: Identity::Fresh(new_id(1, n)),
        fields: fields("code", &if n == 104 { "taken".to_owned() } else { n.to_string() }),
    });
    let one = one_at_a_time(&sim);
    let fates = write_to(&one, "x_acme_app_thing", things.collect(), false).await;
    assert_eq!((done(&fates), not_sent(&fates)), (24, 35), "it is a failure otherwise");
}

/// Only inserts can be passed over.
#[tokio::test]
async fn an_update_that_violates_a_unique_key_is_a_failure() {
    let sim = instance().await;
    let thing =
        |code: &str| SysId::new(sim.edit().insert("x_acme_app_thing", &[("code", code)]).expect("it"));
    let ids = [thing("a"), thing("b"), thing("c")];
    let client = one_at_a_time(&sim);
    let changes = updates(&ids[1..], Repeated::Idempotent, "code", "a");
    let fates = write_to(&client, "x_acme_app_thing", changes, true).await;
    assert_eq!(failures(&fates).len(), 2);
    sim.clear_requests();
    let changes =
        [updates(&ids[1..2], Repeated::Idempotent, "code", "a"), deletes(&vec![ids[0].clone(); 100])];
    write_to(&client, "x_acme_app_thing", changes.concat(), true).await;
    assert_eq!(batches(&sim).len(), 1);
}

#[tokio::test]
async fn where_there_is_no_batch_api_changes_are_calls_of_their_own() {
    for status in [None, Some(403), Some(404), Some(405)] {
        let sim = instance().await;
        match status {
            None => sim.set(|s| s.batch_api = false),
            Some(status) => {
                sim.fault(Fault::new(Effect::Status { status, html: false }).path("/api/now/v1/batch"));
            }
        }
        sim.set(|s| s.latency_ms = 5);
        let client = client(&sim);
        let fates = write(&client, inserts(1, 60, "made")).await;
        assert_eq!((done(&fates), with_text(&sim, "made")), (60, 60), "{status:?}");
        let tried = batches(&sim).len();
        assert!((1..=5).contains(&tried), "{status:?}: {tried}");
        let ids = there(&sim, 20);
        let changes = [deletes(&ids[..10]), updates(&ids[10..], Repeated::Once, "work_notes", "note")];
        assert_eq!(done(&write(&client, changes.concat()).await), 20);
        assert_eq!(batches(&sim).len(), tried, "{status:?}: that is known by now");
        assert_eq!((singles(&sim, "POST"), singles(&sim, "DELETE"), singles(&sim, "PATCH")), (60, 10, 10));
    }
}

#[tokio::test]
async fn where_there_is_no_batch_api_a_refusal_stops_the_rest_too() {
    let sim = instance().await;
    refuse_some(&sim);
    sim.set(|s| s.batch_api = false);
    let mut changes = inserts(1, 50, "made");
    let Change::Insert { fields, .. } = &mut changes[5] else { unreachable!("they are inserts") };
    fields.insert("description".to_owned(), json!("no"));
    let fates = write(&one_at_a_time(&sim), changes).await;
    assert_eq!((done(&fates), failures(&fates).len(), not_sent(&fates)), (5, 1, 44));
    assert_eq!(with_text(&sim, "made"), 5);
}

/// Whatever is wrong with batches, it need not be wrong with the changes.
#[tokio::test]
async fn a_batch_that_is_not_accepted_as_such_goes_in_calls_of_their_own() {
    let sim = instance().await;
    sim.fault(Fault::new(Effect::Status { status: 400, html: false }).path("/batch").times(1));
    let client = one_at_a_time(&sim);
    assert_eq!(done(&write(&client, inserts(1, 50, "made")).await), 50);
    assert_eq!((singles(&sim, "POST"), with_text(&sim, "made")), (25, 50));
}

#[tokio::test]
async fn a_change_too_large_for_a_batch_is_a_call_of_its_own() {
    let sim = instance().await;
    let mut changes = inserts(1, 20, "made");
    let Change::Insert { fields, .. } = &mut changes[7] else { unreachable!("they are inserts") };
    fields.insert("description".to_owned(), json!("x".repeat(4 << 20)));
    let fates = write(&client(&sim), changes).await;
    assert_eq!((done(&fates), with_text(&sim, "made")), (20, 20));
    assert_eq!((singles(&sim, "POST"), items(&sim)), (1, 19));
}

/// The instance refuses a body of more than 10 MB.
#[tokio::test]
async fn a_batch_is_no_larger_than_an_instance_takes() {
    let sim = instance().await;
    let mut changes = inserts(1, 50, "made");
    for change in &mut changes {
        let Change::Insert { fields, .. } = change else { unreachable!("they are inserts") };
        fields.insert("description".to_owned(), json!("x".repeat(300_000)));
    }
    let fates = write(&one_at_a_time(&sim), changes).await;
    assert_eq!((done(&fates), with_text(&sim, "made")), (50, 50));
    assert!(batches(&sim).iter().all(|batch| batch.status == 200));
    assert!(batches(&sim).len() >= 5, "they are batches nevertheless");
}

/// An item's address is part of the body, however long it is.
#[tokio::test]
async fn records_of_many_fields_are_written_too() {
    let sim = instance().await;
    let names: Vec<String> = (0..480).map(|n| format!("u_field_{n:02}")).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.push("short_description");
    let (client, layout) = (client(&sim), Arc::new(Layout::of_text(&names)));
    let changes = inserts(1, 30, "made");
    let fates = client.write_all(&table("incident"), changes, &layout, false, &Arc::default()).await;
    assert_eq!(done(&fates), 30);
    assert!(matches!(&fates[29], Fate::Done(rows) if rows.get(0, "short_description") == "made"));
}

#[tokio::test]
async fn a_token_that_ends_is_renewed_whether_the_batch_or_an_item_is_told() {
    for fault in [
        Fault::new(Effect::ExpireTokens).path("/batch").after(1).times(1),
        Fault::new(Effect::Unauthorized).in_batch().after(10).times(3),
    ] {
        let sim = instance().await;
        let credentials = Credentials::Password {
            client: OauthClient::new("fdw-client", Secret::new("fdw-client-secret")),
            username: "fdw.integration".to_owned(),
            password: Secret::new("fdw-secret").into(),
        };
        let client = client_at(sim.url(), credentials, 3);
        sim.fault(fault.clone());
        let fates = write(&client, inserts(1, 100, "made")).await;
        assert_eq!((done(&fates), with_text(&sim, "made")), (100, 100), "{fault:?}");
        assert_eq!(logins(&sim), 2, "{fault:?}");
    }
}

#[tokio::test]
async fn records_are_looked_up_in_few_calls() {
    let sim = instance().await;
    let (client, layout) = (basic(&sim, "admin"), some_fields());
    let mut ids = there(&sim, 400);
    ids.push(new_id(9, 1));
    let odd = sim.edit().insert("incident", &[("sys_id", "odd,one")]).expect("a record");
    ids.extend([SysId::new(odd), SysId::new("not,there")]);
    let rows = client.look(&table("incident"), &ids, &layout).await.expect("an answer");
    let mut found: Vec<&str> = rows.ids().collect();
    let mut expected: Vec<&str> = ids.iter().map(SysId::as_str).filter(|id| *id != "not,there").collect();
    expected.retain(|id| *id != new_id(9, 1).as_str());
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(calls(&sim, "GET").len(), 2 + 2, "two lists and two records");
    sim.clear_requests();
    assert!(client.look(&table("incident"), &[], &layout).await.expect("nothing").is_empty());
    assert!(sim.requests().is_empty());
}

#[tokio::test]
async fn a_look_up_that_an_instance_cannot_answer_whole_is_made_in_parts() {
    let sim = instance().await;
    let (client, ids) = (client(&sim), there(&sim, 100));
    sim.set(|s| s.row_quota = Some(servicenow_sim::RowQuota { rows: 30, cut: servicenow_sim::Cut::Error }));
    let rows = client.look(&table("incident"), &ids, &some_fields()).await.expect("an answer");
    assert_eq!(rows.len(), 100);
}
