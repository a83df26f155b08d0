//! Answers that are none, in the middle of everything.

use std::time::{Duration, Instant};

use servicenow::client::auth::vault::Vault;
use servicenow::client::auth::{Credentials, OauthClient, Secret};
use servicenow::client::retry::{Patience, Urgency};
use servicenow::client::{Client, Instance};
use servicenow_sim::{Cut, Effect, Fault, RowQuota};

use crate::direct::Direct;
use crate::restart::begun;
use crate::{PATIENCE, TASK_FIELDS, World, client, fill, fill_in_spite_of_all, poll};

/// Everything that can go wrong with a call, but what asks for a wait.
pub fn all_effects() -> Vec<Effect> {
    let mut effects = vec![
        Effect::Discard,
        Effect::RateLimited { headers: false, retry_after: None, json: false },
        Effect::RateLimited { headers: false, retry_after: Some(0), json: true },
        Effect::Status { status: 500, html: false },
        Effect::Status { status: 502, html: true },
        Effect::Status { status: 503, html: true },
        Effect::Status { status: 403, html: false },
        Effect::Status { status: 404, html: true },
        Effect::NullBody,
        Effect::EmptyBody,
        Effect::Hibernating,
        Effect::LoginPage,
        Effect::ResetBefore,
        Effect::ResetAfter,
        Effect::Drip { bytes: 500, interval_ms: 1 },
        Effect::Delay { ms: 30 },
        Effect::Cancelled,
        Effect::ExpireTokens,
    ];
    effects.extend([0, 1, 5].map(|bytes| Effect::Truncate { bytes: bytes * 100 }));
    for cut in [Cut::Error, Cut::DanglingComma, Cut::Broken] {
        effects.extend([0, 3].map(|rows| Effect::Cut { rows, cut }));
    }
    effects
}

#[tokio::test]
async fn a_fill_comes_through_every_failure() {
    for effect in all_effects() {
        let mut world = World::of_tasks().await.in_pages_of(20);
        world.client = client(&world.sim, world.user, 1);
        begun(&world, 3, false);
        let fault = world.sim.fault(Fault::new(effect.clone()).table("task").after(2).times(3));
        fill_in_spite_of_all(&mut world.mirror()).await;
        assert_eq!(world.sim.fault_count(fault), 3, "{effect:?}");
        world.assert_alike();
    }
}

#[tokio::test]
async fn polls_and_readings_of_deletions_come_through_every_failure() {
    let mut world = World::of_tasks().await.in_pages_of(10);
    let mut mirror = world.filled().await;
    world.client = client(&world.sim, world.user, 1);
    for (n, effect) in all_effects().into_iter().enumerate() {
        world.sim.clock().advance(Duration::from_secs(90));
        world
            .sim
            .edit()
            .update_where("task", "active=true", &[("short_description", &format!("round {n}"))])
            .expect("a query");
        let gone = world.truth().into_keys().next().expect("there are some");
        world.sim.edit().delete("task", &gone).expect("it is there");
        let fault = world.sim.fault(Fault::new(effect.clone()).after(1).times(2));
        for _ in 0..4 {
            let _tried_again = mirror.advance().await;
            let deletes = world.deletes();
            if let Ok(read) = deletes.read().await {
                world.store.with(|m| m.deletes = Some(read.watermark));
            }
        }
        assert_eq!(world.sim.fault_count(fault), 2, "{effect:?}");
        world.sim.remove_fault(fault);
        poll(&mut mirror).await;
        world.read_deletes().await;
        world.assert_alike();
    }
}

/// An instance that never manages more than a few rows in its time.
#[tokio::test]
async fn pages_shrink_to_what_the_instance_manages() {
    for cut in [Cut::Error, Cut::DanglingComma, Cut::Broken] {
        let world = World::of_tasks().await;
        world.read_deletes().await;
        let mut mirror = world.mirror();
        mirror.advance().await.expect("it begins");
        world.sim.set(|s| s.row_quota = Some(RowQuota { rows: 25, cut }));
        fill(&mut mirror).await.expect("it is filled");
        world.assert_alike();
        world.sim.edit().update_where("task", "", &[("short_description", "changed")]).expect("a query");
        poll(&mut mirror).await;
        world.assert_alike();
    }
}

#[tokio::test]
async fn pages_of_deletions_shrink_to_what_the_instance_manages() {
    for cut in [Cut::Error, Cut::DanglingComma, Cut::Broken] {
        let world = World::of_tasks().await;
        world.filled().await;
        world.sim.set(|s| s.row_quota = Some(RowQuota { rows: 25, cut }));
        world.sim.edit().delete_where("task", "active=true").expect("a query");
        world.read_deletes().await;
        world.assert_alike();
    }
}

#[tokio::test]
async fn pages_of_the_dictionary_shrink_to_what_the_instance_manages() {
    for cut in [Cut::Error, Cut::DanglingComma, Cut::Broken] {
        let world = World::of_tasks().await;
        world.sim.set(|s| s.row_quota = Some(RowQuota { rows: 40, cut }));
        fill(&mut world.mirror()).await.expect("it is filled");
        world.assert_alike();
    }
}

#[tokio::test]
async fn an_answer_that_never_comes_is_given_up_on() {
    let world = World::of_tasks().await.in_pages_of(40);
    for effect in [Effect::Hang, Effect::HangAfter] {
        world.sim.fault(Fault::new(effect).table("task").after(1).times(1));
    }
    let began = Instant::now();
    fill_in_spite_of_all(&mut world.mirror()).await;
    world.assert_alike();
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_wait_the_instance_asks_for_is_kept() {
    let world = World::of_tasks().await;
    let mut mirror = world.filled().await;
    world
        .sim
        .fault(Fault::new(Effect::RateLimited { headers: true, retry_after: Some(2), json: true }).times(1));
    world.sim.clear_requests();
    let began = Instant::now();
    let (polled, read) = tokio::join!(mirror.advance(), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.deletes().read().await
    });
    assert!(polled.is_ok() && read.is_ok(), "{polled:?} {read:?}");
    assert!(began.elapsed() >= Duration::from_secs(2));
    let requests = world.sim.requests();
    let limited = requests.iter().find(|r| r.status == 429).expect("one was refused");
    let next = requests.iter().find(|r| r.seq > limited.seq).expect("it was repeated");
    let waited = next.at - limited.at;
    assert!(waited >= chrono::TimeDelta::milliseconds(1_900), "{waited}");
}

#[tokio::test]
async fn a_token_that_ends_under_way_does_not_disturb() {
    for effect in [Effect::ExpireTokens, Effect::Unauthorized] {
        let mut world = World::new("task", TASK_FIELDS).await.in_pages_of(10);
        world.client = with_tokens(&world);
        begun(&world, 4, false);
        world.sim.fault(Fault::new(effect).table("task").after(5).times(1));
        fill(&mut world.mirror()).await.expect("it is filled at once");
        world.assert_alike();
    }
}

/// A client that logs in with a token and tries once.
fn with_tokens(world: &World) -> Client<Direct> {
    let instance = Instance {
        url: world.sim.url().parse().expect("an address"),
        token_url: None,
        credentials: Credentials::ClientCredentials {
            client: OauthClient::new("fdw-client", Secret::new("fdw-client-secret")),
        },
        vault: Vault::default(),
        max_concurrency: 4,
        max_calls_per_hour: None,
        patience: Patience {
            attempts: 1,
            longest_wait: Duration::from_secs(1),
            urgency: Urgency::Background,
        },
    };
    Client::new(instance, Direct::to(&world.sim, PATIENCE)).expect("a client")
}
