//! Many writes at once on an instance that loses, refuses and forgets: no record is made twice, nothing is appended
//! twice, and each fate is true.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use servicenow::client::auth::vault::Vault;
use servicenow::client::retry::{Effect as Repeated, Patience, Urgency};
use servicenow::client::table_api::Identity;
use servicenow::client::transport::{HttpTransport, Request, Response, Transport, TransportOptions};
use servicenow::client::write::{Change, Fate};
use servicenow::client::{Client, Instance};
use servicenow::error::Refusal;
use servicenow::value::SysId;
use servicenow::{Error, Result};
use servicenow_sim::{Effect, Fault, Simulator};
use tokio::sync::Mutex;

use crate::batch::{
    batches, deletes, done, failures, fields, inserts, items, new_id, not_sent, one_at_a_time, refuse_some,
    there, updates, with_text, write,
};
use crate::{calls, client, instance, login, set_up, some_fields, table};

/// Ways in which a call or an item can come to nothing, or seem to.
fn troubles() -> Vec<Effect> {
    vec![
        Effect::ResetBefore,
        Effect::ResetAfter,
        Effect::Discard,
        Effect::Status { status: 500, html: false },
        Effect::Status { status: 502, html: true },
        Effect::Status { status: 503, html: true },
        Effect::NullBody,
        Effect::EmptyBody,
        Effect::Hibernating,
        Effect::LoginPage,
        Effect::RateLimited { headers: false, retry_after: None, json: false },
        Effect::RateLimited { headers: true, retry_after: Some(1), json: true },
    ]
}

fn entries(sim: &Simulator, id: &SysId) -> usize {
    let query = format!("element_id={id}^element=work_notes");
    sim.edit().find("sys_journal_field", &query).expect("a query").len()
}

/// One trouble for a whole batch, or for one of its items.
async fn come_through(effect: Effect, in_batch: bool) {
    let sim = instance().await;
    let client = client(&sim);
    let ids = there(&sim, 40);
    let fault = Fault::new(effect.clone()).times(1);
    let strike = || {
        sim.fault(if in_batch { fault.clone().in_batch().after(3) } else { fault.clone().path("/batch") });
    };
    strike();
    let fates = write(&client, inserts(1, 20, "made")).await;
    assert_eq!((done(&fates), with_text(&sim, "made")), (20, 20), "{effect:?}: {fates:?}");
    strike();
    let fates =
        write(&client, updates(&ids[..20], Repeated::Idempotent, "short_description", "changed")).await;
    assert_eq!((done(&fates), with_text(&sim, "changed")), (20, 20), "{effect:?}: {fates:?}");
    // A deletion has no body that could be spoilt.
    if in_batch && matches!(effect, Effect::NullBody | Effect::EmptyBody) {
        return;
    }
    strike();
    let fates = write(&client, deletes(&ids[20..])).await;
    assert_eq!((done(&fates), with_text(&sim, "before")), (20, 0), "{effect:?}: {fates:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_comes_to_nothing_is_made_good() {
    for effect in troubles() {
        come_through(effect, false).await;
    }
    for effect in [Effect::Cancelled, Effect::Truncate { bytes: 100 }] {
        come_through(effect, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_that_comes_to_nothing_is_made_good() {
    for effect in troubles() {
        come_through(effect, true).await;
    }
}

#[tokio::test]
async fn records_of_a_lost_batch_are_looked_up_together_before_they_are_sent_again() {
    for (effect, sent_again) in [(Effect::ResetAfter, 0), (Effect::ResetBefore, 1)] {
        let sim = instance().await;
        let client = one_at_a_time(&sim);
        // It shows that the instance takes keys; before that more has to be looked at.
        write(&client, inserts(9, 1, "first")).await;
        sim.fault(Fault::new(effect.clone()).path("/batch").times(1));
        let fates = write(&client, inserts(1, 25, "made")).await;
        assert_eq!((done(&fates), with_text(&sim, "made")), (25, 25), "{effect:?}");
        let shown =
            |fate: &Fate| matches!(fate, Fate::Done(rows) if rows.get(0, "number").starts_with("INC"));
        assert!(fates.iter().all(shown), "as stored, with what the instance has added");
        let lists = calls(&sim, "GET");
        assert_eq!((lists.len(), batches(&sim).len()), (1, 1 + sent_again), "{effect:?}");
        assert_eq!(lists[0].parameter("sysparm_limit"), Some("25"));
    }
}

#[tokio::test]
async fn an_instance_too_slow_for_a_batch_gets_smaller_ones() {
    let sim = instance().await;
    let client = set_up(sim.url(), login("admin"), |instance, options| {
        (instance.max_concurrency, instance.patience.attempts) = (1, 5);
        options.request_timeout = Duration::from_millis(400);
    });
    sim.set(|s| s.batch_item_ms = 30);
    let fates = write(&client.expect("a client"), inserts(1, 25, "made")).await;
    assert_eq!((done(&fates), with_text(&sim, "made")), (25, 25), "{fates:?}");
}

#[tokio::test]
async fn what_may_be_made_or_appended_already_is_not_sent_again() {
    for (effect, in_batch) in [
        (Effect::ResetAfter, false),
        (Effect::Status { status: 503, html: true }, false),
        (Effect::NullBody, false),
        (Effect::ResetAfter, true),
        (Effect::NullBody, true),
        (Effect::Status { status: 502, html: false }, true),
    ] {
        let sim = instance().await;
        let (client, ids) = (one_at_a_time(&sim), there(&sim, 10));
        let fault = Fault::new(effect.clone()).times(1);
        sim.fault(if in_batch { fault.clone().in_batch() } else { fault.clone().path("/batch") });
        let fates = write(&client, updates(&ids, Repeated::Once, "work_notes", "note")).await;
        let lost = if in_batch { 1 } else { 10 };
        assert_eq!((failures(&fates).len(), done(&fates)), (lost, 10 - lost), "{effect:?}");
        assert!(failures(&fates).iter().all(|e| e.leaves_outcome_unknown()));
        assert!(ids.iter().all(|id| entries(&sim, id) <= 1));
        assert_eq!(batches(&sim).len(), 1, "{effect:?}");

        sim.clear_requests();
        sim.fault(if in_batch { fault.in_batch() } else { fault.path("/batch") });
        let given = |n| Change::Insert {
            id: Identity::Given(new_id(3, n)),
            fields: fields("short_description", "given"),
        };
        let fates = write(&client, (0..10).map(given).collect()).await;
        assert_eq!(failures(&fates).len(), lost, "{effect:?}: it may have been somebody else's");
        assert!(failures(&fates).iter().all(|e| e.leaves_outcome_unknown()));
        assert_eq!(batches(&sim).len(), 1, "{effect:?}");
    }
}

#[tokio::test]
async fn items_for_which_there_was_no_time_are_sent_again_in_smaller_batches() {
    for repeated in [Repeated::Idempotent, Repeated::Once] {
        let sim = instance().await;
        let ids = there(&sim, 60);
        sim.set(|s| (s.batch_item_ms, s.batch_quota_ms) = (5, 40));
        let fates = write(&one_at_a_time(&sim), updates(&ids, repeated, "work_notes", "note")).await;
        assert_eq!(done(&fates), 60, "{fates:?}");
        assert!(ids.iter().all(|id| entries(&sim, id) == 1));
        assert_eq!(items(&sim), 60, "none was carried out twice");
        assert!((8..=12).contains(&batches(&sim).len()), "{}", batches(&sim).len());
    }
}

/// The instance finds out that an answer does not fit when the request was carried out.
#[tokio::test]
async fn items_whose_answers_do_not_fit_are_sent_again_in_smaller_batches() {
    let large = "x".repeat(500_000);
    let insert = |sim: &Simulator| {
        let fields = [("short_description", "before"), ("description", &*large)];
        SysId::new(sim.edit().insert("incident", &fields).expect("a record"))
    };
    let sim = instance().await;
    let ids: Vec<SysId> = (0..26).map(|_| insert(&sim)).collect();
    let client = one_at_a_time(&sim);
    let fates = write(&client, updates(&ids, Repeated::Idempotent, "short_description", "changed")).await;
    assert_eq!((done(&fates), with_text(&sim, "changed")), (26, 26));

    let sim = instance().await;
    let ids: Vec<SysId> = (0..26).map(|_| insert(&sim)).collect();
    let fates = write(&one_at_a_time(&sim), updates(&ids, Repeated::Once, "work_notes", "note")).await;
    assert_eq!(failures(&fates).len(), 1, "nobody knows about the one whose answer did not fit");
    assert!(failures(&fates)[0].leaves_outcome_unknown());
    for (id, fate) in ids.iter().zip(&fates) {
        match fate {
            Fate::Done(_) => assert_eq!(entries(&sim, id), 1),
            Fate::NotSent => assert_eq!(entries(&sim, id), 0),
            Fate::Failed(_) => {}
        }
    }
}

/// What does not fit although it has everything for itself.
#[tokio::test]
async fn a_record_too_large_for_any_batch_is_written_by_a_call_of_its_own() {
    let sim = instance().await;
    let ids = there(&sim, 12);
    let large = "x".repeat(9 << 20);
    sim.edit().update("incident", ids[0].as_str(), &[("description", &large)]).expect("a record");
    let changes = updates(&ids, Repeated::Idempotent, "short_description", "changed");
    let fates = write(&one_at_a_time(&sim), changes).await;
    assert_eq!((done(&fates), with_text(&sim, "changed")), (12, 12));
}

#[tokio::test]
async fn an_item_that_is_told_to_wait_keeps_every_call_waiting() {
    let sim = instance().await;
    let client = client(&sim);
    let wait = Effect::RateLimited { headers: true, retry_after: Some(2), json: true };
    sim.fault(Fault::new(wait).in_batch().times(3));
    let began = Instant::now();
    assert_eq!(done(&write(&client, inserts(1, 2, "made")).await), 2);
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());

    let wait = Effect::RateLimited { headers: true, retry_after: Some(1_800), json: true };
    let fault = sim.fault(Fault::new(wait).in_batch());
    let fates = write(&client, inserts(2, 10, "later")).await;
    sim.remove_fault(fault);
    let failed = failures(&fates);
    assert!(matches!(failed[..], [Error::RateLimited { .. }, ..]), "{failed:?}");
    assert!(failed.iter().all(|e| !e.leaves_outcome_unknown()) && done(&fates) == 0);
    assert_eq!(with_text(&sim, "later"), 0);
}

/// As by a call that is turned away: nothing is sent before the time is over, and then less at a time.
#[tokio::test]
async fn a_rate_that_is_exceeded_within_a_batch_slows_everything_down_at_once() {
    let sim = instance().await;
    let client = client(&sim);
    let limited = Effect::RateLimited { headers: true, retry_after: Some(1), json: true };
    sim.fault(Fault::new(limited).in_batch().after(5).times(15));
    let (began, before) = (Instant::now(), client.concurrency());
    assert_eq!(done(&write(&client, inserts(1, 20, "made")).await), 20);
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(client.concurrency() < before, "{before} and {}", client.concurrency());
    let limited = sim.requests().iter().filter(|r| r.in_batch && r.status == 429).count();
    assert_eq!(limited, 15, "nothing was repeated before the time was over");
}

#[tokio::test]
async fn a_batch_that_is_turned_away_for_good_fails_once_and_nothing_was_carried_out() {
    let sim = instance().await;
    sim.fault(Fault::new(Effect::RateLimited { headers: false, retry_after: None, json: false }));
    let fates = write(&one_at_a_time(&sim), inserts(1, 80, "made")).await;
    assert!(matches!(failures(&fates)[..], [Error::RateLimited { .. }]), "{fates:?}");
    assert_eq!((not_sent(&fates), with_text(&sim, "made")), (79, 0));
    assert!((3..=6).contains(&batches(&sim).len()), "a second one may have waited for its turn meanwhile");
}

/// Others wait for their turn while it is looked up what a failed one has left open.
#[tokio::test]
async fn a_refusal_stops_the_rest_before_anything_is_looked_up() {
    let sim = instance().await;
    refuse_some(&sim);
    sim.fault(Fault::new(Effect::ResetAfter).in_batch().times(1));
    let mut changes = inserts(1, 200, "made");
    let Change::Insert { fields, .. } = &mut changes[10] else { unreachable!("they are inserts") };
    fields.insert("description".to_owned(), serde_json::json!("no"));
    let fates = write(&one_at_a_time(&sim), changes).await;
    assert_eq!((done(&fates), failures(&fates).len(), not_sent(&fates)), (24, 1, 175));
    assert_eq!((calls(&sim, "GET").len(), batches(&sim).len()), (1, 1));
}

#[tokio::test]
async fn what_stays_unknown_is_said_to_be_so() {
    let sim = instance().await;
    let ids = there(&sim, 20);
    sim.fault(Fault::new(Effect::ResetAfter));
    let mut changes = inserts(1, 20, "made");
    changes.extend(updates(&ids[..10], Repeated::Idempotent, "short_description", "changed"));
    changes.extend(deletes(&ids[10..]));
    let fates = write(&one_at_a_time(&sim), changes).await;
    assert_eq!(done(&fates), 0);
    assert!(!failures(&fates).is_empty());
    assert!(failures(&fates).iter().all(|e| e.leaves_outcome_unknown()), "{fates:?}");
    assert!(with_text(&sim, "made") <= 20);
}

#[tokio::test]
async fn an_interrupted_statement_leaves_room_for_others() {
    let sim = instance().await;
    let client = client(&sim);
    let hang = sim.fault(Fault::new(Effect::Hang).path("/batch"));
    for _ in 0..5 {
        let over =
            tokio::time::timeout(Duration::from_millis(50), write(&client, inserts(1, 300, "made"))).await;
        assert!(over.is_err(), "no answer comes");
    }
    sim.remove_fault(hang);
    let after = tokio::time::timeout(Duration::from_secs(3), write(&client, inserts(2, 50, "made"))).await;
    assert_eq!(done(&after.expect("it need not wait")), 50);
}

/// Keeps the first write back until the next one is sent, and says that it was lost.
struct Late {
    http: HttpTransport,
    kept: Mutex<Option<Request>>,
    is_first: AtomicBool,
}

impl Transport for Late {
    async fn send(&self, request: Request) -> Result<Response> {
        if request.method == "POST" {
            if self.is_first.swap(false, Ordering::Relaxed) {
                *self.kept.lock().await = Some(request);
                return Err(Error::Broken { host: "there".to_owned(), reason: "it broke".to_owned() });
            }
            if let Some(kept) = self.kept.lock().await.take() {
                self.http.send(kept).await?;
            }
        }
        self.http.send(request).await
    }
}

#[tokio::test]
async fn a_request_that_arrives_after_its_records_were_looked_up_makes_none_twice() {
    for count in [1, 20] {
        let sim = instance().await;
        let late = |http| Late { http, kept: Mutex::default(), is_first: true.into() };
        let fates = write(&client_over(&sim, 3, 8, late), inserts(1, count, "made")).await;
        assert_eq!((done(&fates), with_text(&sim, "made")), (count, count), "{fates:?}");
        assert!(batches(&sim).len() + calls(&sim, "POST").len() >= 2, "it did arrive");
    }
}

/// A client whose requests go a way of their own.
fn client_over<T: Transport>(
    sim: &Simulator,
    attempts: u32,
    max_concurrency: usize,
    over: impl FnOnce(HttpTransport) -> T,
) -> Client<T> {
    let options = TransportOptions {
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(5),
        ..TransportOptions::default()
    };
    let instance = Instance {
        url: sim.url().parse().expect("an address"),
        token_url: None,
        credentials: login("admin"),
        vault: Vault::default(),
        max_concurrency,
        max_calls_per_hour: None,
        patience: Patience { attempts, longest_wait: Duration::from_secs(60), urgency: Urgency::Statement },
    };
    Client::new(instance, over(HttpTransport::new(&options).expect("a transport"))).expect("a client")
}

/// Sends over a runtime of its own: there time passes, while the caller's clock stands still during a call and
/// jumps to the end of every pause.
struct Elsewhere {
    http: HttpTransport,
    runtime: tokio::runtime::Handle,
}

impl Transport for Elsewhere {
    async fn send(&self, request: Request) -> Result<Response> {
        let (http, runtime) = (self.http.clone(), self.runtime.clone());
        let sent = tokio::task::spawn_blocking(move || runtime.block_on(http.send(request)));
        sent.await.expect("sending does not panic")
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Insert,
    Given,
    /// A record with this `sys_id` is there already.
    Taken,
    Update,
    Append,
    Delete,
}

#[derive(Clone, Debug)]
struct Plan {
    kinds: Vec<Kind>,
    faults: Vec<Fault>,
    attempts: u32,
    max_concurrency: usize,
    quota_ms: u64,
    batch_api: bool,
    pass_over_duplicates: bool,
}

fn plan() -> impl Strategy<Value = Plan> {
    let kind = prop_oneof![
        8 => Just(Kind::Insert),
        2 => Just(Kind::Given),
        1 => Just(Kind::Taken),
        6 => Just(Kind::Update),
        4 => Just(Kind::Append),
        6 => Just(Kind::Delete),
    ];
    // Without those that a single kind of change cannot survive, statements get further.
    let kinds = prop_oneof![
        prop::collection::vec(kind, 2..70),
        prop::collection::vec(prop_oneof![Just(Kind::Insert), Just(Kind::Update), Just(Kind::Delete)], 2..70),
    ];
    let effect =
        prop::sample::select([troubles(), vec![Effect::Cancelled, Effect::Truncate { bytes: 60 }]].concat());
    let fault = (effect, 0u8..4, 0.02f64..0.5, 1u64..6).prop_map(|(effect, place, probability, times)| {
        let fault = Fault::new(effect).probability(probability).times(times);
        match place {
            0 => fault.path("/batch"),
            1 => fault.method("GET"),
            2 => fault,
            _ => fault.in_batch(),
        }
    });
    let quota_ms = prop_oneof![3 => Just(30_000u64), 1 => 0u64..12];
    (
        kinds,
        prop::collection::vec(fault, 0..5),
        1u32..6,
        1usize..6,
        quota_ms,
        prop::bool::weighted(0.85),
        any::<bool>(),
    )
        .prop_map(
            |(kinds, faults, attempts, max_concurrency, quota_ms, batch_api, pass_over_duplicates)| Plan {
                kinds,
                faults,
                attempts,
                max_concurrency,
                quota_ms,
                batch_api,
                pass_over_duplicates,
            },
        )
}

static SERIES: AtomicU64 = AtomicU64::new(0);

/// Carries a plan out and checks every record.
fn carry_out(sim: &Simulator, runtime: &tokio::runtime::Runtime, plan: &Plan) {
    let series = SERIES.fetch_add(1, Ordering::Relaxed);
    let elsewhere = |http| Elsewhere { http, runtime: runtime.handle().clone() };
    let client = client_over(sim, plan.attempts, plan.max_concurrency, elsewhere);
    let text = format!("new {series}");
    let record = |kind: &Kind, n: usize| match kind {
        Kind::Insert | Kind::Given => new_id(0xee, series as usize * 1_000 + n),
        _ => there(sim, 1).remove(0),
    };
    let ids: Vec<SysId> = plan.kinds.iter().enumerate().map(|(n, kind)| record(kind, n)).collect();
    let short = || fields("short_description", &text);
    let change = |(kind, id): (&Kind, &SysId)| match (kind, id.clone()) {
        (Kind::Insert, id) => Change::Insert { id: Identity::Fresh(id), fields: short() },
        (Kind::Given | Kind::Taken, id) => Change::Insert { id: Identity::Given(id), fields: short() },
        (Kind::Update, id) => {
            Change::Update { id, fields: short(), effect: Repeated::Idempotent, from: None }
        }
        (Kind::Append, id) => {
            Change::Update { id, fields: fields("work_notes", &text), effect: Repeated::Once, from: None }
        }
        (Kind::Delete, id) => Change::Delete { id },
    };
    let changes: Vec<Change> = plan.kinds.iter().zip(&ids).map(change).collect();
    sim.set(|s| {
        (s.batch_api, s.batch_quota_ms) = (plan.batch_api, plan.quota_ms);
        s.batch_item_ms = u64::from(plan.quota_ms < 1_000);
    });
    for fault in &plan.faults {
        sim.fault(fault.clone());
    }
    let progress = Arc::new(AtomicU64::new(0));
    let paused = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let fates = paused.expect("a runtime").block_on(client.write_all(
        &table("incident"),
        changes,
        &some_fields(),
        plan.pass_over_duplicates,
        &progress,
    ));
    sim.clear_faults();

    assert_eq!(progress.load(Ordering::Relaxed), done(&fates) as u64);
    let mut has_failed = false;
    for ((kind, id), fate) in plan.kinds.iter().zip(&ids).zip(&fates) {
        let now = sim.record("incident", id.as_str());
        let is_new = now.as_ref().is_some_and(|now| now["short_description"] == text);
        let (done, unknown) = match fate {
            Fate::Done(rows) => {
                let shown: Vec<&str> = rows.ids().collect();
                let expected = if matches!(kind, Kind::Delete) { vec![] } else { vec![id.as_str()] };
                assert_eq!(shown, expected, "{kind:?}");
                (true, false)
            }
            Fate::NotSent => (false, false),
            Fate::Failed(e) => (false, e.leaves_outcome_unknown()),
        };
        let is_duplicate = matches!(kind, Kind::Taken)
            && matches!(fate, Fate::Failed(Error::Refused { refusal: Refusal::Unique, .. }));
        has_failed |= matches!(fate, Fate::Failed(_)) && !(is_duplicate && plan.pass_over_duplicates);
        match kind {
            Kind::Insert | Kind::Given | Kind::Update => {
                assert!(unknown || done == is_new, "{kind:?}: {fate:?}, and it is {is_new}");
            }
            Kind::Taken => assert!(!done && !is_new, "{fate:?}"),
            Kind::Append => {
                let entries = entries(sim, id);
                assert!(entries <= 1 && (unknown || entries == usize::from(done)), "{fate:?}: {entries}");
            }
            Kind::Delete => assert!(unknown || done == now.is_none(), "{fate:?}: {now:?}"),
        }
    }
    assert!(has_failed || not_sent(&fates) == 0, "what was not sent was kept back for a failure");
}

#[test]
fn every_fate_is_true_whatever_goes_wrong() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let sim = Simulator::builder().seed(42).start_blocking().expect("the simulator starts");
    proptest!(ProptestConfig::with_cases(100), |(plan in plan())| carry_out(&sim, &runtime, &plan));
}
