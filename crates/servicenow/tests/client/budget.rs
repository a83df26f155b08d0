use std::time::Duration;

use serde_json::{Map, json};
use servicenow::Error;
use servicenow::client::retry::{Effect as Repeated, Urgency};
use servicenow_sim::Simulator;
use tokio::time::timeout;

use crate::{HttpClient, known, login, page, set_up, some_fields, table};

fn client(sim: &Simulator, urgency: Urgency, max_calls_per_hour: u32) -> HttpClient {
    set_up(sim.url(), login("admin"), |instance, _| {
        instance.max_calls_per_hour = Some(max_calls_per_hour);
        instance.patience.urgency = urgency;
    })
    .expect("a client")
}

async fn write(sim: &Simulator, client: &HttpClient) -> Result<(), Error> {
    let fields = Map::from_iter([("short_description".to_owned(), json!("text"))]);
    let (incident, id) = (table("incident"), known(sim));
    client.update(&incident, &id, &fields, &some_fields(), Repeated::Idempotent).await.map(drop)
}

/// Runs a test on a clock that can be moved on, against an instance that does not see it.
fn with_clock(test: impl AsyncFnOnce(&Simulator)) {
    let sim = Simulator::builder().start_blocking().expect("the simulator starts");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(test(&sim));
    drop(runtime);
    sim.stop_blocking();
}

async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[test]
fn a_statement_is_refused_once_the_hours_calls_are_made() {
    with_clock(async |sim| {
        let client = client(sim, Urgency::Statement, 5);
        for _ in 0..5 {
            page(&client, "incident", "", 1).await.expect("there is room");
        }
        let error = write(sim, &client).await.expect_err("there is none");
        let Error::BudgetUsedUp { per_hour: 5, room_in } = error else { panic!("{error:?}") };
        assert!(room_in > Duration::from_secs(3_590), "{room_in:?}");
        let said = error.to_string();
        assert!(said.starts_with("budget of 5 calls an hour (max_calls_per_hour) is used up"), "{said}");
        assert!(!error.leaves_outcome_unknown());
        assert!(page(&client, "incident", "", 1).await.is_err());
        assert_eq!(sim.requests().len(), 5);
        let remaining = client.budget().expect("there is a budget");
        assert!(remaining.used == 5 && remaining.room_in.is_some(), "{remaining:?}");
        pass(room_in + Duration::from_secs(1)).await;
        write(sim, &client).await.expect("there is room again");
        assert_eq!(client.budget().expect("there is a budget").used, 1);
    });
}

#[test]
fn the_background_waits_for_room_and_lets_writes_pass() {
    with_clock(async |sim| {
        let client = client(sim, Urgency::Background, 10);
        let read = async || timeout(Duration::from_millis(200), page(&client, "incident", "", 1)).await;
        let mut reads = 0;
        while let Ok(page) = read().await {
            page.expect("an answer");
            reads += 1;
        }
        assert_eq!(reads, 5, "half of what it may make in an hour, without a pause");
        // From here on it waits for a quarter of an hour, divided by what is left for it.
        for (left, read_so_far) in [(4, 6), (3, 7), (2, 8), (1, 9)] {
            pass(Duration::from_secs(900 / left - 5)).await;
            assert!(read().await.is_err(), "too early with {left} left");
            pass(Duration::from_secs(5)).await;
            read().await.expect("it is time").expect("an answer");
            assert_eq!(sim.requests().len(), read_so_far);
        }
        pass(Duration::from_secs(900)).await;
        assert!(read().await.is_err(), "the last one is not for it");
        write(sim, &client).await.expect("the last one is for writes");
        assert!(matches!(write(sim, &client).await, Err(Error::BudgetUsedUp { .. })));
    });
}

#[test]
fn calls_of_other_processes_count() {
    with_clock(async |sim| {
        let client = client(sim, Urgency::Statement, 5);
        client.note_calls_elsewhere(4);
        write(sim, &client).await.expect("there is room for one");
        assert!(matches!(write(sim, &client).await, Err(Error::BudgetUsedUp { .. })));
        assert_eq!(sim.requests().len(), 1);
    });
}

/// Each attempt is a call; that the second one may not be made says nothing about the first.
#[test]
fn a_write_that_may_have_happened_is_not_forgotten_when_the_budget_is_used_up() {
    use servicenow_sim::{Effect, Fault};
    with_clock(async |sim| {
        let client = client(sim, Urgency::Statement, 1);
        sim.fault(Fault::new(Effect::ResetAfter).times(1));
        let error = write(sim, &client).await.expect_err("there is no room for a second attempt");
        assert!(error.leaves_outcome_unknown(), "{error:?}");
        assert_eq!(sim.requests().len(), 1);
    });
}

#[tokio::test]
async fn a_client_without_a_budget_has_none_left() {
    let sim = crate::instance().await;
    let client = crate::client(&sim);
    client.note_calls_elsewhere(u32::MAX);
    assert_eq!(client.budget(), None);
    page(&client, "incident", "", 1).await.expect("an answer");
}

/// The instance says how many calls it leaves before it turns any away.
#[test]
fn the_background_slows_down_before_the_instance_turns_it_away() {
    with_clock(async |sim| {
        sim.set(|s| s.rate_headers = true);
        // Early in an hour, so that much of it is left.
        let into = sim.clock().now().timestamp().rem_euclid(3_600);
        sim.clock().advance(Duration::from_secs((3_605 - into) as u64));
        let rule = [("name", "all"), ("limit", "20"), ("api", "Table API"), ("active", "true")];
        sim.edit().insert("sys_rate_limit_rules", &rule).expect("a rule");
        let client = set_up(sim.url(), login("admin"), |instance, _| {
            instance.patience.urgency = Urgency::Background;
        })
        .expect("a client");
        let read = async || timeout(Duration::from_millis(300), page(&client, "incident", "", 1)).await;
        let mut calls = 0;
        while let Ok(answer) = read().await {
            answer.expect("nobody is turned away");
            calls += 1;
            assert!(calls < 20, "it slows down");
        }
        assert!(calls >= 10, "{calls}");
        assert_eq!(client.calls_left(), Some(20 - calls));
        // A statement goes first.
        write(sim, &client).await.expect("some are kept");
        pass(Duration::from_secs(900)).await;
        read().await.expect("it goes on after a while").expect("nobody is turned away");
        assert!(sim.requests().iter().all(|r| r.status == 200));
    });
}
