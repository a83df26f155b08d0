use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::stream::{StreamExt, iter};
use serde_json::{Map, json};
use servicenow::Error;
use servicenow::client::retry::Effect as Repeated;
use servicenow_sim::{Concurrency, Effect, Fault, LoggedRequest, Simulator};

use crate::{HttpClient, basic, client, instance, known, login, page, set_up, some_fields, table};

/// An instance that serves four calls at a time, each in so many milliseconds.
async fn instance_that_serves_four(latency_ms: u64) -> Simulator {
    let sim = instance().await;
    sim.set(|s| {
        s.concurrency = Some(Concurrency { limit: 4, queue: 50 });
        s.latency_ms = latency_ms;
    });
    sim
}

/// A client that does not give up soon.
fn patient(sim: &Simulator) -> HttpClient {
    set_up(sim.url(), login("fdw.integration"), |instance, _| instance.patience.attempts = 20)
        .expect("a client")
}

/// Makes so many calls, as many at a time as the client allows.
async fn load(client: &HttpClient, calls: usize) {
    let pages = iter(0..calls).map(|_| page(client, "incident", "", 1)).buffer_unordered(32);
    pages.for_each(|page| async { drop(page.expect("an answer")) }).await;
}

/// How busy the instance was kept, of what it can do, and the mean time that calls stood in its queue, in ms.
async fn measure(sim: &Simulator, client: &HttpClient, calls: usize) -> (f64, f64) {
    sim.clear_requests();
    let began = Instant::now();
    load(client, calls).await;
    let elapsed = began.elapsed().as_secs_f64() * 1000.0;
    let log = sim.requests();
    assert_eq!(log.len(), calls, "none was turned away");
    let sum = |of: fn(&LoggedRequest) -> f64| log.iter().map(of).sum::<f64>();
    let queued = sum(|request| request.sem_wait_ms as f64);
    let served = sum(|request| request.duration_ms) - queued;
    (served / 4.0 / elapsed, queued / calls as f64)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_serves_four_at_a_time_is_kept_busy_and_its_queue_short() {
    let sim = instance_that_serves_four(60).await;
    let client = patient(&sim);
    load(&client, 200).await;
    let (busy, queued) = measure(&sim, &client, 200).await;
    assert!(busy > 0.75, "busy {busy}, queued for {queued} ms, {} at a time", client.concurrency());
    assert!(queued < 60.0 * 0.4, "busy {busy}, queued for {queued} ms, {} at a time", client.concurrency());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_serves_more_is_given_more() {
    let sim = instance().await;
    sim.set(|s| s.latency_ms = 60);
    let client = patient(&sim);
    // On a busy machine calls become slower by themselves; then it takes another try.
    for _ in 0..10 {
        load(&client, 100).await;
        if client.concurrency() > 4 {
            return;
        }
    }
    panic!("still four at a time");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_calls_were_turned_away_there_are_fewer_and_later_as_many_as_before() {
    for turned_away in [
        Effect::RateLimited { headers: false, retry_after: None, json: false },
        Effect::Discard,
        Effect::Status { status: 503, html: true },
    ] {
        let sim = instance_that_serves_four(20).await;
        let client = patient(&sim);
        let fault = sim.fault(Fault::new(turned_away.clone()).times(8));
        let mut fewest = client.concurrency();
        let watch = async {
            while sim.fault_count(fault) < 8 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                fewest = fewest.min(client.concurrency());
            }
        };
        tokio::join!(load(&client, 60), watch);
        assert_eq!(fewest, 1, "{turned_away:?}");
        load(&client, 200).await;
        let (busy, _) = measure(&sim, &client, 200).await;
        assert!(client.concurrency() >= 4 && busy > 0.5, "{turned_away:?}: busy {busy}");
    }
}

/// Callers who each repeat a call or two make a storm together.
#[tokio::test]
async fn an_instance_that_turns_everything_away_is_not_hammered() {
    for turned_away in
        [Effect::RateLimited { headers: false, retry_after: None, json: false }, Effect::Discard]
    {
        let sim = instance().await;
        let client = client(&sim);
        sim.fault(Fault::new(turned_away));
        let caller = async || loop {
            let _turned_away = page(&client, "incident", "", 1).await;
        };
        let storm = join_all((0..50).map(|_| caller()));
        let over = tokio::time::timeout(Duration::from_secs(4), storm).await;
        assert!(over.is_err(), "callers never end");
        let calls = sim.requests().len();
        assert!((5..=15).contains(&calls), "{calls} calls in four seconds");
    }
}

#[tokio::test]
async fn calls_that_wait_for_others_heed_what_those_are_told() {
    let sim = instance().await;
    sim.set(|s| s.latency_ms = 100);
    let client = set_up(sim.url(), login("fdw.integration"), |instance, _| instance.max_concurrency = 2)
        .expect("a client");
    let wait = Effect::RateLimited { headers: true, retry_after: Some(1), json: true };
    sim.fault(Fault::new(wait).times(1));
    sim.fault(Fault::new(Effect::Delay { ms: 100 }).after(1).times(1)); // under way when the first is answered
    let calls = join_all((0..10).map(|_| page(&client, "incident", "", 1)));
    let early = async {
        tokio::time::sleep(Duration::from_millis(900)).await;
        sim.requests().len()
    };
    let (pages, early) = tokio::join!(calls, early);
    assert!(pages.iter().all(Result::is_ok));
    assert!(early <= 2, "{early} calls although the instance asked for a second's rest");
}

#[tokio::test]
async fn interrupted_calls_leave_room_for_others() {
    let sim = instance().await;
    let client = basic(&sim, "admin");
    let hang = sim.fault(Fault::new(Effect::Hang));
    for _ in 0..5 {
        let calls = join_all((0..20).map(|_| page(&client, "incident", "", 1)));
        let over = tokio::time::timeout(Duration::from_millis(50), calls).await;
        assert!(over.is_err(), "no answer comes");
    }
    sim.remove_fault(hang);
    let after = tokio::time::timeout(Duration::from_secs(3), page(&client, "incident", "", 1)).await;
    after.expect("it need not wait").expect("an answer");
}

#[tokio::test]
async fn a_write_goes_before_the_reads_that_wait() {
    let sim = instance().await;
    sim.set(|s| s.latency_ms = 50);
    let client = set_up(sim.url(), login("admin"), |instance, _| instance.max_concurrency = 1);
    let (client, id, layout) = (client.expect("a client"), known(&sim), some_fields());
    let reads = join_all((0..5).map(|_| page(&client, "incident", "", 1)));
    let write = async {
        tokio::time::sleep(Duration::from_millis(25)).await;
        let fields = Map::from_iter([("short_description".to_owned(), json!("urgent"))]);
        client.update(&table("incident"), &id, &fields, &layout, Repeated::Idempotent).await
    };
    let (_, written) = tokio::join!(reads, write);
    written.expect("an answer");
    let methods: Vec<String> = sim.requests().into_iter().map(|request| request.method).collect();
    assert_eq!(methods[..3], ["GET", "PATCH", "GET"]);
}

/// The second attempt was not carried out; the first may have been.
#[tokio::test]
async fn a_write_that_may_have_happened_is_not_forgotten_when_the_next_attempt_is_refused() {
    for refusal in [
        Effect::RateLimited { headers: true, retry_after: Some(1_800), json: true },
        Effect::Status { status: 403, html: false },
    ] {
        let sim = instance().await;
        let (client, id, layout) = (client(&sim), known(&sim), some_fields());
        sim.fault(Fault::new(Effect::ResetAfter).method("PATCH").times(1));
        sim.fault(Fault::new(refusal).method("PATCH").after(1));
        let fields = Map::from_iter([("short_description".to_owned(), json!("perhaps"))]);
        let outcome = client.update(&table("incident"), &id, &fields, &layout, Repeated::Idempotent).await;
        let error = outcome.expect_err("it was refused in the end");
        assert!(matches!(error, Error::Broken { .. }) && error.leaves_outcome_unknown(), "{error:?}");
        assert_eq!(sim.record("incident", id.as_str()).expect("it is there")["short_description"], "perhaps");
    }
}
