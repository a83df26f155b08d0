use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Map, json};
use servicenow::Error;
use servicenow::client::retry::Effect as Repeated;
use servicenow::client::table_api::Identity;
use servicenow::value::SysId;
use servicenow_sim::{Effect, Fault, FaultId, Simulator};

use crate::{calls, client, client_at, instance, known, login, page, set_up, some_fields, table};

fn once(sim: &Simulator, method: &str, effect: Effect) -> FaultId {
    sim.fault(Fault::new(effect).method(method).times(1))
}

fn description(text: &str) -> Map<String, serde_json::Value> {
    Map::from_iter([("short_description".to_owned(), json!(text))])
}

/// Failures in which nothing was carried out, or which a read may meet as often as it likes.
fn passing() -> Vec<Effect> {
    vec![
        Effect::Discard,
        Effect::Status { status: 500, html: false },
        Effect::Status { status: 502, html: true },
        Effect::Status { status: 503, html: true },
        Effect::NullBody,
        Effect::EmptyBody,
        Effect::Hibernating,
        Effect::ResetBefore,
        Effect::ResetAfter,
        Effect::Truncate { bytes: 50 },
        Effect::RateLimited { headers: false, retry_after: None, json: false },
    ]
}

#[tokio::test]
async fn a_read_comes_through_every_passing_failure() {
    let sim = instance().await;
    let client = client(&sim);
    for effect in passing() {
        let fault = once(&sim, "GET", effect.clone());
        page(&client, "incident", "", 5).await.unwrap_or_else(|e| panic!("{effect:?}: {e:?}"));
        assert_eq!(sim.fault_count(fault), 1);
    }
}

#[tokio::test]
async fn an_update_that_may_be_repeated_comes_through_every_passing_failure() {
    let sim = instance().await;
    let (client, id, layout) = (client(&sim), known(&sim), some_fields());
    for (n, effect) in passing().into_iter().enumerate() {
        once(&sim, "PATCH", effect.clone());
        let text = format!("text {n}");
        let rows =
            client.update(&table("incident"), &id, &description(&text), &layout, Repeated::Idempotent).await;
        let rows = rows.unwrap_or_else(|e| panic!("{effect:?}: {e:?}"));
        assert_eq!(rows.get(0, "short_description"), text);
        assert_eq!(sim.record("incident", id.as_str()).expect("it is there")["short_description"], text);
    }
}

/// Sending a journal entry again would make two of it.
#[tokio::test]
async fn an_update_that_may_not_be_repeated_is_sent_again_only_if_it_was_not_carried_out() {
    let sim = instance().await;
    let (client, id, layout) = (client(&sim), known(&sim), some_fields());
    let entries = || {
        let query = format!("element_id={id}^element=work_notes");
        sim.edit().find("sys_journal_field", &query).expect("a query").len()
    };
    for effect in passing() {
        once(&sim, "PATCH", effect.clone());
        let before = entries();
        let note = Map::from_iter([("work_notes".to_owned(), json!("note"))]);
        let outcome = client.update(&table("incident"), &id, &note, &layout, Repeated::Once).await;
        match effect {
            Effect::Discard | Effect::RateLimited { .. } => {
                outcome.expect("it was not carried out the first time");
                assert_eq!(entries(), before + 1);
            }
            _ => {
                let error = outcome.expect_err("nobody knows");
                assert!(error.leaves_outcome_unknown(), "{effect:?}: {error:?}");
                assert!(entries() <= before + 1, "{effect:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_insert_makes_one_record_whatever_becomes_of_its_answer() {
    let sim = instance().await;
    let (client, layout) = (client(&sim), some_fields());
    for (n, effect) in passing().into_iter().enumerate() {
        once(&sim, "POST", effect.clone());
        let id = SysId::from_random([n as u8; 16]);
        let rows = client
            .insert(&table("incident"), &Identity::Fresh(id.clone()), &description("one"), &layout)
            .await;
        let rows = rows.unwrap_or_else(|e| panic!("{effect:?}: {e:?}"));
        assert_eq!((rows.id(0), rows.get(0, "short_description")), (id.as_str(), "one"));
        assert_eq!(
            sim.edit().find("incident", "short_description=one").expect("a query").len(),
            n + 1,
            "{effect:?}"
        );
    }
}

#[tokio::test]
async fn an_insert_looks_for_its_record_before_it_sends_it_again() {
    let sim = instance().await;
    let (client, layout, id) = (client(&sim), some_fields(), SysId::from_random([7; 16]));
    once(&sim, "POST", Effect::ResetAfter);
    once(&sim, "GET", Effect::ResetBefore);
    client
        .insert(&table("incident"), &Identity::Fresh(id.clone()), &description("one"), &layout)
        .await
        .expect("it was made");
    assert_eq!(calls(&sim, "POST").len(), 1);
}

/// A record that was there before is not what the insert has made.
#[tokio::test]
async fn an_insert_does_not_take_somebody_elses_record_for_its_own() {
    let sim = instance().await;
    let (client, layout, id) = (client(&sim), some_fields(), known(&sim));
    for effect in [Effect::ResetBefore, Effect::ResetAfter, Effect::Status { status: 503, html: true }] {
        once(&sim, "POST", effect.clone());
        let outcome = client
            .insert(&table("incident"), &Identity::Given(id.clone()), &description("mine"), &layout)
            .await;
        assert!(outcome.is_err(), "{effect:?}");
    }
}

#[tokio::test]
async fn an_insert_whose_outcome_stays_unknown_says_so() {
    let sim = instance().await;
    let (client, layout) = (client(&sim), some_fields());
    sim.fault(Fault::new(Effect::ResetBefore));
    let error = client
        .insert(
            &table("incident"),
            &Identity::Fresh(SysId::from_random([9; 16])),
            &description("one"),
            &layout,
        )
        .await;
    assert!(error.expect_err("nobody knows").leaves_outcome_unknown());
    sim.clear_faults();
    assert!(sim.edit().find("incident", "short_description=one").expect("a query").is_empty());
}

#[tokio::test]
async fn a_delete_succeeds_whatever_becomes_of_its_answer() {
    let sim = instance().await;
    let client = client(&sim);
    for effect in passing()
        .into_iter()
        .filter(|e| !matches!(e, Effect::NullBody | Effect::EmptyBody | Effect::Truncate { .. }))
    {
        let id = sim.edit().insert("incident", &[]).expect("a record");
        once(&sim, "DELETE", effect.clone());
        client
            .delete(&table("incident"), &SysId::new(id.clone()))
            .await
            .unwrap_or_else(|e| panic!("{effect:?}: {e:?}"));
        assert!(sim.record("incident", &id).is_none(), "{effect:?}");
    }
}

#[tokio::test]
async fn a_failure_that_lasts_is_given_up_on_after_so_many_attempts() {
    let sim = instance().await;
    sim.fault(Fault::new(Effect::Status { status: 503, html: true }));
    let error = page(&client(&sim), "incident", "", 1).await.expect_err("503");
    assert!(matches!(error, Error::Unavailable { status: 503, .. }), "{error:?}");
    assert_eq!(calls(&sim, "GET").len(), 3);
}

#[tokio::test]
async fn a_refusal_is_not_repeated() {
    let sim = instance().await;
    assert!(page(&client(&sim), "no_such_table", "", 1).await.is_err());
    assert_eq!(calls(&sim, "GET").len(), 1);
}

/// The same page would be cut short again.
#[tokio::test]
async fn a_list_that_was_cut_short_is_not_repeated_as_it_is() {
    let sim = instance().await;
    sim.set(|s| s.row_quota = Some(servicenow_sim::RowQuota { rows: 10, cut: servicenow_sim::Cut::Error }));
    assert!(matches!(page(&client(&sim), "incident", "", 50).await, Err(Error::CutShort(_))));
    assert_eq!(calls(&sim, "GET").len(), 1);
    assert_eq!(page(&client(&sim), "incident", "", 10).await.expect("a smaller page").rows.len(), 10);
}

#[tokio::test]
async fn every_call_of_a_client_waits_as_long_as_the_instance_asks() {
    let sim = instance().await;
    let client = client(&sim);
    sim.fault(Fault::new(Effect::RateLimited { headers: true, retry_after: Some(2), json: true }).times(1));
    let began = Instant::now();
    let (first, second) = tokio::join!(page(&client, "incident", "", 1), async {
        while sim.requests().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await; // the answer has to arrive
        page(&client, "problem", "", 1).await
    });
    first.expect("an answer after the wait");
    second.expect("an answer after the wait");
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    let early = sim.requests().iter().filter(|r| r.status != 429).count();
    assert_eq!(early, 2);
}

#[tokio::test]
async fn a_wait_that_is_too_long_for_the_caller_fails_at_once_and_so_does_the_next_call() {
    let sim = instance().await;
    let client = client(&sim);
    sim.fault(
        Fault::new(Effect::RateLimited { headers: true, retry_after: Some(1_800), json: true }).times(1),
    );
    for _ in 0..2 {
        let began = Instant::now();
        let error = page(&client, "incident", "", 1).await.expect_err("429");
        assert!(began.elapsed() < Duration::from_secs(1));
        let Error::RateLimited { retry_after: Some(wait), words } = error else { panic!("{error:?}") };
        assert!(wait > Duration::from_secs(1_790), "{wait:?}");
        assert_eq!(words.message, "Rate limit exceeded");
    }
    assert_eq!(sim.requests().len(), 1, "what was asked for is kept to");
}

#[tokio::test]
async fn no_more_calls_are_under_way_than_allowed() {
    let sim = instance().await;
    sim.set(|s| {
        s.concurrency = Some(servicenow_sim::Concurrency { limit: 2, queue: 0 });
        s.latency_ms = 20;
    });
    let client = set_up(sim.url(), login("admin"), |instance, _| {
        instance.max_concurrency = 2;
        instance.patience.attempts = 1;
    })
    .expect("a client");
    let pages = join_all((0..12).map(|_| page(&client, "incident", "", 1))).await;
    assert!(pages.iter().all(Result::is_ok), "a third call at a time would be refused");
    let eight = client_at(sim.url(), login("admin"), 1);
    let pages = join_all((0..12).map(|_| page(&eight, "incident", "", 1))).await;
    assert!(pages.iter().any(Result::is_err), "the instance does refuse it");
}
